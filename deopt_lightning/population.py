"""What the search keeps between generations, and the record of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deopt_lightning.equations import FloatArray
from deopt_lightning.search_space import SearchSpace


@dataclass(frozen=True)
class Population:
    """The targets between two generations; row i of each array belongs to target i.

    Attributes:
        vectors: Coordinates, shape (population_size, dimensions).
        perf: The last known perf, shape (population_size,); -inf before the first generation.
        scale_factors: The remembered F, shape (population_size,).
        omegas: The remembered omega, shape (population_size,).
    """

    vectors: FloatArray
    perf: FloatArray
    scale_factors: FloatArray
    omegas: FloatArray


@dataclass(frozen=True)
class Generation:
    """What one completed generation did; row i of each array belongs to target i.

    Attributes:
        targets: Coordinates of the targets X, shape (population_size, dimensions).
        target_perf: perf(X), shape (population_size,).
        trials: Coordinates of the trials U, shaped like the targets.
        trial_perf: perf(U), shape (population_size,).
        scale_factors: The F each trial was built with, shape (population_size,).
        omegas: The omega each trial was built with, shape (population_size,).
        accepted: Which trials took the place of their targets, shape (population_size,).
    """

    targets: FloatArray
    target_perf: FloatArray
    trials: FloatArray
    trial_perf: FloatArray
    scale_factors: FloatArray
    omegas: FloatArray
    accepted: NDArray[np.bool_]


def draw_parents(population_size: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw r1, r2, r3 for each target i, all four different; shape (population_size, 3)."""
    others = rng.random((population_size, population_size - 1)).argsort(axis=1)[:, :3]
    return others + (others >= np.arange(population_size)[:, None])


def latin_hypercube(
    low: FloatArray, high: FloatArray, population_size: int, rng: np.random.Generator
) -> FloatArray:
    """Rows that spread over every dimension: one in each of population_size equal slices of it.

    Args:
        low: Lower bounds, shape (dimensions,).
        high: Upper bounds, shape (dimensions,).
        population_size: The number of rows to draw.
        rng: The random generator; it is advanced.
    """
    shape = (population_size, len(low))
    slices = rng.random(shape).argsort(axis=0)
    return low + (slices + rng.random(shape)) / population_size * (high - low)


def with_first(
    space: SearchSpace, vectors: FloatArray, initial: ArrayLike | None, name: str = "initial"
) -> FloatArray:
    """A first population whose first vectors are the given ones.

    Args:
        space: Gives the bounds.
        vectors: The population, shape (population_size, dimensions); overwritten.
        initial: Up to population_size rows in coordinates, shape (count, dimensions), or None.
        name: What an error calls them.

    Raises:
        ValueError: The given rows do not fit, or lie outside the bounds.
    """
    if initial is None:
        return vectors
    low, high = space.coordinate_low, space.coordinate_high
    given = np.array(initial, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != len(low) or len(given) > len(vectors):
        raise ValueError(
            f"{name} must hold at most {len(vectors)} vectors of {len(low)} coordinates; "
            f"got the shape {given.shape}."
        )
    if not ((given >= low) & (given <= high)).all():
        raise ValueError(
            f"{name} must lie inside the bounds of the space; got {given.tolist()}. "
            f"Encode values with SearchSpace.encode, or widen the bounds."
        )
    vectors[: len(given)] = given
    return vectors
