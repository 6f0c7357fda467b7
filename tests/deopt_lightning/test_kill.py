"""A run that is killed without warning resumes from its last checkpoint as if nothing had been."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from deopt_lightning import DEOptCallback
from tests.tiny import TinyModel, fit, needs_settled_epochs, same_state

EPOCHS, STEPS = {"max_epochs": 4}, {"max_epochs": -1, "max_steps": 48}


def power_cut() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class InEpoch(TinyModel):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.current_epoch == 2 and batch_idx == 5:
            power_cut()


class InGeneration(TinyModel):
    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        probing = type(self.trainer.fit_loop.epoch_loop).__name__ == "ProbeEpochLoop"
        if self.trainer.current_epoch == 2 and probing:
            power_cut()


class InWrite(TinyModel):
    """The file is half written when its last entry pulls the plug."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.trainer.current_epoch == 2:
            checkpoint["last entry"] = PulledPlug()


class PulledPlug:
    def __reduce__(self) -> Any:
        power_cut()


def make_callback(carry: str) -> DEOptCallback:
    options: dict[str, Any] = {} if carry == "population" else {"probe_steps": 2}
    return DEOptCallback("val_loss", population_size=4, carry=carry, **options)


def killed(folder: Path, model: type[TinyModel], carry: str, limit: dict[str, int]) -> int | None:
    """Trains in a process of its own until it is killed; returns its exit code."""
    callbacks = [make_callback(carry), ModelCheckpoint(folder, save_last=True)]

    def train() -> None:
        torch.set_num_threads(1)
        fit(folder, callbacks, model=model, **limit)

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def train(carry: str, steps: bool) -> Any:
        folder = tmp_path_factory.mktemp("unbroken")
        callback = make_callback(carry)
        model, _ = fit(folder, [callback], **(STEPS if steps else EPOCHS))
        return model.state_dict(), picture(callback), rows(folder)

    return train


@pytest.mark.parametrize(
    ("carry", "model", "steps"),
    [
        ("weights", InEpoch, False),
        ("weights", InGeneration, False),
        ("weights", InWrite, False),
        ("weights", InEpoch, True),
        ("weights", InGeneration, True),
        ("population", InEpoch, False),
        ("population", InGeneration, True),
        ("population", InWrite, True),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(
    carry: str, model: type[TinyModel], steps: bool, unbroken: Any, tmp_path: Path
) -> None:
    limit = STEPS if steps else EPOCHS
    needs_settled_epochs(limit)
    assert killed(tmp_path, model, carry, limit) == -signal.SIGKILL
    last = tmp_path / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 1

    callback = make_callback(carry)
    resumed, _ = fit(tmp_path / "resumed", [callback], ckpt_path=str(last), seed=99, **limit)
    weights, state, log = unbroken(carry, steps)
    assert same_state(resumed.state_dict(), weights)
    assert picture(callback) == state
    tail = rows(tmp_path / "resumed")
    if steps:  # Lightning's logs count one step more after such a resume, also without a search
        tail, log = (by_epoch(table) for table in (tail, log))
    assert {row["epoch"] for row in tail} >= {"2", "3"}
    assert tail == log[-len(tail) :]


def picture(callback: DEOptCallback) -> Any:
    """Everything that the callback would store, in comparable form, but for the time it took."""
    state = callback.state_dict()
    state["rng"], state["search"] = str(state["rng"]), str(state["search"])
    state["history"] = [{**record, "seconds": 0} for record in state["history"]]
    return state


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def by_epoch(table: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows of epochs' ends, without the logger's step."""
    return [{**row, "step": ""} for row in table if not row["train_loss_step"]]
