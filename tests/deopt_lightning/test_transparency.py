"""The golden test: a search that adopts nothing leaves no trace in a run."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler, Subset

from deopt_lightning import DEOptCallback
from tests.deopt_lightning.test_members import Scales
from tests.deopt_lightning.wrapping_optimizers import Bounded, Lookahead, Sharp, Sums
from tests.tiny import (
    LAYERS,
    ManualModel,
    SilentDryRun,
    TinyModel,
    average_of_epochs,
    csv_rows,
    fit,
    moving_average,
    same_state,
    tiny_data,
    train_loader,
    val_loader,
)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        order = torch.randperm(96)
        return (tiny_data()[int(i)] for i in order)


class Noisy(Dataset):
    """Rows of the tiny data with noise from a generator of its own."""

    def __init__(self) -> None:
        self.rows = tiny_data()
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        x, y = self.rows[index]
        return x + float(self.rng.normal()), y


class Shuffled(Sampler[int]):
    """An order from a generator of its own."""

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def __len__(self) -> int:
        return 96

    def __iter__(self) -> Any:
        return iter(self.rng.sample(range(96), 96))


class FirstOfList(TinyModel):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch[0], batch_idx)


def sgd_with(scheduler: Callable[[Any], Any], **options: Any) -> Callable[[Any], Any]:
    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler(optimizer), **options},
        }

    return configure


class Compilable(TinyModel):
    """Keeps `self.log` and torchmetrics from torch's compiler, which fails on them in Lightning."""

    log = torch.compiler.disable(L.LightningModule.log)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = torch.nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", torch.nn.functional.mse_loss(self(batch[0]), batch[1]))

    def on_validation_epoch_end(self) -> None:
        pass


class KeepsErrors(TinyModel):
    """Gathers errors as NumPy arrays over an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.errors.append(loss.detach().numpy())
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("mean_error", float(np.mean(self.errors)))
        self.log("count", float(len(self.errors)))
        self.errors.clear()


class KeepsMetric(TinyModel):
    """Holds a metric in a dict, where it is no submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = {"train": torchmetrics.MeanMetric()}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.metrics["train"].update(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("mean_error", self.metrics["train"].compute())
        self.metrics["train"].reset()


def compiled() -> Any:
    return torch.compile(Compilable(), backend="eager")


schedule = torch.optim.lr_scheduler
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "accumulation with a ragged last window": {"accumulate_grad_batches": 5},
    "clipping by norm": {"gradient_clip_val": 0.1},
    "clipping by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "16-true": {"precision": "bf16-true"},
    "float64": {"precision": "64-true"},
    "accumulation by a callback": {
        "callbacks": lambda folder: [GradientAccumulationScheduler({0: 1, 1: 4})]
    },
    "validation every fifth batch": {"val_check_interval": 5, "check_val_every_n_epoch": None},
    "validation twice an epoch": {"val_check_interval": 0.5},
    "validation every third epoch": {"check_val_every_n_epoch": 3},
    "limited batches": {"limit_train_batches": 5, "limit_val_batches": 2},
    "max_steps": {"max_epochs": -1, "max_steps": 30},
    "reload every epoch": {"reload_dataloaders_every_n_epochs": 1},
    "rich progress bar": {"enable_progress_bar": True},
    "iterable train set": {"train": lambda: DataLoader(Stream(), batch_size=8)},
    "dict of train loaders": {"train": lambda: {"main": train_loader(), "other": val_loader()}},
    "list of train loaders": {
        "train": lambda: [train_loader(), val_loader()],
        "model": FirstOfList,
    },
    "own loader generator": {
        "train": lambda: train_loader(generator=torch.Generator().manual_seed(5))
    },
    "a dataset's own generator": {
        "train": lambda: DataLoader(Subset(Noisy(), range(90)), 8, shuffle=True),
        "val": lambda: DataLoader(ConcatDataset([Noisy(), tiny_data()]), 8),
    },
    "a sampler's own generator": {"train": lambda: DataLoader(tiny_data(), 8, sampler=Shuffled())},
    "a worker": {"train": lambda: train_loader(num_workers=1), "max_epochs": 2},
    "persistent workers": {
        "train": lambda: train_loader(num_workers=1, persistent_workers=True),
        "val": lambda: val_loader(num_workers=1, persistent_workers=True),
        "max_epochs": 2,
    },
    "two validation loaders": {"val": lambda: [val_loader(), val_loader()]},
    "checkpoints by step": {
        "callbacks": lambda folder: [
            ModelCheckpoint(folder / "steps", every_n_train_steps=5, save_top_k=-1, save_last=True)
        ],
    },
    "moving average": {"callbacks": lambda folder: [moving_average()]},
    "moving average before the search": {
        "callbacks": lambda folder: [moving_average(update_every_n_steps=2)],
        "first": True,
    },
    "average of epochs": {"callbacks": lambda folder: [average_of_epochs()]},
    "average that begins late": {
        "callbacks": lambda folder: [moving_average(update_starting_at_step=20)]
    },
    "stochastic average": {
        "callbacks": lambda folder: [StochasticWeightAveraging(0.02, 0.5, annealing_epochs=2)],
        "max_epochs": 4,
    },
    "stochastic average beside a schedule": {
        "callbacks": lambda folder: [StochasticWeightAveraging([0.02], 2)],
        "optimizer": sgd_with(lambda o: schedule.StepLR(o, 1, 0.5)),
        "max_epochs": 4,
        "first": True,
    },
    "manual optimization with two optimizers": {"model": ManualModel},
    "arrays gathered over an epoch": {"model": KeepsErrors},
    "metric in a dict": {"model": KeepsMetric},
    "optimizer with an inner one": {"optimizer": Sharp},
    "optimizer with slow weights": {"optimizer": Lookahead},
    "optimizer with sums": {"optimizer": Sums},
    "optimizer with a list of lrs": {"optimizer": Bounded},
    "parameter outside of the module": {"model": partial(Scales, "object")},
    "compiled module": {"model": compiled, "max_epochs": 2},
    "step schedule": {
        "optimizer": sgd_with(lambda o: schedule.CosineAnnealingLR(o, 20), interval="step")
    },
    "epoch schedule": {"optimizer": sgd_with(lambda o: schedule.StepLR(o, 1, 0.5))},
    "lambda schedule": {"optimizer": sgd_with(lambda o: schedule.LambdaLR(o, lambda e: 0.9**e))},
    "plateau schedule": {
        "optimizer": sgd_with(
            lambda o: schedule.ReduceLROnPlateau(o, patience=0), monitor="val_loss"
        )
    },
}


def run(folder: Path, case: dict[str, Any], *callbacks: DEOptCallback) -> Any:
    options = dict(case)
    for loader in ("train", "val"):
        if loader in options:
            options[loader] = options[loader]()
    checkpoint = ModelCheckpoint(folder, monitor="val_loss", save_top_k=-1, save_last=True)
    stopping = EarlyStopping("val_loss", patience=5)
    others = options.pop("callbacks", lambda folder: [])(folder)
    both = [*others, *callbacks] if options.pop("first", False) else [*callbacks, *others]
    build = options.pop("model", partial(TinyModel, options.pop("optimizer", None)))
    model, trainer = fit(folder, [*both, stopping, checkpoint], model=build, **options)
    return model, trainer, checkpoint, stopping


@pytest.mark.parametrize("name", CASES)
def test_search_that_adopts_nothing_leaves_no_trace(name: str, tmp_path: Path) -> None:
    callback = SilentDryRun()
    plain, plain_trainer, plain_checkpoint, plain_stopping = run(tmp_path / "plain", CASES[name])
    model, trainer, checkpoint, stopping = run(tmp_path / "search", CASES[name], callback)

    assert len(callback.history) >= 2
    assert callback.probe_steps_taken >= 2 * 4 * len(callback.history)
    assert same_state(plain.state_dict(), model.state_dict())
    assert trainer.global_step == plain_trainer.global_step
    assert (model.steps_seen, model.losses) == (plain.steps_seen, plain.losses)
    assert _files(checkpoint) == _files(plain_checkpoint)
    assert stopping.state_dict() == plain_stopping.state_dict()
    logs = [(tmp_path / run / "metrics.csv").read_bytes() for run in ("plain", "search")]
    assert logs[0] == logs[1]


def _files(checkpoint: ModelCheckpoint) -> dict[str, float]:
    return {Path(p).name: float(score) for p, score in checkpoint.best_k_models.items()}


def test_a_search_that_does_adopt_is_noticed_by_the_golden_test(tmp_path: Path) -> None:
    plain, *_ = run(tmp_path / "plain", {})
    model, *_ = run(tmp_path / "search", {}, SilentDryRun(adopt=True))
    assert not same_state(plain.state_dict(), model.state_dict())


def test_learning_rate_monitor_sees_the_users_schedule_in_each_layer(tmp_path: Path) -> None:
    case = {
        "callbacks": lambda folder: [LearningRateMonitor("step", log_weight_decay=True)],
        "optimizer": sgd_with(lambda o: schedule.StepLR(o, 1, 0.5)),
    }
    run(tmp_path / "plain", case)
    run(tmp_path / "search", case, SilentDryRun())
    plain, search = (csv_rows(tmp_path / name) for name in ("plain", "search"))
    for left, right in zip(plain, search, strict=True):
        for suffix in ("", "-weight_decay"):
            own = left.pop(f"lr-SGD{suffix}")
            assert {right.pop(f"lr-SGD/{layer}{suffix}") for layer in LAYERS} == {own}
        assert left == right
    assert len(plain) > 18
