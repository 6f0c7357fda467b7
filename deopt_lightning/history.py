"""What each generation did, as plain data that fits in a checkpoint and in JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deopt_lightning.generation import GenerationResult
from deopt_lightning.search_space import SearchSpace


def generation_record(epoch: int, space: SearchSpace, result: GenerationResult) -> dict[str, Any]:
    """One row of `DEOptCallback.history`.

    Args:
        epoch: The epoch, from 0, at whose end the generation ran.
        space: Decodes the vectors into values: first N learning rates, then N weight decays.
        result: What the generation did and what it cost.

    Returns:
        Plain lists, numbers and strings. A perf that was not finite is None.
    """
    generation = result.generation
    return {
        "epoch": epoch,
        "names": list(space.names),
        "targets": space.decode(generation.targets).tolist(),
        "target_perf": _finite(generation.target_perf),
        "trials": space.decode(generation.trials).tolist(),
        "trial_perf": _finite(generation.trial_perf),
        "scale_factors": generation.scale_factors.tolist(),
        "omegas": generation.omegas.tolist(),
        "accepted": generation.accepted.tolist(),
        "probe_steps": result.probe_steps,
        "evaluations": result.evaluations,
        "seconds": result.seconds,
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


def _finite(perf: NDArray[np.float64]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in perf.tolist()]
