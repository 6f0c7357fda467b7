"""The schedule of the DE-Opt authors' public program: trials in turn, against a running best.

    search = RunningBestDE(space, seed=0)
    search.open(score(model))
    while True:
        train(model, space.decode(search.trial))
        search.tell(score(model))  # the next trial goes on from these weights

Kept to see what it does, and not as a reading of the paper. It never scores a target: a trial is
compared with the best perf of its round so far, from other weights than its own, so that it may
be accepted for what the trials before it have trained (Eq. 10 compares two from the same start).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from deopt_lightning import equations
from deopt_lightning.differential_evolution import (
    Strategy,
    build_trials,
    check_equal_settings,
    check_settings,
)
from deopt_lightning.equations import FloatArray
from deopt_lightning.population import with_first
from deopt_lightning.scale_factor import F_LOW, F_RANGE, TAU
from deopt_lightning.search_space import Repair, SearchSpace


@dataclass
class Round:
    """One round: a trial for each target, in turn.

    Attributes:
        first: The perf before the first trial, which it has to reach.
        trials: Coordinates of the trials told so far.
        perf: Their perf.
        accepted: Which of them reached the best perf of the round until then.
    """

    first: float
    trials: list[list[float]] = field(default_factory=list)
    perf: list[float] = field(default_factory=list)
    accepted: list[bool] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The best perf of the round so far."""
        return max([self.first, *self.perf])


class RunningBestDE:
    """Proposes one trial after another; an accepted one takes its target's place at once.

    As the authors' program has it: the targets take turns, a round is one turn of all; F is
    uniform in (0, 1), or in (0.1, 1) in a tenth of the draws, and is not remembered; r1, r2, r3, F
    and omega are drawn afresh for every layer, whose lr and weight decay share them. Left out as a
    plain mistake: in seven of a hundred draws it takes 8 or 20, which are numbers of iterations of
    SFLSDE's local searches, for F itself.

    Args:
        space: The dimensions and their bounds: N lr, then N weight decays.
        population_size: The number of targets, at least 4.
        strategy: How trials are built, see ``DifferentialEvolution``.
        repair: What happens to a trial outside the bounds, see ``SearchSpace.repair``.
        initial: Up to population_size vectors, in coordinates, that open the first population,
            shape (count, dimensions). The others are drawn by Eq. 6.
        seed: Seed of the search's own random generator; None draws one from the system.

    Attributes:
        vectors: Coordinates of the targets, shape (population_size, dimensions).
        accepted: Coordinates of the last accepted trial; before one, of the first target.
        trial: Coordinates of the trial whose perf is awaited; None before a round is opened.
        round: The present round, or the one that has just ended.
    """

    def __init__(
        self,
        space: SearchSpace,
        population_size: int = 5,
        *,
        strategy: Strategy = "mutant_then_trial",
        repair: Repair = "clip",
        initial: ArrayLike | None = None,
        seed: int | None = None,
    ) -> None:
        check_settings(population_size, strategy, None, repair)
        self.space = space
        self.population_size = population_size
        self.strategy = strategy
        self.repair = repair
        self._rng = np.random.Generator(np.random.PCG64(seed))
        low, high = space.coordinate_low, space.coordinate_high
        drawn = equations.initial_population(low, high, population_size, self._rng)
        self.vectors = with_first(space, drawn, initial)
        self.accepted = self.vectors[0].copy()
        self.trial: FloatArray | None = None
        self.round = Round(-np.inf)

    def open(self, perf: float) -> None:
        """Opens a round.

        Args:
            perf: Of the weights that the first trial starts from; NaN and infinite count as the
                worst.
        """
        self.round = Round(_finite(perf))
        self.trial = self._trial(0)

    def tell(self, perf: float) -> bool:
        """Reports the perf of the trial; NaN and infinite count as the worst.

        Returns:
            Whether the round is over. If not, the next trial waits.
        """
        if self.trial is None:
            raise RuntimeError(f"tell was called with {perf}, but no trial waits; call open first.")
        told, target = _finite(perf), len(self.round.perf)
        accepted = bool(np.isfinite(told) and told >= self.round.best)
        if accepted:
            self.vectors[target] = self.accepted = self.trial
        self.round.trials.append(self.trial.tolist())
        self.round.perf.append(told)
        self.round.accepted.append(accepted)
        over = target + 1 == self.population_size
        self.trial = None if over else self._trial(target + 1)
        return over

    def _trial(self, target: int) -> FloatArray:
        """A trial for a target; row n of each array below belongs to layer n: its lr and decay."""
        layers = self.space.dimensions // 2
        pairs = self.vectors.reshape(self.population_size, 2, layers).transpose(2, 0, 1)
        others = np.delete(np.arange(self.population_size), target)
        parents = np.array([self._rng.permutation(others)[:3] for _ in range(layers)])
        x_r1, x_r2, x_r3 = (pairs[np.arange(layers), parents[:, k]] for k in range(3))
        uniform, redrawn, rare, omegas = self._rng.random((4, layers))
        factors = np.where(rare < TAU[0], F_LOW + F_RANGE * redrawn, uniform)
        own = pairs[:, target]
        trials = build_trials(self.strategy, own, x_r1, x_r2, x_r3, factors, omegas)
        return self.space.repair(trials.T.reshape(-1), self.repair)

    def state_dict(self) -> dict[str, Any]:
        """The state in plain Python types."""
        return {
            "settings": self._settings(),
            "vectors": self.vectors.tolist(),
            "accepted": self.accepted.tolist(),
            "trial": None if self.trial is None else self.trial.tolist(),
            "round": asdict(self.round),
            "random_state": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of an equally built search."""
        check_equal_settings(state["settings"], self._settings())
        self.vectors = np.array(state["vectors"])
        self.accepted = np.array(state["accepted"])
        self.trial = None if state["trial"] is None else np.array(state["trial"])
        self.round = Round(**deepcopy(state["round"]))
        self._rng.bit_generator.state = state["random_state"]

    def _settings(self) -> dict[str, Any]:
        return {
            **self.space.settings(),
            "population_size": self.population_size,
            "strategy": self.strategy,
            "repair": self.repair,
        }


def _finite(perf: float) -> float:
    return float(perf) if np.isfinite(perf) else -np.inf
