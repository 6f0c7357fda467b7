"""A first member that goes on beside the population once a trial has taken its place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PATIENCE = 10  # generations, see `RunBeside`


class RunBeside:
    """Where a first member is, and for how long it goes on.

    In the first epochs the metric may say little of a setting, or the wrong thing. High lrs are
    ahead then, and some models never recover from them: a transformer without a warm-up, say. Or
    none is ahead, since all rank by popularity, and the only one that would ever get further is
    replaced. So a member that has the own setting, or all its lrs times a common factor, goes on
    where a trial takes its place, as one more, just as it would have trained without the search.
    If it comes to be ahead of all others, it leads, and trials are made around it.

    It ends after ``PATIENCE`` generations without a better perf of its own, where early stopping
    would have ended it, too. One that may be left behind also ends once its best perf is below what
    any member had ``PATIENCE`` generations ago.

    Args:
        place: Its number among the members.
        may_be_left: Whether it may be left behind.

    Attributes:
        place: The same; None once it has ended.
    """

    def __init__(self, place: int | None = None, *, may_be_left: bool = False) -> None:
        self.place = place
        self._may_be_left = may_be_left
        self._best = -np.inf
        self._best_generation = 0

    def hear(
        self, perfs: NDArray[np.float64], generation: int, past_best: float, *, beside: bool
    ) -> None:
        """Takes note of a generation, with which it may end; without a finite perf it does.

        Args:
            perfs: Of all members, the best of them finite.
            generation: The number of generations, this one included.
            past_best: The best perf that any member had until ``PATIENCE`` generations ago.
            beside: Whether it goes on beside the population, so that it may end.
        """
        assert self.place is not None
        perf, best = float(perfs[self.place]), float(perfs.max())
        if perf > self._best:
            self._best, self._best_generation = perf, generation
        stands = generation - self._best_generation >= PATIENCE
        left = self._may_be_left and self._best < past_best
        if perf == -np.inf or (beside and (stands or left) and perf < best):
            self.place = None

    def state_dict(self) -> dict[str, Any]:
        """The state in plain Python types."""
        return {
            "place": self.place,
            "may_be_left": self._may_be_left,
            "best": self._best,
            "best_generation": self._best_generation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        self.place, self._may_be_left = state["place"], state["may_be_left"]
        self._best, self._best_generation = state["best"], state["best_generation"]
