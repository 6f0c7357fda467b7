"""One probe: train on the batches at hand, validate, and read the monitor as a perf."""

from __future__ import annotations

import os
from cmath import isfinite
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from deopt_lightning.trainer_seam import ProbeLoops

Metrics = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Monitor:
    """The validation metric that decides, as a perf: higher is better.

    Attributes:
        name: Name of the metric as it is logged.
        mode: Whether smaller ("min") or larger ("max") values are better.
    """

    name: str
    mode: Literal["min", "max"]

    def check(self, logged: Mapping[str, torch.Tensor]) -> None:
        """Refuses a validation that does not log the metric.

        Raises:
            MisconfigurationException: Naming what is logged instead.
        """
        if self.name in logged:
            return
        names = ", ".join(sorted(logged)) or "nothing"
        raise MisconfigurationException(
            f"DEOptCallback(monitor={self.name!r}) needs a metric that validation logs; it logs: "
            f"{names}. Choose one of these, or add self.log({self.name!r}, ...) to "
            "validation_step. If every n-th epoch logs it, set every_n_epochs=n."
        )

    def perf(self, metrics: Mapping[str, torch.Tensor], loops: ProbeLoops) -> float:
        """The perf of what a validation logged, equal on all processes."""
        self.check(metrics)
        return self.signed(loops.mean_over_ranks(float(metrics[self.name])))

    def signed(self, value: float) -> float:
        """From a value of the metric to perf, and back."""
        return -value if self.mode == "min" else value


@dataclass(frozen=True)
class Score:
    """What a probe gave.

    Attributes:
        perf: Higher is better; NaN if it diverged on any process or was not validated.
        metrics: What validation logged; nothing without one.
        trained: Whether it trained.
        validated: Whether it validated; a diverged probe need not.
    """

    perf: float
    metrics: Metrics
    trained: bool
    validated: bool


@dataclass(frozen=True)
class Probe:
    """Trains and validates quietly.

    Attributes:
        loops: Quiet loops of the Trainer, loaded with the generation's batches.
        train: Trains on these batches: the loops' own ``train``, or a faster equal of it.
        evaluate: Validates and returns what that logs: the loops' own ``validate``, or an equal.
        monitor: What to read.
        tried: Whether others went well in this run, so that an error is likely to come from the
            values that are tried here.
    """

    loops: ProbeLoops
    train: Callable[[], None]
    evaluate: Callable[[], Metrics]
    monitor: Monitor
    tried: bool = False
    _process: int = field(default_factory=os.getpid)

    def score(self, validate: bool = True) -> Score:
        """Trains and, on request, validates from the present state.

        Returns:
            The perf and what the run's own validation would log.
        """
        if self.loops.all_ranks(self.trains_finite()) and validate:
            return replace(self.validate(), trained=True)
        return Score(float("nan"), {}, trained=True, validated=False)

    def trains_finite(self) -> bool:
        """Trains from the present state; returns whether all weights are finite after it."""
        try:
            self.train()
        except Exception as error:
            if not self._is_divergence(error):
                raise
            return False
        return _all_finite(self.loops.trainer.lightning_module)

    def validate(self) -> Score:
        """Validates the present weights."""
        try:
            metrics, finite = self.evaluate(), True
        except Exception as error:
            if not self._is_divergence(error):
                raise
            metrics, finite = {}, False
        if not self.loops.all_ranks(finite):
            return Score(float("nan"), {}, trained=False, validated=True)
        perf = self.monitor.perf(metrics, self.loops)
        logged = {} if self.loops.plain else metrics
        return Score(perf, logged, trained=False, validated=True)

    def _is_divergence(self, error: Exception) -> bool:
        """Whether the values that are tried are to blame for an error: these weights then lose."""
        trainer = self.loops.trainer
        if isinstance(error, FloatingPointError):
            return True
        # Others wait for a process that has had an error in a step of all.
        if trainer.world_size > 1 or isinstance(error, _NEVER_DIVERGENCE):
            return False
        if _is_anomaly(error) or not _all_finite(trainer.lightning_module):
            return True
        to_blame = self.tried and os.getpid() == self._process  # a fork may lack something
        if to_blame:
            rank_zero_warn(
                f"DEOptCallback: a candidate ended in an error after epoch {trainer.current_epoch} "
                f"and loses, as if it had diverged: {type(error).__name__}: {error}"
            )
        return to_blame


_NEVER_DIVERGENCE = (MisconfigurationException, torch.OutOfMemoryError)


def _is_anomaly(error: Exception) -> bool:
    """Whether torch refuses a gradient of NaN, as ``Trainer(detect_anomaly=True)`` has it do."""
    refused = isinstance(error, RuntimeError) and "returned nan values" in str(error)
    return refused and torch.is_anomaly_enabled()


def _all_finite(module: torch.nn.Module) -> bool:
    return all(map(_finite, module.parameters()))


def _finite(parameter: torch.Tensor) -> bool:
    # A sum takes a twentieth of the time on a CPU; it can only be finite if all that is in it is.
    weights = parameter.detach()
    return isfinite(weights.sum().item()) or bool(torch.isfinite(weights).all())
