"""A checkpoint that Lightning writes because of an exception is resumed as if nothing had been."""

from __future__ import annotations

import os
import signal
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint

from deopt_lightning import DEOptCallback
from tests.deopt_lightning.test_resume import comparable, make_callback
from tests.tiny import TinyModel, fit, needs_settled_epochs, same_state

EPOCHS, STEPS = {"max_epochs": 4}, {"max_epochs": -1, "max_steps": 48}


class Interrupted(TinyModel):
    """Ctrl+C while an epoch's end is under way."""

    epoch = 2

    def is_quiet(self) -> bool:
        """Whether a generation asks."""
        return type(self.trainer.fit_loop.epoch_loop).__name__ == "ProbeEpochLoop"

    def interrupt(self, here: bool) -> None:
        if here and self.trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


class WhileTraining(Interrupted):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.interrupt(batch_idx == 1 and self.is_quiet())
        return super().training_step(batch, batch_idx)


class WhileComparing(Interrupted):
    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.interrupt(self.is_quiet())


class WhileValidating(Interrupted):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.interrupt(batch_idx == 2 and not self.is_quiet())
        super().validation_step(batch, batch_idx, dataloader_idx)


class Terminated(WhileTraining):
    def interrupt(self, here: bool) -> None:
        if here and self.trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), signal.SIGTERM)


class AtTheLastEnd(WhileTraining):
    epoch = 3


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def train(carry: str, steps: bool) -> Any:
        callback = make_callback(carry=carry)
        limit = STEPS if steps else EPOCHS
        model, _ = fit(tmp_path_factory.mktemp("unbroken"), [callback], **limit)
        return model.state_dict(), comparable(callback)

    return train


def interrupted(folder: Path, callbacks: list[Any], model: Any, **options: Any) -> str:
    """Trains until the interruption; the path of the checkpoint that it brings about."""
    # Both callbacks that do so have their turn.
    if "save_on_exception" in signature(ModelCheckpoint).parameters and "max_steps" not in options:
        saved: Any = ModelCheckpoint(folder, "on_exception", save_top_k=0, save_on_exception=True)
    else:
        saved = OnExceptionCheckpoint(str(folder))
    with pytest.raises(SystemExit):
        fit(folder, [*callbacks, saved], model=model, **options)
    return str(folder / "on_exception.ckpt")


@pytest.mark.parametrize(
    ("carry", "model", "steps"),
    [
        ("population", WhileTraining, False),
        ("population", WhileTraining, True),
        ("population", WhileComparing, False),
        ("population", WhileComparing, True),
        ("population", WhileValidating, False),
        ("population", WhileValidating, True),
        ("population", AtTheLastEnd, False),
        ("population", Terminated, False),
        ("weights", WhileTraining, False),
        ("weights", WhileComparing, True),
        ("weights", WhileValidating, False),
        ("hyperparameters", WhileComparing, False),
        ("chain", WhileValidating, True),
    ],
)
def test_a_run_interrupted_at_an_epochs_end_goes_on_bit_for_bit(
    carry: str, model: type[TinyModel], steps: bool, unbroken: Any, tmp_path: Path
) -> None:
    limit = STEPS if steps else EPOCHS
    needs_settled_epochs(STEPS)
    path = interrupted(tmp_path, [make_callback(carry=carry)], model, **limit)
    callback = make_callback(carry=carry)
    resumed, _ = fit(tmp_path / "resumed", [callback], ckpt_path=path, seed=99, **limit)
    weights, state = unbroken(carry, steps)
    assert comparable(callback) == state
    assert same_state(resumed.state_dict(), weights)


def test_early_stopping_counts_an_epoch_whose_end_was_interrupted(tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        return [DEOptCallback("val_loss"), EarlyStopping("val_loss", patience=2, min_delta=10)]

    _, trainer = fit(tmp_path / "unbroken", callbacks(), max_epochs=6)
    path = interrupted(tmp_path, callbacks(), WhileTraining, max_epochs=6)
    _, again = fit(tmp_path / "resumed", callbacks(), ckpt_path=path, max_epochs=6)
    assert trainer.current_epoch == again.current_epoch == 3


def test_a_run_without_the_callback_goes_on_from_it(tmp_path: Path) -> None:
    path = interrupted(tmp_path, [DEOptCallback("val_loss")], WhileTraining)
    _, trainer = fit(tmp_path / "resumed", ckpt_path=path)
    assert (trainer.current_epoch, trainer.global_step) == (3, 36)


class Requeued(Interrupted):
    """SLURM says that the job's time is over, while an epoch's end is under way."""

    times = 0  # of the class, since a generation restores a module's own

    def interrupt(self, here: bool) -> None:
        if here and self.trainer.current_epoch == self.epoch and not Requeued.times:
            Requeued.times += 1
            os.kill(os.getpid(), signal.SIGUSR1)


class RequeuedInTraining(Requeued, WhileTraining): ...


class RequeuedInComparison(Requeued, WhileComparing): ...


class RequeuedInValidation(Requeued, WhileValidating): ...


@pytest.mark.parametrize(
    ("carry", "model"),
    [
        ("population", RequeuedInTraining),
        ("population", RequeuedInComparison),
        ("population", RequeuedInValidation),
        ("weights", RequeuedInTraining),
        ("hyperparameters", RequeuedInComparison),
    ],
)
def test_a_requeued_job_goes_on_bit_for_bit(
    carry: str,
    model: type[TinyModel],
    unbroken: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The signal's handler writes the checkpoint; nothing stops the run that has been told."""
    monkeypatch.setattr(Requeued, "times", 0)
    for name, value in {"JOB_ID": 7, "NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    weights, state = unbroken(carry, False)
    for path, build in {None: model, str(tmp_path / "hpc_ckpt_1.ckpt"): TinyModel}.items():
        callback = make_callback(carry=carry)
        fitted, _ = fit(
            tmp_path,
            [callback],
            model=build,
            ckpt_path=path,
            plugins=[SLURMEnvironment(auto_requeue=True)],
            **EPOCHS,
        )
        assert comparable(callback) == state
        assert same_state(fitted.state_dict(), weights)
