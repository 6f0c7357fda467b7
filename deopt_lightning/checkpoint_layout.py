"""Checkpoints hold the user's own parameter groups, so that they load with or without DE-Opt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch.optim import Optimizer

from deopt_lightning.lr_schedule import regroup
from deopt_lightning.param_groups import GroupSplit, options_of

_OWN_KEYS = ("params", "param_names", "name")
_OURS = ("params", "name", "lr_multiplier")  # keys that a split group has for our sake


def checkpoint_to_user_layout(
    checkpoint: dict[str, Any], splits: Mapping[int, GroupSplit], owners: Sequence[int]
) -> None:
    """Rewrites optimizer and scheduler states in place, from split groups to the user's.

    Args:
        checkpoint: As Lightning writes it.
        splits: How optimizers were split, by their index.
        owners: For each LR scheduler the index of its optimizer.
    """
    states = checkpoint["optimizer_states"]
    for index, split in splits.items():
        states[index] = optimizer_to_user_layout(states[index], split)
        first = [split.user_index.index(user) for user in range(len(split.user_options))]
        for state in _scheduler_states(checkpoint, owners, index):
            regroup(state, first, old_count=len(split.user_index))


def checkpoint_to_split_layout(
    checkpoint: dict[str, Any],
    splits: Mapping[int, GroupSplit],
    owners: Sequence[int],
    optimizers: Mapping[int, Optimizer],
) -> None:
    """Rewrites optimizer and scheduler states in place, from the user's groups to split ones."""
    states = checkpoint["optimizer_states"]
    for index, split in splits.items():
        states[index] = optimizer_to_split_layout(states[index], split, optimizers[index])
        for state in _scheduler_states(checkpoint, owners, index):
            regroup(state, split.user_index, old_count=len(split.user_options))


def _scheduler_states(
    checkpoint: dict[str, Any], owners: Sequence[int], index: int
) -> list[dict[str, Any]]:
    """States of an optimizer's schedulers, those that callbacks brought along included.

    A scheduler that a callback has put in belongs to the only optimizer.
    """
    states = list(checkpoint["lr_schedulers"])
    states = [s for s, owner in zip_longest(states, owners, fillvalue=0) if s and owner == index]
    brought = [
        state.get("scheduler_state")
        for state in checkpoint.get("callbacks", {}).values()
        if isinstance(state, dict)
    ]
    return states + [state for state in brought if isinstance(state, dict) and index == 0]


def optimizer_to_user_layout(state: Mapping[str, Any], split: GroupSplit) -> dict[str, Any]:
    """Converts a split optimizer's ``state_dict`` to the user's groups.

    The user's own lr and weight decay stand in it; the learned ones are in the callback's state.
    Under a scheduler the lr is the scheduled one, which is the same in all parts of a group.
    """
    users_own = ("weight_decay",) if split.scheduled else ("weight_decay", "lr")
    groups, start = [], 0
    for user_index, options in enumerate(split.user_options):
        part = state["param_groups"][split.user_index.index(user_index)]
        kept = {key: value for key, value in part.items() if key in options or key not in _OURS}
        own = {key: options[key] for key in (*users_own, *_OWN_KEYS) if key in options}
        size = split.user_sizes[user_index]
        groups.append({**kept, **own, "params": list(range(start, start + size))})
        start += size
    per_parameter = {split.user_order[index]: value for index, value in state["state"].items()}
    return {**state, "state": dict(sorted(per_parameter.items())), "param_groups": groups}


def optimizer_to_split_layout(
    state: Mapping[str, Any], split: GroupSplit, optimizer: Optimizer
) -> dict[str, Any]:
    """Converts a ``state_dict`` in the user's groups to the groups of the split optimizer.

    Raises:
        ValueError: If the checkpoint was written with other parameter groups.
    """
    saved = state["param_groups"]
    sizes = tuple(len(group["params"]) for group in saved)
    if sizes != split.user_sizes:
        raise ValueError(
            f"The checkpoint's optimizer has groups of {sizes} parameters, this run's has "
            f"{split.user_sizes}. Resume with the model and optimizer that wrote the checkpoint."
        )
    groups, start = [], 0
    for group, user_index in zip(optimizer.param_groups, split.user_index, strict=True):
        saved_options = options_of(saved[user_index])
        options = {k: v for k, v in saved_options.items() if k not in _OWN_KEYS}
        own = {key: group[key] for key in _OWN_KEYS[1:] if key in group}
        size = len(group["params"])
        groups.append({**options, **own, "params": list(range(start, start + size))})
        start += size
    split_index = {user: index for index, user in enumerate(split.user_order)}
    per_parameter = {split_index[index]: value for index, value in state["state"].items()}
    return {**state, "state": per_parameter, "param_groups": groups}
