"""The trainings that a sweep asks for: one configuration at different settings."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from recsys_models.costs import Watch
from recsys_models.report import read_plain
from recsys_models.training import Training, quieten
from recsys_models.tuning import Outcome, Setting, choose


class Experiment:
    """A configuration whose lr and weight decay are left open: what a sweep trains.

    Every training has a folder below ``points``, and what is finished there is not trained again.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg.copy()
        self.cfg.output_dir = str(cfg.output_dir)  # read now: other processes have no Hydra to ask
        self._data: L.LightningDataModule | None = None

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.cfg.output_dir)

    @property
    def data(self) -> L.LightningDataModule:
        """The data, read once in each process."""
        if self._data is None:
            data: L.LightningDataModule = instantiate(self.cfg.data, _convert_="all")
            data.prepare_data()
            data.setup("fit")
            self._data = data
        return self._data

    @property
    def pairs(self) -> str | None:
        """Tells these training pairs from others, such as those of a table that has changed."""
        return getattr(self.data, "fingerprint", None)

    def fit(self, setting: Setting, watch: Watch | None = None) -> Outcome:
        """Train a setting, or read what an earlier run of the same sweep has made of it."""
        name = f"lr={setting.lr!r},weight_decay={setting.weight_decay!r}"
        folder = self.folder / "points" / name
        cfg = self.at(setting, folder)
        outcome = _finished(folder, cfg, self.pairs)
        if outcome is not None:
            if watch is not None:
                any(watch(epoch, row.value) for epoch, row in enumerate(outcome.curve))
            return outcome
        quieten()
        training = Training(cfg, self.data, watch)
        with _diverging() as diverged:
            training.fit()
        outcome = training.outcome(setting, training.best_weights)
        if diverged:
            outcome = _without_value(outcome)
        if training.trainer.is_global_zero:
            _write(folder, cfg, self.pairs, outcome)
            value = "diverged" if outcome.val is None else f"{cfg.monitor} {outcome.val:.4f}"
            print(f"{name}: {value}, {outcome.seconds:.0f} s", flush=True)
        training.drop_last()
        return outcome

    def fit_leg(
        self, setting: Setting, start: Outcome | None, end_epoch: int, weights: Path
    ) -> Outcome:
        """Go on from another leg's weights and optimizer state with a setting, until an epoch."""
        cfg = self.at(setting, self.folder)
        cfg.trainer.max_epochs = end_epoch
        cfg.logger = {}
        quieten()
        training = Training(cfg, self.data, None, (WriteSetting(setting),), choose_epoch=False)
        if start is not None:  # the same negatives for all members, others in every epoch
            torch.manual_seed(cfg.seed * 1_000_003 + end_epoch)
        with _diverging() as diverged:
            training.fit(None if start is None else start.weights)
        kept = not diverged and not training.trainer.fast_dev_run  # type: ignore[attr-defined]
        if kept:
            training.trainer.save_checkpoint(weights)
        before = () if start is None else tuple(start.lineage)
        outcome = training.outcome(setting, str(weights) if kept else "", before)
        return _without_value(outcome) if diverged else outcome

    def at(self, setting: Setting, folder: Path) -> DictConfig:
        """The configuration with a setting and another output folder."""
        cfg = self.cfg.copy()
        with open_dict(cfg):
            cfg.optimizer.lr, cfg.optimizer.weight_decay = setting
            cfg.output_dir = str(folder)
        return cfg


class WriteSetting(L.Callback):
    """Writes lr and weight decay into the optimizer, after a checkpoint has been restored."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write them into all parameter groups."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.update(self.setting.as_dict())


def drop_losers(outcomes: list[Outcome], mode: str) -> None:
    """Remove the checkpoints of all settings but the chosen one; what they cost stays on file."""
    chosen = choose(outcomes, mode)
    for outcome in outcomes:
        if outcome.weights and outcome.weights != chosen.weights:
            Path(outcome.weights).unlink(missing_ok=True)


@contextmanager
def _diverging() -> Iterator[list[str]]:
    """Turns a model that diverges into an entry of the list: a sweep goes on without it."""
    messages: list[str] = []
    try:
        yield messages
    except FloatingPointError as error:
        messages.append(str(error))


def _without_value(outcome: Outcome) -> Outcome:
    return Outcome.from_dict(outcome.as_dict() | {"val": None, "weights": ""})


def _key(cfg: DictConfig) -> dict[str, Any]:
    """All that decides how a setting trains: how many others there are does not."""
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    plain["tuner"] = plain["tuner"].get("callback")
    del plain["search"]
    folder = plain["output_dir"]
    return cast(dict[str, Any], json.loads(json.dumps(plain).replace(json.dumps(folder)[1:-1], "")))


def _finished(folder: Path, cfg: DictConfig, pairs: str | None) -> Outcome | None:
    path = folder / "point.json"
    if not path.is_file():
        return None
    saved = read_plain(path)
    if saved["configuration"] != _key(cfg) or saved.get("pairs", pairs) != pairs:
        return None
    outcome = saved["outcome"]
    if outcome["weights"]:
        outcome["weights"] = str(folder / outcome["weights"])
    return Outcome.from_dict(outcome)


def _write(folder: Path, cfg: DictConfig, pairs: str | None, outcome: Outcome) -> None:
    plain = outcome.as_dict()
    if plain["weights"]:
        plain["weights"] = os.path.relpath(plain["weights"], folder)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "point.json.part"  # a run that is killed leaves no half file
    point = {"configuration": _key(cfg), "pairs": pairs, "outcome": plain}
    unfinished.write_text(json.dumps(point))
    unfinished.replace(folder / "point.json")
