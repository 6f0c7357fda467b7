"""How many batches a probe takes, of training and of validation data."""

from __future__ import annotations

import math

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import MisconfigurationException


def probe_batch_count(trainer: pl.Trainer, probe_steps: int | float) -> int:
    """How many batches a probe takes.

    Args:
        trainer: The Trainer, in its fit loop.
        probe_steps: Optimizer steps (int), or a fraction of the epoch (float).
    """
    if isinstance(probe_steps, int):
        return probe_steps * trainer.accumulate_grad_batches
    if math.isinf(trainer.num_training_batches):
        raise MisconfigurationException(
            f"probe_steps={probe_steps} is a fraction of an epoch, but the training data has no "
            "length. Give probe_steps as an int (optimizer steps), or set limit_train_batches."
        )
    return max(1, round(probe_steps * trainer.num_training_batches))


def limit_batches(count: int | float, limit: int | float) -> int | float:
    """How many validation batches a probe takes.

    Args:
        count: How many there are.
        limit: How many it may take (int), or which share of them (float).
    """
    if isinstance(limit, int):
        return min(count, limit)
    if math.isinf(count):
        raise MisconfigurationException(
            f"limit_probe_val_batches={limit} is a share of the validation data, which has no "
            "length. Give it as an int (batches), or set limit_val_batches."
        )
    return max(1, round(limit * count))
