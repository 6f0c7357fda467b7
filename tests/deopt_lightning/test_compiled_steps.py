"""Compiled steps: what direct steps compute, up to rounding, in one graph for all candidates."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader

from deopt_lightning import DEOptCallback, compile_choice
from deopt_lightning.compiled_steps import CompiledStep
from tests.deopt_lightning.test_direct_steps import (
    Clamps,
    ClipsItself,
    EndsEarly,
    Pure,
    scheduled,
    warmed_up,
)
from tests.tiny import fit, same_state, tiny_data

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
FALLBACK = r"DEOptCallback\(compile_steps=True\) takes eager steps: "


def nesterov(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)


def search(folder: Path, model: Any = Pure, *others: Any, **options: Any) -> Any:
    """A run whose epochs end, unless told otherwise, with a batch smaller than the others."""
    samples = options.pop("samples", 92)
    names = ("ckpt_path", "max_epochs", "gradient_clip_val")
    trainer = {name: options.pop(name) for name in names if name in options}
    defaults = {"population_size": 4, "workers": 0, "compile_steps": True}
    callback = DEOptCallback("val_loss", **defaults | options)
    train = DataLoader(tiny_data(samples), batch_size=8, shuffle=True)
    limits = {"max_epochs": 2} | trainer
    module, _ = fit(folder, [callback, *others], model=model, train=train, **limits)
    return callback, module


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes compiling look worth while, however few the steps are."""
    monkeypatch.setattr(compile_choice, "LIKELY_SECONDS", 0.0)
    monkeypatch.setattr(
        compile_choice, "_seconds_each", lambda steps, start: steps.compiled is None
    )


def perf(callback: DEOptCallback) -> Tensor:
    keys = ("target_perf", "trial_perf", "perf")
    rows = [row[key] for row in callback.history for key in keys if key in row]
    return torch.tensor([value for row in rows for value in row])


def assert_equal_but_for_rounding(one: Any, other: Any) -> None:
    torch.testing.assert_close(perf(one[0]), perf(other[0]), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(one[1].state_dict(), other[1].state_dict(), rtol=1e-3, atol=1e-5)


@needs_compiler
@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize(
    ("model", "options"),
    [
        (Pure, {"probe_steps": 1.0}),
        (partial(Pure, nesterov), {"carry": "population", "lr_bounds": (0.001, 0.05)}),
        (partial(Pure, scheduled), {"carry": "population", "lr_bounds": (0.001, 0.05)}),
        (partial(Pure, warmed_up), {"carry": "population", "lr_bounds": (0.001, 0.05)}),
        (Clamps, {"probe_steps": 1.0}),
        (EndsEarly, {"probe_steps": 1.0}),
    ],
)
def test_a_search_equals_that_of_eager_steps_and_compiles_once(
    model: Any, options: Any, tmp_path: Path
) -> None:
    graphs = counters["stats"]["unique_graphs"]
    compiled = search(tmp_path / "compiled", model, **options)
    assert counters["stats"]["unique_graphs"] == graphs + 1
    assert compiled[0].compile_seconds > 0
    eager = search(tmp_path / "eager", model, compile_steps=False, **options)
    assert eager[0].compile_seconds == 0
    assert_equal_but_for_rounding(compiled, eager)


@needs_compiler
def test_a_step_writes_into_the_optimizers_own_state() -> None:
    module = Pure()
    (optimizer,) = [torch.optim.AdamW(module.parameters(), lr=0.01, amsgrad=True)]
    batch = [torch.randn(8, 6), torch.randn(8, 1)]
    module.training_loss(batch).backward()
    optimizer.step()
    before = [[t for t in state.values()] for state in optimizer.state.values()]
    copies = [[t.clone() for t in tensors] for tensors in before]
    step = CompiledStep(module, optimizer, batch)
    for _ in range(2):
        assert step(batch) is not None
    assert step([part[:4] for part in batch]) is None  # another shape
    after = [[t for t in state.values()] for state in optimizer.state.values()]
    for tensors, same, copied in zip(before, after, copies, strict=True):
        assert all(map(lambda a, b: a is b, tensors, same))
        assert not any(map(torch.equal, tensors, copied))
    assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}


class Restores(Pure):
    """Takes a batch apart that is a dict; input and target may be one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 6)
        self.register_buffer("shift", torch.full((6,), 0.5))

    def training_loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.net(batch["given"] + self.shift), batch["wanted"])


def steps_of(batches: list[Any], compiled: bool) -> tuple[list[Tensor], Any]:
    """The weights after a step on each batch."""
    torch.manual_seed(0)
    module = Restores()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    step = CompiledStep(module, optimizer, batches[0]) if compiled else None
    for number, batch in enumerate(batches):
        if number == 0 or step is None:  # the first one makes the optimizer's state
            optimizer.zero_grad()
            module.training_loss(batch).backward()
            optimizer.step()
        else:
            assert step(batch) is not None
    return list(module.parameters()), step


@needs_compiler
@pytest.mark.parametrize("pattern", ["ababab", "aaabab", "abaaba"])
def test_every_step_takes_its_own_batch(pattern: str) -> None:
    """Where one tensor is given twice, which a graph may rely on, and where two are."""
    tensors = torch.randn(12, 8, 6).unbind()
    batches = []
    for pair, kind in zip(zip(tensors[::2], tensors[1::2], strict=True), pattern, strict=True):
        given, wanted = pair if kind == "b" else (pair[0], pair[0])
        batches.append({"given": given, "wanted": wanted})
    weights, _ = steps_of(batches, compiled=True)
    expected, _ = steps_of(batches, compiled=False)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


@needs_compiler
def test_what_a_graph_is_for_is_checked_when_it_begins() -> None:
    batch = dict(zip(("given", "wanted"), torch.randn(2, 8, 6), strict=True))
    _, step = steps_of([batch] * 3, compiled=True)
    checked = step._step

    def checks(*inputs: Any) -> Any:
        calls.append(len(inputs))
        return checked(*inputs)

    calls: list[int] = []
    step._step = checks
    assert step(batch) is not None
    assert len(calls) == 0
    step.begin()
    assert step(batch) is not None
    assert step(batch) is not None
    assert len(calls) == 1
    reordered = {key: batch[key] for key in ("wanted", "given")}
    assert step(reordered) is None
    step(batch)
    assert len(calls) == 2


@needs_compiler
@pytest.mark.usefixtures("pays")
def test_workers_use_the_graph_of_the_main_process(tmp_path: Path) -> None:
    alone = search(tmp_path / "0", probe_steps=5)
    graphs = counters["stats"]["unique_graphs"]
    shared = search(tmp_path / "2", probe_steps=5, workers=2)
    assert counters["stats"]["unique_graphs"] == graphs + 1
    assert torch.equal(perf(alone[0]), perf(shared[0]))
    assert same_state(alone[1].state_dict(), shared[1].state_dict())


class Interrupt(L.Callback):
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise RuntimeError("power cut")


@needs_compiler
def test_a_resumed_run_compiles_as_the_first_one_had_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "broken", save_last=True)
    with monkeypatch.context() as patch:
        patch.setattr(compile_choice, "LIKELY_SECONDS", 0.0)
        patch.setattr(compile_choice, "_seconds_each", lambda steps, start: steps.compiled is None)
        unbroken = search(tmp_path / "unbroken", max_epochs=3)
        with pytest.raises(RuntimeError, match="power cut"):
            search(tmp_path / "broken", Pure, checkpoint, Interrupt(), max_epochs=3)
    saved = str(tmp_path / "broken" / "last.ckpt")
    resumed = search(tmp_path / "resumed", max_epochs=3, ckpt_path=saved)
    assert resumed[0].compile_seconds > 0
    assert torch.equal(perf(unbroken[0]), perf(resumed[0]))
    assert same_state(unbroken[1].state_dict(), resumed[1].state_dict())


def test_few_steps_are_not_compiled(tmp_path: Path) -> None:
    callback, module = search(tmp_path / "1")
    assert callback.compile_seconds == 0
    assert callback.state_dict()["decisions"]["compiled"] is False
    other, plain = search(tmp_path / "2", compile_steps=False)
    assert other.state_dict()["decisions"]["compiled"] is None
    assert same_state(module.state_dict(), plain.state_dict())


class Branches(Pure):
    """Its loss asks for the value of a tensor."""

    def training_loss(self, batch: Any) -> Tensor:
        loss = super().training_loss(batch)
        return 2 * loss if float(loss.detach()) > 0.5 else loss


class ComputesOtherwise(Pure):
    """Its loss is another one in a graph."""

    def training_loss(self, batch: Any) -> Tensor:
        loss = super().training_loss(batch)
        return 1.1 * loss if torch.compiler.is_compiling() else loss


@needs_compiler
@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (Branches, {}, "torch cannot compile training_loss"),
        (ComputesOtherwise, {}, "its results differ from those of eager steps"),
        (ClipsItself, {}, "gradients are clipped"),
        (Pure, {"gradient_clip_val": 0.1}, "gradients are clipped"),
        (partial(Pure, partial(torch.optim.RMSprop, lr=0.01)), {}, "RMSprop is not among"),
    ],
)
def test_what_cannot_be_compiled_takes_eager_steps_after_one_warning(
    model: Any, options: Any, reason: str, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=FALLBACK + reason) as caught:
        _, module = search(tmp_path / "1", model, **options)
    assert sum("DEOptCallback" in str(warning.message) for warning in caught) == 1
    _, plain = search(tmp_path / "2", model, compile_steps=False, **options)
    assert same_state(module.state_dict(), plain.state_dict())


class Anneals(Pure):
    """Its loss depends on a number that changes with every epoch."""

    factor = 1.0

    def on_train_epoch_start(self) -> None:
        self.factor = 1.0 + self.current_epoch

    def training_loss(self, batch: Any) -> Tensor:
        return self.factor * super().training_loss(batch)


class AnnealsEachStep(Anneals):
    """Its loss depends on a number that changes within an epoch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.factor = 1.0 + (batch_idx > 2)


@needs_compiler
@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize("model", [Anneals, AnnealsEachStep])
def test_a_graph_that_no_longer_holds_is_not_used(model: Any, tmp_path: Path) -> None:
    graphs = counters["stats"]["unique_graphs"]
    compiled = search(tmp_path / "1", model, max_epochs=3)
    assert counters["stats"]["unique_graphs"] == graphs + 1
    eager = search(tmp_path / "2", model, max_epochs=3, compile_steps=False)
    assert_equal_but_for_rounding(compiled, eager)


class SaysMetrics(Pure):
    """Is validated without Lightning's loop."""

    def validation_metrics(self, batches: Any) -> dict[str, Tensor]:
        losses = [(self.training_loss(batch), len(batch[0])) for batch in batches]
        return {"val_loss": sum(x * n for x, n in losses) / sum(n for _, n in losses)}


class Wavers(SaysMetrics):
    """Its loss depends on a number that a validation changes."""

    factor = 1.0

    def on_validation_end(self) -> None:
        self.factor = 2.0

    def training_loss(self, batch: Any) -> Tensor:
        return self.factor * super().training_loss(batch)


@needs_compiler
@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize(
    ("model", "options", "checks"),
    [
        (SaysMetrics, {"carry": "weights"}, "a generation"),
        (Wavers, {"carry": "weights"}, "a candidate"),
        (Pure, {"carry": "weights"}, "a candidate"),  # by the loop, which calls more hooks
        (SaysMetrics, {"carry": "population"}, "a candidate"),
    ],
)
def test_what_a_graph_is_for_is_checked_as_often_as_it_may_change(
    model: Any, options: Any, checks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[CompiledStep] = []
    check = CompiledStep._checked

    def count(step: CompiledStep, *inputs: Any) -> Any:
        checked.append(step)
        return check(step, *inputs)

    more = {"samples": 96} | ({"probe_steps": 3} if options["carry"] == "weights" else {})
    monkeypatch.setattr(CompiledStep, "_checked", count)
    compiled = search(tmp_path / "1", model, max_epochs=8, **options, **more)
    eager = search(tmp_path / "2", model, max_epochs=8, compile_steps=False, **options, **more)
    assert_equal_but_for_rounding(compiled, eager)
    candidates = sum(row["evaluations"] for row in compiled[0].history)
    generations = len(compiled[0].history)
    if checks == "a generation":
        assert generations <= len(checked) < generations + 10  # some when it is chosen
    else:
        assert len(checked) >= candidates


def test_without_a_compiler_steps_are_eager_after_one_warning(tmp_path: Path) -> None:
    """In a process of its own, since torch looks for a compiler once."""
    test = "test_in_a_process_without_a_compiler"
    variables = {"PATH": "", "CXX": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{test}"],
        env={**os.environ, **variables, "DEOPT_NO_COMPILER": "1"},
        check=True,
    )


@pytest.mark.skipif("DEOPT_NO_COMPILER" not in os.environ, reason="run by the test above")
@pytest.mark.usefixtures("pays")
def test_in_a_process_without_a_compiler(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback, module = search(tmp_path / "1")
    (message,) = [str(w.message) for w in caught if "DEOptCallback" in str(w.message)]
    assert "torch finds no C++ compiler" in message
    assert callback.compile_seconds == 0
    _, plain = search(tmp_path / "2", compile_steps=False)
    assert same_state(module.state_dict(), plain.state_dict())
