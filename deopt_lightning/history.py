"""What each generation did, as plain data that fits in a checkpoint and in JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deopt_lightning.population import Generation
from deopt_lightning.search_space import SearchSpace


def generation_record(space: SearchSpace, generation: Generation) -> dict[str, Any]:
    """What `DEOptCallback.history` keeps of a generation of targets and trials.

    Args:
        space: Decodes the vectors into values: first N learning rates, then N weight decays.
        generation: What the search did.

    Returns:
        Plain lists, numbers and strings. A perf that was not finite is None.
    """
    return {
        "names": list(space.names),
        "targets": space.decode(generation.targets).tolist(),
        "target_perf": finite(generation.target_perf),
        "trials": space.decode(generation.trials).tolist(),
        "trial_perf": finite(generation.trial_perf),
        "scale_factors": generation.scale_factors.tolist(),
        "omegas": generation.omegas.tolist(),
        "accepted": generation.accepted.tolist(),
    }


def spread(vectors: NDArray[np.float64], space: SearchSpace) -> float:
    """Mean standard deviation of the coordinates, as a share of each dimension's width.

    0 for a population that has collapsed to a point, about 0.29 for a uniform one.
    """
    width = space.coordinate_high - space.coordinate_low
    searched = width > 0
    if not searched.any():
        return 0.0
    return float((vectors[:, searched].std(axis=0) / width[searched]).mean())


def finite(perf: NDArray[np.float64]) -> list[float | None]:
    """Plain numbers, with None for what was not finite."""
    return [value if math.isfinite(value) else None for value in perf.tolist()]
