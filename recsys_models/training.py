"""One training: a model with its Trainer, built from a configuration."""

import logging
import math
import sys
import warnings
from pathlib import Path
from types import NoneType
from typing import Any, cast

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from recsys_models.costs import Clock, CostCurve, Watch
from recsys_models.models.base import check_monitor
from recsys_models.tuning import Outcome, Setting


class Training:
    """A model with its Trainer, built from a configuration and not trained yet.

    Args:
        cfg: the composed configuration.
        data: the data, set up. Where it has ``num_users`` and ``num_items``, the model gets them.
        watch: may end training early.
        extra: further callbacks.
        choose_epoch: whether early stopping and checkpoints of the configuration take part.
        goes_on: whether the checkpoint that `fit` gets is one of this run, interrupted before.

    Attributes:
        model: any LightningModule of the configuration, with the first weights of the seed.
        trainer: its Trainer.
        tuner: the tuner that learns while the model trains, if there is one.
        costs: what training has cost so far.
        seconds: wall-clock time of training.
        cpu_seconds: processor time of training.
    """

    def __init__(
        self,
        cfg: DictConfig,
        data: L.LightningDataModule,
        watch: Watch | None = None,
        extra: tuple[L.Callback, ...] = (),
        choose_epoch: bool = True,
        goes_on: bool = False,
    ) -> None:
        self.cfg = cfg
        self.data = data
        L.seed_everything(cfg.seed, workers=True, verbose=False)
        if cfg.threads is not None:
            torch.set_num_threads(cfg.threads)
        self.model: L.LightningModule = instantiate(cfg.model, _convert_="all", **_sizes(data))
        check_monitor(cfg.monitor, self.model, cfg.mode)
        own = [instantiate(entry) for entry in cfg.callbacks.values()]
        # Tuners are known by what they offer, not by class: this package imports none of them.
        learning = next((c for c in own if hasattr(c, "schedule")), None)
        self.tuner: L.Callback | None = instantiate(cfg.tuner.callback) or learning
        self.costs = CostCurve(cfg.monitor, self.tuner, watch, goes_on)
        own = [callback for callback in own if callback is not self.tuner]
        if not choose_epoch:
            own = [c for c in own if not isinstance(c, (EarlyStopping, ModelCheckpoint))]
        callbacks = [c for c in (self.tuner, self.costs, *own, *extra) if c is not None]
        self.trainer = _trainer(cfg, callbacks, choose_epoch)
        self.seconds = self.cpu_seconds = 0.0

    def fit(self, start: str | None = None) -> None:
        """Train, from a checkpoint if one is given."""
        clock = Clock()
        try:
            self.trainer.fit(self.model, datamodule=self.data, ckpt_path=start)
        finally:
            seconds, cpu_seconds = self.costs.before
            self.seconds = seconds + clock.seconds
            self.cpu_seconds = cpu_seconds + clock.cpu_seconds

    def drop_last(self) -> None:
        """Remove the last epoch's checkpoint, from which an interrupted training goes on."""
        checkpoint = self.trainer.checkpoint_callback
        if isinstance(checkpoint, ModelCheckpoint) and self.trainer.is_global_zero:
            last = checkpoint.last_model_path
            if last and last != checkpoint.best_model_path:
                Path(last).unlink(missing_ok=True)

    @property
    def best_weights(self) -> str:
        """The checkpoint of the best epoch; a fast_dev_run saves none."""
        checkpoint = self.trainer.checkpoint_callback
        return checkpoint.best_model_path if isinstance(checkpoint, ModelCheckpoint) else ""

    def outcome(self, setting: Setting, weights: str, before: tuple[Setting, ...] = ()) -> Outcome:
        """What training has given and cost."""
        rows = self.costs.rows
        values = [row.value for row in rows if math.isfinite(row.value)]
        best = max if self.cfg.mode == "max" else min
        epochs = self.trainer.current_epoch - len(before)
        return Outcome(
            setting=setting,
            val=best(values) if values else None,
            steps=self.costs.steps(self.trainer),
            evaluations=self.costs.evaluations,
            seconds=self.seconds,
            weights=weights,
            lineage=[*before, *[setting] * epochs],
            total_steps=self.trainer.global_step,
            curve=rows,
            cpu_seconds=self.cpu_seconds,
        )


def check_numbers(cfg: DictConfig) -> None:
    """Refuse what torch and Lightning would end over in a traceback, perhaps after training."""
    number = (int, float, DictConfig)  # or what one is made from
    for name, kinds, lowest in (
        ("optimizer.lr", number, -math.inf),  # the optimizer itself knows what is too low
        ("optimizer.weight_decay", number, -math.inf),
        ("trainer.max_epochs", (int, NoneType), -1),
        ("threads", (int, NoneType), 1),
        ("seed", (int,), 0),
    ):
        value = OmegaConf.select(cfg, name, default=1)  # what is left out has a default
        if not isinstance(value, kinds) or (isinstance(value, int) and value < lowest):
            what = "a number" if kinds is number else f"a whole number from {lowest} on"
            what += ", or null" if NoneType in kinds else ""
            raise ValueError(f"{name} must be {what}; got {value!r}.")
    for part, use in (("val", "chooses the epoch"), ("test", "is what a run reports")):
        if OmegaConf.select(cfg, f"trainer.limit_{part}_batches") == 0:
            raise ValueError(
                f"trainer.limit_{part}_batches must be above 0, since the {part} set {use}; got 0."
            )


def load_weights(model: L.LightningModule, path: str) -> None:
    """Put a checkpoint's weights into a model; without a path the model keeps its own."""
    if path:
        saved: dict[str, dict[str, Tensor]] = torch.load(path, "cpu", weights_only=True)
        model.load_state_dict(saved["state_dict"])


def quieten() -> None:
    """Leave out what repeats on every run and asks nothing of the reader."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*LeafSpec.*is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message)


def _sizes(data: L.LightningDataModule) -> dict[str, int]:
    names = ("num_users", "num_items")
    return {name: getattr(data, name) for name in names if hasattr(data, name)}


def _trainer(cfg: DictConfig, callbacks: list[L.Callback], choose_epoch: bool) -> L.Trainer:
    extra: dict[str, Any] = {} if sys.stdout.isatty() else {"enable_progress_bar": False}
    if not choose_epoch:
        extra["enable_checkpointing"] = False
    logger = instantiate(cfg.logger) if cfg.get("logger") else False
    return cast(L.Trainer, instantiate(cfg.trainer, callbacks=callbacks, logger=logger, **extra))
