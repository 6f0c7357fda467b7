"""Layer-wise control (Eq. 1, 4, 5): one parameter group per layer, with its own lr and decay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from deopt_lightning.layers import Layer, free_name

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class GroupSplit:
    """How a user's parameter groups were split, group by group of the split optimizer.

    Attributes:
        layers: The layers that have parameters in this optimizer: N of them.
        layer_index: Index into ``layers``, or -1 for parameters outside every layer (frozen ones).
        user_index: Index of the user's group that the split group came from.
        user_options: Per user group: its options (lr, weight_decay, betas, ...) before the split.
        user_sizes: Per user group: its number of parameters.
        user_order: For each parameter, in split order, its position in the user's order.
        base_lr: (N,) the user's lr per layer, before any schedule; of the first group in it
            whose lr is not 0.
        base_weight_decay: (N,) the user's weight decay per layer; the largest of its groups'.
        sparse: (N,) which layers have an embedding with sparse gradients, which torch cannot decay.
        scheduled: Whether an LR scheduler owns ``lr``; the learned lr is then a multiplier on it.
    """

    layers: tuple[Layer, ...]
    layer_index: tuple[int, ...]
    user_index: tuple[int, ...]
    user_options: tuple[dict[str, Any], ...]
    user_sizes: tuple[int, ...]
    user_order: tuple[int, ...]
    base_lr: FloatArray
    base_weight_decay: FloatArray
    sparse: NDArray[np.bool_]
    scheduled: bool

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the N layers."""
        return tuple(layer.name for layer in self.layers)

    @property
    def keeps_some_undecayed(self) -> bool:
        """Whether the user has groups without decay beside some with decay."""
        decays = [float(options["weight_decay"]) for options in self.user_options]
        return 0 in decays and max(decays) > 0

    @property
    def undecayed_layers(self) -> NDArray[np.bool_]:
        """(N,) which layers no weight decay acts on: in such groups alone, or sparse."""
        without: NDArray[np.bool_] = self.base_weight_decay == 0
        return without & self.keeps_some_undecayed | self.sparse


def split_param_groups(
    optimizer: Optimizer, module: nn.Module, layers: Sequence[Layer], *, scheduled: bool = False
) -> GroupSplit:
    """Splits the optimizer's parameter groups in place, so that none spans two layers.

    Every other option of a user's group (betas, initial_lr, fused, ...) is kept, and each group
    has a unique ``name``. A user's named group keeps its name, with the layer's behind it for each
    part if it had to be split (``head/dense``). Others get the layer's, with the number of the
    user's group behind it where a layer lies in several of them (``dense/1``). Parameters outside
    every layer stay in a group of their own.

    Args:
        optimizer: The optimizer; its ``param_groups`` list is replaced in place.
        module: The model whose parameter names the layers use.
        layers: The layers, in order, as from ``group_layers``.
        scheduled: Whether LR schedulers act on this optimizer.

    Returns:
        What was split, to write hyperparameters and to convert checkpoints with.

    Raises:
        ValueError: If the optimizer has no weight decay, or none of the layers' parameters.
    """
    user_groups = list(optimizer.param_groups)
    if any("weight_decay" not in group for group in user_groups):
        raise ValueError(
            f"{type(optimizer).__name__} has no weight_decay option, which layer-wise control "
            "(Eq. 4) needs. Use an optimizer that has one, for example SGD, Adam or AdamW."
        )
    parts = _parts_of_groups(user_groups, _layer_by_parameter(module, layers))
    used = sorted({part.layer for part in parts if part.layer >= 0})
    if not used:
        raise ValueError(
            f"{type(optimizer).__name__} holds none of the layers' parameters "
            f"({', '.join(layer.name for layer in layers)}). Pass it the module's own parameters."
        )
    groups_of = [
        [user_groups[part.user_index] for part in parts if part.layer == layer] for layer in used
    ]
    # Biases without decay, or without an lr, may come first.
    rates = np.array([next(filter(None, map(base_lr, groups)), 0.0) for groups in groups_of])
    decays = [max(float(group["weight_decay"]) for group in groups) for groups in groups_of]
    if not (rates > 0).all():
        name = layers[used[int(np.argmin(rates))]].name
        raise ValueError(
            f"The lr of layer {name!r} is {rates.min():g}, which gives the search no scale. Start "
            "with a positive lr, or set requires_grad=False for what must not train."
        )
    names = _unique_names(parts, layers, user_groups)
    order = [id(parameter) for group in user_groups for parameter in group["params"]]
    optimizer.param_groups[:] = [
        _part_of_group(user_groups[part.user_index], part.rows, name)
        for part, name in zip(parts, names, strict=True)
    ]
    position = {key: index for index, key in enumerate(order)}
    sparse = _names_of_sparse(module)
    return GroupSplit(
        layers=tuple(layers[layer] for layer in used),
        layer_index=tuple(used.index(p.layer) if p.layer >= 0 else -1 for p in parts),
        user_index=tuple(part.user_index for part in parts),
        user_options=tuple(options_of(group) for group in user_groups),
        user_sizes=tuple(len(group["params"]) for group in user_groups),
        user_order=tuple(position[id(p)] for g in optimizer.param_groups for p in g["params"]),
        base_lr=rates,
        base_weight_decay=np.array(decays),
        sparse=np.array([not sparse.isdisjoint(layers[n].parameter_names) for n in used]),
        scheduled=scheduled,
    )


def write_hyperparameters(
    optimizer: Optimizer, split: GroupSplit, lr: FloatArray, weight_decay: FloatArray
) -> None:
    """Eq. (1), (4), (5): layer n steps with its own eta^n, and its decay lambda^n.

    Weights and biases of a layer get the same values, as Eq. 5 has it. Two things of the user's
    stay as they are: the ratios of lr and weight decay of two groups inside one layer, and a group
    without decay beside one with decay. Under an LR scheduler, eta^n relative to the user's lr is
    written as ``lr_multiplier``, which ``lr_schedule.apply_multipliers`` puts into effect at each
    step.

    Args:
        optimizer: The split optimizer.
        split: What ``split_param_groups`` returned for it.
        lr: (N,) learning rates.
        weight_decay: (N,) weight decay coefficients.
    """
    check_groups(optimizer, split)
    rows = zip(optimizer.param_groups, split.layer_index, split.user_index, strict=True)
    for group, layer, user in rows:
        if layer < 0:
            continue
        options, own = split.user_options[user], float(split.base_lr[layer])
        if split.scheduled:
            group["lr_multiplier"] = float(lr[layer]) / own
        else:
            ratio = base_lr(options) / own
            set_option(group, "lr", float(lr[layer]) * ratio)
        set_option(group, "weight_decay", _decay_of(split, layer, user, weight_decay))


def decay_is_written(optimizer: Optimizer, split: GroupSplit, weight_decay: FloatArray) -> bool:
    """Whether a group has another weight decay than the user's and its layer's, of (N,)."""
    rows = zip(optimizer.param_groups, split.layer_index, split.user_index, strict=True)
    for group, layer, user in rows:
        if layer >= 0:
            own = float(split.user_options[user]["weight_decay"])
            known = [own, _decay_of(split, layer, user, weight_decay)]
            if not np.isclose(float(group["weight_decay"]), known, rtol=1e-6, atol=0).any():
                return True
    return False


def _decay_of(split: GroupSplit, layer: int, user: int, weight_decay: FloatArray) -> float:
    """What a part of a user's group that lies in a layer is to have of (N,) weight decays."""
    decay = float(split.user_options[user]["weight_decay"])
    own = float(split.base_weight_decay[layer])
    share = decay / own if own else float(not split.keeps_some_undecayed)
    return 0.0 if split.sparse[layer] else float(weight_decay[layer]) * share


def check_groups(optimizer: Optimizer, split: GroupSplit) -> None:
    """Refuses an optimizer whose groups have changed since they were split.

    Raises:
        MisconfigurationException: With both sizes, and how to unfreeze parameters instead.
    """
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if len(sizes) != len(split.layer_index) or sum(sizes) != len(split.user_order):
        raise MisconfigurationException(
            f"{type(optimizer).__name__} has {len(sizes)} parameter groups with {sum(sizes)} "
            f"parameters, but had {len(split.layer_index)} with {len(split.user_order)} when "
            "DEOptCallback split them by layer. Groups cannot be added or removed during a fit, as "
            "by add_param_group. Give the optimizer all parameters in configure_optimizers, with "
            "requires_grad=False for those that are to train later, and set it to True then."
        )


def _names_of_sparse(module: nn.Module) -> set[str]:
    """Names of the tables whose gradients are sparse."""
    tables = (m for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag))
    sparse = {id(table.weight) for table in tables if table.sparse}
    return {name for name, parameter in module.named_parameters() if id(parameter) in sparse}


def set_option(group: dict[str, Any], key: str, value: float) -> None:
    """Writes a group's number; a tensor keeps its storage, so that compiled steps see it."""
    if isinstance(group[key], torch.Tensor):
        group[key].fill_(value)
    else:
        group[key] = value


def base_lr(group: Mapping[str, Any]) -> float:
    """A group's lr before any schedule: schedulers keep it as ``initial_lr``."""
    return float(group.get("initial_lr", group["lr"]))


@dataclass(frozen=True)
class _Part:
    """Rows of one user group that lie in one layer (-1: in none)."""

    user_index: int
    layer: int
    rows: tuple[int, ...]


def _parts_of_groups(
    user_groups: Sequence[Mapping[str, Any]], layer_of: Mapping[int, int]
) -> list[_Part]:
    """Cuts each user group by layer; parameters outside every layer come last in their group."""
    parts = []
    for user_index, group in enumerate(user_groups):
        members: dict[int, list[int]] = {}
        for row, parameter in enumerate(group["params"]):
            members.setdefault(layer_of.get(id(parameter), -1), []).append(row)
        in_order = sorted(members, key=lambda layer: (layer < 0, layer))
        parts += [_Part(user_index, layer, tuple(members[layer])) for layer in in_order]
    return parts


def _layer_by_parameter(module: nn.Module, layers: Sequence[Layer]) -> dict[int, int]:
    parameters = dict(module.named_parameters())
    return {
        id(parameters[name]): index
        for index, layer in enumerate(layers)
        for name in layer.parameter_names
    }


def _part_of_group(group: dict[str, Any], rows: Sequence[int], name: str) -> dict[str, Any]:
    """A new group with some of a group's parameters and all of its options."""
    part = {"params": [group["params"][i] for i in rows], **options_of(group), "name": name}
    if "param_names" in group:
        part["param_names"] = [group["param_names"][i] for i in rows]
    return part


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group without its parameters; tensors get storage of their own."""
    return {
        key: value.clone() if isinstance(value, torch.Tensor) else value
        for key, value in group.items()
        if key != "params"
    }


def _unique_names(
    parts: Sequence[_Part], layers: Sequence[Layer], user_groups: Sequence[Mapping[str, Any]]
) -> list[str]:
    """The user's names, with the layer's behind them in a split group, else the layers'."""
    frozen = free_name("frozen", {layer.name for layer in layers})
    in_layers = [layers[part.layer].name if part.layer >= 0 else frozen for part in parts]
    counts = Counter(in_layers)
    pieces = Counter(part.user_index for part in parts)
    names = []
    for part, layer in zip(parts, in_layers, strict=True):
        own = user_groups[part.user_index].get("name")
        if own and pieces[part.user_index] == 1:
            names.append(str(own))
        elif own:
            names.append(f"{own}/{layer}")
        else:
            names.append(layer if counts[layer] == 1 else f"{layer}/{part.user_index}")
    counts = Counter(names)
    return [
        name if counts[name] == 1 else f"{name}/{part.user_index}"
        for name, part in zip(names, parts, strict=True)
    ]
