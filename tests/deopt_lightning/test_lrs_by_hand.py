"""Lrs that a program's own code writes are a schedule, on which a learned lr is a factor."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import lr_scheduler as schedule

from deopt_lightning import DEOptCallback
from tests.tiny import TinyModel, fit, same_state


class ByHand(TinyModel):
    """Writes lrs that fall with the steps, in one of the places where programs do so."""

    place = "on_train_batch_start"

    def __init__(self) -> None:
        super().__init__(partial(torch.optim.SGD, lr=0.02))

    def lr(self) -> float:
        return 0.02 * 0.98**self.trainer.global_step

    def write(self, place: str) -> None:
        if place == self.place:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = self.lr()

    def on_train_epoch_start(self) -> None:
        self.write("on_train_epoch_start")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.write("on_train_batch_start")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.write("training_step")
        return super().training_step(batch, batch_idx)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
        self.write("optimizer_step")
        super().optimizer_step(epoch, batch_idx, optimizer, closure)


class Multiplies(ByHand):
    place = "nowhere"

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] *= 0.98


class Keeps(ByHand):
    """Steps a scheduler itself, of which Lightning knows nothing."""

    place = "nowhere"

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        self.kept = schedule.LambdaLR(optimizer, lambda step: 0.98**step)
        return optimizer

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.kept.step()


class Configures(ByHand):
    """The same as Lightning would have it."""

    place, interval = "nowhere", "step"

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        share = 1 if self.interval == "step" else 12
        made = schedule.LambdaLR(optimizer, lambda step: 0.98 ** (share * step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": made, "interval": self.interval},
        }


class ConfiguresEpochs(Configures):
    interval = "epoch"


class InSteps(ByHand):
    place = "training_step"


class InOptimizerSteps(ByHand):
    place = "optimizer_step"


class InEpochs(ByHand):
    place = "on_train_epoch_start"


@pytest.mark.parametrize(
    ("model", "same"),
    [
        (ByHand, Configures),
        (InSteps, Configures),
        (InOptimizerSteps, Configures),
        (InEpochs, ConfiguresEpochs),
        (Multiplies, Configures),
        (Keeps, Configures),
    ],
)
def test_lrs_that_a_program_writes_are_a_schedule(model: Any, same: Any, tmp_path: Path) -> None:
    runs = []
    for number, build in enumerate((model, same)):
        callback = DEOptCallback("val_loss", lr_bounds=(2e-4, 0.2))
        found, _ = fit(tmp_path / str(number), [callback], model=build, max_epochs=4)
        runs.append((found.state_dict().values(), [row["perf"] for row in callback.history]))
    (weights, perf), (expected, expected_perf) = runs
    assert all(len(set(row)) > 2 for row in perf)
    for row, expected_row in zip(perf, expected_perf, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-3)
    for left, right in zip(weights, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


class Drops(ByHand):
    """Takes a part of what it finds, and may so come back to about the lr that it began with."""

    place = "nowhere"

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 2:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] *= 0.2


class ConfiguresDrops(ByHand):
    place = "nowhere"

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [schedule.MultiStepLR(optimizer, [2], 0.2)]


def test_a_multiple_of_learned_lrs_is_no_lr_of_its_own(tmp_path: Path) -> None:
    runs = []
    for build in (Drops, ConfiguresDrops):
        callback = DEOptCallback("val_loss", seed=1)
        found, _ = fit(tmp_path / build.__name__, [callback], model=build, max_epochs=4)
        runs.append(callback)
    found, expected = (
        np.array([p for row in run.history for p in row["perf"]], dtype=float) for run in runs
    )
    learned = np.array(list(runs[0].schedule[2]["lr"].values()))
    assert len(set(learned)) > 1
    assert abs(np.log(0.2 * learned.max() / 0.02)) < abs(np.log(0.2))  # near to the first lr
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("model", [ByHand, InEpochs, Multiplies])
def test_a_run_whose_program_writes_lrs_resumes_exactly(model: Any, tmp_path: Path) -> None:
    whole = DEOptCallback("val_loss")
    found, _ = fit(tmp_path / "whole", [whole], model=model, max_epochs=4)
    _, trainer = fit(tmp_path / "part", [DEOptCallback("val_loss")], model=model, max_epochs=2)
    path = tmp_path / "two.ckpt"
    trainer.save_checkpoint(path)
    rest = DEOptCallback("val_loss")
    again, _ = fit(tmp_path / "rest", [rest], model=model, max_epochs=4, ckpt_path=str(path))
    assert same_state(found.state_dict(), again.state_dict())
    assert [row["perf"] for row in rest.history] == [row["perf"] for row in whole.history]


def test_a_program_that_writes_the_lr_of_the_first_group_alone_is_refused(tmp_path: Path) -> None:
    class First(ByHand):
        def write(self, place: str) -> None:
            if place == self.place:
                self.trainer.optimizers[0].param_groups[0]["lr"] = self.lr()

    with pytest.raises(MisconfigurationException, match=r"go over all of optimizer.param_groups"):
        fit(tmp_path, [DEOptCallback("val_loss")], model=First)
