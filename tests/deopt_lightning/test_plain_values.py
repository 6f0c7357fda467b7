from __future__ import annotations

import sys
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from deopt_lightning.snapshot import Snapshot


class Holder(nn.Module):
    """A module without weights that has one attribute."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def test_a_vocabulary_is_copied_as_a_whole_and_once() -> None:
    words = {f"word {i}": i for i in range(10_000)}
    holder = Holder([words, list(words), [(word, (i,)) for word, i in words.items()]])
    blocks = sys.getallocatedblocks()
    first = Snapshot.take(holder, [])
    copied = sys.getallocatedblocks() - blocks
    second = Snapshot.take(holder, [])
    shared = sys.getallocatedblocks() - blocks - copied
    assert copied < len(words) / 2  # it would take several blocks to keep a word on its own
    assert shared < len(words) / 2
    kept = [snapshot.attributes[0][1]["value"].args[1] for snapshot in (first, second)]
    assert all(a is b for a, b in zip(*kept, strict=True))


def test_a_shared_copy_is_of_its_own_moment() -> None:
    numbers = list(range(1000))
    holder = Holder(numbers)
    first, again = Snapshot.take(holder, []), Snapshot.take(holder, [])
    numbers[5] = -1
    second = Snapshot.take(holder, [])
    numbers.clear()
    second.restore()
    assert numbers[5] == -1
    again.restore()
    assert holder.value is numbers
    assert numbers == list(range(1000))
    numbers[1] = True  # equal, but not the same
    assert numbers == list(range(1000))
    first.restore()
    assert numbers[1] is not True


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: {"a": 1, "b": 2}, lambda v: v.update(a=v.pop("a"))),  # the order
        (lambda: {"a": 1, "b": 2}, lambda v: v.update(a=3, c=4)),
        (lambda: OrderedDict(a=1, b=2), lambda v: v.move_to_end("a")),
        (lambda: Counter("aab"), lambda v: v.update("abc")),
        (lambda: defaultdict(list, a=[1], b=[]), lambda v: v["b"].append(v["c"])),
        (lambda: deque([1, 2], maxlen=2), lambda v: v.append(3)),
        (lambda: [float("nan"), None, b"x", 1j], lambda v: v.reverse()),
        (lambda: {1, "a", (2, frozenset({3}))}, lambda v: v.add(5)),
        (lambda: np.array([0.0, np.nan]), lambda v: np.negative(v, out=v)),
        (lambda: np.arange(300.0).reshape(2, 150).T, lambda v: v.fill(0)),
        (lambda: np.zeros(2, dtype="U3,i8"), lambda v: v["f0"].fill("abc")),
        (lambda: {"a": [np.ones(2), np.float32(1)]}, lambda v: v["a"].append(np.zeros(3))),
        (lambda: [np.float64(1), np.array(2)], lambda v: v[1].fill(3)),
        (lambda: ([1], (2, [3])), lambda v: v[1][1].append(4)),
        (lambda: [(1, [2]), {"a": [{"b": {3}}]}], lambda v: v[1]["a"][0]["b"].clear()),
    ],
)
def test_containers_of_all_kinds_come_back(
    make: Callable[[], Any], change: Callable[[Any], object]
) -> None:
    value, expected = make(), shown(make())
    holder = Holder(value)
    snapshot = Snapshot.take(holder, [])
    for _ in range(2):
        change(value)
        assert shown(value) != expected
        snapshot.restore()
        assert holder.value is value
        assert shown(value) == expected


def shown(value: Any) -> str:
    """All that is in a container; a set's own order is another in each process."""
    return repr(sorted(map(repr, value)) if isinstance(value, set) else value)


class Average:
    """A program's own object."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model, self.total, self.count = model, 0.0, 0
        self.references = [weakref.ref(self)]
        self.seen = {"last": torch.zeros(1)}

    def update(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1
        self.seen["last"] = self.seen["last"] + value
        self.late = value


@dataclass
class Fields:
    count: int = 0

    def update(self, value: float) -> None:
        self.count += 1


@pytest.mark.parametrize(
    ("make", "get"),
    [
        (Average, lambda value: value),
        (lambda: Average(nn.Linear(1, 1)), lambda value: value),
        (Fields, lambda value: value),
        (lambda: {"loss": Average()}, lambda value: value["loss"]),
        (lambda: [1, Fields()], lambda value: value[1]),
    ],
)
def test_a_programs_own_objects_come_back(make: Any, get: Any) -> None:
    holder = Holder(make())
    own = get(holder.value)
    own.update(1.0)
    before = {**vars(own), "seen": str(getattr(own, "seen", None))}
    snapshot = Snapshot.take(holder, [])
    own.update(2.0)
    snapshot.restore()
    assert get(holder.value) is own
    assert {**vars(own), "seen": str(getattr(own, "seen", None))} == before


def test_datasets_and_what_is_frozen_are_left_alone() -> None:
    @dataclass(frozen=True)
    class Frozen:
        values: list[int]

    class Rows(Dataset[int]):
        def __init__(self) -> None:
            self.values = [1]

    owners = [Frozen([1]), Rows()]
    snapshot = Snapshot.take(Holder(owners), [])
    for owner in owners:
        owner.values.append(2)
    snapshot.restore()
    assert [owner.values for owner in owners] == [[1, 2], [1, 2]]


def test_an_array_is_copied_once_while_it_does_not_change() -> None:
    array, constant = np.arange(1000.0), np.broadcast_to(np.zeros(1), 1000)
    holder = Holder([array, constant])
    first, again = Snapshot.take(holder, []), Snapshot.take(holder, [])
    array[0] = -0.0  # equal, but for its bits
    second = Snapshot.take(holder, [])
    kept = [snapshot.attributes[0][1]["value"].args[1] for snapshot in (first, again, second)]
    assert kept[0][0] is kept[1][0] is not kept[2][0]
    assert all(each[1] is constant for each in kept)
    array.resize(3, refcheck=False)
    first.restore()
    assert holder.value[0].tolist() == list(range(1000))
    assert not np.signbit(holder.value[0][0])


def test_arrays_of_objects_and_mapped_files_are_left_alone(tmp_path: Path) -> None:
    objects = np.array([nn.Linear(1, 1), None], dtype=object)
    mapped = np.memmap(tmp_path / "file", dtype=np.int8, mode="w+", shape=10)
    for value in (objects, mapped):
        snapshot = Snapshot.take(holder := Holder([value]), [])
        assert snapshot.attributes[0][1].keys() == {"training"}
        holder.value.append(1)
        snapshot.restore()
        assert len(holder.value) == 2
