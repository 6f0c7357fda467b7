"""Copies of states go to the CPU's memory where a GPU has no room for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from deopt_lightning import DEOptCallback, placement
from deopt_lightning.placement import room_beside_training
from tests.tiny import fit, same_state

PARAMETERS = 6 * 8 + 8 + 2 * 8 + 8 + 1
# Weights and Adam's two averages, a step count for each of six tensors, and batch norm's buffers.
COPY = 4 * 3 * PARAMETERS + 4 * 6 + 4 * 2 * 8 + 8


def search(folder: Path, **options: Any) -> tuple[Any, DEOptCallback]:
    callback = DEOptCallback("val_loss", **{"population_size": 4} | options)
    model, _ = fit(folder, [callback], max_epochs=2)
    return model.state_dict(), callback


@pytest.mark.parametrize("options", [{}, {"carry": "weights", "probe_steps": 2}])
def test_the_choice_by_room_that_is_given(
    options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, free = search(tmp_path / "plain", snapshot_device=None, **options)
    assert free.state_dict()["decisions"]["on_cpu"] is None
    most = 2 if options else 2 * 4 + 6
    for room, on_cpu in ((most * COPY, False), (most * COPY - 1, True)):
        monkeypatch.setattr(placement, "room_beside_training", lambda device, room=room: room)
        caplog.clear()
        with caplog.at_level("INFO"):
            found, callback = search(tmp_path / str(room), **options)
        assert callback.state_dict()["decisions"]["on_cpu"] is on_cpu
        said = [text for text in caplog.messages if "in the CPU's memory" in text]
        assert len(said) == int(on_cpu)  # once, of two generations
        assert same_state(plain, found)


@pytest.mark.parametrize("carry", ["population", "weights"])
def test_snapshots_on_the_cpu_change_nothing(carry: str, tmp_path: Path) -> None:
    runs = []
    for device in (None, "cpu"):
        callback = DEOptCallback("val_loss", population_size=4, carry=carry, snapshot_device=device)
        model, _ = fit(tmp_path / str(device), [callback], max_epochs=2)
        runs.append((model.state_dict(), callback.schedule))
    assert same_state(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_other_snapshot_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"snapshot_device must be one of .*; got 'disk'"):
        DEOptCallback("val_loss", snapshot_device="disk")


def test_other_devices_have_room() -> None:
    assert room_beside_training(torch.device("cpu")) == float("inf")


def test_room_is_what_the_peak_of_training_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic, which a CPU never comes to, with numbers that are given."""
    numbers = {"mem_get_info": (60, 100), "memory_reserved": 30, "max_memory_allocated": 25}
    for name, number in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, number=number: number)
    assert room_beside_training(torch.device("cuda")) == 100 - 10 - 25  # 10 are others'


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_room_shrinks_by_what_is_taken() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.reset_peak_memory_stats(device)
    before = room_beside_training(device)
    taken = torch.zeros(2**26, device=device)
    assert room_beside_training(device) <= before - taken.nbytes + 2**22
