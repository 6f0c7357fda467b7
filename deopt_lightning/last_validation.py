"""What the run's own validation has logged of the weights that a generation compares."""

from __future__ import annotations

import lightning.pytorch as pl

from deopt_lightning.evaluators.probe import Metrics
from deopt_lightning.generation import ProbeMaker


class LastValidation:
    """The last validation of the run.

    Attributes:
        step: The optimizer step after which it was; -1 without one.
    """

    def __init__(self, step: int = -1) -> None:
        self.step = step
        self._logged: Metrics | None = None  # of one before a resume, or cut by it, nothing is left

    def note(self, trainer: pl.Trainer, *, whole: bool) -> None:
        """Notes what a validation that ends has logged; of a resumed one some batches may lack."""
        self.step = trainer.global_step
        self._logged = dict(trainer.callback_metrics) if whole else None

    def of_present(self, trainer: pl.Trainer, maker: ProbeMaker) -> Metrics | None:
        """What it has logged of the present weights; None if it was not of these.

        Not what the Trainer has by now, among which are metrics of training by the same names. In a
        resumed run it is made again, for this and for the callbacks that read metrics.
        """
        if self.step != trainer.global_step:
            return None
        if self._logged is None:
            with maker.validating(trainer) as probe:
                self._logged = probe.evaluate()
            trainer.callback_metrics.update(self._logged)
        return self._logged
