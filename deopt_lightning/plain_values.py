"""Plain values: numbers, strings, tensors, arrays and built-in containers, kept and put back.

What is kept of a value is the value itself where it cannot change, else a function that gives back
the very same object with the contents that it had. A container of nothing but numbers and strings,
such as a vocabulary, is copied as a whole, and like an array once only while it does not change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from functools import cache, partial
from operator import is_
from typing import Any
from weakref import ReferenceType, WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from deopt_lightning.random_state import (
    Generator,
    generator_state,
    is_generator,
    is_kind_of_generator,
    set_generator_state,
)

Restorer = partial[Any]  # its first argument is the very object that it restores
Kept = Any  # a restorer, or a value that cannot change

_IMMUTABLE = (bool, int, float, complex, str, bytes, type(None), np.generic, ReferenceType)
_USUAL = frozenset(_IMMUTABLE)
_NESTED_IMMUTABLE = (tuple, frozenset)

_SHARED_FROM = 100  # items; to share a smaller copy takes longer than to make one

# What was last kept of a container or array, by its id, for snapshots to share until it changes.
_last_kept: WeakValueDictionary[int, Restorer] = WeakValueDictionary()


def is_plain(value: object) -> bool:
    """Whether a value is made of numbers, strings, tensors, arrays and built-in containers only.

    Random generators count as plain: their state is a value. Arrays of objects do not, nor other
    kinds of arrays, such as files mapped into memory. Containers may hold modules, too: a place in
    a list is put back, a module's state is not. Keys of dicts may be parameters, as in an
    optimizer's state.
    """
    # Mypy takes a class for no more hashable than its instances.
    told = _told_by_type(type(value))  # type: ignore[arg-type]
    if told is not None:
        return told
    if isinstance(value, torch.Tensor):
        return not isinstance(value, nn.Parameter)
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    if isinstance(value, dict):
        return _are_plain(value, (nn.Module, nn.Parameter)) and _are_plain(value.values())
    assert isinstance(value, Collection)
    return _are_plain(value)


@cache
def _told_by_type(kind: type) -> bool | None:
    """Whether values of a type are plain; None where that depends on what they hold."""
    if kind is torch.Tensor or issubclass(kind, _IMMUTABLE):
        return True
    if issubclass(kind, torch.Tensor):  # by whose kind a parameter cannot always be told
        return None
    if kind is np.ndarray or issubclass(kind, dict | list | tuple | set | frozenset | deque):
        return None
    return is_kind_of_generator(kind)


def records_of(values: Iterable[Any]) -> list[object]:
    """A program's own objects, of plain values and modules only, among values that are not plain.

    Those in containers count, too; frozen dataclasses do not, nor datasets, which may be large.
    """
    found: list[object] = []
    for value in values:
        items = value.values() if isinstance(value, dict) else value
        is_container = isinstance(value, dict | list | tuple | deque)
        found += [item for item in (items if is_container else [value]) if _is_record(item)]
    return found


def _is_record(value: object) -> bool:
    attributes = getattr(value, "__dict__", None)
    if not attributes or isinstance(value, nn.Module | type | Dataset):
        return False
    if getattr(getattr(value, "__dataclass_params__", None), "frozen", False):
        return False
    return _are_plain(attributes.values(), (nn.Module, nn.Parameter))


def keep_attributes(owner: object, internals: frozenset[str]) -> dict[str, Kept]:
    """What is kept of an object's plain attributes.

    Args:
        owner: The object.
        internals: Names of attributes that are left out.
    """
    return {
        name: keep(value)
        for name, value in vars(owner).items()
        if name not in internals and is_plain(value)
    }


def put_back_attributes(owner: object, kept: dict[str, Kept], internals: frozenset[str]) -> None:
    """Puts back what `keep_attributes` returned; plain attributes that are new are deleted."""
    attributes = vars(owner)
    new = [name for name in attributes if name not in kept and name not in internals]
    for name in new:
        if is_plain(attributes[name]):
            del attributes[name]
    attributes.update(
        {name: put_back(value) if type(value) is partial else value for name, value in kept.items()}
    )


def keep(value: Any) -> Kept:
    """What `put_back` needs to give back a plain value as it is now."""
    if isinstance(value, torch.Tensor):
        return partial(_restore_tensor, value, value.detach().clone())
    if isinstance(value, np.ndarray):
        return _keep_array(value) if value.flags.writeable else value
    if isinstance(value, dict):
        if _are_immutable(value.values()):
            return _keep_flat(value)
        return partial(_restore_dict, value, {key: keep(item) for key, item in value.items()})
    if isinstance(value, list | deque):
        if _are_immutable(value):
            return _keep_flat(value)
        return partial(_restore_sequence, value, [keep(item) for item in value])
    if isinstance(value, set):
        return _keep_flat(value)
    if isinstance(value, tuple) and not _are_immutable(value):
        return partial(_restore_tuple, value, [keep(item) for item in value])
    if is_generator(value):
        return partial(_restore_generator, value, generator_state(value))
    return value


def put_back(kept: Kept) -> Any:
    """The very same object that was kept, with the contents that it had."""
    return kept() if isinstance(kept, partial) else kept


def overwrite(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Writes into a tensor; where it is expanded, once into each place in memory.

    Args:
        tensor: Any tensor; no gradient is to flow.
        values: Of the same shape.
    """
    tensor = tensor.detach()
    for dim, stride in enumerate(tensor.stride() if tensor.layout == torch.strided else ()):
        if stride == 0 and tensor.shape[dim] > 1:  # torch refuses to write to it as it is
            tensor, values = tensor.narrow(dim, 0, 1), values.narrow(dim, 0, 1)
    tensor.copy_(values)


def originals_of(kept: Kept) -> list[object]:
    """All that putting back would write to, modules in containers, and copies that are shared."""
    if isinstance(kept, nn.Module):
        return [kept]
    if not isinstance(kept, partial):
        return []
    value, copy = kept.args
    if kept.func in (_restore_flat, _restore_array):
        return [value, kept]
    if kept.func in (_restore_tensor, _restore_generator):
        return [value]
    items = copy.values() if isinstance(copy, dict) else copy
    return [value, *(part for item in items for part in originals_of(item))]


def _are_plain(values: Collection[Any], others: tuple[type, ...] = (nn.Module,)) -> bool:
    """Whether values are plain or of one of the other types."""
    return _are_immutable(values) or all(
        isinstance(value, others) or is_plain(value) for value in values
    )


def _are_immutable(values: Iterable[Any]) -> bool:
    """Whether values are numbers and strings, and tuples of these; looks at types only."""
    while True:
        types = set(map(type, values))
        if types <= _USUAL or all(issubclass(kind, _IMMUTABLE) for kind in types):
            return True
        if not all(issubclass(kind, _IMMUTABLE + _NESTED_IMMUTABLE) for kind in types):
            return False
        nested = (value for value in values if isinstance(value, _NESTED_IMMUTABLE))
        values = [item for value in nested for item in value]


def _keep_flat(value: Any) -> Restorer:
    """Keeps a container whose items cannot change."""
    last = _last_kept.get(id(value))
    if last is not None and _has_contents(value, last.args[1]):
        return last
    copy = dict(value) if isinstance(value, dict) else tuple(value)
    return _shared(partial(_restore_flat, value, copy), len(value))


def _keep_array(value: NDArray[Any]) -> Restorer:
    last = _last_kept.get(id(value))
    if last is not None and _has_bits(value, last.args[1]):
        return last
    return _shared(partial(_restore_array, value, value.copy(order="K")), value.size)


def _shared(kept: Restorer, items: int) -> Restorer:
    """Lets later snapshots share a copy; as long as it is there, so is the object and its id."""
    if items >= _SHARED_FROM:
        _last_kept[id(kept.args[0])] = kept
    return kept


def _has_contents(value: Any, contents: Any) -> bool:
    """Whether a container has the very same items, in the same order."""
    if len(value) != len(contents) or not all(map(is_, value, contents)):
        return False
    return not isinstance(value, dict) or all(map(is_, value.values(), contents.values()))


def _restore_flat(value: Any, contents: Any) -> Any:
    if not _has_contents(value, contents):
        value.clear()
        (value.extend if isinstance(value, list | deque) else value.update)(contents)
    return value


def _has_bits(value: NDArray[Any], copy: NDArray[Any]) -> bool:
    """Whether arrays are equal bit for bit, NaN included."""
    if (value.shape, value.dtype) != (copy.shape, copy.dtype):
        return False
    if value.nbytes == 0:
        return True
    kind = np.int64 if value.nbytes % 8 == 0 else np.int8
    bits, others = (
        np.ascontiguousarray(array).reshape(-1).view(np.int8).view(kind) for array in (value, copy)
    )
    return np.array_equal(bits, others)


def _restore_array(value: NDArray[Any], copy: NDArray[Any]) -> NDArray[Any]:
    """The very same array, but for one that has another shape now."""
    if (value.shape, value.dtype) != (copy.shape, copy.dtype):
        return copy.copy()
    if not _has_bits(value, copy):
        np.copyto(value, copy)
    return value


def _restore_tensor(value: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    overwrite(value, copy)
    return value


def _restore_generator(value: Generator, state: Any) -> Generator:
    set_generator_state(value, state)
    return value


def _restore_dict(value: dict[Any, Any], items: dict[Any, Kept]) -> dict[Any, Any]:
    contents = {key: put_back(item) for key, item in items.items()}
    value.clear()
    value.update(contents)
    return value


def _restore_sequence(value: Any, items: list[Kept]) -> Any:
    contents = [put_back(item) for item in items]
    value.clear()
    value.extend(contents)
    return value


def _restore_tuple(value: tuple[Any, ...], items: list[Kept]) -> tuple[Any, ...]:
    for item in items:
        put_back(item)
    return value
