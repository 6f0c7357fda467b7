"""Eq. 6 to 10 of the paper, one pure function each, in the order of the paper.

Row i of every matrix belongs to target X_i, so one call serves a whole population: matrices have
the shape (population_size, dimensions), scale factors F and omegas the shape (population_size,).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def initial_population(
    low: FloatArray, high: FloatArray, population_size: int, rng: np.random.Generator
) -> FloatArray:
    """Eq. (6). Draw every coordinate uniformly between its bounds: X = low + rand (high - low).

    Args:
        low: Lower bounds, shape (dimensions,).
        high: Upper bounds, shape (dimensions,).
        population_size: The number of rows to draw.
        rng: The random generator; it is advanced.
    """
    return low + rng.random((population_size, len(low))) * (high - low)


def mutant_vectors(
    x_r1: FloatArray, x_r2: FloatArray, x_r3: FloatArray, scale_factors: FloatArray
) -> FloatArray:
    """Eq. (7). Mutants V = X_r1 + F (X_r2 - X_r3)."""
    return x_r1 + scale_factors[:, None] * (x_r2 - x_r3)


def trial_vectors(targets: FloatArray, mutants: FloatArray, omegas: FloatArray) -> FloatArray:
    """Eq. (8). Arithmetic crossover U = X + omega (V - X): a point between target and mutant."""
    return targets + omegas[:, None] * (mutants - targets)


def current_to_rand(
    targets: FloatArray,
    x_r1: FloatArray,
    x_r2: FloatArray,
    x_r3: FloatArray,
    scale_factors: FloatArray,
    omegas: FloatArray,
) -> FloatArray:
    """Eq. (9). Trials U = X + omega (X_r1 - X) + F (X_r2 - X_r3), as printed.

    The paper derives this line by putting the mutant into the crossover, but that would scale
    the difference by omega * F. The printed line leaves F alone, and so does this function.
    """
    return targets + omegas[:, None] * (x_r1 - targets) + scale_factors[:, None] * (x_r2 - x_r3)


def select(
    targets: FloatArray, target_perf: FloatArray, trials: FloatArray, trial_perf: FloatArray
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Eq. (10). A trial takes the place of its target if perf(U) >= perf(X).

    Returns:
        The surviving vectors, their perf, and which trials were accepted.
    """
    accepted = trial_perf >= target_perf
    survivors = np.where(accepted[:, None], trials, targets)
    return survivors, np.where(accepted, trial_perf, target_perf), accepted
