"""Means over seeds, and the tests of whether a tuner ranks better than the baseline."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (divisor n - 1) over seeds; one seed has no deviation."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def one_sided_signed_rank(differences: Sequence[float]) -> float | None:
    """P-value of Wilcoxon's signed-rank test that the differences lie above 0.

    It is exact up to 50 pairs without ties, like the paper's: with its six pairs, six gains give
    1/64. Pairs without a difference are left out; None where no pair is left.
    """
    return _signed_rank(np.asarray(differences, dtype=np.float64), "greater")


def two_sided_signed_rank(differences: NDArray[np.float64]) -> float | None:
    """P-value of Wilcoxon's signed-rank test that the differences do not lie around 0."""
    return _signed_rank(differences, "two-sided")


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm, 1979).

    In rising order the k-th of n (from 0) is multiplied by n - k, and none falls below the one
    before it nor rises above 1.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for k, position in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - k) * p_values[position]))
        corrected[position] = highest
    return corrected


def _signed_rank(differences: NDArray[np.float64], alternative: str) -> float | None:
    moved = differences[differences != 0]
    if not len(moved):
        return None
    return float(stats.wilcoxon(moved, alternative=alternative).pvalue)
