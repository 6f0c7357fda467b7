"""One candidate after another, from one snapshot: the reference for every faster evaluator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray

from deopt_lightning.snapshot import Snapshot
from deopt_lightning.trainer_seam import ProbeLoops

FloatArray = NDArray[np.float64]


@dataclass
class Winner:
    """The best candidate of a generation with what its probe made of the model."""

    vector: FloatArray
    perf: float
    snapshot: Snapshot
    metrics: dict[str, torch.Tensor]


@dataclass
class SequentialEvaluator:
    """Scores each candidate by a probe: restore, write its values, train a little, validate.

    Attributes:
        probe: Quiet loops of the Trainer, loaded with the generation's batches.
        start: The state that every probe starts from, random generators included.
        write: Writes a candidate's lr and weight decay into the parameter groups.
        take_snapshot: Takes a snapshot of the present state; used if ``keep_winner``.
        monitor: Name of the validation metric.
        mode: Whether smaller ("min") or larger ("max") is better.
        keep_winner: Keep the best candidate's trained state; costs one more copy in memory.
        on_scored: Called after each candidate, to show progress.
        probes: Number of probes trained so far.
        validations: Number of validation passes so far; a diverged probe needs none.
        winner: The best candidate so far, if it is kept.
    """

    probe: ProbeLoops
    start: Snapshot
    write: Callable[[FloatArray], None]
    take_snapshot: Callable[[], Snapshot]
    monitor: str
    mode: Literal["min", "max"]
    keep_winner: bool = False
    on_scored: Callable[[], None] = lambda: None
    probes: int = 0
    validations: int = 0
    winner: Winner | None = field(default=None)

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """Scores (count, 2N) candidates; the present model state is lost, ``start`` is not."""
        return np.array([self._score(vector) for vector in vectors])

    def _score(self, vector: FloatArray) -> float:
        self.start.restore()
        self.write(vector)
        metrics = self._train_and_validate()
        perf = self._perf(metrics)
        self.on_scored()
        best = self.winner.perf if self.winner else -np.inf
        if self.keep_winner and np.isfinite(perf) and perf >= best:
            self.winner = None  # free its memory before the next copy is made
            self.winner = Winner(vector.copy(), perf, self.take_snapshot(), metrics)
        return perf

    def _train_and_validate(self) -> dict[str, torch.Tensor]:
        """The metrics of one probe; empty if it diverged on any process."""
        self.probes += 1
        try:
            self.probe.train()
            finite = _all_finite(self.probe.trainer.lightning_module)
        except FloatingPointError:
            finite = False
        if not self.probe.all_ranks(finite):
            return {}
        self.validations += 1
        try:
            return self.probe.validate()
        except FloatingPointError:
            return {}

    def _perf(self, metrics: dict[str, torch.Tensor]) -> float:
        if not metrics:
            return float("nan")
        if self.monitor not in metrics:
            raise MisconfigurationException(missing_monitor_message(self.monitor, metrics))
        value = self.probe.mean_over_ranks(float(metrics[self.monitor]))
        return -value if self.mode == "min" else value


def missing_monitor_message(monitor: str, logged: dict[str, torch.Tensor]) -> str:
    """Says that validation does not log the monitor, and what it does log."""
    names = ", ".join(sorted(logged)) or "nothing"
    return (
        f"DEOptCallback(monitor={monitor!r}) needs a metric that validation logs; it logs: "
        f"{names}. Choose one of these, or add self.log({monitor!r}, ...) to validation_step."
    )


def _all_finite(module: torch.nn.Module) -> bool:
    return all(bool(torch.isfinite(p.detach()).all()) for p in module.parameters())
