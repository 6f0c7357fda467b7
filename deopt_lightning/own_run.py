"""The user's own setting, which goes on beside the population once the search has left it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PATIENCE = 10  # generations without a better perf of it, after which it ends


class OwnRun:
    """Where the member with the own vector is, and for how long it goes on.

    High lrs are ahead in the first epochs, and some models never recover from them: a transformer
    without a warm-up, say. What would lead later has been replaced by then. So the own setting's
    member goes on where a trial takes its place, as one more, just as it would have trained without
    the search, and ends where early stopping would have ended it. If it comes to be ahead of all
    others, it leads, and trials are made around it.

    Args:
        place: Its number among the members; None if there is no own vector.

    Attributes:
        place: The same; None once it has ended.
    """

    def __init__(self, place: int | None) -> None:
        self.place = place
        self._best = -np.inf
        self._best_generation = 0

    def hear(self, perfs: NDArray[np.float64], generation: int, *, beside: bool) -> None:
        """Takes note of a generation; it ends without a finite perf, or after ``PATIENCE``.

        Args:
            perfs: Of all members, the best of them finite.
            generation: The number of generations, this one included.
            beside: Whether it goes on beside the population, so that it may end.
        """
        if self.place is None:
            return
        perf = float(perfs[self.place])
        if perf > self._best:
            self._best, self._best_generation = perf, generation
        is_over = beside and generation - self._best_generation >= PATIENCE
        if perf == -np.inf or (is_over and perf < perfs.max()):
            self.place = None

    def state_dict(self) -> dict[str, Any]:
        """The state in plain Python types."""
        return {
            "place": self.place,
            "best": self._best,
            "best_generation": self._best_generation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        self.place = state["place"]
        self._best, self._best_generation = state["best"], state["best_generation"]
