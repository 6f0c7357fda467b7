"""Checkpoints hold the user's own parameter groups, so that they load with or without DE-Opt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch.optim import Optimizer

from deopt_lightning.lr_schedule import Schedule, regroup
from deopt_lightning.param_groups import GroupSplit, options_of

_OWN_KEYS = ("params", "param_names", "name")
_OURS = ("params", "name", "lr_multiplier")  # keys that a split group has for our sake


def checkpoint_to_user_layout(
    checkpoint: dict[str, Any], splits: Mapping[int, GroupSplit], schedules: Sequence[Schedule]
) -> None:
    """Rewrites optimizer and scheduler states in place, from split groups to the user's.

    Args:
        checkpoint: As Lightning writes it.
        splits: How optimizers were split, by their index.
        schedules: What is known of each LR scheduler.
    """
    states = checkpoint["optimizer_states"]
    for index, split in splits.items():
        states[index] = optimizer_to_user_layout(states[index], split)
        first = [split.user_index.index(user) for user in range(len(split.user_options))]
        for state, lists in _scheduler_states(checkpoint, schedules, index):
            regroup(state, first, len(split.user_index), lists)


def checkpoint_to_split_layout(
    checkpoint: dict[str, Any],
    splits: Mapping[int, GroupSplit],
    schedules: Sequence[Schedule],
    optimizers: Mapping[int, Optimizer],
) -> None:
    """Rewrites optimizer and scheduler states in place, from the user's groups to split ones.

    A checkpoint of weights alone stays as it is; Lightning says that no fit can go on from it.
    """
    if "optimizer_states" not in checkpoint:
        return
    states = checkpoint["optimizer_states"]
    for index, split in splits.items():
        states[index] = optimizer_to_split_layout(states[index], split, optimizers[index])
        for state, lists in _scheduler_states(checkpoint, schedules, index):
            regroup(state, split.user_index, len(split.user_options), lists)


def _scheduler_states(
    checkpoint: dict[str, Any], schedules: Sequence[Schedule], index: int
) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    """States of an optimizer's schedulers, those that callbacks brought along included.

    A scheduler that a callback has put in belongs to the only optimizer.

    Returns:
        Each state, and the names of its lists with one entry per group.
    """
    brought = [
        state.get("scheduler_state")
        for state in checkpoint.get("callbacks", {}).values()
        if isinstance(state, dict)
    ]
    known = zip_longest(checkpoint["lr_schedulers"], schedules, fillvalue=Schedule())
    pairs = [*known, *((state, Schedule()) for state in brought)]
    return [
        (state, schedule.lists)
        for state, schedule in pairs
        if isinstance(state, dict) and state and schedule.optimizer == index
    ]


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
    entries = _reordered(state["state"], dict(enumerate(split.user_order)))
    return {**state, "state": entries, "param_groups": groups}


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
    entries = _reordered(state["state"], split_index)
    return {**state, "state": entries, "param_groups": groups}


def _reordered(state: Mapping[Any, Any], places: Mapping[int, int]) -> dict[Any, Any]:
    """An optimizer's state by other indices; what is not by an index is of all parameters."""
    of_all = {key: value for key, value in state.items() if key not in places}
    indexed = {places[key]: value for key, value in state.items() if key in places}
    return dict(sorted(indexed.items())) | of_all
