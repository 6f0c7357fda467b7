"""The best state of all generations, to which members go back when all of them collapse."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray

from deopt_lightning.held_state import HeldState
from deopt_lightning.member_state import from_plain
from deopt_lightning.snapshot import Snapshot

LOST = 0.5  # of what the best perf has gained since the first generation
CLEAR = 3.0  # how many times its usual change a gain must be, so that it is more than noise


class BestState:
    """What the best member of all generations had reached, and with which vector.

    High rates can train well for many epochs and then ruin every member within one, of which no
    replacement by one another is a way back. A population has collapsed if none of its members has
    a finite perf, if all are below every finite one of the first generation, or if the best of them
    has lost more than half of what had been gained since then, where that was more than ``CLEAR``
    times the median change of the best perf from one generation to the next.

    Attributes:
        state: The best member's state; None before there is one.
        vector: Its coordinates, shape (dimensions,).
        epoch: At whose end it was found.
    """

    def __init__(self) -> None:
        self.state: HeldState | None = None
        self.vector: NDArray[np.float64] = np.empty(0)
        self.epoch = -1
        self._lowest = -np.inf  # of the first generation's members
        self._perfs: list[float] = []

    @property
    def perf(self) -> float:
        """The best perf of all generations."""
        return max(self._perfs)

    def has_collapsed(self, perf: float) -> bool:
        """Whether a generation whose best member has this perf is to go back.

        Args:
            perf: Higher is better; minus infinity where no member has a finite one.
        """
        if self.state is None:
            return False
        if perf < self._lowest:
            return True
        gain, changes = self.perf - self._perfs[0], np.abs(np.diff(self._perfs))
        is_clear = len(changes) > 1 and gain > CLEAR * np.median(changes)
        return bool(is_clear and self.perf - perf > LOST * gain)

    def note(
        self,
        perfs: NDArray[np.float64],
        state: HeldState,
        vector: NDArray[np.float64],
        epoch: int,
    ) -> None:
        """Keeps a generation's best member if no earlier one was better.

        Args:
            perfs: Of all members, shape (population_size,), at least one of them finite.
            state: The best member's.
            vector: Its coordinates, shape (dimensions,).
            epoch: At whose end.
        """
        finite = perfs[np.isfinite(perfs)]
        perf = float(finite.max())
        if self.state is None:
            self._lowest = float(finite.min())
        if self.state is None or perf > self.perf:
            self.state, self.vector, self.epoch = state, vector.copy(), epoch
        self._perfs.append(perf)

    def warn(self, epoch: int) -> None:
        """Says that members go back to it from the end of an epoch."""
        rank_zero_warn(
            f"DEOptCallback: after epoch {epoch} all members are far worse than the best one was "
            f"after epoch {self.epoch}. Training goes on from its weights, with new members around "
            "its lr and weight decay. Lower the upper lr bound if this repeats."
        )

    def state_dict(self) -> dict[str, Any]:
        """The state, in types that a safe `torch.load` accepts; every process must call it."""
        return {
            "state": self.state and self.state.to_plain(),
            "vector": self.vector.tolist(),
            "epoch": self.epoch,
            "lowest": self._lowest,
            "perfs": list(self._perfs),
        }

    def load_state_dict(self, state: dict[str, Any], present: Snapshot) -> None:
        """Goes on from a state.

        Args:
            state: What `state_dict` returned.
            present: A snapshot of the model as it is.
        """
        held = state["state"]
        self.state = None if held is None else HeldState(from_plain(held, present))
        self.vector = np.array(state["vector"])
        self.epoch, self._lowest = state["epoch"], state["lowest"]
        self._perfs = list(state["perfs"])
