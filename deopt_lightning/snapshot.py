"""Snapshot: everything that training or validation changes, taken aside and put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from deopt_lightning.plain_values import (
    Kept,
    keep_attributes,
    originals_of,
    overwrite,
    put_back_attributes,
    records_of,
)
from deopt_lightning.random_state import Generator, RandomState

SCHEDULED_OPTIONS = ("lr", "momentum", "betas")  # group options that LR schedulers write
_NUMBERS = frozenset((bool, int, float, type(None)))
Buffers = dict[str, torch.Tensor | None]
_MODULE_INTERNALS = frozenset(vars(nn.Module())) - {"training"}


class Stateful(Protocol):
    """Anything with a state of its own, such as the precision plugin's gradient scaler."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts the state back."""


@dataclass(frozen=True)
class Snapshot:
    """State of model, optimizers and random generators at one moment.

    Holds copies of all parameters, those of the optimizers that lie outside of the model included,
    and buffers (persistent or not), of the optimizers' state and group options, of plain values and
    tensors among the modules' attributes (counters, metric states) and in objects of a program's
    own there, and of the random generators. Modules that only a list or dict of another one holds
    are part of the model here; optimizers inside of optimizers, and optimizers' plain attributes,
    are part of the optimizers' state. Memory: one copy of model and optimizer state.

    Take one with ``Snapshot.take``; ``restore`` writes it back in place, any number of times.
    """

    modules: list[nn.Module]
    tensors: list[tuple[torch.Tensor, torch.Tensor]]
    gradients: list[tuple[torch.Tensor, torch.Tensor | None]]
    buffers: list[tuple[nn.Module, Buffers]]
    attributes: list[tuple[object, dict[str, Kept]]]
    optimizers: list[tuple[Optimizer, dict[torch.Tensor, dict[str, Any]], list[dict[str, Any]]]]
    optimizer_attributes: list[tuple[Optimizer, dict[str, Kept]]]
    stateful: list[tuple[Stateful, dict[str, Any]]]
    schedulers: list[tuple[Stateful, dict[str, Any]]]
    random: RandomState

    @classmethod
    def take(
        cls,
        module: nn.Module,
        optimizers: Iterable[Optimizer],
        stateful: Iterable[Stateful] = (),
        generators: Iterable[Generator] = (),
        schedulers: Iterable[Stateful] = (),
        beside: Iterable[object] = (),
        gradients: bool = False,
        device: str | None = None,
    ) -> Snapshot:
        """Copies the present state.

        Args:
            module: The model.
            optimizers: Its optimizers.
            stateful: Further objects with a state, for example the precision plugin.
            generators: Random generators beside the global ones, for example data loaders' own.
            schedulers: LR schedulers.
            beside: Objects that follow the weights, such as a callback that averages them: their
                plain attributes and the modules that they hold are part of the state.
            gradients: Whether gradients are part of the state; else they are dropped.
            device: Where the copies of parameters, buffers and optimizer state of their shape are
                kept; by default where these are.
        """
        beside, optimizers = list(beside), _with_inner(optimizers)
        modules = [module, *(m for o in beside for m in vars(o).values() if _is_module(m, module))]
        with torch.no_grad():
            attributes = _keep_all_attributes([*modules, *beside])
            submodules = [owner for owner, _ in attributes if isinstance(owner, nn.Module)]
            parameters = _distinct(
                [p for m in submodules for p in m.parameters(recurse=False)]
                + [p for o in optimizers for group in o.param_groups for p in group["params"]]
            )
            kept = parameters + _distinct(b for m in submodules for b in m.buffers(recurse=False))
            return cls(
                modules=modules,
                tensors=[(tensor, _clone(tensor, device)) for tensor in kept],
                gradients=[(p, _copy(p.grad)) for p in parameters] if gradients else [],
                buffers=[(owner, buffers_of(owner).copy()) for owner in submodules],
                attributes=attributes,
                optimizers=[_take_optimizer(optimizer, device) for optimizer in optimizers],
                optimizer_attributes=[
                    (optimizer, keep_attributes(optimizer, _optimizer_internals()))
                    for optimizer in optimizers
                ],
                stateful=[(part, _copy(part.state_dict())) for part in stateful],
                schedulers=[(part, _copy(part.state_dict())) for part in schedulers],
                random=RandomState.take(generators),
            )

    def restore(self) -> None:
        """Writes everything back in place."""
        with torch.no_grad():
            for owner, attributes in self.attributes:
                put_back_attributes(owner, attributes, _MODULE_INTERNALS)
        self._restore_learned(keep=())  # some of it may lie among the attributes
        with torch.no_grad():
            for parameter, gradient in self.gradients:
                parameter.grad = _copy(gradient)
        for scheduler, state in self.schedulers:
            scheduler.load_state_dict(_copy(state))
        self.random.restore()

    def restore_weights(self) -> None:
        """Writes back what training learns: parameters, buffers, optimizers, gradient scaler.

        Metric states, counters, random generators, LR schedulers and the options that they write
        stay as they are; gradients are dropped.
        """
        self._restore_learned(keep=SCHEDULED_OPTIONS)

    def _restore_learned(self, keep: tuple[str, ...]) -> None:
        with torch.no_grad():
            for owner, buffers in self.buffers:
                if not same_buffers(live := buffers_of(owner), buffers):
                    live.clear()
                    live.update(buffers)
            for tensor, saved in self.tensors:
                overwrite(tensor, saved)
                tensor.grad = None
            for optimizer, state, groups in self.optimizers:
                _restore_optimizer(optimizer, state, groups, keep)
            for optimizer, attributes in self.optimizer_attributes:
                put_back_attributes(optimizer, attributes, _optimizer_internals())
        for part, part_state in self.stateful:
            part.load_state_dict(_copy(part_state))

    def drop_gradients(self) -> None:
        """Drops the present gradients of parameters that had none; nothing else is written."""
        for parameter, gradient in self.gradients:
            if gradient is None:
                parameter.grad = None

    @property
    def nbytes(self) -> int:
        """Size of the copies of parameters, buffers and optimizer state."""
        states = [entries for _, state, _ in self.optimizers for entries in state.values()]
        values = [v for e in states for v in (e.values() if isinstance(e, dict) else [e])]
        copies = [*(copy for _, copy in self.tensors), *values]
        return sum(copy.nbytes for copy in copies if isinstance(copy, torch.Tensor))

    def originals(self) -> list[object]:
        """All that the snapshot would write to: modules, tensors, containers, generators, ..."""
        found: list[object] = [owner for owner, _ in self.attributes]
        found += [tensor for tensor, _ in self.tensors]
        found += [b for _, buffers in self.buffers for b in buffers.values() if b is not None]
        for _, attributes in (*self.attributes, *self.optimizer_attributes):
            for kept in attributes.values():
                found += originals_of(kept)
        found += [optimizer for optimizer, _, _ in self.optimizers]
        found += [part for part, _ in (*self.stateful, *self.schedulers)]
        found += [generator for generator, _ in self.random.generators]
        return found

    @contextmanager
    def restored_on_exit(self) -> Iterator[None]:
        """Restores when the block ends, also after an exception."""
        try:
            yield
        finally:
            self.restore()


def same_values(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether tensors are equal, NaN where the other has NaN included, on whatever devices."""
    right = right.to(left.device)
    if torch.equal(left, right):
        return True
    may_hold_nan = left.shape == right.shape and left.is_floating_point()
    return may_hold_nan and torch.allclose(left, right, rtol=0, atol=0, equal_nan=True)


def buffers_of(module: nn.Module) -> Buffers:
    """The very dict in which a module holds its own buffers, by name; None for one to come.

    What torch has in public for it does not tell one to come from none.
    """
    found: Buffers = vars(module)["_buffers"]
    return found


def same_buffers(left: Buffers, right: Buffers) -> bool:
    """Whether the very same tensors stand under the same names."""
    return left.keys() == right.keys() and all(left[name] is right[name] for name in left)


def _is_module(value: object, model: nn.Module) -> bool:
    return isinstance(value, nn.Module) and value is not model


def _keep_all_attributes(owners: Iterable[object]) -> list[tuple[object, dict[str, Kept]]]:
    """What is kept of the owners' attributes, and of all modules' and records' in them."""
    waiting = list(owners)
    found: dict[int, tuple[object, dict[str, Kept]]] = {}
    for owner in waiting:  # which becomes longer
        for part in owner.modules() if isinstance(owner, nn.Module) else [owner]:
            if id(part) not in found:
                attributes = keep_attributes(part, _MODULE_INTERNALS)
                found[id(part)] = part, attributes
                held = [each for kept in attributes.values() for each in originals_of(kept)]
                waiting += [each for each in held if isinstance(each, nn.Module)]
                waiting += records_of(
                    value
                    for name, value in vars(part).items()
                    if name not in attributes and name not in _MODULE_INTERNALS
                )
    return list(found.values())


def _distinct(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


# --- optimizers ----------------------------------------------------------------------------------


@cache
def _optimizer_internals() -> frozenset[str]:
    """Names of what every optimizer has; state and groups among it are kept in their own way."""
    return frozenset(vars(torch.optim.SGD([torch.zeros(1)])))


def _with_inner(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """The optimizers, and those that they hold with a state of their own."""
    found = list(optimizers)
    states = {id(optimizer.state) for optimizer in found}
    for optimizer in found:  # which becomes longer
        for inner in vars(optimizer).values():
            if isinstance(inner, Optimizer) and id(inner.state) not in states:
                states.add(id(inner.state))
                found.append(inner)
    return found


def _take_optimizer(
    optimizer: Optimizer, device: str | None
) -> tuple[Optimizer, dict[torch.Tensor, dict[str, Any]], list[dict[str, Any]]]:
    state = {
        parameter: {
            key: _clone(value, device) if _is_like(value, parameter) else _copy(value)
            for key, value in entries.items()
        }
        if isinstance(parameter, torch.Tensor)
        else _copy(entries)  # by a name of its own, of all parameters
        for parameter, entries in optimizer.state.items()
    }
    groups = [
        {key: _copy(value) for key, value in group.items() if key not in ("params", "param_names")}
        for group in optimizer.param_groups
    ]
    return optimizer, state, groups


def _restore_optimizer(
    optimizer: Optimizer,
    state: dict[torch.Tensor, dict[str, Any]],
    groups: Sequence[dict[str, Any]],
    keep: tuple[str, ...],
) -> None:
    for parameter in [p for p in optimizer.state if p not in state]:
        del optimizer.state[parameter]
    for parameter, saved in state.items():
        if isinstance(parameter, torch.Tensor):
            _restore_entries(optimizer.state[parameter], saved, parameter=parameter)
        else:
            optimizer.state[parameter] = _copy(saved)
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        _restore_entries(group, saved, keep=("params", "param_names", *keep))


def _is_like(value: Any, parameter: torch.Tensor) -> bool:
    """Whether an entry of the optimizer's state lies where its parameter lies, unlike counts."""
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape == parameter.shape


def _clone(tensor: torch.Tensor, device: str | torch.device | None) -> torch.Tensor:
    """A copy on a device, the tensor's own by default."""
    return tensor.detach().to(device or tensor.device, copy=True)


def _copy(value: Any) -> Any:
    """A deep copy of dicts, lists and tensors; anything else is kept as it is."""
    if type(value) in _NUMBERS:
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def _restore_entries(
    entries: dict[str, Any],
    saved: dict[str, Any],
    keep: tuple[str, ...] = (),
    parameter: torch.Tensor | None = None,
) -> None:
    """Restores a dict but for what to keep; tensors of equal shape and type keep their storage.

    What is like the parameter goes to its device.
    """
    for key in [k for k in entries if k not in saved and k not in keep]:
        del entries[key]
    for key, value in saved.items():
        if key in keep:
            continue
        if not isinstance(value, torch.Tensor):
            entries[key] = _copy(value)
            continue
        current = entries.get(key)
        if isinstance(current, torch.Tensor) and (
            (current.shape, current.dtype) == (value.shape, value.dtype)
        ):
            current.copy_(value)
        elif parameter is not None and _is_like(value, parameter):
            entries[key] = _clone(value, parameter.device)
        else:
            entries[key] = _copy(value)
