"""Results as bytes, from one process to another of which it is a fork."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import torch

_AS_ARRAYS = (torch.float32, torch.float64, torch.int32, torch.int64, torch.bool, torch.uint8)


def packed(result: Any, known: Sequence[object]) -> memoryview:
    """A result as bytes.

    Args:
        result: Anything that can be pickled.
        known: Objects that it may refer to, and that both processes have.
    """
    buffer = io.BytesIO()
    _Pickler(buffer, known).dump(result)
    return buffer.getbuffer()


def unpacked(data: bytes, known: Sequence[object]) -> Any:
    """The result, which refers to the very objects that are known here."""
    return _Unpickler(io.BytesIO(data), known).load()


class _Pickler(pickle.Pickler):
    """Writes known objects as their places in the table; forked processes agree on them.

    Tensors are written as arrays where they can be, in a tenth of the time.
    """

    def __init__(self, file: io.BytesIO, known: Sequence[object]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._places = {id(thing): place for place, thing in enumerate(known)}

    def persistent_id(self, thing: object) -> int | None:
        return self._places.get(id(thing))

    def reducer_override(self, thing: object) -> Any:
        if type(thing) is torch.Tensor and thing.dtype in _AS_ARRAYS and _is_bare(thing):
            return torch.from_numpy, (thing.numpy(),)
        return NotImplemented


def _is_bare(tensor: torch.Tensor) -> bool:
    """Whether there is no more to a tensor than numbers in CPU memory, one after another."""
    plain = tensor.device.type == "cpu" and tensor.layout is torch.strided
    return plain and tensor.is_contiguous() and not (tensor.requires_grad or vars(tensor))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, known: Sequence[object]) -> None:
        super().__init__(file)
        self._known = known

    def persistent_load(self, place: int) -> object:
        return self._known[place]
