"""What a run has cost so far, and the best validation value it has reached for that."""

import time
from collections.abc import Callable

import lightning as L

# Optimizer steps, validation passes and seconds of training so far, and the monitored value.
Row = tuple[int, int, float, float]
Watch = Callable[[int, float], bool]  # from epoch and value to whether training shall stop


class CostCurve(L.Callback):
    """Notes after every validation pass of training what has been spent and what was reached.

    Args:
        monitor: the validation metric to note.
        tuner: a tuner, whose own steps (``probe_steps_taken``) and validation passes
            (``evaluations``) count where it offers them.
        watch: sees every epoch with its value and may end training.

    Attributes:
        rows: one `Row` per validation pass of training, costs summed up since its start.
    """

    def __init__(
        self, monitor: str, tuner: L.Callback | None = None, watch: Watch | None = None
    ) -> None:
        self.monitor = monitor
        self.rows: list[Row] = []
        self._tuner = tuner
        self._watch = watch
        self._passes = 0
        self._steps_before = 0
        self._started = time.perf_counter()

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
        return trainer.global_step - self._steps_before + self.probe_steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._steps_before = trainer.global_step
        self._started = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note a pass, unless it is a sanity check or comes after training."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._passes += 1
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:  # an own module may validate more often than it logs
            return
        seconds = time.perf_counter() - self._started
        self.rows.append((self.steps(trainer), self.evaluations, seconds, float(value)))
        if self._watch is not None and self._watch(trainer.current_epoch, float(value)):
            trainer.should_stop = True


def best_so_far(curves: list[list[Row]], mode: str) -> list[Row]:
    """One curve of trainings that follow one another: costs add up, the best value stays."""
    better = max if mode == "max" else min
    joined: list[Row] = []
    steps, passes, seconds = 0, 0, 0.0
    for rows in curves:
        for row in rows:
            best = better(row[3], joined[-1][3]) if joined else row[3]
            joined.append((steps + row[0], passes + row[1], seconds + row[2], best))
        if rows:
            steps, passes, seconds = joined[-1][:3]
    return joined
