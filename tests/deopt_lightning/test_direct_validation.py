"""Direct validation: what Lightning's loop would log, without it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from deopt_lightning import DEOptCallback, generation
from tests.tiny import TinyModel, fit, moving_average, same_state, val_loader


class SaysMetrics(TinyModel):
    """Validates with random noise; the loss is a mean over batches, the error over samples."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        noisy = batch[0] + 0.1 * torch.rand(1), batch[1]
        super().validation_step(noisy, batch_idx, dataloader_idx)

    def validation_metrics(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        losses, sizes = [], []
        for x, y in batches:
            prediction = self(x + 0.1 * torch.rand(1)).float()
            self.val_error.update(prediction, y)
            losses.append(torch.nn.functional.mse_loss(prediction, y) * len(x))
            sizes.append(len(x))
        error = self.val_error.compute()
        self.val_error.reset()
        return {"val_loss": sum(losses) / sum(sizes), "val_error": error}


class KeepsPartInEval(SaysMetrics):
    """Has a part that does not follow the mode of the rest."""

    def on_train_epoch_start(self) -> None:
        self.norm.eval()


class Prepares(SaysMetrics):
    """Needs its hooks: what they keep is subtracted, and must be gone in training."""

    kept = 0.0

    def on_validation_start(self) -> None:
        self.kept = float(self.last.bias.detach())

    def on_validation_end(self) -> None:
        self.kept = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - self.kept


def was_direct(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Notes for each generation whether it validated directly."""
    taken: list[bool] = []
    make = generation.Probe

    def note(loops: Any, train: Any, evaluate: Any, *others: Any) -> Any:
        taken.append(evaluate != loops.validate)
        return make(loops, train, evaluate, *others)

    monkeypatch.setattr(generation, "Probe", note)
    return taken


def run(folder: Path, **options: Any) -> tuple[Any, ...]:
    """Everything that a run of two epochs came to."""
    callback = DEOptCallback(
        "val_loss",
        population_size=4,
        carry=options.pop("carry", "weights"),
        direct_steps=options.pop("direct", True),
    )
    callbacks = [callback, *options.pop("callbacks", [])]
    module, trainer = fit(folder, callbacks, max_epochs=2, **{"model": SaysMetrics} | options)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in callback.history]
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    modes = {name: part.training for name, part in module.named_modules()}
    return module.state_dict(), rows, callback.schedule, logged, modes, vars(module).get("kept")


@pytest.mark.parametrize("carry", ["weights", "population"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit_val_batches": 2},
        {"precision": "bf16-mixed"},
        {"model": KeepsPartInEval},
        {"model": Prepares},
        {"val": partial(val_loader, shuffle=True)},
        {"check_val_every_n_epoch": 2},
    ],
)
def test_direct_validation_changes_no_bit_of_a_run(
    options: dict[str, Any], carry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = was_direct(monkeypatch)
    make_val = options.get("val", val_loader)
    loop, direct = (
        run(tmp_path / str(direct), **options | {"val": make_val()}, carry=carry, direct=direct)
        for direct in (False, True)
    )
    assert taken == [False, False, True, True]
    assert same_state(loop[0], direct[0])
    assert loop[1:] == direct[1:]


class LeavesOut(SaysMetrics):
    def validation_metrics(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        return {"val_loss": super().validation_metrics(batches)["val_loss"]}


class Exaggerates(SaysMetrics):
    def validation_metrics(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        return {k: v * (1 + 1e-6) for k, v in super().validation_metrics(batches).items()}


class OfPredictions(SaysMetrics):
    """Has a method of that name for something else."""

    def validation_metrics(self, prediction: Any, y: Any) -> Any:  # type: ignore[override]
        return None


class DrawsMore(SaysMetrics):
    def validation_metrics(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        metrics = super().validation_metrics(batches)
        torch.rand(1)
        return metrics


class DrawsMoreOfNumPy(SaysMetrics):
    def validation_metrics(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        np.random.rand()
        return super().validation_metrics(batches)


class LogsInHook(SaysMetrics):
    def on_validation_epoch_start(self) -> None:
        self.log("started", 1.0)


class SwapsWeights(SaysMetrics):
    """Validates other weights, and puts its own back in a hook that a direct validation skips."""

    def on_validation_epoch_start(self) -> None:
        self.own = self.last.weight.detach().clone()
        self.last.weight.data.mul_(0.5)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.last.weight.data.copy_(self.own)


class Counts(SaysMetrics):
    """Keeps a number in a hook that a direct validation skips."""

    validated = 0

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.validated += 1


@pytest.mark.parametrize(
    "model",
    [
        LeavesOut,
        Exaggerates,
        DrawsMore,
        DrawsMoreOfNumPy,
        OfPredictions,
        LogsInHook,
        SwapsWeights,
        Counts,
    ],
)
def test_metrics_that_are_not_those_of_the_validation_are_found_out(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = was_direct(monkeypatch)
    with pytest.warns(UserWarning, match=rf"{model.__name__}\.validation_metrics\(batches\) does"):
        run(tmp_path, model=model)
    assert taken == [False, False]


class OwnBatchHook(SaysMetrics):
    def on_validation_batch_end(self, *_: Any) -> None:
        pass


class Diverged(SaysMetrics):
    def validation_metrics(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        raise FloatingPointError("scores are NaN")


@pytest.mark.parametrize(
    "options",
    [
        {"model": TinyModel},
        {"model": OwnBatchHook},
        {"model": Diverged},
        {"val": [val_loader(), val_loader()]},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_validations_that_are_more_take_the_loop_without_a_word(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = was_direct(monkeypatch)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="DEOptCallback")
        run(tmp_path, **options)
    assert taken == [False, False]


def test_averaged_weights_take_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = was_direct(monkeypatch)
    run(tmp_path, callbacks=[moving_average()])
    assert taken == [False, False]


class ChangesItsMind(SaysMetrics):
    """Says what validation logs until the third epoch."""

    def validation_metrics(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        metrics = super().validation_metrics(batches)
        return metrics if self.current_epoch < 3 else {k: 2 * v for k, v in metrics.items()}


def test_the_promise_is_tested_again_in_later_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = was_direct(monkeypatch)
    callback = DEOptCallback("val_loss", population_size=4, carry="weights")
    with pytest.warns(UserWarning, match=r"ChangesItsMind\.validation_metrics"):
        fit(tmp_path, [callback], model=ChangesItsMind, max_epochs=5)
    assert taken == [True, True, True, False, False]


class SaysFloats(SaysMetrics):
    def validation_metrics(self, batches: Iterable[Any]) -> dict[str, Any]:
        return {name: float(v) for name, v in super().validation_metrics(batches).items()}


def test_metrics_may_be_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others read them as tensors, where a member's are adopted."""
    taken = was_direct(monkeypatch)
    stopping = EarlyStopping("val_loss")
    _, rows, *_ = run(tmp_path, model=SaysFloats, callbacks=[stopping], carry="population")
    assert taken == [True, True]
    assert rows[-1]["leader"] != 0


class InDouble(SaysMetrics):
    """Trains and logs in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", torch.nn.functional.mse_loss(self(batch[0]), batch[1].double()))

    def on_validation_epoch_end(self) -> None:
        pass

    def validation_metrics(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        sums = [len(x) * torch.nn.functional.mse_loss(self(x), y.double()) for x, y in batches]
        return {"val_loss": sum(sums) / 32}


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_metrics_may_be_in_double_precision(
    default: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = was_direct(monkeypatch)
    torch.set_default_dtype(default)
    try:
        run(tmp_path, model=InDouble)
    finally:
        torch.set_default_dtype(torch.float32)
    assert taken == [True, True]
