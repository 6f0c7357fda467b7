"""Scores one candidate after another: the reference that every other evaluator must equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deopt_lightning.evaluators.probe import Metrics, Probe
from deopt_lightning.snapshot import Snapshot

FloatArray = NDArray[np.float64]


@dataclass
class Winner:
    """The best candidate of a generation with what its probe made of the model."""

    vector: FloatArray
    perf: float
    snapshot: Snapshot
    metrics: Metrics


@dataclass
class SequentialEvaluator:
    """Scores each candidate by a probe: restore, write its values, train a little, validate.

    Attributes:
        probe: Trains and validates.
        start: The state that every probe starts from, random generators included.
        write: Writes a candidate's lr and weight decay into the parameter groups.
        take_snapshot: Takes a snapshot of the present state; used if ``keep_winner``.
        keep_winner: Keep the best candidate's trained state; costs one more copy in memory.
        on_scored: Called after each candidate, to show progress.
        winner: The best candidate so far, if it is kept.
    """

    probe: Probe
    start: Snapshot
    write: Callable[[FloatArray], None]
    take_snapshot: Callable[[], Snapshot]
    keep_winner: bool = False
    on_scored: Callable[[], None] = lambda: None
    winner: Winner | None = field(default=None)

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """Scores (count, 2N) candidates; the present model state is lost, ``start`` is not."""
        return np.array([self._score(vector) for vector in vectors])

    def _score(self, vector: FloatArray) -> float:
        self.start.restore()
        self.write(vector)
        perf, metrics = self.probe.score()
        self.on_scored()
        best = self.winner.perf if self.winner else -np.inf
        if self.keep_winner and np.isfinite(perf) and perf >= best:
            self.winner = None  # free its memory before the next copy is made
            self.winner = Winner(vector.copy(), perf, self.take_snapshot(), metrics)
        return perf
