"""Learned lr beside an LR scheduler: a per-layer multiplier on whatever the scheduler sets."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from deopt_lightning.param_groups import set_option

# Lists that torch's schedulers keep with one entry per parameter group.
PER_GROUP = (
    "base_lrs",
    "_last_lr",
    "lr_lambdas",
    "max_lrs",
    "min_lrs",
    "base_momentums",
    "max_momentums",
)


def apply_multipliers(optimizer: Optimizer) -> list[RemovableHandle]:
    """Multiplies each group's lr by its ``lr_multiplier`` for the length of each step.

    The scheduler goes on reading and writing the unscaled lr, so every kind of schedule keeps its
    shape exactly. The handles remove the two hooks.
    """
    scheduled: list[float] = []

    def scale(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        scheduled[:] = [float(group["lr"]) for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            set_option(group, "lr", effective_lr(group))

    def put_back(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group, lr in zip(optimizer.param_groups, scheduled, strict=True):
            set_option(group, "lr", lr)

    return [
        optimizer.register_step_pre_hook(scale),
        optimizer.register_step_post_hook(put_back),
    ]


def effective_lr(group: Mapping[str, Any]) -> float:
    """The lr that a step is to use: the scheduled one times what was learned."""
    return float(group["lr"]) * float(group.get("lr_multiplier", 1.0))


def regroup(
    state: MutableMapping[str, Any],
    parents: Sequence[int],
    old_count: int,
    keys: Sequence[str] = PER_GROUP,
) -> None:
    """Rewrites a scheduler's per-group lists in place for other parameter groups.

    Args:
        state: ``vars(scheduler)`` or a scheduler's ``state_dict()``.
        parents: For each new group, the index of the old group that it takes its entry from.
        old_count: Number of old groups.
        keys: Names of the lists.
    """
    for key in keys:
        values = state.get(key)
        if isinstance(values, list | tuple) and len(values) == old_count:
            state[key] = [values[parent] for parent in parents]
    for nested in state.get("_schedulers", ()):
        regroup(nested if isinstance(nested, dict) else vars(nested), parents, old_count)
