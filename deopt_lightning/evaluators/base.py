"""What the search needs from the world: a perf for each candidate."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Evaluator(Protocol):
    """Scores candidates; in unit tests a plain function is one."""

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """Scores a batch.

        Args:
            vectors: (count, 2N) candidates, in coordinates of the search space.

        Returns:
            (count,) perf, higher is better; NaN for a candidate that diverged.
        """
