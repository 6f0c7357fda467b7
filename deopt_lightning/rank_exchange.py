"""What the processes of a distributed run hand to one another."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from deopt_lightning.member_state import from_plain, to_plain
from deopt_lightning.plain_values import overwrite
from deopt_lightning.snapshot import Snapshot

Value = TypeVar("Value")


def gather_ranks(value: Value) -> list[Value]:
    """Each process's value, in the order of ranks; every process must call it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def broadcast_into(tensors: Iterable[Tensor], source: int, device: torch.device) -> None:
    """Overwrites tensors with those of one process; every process must call it.

    Args:
        tensors: Equal in number, shape and type on all processes.
        source: The rank whose tensors all are to have.
        device: Where the processes' backend takes tensors from.
    """
    with torch.no_grad():
        for tensor in tensors:
            moving = tensor.detach().to(device).contiguous()
            torch.distributed.broadcast(moving, source)
            overwrite(tensor, moving)


def broadcast_plain(snapshot: Snapshot | None, source: int) -> dict[str, Any]:
    """The plain form of a snapshot that one process has, for all; every process must call it.

    For a moment each process holds it three times: as it is sent, as it comes, and unpacked.
    """
    plain = {} if snapshot is None else move_data_to_device(to_plain(snapshot), "cpu")
    sent: list[dict[str, Any]] = [plain]
    torch.distributed.broadcast_object_list(sent, source)
    return sent[0]


def spread_snapshot(snapshot: Snapshot | None, source: int, present: Snapshot) -> Snapshot:
    """A snapshot that one process has, for all; every process must call it.

    Args:
        snapshot: On the rank `source`, the snapshot.
        source: The rank that has it.
        present: Any snapshot of this process, for what snapshots of ranks do not share.
    """
    plain = broadcast_plain(snapshot, source)
    return snapshot if snapshot is not None else from_plain(plain, present)


def is_rank_zero() -> bool:
    """Whether this is the process that writes checkpoints."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def warn_of_lost_rank(error: BaseException) -> None:
    """Says in plain words if an error means that another process of the run is gone."""
    if not torch.distributed.is_initialized():
        return
    text, signs = str(error).lower(), ("closed by peer", "reset by peer", "broken pipe", "gloo")
    found = isinstance(error, RuntimeError) and any(sign in text for sign in signs)
    if found or isinstance(error, torch.distributed.DistError):
        rank = torch.distributed.get_rank()
        warnings.warn(
            f"DEOptCallback: process {rank} has lost another process of this run, so the run ends. "
            "Its last checkpoint is whole: go on from it with Trainer.fit(ckpt_path=...), with as "
            "many processes or another number.",
            stacklevel=2,
        )
