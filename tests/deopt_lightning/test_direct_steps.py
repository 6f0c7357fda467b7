"""Direct steps: what Lightning's loops compute, without them."""

from __future__ import annotations

import threading
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from deopt_lightning import DEOptCallback, generation
from tests.tiny import fit, same_state, tiny_data


class Pure(L.LightningModule):
    """A module whose step is its training loss; dropout draws from torch's generator."""

    def __init__(self, make_optimizer: Any = None) -> None:
        super().__init__()
        self.make_optimizer = make_optimizer or partial(torch.optim.Adam, lr=1e-2)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))

    def training_loss(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x).float(), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.training_loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_loss(batch))

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


class Clamps(Pure):
    """Keeps its weights in bounds after each step, and logs it."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for parameter in self.parameters():
            parameter.data.clamp_(-0.4, 0.4)
        self.log("clamped", outputs["loss"])


class EndsEarly(Pure):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 7 else None


class CountsSteps(Pure):
    """Its loss, its hooks and its validation go by how many steps there have been."""

    def training_loss(self, batch: Any) -> Tensor:
        return super().training_loss(batch) * (10 if self.global_step < 20 else 1)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step % 5 == 0:
            for parameter in self.parameters():
                parameter.data.mul_(0.9)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.global_step * super().training_loss(batch))


class LeavesBatchesOut(Pure):
    def training_loss(self, batch: Any) -> Tensor | None:
        return None if batch[0][0, 0] > 0.5 else super().training_loss(batch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return self.training_loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", super().training_loss(batch))


class ClipsItself(Pure):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **options: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")


def scheduled(parameters: Any) -> Any:
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def warmed_up(parameters: Any) -> Any:
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    rising = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=12)
    return [optimizer], [{"scheduler": rising, "interval": "step", "frequency": 2}]


def was_direct(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Notes for each generation whether it took direct steps."""
    taken: list[bool] = []
    make = generation.Probe

    def note(loops: Any, train: Any, *others: Any) -> Any:
        taken.append(train != loops.train)
        return make(loops, train, *others)

    monkeypatch.setattr(generation, "Probe", note)
    return taken


@pytest.mark.parametrize("carry", ["weights", "population"])
@pytest.mark.parametrize(
    ("model", "options"),
    [
        (Pure, {}),
        (Pure, {"accumulate_grad_batches": 5}),
        (Pure, {"gradient_clip_val": 0.1}),
        (Pure, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
        (Pure, {"precision": "bf16-mixed"}),
        (partial(Pure, scheduled), {}),
        (partial(Pure, warmed_up), {}),
        (partial(Pure, warmed_up), {"accumulate_grad_batches": 2}),
        (partial(Pure, partial(torch.optim.Adam, lr=1e-2, fused=True)), {}),
        (Clamps, {}),
        (EndsEarly, {}),
        (ClipsItself, {}),
        (CountsSteps, {}),
        (CountsSteps, {"accumulate_grad_batches": 5}),
        (LeavesBatchesOut, {}),
    ],
)
def test_direct_steps_change_no_bit_of_a_run(
    model: Any, options: Any, carry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = was_direct(monkeypatch)
    runs = []
    for direct in (False, True):
        callback = DEOptCallback(
            "val_loss", population_size=4, carry=carry, direct_steps=direct, workers=0
        )
        module, _ = fit(tmp_path / str(direct), [callback], model=model, max_epochs=2, **options)
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in callback.history]
        runs.append((module.state_dict(), rows, callback.schedule))
    assert taken == [False, False, True, True]
    assert same_state(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]


class Lies(Pure):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 2 * super().training_step(batch, batch_idx) + 0.1 * self.net[0].weight.sum()


class KeepsAverage(Pure):
    """Validation needs what the step leaves in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.ones(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.average.lerp_(batch[1].abs().mean(), 0.1)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.average * self.training_loss(batch))


class DrawsInStep(Pure):
    """Validation draws on from where the steps left NumPy's generator."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        np.random.rand()
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_loss(batch) * (1 + np.random.rand()))


class ChangesBatches(Pure):
    def training_loss(self, batch: Any) -> Tensor:
        batch[0].mul_(1.5)
        return super().training_loss(batch)


class OfPredictions(Pure):
    """Has a method of that name for something else."""

    def training_loss(self, prediction: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return nn.functional.mse_loss(prediction, y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.training_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, 0))


class ReturnsDict(Pure):
    def training_loss(self, batch: Any) -> Any:
        return {"loss": super().training_loss(batch)}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.training_loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", super().training_loss(batch))


@pytest.mark.parametrize(
    "model",
    [Lies, KeepsAverage, DrawsInStep, ChangesBatches, OfPredictions, ReturnsDict],
)
def test_a_training_loss_that_is_not_the_steps_is_found_out(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = was_direct(monkeypatch)
    callback = DEOptCallback("val_loss", population_size=4)
    with pytest.warns(UserWarning, match="does not train as training_step does"):
        module, _ = fit(tmp_path / "1", [callback], model=model, max_epochs=2)
    assert taken == [False, False]
    by_loops = DEOptCallback("val_loss", population_size=4, direct_steps=False)
    other, _ = fit(tmp_path / "2", [by_loops], model=model, max_epochs=2)
    assert same_state(module.state_dict(), other.state_dict())


class Locked:
    """A batch that holds what cannot be copied."""

    def __init__(self, parts: list[Tensor]) -> None:
        self.parts, self.lock = parts, threading.Lock()

    def __iter__(self) -> Any:
        return iter(self.parts)


def test_direct_steps_are_compared_on_batches_that_cannot_be_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(pairs: Any) -> Locked:
        return Locked(default_collate(pairs))

    taken = was_direct(monkeypatch)
    train = DataLoader(tiny_data(), batch_size=8, collate_fn=locked)
    callback = DEOptCallback("val_loss", population_size=4)
    fit(tmp_path, [callback], model=Pure, train=train, max_epochs=2)
    assert taken == [True, True]


class OwnBackward(Pure):
    def backward(self, loss: Tensor, *args: Any, **options: Any) -> None:
        (3 * loss).backward()


class SchedulesItself(Pure):
    """As schedulers want it that are told how far a run is."""

    def __init__(self) -> None:
        super().__init__(warmed_up)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step(self.global_step // 2)


class NoTrainingLoss(Pure):
    training_loss = None  # type: ignore[assignment]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, 0))


class MovesBatches(L.LightningDataModule):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [2 * part for part in batch]

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(tiny_data(), batch_size=8)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(tiny_data(32), batch_size=8)


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("model", [OwnBackward, NoTrainingLoss, SchedulesItself])
def test_modules_that_do_more_take_the_loops_without_a_word(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = was_direct(monkeypatch)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="DEOptCallback")
        fit(tmp_path, [DEOptCallback("val_loss", population_size=4)], model=model, max_epochs=2)
    assert taken == [False, False]


def test_a_datamodule_that_changes_batches_takes_the_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = was_direct(monkeypatch)
    trainer = L.Trainer(
        max_epochs=1,
        callbacks=[DEOptCallback("val_loss", population_size=4)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Pure(), datamodule=MovesBatches())
    assert taken == [False]
