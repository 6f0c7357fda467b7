"""A member's state, which all processes of a run have, or only one of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deopt_lightning.member_state import to_plain
from deopt_lightning.rank_exchange import broadcast_plain, is_rank_zero, spread_snapshot
from deopt_lightning.snapshot import Snapshot


@dataclass(frozen=True)
class HeldState:
    """A state as this process sees it.

    Attributes:
        snapshot: The state; None where another process has it.
        home: The only rank that has it; None if all have.
    """

    snapshot: Snapshot | None
    home: int | None = None

    def everywhere(self, present: Snapshot) -> Snapshot:
        """The state, for all processes; every process must call it.

        Args:
            present: Any snapshot of this process.
        """
        if self.home is not None:
            return spread_snapshot(self.snapshot, self.home, present)
        assert self.snapshot is not None
        return self.snapshot

    def to_plain(self) -> dict[str, Any] | None:
        """Its plain form where checkpoints are written, else None; every process must call it."""
        if self.home is not None:
            plain = broadcast_plain(self.snapshot, self.home)
        else:
            assert self.snapshot is not None
            plain = to_plain(self.snapshot)
        return plain if is_rank_zero() else None


def distinct(states: Iterable[HeldState]) -> list[Snapshot]:
    """The snapshots that this process has of the states; members may share one."""
    held = [state.snapshot for state in states if state.snapshot is not None]
    return list({id(snapshot): snapshot for snapshot in held}.values())
