"""Random generators: their state taken aside and put back."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import ChainDataset, ConcatDataset, Dataset, Sampler

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_DATA_PARTS = ("dataset", "sampler", "batch_sampler")


@dataclass(frozen=True)
class RandomState:
    """States of the global random generators, and of further ones such as data loaders' own."""

    generators: list[tuple[Generator, Any]]
    rng: dict[str, Any]

    @classmethod
    def take(
        cls, generators: Iterable[Generator] = (), rng: dict[str, Any] | None = None
    ) -> RandomState:
        """Copies the present state, but for the global generators' if an earlier one is given."""
        return cls([(g, generator_state(g)) for g in generators], rng or rng_state())

    def restore(self) -> None:
        """Writes the state back."""
        for generator, state in self.generators:
            set_generator_state(generator, state)
        _set_native(self._native)

    @cached_property
    def _native(self) -> _Native:
        return _native(self.rng)


def is_generator(value: object) -> bool:
    """Whether a value is a random generator that has a state."""
    return is_kind_of_generator(type(value))


def is_kind_of_generator(kind: type) -> bool:
    """The same by the value's type."""
    return issubclass(kind, Generator) and not issubclass(kind, random.SystemRandom)


def generators_of(loaders: Iterable[Any]) -> list[Generator]:
    """The random generators that data loaders, their samplers and their datasets own."""
    found: dict[int, Generator] = {}
    seen: dict[int, Any] = {}
    waiting = list(loaders)
    waiting += [getattr(loader, name, None) for loader in waiting for name in _DATA_PARTS]
    for owner in waiting:  # which becomes longer
        if id(owner) not in seen:
            seen[id(owner)] = owner
            held = list(getattr(owner, "__dict__", {}).values())
            found.update({id(value): value for value in held if is_generator(value)})
            held += owner.datasets if isinstance(owner, ConcatDataset | ChainDataset) else []
            waiting += [value for value in held if isinstance(value, Dataset | Sampler)]
    return list(found.values())


def generator_state(generator: Generator) -> Any:
    """A copy of a random generator's state."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def set_generator_state(generator: Generator, state: Any) -> None:
    """Puts back what ``generator_state`` returned."""
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def seed_generator(generator: Generator, seed: int) -> None:
    """Seeds a random generator of any kind."""
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    else:
        generator.seed(seed)


def seed_all(generators: Iterable[Generator], seed: int) -> None:
    """Seeds torch's global generator and further ones."""
    torch.manual_seed(seed)
    for generator in generators:
        seed_generator(generator, seed)


def rng_state() -> dict[str, Any]:
    """States of the global generators of torch (every device), NumPy and Python.

    Plain types and tensors only, so that it can be part of a checkpoint.
    """
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), np.asarray(keys).tolist(), *(float(value) for value in rest)],
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Puts back what ``rng_state`` returned."""
    _set_native(_native(state))


class _Native(NamedTuple):
    """The states of `rng_state` in the types that torch, NumPy and Python take."""

    torch: torch.Tensor
    cuda: list[torch.Tensor]
    numpy: tuple[Any, ...]
    python: tuple[Any, ...]


def _native(state: dict[str, Any]) -> _Native:
    name, keys, position, has_gauss, cached = state["numpy"]
    version, internal, gauss = state["python"]
    return _Native(
        state["torch"].cpu(),
        [each.cpu() for each in state["cuda"]],
        (name, np.array(keys, dtype=np.uint32), int(position), int(has_gauss), cached),
        (version, tuple(internal), gauss),
    )


def _set_native(state: _Native) -> None:
    torch.set_rng_state(state.torch)
    if state.cuda:
        torch.cuda.set_rng_state_all(state.cuda)
    np.random.set_state(state.numpy)
    random.setstate(state.python)


def torch_rng_state(device: torch.device) -> list[torch.Tensor]:
    """States of torch's generators that a process with one device draws from."""
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *own]


def set_torch_rng_state(states: list[torch.Tensor], device: torch.device) -> None:
    """Puts back what ``torch_rng_state`` returned, here or on another process of its kind."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
