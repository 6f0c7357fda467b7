"""Scores candidates that have been trained all at once."""

from __future__ import annotations

from dataclasses import dataclass

from deopt_lightning.evaluators.sequential import FloatArray, SequentialEvaluator
from deopt_lightning.stacked_steps import trained_together


@dataclass
class VectorisedEvaluator(SequentialEvaluator):
    """Trains the candidates stacked, see `stacked_steps`, then validates one after the other.

    Equal to the sequential evaluator but for rounding.
    """

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """Scores (count, 2N) candidates; the present model state is lost, ``start`` is not."""
        probe, self.workers = self.probe, 0

        def prepare(index: int) -> None:
            self.start.restore()
            self.write(vectors[index])

        self.probe = trained_together(probe, len(vectors), prepare)
        try:
            return super().__call__(vectors)
        finally:
            self.probe = probe
