"""What the search keeps between generations, and the record of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deopt_lightning.equations import FloatArray


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
