"""A snapshot's weights in plain form, as a checkpoint stores them, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from deopt_lightning.snapshot import SCHEDULED_OPTIONS, Snapshot


def to_plain(snapshot: Snapshot) -> dict[str, Any]:
    """What Lightning's own checkpoints hold of a model, of a snapshot instead.

    As there, plain attributes of optimizers are missing; optimizers inside of them are not.

    Returns:
        Parameters, persistent buffers, optimizer and other states, in types that a safe
        `torch.load` accepts. The tensors are the snapshot's own.
    """
    model = snapshot.modules[0]
    saved = {id(tensor): copy for tensor, copy in snapshot.tensors}
    parameters = _named(snapshot)
    names = {id(parameter): name for name, parameter in parameters.items()}
    own = {id(parameter) for parameter in model.parameters()}
    return {
        "modules": [
            {name: saved[id(t)] for name, t in live.items() if id(t) in saved}
            for live in _live(snapshot)
        ],
        "optimizers": [
            {names[id(p)]: entries for p, entries in state.items() if isinstance(p, torch.Tensor)}
            for _, state, _ in snapshot.optimizers
        ],
        "outside": {n: saved[id(p)] for n, p in parameters.items() if id(p) not in own},
        "of_all_parameters": [
            {key: value for key, value in state.items() if not isinstance(key, torch.Tensor)}
            for _, state, _ in snapshot.optimizers
        ],
        "options": [groups for _, _, groups in snapshot.optimizers],
        "stateful": [state for _, state in snapshot.stateful],
    }


def from_plain(plain: dict[str, Any], present: Snapshot) -> Snapshot:
    """A snapshot with the plain form's states, and with the present ones of all else.

    Args:
        plain: What `to_plain` returned.
        present: A snapshot of the model as it is.
    """
    parameters = _named(present)
    places = {id(tensor): copy.device for tensor, copy in present.tensors}
    copies = {
        id(live[name]): copy
        for live, saved in zip(_live(present), plain["modules"], strict=True)
        for name, copy in saved.items()
    }
    copies |= {id(parameters[n]): copy for n, copy in plain.get("outside", {}).items()}
    tensors = [
        (tensor, _like(copies.get(id(tensor), copy), copy)) for tensor, copy in present.tensors
    ]
    earlier = [groups for _, _, groups in present.optimizers]  # versions that kept no options
    options = plain.get("options", earlier)
    others = plain.get("of_all_parameters", [{}] * len(options))
    optimizers = [
        (
            optimizer,
            {
                (parameter := parameters[name]): _on(entries, parameter, places[id(parameter)])
                for name, entries in state.items()
            }
            | of_all,
            groups,
        )
        for (optimizer, _, _), state, of_all, groups in zip(
            present.optimizers, plain["optimizers"], others, options, strict=True
        )
    ]
    parts = [part for part, _ in present.stateful]
    stateful = list(zip(parts, plain["stateful"], strict=True))
    return replace(present, tensors=tensors, optimizers=optimizers, stateful=stateful)


def with_learned(present: Snapshot, learned: Snapshot) -> Snapshot:
    """A snapshot with what training had learned in one, and all else of another.

    Args:
        present: A snapshot of the model as it is.
        learned: Another snapshot of it, whose weights, optimizers and other states are taken, with
            the options of their groups that no LR scheduler writes: some optimizers count there.
    """
    optimizers = [
        (optimizer, state, list(map(_scheduled_as, own, groups)))
        for (optimizer, _, groups), (_, state, own) in zip(
            present.optimizers, learned.optimizers, strict=True
        )
    ]
    return replace(
        present,
        tensors=learned.tensors,
        buffers=learned.buffers,
        optimizers=optimizers,
        optimizer_attributes=learned.optimizer_attributes,
        stateful=learned.stateful,
    )


def _scheduled_as(own: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    return own | {key: present[key] for key in SCHEDULED_OPTIONS if key in present}


def _named(snapshot: Snapshot) -> dict[Any, torch.Tensor]:
    """The model's parameters by name, and the optimizers' others by their places."""
    named: dict[Any, torch.Tensor] = dict(snapshot.modules[0].named_parameters())
    own = {id(parameter) for parameter in named.values()}
    for index, (optimizer, _, _) in enumerate(snapshot.optimizers):
        rows = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        named |= {(index, row): p for row, p in enumerate(rows) if id(p) not in own}
    return named


def _live(snapshot: Snapshot) -> list[dict[str, torch.Tensor]]:
    """The tensors themselves of each module's `state_dict`."""
    return [module.state_dict(keep_vars=True) for module in snapshot.modules]


def _like(value: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    return value.to(present.device, present.dtype)


def _on(entries: dict[str, Any], parameter: torch.Tensor, device: torch.device) -> dict[str, Any]:
    """Entries of an optimizer's state on a device, but for step counts."""
    return {
        key: value.to(device)
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
        else value
        for key, value in entries.items()
    }
