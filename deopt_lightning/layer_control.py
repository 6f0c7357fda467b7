"""LayerControl: one optimizer under layer-wise control, beside its schedulers and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from deopt_lightning.checkpoint_layout import checkpoint_to_split_layout, checkpoint_to_user_layout
from deopt_lightning.layers import LayerPatterns, group_layers
from deopt_lightning.lr_schedule import apply_multipliers, regroup
from deopt_lightning.param_groups import split_param_groups, write_hyperparameters
from deopt_lightning.search_space import Bounds, SearchSpace

FloatArray = NDArray[np.float64]

DECAY_BOUNDS_FROM_ZERO = (1e-7, 1e-3)  # where the optimizer's own weight decay is 0


class LayerControl:
    """Splits an optimizer by layer and writes per-layer lr and weight decay into it.

    Args:
        optimizer: The optimizer; its groups are split in place.
        module: The model.
        patterns: Which parameters form a layer, see ``group_layers``.
        schedulers: LR schedulers of the optimizer; with any, a learned lr acts as a multiplier.

    Attributes:
        layer_names: Names of the N layers.
        own_values: (2N,) the user's lr per layer, then the user's weight decay per layer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        module: nn.Module,
        patterns: LayerPatterns | None = None,
        schedulers: Sequence[object] = (),
    ) -> None:
        layers = group_layers(module, patterns)
        self._optimizer = optimizer
        self._split = split_param_groups(optimizer, module, layers, scheduled=bool(schedulers))
        for scheduler in schedulers:
            regroup(
                vars(scheduler), self._split.user_index, old_count=len(self._split.user_options)
            )
        self._hooks = apply_multipliers(optimizer) if schedulers else []
        self.layer_names = self._split.layer_names
        self.own_values = np.concatenate([self._split.base_lr, self._split.base_weight_decay])

    def search_space(
        self,
        lr_bounds: Bounds | None,
        weight_decay_bounds: Bounds | None,
    ) -> tuple[SearchSpace, FloatArray, tuple[FloatArray, FloatArray]]:
        """The space to search, the user's own vector in it, and its neighbourhood.

        Args:
            lr_bounds: For every layer; None goes from a thousandth of each layer's own lr to ten
                times it.
            weight_decay_bounds: Likewise; None is `DECAY_BOUNDS_FROM_ZERO` where the own is 0.

        Returns:
            The space; the own values inside its bounds as (2N,) coordinates; and the lower and
            upper coordinates of the part in which each lr is within ten times the own.
        """
        own = self.own_values
        lr, decay = np.split(own, 2)
        space = SearchSpace.for_layers(
            self.layer_names,
            lr_bounds or [(value / 1000, value * 10) for value in lr],
            weight_decay_bounds
            or [
                (value / 1000, value * 10) if value > 0 else DECAY_BOUNDS_FROM_ZERO
                for value in decay
            ],
        )
        zero = (own == 0) & (space.low < space.high)  # 0 lies below the bounds, but can be encoded
        in_bounds = np.where(zero, 0.0, np.clip(own, space.low, space.high))
        vector = space.encode(in_bounds)
        low, high = space.coordinate_low.copy(), space.coordinate_high.copy()
        lrs = slice(0, len(lr))  # their coordinates are decimal logarithms
        low[lrs] = np.maximum(low[lrs], vector[lrs] - 1)
        high[lrs] = np.minimum(high[lrs], vector[lrs] + 1)
        return space, vector, (low, high)

    def write(self, values: FloatArray) -> None:
        """Eq. (1): puts (2N,) values into effect, first N learning rates, then N weight decays."""
        lr, weight_decay = np.split(values, 2)
        write_hyperparameters(self._optimizer, self._split, lr, weight_decay)

    def by_layer(self, values: FloatArray) -> dict[str, dict[str, float]]:
        """(2N,) values as ``{"lr": {layer: value}, "weight_decay": {layer: value}}``."""
        rows = np.split(values, 2)
        return {
            name: dict(zip(self.layer_names, row.tolist(), strict=True))
            for name, row in zip(("lr", "weight_decay"), rows, strict=True)
        }

    def to_user_layout(self, checkpoint: dict[str, Any]) -> None:
        """Rewrites a checkpoint in place, so that a Trainer without this package loads it."""
        checkpoint_to_user_layout(checkpoint, self._split)

    def to_split_layout(self, checkpoint: dict[str, Any]) -> None:
        """Rewrites a checkpoint in place, so that the split optimizer loads it."""
        checkpoint_to_split_layout(checkpoint, self._split, self._optimizer)

    def close(self) -> None:
        """Removes the hooks from the optimizer."""
        for hook in self._hooks:
            hook.remove()
