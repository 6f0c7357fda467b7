from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

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
        (lambda: ([1], (2, [3])), lambda v: v[1][1].append(4)),
        (lambda: [(1, [2]), {"a": [{"b": {3}}]}], lambda v: v[1]["a"][0]["b"].clear()),
    ],
)
def test_containers_of_all_kinds_come_back(
    make: Callable[[], Any], change: Callable[[Any], object]
) -> None:
    value, expected = make(), repr(make())
    holder = Holder(value)
    snapshot = Snapshot.take(holder, [])
    for _ in range(2):
        change(value)
        assert repr(value) != expected
        snapshot.restore()
        assert holder.value is value
        assert repr(value) == expected
