"""What every kind of generation has in common: its surroundings and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch.nn.parameter import is_lazy

from deopt_lightning import trainer_seam
from deopt_lightning.averaging import averages_of
from deopt_lightning.compile_choice import choose_steps
from deopt_lightning.compiled_steps import CompiledStep
from deopt_lightning.direct_steps import DirectSteps, equals_loops, why_not, why_overridden
from deopt_lightning.direct_validation import (
    DirectValidation,
    can_validate,
    equals_loop,
    hears,
)
from deopt_lightning.epoch_start import scheduler_parts_of
from deopt_lightning.evaluator_choice import EvaluatorName, choose_vectorised
from deopt_lightning.evaluators.probe import Metrics, Monitor, Probe
from deopt_lightning.held_signals import HeldSignals
from deopt_lightning.placement import too_many_copies
from deopt_lightning.progress import generation_progress
from deopt_lightning.rank_sharing import RankSharing
from deopt_lightning.replay import KEPT_BYTES, Batches, Redrawn
from deopt_lightning.snapshot import Snapshot
from deopt_lightning.step_counts import begin_steps
from deopt_lightning.trainer_seam import ProbeLoops
from deopt_lightning.workers import worker_count

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


class ProbeMaker:
    """Makes the probes of a run, by the fastest way to train that gives the loops' own results.

    Args:
        monitor: What decides.
        direct: Whether to take direct steps where the module allows them.
        workers: Number of processes to share a generation's probes, where that is possible.
        share: Whether the processes of a distributed run are to share a generation's probes.
        snapshot_device: Where the user wants snapshots to keep their tensors.
        evaluator: Whether candidates may be trained stacked, see ``choose_vectorised``.
        compile_steps: Whether direct steps may be compiled, see ``choose_steps``.
        passes_left: How often the rest of the run passes over a generation's batches.
        limit_val_batches: On how many validation batches, or which share, probes are judged.
        schedules: Whether LR schedules that go on at each step do so in probes, which are epochs.

    Attributes:
        signals: Wait while a generation runs.
        workers: Number of processes, once that is known.
        decisions: Whether candidates are ``"vectorised"``, steps ``"compiled"``, and copies of
            states ``"on_cpu"``; None before that is decided. A resumed run is told what was.
        compile_seconds: How long compiling took.
    """

    def __init__(
        self,
        monitor: Monitor,
        *,
        direct: bool,
        workers: int,
        share: bool,
        snapshot_device: str | None,
        evaluator: EvaluatorName,
        compile_steps: bool = False,
        passes_left: Callable[[pl.Trainer], float] = lambda trainer: float("inf"),
        limit_val_batches: int | float | None = None,
        schedules: bool = False,
    ) -> None:
        self.monitor = monitor
        self._schedules = schedules
        self.limit_val_batches = limit_val_batches
        self._asked_device = snapshot_device
        self.sharing = RankSharing(share, direct=direct)
        self._direct = self._direct_validation = direct
        self._asked_workers = workers
        self._evaluator: EvaluatorName = evaluator
        self._compile_steps = compile_steps
        self._passes_left = passes_left
        self._generations = 0
        self._step: CompiledStep | None = None
        self.signals = HeldSignals()
        self.workers = 0
        names = ("vectorised", "compiled", "on_cpu")
        self.decisions: dict[str, bool | None] = dict.fromkeys(names)
        self.compile_seconds = 0.0

    @contextmanager
    def probing(
        self,
        trainer: pl.Trainer,
        batches: Batches,
        start: Snapshot,
        expected: int,
        *,
        one_start: bool,
    ) -> Iterator[tuple[Probe, Callable[[], None]]]:
        """A probe on the batches, in quiet loops, and a function to call after each candidate.

        Args:
            trainer: A Trainer in `on_train_epoch_end`.
            batches: What probes train on.
            start: The present state; the first time it is trained from and restored.
            expected: How many candidates the progress bar is made for.
            one_start: Whether all candidates train from the start, which is restored in between.
        """
        with (
            generation_progress(trainer, expected) as advance,
            trainer_seam.quiet_loops(
                trainer, batches, self.limit_val_batches, self._schedules
            ) as loops,
        ):
            direct = DirectSteps(trainer, batches, schedules=loops.schedules)
            if not self._generations:
                self._check(trainer, loops, direct, start, expected)
            self._generations += 1
            if self._generations.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...
                self._check_validation(trainer, loops, start)
            begin_steps(trainer)
            direct.compiled = self._step
            direct.undisturbed = one_start and self._direct_validation and not hears(trainer)
            train = direct if self._direct else loops.train
            evaluate = DirectValidation(loops) if self._direct_validation else loops.validate
            tried = self._generations > 1

            def scored() -> None:
                advance()
                if trainer.world_size == 1:  # else others would wait for this process
                    self.signals.check()

            yield Probe(loops, train, evaluate, self.monitor, tried), scored

    @property
    def snapshot_device(self) -> str | None:
        """Where snapshots are to keep their tensors; None where these are."""
        return "cpu" if self._asked_device == "cpu" or self.decisions["on_cpu"] else None

    def place_copies(self, trainer: pl.Trainer, count: int) -> None:
        """Decides once where snapshots are kept, if that is left open.

        Args:
            trainer: A Trainer in `on_train_epoch_end`.
            count: How many different ones there may be at a time.
        """
        if self._asked_device == "auto" and self.decisions["on_cpu"] is None:
            # On the meta device a copy takes no memory.
            nbytes = take_snapshot(trainer, "meta").nbytes
            self.decisions["on_cpu"] = too_many_copies(trainer, count, nbytes)

    @contextmanager
    def validating(self, trainer: pl.Trainer) -> Iterator[Probe]:
        """A probe that only validates; the present state is restored in the end."""
        with (
            take_snapshot(trainer).restored_on_exit(),
            trainer_seam.quiet_loops(trainer, []) as loops,
        ):
            yield Probe(loops, loops.train, loops.validate, self.monitor)

    def _check(
        self,
        trainer: pl.Trainer,
        loops: ProbeLoops,
        direct: DirectSteps,
        start: Snapshot,
        candidates: int,
    ) -> None:
        """Decides once in a run what is possible in it."""
        if isinstance(direct.batches, Redrawn):
            rank_zero_info(
                "DEOptCallback draws a generation's batches anew for each candidate, since they "
                f"take more than {KEPT_BYTES / 2**30:.0f} GiB or hold what cannot be copied."
            )
        self.workers = worker_count(trainer, self._asked_workers, direct.batches)
        hooks = ("lr_scheduler_step",) if loops.schedules else ()  # it may ask for global_step
        reason = why_not(trainer) or why_overridden(trainer, hooks)
        self._direct = self._direct and reason is None
        if self._direct and not equals_loops(loops, direct, start):
            self._direct = False
            rank_zero_warn(
                f"DEOptCallback: {type(trainer.lightning_module).__name__}.training_loss(batch) "
                "does not train as training_step does, so probes take Lightning's slower loops. "
                "Let training_step return training_loss(batch) and change nothing else."
            )
        self._choose(trainer, direct, start, candidates)

    def _check_validation(self, trainer: pl.Trainer, loops: ProbeLoops, start: Snapshot) -> None:
        """Decides whether probes are validated without the loop."""
        if not (self._direct_validation and can_validate(trainer)):
            self._direct_validation = False
            return
        equal = equals_loop(loops, start)
        self._direct_validation = bool(equal)
        if equal is False:
            rank_zero_warn(
                f"DEOptCallback: {type(trainer.lightning_module).__name__}.validation_metrics("
                "batches) does not return what validation logs, so probes take Lightning's slower "
                "loop. Let it return the same names and values, and change nothing else."
            )

    @property
    def vectorised(self) -> bool:
        """Whether candidates are trained stacked; known once there is a probe."""
        return bool(self.decisions["vectorised"])

    def _choose(
        self, trainer: pl.Trainer, direct: DirectSteps, start: Snapshot, candidates: int
    ) -> None:
        """Takes the ways to train that differ by rounding, where they are wanted and faster."""
        decisions = self.decisions
        decisions["vectorised"] = choose_vectorised(
            direct,
            start,
            candidates,
            asked=self._evaluator,
            possible=self._direct,
            decided=decisions["vectorised"],
        )
        if self.vectorised:
            self.workers = 0
        elif self._compile_steps and self._direct:
            self._step, self.compile_seconds = choose_steps(
                direct,
                start,
                self._passes_left(trainer) * len(direct.batches),
                processes=self.workers,
                decided=decisions["compiled"],
            )
            decisions["compiled"] = self._step is not None


def take_snapshot(trainer: pl.Trainer, device: str | None = None) -> Snapshot:
    """A snapshot of everything that a Trainer's steps and validation change.

    Args:
        trainer: The Trainer.
        device: Where it keeps tensors, see ``Snapshot.take``.
    """
    module = trainer.lightning_module
    if lazy := [name for name, parameter in module.named_parameters() if is_lazy(parameter)]:
        raise MisconfigurationException(
            f"DEOptCallback copies the module's weights, and {lazy[0]} has no shape before the "
            "first batch. Leave num_sanity_val_steps above 0, pass a batch through the module in "
            "configure_optimizers, or set warmup_epochs=2."
        )
    return Snapshot.take(
        module,
        trainer.optimizers,
        stateful=[trainer.precision_plugin],
        generators=trainer_seam.loader_generators(trainer),
        schedulers=scheduler_parts_of(trainer),
        beside=averages_of(trainer),
        gradients=not module.automatic_optimization,
        device=device,
    )


def adopt_weights(trainer: pl.Trainer, snapshot: Snapshot, metrics: Metrics) -> None:
    """Lets training go on from other weights, and ModelCheckpoint rank them by their metrics."""
    snapshot.restore_weights()
    trainer.callback_metrics.update(metrics)


def warn_all_diverged(trainer: pl.Trainer) -> None:
    """Says that a generation has found nothing to adopt."""
    rank_zero_warn(
        f"DEOptCallback: every candidate diverged after epoch {trainer.current_epoch}; lr and "
        "weight decay stay as they are. If this repeats, lower the upper lr bound, or look for "
        "what is not finite in data, loss or monitor."
    )


def epochs_left(trainer: pl.Trainer) -> float:
    """How many epochs are to come, and the one that has just ended."""
    total, done = trainer.estimated_stepping_batches, trainer.current_epoch + 1
    return (total - trainer.global_step) / max(1, trainer.global_step / done) + 1


def optimizer_steps(trainer: pl.Trainer, batches: int) -> int:
    """How many optimizer steps a pass over so many batches takes.

    In manual optimization, which accumulates on its own, a step is a call of `training_step`.
    """
    return -(-batches // trainer.accumulate_grad_batches)
