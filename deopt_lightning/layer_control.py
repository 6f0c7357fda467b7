"""LayerControl: optimizers under layer-wise control, beside their schedulers and checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import WarningCache
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from deopt_lightning.checkpoint_layout import checkpoint_to_split_layout, checkpoint_to_user_layout
from deopt_lightning.layers import LayerPatterns, group_layers
from deopt_lightning.lr_schedule import BY_HAND, Schedule, apply_multipliers, lrs_by_hand, regroup
from deopt_lightning.param_groups import (
    GroupSplit,
    check_groups,
    decay_is_written,
    set_option,
    split_param_groups,
    write_hyperparameters,
)
from deopt_lightning.search_space import Bounds, SearchSpace

FloatArray = NDArray[np.float64]

DECAY_BOUNDS_FROM_ZERO = (1e-7, 1e-3)  # where the optimizer's own weight decay is 0


class LayerControl:
    """Splits optimizers by layer and writes per-layer lr and weight decay into them.

    Args:
        optimizers: The model's optimizers.
        module: The model.
        patterns: Which parameters form a layer, see ``group_layers``. A layer with parameters in
            several optimizers counts once for each.
        schedulers: LR schedulers; in an optimizer that has one, a learned lr is a multiplier.
        optimizer_index: The optimizer to control; by default all are.
        scheduled: Whether a scheduler is still to come.

    Attributes:
        layer_names: Names of the N layers.
        own_values: (2N,) the user's lr per layer, then the user's weight decay per layer.
        splits: For each controlled optimizer, by its index, how it was split.
        by_hand: Indices of those whose lrs the user's own code writes.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        module: nn.Module,
        patterns: LayerPatterns | None = None,
        schedulers: Sequence[object] = (),
        *,
        optimizer_index: int | None = None,
        scheduled: bool = False,
    ) -> None:
        layers = group_layers(module, patterns)
        chosen = range(len(optimizers)) if optimizer_index is None else [optimizer_index]
        self._optimizers = {index: optimizers[index] for index in chosen}
        owners = [_owner(scheduler, optimizers) for scheduler in schedulers]
        self._schedules = [
            Schedule.of(scheduler, owner, optimizers[owner]) if owner in chosen else Schedule(owner)
            for scheduler, owner in zip(schedulers, owners, strict=True)
        ]
        unknown: dict[int, str | None] = {}
        self.by_hand: list[int] = []
        self._warnings = WarningCache()
        self.splits: dict[int, GroupSplit] = {}
        for index, optimizer in self._optimizers.items():
            under_schedule = scheduled or index in owners
            split = split_param_groups(optimizer, module, layers, scheduled=under_schedule)
            regroup(vars(optimizer), split.user_index, len(split.user_options))
            of_this = [schedule for schedule in self._schedules if schedule.optimizer == index]
            unknown[index] = ", ".join(s.unknown for s in of_this if s.unknown) or None
            self.splits[index] = split
        for scheduler, schedule in zip(schedulers, self._schedules, strict=True):
            if (index := schedule.optimizer) in self.splits:
                schedule.regroup(scheduler, optimizers[index], self.splits[index])
        self._hooks: list[RemovableHandle] = []  # last, so that what is refused has none
        for index, split in self.splits.items():
            if split.scheduled:
                self._hooks += apply_multipliers(optimizers[index], split, unknown[index])
        self.layer_names = _unique_names(self.splits)
        self.own_values = np.concatenate(
            [split.base_lr for split in self.splits.values()]
            + [split.base_weight_decay for split in self.splits.values()]
        )

    def search_space(
        self,
        lr_bounds: Bounds | None,
        weight_decay_bounds: Bounds | None,
        lr_up: float = 10,
        saved: Mapping[str, Any] | None = None,
    ) -> tuple[SearchSpace, FloatArray]:
        """The space to search, and the user's own vector in it.

        Args:
            lr_bounds: For every layer; None goes from a thousandth of each layer's own lr to
                ``lr_up`` times it.
            weight_decay_bounds: Likewise to ten times; `DECAY_BOUNDS_FROM_ZERO` where the own is 0.
                Layers on which no weight decay acts have (0, 0) in any case.
            lr_up: See ``lr_bounds``.
            saved: Settings of the space that a checkpoint's search has, if one is resumed.

        Returns:
            The space, and the own values inside its bounds as (2N,) coordinates.
        """
        own = self.own_values
        lr, decay = np.split(own, 2)
        rates = lr_bounds or [(value / 1000, value * lr_up) for value in lr]
        undecayed = np.concatenate([split.undecayed_layers for split in self.splits.values()])
        decay_bounds = [
            (0.0, 0.0) if fixed else weight_decay_bounds or _decay_bounds(value)
            for value, fixed in zip(decay, undecayed, strict=True)
        ]
        space = SearchSpace.for_layers(self.layer_names, rates, decay_bounds)
        if saved and saved["names"] == list(space.names):
            earlier = weight_decay_bounds or DECAY_BOUNDS_FROM_ZERO
            was = SearchSpace.for_layers(self.layer_names, rates, earlier)
            space = self._as_earlier(space, was, saved)
        zero = (own == 0) & (space.low < space.high)  # 0 lies below the bounds, but can be encoded
        in_bounds = np.where(zero, 0.0, np.clip(own, space.low, space.high))
        return space, space.encode(in_bounds)

    def _as_earlier(
        self, space: SearchSpace, earlier: SearchSpace, saved: Mapping[str, Any]
    ) -> SearchSpace:
        """The space, with the weight decay's bounds of a checkpoint of an earlier version.

        Where the user keeps groups without decay, earlier versions took their 0 for the own weight
        decay of a layer if they came first, and searched it also where none acts.
        """
        splits = self.splits.values()
        mixed = [np.full(len(split.layers), split.keeps_some_undecayed) for split in splits]
        were = (earlier.low == saved["low"]) & (earlier.high == saved["high"])
        were &= np.concatenate([np.zeros(len(self.layer_names), dtype=bool), *mixed])
        low, high = np.where(were, [earlier.low, earlier.high], [space.low, space.high])
        scale = np.where(were, earlier.scale, space.scale)
        return SearchSpace(space.names, low, high, tuple(scale.tolist()))

    def check(self) -> None:
        """Refuses optimizers to which groups have been added since they were split."""
        for index, split in self.splits.items():
            check_groups(self._optimizers[index], split)

    def settle(self, values: FloatArray, optimizers: Sequence[Optimizer]) -> None:
        """Lets learned lrs be factors of lrs that the user's own code has written.

        Args:
            values: (2N,) values that are in effect, unless other code has written over them.
            optimizers: The model's optimizers, which must be those that were split.

        Raises:
            MisconfigurationException: If groups or optimizers are others than at the start.
        """
        if any(optimizers[index] is not known for index, known in self._optimizers.items()):
            raise MisconfigurationException(
                "The Trainer's optimizers are not those that DEOptCallback split by layer at the "
                "start of the fit. Optimizers cannot be replaced during a fit, as by "
                "setup_optimizers. Make the whole model and its optimizers in the beginning."
            )
        self.check()
        for index, lr, weight_decay in self._parts(values):
            optimizer, split = self._optimizers[index], self.splits[index]
            if decay_is_written(optimizer, split, weight_decay):
                self._warnings.warn(
                    f"DEOptCallback: other code writes the weight decay of "
                    f"{type(optimizer).__name__}'s groups. Where it does, no weight decay is "
                    "learned, and members train without it. Let DEOptCallback alone write it."
                )
            lrs = None if split.scheduled else lrs_by_hand(optimizer, split, lr)
            if lrs is not None:
                self.follow([index])
                for group, value in zip(optimizer.param_groups, lrs, strict=True):
                    set_option(group, "lr", value)
                self.write(values)

    def follow(self, indices: Sequence[int]) -> None:
        """Takes the user's own code for the scheduler of some optimizers."""
        for index in indices:
            split = self.splits[index] = replace(self.splits[index], scheduled=True)
            self._hooks += apply_multipliers(self._optimizers[index], split, BY_HAND)
            self.by_hand.append(index)

    def write(self, values: FloatArray) -> None:
        """Puts (2N,) values into effect (Eq. 1), first N learning rates, then N weight decays."""
        for index, lr, weight_decay in self._parts(values):
            write_hyperparameters(self._optimizers[index], self.splits[index], lr, weight_decay)

    def _parts(self, values: FloatArray) -> Iterator[tuple[int, FloatArray, FloatArray]]:
        """Index, lrs and weight decays of each optimizer."""
        ends = np.cumsum([len(split.layers) for split in self.splits.values()])[:-1]
        lrs, decays = (np.split(half, ends) for half in np.split(values, 2))
        return zip(self.splits, lrs, decays, strict=True)

    def by_layer(self, values: FloatArray) -> dict[str, dict[str, float]]:
        """(2N,) values as ``{"lr": {layer: value}, "weight_decay": {layer: value}}``."""
        rows = np.split(values, 2)
        return {
            name: dict(zip(self.layer_names, row.tolist(), strict=True))
            for name, row in zip(("lr", "weight_decay"), rows, strict=True)
        }

    def by_name(self, values: FloatArray) -> dict[str, float]:
        """(2N,) values as ``{"lr/layer": value, ..., "weight_decay/layer": value, ...}``."""
        return {
            f"{name}/{layer}": value
            for name, row in self.by_layer(values).items()
            for layer, value in row.items()
        }

    def to_user_layout(self, checkpoint: dict[str, Any]) -> None:
        """Rewrites a checkpoint in place, so that a Trainer without this package loads it."""
        self.check()
        checkpoint_to_user_layout(checkpoint, self.splits, self._schedules)

    def to_split_layout(self, checkpoint: dict[str, Any]) -> None:
        """Rewrites a checkpoint in place, so that the split optimizers load it."""
        checkpoint_to_split_layout(checkpoint, self.splits, self._schedules, self._optimizers)

    def close(self) -> None:
        """Removes the hooks from the optimizers."""
        for hook in self._hooks:
            hook.remove()


def _decay_bounds(own: float) -> Bounds:
    """Where to search the weight decay of a layer."""
    return (own / 1000, own * 10) if own > 0 else DECAY_BOUNDS_FROM_ZERO


def _owner(scheduler: object, optimizers: Sequence[Optimizer]) -> int:
    """Index of the optimizer that a scheduler acts on; the first if the scheduler does not say."""
    optimizer = getattr(scheduler, "optimizer", None)
    return next((index for index, known in enumerate(optimizers) if known is optimizer), 0)


def _unique_names(splits: Mapping[int, GroupSplit]) -> tuple[str, ...]:
    """Layer names of all optimizers; with the optimizer's index where one has it, too."""
    names = [(index, name) for index, split in splits.items() for name in split.layer_names]
    counts = Counter(name for _, name in names)
    return tuple(f"{name}/{index}" if counts[name] > 1 else name for index, name in names)
