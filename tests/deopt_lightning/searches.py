"""Searches of members that live on, around an own vector, that two files of tests share."""

from __future__ import annotations

from typing import Any

import numpy as np

from deopt_lightning.search_space import Bounds, SearchSpace
from deopt_lightning.steady_state import SteadyStateDE

NAN = float("nan")
OWN = np.log10([1e-3, 3e-3, 1e-5, 1e-5])  # lr of two layers, then their weight decay


def around_own(lr_bounds: Bounds = (1e-6, 1.0), **options: Any) -> SteadyStateDE:
    space = SearchSpace.for_layers(["one", "two"], lr_bounds, (1e-7, 1e-3))
    return SteadyStateDE(space, 5, own=OWN, **{"seed": 0} | options)
