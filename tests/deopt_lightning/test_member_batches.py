"""Members train on the batches that the Trainer trains on, and each on batches left whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from tests.deopt_lightning.test_members import Plain, pinned
from tests.tiny import Recorder, fit, same_state, tiny_data


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize("form", [list, tuple, lambda pair: Pair(*pair), lambda p: {"main": p}])
def test_a_step_that_overwrites_its_batch_harms_no_other_member(form: Any, tmp_path: Path) -> None:
    class Scribbles(Plain):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            for tensor in batch["main"] if isinstance(batch, dict) else batch:
                tensor.zero_()

    train = DataLoader(
        tiny_data(),
        batch_size=8,
        shuffle=True,
        collate_fn=lambda rows: form(torch.utils.data.default_collate(rows)),
    )
    callback = pinned()
    fit(tmp_path, [callback], model=Scribbles, max_epochs=2, train=train)
    assert [len(set(record["perf"])) for record in callback.history] == [1, 1]


class ByEpoch(Sampler[int]):
    """An order that depends on the epoch it is told, as that of a DistributedSampler."""

    epoch = 0

    def __len__(self) -> int:
        return 96

    def __iter__(self) -> Iterator[int]:
        order = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(96, generator=order).tolist())

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


@pytest.mark.parametrize("sampler", [None, ByEpoch()])
def test_members_see_the_batches_that_the_leader_saw(
    sampler: ByEpoch | None, tmp_path: Path
) -> None:
    train = DataLoader(tiny_data(), batch_size=8, sampler=sampler, shuffle=sampler is None)
    options = {"max_epochs": 2, "num_sanity_val_steps": 0, "train": train}
    model, _ = fit(tmp_path, [pinned()], model=Recorder, **options)
    steps = model.seen.steps
    assert len(steps) == 2 * 4 * 12
    for epoch in (0, 48):
        leader, *others = np.array_split(np.arange(epoch, epoch + 48), 4)
        for other in others:
            for mine, his in zip(leader, other, strict=True):
                assert steps[mine][0] == steps[his][0]  # global step
                assert torch.equal(steps[mine][1], steps[his][1])  # batch
        for other in others[1:]:
            for left, right in zip(others[0], other, strict=True):
                assert torch.equal(steps[left][2], steps[right][2])  # random draw


class Draws(Recorder):
    """Loads data early, and draws as an epoch begins."""

    def configure_optimizers(self) -> Any:
        assert self.trainer.estimated_stepping_batches == 36
        return super().configure_optimizers()

    def on_train_epoch_start(self) -> None:
        self.noise = torch.randn(3)


class Stream(IterableDataset[Any]):
    """Gives other samples each time that it is read."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        for _ in range(96):
            self.position += 1
            x = torch.randn(6, generator=torch.Generator().manual_seed(self.position))
            yield x, x[:1]


@pytest.mark.parametrize(
    ("model", "train"),
    [
        (Draws, lambda: DataLoader(tiny_data(), batch_size=8, shuffle=True)),
        (
            Recorder,
            lambda: DataLoader(
                tiny_data(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(5)
            ),
        ),
        (Recorder, lambda: DataLoader(Stream(), batch_size=8)),
    ],
    ids=["draws", "own generator", "stream"],
)
def test_members_see_the_very_batches_that_the_trainer_took(
    model: Any, train: Any, tmp_path: Path
) -> None:
    """However their order came about, and without reading the data once more."""
    options = {"model": model, "max_epochs": 3, "num_sanity_val_steps": 0}
    plain, _ = fit(tmp_path / "plain", train=train(), **options)
    found, _ = fit(tmp_path / "search", [pinned(adopt=False)], train=train(), **options)
    assert same_state(plain.state_dict(), found.state_dict())
    batches = [step[1] for step in found.seen.steps]
    assert len(batches) == 3 * 4 * 12
    for epoch in range(3):
        own = [step[1] for step in plain.seen.steps[12 * epoch : 12 * (epoch + 1)]]
        for member in range(4):
            start = 48 * epoch + 12 * member
            assert all(map(torch.equal, batches[start : start + 12], own))


def test_an_epoch_that_finds_the_data_read_up_has_no_generation(tmp_path: Path) -> None:
    def once() -> DataLoader[Any]:
        rows = iter([tiny_data()[row] for row in range(96)])

        class Once(IterableDataset[Any]):
            def __iter__(self) -> Iterator[Any]:
                return rows

        return DataLoader(Once(), batch_size=8)

    plain, _ = fit(tmp_path / "plain", train=once(), model=Plain, num_sanity_val_steps=0)
    callback = pinned()
    options = {"train": once(), "model": Plain, "num_sanity_val_steps": 0}
    model, _ = fit(tmp_path / "search", [callback], **options)
    assert [row["epoch"] for row in callback.history] == [0]
    assert same_state(plain.state_dict(), model.state_dict())
