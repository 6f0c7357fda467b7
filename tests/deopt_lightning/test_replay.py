"""Batches of a generation: kept, or drawn anew for each candidate where they are too many."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from deopt_lightning import DEOptCallback, replay
from deopt_lightning.replay import Redrawn, bytes_of
from tests.deopt_lightning.test_compiled_steps import Interrupt
from tests.deopt_lightning.test_direct_steps import Pure, warmed_up
from tests.deopt_lightning.test_members import Plain, pinned
from tests.tiny import SilentDryRun, fit, same_state, tiny_data, train_loader


@pytest.fixture
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "KEPT_BYTES", 0)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return (tiny_data()[int(i)] for i in torch.randperm(96))


class Augmented(TensorDataset):
    """Adds noise in the main process, and counts how often it is read."""

    def __init__(self) -> None:
        super().__init__(*tiny_data().tensors)
        self.reads = [0]

    def __getitem__(self, index: Any) -> Any:
        self.reads[0] += 1
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(6), y


def augmented() -> DataLoader:
    return DataLoader(Augmented(), batch_size=8, shuffle=True)


def search(folder: Path, *others: Any, **options: Any) -> Any:
    """What a search comes to."""
    names = ("model", "train", "max_epochs", "accumulate_grad_batches", "ckpt_path")
    of_fit = {name: options.pop(name) for name in names if name in options}
    callback = DEOptCallback("val_loss", **{"population_size": 4} | options)
    module, _ = fit(folder, [callback, *others], **{"max_epochs": 3} | of_fit)
    rows = [{**row, "seconds": 0.0} for row in callback.history]
    return module.state_dict(), rows, callback.schedule


def seeded() -> DataLoader:
    return train_loader(generator=torch.Generator().manual_seed(5))


# The Trainer's first epoch begins before anybody sees a loader's own generator or its workers.
LATER = {"warmup_epochs": 2, "max_epochs": 4}
CASES: dict[str, Any] = {
    "shuffled": {},
    "seeded": {"train": seeded, **LATER},
    "augmented": {"train": augmented, "model": Plain},
    "workers": {"train": partial(train_loader, num_workers=1, persistent_workers=True), **LATER},
    "stream": {"train": lambda: DataLoader(Stream(), batch_size=8), "carry": "population"},
    "accumulated": {"accumulate_grad_batches": 5},
    "direct": {"model": Pure},
    "scheduled": {"model": partial(Pure, warmed_up), "max_epochs": 2},
    "stacked": {"model": Pure, "evaluator": "vectorised"},
    "side by side": {"model": Pure, "workers": 2},
    "probes": {"carry": "weights", "probe_steps": 20},  # of more than an epoch's 12 batches
}


@pytest.mark.parametrize("name", CASES)
def test_drawn_anew_they_are_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    runs, drawn = [], []
    make = Redrawn.__init__
    monkeypatch.setattr(Redrawn, "__init__", lambda *args: drawn.append(0) or make(*args))
    for limit in (2**31, 0):
        monkeypatch.setattr(replay, "KEPT_BYTES", limit)
        train = case["train"]() if "train" in case else None
        runs.append(search(tmp_path / str(limit), **{**case, "train": train}))
        assert bool(drawn) is (limit == 0)
    assert same_state(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]


@pytest.mark.usefixtures("nothing_is_kept")
def test_a_resumed_run_draws_what_the_unbroken_one_does(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 3}
    checkpoint = ModelCheckpoint(tmp_path / "broken", save_last=True)
    unbroken = search(tmp_path / "unbroken", train=augmented(), **options)
    with pytest.raises(RuntimeError, match="power cut"):
        search(tmp_path / "broken", checkpoint, Interrupt(), train=augmented(), **options)
    saved = str(tmp_path / "broken" / "last.ckpt")
    resumed = search(tmp_path / "resumed", train=augmented(), ckpt_path=saved, **options)
    assert same_state(unbroken[0], resumed[0])
    assert unbroken[2][-1] == resumed[2][-1]


def with_lock(x: torch.Tensor) -> Any:
    return {"x": x, "lock": threading.Lock()}


def with_generator(x: torch.Tensor) -> Any:
    return SimpleNamespace(x=x, rows=(row for row in x))


def of_a_graph(x: torch.Tensor) -> Any:
    weight = torch.full((6,), 1.5, requires_grad=True)
    return {"x": torch.exp(x * weight).log()}


@pytest.mark.parametrize("wrap", [with_lock, with_generator, of_a_graph])
def test_what_cannot_be_copied_is_drawn_anew(
    wrap: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collate(rows: list[Any]) -> Any:
        x, y = default_collate(rows)
        return wrap(x), y

    class Unwraps(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            found, y = batch
            x = found["x"] if isinstance(found, dict) else found.x
            return super().training_step((x, y), batch_idx)

    options: dict[str, Any] = {"model": Unwraps, "train": train_loader(collate_fn=collate)}
    plain, _ = fit(tmp_path / "plain", **options)
    callback = pinned()
    model, _ = fit(tmp_path / "search", [callback], **options)
    assert same_state(plain.state_dict(), model.state_dict())
    assert [len(set(record["perf"])) for record in callback.history] == [1, 1, 1]


def test_a_tensor_that_is_to_get_a_gradient_gets_one_in_each_member(tmp_path: Path) -> None:
    """Points in space of a physics-informed loss, which differentiates by them."""

    class Smooth(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            assert batch[0].is_leaf
            (slope,) = torch.autograd.grad(loss, batch[0], create_graph=True)
            return loss + slope.square().sum()

    def collate(rows: list[Any]) -> Any:
        x, y = default_collate(rows)
        return x.requires_grad_(), y

    callback = pinned()
    fit(tmp_path, [callback], model=Smooth, train=train_loader(collate_fn=collate))
    assert [len(set(record["perf"])) for record in callback.history] == [1, 1, 1]


@pytest.mark.usefixtures("nothing_is_kept")
@pytest.mark.parametrize("options", [{}, {"carry": "population", "probe_steps": None}])
def test_they_leave_no_trace(options: Any, tmp_path: Path) -> None:
    plain, _ = fit(tmp_path / "plain", train=augmented())
    dry, _ = fit(tmp_path / "dry", [SilentDryRun(**options)], train=augmented())
    assert same_state(plain.state_dict(), dry.state_dict())


@pytest.mark.usefixtures("nothing_is_kept")
def test_members_with_equal_values_see_the_same_noise(tmp_path: Path) -> None:
    values = {"lr_bounds": (0.01, 0.01), "weight_decay_bounds": (0.0, 0.0)}
    loader = augmented()
    rows = search(tmp_path, train=loader, carry="population", max_epochs=1, **values)[1]
    assert len(set(rows[0]["perf"][1:])) == 1  # the leader, who drew amid its steps, saw another
    epochs = 1 + 3  # the Trainer's and the members'
    assert loader.dataset.reads[0] == 96 * epochs + 8  # and a batch, after which none is kept


def test_too_many_to_keep_exclude_workers_beside_those_of_the_loader(
    tmp_path: Path, nothing_is_kept: None
) -> None:
    with pytest.warns(UserWarning, match="goes without worker processes: the training data"):
        search(tmp_path, train=train_loader(num_workers=1), workers=2, max_epochs=1)


def test_a_slice_of_them_ends_the_drawing_and_leaves_random_numbers_alone() -> None:
    ended = []

    def draw() -> Any:
        torch.manual_seed(3)
        try:
            yield from torch.rand(5).split(1)
        finally:
            ended.append(True)

    batches = Redrawn(draw, 5)
    state = torch.get_rng_state()
    assert len(batches[:2]) == 2
    assert ended == [True]
    assert torch.equal(batches[4], list(batches)[4])
    assert torch.equal(torch.get_rng_state(), state)
    assert len(batches) == 5


def test_bytes_are_found_wherever_a_batch_keeps_them() -> None:
    x, array = torch.zeros(3, 2), np.zeros(5)
    graph = SimpleNamespace(nodes=x, parts=[{"edges": array}], name="graph")
    graph.itself = graph
    assert bytes_of((x, [torch.zeros(1), 7], graph, None)) == 24 + 4 + 40  # each of them once
