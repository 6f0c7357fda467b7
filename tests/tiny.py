"""A small real model and Trainer that the callback's tests share."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from deopt_lightning import DEOptCallback

LAYERS = ["first", "norm", "last"]  # of the model below


class TinyModel(L.LightningModule):
    """Regression with everything that a probe could leave changed.

    Batch norm, dropout, metrics in training and validation, a counter and a list of its own.
    """

    def __init__(self, make_optimizer: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.make_optimizer = make_optimizer or partial(torch.optim.Adam, lr=1e-2)
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(8, 1)
        self.train_error = torchmetrics.MeanSquaredError()
        self.val_error = torchmetrics.MeanSquaredError()
        self.steps_seen = 0
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(torch.relu(self.norm(self.first(x)))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch["main"] if isinstance(batch, dict) else batch
        prediction = self(x)
        loss = nn.functional.mse_loss(prediction.float(), y.float())
        self.steps_seen += 1
        self.losses.append(float(loss.detach()))
        self.train_error(prediction.float(), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_error", self.train_error, on_step=False, on_epoch=True)
        self.log("seen", float(self.steps_seen), on_step=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        prediction = self(x).float()
        self.val_error.update(prediction, y)
        name = "val_loss" if dataloader_idx == 0 else f"val_loss_{dataloader_idx}"
        self.log(name, nn.functional.mse_loss(prediction, y), add_dataloader_idx=False)

    def on_validation_epoch_end(self) -> None:
        self.log("val_error", self.val_error.compute())
        self.val_error.reset()

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["steps_seen"] = self.steps_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.steps_seen = checkpoint["steps_seen"]


class ManualModel(TinyModel):
    """Two optimizers with a schedule each, stepped by hand after each fifth batch.

    Twelve batches make an epoch, so that gradients are left over at its end.
    """

    accumulate = 5

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))
        if (batch_idx + 1) % self.accumulate == 0:
            for optimizer, scheduler in zip(self.optimizers(), self.lr_schedulers(), strict=True):
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()

    def configure_optimizers(self) -> Any:
        body = torch.optim.Adam([*self.first.parameters(), *self.norm.parameters()], lr=1e-2)
        head = torch.optim.SGD(self.last.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler
        return [body, head], [schedule.ExponentialLR(body, 0.9), schedule.LinearLR(head, 0.5)]


def tiny_data(samples: int = 96, seed: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=generator)
    noise = 0.1 * torch.randn(samples, 1, generator=generator)
    return TensorDataset(x, x[:, :1] - 2 * x[:, 1:2] + noise)


def train_loader(**options: Any) -> DataLoader:
    return DataLoader(tiny_data(), batch_size=8, shuffle=True, **options)


def val_loader(**options: Any) -> DataLoader:
    return DataLoader(tiny_data(32, seed=4), batch_size=8, **options)


def fit(
    folder: Path,
    callbacks: Sequence[L.Callback] = (),
    *,
    model: Callable[[], L.LightningModule] = TinyModel,
    train: Any = None,
    val: Any = None,
    ckpt_path: str | None = None,
    seed: int = 11,
    **trainer_options: Any,
) -> tuple[L.LightningModule, L.Trainer]:
    """Trains a new model with a real Trainer and a CSV log in the folder."""
    L.seed_everything(seed, verbose=False)
    module = model()
    options: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "devices": 1,
        "logger": CSVLogger(folder, name="", version=""),
        "log_every_n_steps": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(
            isinstance(c, L.pytorch.callbacks.Checkpoint) for c in callbacks
        ),
        "default_root_dir": folder,
        **trainer_options,
    }
    trainer = L.Trainer(callbacks=list(callbacks), **options)
    trainer.fit(module, _or(train, train_loader), _or(val, val_loader), ckpt_path=ckpt_path)
    return module, trainer


def fit_that_fails(folder: Path, callback: L.Callback, at: int) -> TinyModel:
    """The model of a fit that an error ends in a certain call of its validation step."""

    class Fails(TinyModel):
        calls = 0  # of the class, since a search restores a module's own

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            Fails.calls += 1
            if Fails.calls == at:
                raise RuntimeError("out of luck")
            super().validation_step(batch, batch_idx)

    built: list[TinyModel] = []

    def build() -> TinyModel:
        built.append(Fails())
        return built[0]

    with pytest.raises(RuntimeError, match="out of luck"):
        fit(folder, [callback], model=build)
    return built[0]


class ValuesPerEpoch(L.Callback):
    """Notes with what lr the optimizer trains, and what validation logs after it."""

    def __init__(self) -> None:
        self.lrs: list[list[float]] = []
        self.losses: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.lrs.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.losses.append(float(trainer.callback_metrics["val_loss"]))


class SilentDryRun(DEOptCallback):
    """Searches, adopts nothing and logs nothing: the run must be what it is without."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            **{"monitor": "val_loss", "population_size": 4, "probe_steps": 5, "adopt": False}
            | options
        )

    def _log(self, *args: Any) -> None:
        pass


def moving_average(**options: Any) -> L.Callback:
    """Lightning's exponential moving average of weights; skips the test where there is none yet."""
    callbacks = L.pytorch.callbacks
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("this version of Lightning averages no weights for validation")
    return callbacks.EMAWeightAveraging(**{"decay": 0.8} | options)


def average_of_epochs() -> L.Callback:
    """An average that is updated at the ends of epochs, so that no probe's step enters it."""
    return moving_average(update_every_n_steps=0, update_starting_at_epoch=0)


def needs_settled_epochs(limit: dict[str, int]) -> None:
    """Skips where Lightning itself, resumed with max_steps, does an epoch's end twice."""
    if "max_steps" in limit and not hasattr(L.pytorch.loops._FitLoop, "is_resuming"):
        pytest.skip("this version of Lightning does not resume exactly with max_steps")


def same_state(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def _or(value: Any, default: Callable[[], Any]) -> Any:
    return default() if value is None else value


def probing_callback(**options: Any) -> DEOptCallback:
    return DEOptCallback(
        **{"monitor": "val_loss", "population_size": 4, "probe_steps": 3} | options
    )


def csv_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


class Recorder(TinyModel):
    """Notes every batch, draw and weight that a training step sees."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        object.__setattr__(self, "seen", Seen())

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        weight = self.first.weight.detach().clone()
        self.seen.steps.append((self.trainer.global_step, batch[0].clone(), torch.rand(1), weight))
        return super().training_step(batch, batch_idx)


class Seen:
    """Has no plain attributes, so a snapshot leaves it alone."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps: list[Any] = []
