"""Self-adaptive scale factors with local search (SFLSDE; Neri and Tirronen, 2009).

Each target remembers its own scale factor F. Before a generation most keep it, some draw a new
one, and now and then F is searched for: the parents stay as they are, F alone varies, and the F
whose trial scores best is taken. A search is a generator, `perf = yield scale_factors`, so
whoever drives it decides how the trials are built and scored.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deopt_lightning.equations import FloatArray

LocalSearch = Literal["best", "all"]
ScaleFactorSearch = Generator[FloatArray, FloatArray, tuple[float, float]]

F_LOW, F_RANGE = 0.1, 0.9  # a redrawn F is F_LOW + F_RANGE * rand

# As published: the rates of redrawing F and the crossover coefficient (omega here), and the upper
# ends of the ranges in which golden section and hill climb take place. Drawing omega afresh every
# time (1.0 in second place) was tried too: for populations of 10 to 30 in 5 dimensions it was no
# better on the whole, and worse on the Rosenbrock function for the small ones.
TAU = (0.1, 0.1, 0.03, 0.07)
GOLDEN_RATIO = (1 + 5**0.5) / 2


@dataclass(frozen=True)
class Adaptation:
    """What the targets enter a generation with; every array has the shape (population_size,).

    Attributes:
        scale_factors: F of each target; where a search is due, the remembered F it starts from.
        omegas: omega of each target.
        golden_section: Targets whose F is to be found by `golden_section`.
        hill_climb: Targets whose F is to be found by `hill_climb`.
    """

    scale_factors: FloatArray
    omegas: FloatArray
    golden_section: NDArray[np.bool_]
    hill_climb: NDArray[np.bool_]

    def searches(self) -> dict[int, ScaleFactorSearch]:
        """Return a new search for each target whose F is to be found."""
        golden = {int(target): golden_section() for target in np.flatnonzero(self.golden_section)}
        climbing = np.flatnonzero(self.hill_climb)
        climbs = {int(target): hill_climb(self.scale_factors[target]) for target in climbing}
        return golden | climbs


def adapt(
    scale_factors: FloatArray,
    omegas: FloatArray,
    best: int,
    local_search: LocalSearch | None,
    rng: np.random.Generator,
    tau: tuple[float, float, float, float] = TAU,
) -> Adaptation:
    """Keep or redraw F and omega of each target, and choose where F is searched for.

    Five uniforms are drawn per target, whatever becomes of them, as in the published procedure.

    Args:
        scale_factors: The remembered F of each target, shape (population_size,).
        omegas: The remembered omega of each target, shape (population_size,).
        best: Index of the target with the highest perf.
        local_search: Search F only for the best target, for all, or for none.
        rng: The random generator; it is advanced.
        tau: The four rates, see `TAU`.
    """
    rand1, rand2, rand3, rand4, rand5 = rng.random((len(scale_factors), 5)).T
    searched = np.full(len(scale_factors), local_search == "all")
    searched[best] = local_search is not None
    golden = searched & (rand5 < tau[2])
    climb = searched & (tau[2] <= rand5) & (rand5 < tau[3])
    redraw = ~golden & ~climb & (rand2 < tau[0])
    return Adaptation(
        scale_factors=np.where(redraw, F_LOW + F_RANGE * rand1, scale_factors),
        omegas=np.where(rand4 < tau[1], rand3, omegas),
        golden_section=golden,
        hill_climb=climb,
    )


def golden_section(low: float = -1.0, high: float = 1.0, iterations: int = 8) -> ScaleFactorSearch:
    """Search F between two bounds by golden section: 2 + iterations evaluations.

    Each iteration drops the part of the interval beyond the worse of the two inner points. The
    better one becomes an inner point of the rest, so only one new point has to be scored.

    Returns:
        The best F seen and its perf.
    """
    left, right = high - (high - low) / GOLDEN_RATIO, low + (high - low) / GOLDEN_RATIO
    left_perf, right_perf = yield np.array([left, right])
    for _ in range(iterations):
        if left_perf >= right_perf:
            high, right, right_perf = right, left, left_perf
            left = high - (high - low) / GOLDEN_RATIO
            (left_perf,) = yield np.array([left])
        else:
            low, left, left_perf = left, right, right_perf
            right = low + (high - low) / GOLDEN_RATIO
            (right_perf,) = yield np.array([right])
    best = (left, left_perf) if left_perf >= right_perf else (right, right_perf)
    return float(best[0]), float(best[1])


def hill_climb(start: float, step: float = 0.1, iterations: int = 20) -> ScaleFactorSearch:
    """Search F from a start by steps to the better side, halved where neither side is better.

    At most 3 + 2 (iterations - 1) evaluations, 41 by default: points already scored are kept.

    Returns:
        The best F seen and its perf.
    """
    perf = yield np.array([start - step, start, start + step])
    left, centre, right = (float(value) for value in perf)
    for _ in range(iterations - 1):
        if centre >= max(left, right):
            step /= 2
            left, right = yield np.array([start - step, start + step])
        elif left > right:
            start, centre, right = start - step, left, centre
            (left,) = yield np.array([start - step])
        else:
            start, centre, left = start + step, right, centre
            (right,) = yield np.array([start + step])
    seen = ((start, centre), (start - step, left), (start + step, right))
    factor, best_perf = max(seen, key=lambda point: point[1])
    return factor, float(best_perf)


def in_lockstep(
    searches: dict[int, ScaleFactorSearch],
    build_trials: Callable[[NDArray[np.intp], FloatArray], FloatArray],
) -> Generator[FloatArray, FloatArray, dict[int, tuple[float, float]]]:
    """Run several searches side by side, so that each round is one batch of trials to score.

    Args:
        searches: One search per target index.
        build_trials: Turns target indices and scale factors, both (count,), into trial vectors.

    Returns:
        The best F and its perf, per target index.
    """
    found: dict[int, tuple[float, float]] = {}
    waiting = {target: next(search) for target, search in searches.items()}
    while waiting:
        counts = [len(factors) for factors in waiting.values()]
        rows = np.repeat(list(waiting), counts)
        perf = yield build_trials(rows, np.concatenate(list(waiting.values())))
        replies = np.split(perf, np.cumsum(counts)[:-1])
        for target, reply in zip(tuple(waiting), replies, strict=True):
            try:
                waiting[target] = searches[target].send(reply)
            except StopIteration as end:
                found[target] = end.value
                del waiting[target]
    return found
