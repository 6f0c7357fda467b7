"""A generation's batches, for each candidate to train on: kept, or drawn anew if they cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any, overload

import lightning.pytorch as pl
import numpy as np
import torch

from deopt_lightning.random_state import RandomState

KEPT_BYTES = 2**31
"""So much of batches is kept in memory, in each process."""

Batches = Sequence[Any]
"""What a generation trains on."""

Draw = Callable[[], Iterator[Any]]
"""Draws a generation's batches, the same each time, from random states that it sets itself."""


class Redrawn(Sequence[Any]):
    """Batches that are drawn from the loaders whenever they are gone through.

    The global random generators are those of drawing only while a batch is drawn, so the batches
    are the same each time, and so is what training draws in between.

    Args:
        draw: Draws them.
        count: How many there are.
    """

    def __init__(self, draw: Draw, count: int) -> None:
        self._draw = draw
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        drawn, of_drawing = self._draw(), RandomState.take()
        for _ in range(self._count):
            of_training = RandomState.take()
            of_drawing.restore()
            try:
                batch = next(drawn)
            finally:
                of_drawing = RandomState.take()
                of_training.restore()
            yield batch

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return list(islice(self, index.start, index.stop, index.step))
        return next(islice(self, index, None))

    def first(self, count: int) -> Redrawn:
        """The first of them, which are drawn anew as well."""
        return Redrawn(self._draw, min(count, len(self)))


class Record:
    """Copies of batches that are kept one after the other, until they are too many.

    Attributes:
        batches: Those so far; None if they were too many, or hold what cannot be copied.
    """

    def __init__(self) -> None:
        self.batches: list[Any] | None = []
        self._bytes = 0

    def add(self, batch: Any) -> bool:
        """Keeps a copy of a batch; returns whether it could."""
        self._bytes += bytes_of(batch)
        if self.batches is None or self._bytes > KEPT_BYTES:
            self.batches = None
            return False
        try:
            self.batches.append(copy_batch(batch))
        except Exception:  # whatever the objects in it raise: a lock, a generator, a graph's tensor
            self.batches = None
        return self.batches is not None


def keep_or_redraw(
    trainer: pl.Trainer, draw: Draw, count: int, recorded: list[Any] | None = None
) -> Batches:
    """A generation's batches; a list of them if all processes can keep theirs.

    Args:
        trainer: The Trainer.
        draw: Draws them.
        count: How many there are.
        recorded: The batches, if they have been kept.
    """
    if recorded is None:
        record = Record()
        all(map(record.add, draw()))  # up to the first that cannot be kept
        recorded = record.batches
    if trainer.strategy.reduce_boolean_decision(recorded is not None, all=True):
        assert recorded is not None
        return recorded
    return Redrawn(draw, count)


def arrays_of(batch: Any) -> Iterator[Any]:
    """The tensors and arrays of a batch, also those among an object's attributes, each once."""
    seen, waiting = set(), [batch]
    for part in waiting:  # which becomes longer
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, torch.Tensor | np.ndarray):
            yield part
        elif isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
        else:
            waiting += getattr(part, "__dict__", {}).values()


def bytes_of(batch: Any) -> int:
    """What the tensors and arrays of a batch take."""
    return sum(array.nbytes for array in arrays_of(batch))


class Replay:
    """Yields a copy of each kept batch, since a step may change its batch in place.

    Not a list on purpose: CombinedLoader takes a list for a collection of loaders.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.batches)
        return batches if isinstance(self.batches, Redrawn) else map(copy_batch, batches)


def copy_batch(batch: Any) -> Any:
    """A deep copy, several times faster than `deepcopy` for tensors in built-in containers.

    Raises:
        Exception: As `deepcopy` does, also for a tensor whose gradient goes back to others.
    """
    if isinstance(batch, torch.Tensor) and not batch.requires_grad:
        return batch.clone()
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(copy_batch, batch))
    if type(batch) in (tuple, list):
        return type(batch)(map(copy_batch, batch))
    if type(batch) is dict:
        return {key: copy_batch(value) for key, value in batch.items()}
    return deepcopy(batch)
