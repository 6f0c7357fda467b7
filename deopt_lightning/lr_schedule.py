"""Learned lr beside an LR scheduler: a per-layer multiplier on whatever the scheduler sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from deopt_lightning.param_groups import GroupSplit, base_lr, set_option

FloatArray = NDArray[np.float64]

EQUAL = 1e-6  # relative difference of lrs that are one, in single precision
BY_HAND = "Code beside LR schedulers"

# Lists that torch's schedulers, timm's, and AdaBound keep with one entry per parameter group.
PER_GROUP = (
    "base_lrs",
    "_last_lr",
    "lr_lambdas",
    "max_lrs",
    "min_lrs",
    "base_momentums",
    "max_momentums",
    "base_values",
    "warmup_steps",
)


@dataclass(frozen=True)
class Schedule:
    """What is to be known of an LR scheduler when its optimizer's groups are split.

    Attributes:
        optimizer: Index of the optimizer that it acts on.
        lists: Names of its lists with one entry per parameter group.
        unknown: Its class, unless that is torch's.
    """

    optimizer: int = 0
    lists: tuple[str, ...] = PER_GROUP
    unknown: str | None = None

    @classmethod
    def of(cls, scheduler: object, index: int, optimizer: Optimizer) -> Schedule:
        """Looks at a scheduler, and at those inside it, before the split.

        Of a class that is not torch's, lists are taken to have one entry per group if they are as
        long and nothing else is likely. A warning names those that may be either.

        Args:
            scheduler: The scheduler.
            index: The optimizer's index.
            optimizer: The optimizer that it acts on.
        """
        lists, groups = list(PER_GROUP), optimizer.param_groups
        unknown = [part for part in parts_of(scheduler, optimizer) if not _is_torchs(part)]
        for part in unknown:
            for name, values in vars(part).items():
                if name in lists or not _are_as_many(values, len(groups)):
                    continue
                per_group = _is_per_group(name, values, groups)
                lists += [name] if per_group else []
                if per_group is None:
                    _warn_of_list(type(part).__name__, name, len(groups))
        classes = ", ".join(dict.fromkeys(type(part).__name__ for part in unknown))
        return cls(index, tuple(lists), classes or None)

    def regroup(self, scheduler: object, optimizer: Optimizer, split: GroupSplit) -> None:
        """Rewrites the lists of a scheduler, and of those inside it, for the split groups."""
        for part in parts_of(scheduler, optimizer):
            regroup(vars(part), split.user_index, len(split.user_options), self.lists)


def apply_multipliers(
    optimizer: Optimizer, split: GroupSplit, schedulers: str | None = None
) -> list[RemovableHandle]:
    """Multiplies each group's lr by its ``lr_multiplier`` for each step, once its loss is known.

    The scheduler goes on reading and writing the unscaled lr, so every kind of schedule keeps its
    shape exactly. The handles remove the two hooks.

    Args:
        optimizer: The split optimizer.
        split: How it was split.
        schedulers: Classes that may not write all of its groups; then that is checked.
    """
    scheduled: list[float] = []

    def scale() -> None:
        scheduled[:] = [float(group["lr"]) for group in optimizer.param_groups]
        if schedulers is not None:
            _check_parts_agree(scheduled, split, schedulers)
        for group in optimizer.param_groups:
            set_option(group, "lr", effective_lr(group))

    def put_back() -> None:
        for group, lr in zip(optimizer.param_groups, scheduled, strict=True):
            set_option(group, "lr", lr)

    def around(closure: Callable[[], Any]) -> Any:
        put_back()  # it may be the closure that schedules
        loss = closure()
        scale()
        return loss

    def before(_: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
        scale()
        args = tuple(partial(around, arg) if callable(arg) else arg for arg in args)
        if kwargs.get("closure") is not None:
            kwargs = {**kwargs, "closure": partial(around, kwargs["closure"])}
        return args, kwargs

    def after(_: Optimizer, args: Any, kwargs: Any) -> None:
        put_back()

    return [
        optimizer.register_step_pre_hook(before),
        optimizer.register_step_post_hook(after),
    ]


def lrs_by_hand(optimizer: Optimizer, split: GroupSplit, lr: FloatArray) -> list[float] | None:
    """The lrs that the user's own code has written, without what was learned; None if it has not.

    Code that multiplies the lrs that it finds leaves all of them the same multiple of the learned
    ones, and the factor belongs to the user's own. Other code writes lrs of its own, the same for
    all parts of a group. Where it may have been either, it is what changes less.

    Args:
        optimizer: A split optimizer without a scheduler.
        split: How it was split.
        lr: (N,) learned lrs that were written into it.
    """
    own = np.array([base_lr(split.user_options[user]) for user in split.user_index])
    found = np.array([float(group["lr"]) for group in optimizer.param_groups])
    layers = np.array(split.layer_index)
    learned = np.where(layers < 0, own, own * lr[layers] / split.base_lr[layers])
    ours = layers >= 0
    if np.allclose(found[ours], learned[ours], rtol=EQUAL, atol=0):
        return None
    row = int(np.argmax(np.where(ours, learned, 0)))
    factor = found[row] / learned[row]
    is_multiple = np.allclose(found[ours], factor * learned[ours], rtol=EQUAL, atol=0)
    users = np.array(split.user_index)[ours]
    groups = [found[ours][users == user] for user in set(users)]
    may_be_own = all(np.allclose(lrs, lrs[0], rtol=EQUAL, atol=0) for lrs in groups)
    if is_multiple and not (may_be_own and _change(factor) >= _change(found[row] / own[row])):
        found = own * factor
    lrs: list[float] = found.tolist()
    return lrs


def _change(factor: float) -> float:
    """How far a factor is from 1, up or down."""
    return abs(math.log(factor)) if factor > 0 else math.inf


def effective_lr(group: Mapping[str, Any]) -> float:
    """The lr that a step is to use: the scheduled one times what was learned."""
    return float(group["lr"]) * float(group.get("lr_multiplier", 1.0))


def regroup(
    state: MutableMapping[str, Any],
    parents: Sequence[int],
    old_count: int,
    keys: Sequence[str] = PER_GROUP,
) -> None:
    """Rewrites the per-group lists of a scheduler, or an optimizer, in place for other groups.

    Args:
        state: Its ``vars``, or a scheduler's ``state_dict()``.
        parents: For each new group, the index of the old group that it takes its entry from.
        old_count: Number of old groups.
        keys: Names of the lists.
    """
    for key in keys:
        values = state.get(key)
        if isinstance(values, list | tuple) and len(values) == old_count:
            regrouped = [values[parent] for parent in parents]
            state[key] = tuple(regrouped) if isinstance(values, tuple) else regrouped
    for nested in state.get("_schedulers", ()):
        if isinstance(nested, dict):
            regroup(nested, parents, old_count, keys)


def parts_of(scheduler: object, optimizer: object) -> list[object]:
    """A scheduler and those of the same optimizer inside it, at any depth."""
    found = [scheduler]
    for part in found:
        held = [v for value in vars(part).values() for v in _as_list(value)]
        found += [
            inner
            for inner in held
            if getattr(inner, "optimizer", None) is optimizer
            and callable(getattr(inner, "step", None))
            and not isinstance(inner, Optimizer | nn.Module)
            and all(inner is not known for known in found)
        ]
    return found


def _as_list(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else [value]


def _is_torchs(scheduler: object) -> bool:
    return type(scheduler).__module__.startswith("torch.optim.")


def _are_as_many(values: object, count: int) -> bool:
    return type(values) in (list, tuple) and len(values) == count  # type: ignore[arg-type]


def _is_per_group(
    name: str, values: Sequence[Any], groups: Sequence[Mapping[str, Any]]
) -> bool | None:
    """Whether a list as long as the groups has an entry for each; None if that is open.

    A single whole number may well be a milestone, and several numbers betas or factors.
    """
    if not all(_is_number(value) for value in values):
        return None if all(callable(value) for value in values) else False
    numbers = [float(value) for value in values]
    lrs = [float(group["lr"]) for group in groups], [base_lr(group) for group in groups]
    same_floats = len(set(numbers)) == 1 and not any(isinstance(value, int) for value in values)
    if name.endswith("lrs") or same_floats or numbers in lrs:
        return True
    return False if len(values) == 1 else None


def _is_number(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)


def _warn_of_list(scheduler: str, name: str, count: int) -> None:
    rank_zero_warn(
        f"DEOptCallback splits parameter groups by layer, and cannot tell whether {name!r} of "
        f"{scheduler} has one entry for each of the {count} groups that there were. It stays as it "
        "is. If it has, give it a name that ends in 'lrs', or make it from optimizer.param_groups "
        "in each step."
    )


def _check_parts_agree(lrs: Sequence[float], split: GroupSplit, schedulers: str) -> None:
    """Refuses a schedule that has come to some parts of a user's group only."""
    first: dict[int, float] = {}
    for lr, user in zip(lrs, split.user_index, strict=False):  # groups added by hand come last
        if first.setdefault(user, lr) != lr:
            raise MisconfigurationException(
                f"{schedulers} has given parts of parameter group {user} the lrs {first[user]:g} "
                f"and {lr:g}. DEOptCallback splits parameter groups by layer, and a list with one "
                "entry for each group that there was is too short then. Give such a list a name "
                "that ends in 'lrs', or go over all of optimizer.param_groups in each step."
            )
