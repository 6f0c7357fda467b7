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

FloatArray = NDArray[np.float64]


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
