"""Where copies of a model's state are kept: beside it, or in the CPU's memory."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info


def too_many_copies(trainer: pl.Trainer, count: int, nbytes: int) -> bool:
    """Whether the device of any process lacks room for so many copies beside training.

    Args:
        trainer: A Trainer that has trained for an epoch.
        count: How many copies there may be at a time.
        nbytes: Size of one.
    """
    room = room_beside_training(trainer.strategy.root_device)
    if trainer.strategy.reduce_boolean_decision(count * nbytes <= room, all=True):
        return False
    rank_zero_info(
        f"DEOptCallback keeps copies of the model's state in the CPU's memory: {count} of "
        f"{nbytes / 1e6:.1f} MB may not fit beside training, which leaves "
        f"{max(0.0, room) / 1e6:.0f} MB of the GPU's."
    )
    return True


def room_beside_training(device: torch.device) -> float:
    """Bytes of a GPU that training has not needed so far; infinite elsewhere."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)
    return float(free + unused)
