"""Differential evolution that is asked for candidates and told their perf (higher is better).

    search = DifferentialEvolution(space, seed=0)
    for _ in range(generations):
        while len(candidates := search.ask()):
            search.tell(evaluate(space.decode(candidates)))

An empty batch means that the generation is complete. One generation costs population_size
evaluations for the trials, as many again for the targets if they are scored afresh, and with
local search for the best target about two more on average.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from copy import deepcopy
from functools import partial
from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deopt_lightning import equations, scale_factor
from deopt_lightning.equations import FloatArray
from deopt_lightning.population import Generation, Population, draw_parents, with_first
from deopt_lightning.scale_factor import LocalSearch
from deopt_lightning.search_space import Repair, SearchSpace

Strategy = Literal["current_to_rand", "mutant_then_trial"]


class DifferentialEvolution:
    """Search a space for the vector with the highest perf.

    Args:
        space: The dimensions and their bounds.
        population_size: The number of target vectors, at least 4. Trials are combinations of
            targets, so up to `space.dimensions` targets span only a slice of the space; take more
            where the evaluations allow it.
        strategy: How trials are built: "current_to_rand" is Eq. 9 as printed,
            "mutant_then_trial" is Eq. 7 put into Eq. 8.
        local_search: Whose scale factor may be searched for: that of the "best" target, of "all"
            targets (several times the evaluations), or of none (None).
        rescore_targets: Score the targets afresh in every generation. Right where perf drifts, as
            it does while a model trains; a waste where the same vector always scores the same.
        repair: What happens to a trial outside the bounds, see `SearchSpace.repair`.
        initial: Up to population_size vectors, in coordinates, that open the first population,
            shape (count, dimensions). The others are drawn by Eq. 6.
        seed: Seed of the search's own random generator; None draws one from the system.
    """

    _running: Generator[FloatArray, FloatArray, Population] | None  # None until the first ask
    _awaited: int | None  # how many perf values are due; None if no candidates are out

    def __init__(
        self,
        space: SearchSpace,
        population_size: int = 10,
        *,
        strategy: Strategy = "current_to_rand",
        local_search: LocalSearch | None = "best",
        rescore_targets: bool = True,
        repair: Repair = "reflect",
        initial: ArrayLike | None = None,
        seed: int | None = None,
    ) -> None:
        check_settings(population_size, strategy, local_search, repair)
        self.space = space
        self.population_size = population_size
        self.strategy = strategy
        self.local_search = local_search
        self.rescore_targets = rescore_targets
        self.repair = repair
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._last_generation: Generation | None = None
        self._begin_generation(0, 0, self._first_population(initial))

    @property
    def population(self) -> Population:
        """The targets after the last completed generation."""
        return self._population

    @property
    def best(self) -> tuple[FloatArray, float]:
        """The best target and its perf; before the first generation the first one and -inf."""
        best = int(np.argmax(self._population.perf))
        return self._population.vectors[best].copy(), float(self._population.perf[best])

    @property
    def generation(self) -> int:
        """The number of completed generations."""
        return self._generation

    @property
    def evaluations(self) -> int:
        """The number of perf values told so far."""
        return self._evaluations

    @property
    def last_generation(self) -> Generation | None:
        """What the last completed generation did; None before it, and after a state is loaded."""
        return self._last_generation

    def ask(self) -> FloatArray:
        """Return the next candidates, shape (count, dimensions); none when a generation is over.

        After the empty batch, the next call opens the next generation.
        """
        if self._awaited is not None:
            raise RuntimeError(
                f"ask was called twice in a row; tell the perf of the last {self._awaited} "
                f"candidates first."
            )
        try:
            if self._running is None:
                self._running = self._run_generation()
                candidates = next(self._running)
            else:
                candidates = self._running.send(self._told[-1].copy())
        except StopIteration as end:
            self._begin_generation(self._generation + 1, self._evaluations, end.value)
            return np.empty((0, self.space.dimensions))
        self._awaited = len(candidates)
        return candidates.copy()

    def tell(self, perf: ArrayLike) -> None:
        """Report the perf of the candidates asked for, shape (count,), in their order.

        NaN and infinite values count as minus infinity, the worst there is.
        """
        told = np.array(perf, dtype=np.float64)
        if self._awaited is None:
            raise RuntimeError(
                f"tell was called with {told.size} values, but no candidates are waiting for "
                f"theirs; call ask first."
            )
        if told.shape != (self._awaited,):
            raise ValueError(
                f"perf must hold one number for each of the {self._awaited} candidates asked for; "
                f"got the shape {told.shape}."
            )
        told[~np.isfinite(told)] = -np.inf
        self._told.append(told)
        self._evaluations += len(told)
        self._awaited = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain Python types: how this generation began, and what it was told.

        Candidates asked for but not yet told are asked for again after loading.
        """
        return {**deepcopy(self._start), "told": [perf.tolist() for perf in self._told]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of an equally built search, also in the middle of a generation."""
        check_equal_settings(state["settings"], self._settings())
        arrays = {name: np.array(rows) for name, rows in state["population"].items()}
        self._rng.bit_generator.state = state["random_state"]
        self._last_generation = None
        self._begin_generation(state["generation"], state["evaluations"], Population(**arrays))
        for perf in state["told"]:
            self.ask()
            self.tell(perf)

    def _first_population(self, initial: ArrayLike | None) -> Population:
        low, high = self.space.coordinate_low, self.space.coordinate_high
        drawn = equations.initial_population(low, high, self.population_size, self._rng)
        vectors = with_first(self.space, drawn, initial)
        return Population(
            vectors=vectors,
            perf=np.full(self.population_size, -np.inf),
            scale_factors=self._rng.random(self.population_size),
            omegas=self._rng.random(self.population_size),
        )

    def _begin_generation(self, generation: int, evaluations: int, population: Population) -> None:
        """Note where a generation starts from; `state_dict` adds what it is told from here on."""
        self._generation = generation
        self._evaluations = evaluations
        self._population = population
        self._running = None
        self._awaited = None
        self._told: list[FloatArray] = []
        self._start = {
            "settings": self._settings(),
            "generation": generation,
            "evaluations": evaluations,
            "population": {name: array.tolist() for name, array in vars(population).items()},
            "random_state": self._rng.bit_generator.state,
        }

    def _run_generation(self) -> Generator[FloatArray, FloatArray, Population]:
        """One generation from end to end: candidates go out, their perf comes in."""
        targets, target_perf = self._population.vectors, self._population.perf
        if self._generation == 0 or self.rescore_targets:
            target_perf = yield targets

        parents = draw_parents(self.population_size, self._rng)
        adapted = scale_factor.adapt(
            self._population.scale_factors,
            self._population.omegas,
            int(np.argmax(target_perf)),
            self.local_search,
            self._rng,
        )
        build_trials = partial(self._build_trials, parents, adapted.omegas)

        factors = adapted.scale_factors.copy()
        trial_perf = np.full(self.population_size, np.nan)
        found = yield from scale_factor.in_lockstep(adapted.searches(), build_trials)
        for target, (factor, best_perf) in found.items():
            factors[target], trial_perf[target] = factor, best_perf

        trials = build_trials(np.arange(self.population_size), factors)
        unscored = np.isnan(trial_perf)
        if unscored.any():
            trial_perf[unscored] = yield trials[unscored]

        vectors, perf, accepted = equations.select(targets, target_perf, trials, trial_perf)
        self._last_generation = Generation(
            targets, target_perf, trials, trial_perf, factors, adapted.omegas, accepted
        )
        return Population(vectors, perf, factors, adapted.omegas)

    def _build_trials(
        self,
        parents: NDArray[np.intp],
        omegas: FloatArray,
        rows: NDArray[np.intp],
        factors: FloatArray,
    ) -> FloatArray:
        """Build the trials of the targets `rows`, which may repeat, with the given F."""
        vectors = self._population.vectors
        x_r1, x_r2, x_r3 = (vectors[parents[rows, k]] for k in range(3))
        trials = build_trials(self.strategy, vectors[rows], x_r1, x_r2, x_r3, factors, omegas[rows])
        return self.space.repair(trials, self.repair)

    def _settings(self) -> dict[str, Any]:
        """Everything that must be equal for a state to make sense here."""
        return {
            **self.space.settings(),
            "population_size": self.population_size,
            "strategy": self.strategy,
            "local_search": self.local_search,
            "rescore_targets": self.rescore_targets,
            "repair": self.repair,
        }


def build_trials(
    strategy: Strategy,
    targets: FloatArray,
    x_r1: FloatArray,
    x_r2: FloatArray,
    x_r3: FloatArray,
    factors: FloatArray,
    omegas: FloatArray,
) -> FloatArray:
    """Trials by Eq. 9 as printed ("current_to_rand"), or by Eq. 7 put into Eq. 8."""
    if strategy == "current_to_rand":
        return equations.current_to_rand(targets, x_r1, x_r2, x_r3, factors, omegas)
    mutants = equations.mutant_vectors(x_r1, x_r2, x_r3, factors)
    return equations.trial_vectors(targets, mutants, omegas)


def check_settings(
    population_size: int, strategy: object, local_search: object, repair: object
) -> None:
    """Refuse settings that no search can run with.

    Raises:
        ValueError: Naming the setting, its value, and what to give instead.
    """
    if isinstance(population_size, bool) or not isinstance(population_size, Integral):
        raise ValueError(f"population_size must be a whole number; got {population_size!r}.")
    if population_size < 4:
        raise ValueError(
            f"population_size must be at least 4 because Eq. 7 needs three other members; "
            f"got {population_size}."
        )
    check_choice("strategy", strategy, ("current_to_rand", "mutant_then_trial"))
    check_choice("local_search", local_search, ("best", "all", None))
    check_choice("repair", repair, ("reflect", "clip"))


def check_equal_settings(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a state that was saved by a search built in another way.

    Raises:
        ValueError: Naming the first setting that differs, and both values.
    """
    for setting, value in own.items():
        if saved.get(setting) != value:
            raise ValueError(
                f"The state belongs to a search with {setting}={saved.get(setting)}, but this one "
                f"has {setting}={value}. Build the search as it was when the state was saved."
            )


def check_choice(argument: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse a value that is not among the choices."""
    if value not in choices:
        raise ValueError(f"{argument} must be one of {choices}; got {value!r}.")
