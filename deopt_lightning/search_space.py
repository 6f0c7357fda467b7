"""The box that is searched: one dimension per hyperparameter, each with bounds and a scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Scale = Literal["linear", "log", "log_or_zero"]
Repair = Literal["reflect", "clip"]
Bounds = tuple[float, float]

ZERO_BAND = 1.0  # decades below `low` that mean exactly 0 under "log_or_zero"
ZERO_FLOOR = 1e-4  # what a `low` of 0 stands for under "log_or_zero", as a share of `high`


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Names, bounds and scales of the dimensions, and the way between values and coordinates.

    Bounds are *values* (a learning rate, a weight decay). The search itself moves through
    *coordinates*, which depend on the scale of each dimension:

    - "linear": the coordinate is the value.
    - "log": the coordinate is log10(value).
    - "log_or_zero": log10(value) for values from `low` to `high`, and one further decade below
      `low` in which every coordinate means exactly 0. So "none at all" is met by chance, not only
      approached. A `low` of 0 stands for `high * 1e-4`, the smallest value above 0.

    A dimension with `low == high` is frozen at that value, whatever its scale.

    Args:
        names: One unique name per dimension.
        low: Smallest value of each dimension; kept as a read-only array of shape (dimensions,).
        high: Largest value of each dimension; likewise.
        scale: The scale of each dimension; a single one serves all.
    """

    names: tuple[str, ...]
    low: FloatArray
    high: FloatArray
    scale: tuple[Scale, ...]

    def __post_init__(self) -> None:
        """Bring the fields into their stored form and refuse impossible bounds."""
        names = tuple(self.names)
        low, high = (np.array(bound, dtype=np.float64) for bound in (self.low, self.high))
        given = (self.scale,) * len(names) if isinstance(self.scale, str) else tuple(self.scale)
        _check_lengths(names, low, high, given)
        scales = np.array(given, dtype=object)
        low = np.where((scales == "log_or_zero") & (low == 0), high * ZERO_FLOOR, low)
        _check_bounds(names, low, high, scales)
        scales[low == high] = "linear"
        low.setflags(write=False)
        high.setflags(write=False)
        for field, value in zip(("names", "low", "high"), (names, low, high), strict=True):
            object.__setattr__(self, field, value)
        object.__setattr__(self, "scale", tuple(scales.tolist()))

    @classmethod
    def for_layers(
        cls,
        layer_names: Sequence[str],
        lr_bounds: Bounds | Sequence[Bounds],
        weight_decay_bounds: Bounds | Sequence[Bounds],
        lr_scale: Scale = "log",
        weight_decay_scale: Scale = "log_or_zero",
    ) -> SearchSpace:
        """Build the 2N dimensions of N layers: first every "lr/...", then every "weight_decay/...".

        Args:
            layer_names: The N layers.
            lr_bounds: One (low, high) pair for all layers, or N pairs.
            weight_decay_bounds: Likewise. Under "log_or_zero" a low of 0 stands for high * 1e-4.
            lr_scale: The scale of all learning rates.
            weight_decay_scale: The scale of all weight decays.
        """
        layers = len(layer_names)
        names = tuple(f"{kind}/{layer}" for kind in ("lr", "weight_decay") for layer in layer_names)
        bounds = np.concatenate(
            [
                _pairs(lr_bounds, layers, "lr_bounds"),
                _pairs(weight_decay_bounds, layers, "weight_decay_bounds"),
            ]
        )
        scale = (lr_scale,) * layers + (weight_decay_scale,) * layers
        return cls(names, bounds[:, 0], bounds[:, 1], scale)

    @classmethod
    def around(
        cls,
        optimum: Mapping[str, float],
        factor: float = 10.0,
        shrink: float = 1000.0,
        scale: Scale | None = None,
    ) -> SearchSpace:
        """Build the paper's space, which reaches up to ten times a known optimum.

        Args:
            optimum: The best known value of each dimension, for instance from a grid search.
            factor: `high` is factor * optimum.
            shrink: `low` is optimum / shrink on a log scale; it is 0 on the linear one.
            scale: One scale for all dimensions. By default weight decays, known by their name,
                are "log_or_zero" and all others "log"; the paper's own space is "linear".
        """
        values = np.array(list(optimum.values()), dtype=np.float64)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(
                f"optimum must hold positive numbers because the bounds are multiples of them; "
                f"got {dict(optimum)}. Give bounds outright with SearchSpace.for_layers."
            )
        default = ("log_or_zero" if name.startswith("weight_decay") else "log" for name in optimum)
        scales = cast(tuple[Scale, ...], tuple(scale or default_scale for default_scale in default))
        low = np.where(np.array(scales) == "linear", 0.0, values / shrink)
        return cls(tuple(optimum), low, values * factor, scales)

    @property
    def dimensions(self) -> int:
        """The number of dimensions, 2N for N layers."""
        return len(self.names)

    @cached_property
    def coordinate_low(self) -> FloatArray:
        """Smallest coordinate of each dimension, shape (dimensions,)."""
        return self._to_coordinates(self.low) - ZERO_BAND * self._has_zero

    @cached_property
    def coordinate_high(self) -> FloatArray:
        """Largest coordinate of each dimension, shape (dimensions,)."""
        return self._to_coordinates(self.high)

    def settings(self) -> dict[str, Any]:
        """Names, bounds and scales in plain Python types."""
        return {
            "names": list(self.names),
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "scale": list(self.scale),
        }

    def encode(self, values: ArrayLike) -> FloatArray:
        """Turn values of shape (dimensions,) or (count, dimensions) into coordinates."""
        values = self._as_rows(values, "values")
        zero = self._has_zero & (values == 0)
        inside = ((values >= self.low) & (values <= self.high)) | zero
        if not inside.all():
            *_, column = np.argwhere(~inside)[0]
            or_zero = "0 or " if self._has_zero[column] else ""
            raise ValueError(
                f"Dimension '{self.names[column]}' got the value {values[~inside][0]:g}; choose "
                f"{or_zero}a value from {self.low[column]:g} to {self.high[column]:g}, or "
                f"widen its bounds."
            )
        middle_of_band = self._to_coordinates(self.low) - ZERO_BAND / 2
        return np.where(zero, middle_of_band, self._to_coordinates(np.where(zero, 1.0, values)))

    def decode(self, vectors: ArrayLike) -> FloatArray:
        """Turn coordinates of shape (dimensions,) or (count, dimensions) into values."""
        vectors = self._as_rows(vectors, "vectors")
        powers = np.power(10.0, vectors, where=self._is_log, out=vectors.copy())
        # log10 and power may lose the last digit, which must not lead out of the bounds.
        values = np.clip(powers, self.low, self.high)
        in_band = self._has_zero & (vectors < self._to_coordinates(self.low))
        return np.where(in_band, 0.0, values)

    def sample(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Draw `count` coordinate vectors uniformly, shape (count, dimensions)."""
        return rng.uniform(self.coordinate_low, self.coordinate_high, (count, self.dimensions))

    def repair(self, vectors: ArrayLike, method: Repair = "reflect") -> FloatArray:
        """Bring coordinates back inside the bounds; those already inside stay as they are.

        Args:
            vectors: Coordinates, shape (dimensions,) or (count, dimensions).
            method: "reflect" folds an overshoot back at the bound, as often as needed;
                "clip" moves it onto the bound.
        """
        vectors = self._as_rows(vectors, "vectors")
        low, high = self.coordinate_low, self.coordinate_high
        moved = vectors
        if method == "reflect":
            width = np.where(high > low, high - low, 1.0)
            past_low = np.mod(vectors - low, 2 * width)
            moved = low + np.minimum(past_low, 2 * width - past_low)
        inside = (vectors >= low) & (vectors <= high)
        return np.where(inside, vectors, np.clip(moved, low, high))

    def split(self, values: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Part the 2N values of a layer-wise space into (lr, weight_decay), N per row each."""
        half = self.dimensions // 2
        partners = tuple("weight_decay" + name.removeprefix("lr") for name in self.names[:half])
        if self.names[half:] != partners:
            raise ValueError(
                f"split needs one weight decay for each lr, in the same order; got {self.names}. "
                f"Build the space with SearchSpace.for_layers."
            )
        values = self._as_rows(values, "values")
        return values[..., :half], values[..., half:]

    @cached_property
    def _is_log(self) -> NDArray[np.bool_]:
        return np.array([scale != "linear" for scale in self.scale])

    @cached_property
    def _has_zero(self) -> NDArray[np.bool_]:
        return np.array([scale == "log_or_zero" for scale in self.scale])

    def _to_coordinates(self, values: FloatArray) -> FloatArray:
        return np.log10(values, where=self._is_log, out=values.copy())

    def _as_rows(self, rows: ArrayLike, what: str) -> FloatArray:
        array = np.asarray(rows, dtype=np.float64)
        if array.ndim not in (1, 2) or array.shape[-1] != self.dimensions:
            raise ValueError(
                f"{what} must have the shape ({self.dimensions},) or (count, {self.dimensions}), "
                f"one column per dimension; got {array.shape}."
            )
        return array


def _pairs(bounds: Bounds | Sequence[Bounds], layers: int, argument: str) -> FloatArray:
    pairs = np.array(bounds, dtype=np.float64)
    if pairs.shape == (2,):
        pairs = np.tile(pairs, (layers, 1))
    if pairs.shape != (layers, 2):
        raise ValueError(
            f"{argument} must be one (low, high) pair or one pair for each of the {layers} layers; "
            f"got {bounds}."
        )
    return pairs


def _check_lengths(
    names: tuple[str, ...], low: FloatArray, high: FloatArray, scale: tuple[str, ...]
) -> None:
    if not names:
        raise ValueError("names must hold at least one dimension; got none.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"names must differ from one another; got {twice} more than once.")
    for field, length in (("low", low.shape), ("high", high.shape), ("scale", (len(scale),))):
        if length != (len(names),):
            raise ValueError(
                f"{field} must hold one entry for each of the {len(names)} names; "
                f"got the shape {length}."
            )
    for name, kind in zip(names, scale, strict=True):
        if kind not in get_args(Scale):
            raise ValueError(
                f"Dimension '{name}' got the scale '{kind}'; choose one of {get_args(Scale)}."
            )


def _check_bounds(
    names: tuple[str, ...], low: FloatArray, high: FloatArray, scales: NDArray[np.object_]
) -> None:
    for name, lower, upper, scale in zip(names, low, high, scales, strict=True):
        if not (np.isfinite(lower) and np.isfinite(upper)):
            raise ValueError(
                f"Dimension '{name}' needs finite bounds; got low={lower:g} and high={upper:g}."
            )
        if lower > upper:
            raise ValueError(
                f"Dimension '{name}' has its bounds reversed: low={lower:g} is above "
                f"high={upper:g}. Swap them."
            )
        if scale != "linear" and lower <= 0 and lower != upper:
            raise ValueError(
                f"Dimension '{name}' needs a positive low on the scale '{scale}'; got {lower:g}. "
                f"Raise it, or choose the scale 'linear'."
            )
