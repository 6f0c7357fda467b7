"""Layers: the N parts of a model that each get their own lr and weight decay (Eq. 1)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

LayerPatterns = Sequence[str] | Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Layer:
    """One layer n of the paper: parameters that share one lr and one weight decay.

    Attributes:
        name: Unique name, shown in logs and as the name of the parameter group.
        parameter_names: Names as in ``module.named_parameters()``, in definition order.
    """

    name: str
    parameter_names: tuple[str, ...]


def group_layers(module: nn.Module, patterns: LayerPatterns | None = None) -> list[Layer]:
    """Puts every trainable parameter of a module in exactly one layer.

    Without ``patterns`` the module's own ``layer_groups()`` decides, which returns an ordered
    mapping from layer name to parameter names; a module without that method gets one layer per
    submodule that owns parameters, in definition order. Frozen parameters belong to no layer. A
    tied parameter belongs to the first layer that names it.

    Args:
        module: The model.
        patterns: Shell-style patterns of parameter names, either a sequence (each pattern is also
            the layer's name) or a mapping from layer name to pattern or patterns. The first match
            wins. ``["*"]`` puts the whole model in one layer.

    Returns:
        The layers, in order; none is empty.

    Raises:
        ValueError: If a trainable parameter is left over or named twice, a name is unknown, a
            pattern matches nothing, the module has no trainable parameter, or layers are no
            mapping or sequence of strings.
    """
    trainable = [name for name, p in module.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(
            f"{type(module).__name__} has no trainable parameter, so there is nothing to learn an "
            "lr for. Set requires_grad=True on the parameters that should train."
        )
    own_groups = getattr(module, "layer_groups", None)
    if patterns is not None:
        layers = _match_patterns(trainable, patterns)
    elif callable(own_groups):
        layers = _resolve_names(module, own_groups())
    else:
        layers = _by_owner(trainable)
    _check_coverage(module, trainable, layers)
    return [layer for layer in layers if layer.parameter_names]


def _by_owner(trainable: Sequence[str]) -> list[Layer]:
    """One layer per submodule that owns parameters directly."""
    owners: dict[str, list[str]] = {}
    for name in trainable:
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    root = free_name("root", owners)
    return [Layer(owner or root, tuple(names)) for owner, names in owners.items()]


def free_name(name: str, taken: Collection[str]) -> str:
    """A name that is not taken: this one, or with as many underscores as it needs."""
    while name in taken:
        name += "_"
    return name


def check_patterns(patterns: LayerPatterns) -> None:
    """Refuses patterns that are no strings.

    Raises:
        ValueError: Naming what is none.
    """
    if isinstance(patterns, str):
        raise ValueError(
            f"layers must be a sequence or a mapping of patterns; got the string {patterns!r}. "
            f"Write [{patterns!r}]."
        )
    if not isinstance(patterns, Mapping | Sequence) or not patterns:
        raise ValueError(
            f"layers must be a sequence or a mapping of patterns, at least one; got {patterns!r}. "
            "['*'] puts all in one layer; without layers each submodule is one."
        )
    for name in patterns:
        wanted = patterns[name] if isinstance(patterns, Mapping) else name
        if not isinstance(name, str) or not (isinstance(wanted, str) or _are_strings(wanted)):
            raise ValueError(
                f"layers must hold names and patterns as strings, such as 'encoder.*'; got "
                f"{wanted!r} for the layer {name!r}."
            )


def _are_strings(names: object) -> bool:
    """Whether this is a sequence or a set of strings, and not itself one."""
    if isinstance(names, str | Mapping) or not isinstance(names, Collection):
        return False
    return all(isinstance(name, str) for name in names)


def _match_patterns(trainable: Sequence[str], patterns: LayerPatterns) -> list[Layer]:
    check_patterns(patterns)
    if not isinstance(patterns, Mapping):
        patterns = {pattern: pattern for pattern in patterns}
    left = list(trainable)
    layers = []
    for name, pattern in patterns.items():
        wanted = [pattern] if isinstance(pattern, str) else list(pattern)
        matched = [p for p in left if any(fnmatchcase(p, w) for w in wanted)]
        if not matched:
            modules = [w for w in wanted if any(p.startswith(f"{w}.") for p in left)]
            hint = f" Write '{modules[0]}.*' for all of {modules[0]}." if modules else ""
            raise ValueError(
                f"Layer pattern {name!r} ({', '.join(wanted)}) matches no trainable parameter that "
                f"an earlier pattern left over. Parameters: {', '.join(trainable)}.{hint}"
            )
        left = [p for p in left if p not in matched]
        layers.append(Layer(name, tuple(matched)))
    return layers


def _resolve_names(module: nn.Module, groups: Mapping[str, Sequence[str]]) -> list[Layer]:
    """Turns ``layer_groups()`` into layers: aliases of tied parameters become their first name."""
    every_name = dict(module.named_parameters(remove_duplicate=False))
    first_name = {id(p): name for name, p in module.named_parameters()}
    owner: dict[str, tuple[str, str]] = {}
    layers = []
    for layer, names in _checked_groups(module, groups).items():
        kept = []
        for name in names:
            if name not in every_name:
                raise ValueError(
                    f"layer_groups() of {type(module).__name__} puts {name!r} in layer {layer!r}, "
                    f"but there is no such parameter. Parameters: {', '.join(every_name)}."
                )
            canonical = first_name[id(every_name[name])]
            earlier_layer, alias = owner.setdefault(canonical, (layer, name))
            if alias == name and (earlier_layer != layer or canonical in kept):
                raise ValueError(
                    f"layer_groups() of {type(module).__name__} names parameter {name!r} twice, in "
                    f"layers {earlier_layer!r} and {layer!r}. Name every parameter once."
                )
            if alias == name and every_name[name].requires_grad:
                kept.append(canonical)
        layers.append(Layer(layer, tuple(kept)))
    return layers


def _checked_groups(module: nn.Module, groups: object) -> dict[str, list[str]]:
    """What ``layer_groups()`` returned, if it maps strings to strings."""
    source = f"layer_groups() of {type(module).__name__} must return a mapping from layer names to "
    if not isinstance(groups, Mapping):
        raise ValueError(f"{source}lists of parameter names; got {groups!r}.")
    lists = {
        name: list(names) if isinstance(names, Iterator) else names
        for name, names in groups.items()
    }
    for layer, names in lists.items():
        if not isinstance(layer, str) or not _are_strings(names):
            raise ValueError(
                f"{source}lists of parameter names, all strings; got {names!r} for the layer "
                f"{layer!r}."
            )
    return lists


def _check_coverage(module: nn.Module, trainable: Sequence[str], layers: Sequence[Layer]) -> None:
    covered = {name for layer in layers for name in layer.parameter_names}
    missing = [name for name in trainable if name not in covered]
    if missing:
        raise ValueError(
            f"The layers of {type(module).__name__} leave out trainable parameters: "
            f"{', '.join(missing)}. Add them to a layer, or add a last pattern '*'."
        )
