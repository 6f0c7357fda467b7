"""What a run has cost so far, and the best validation value it has reached for that."""

import math
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import lightning as L

Watch = Callable[[int, float], bool]  # from epoch and value to whether training shall stop


class Row(NamedTuple):
    """What training had cost when a validation pass was over, and what that pass gave.

    Attributes:
        steps: optimizer steps.
        passes: validation passes.
        seconds: wall-clock time, which other programs on the machine lengthen.
        value: the monitored value.
        cpu_seconds: time that processors worked for it; None in results of older versions.
    """

    steps: int
    passes: int
    seconds: float
    value: float
    cpu_seconds: float | None = None


class Clock:
    """Wall-clock and processor time since its start.

    Processor time is that of this process with all its threads, and of child processes that have
    ended, such as the workers of a data loader at the end of an epoch.

    Args:
        seconds: wall-clock time to begin with, that of a run that goes on.
        cpu_seconds: processor time to begin with.
    """

    def __init__(self, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        self._started = time.perf_counter() - seconds
        self._cpu_before = _cpu_seconds() - cpu_seconds

    @property
    def seconds(self) -> float:
        """Wall-clock time."""
        return time.perf_counter() - self._started

    @property
    def cpu_seconds(self) -> float:
        """Processor time, in the user's program and in the system for it."""
        return _cpu_seconds() - self._cpu_before


class CostCurve(L.Callback):
    """Notes after every validation pass of training what has been spent and what was reached.

    Args:
        monitor: the validation metric to note.
        tuner: a tuner, whose own steps (``probe_steps_taken``) and validation passes
            (``evaluations``) count where it offers them.
        watch: sees every epoch with its value and may end training.
        goes_on: whether a checkpoint that training starts from is one of the same run, whose costs
            count, and not of another.

    Attributes:
        rows: one `Row` per validation pass of training, costs summed up since its start, and one
            per epoch at whose end the tuner has left other weights with another value.
        clock: time of training; where a run goes on, without what came after its checkpoint.
        before: seconds and processor seconds that an earlier part of this run took.
    """

    def __init__(
        self,
        monitor: str,
        tuner: L.Callback | None = None,
        watch: Watch | None = None,
        goes_on: bool = False,
    ) -> None:
        self.monitor = monitor
        self.rows: list[Row] = []
        self.clock = Clock()
        self.before = (0.0, 0.0)
        self._tuner = tuner
        self._watch = watch
        self._goes_on = goes_on
        self._passes = 0
        self._steps_before: int | None = None

    @property
    def evaluations(self) -> int:
        """Validation passes so far, those of the tuner's probes included."""
        return self._passes + int(getattr(self._tuner, "evaluations", 0))

    @property
    def probe_steps(self) -> int:
        """Optimizer steps that the tuner took beside training so far."""
        return int(getattr(self._tuner, "probe_steps_taken", 0))

    def steps(self, trainer: L.Trainer) -> int:
        """Optimizer steps taken so far; what a checkpoint brought along was not taken here."""
        return trainer.global_step - (self._steps_before or 0) + self.probe_steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, unless it goes on."""
        if self._steps_before is None:
            self._steps_before = trainer.global_step
            self.clock = Clock()

    def state_dict(self) -> dict[str, Any]:
        """What was spent so far, for a run that goes on."""
        return {
            "rows": [tuple(row) for row in self.rows],
            "passes": self._passes,
            "steps_before": self._steps_before,
            "clock": (self.clock.seconds, self.clock.cpu_seconds),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what was spent, if it is this run that goes on."""
        if self._goes_on:
            self.rows = [Row(*row) for row in state_dict["rows"]]
            self._passes, self._steps_before = state_dict["passes"], state_dict["steps_before"]
            self.before = state_dict["clock"]
            self.clock = Clock(*self.before)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note a pass, unless it is a sanity check or comes after training."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._passes += 1
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:  # an own module may validate more often than it logs
            return
        self._note(trainer, float(value))
        if self._watch is not None and self._watch(trainer.current_epoch, float(value)):
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what the tuner, which comes before this callback, has made of the epoch."""
        value = trainer.callback_metrics.get(self.monitor)
        if self._tuner is None or value is None or not self.rows:
            return
        if float(value) != self.rows[-1].value:
            self._note(trainer, float(value))

    def _note(self, trainer: L.Trainer, value: float) -> None:
        costs = self.steps(trainer), self.evaluations, self.clock.seconds
        self.rows.append(Row(*costs, value, self.clock.cpu_seconds))


def best_so_far(curves: list[list[Row]], mode: str) -> list[Row]:
    """One curve of trainings that follow one another: costs add up, the best value stays.

    It begins with the first value that is finite, and a later one that is not changes nothing.
    """
    better = max if mode == "max" else min
    joined: list[Row] = []
    before = Row(0, 0, 0.0, 0.0, 0.0)
    for rows in curves:
        spent = before
        for row in rows:
            cpu = total((before.cpu_seconds, row.cpu_seconds))
            costs = before.steps + row.steps, before.passes + row.passes
            spent = Row(*costs, before.seconds + row.seconds, row.value, cpu)
            values = [each.value for each in (row, *joined[-1:]) if math.isfinite(each.value)]
            if values:
                joined.append(Row(*spent[:3], better(values), cpu))
        before = spent
    return joined


def corners(rows: list[Row]) -> list[Row]:
    """Of a curve of best values: its first row, where the value rises, and its last."""
    last = len(rows) - 1
    return [row for k, row in enumerate(rows) if k in (0, last) or row.value != rows[k - 1].value]


def total(parts: Iterable[float | None]) -> float | None:
    """The sum, unless a part is not known."""
    known = list(parts)
    return sum(part or 0.0 for part in known) if None not in known else None


def _cpu_seconds() -> float:
    return sum(os.times()[:4])  # user and system, of this process and of its ended children
