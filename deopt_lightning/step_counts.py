"""Where Lightning's loops count optimizer steps, batches and epochs."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import lightning.pytorch as pl


def step_counts(trainer: pl.Trainer) -> list[dict[str, Any]]:
    """The Trainer's counts of optimizer steps, and so `trainer.global_step`, and of batches."""
    return [dict(part.state_dict()) for part in _step_progress(trainer.fit_loop.epoch_loop)]


def begin_steps(trainer: Any) -> Any:
    """Lets `trainer.global_step`, in quiet loops, be what training starts from; its counter."""
    loop = trainer.fit_loop.epoch_loop
    # Checkpoints of earlier versions have no count of batches.
    for progress, counts in zip(_step_progress(loop), getattr(loop, "begins_at", ()), strict=False):
        progress.load_state_dict(deepcopy(counts))
    return loop.automatic_optimization.optim_progress.optimizer.step.total


def _step_progress(loop: Any) -> list[Any]:
    """Where an epoch loop counts optimizer steps, automatic and manual ones, and batches."""
    automatic, manual = loop.automatic_optimization, loop.manual_optimization
    return [automatic.optim_progress, manual.optim_step_progress, loop.batch_progress]


def end_epoch_again(checkpoint: dict[str, Any]) -> None:
    """Lets a run that goes on from a checkpoint end the epoch at whose end it was written."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
    if progress["current"]["processed"] > progress["current"]["completed"]:
        for counts in progress.values():
            counts["processed"] -= 1
