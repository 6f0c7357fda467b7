"""The only place that touches Lightning's internals: quiet probe steps and quiet validation.

A probe runs in epoch and evaluation loops of its own, of the same classes as the Trainer's. The
user's `training_step`, hooks, clipping, accumulation and precision all apply; callbacks, loggers
and the Trainer's own counters and metrics see nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from deopt_lightning import averaging
from deopt_lightning.batch_counts import limit_batches
from deopt_lightning.lr_schedule import regroup
from deopt_lightning.param_groups import GroupSplit
from deopt_lightning.quiet import QuietLogger, deaf, muted
from deopt_lightning.random_state import Generator, generators_of
from deopt_lightning.replay import Batches, Record, Replay
from deopt_lightning.step_counts import begin_steps, step_counts

_METRICS = ("_progress_bar_metrics", "_logged_metrics", "_callback_metrics")
_CONNECTOR_STATE = (*_METRICS, "_current_fx", "_first_loop_iter")
_TRAINER_STATE = ("loggers", "profiler", "should_stop", "_last_val_time")
Limit = int | float | None  # of validation batches


class ProbeLoops:
    """Trains a few quiet steps and validates quietly, for a Trainer in `on_train_epoch_end`.

    Use it through `quiet_loops`, which puts the Trainer back.

    Attributes:
        trainer: The Trainer.
        batches: What `train` trains on.
        schedules: Whether LR schedules go on at each step of `train`.
        plain: Whether the run validates averaged weights, but the average took in none of the
            last training's steps, so that the plain weights are validated.
    """

    def __init__(
        self, trainer: pl.Trainer, batches: Batches, limit: Limit = None, schedules: bool = False
    ) -> None:
        self.trainer = trainer
        self.batches = batches
        self.plain = False
        self._averages = averaging.averages_of(trainer)
        self._metrics_before = dict(trainer._logger_connector._callback_metrics)
        self.main = trainer.fit_loop.epoch_loop
        self.schedules = schedules and any(
            c.interval == "step" for c in trainer.lr_scheduler_configs
        )
        self.epoch_loop = _probe_loop_class(type(self.main), self.schedules)(trainer)
        self.epoch_loop.begins_at = step_counts(trainer)
        _share_validation_data(self.main.val_loop, self.epoch_loop.val_loop, trainer)
        if limit is not None:
            limited = self.epoch_loop.val_loop._max_batches
            limited[:] = [limit_batches(count, limit) for count in limited]

    def train(self) -> None:
        """Trains on the batches."""
        trainer, loop = self.trainer, self.epoch_loop
        updates = averaging.updates_of(self._averages)
        begin_steps(trainer)
        fetcher = _PrefetchDataFetcher()
        fetcher.setup(CombinedLoader(Replay(self.batches), "max_size_cycle"))
        iter(fetcher)
        trainer.training = True
        steps = loop.global_step
        with torch.enable_grad(), muted(trainer.lightning_module):
            loop.run(fetcher)
        if loop.global_step == steps:
            raise MisconfigurationException(
                f"DEOptCallback: {len(self.batches)} batches took no optimizer step, so candidates "
                "cannot be told apart. Give more probe_steps: in manual optimization they count "
                "calls of training_step."
            )
        trainer._logger_connector.epoch_end_reached()
        loop._results.reset()
        self.plain = bool(self._averages) and averaging.updates_of(self._averages) == updates

    def validate(self) -> dict[str, torch.Tensor]:
        """Runs the whole validation and returns what it logged."""
        trainer = self.trainer
        connector = trainer._logger_connector
        before = self._metrics_before  # user code may look there for what training has logged
        connector._callback_metrics = dict(before)
        trainer.validating = True
        try:
            with deaf(self._averages if self.plain else []):
                self.epoch_loop.val_loop.run()
            found = connector._callback_metrics
            return {name: value for name, value in found.items() if value is not before.get(name)}
        finally:
            trainer.training = True
            self.epoch_loop.val_loop._results.reset()

    def validation_batches(self) -> Iterator[Any]:
        """What `validate` validates, drawn anew; for Trainers of whom `draws_plainly` holds."""
        loop = self.epoch_loop.val_loop
        (loader,), (limit,) = loop._combined_loader.flattened, loop._max_batches
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        _set_sampler_epoch(loader, epochs.processed)
        return islice(loader, None if math.isinf(limit) else limit)

    def end_epoch(self) -> None:
        """Lets averages take part in a whole epoch's end."""
        if self.plain:
            averaging.refuse_to_stand_still(self._averages[0])
        averaging.end_epoch(self.trainer)

    def all_ranks(self, decision: bool) -> bool:
        """Whether something holds on every process of the run."""
        return bool(self.trainer.strategy.reduce_boolean_decision(decision, all=True))

    def mean_over_ranks(self, value: float) -> float:
        """One number for all processes: the mean, as process 0 computed it."""
        strategy = self.trainer.strategy
        if self.trainer.world_size == 1:
            return value
        mean = strategy.reduce(torch.tensor(value, device=strategy.root_device), reduce_op="mean")
        return float(strategy.broadcast(float(mean)))


@contextmanager
def quiet_loops(
    trainer: Any, batches: Batches, limit: Limit = None, schedules: bool = False
) -> Iterator[ProbeLoops]:
    """Swaps private loops in and hides callbacks, loggers and metrics; puts all back at the end."""
    connector, module = trainer._logger_connector, trainer.lightning_module
    main, stage, hook = trainer.fit_loop.epoch_loop, trainer.state.stage, module._current_fx_name
    kept_trainer = {
        name: getattr(trainer, name) for name in _TRAINER_STATE if hasattr(trainer, name)
    }
    kept_connector = {name: getattr(connector, name) for name in _CONNECTOR_STATE}
    metrics = {name: dict(value) for name, value in kept_connector.items() if name in _METRICS}
    try:
        averages = averaging.averages_of(trainer)
        with deaf([callback for callback in trainer.callbacks if callback not in averages]):
            trainer.loggers = [QuietLogger(logger) for logger in trainer.loggers]
            trainer.profiler = PassThroughProfiler()
            loops = ProbeLoops(trainer, batches, limit, schedules)
            for name in _METRICS:
                setattr(connector, name, {})
            trainer.fit_loop.epoch_loop = loops.epoch_loop
            begin_steps(trainer)
            yield loops
    finally:
        trainer.fit_loop.epoch_loop = main
        for name, value in kept_trainer.items():
            setattr(trainer, name, value)
        for name, value in {**kept_connector, **metrics}.items():
            setattr(connector, name, value)
        trainer.state.stage, module._current_fx_name = stage, hook
        for optimizer in trainer.optimizers:
            optimizer.zero_grad(set_to_none=True)


def ends_now(trainer: Any) -> bool:
    """Whether no epoch follows this one, apart from the limits that the Trainer was given."""
    return bool(trainer.fast_dev_run or (trainer.should_stop and trainer.fit_loop._can_stop_early))


def batches_trained(trainer: pl.Trainer) -> int:
    """How many batches the present epoch has trained on."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready)


def draws_order_again(trainer: pl.Trainer) -> bool:
    """Whether a resumed epoch that now starts draws its order anew, as older Lightning does."""
    loop = trainer.fit_loop
    return not (hasattr(loop, "is_resuming") or loop.epoch_loop.restarting)


class _Recorder(_PrefetchDataFetcher):
    """Hands out batches as the fetcher does whose place it takes, and keeps a copy of each."""

    record: Record | None = None  # None while nobody asks

    def __next__(self) -> Any:
        fetched = super().__next__()
        if self.record is not None:
            self.record.add(fetched[0])
        return fetched


def record_batches(trainer: pl.Trainer) -> None:
    """Keeps the batches that the Trainer is about to train on, for `recorded_batches`.

    Args:
        trainer: A Trainer in `on_train_epoch_start`.
    """
    loop: Any = trainer.fit_loop
    if not isinstance(loop._data_fetcher, _Recorder):  # at first, and after data was reloaded
        recorder = _Recorder()
        vars(recorder).update(vars(loop._data_fetcher))
        loop._data_fetcher = recorder
    loop._data_fetcher.record = Record()


def recorded_batches(trainer: pl.Trainer) -> list[Any] | None:
    """The epoch's batches, once; None where they could not be kept, or not from the first."""
    fetcher: Any = trainer.fit_loop._data_fetcher
    record, fetcher.record = getattr(fetcher, "record", None), None
    kept = record.batches if record is not None else None
    return kept if kept is not None and len(kept) == batches_trained(trainer) else None


def draw_batches(trainer: Any, count: int, epoch: int) -> Iterator[Any]:
    """Draws batches from the training data as the present random state has it.

    The caller restores the random state. Samplers with an epoch of their own get the given one,
    so that one and several processes behave alike; the fit loop sets it again.

    Args:
        trainer: The Trainer, in its fit loop.
        count: Number of batches; more than an epoch has are drawn from further passes.
        epoch: The epoch that samplers are set to; the next ones for further passes.
    """
    combined, drawn = trainer.fit_loop._combined_loader, 0
    while drawn < count:
        for loader in combined.flattened:
            _set_sampler_epoch(loader, epoch)
        loaders = CombinedLoader(combined.iterables, combined._mode)
        loaders.limits = combined.limits
        before = drawn
        for batch, _, _ in islice(loaders, count - drawn):
            drawn += 1
            yield batch
        if drawn == before:
            raise RuntimeError("The training data gave no batch for a probe; check the loader.")
        epoch += 1


def loader_generators(trainer: pl.Trainer) -> list[Generator]:
    """The random generators that training and validation loaders, samplers and datasets own."""
    combined = (
        trainer.fit_loop._combined_loader,
        trainer.fit_loop.epoch_loop.val_loop._combined_loader,
    )
    return generators_of(
        [part for loaders in combined if loaders is not None for part in loaders.flattened]
    )


def regroup_schedule(average: Any, split: GroupSplit) -> None:
    """Lets the LR schedule of a `StochasticWeightAveraging` follow the groups that are split."""
    old_count = len(split.user_options)
    regroup(vars(average), split.user_index, old_count, keys=("_swa_lrs",))
    regroup(average._scheduler_state or {}, split.user_index, old_count)


def has_validation_data(trainer: pl.Trainer) -> bool:
    """Whether a validation dataloader is defined, here or in a datamodule."""
    return bool(trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined())


def loader_workers(trainer: pl.Trainer, stage: str) -> int:
    """How many worker processes the dataloaders of "training" or "validation" have."""
    fit = trainer.fit_loop
    combined = (fit if stage == "training" else fit.epoch_loop.val_loop)._combined_loader
    loaders = combined.flattened if combined is not None else []
    return sum(getattr(loader, "num_workers", 0) for loader in loaders)


def draws_plainly(trainer: Any) -> bool:
    """Whether a validation passes over one dataloader, the same in all epochs."""
    combined = trainer.fit_loop.epoch_loop.val_loop._combined_loader
    if combined is None or trainer.reload_dataloaders_every_n_epochs:
        return False
    return len(combined.flattened) == 1 and bool(combined._mode == "sequential")


def has_communication_hook(trainer: pl.Trainer) -> bool:
    """Whether the strategy does more to gradients than to average them over processes."""
    return getattr(trainer.strategy, "_ddp_comm_hook", None) is not None


def step_hooks(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The functions that an optimizer calls before and after each of its steps."""
    before, after = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    return [*before.values(), *after.values()]


def _probe_loop_class(loop_class: Any, schedules: bool) -> type:
    """The Trainer's own epoch loop, without validation and the epoch's batch limit.

    Args:
        loop_class: The Trainer's.
        schedules: Whether LR schedules go on at each step; those by epoch never do.
    """

    def update_lr_schedulers(self: Any, interval: str, update_plateau_schedulers: bool) -> None:
        if schedules and interval == "step" and not update_plateau_schedulers:
            loop_class.update_lr_schedulers(self, interval, update_plateau_schedulers)

    return type(
        "ProbeEpochLoop",
        (loop_class,),
        {
            "_should_check_val_fx": lambda self, data_fetcher: False,
            "update_lr_schedulers": update_lr_schedulers,
            "_num_ready_batches_reached": lambda self: self.batch_progress.is_last_batch,
        },
    )


def _share_validation_data(main: Any, probe: Any, trainer: pl.Trainer) -> None:
    """Lets the private evaluation loop use the validation loaders that the Trainer made."""
    if main._combined_loader is None:
        trainer.validating = True
        main.setup_data()
        trainer.training = True
    probe._data_source = main._data_source
    probe._combined_loader = main._combined_loader
    probe._max_batches = list(main._max_batches)
    probe._last_val_dl_reload_epoch = main._last_val_dl_reload_epoch
