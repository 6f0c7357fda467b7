"""Steady-state differential evolution: every member lives on, the worst makes room for a trial.

    search = SteadyStateDE(space, seed=0)
    for _ in range(generations):
        perf = [go_on(state, vector) for state, vector in zip(states, space.decode(search.vectors))]
        states = [states[parent] for parent in search.tell(perf)]

Made for members that have a state of their own, here the weights that a vector has trained so
far. What a vector is worth shows late then, and Eq. 10, which compares a trial with its target
from one start, would favour what pays off at once. So a trial is not judged on its first day: it
takes over the best member's state, and lives for as long as it is not the worst.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deopt_lightning.differential_evolution import (
    Strategy,
    build_trials,
    check_equal_settings,
    check_settings,
)
from deopt_lightning.equations import FloatArray
from deopt_lightning.population import latin_hypercube, with_first
from deopt_lightning.run_beside import PATIENCE, RunBeside
from deopt_lightning.scale_factor import F_LOW, F_RANGE
from deopt_lightning.search_space import Repair, SearchSpace

REPLACED = 0.4  # of the members, in each generation
ARCHIVE = 4  # vectors for each member
FALL = 0.15  # decades that an lr may fall by from the best member to a trial
OWN_STAYS = 2  # generations in which the own vector's member is not replaced
REACH = 1.0  # decades from the own lr to the lowest and to the highest of the first members
OWN, LOW, HIGH = range(3)  # of the first members: the own vector's, and those with all lrs far away


class SteadyStateDE:
    """Searches with members that keep what they have reached; higher perf is better.

    One of the first members has a tenth of all own lrs and one ten times them, so that one trains
    even if the own lr is far from a good one. The others have an lr between these for each layer
    alone, so that the layers' rates do not begin alike.

    In each generation the worst members, and all without a finite perf, become trials around the
    best: Eq. 9, or Eq. 7 in 8, with the best member as its target, F and omega drawn afresh. X_r3
    is drawn from the members and an archive of replaced ones (Zhang and Sanderson, JADE, 2009).
    That keeps the steps from shrinking with a population that has just gathered around one member,
    and X_r2 - X_r3 leads away from what was worse. So for an lr X_r2 is a member, as in JADE. What
    a weight decay is worth shows too late for that: there both are from the members, the archive
    and the first members, or all members soon share one value.

    In every other trial each layer's lr stays the best member's with probability 1/2 (binomial
    crossover, Storn and Price, 1997). Differences of members that descend from few first ones move
    all layers alike, and what is gained by one lr for each layer is lost.

    The own vector's member is not replaced in the first ``OWN_STAYS`` generations. A model may take
    some epochs to be better than popularity, say, to which a low lr comes sooner and no further.
    While it is one of the worst, no trial is made of it. When it is to be replaced after that, it
    goes on beside the population, see ``RunBeside``, and so do the members with a tenth of its lrs
    and with ten times them: as members beyond ``population_size``, of which no trial is made unless
    they are the best.

    No lr of a trial is below the best member's by more than ``FALL`` decades. The metric gains at
    once where an lr falls and loses only later what a higher one would still have found, so
    selection alone lets rates fall until training stands still.

    Args:
        space: The dimensions and their bounds.
        population_size: The number of members, at least 4.
        strategy: How trials are built, see ``DifferentialEvolution``.
        repair: What happens to a trial outside the bounds, see ``SearchSpace.repair``.
        own: The first member, in coordinates, shape (dimensions,); without one, all members
            spread evenly over the whole space (a Latin hypercube).
        seed: Seed of the search's own random generator; None draws one from the system.

    Raises:
        ValueError: An argument is out of range, or ``own`` does not fit the space.

    Attributes:
        vectors: Coordinates of the members, shape (population_size, dimensions), with one more row
            for each member that goes on beside the population.
        first: Of the first members, shape (population_size, dimensions).
        archive: Replaced vectors, at most ``ARCHIVE`` times as many as members.
        generation: The number of completed generations.
        drawn: F and omega of the trials among the members, shape (len(vectors), 2), once a
            generation has ended; NaN for members that go on as they were.
    """

    def __init__(
        self,
        space: SearchSpace,
        population_size: int = 5,
        *,
        strategy: Strategy = "current_to_rand",
        repair: Repair = "reflect",
        own: ArrayLike | None = None,
        seed: int | None = None,
    ) -> None:
        check_settings(population_size, strategy, None, repair)
        self.space = space
        self.population_size = population_size
        self.strategy = strategy
        self.repair = repair
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._is_lr = np.array(
            [
                name.startswith("lr/") and scale == "log"
                for name, scale in zip(space.names, space.scale, strict=True)
            ]
        )
        self.first = self.vectors = self._first_members(own)
        self._runs = [] if own is None else self._first_runs()
        self.archive = np.empty((0, space.dimensions))
        self.generation = 0
        self._late_bests: list[float] = []  # the best perf until then, of the late generations

    def _first_members(self, given: ArrayLike | None) -> FloatArray:
        """The first population, shape (population_size, dimensions)."""
        low, high = self.space.coordinate_low, self.space.coordinate_high
        if given is None:
            return latin_hypercube(low, high, self.population_size, self._rng)
        first = np.array(given, dtype=np.float64)[None]
        own = with_first(self.space, np.empty((1, len(low))), first, name="own")[0]
        near_low, near_high = low.copy(), high.copy()
        near_low[self._is_lr] = np.maximum(low, own - REACH)[self._is_lr]
        near_high[self._is_lr] = np.minimum(high, own + REACH)[self._is_lr]
        members = latin_hypercube(near_low, near_high, self.population_size, self._rng)
        members[LOW, self._is_lr] = near_low[self._is_lr]
        members[HIGH, self._is_lr] = near_high[self._is_lr]
        members[OWN] = own
        return members

    def _first_runs(self) -> list[RunBeside]:
        """What goes on when it is replaced; members far away only where bounds let them be."""
        lrs = self.vectors[:, self._is_lr]
        far = [place for place in (LOW, HIGH) if not np.array_equal(lrs[place], lrs[OWN])]
        runs = [RunBeside(place, may_be_left=True) for place in far]
        return [RunBeside(OWN), *runs]

    def tell(self, perf: ArrayLike, keep: int | None = None) -> NDArray[np.intp]:
        """Ends a generation: replaces the worst members.

        Args:
            perf: Of each member, shape (len(vectors),); NaN and infinite count as the worst.
            keep: A member that is not to be replaced, beside the best.

        Returns:
            For each member that there is now the one whose state it goes on from: the best where a
            trial took its place, else itself, by the number that it has had.
        """
        told = np.array(perf, dtype=np.float64)
        if told.shape != (len(self.vectors),):
            raise ValueError(
                f"perf must hold one number for each of the {len(self.vectors)} members; "
                f"got the shape {told.shape}."
            )
        told[~np.isfinite(told)] = -np.inf
        self.generation += 1
        parents = np.arange(len(told))
        self.drawn = np.full((len(told), 2), np.nan)
        best = int(np.argmax(told))
        if told[best] == -np.inf:
            return parents
        size = self.population_size
        bests = [*self._late_bests, max([float(told[best]), *self._late_bests[-1:]])]
        self._late_bests = bests[-PATIENCE - 1 :]
        past_best = bests[-PATIENCE - 1] if len(bests) > PATIENCE else -np.inf
        for run in self._runs:
            goes_on = run.place is not None and run.place >= size
            run.hear(told, self.generation, past_best, beside=goes_on)
        replaced, others = self._choose(told, best, keep)
        self.archive = self._kept(np.concatenate([self.archive, self.vectors[replaced]]))
        vectors = self.vectors.copy()
        for number, place in enumerate(np.flatnonzero(replaced)):
            vectors[place], self.drawn[place] = self._trial(
                self.vectors[[best]], others, layerwise=number % 2 == 0
            )
        parents[replaced] = best
        beside = self._move_beside(replaced)
        self.vectors = np.concatenate([vectors[:size], self.vectors[beside]])
        as_they_were = np.full((len(beside), 2), np.nan)
        self.drawn = np.concatenate([self.drawn[:size], as_they_were])
        return np.concatenate([parents[:size], beside])

    def _move_beside(self, replaced: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Gives the runs that go on beside the population their places after it.

        Returns:
            Where they have been among the members.
        """
        size, places = self.population_size, []
        self._runs = [run for run in self._runs if run.place is not None]
        for run in self._runs:
            assert run.place is not None
            if run.place >= size or replaced[run.place]:
                places.append(run.place)
                run.place = size + len(places) - 1
        return np.array(places, dtype=np.intp)

    def _choose(
        self, told: FloatArray, best: int, keep: int | None
    ) -> tuple[NDArray[np.bool_], FloatArray]:
        """Which members are replaced, shape (members,), and what trials are made of.

        Returns:
            The mask, and the vectors beside the best one's, shape (count, dimensions).
        """
        size = self.population_size
        worst = np.argsort(told[:size], kind="stable")
        count = round(REPLACED * size)
        own_stays = self.generation <= OWN_STAYS and any(run.place == OWN for run in self._runs)
        aside = [OWN] if own_stays and OWN in worst[:count] else []
        replaced = told == -np.inf
        replaced[[i for i in worst if i not in aside][:count]] = True
        replaced[[best] if keep is None else [best, keep]] = False
        replaced[size:] = False
        return replaced, self.vectors[[i for i in range(size) if i not in (best, *aside)]]

    def begin_anew(self, own: FloatArray) -> None:
        """Ends a generation with new first members around a vector, and an empty archive.

        Args:
            own: The first of them, in coordinates, shape (dimensions,).
        """
        self.first = self.vectors = self._first_members(own)
        self.archive = self.archive[:0]
        self._runs = []
        self.generation += 1

    def _kept(self, archive: FloatArray) -> FloatArray:
        """The archive without vectors beyond its size; which ones go is drawn."""
        size = ARCHIVE * self.population_size
        if len(archive) <= size:
            return archive
        return archive[self._rng.permutation(len(archive))[:size]]

    def _trial(
        self, target: FloatArray, others: FloatArray, *, layerwise: bool
    ) -> tuple[FloatArray, FloatArray]:
        """A trial around the best member, shape (dimensions,), and its F and omega.

        Args:
            target: The best member, shape (1, dimensions).
            others: The members that it may be made of, shape (count, dimensions).
            layerwise: Whether some lrs stay the best member's.
        """
        x_r1, member, *rest = self._rng.permutation(others)[:, None]
        pool = np.concatenate([*rest, self.archive])
        past = pool[[self._rng.integers(len(pool))]]
        any_two = self._rng.permutation(np.concatenate([pool, self.first]))[:2, None]
        x_r2 = np.where(self._is_lr, member, any_two[0])
        x_r3 = np.where(self._is_lr, past, any_two[1])
        factor, omega = F_LOW + F_RANGE * self._rng.random(1), self._rng.random(1)
        trial = build_trials(self.strategy, target, x_r1, x_r2, x_r3, factor, omega)
        if layerwise:
            trial = np.where(self._staying_lrs(), target, trial)
        repaired: FloatArray = self.space.repair(trial[0], self.repair)
        lowest = np.where(self._is_lr, target[0] - FALL, -np.inf)
        return np.maximum(repaired, lowest), np.concatenate([factor, omega])

    def _staying_lrs(self) -> NDArray[np.bool_]:
        """Each lr with probability 1/2, but not all of them, shape (dimensions,)."""
        stays = self._is_lr & (self._rng.random(len(self._is_lr)) < 0.5)
        if stays.any():
            stays[self._rng.choice(np.flatnonzero(self._is_lr))] = False
        return stays

    def state_dict(self) -> dict[str, Any]:
        """The state in plain Python types."""
        return {
            "settings": self._settings(),
            "generation": self.generation,
            "vectors": self.vectors.tolist(),
            "first": self.first.tolist(),
            "archive": self.archive.tolist(),
            "runs": [run.state_dict() for run in self._runs],
            "late_bests": list(self._late_bests),
            "random_state": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of an equally built search."""
        check_equal_settings(state["settings"], self._settings())
        self.generation = state["generation"]
        self.vectors = np.array(state["vectors"])
        self.first = np.array(state["first"])
        self.archive = np.array(state["archive"]).reshape(-1, self.space.dimensions)
        runs = _runs_of(state)
        self._runs = [RunBeside() for _ in runs]
        for run, its_state in zip(self._runs, runs, strict=True):
            run.load_state_dict(its_state)
        # The version before kept them with each run, and older ones had none.
        earlier = runs[0].get("led", []) if runs else []
        self._late_bests = list(state.get("late_bests", earlier))
        self._rng.bit_generator.state = state["random_state"]

    def _settings(self) -> dict[str, Any]:
        return {
            **self.space.settings(),
            "population_size": self.population_size,
            "strategy": self.strategy,
            "repair": self.repair,
        }


def _runs_of(state: dict[str, Any]) -> list[dict[str, Any]]:
    """States of the runs; older versions had the own vector's alone, or none."""
    if "runs" in state:
        return list(state["runs"])
    own = state.get("own", {"place": None})
    return [] if own["place"] is None else [{**own, "may_be_left": False}]
