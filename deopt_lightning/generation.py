"""What every kind of generation has in common: its surroundings and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray

from deopt_lightning import trainer_seam
from deopt_lightning.averaging import averages_of
from deopt_lightning.evaluators.probe import Metrics, Monitor, Probe
from deopt_lightning.progress import generation_progress
from deopt_lightning.snapshot import Snapshot

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What a generation did and what it cost.

    Attributes:
        values: (2N,) lr and weight decay that are to train the next epoch; None leaves them.
        record: A row for `DEOptCallback.history`; None if members trained and were not compared.
        logged: What to log of it, beside the values.
        probe_steps: Number of optimizer steps that it took.
        evaluations: Number of validation passes.
    """

    values: FloatArray | None
    record: dict[str, Any] | None
    logged: dict[str, float]
    probe_steps: int
    evaluations: int


@contextmanager
def probing(
    trainer: pl.Trainer, monitor: Monitor, batches: list[object], expected: int
) -> Iterator[tuple[Probe, Callable[[], None]]]:
    """A probe on the batches, in quiet loops, and a function that moves the progress bar."""
    with (
        generation_progress(trainer, expected) as advance,
        trainer_seam.quiet_loops(trainer, batches) as loops,
    ):
        yield Probe(loops, monitor), advance


def take_snapshot(trainer: pl.Trainer) -> Snapshot:
    """A snapshot of everything that a Trainer's steps and validation change."""
    return Snapshot.take(
        trainer.lightning_module,
        trainer.optimizers,
        stateful=[trainer.precision_plugin],
        generators=trainer_seam.loader_generators(trainer),
        schedulers=[config.scheduler for config in trainer.lr_scheduler_configs],
        beside=averages_of(trainer),
        gradients=not trainer.lightning_module.automatic_optimization,
    )


def adopt_weights(trainer: pl.Trainer, snapshot: Snapshot, metrics: Metrics) -> None:
    """Lets training go on from other weights, and ModelCheckpoint rank them by their metrics."""
    snapshot.restore_weights()
    trainer.callback_metrics.update(metrics)


def warn_all_diverged(trainer: pl.Trainer) -> None:
    """Says that a generation has found nothing to adopt."""
    rank_zero_warn(
        f"DEOptCallback: every candidate diverged after epoch {trainer.current_epoch}; lr and "
        "weight decay stay as they are. Lower the upper lr bound if this repeats."
    )


def optimizer_steps(trainer: pl.Trainer, batches: int) -> int:
    """How many optimizer steps a pass over so many batches takes.

    In manual optimization, which accumulates on its own, a step is a call of `training_step`.
    """
    return -(-batches // trainer.accumulate_grad_batches)
