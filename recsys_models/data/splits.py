"""Random train, validation and test split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recsys_models.data.interactions import Interactions


class Split(NamedTuple):
    """Three disjoint parts over the same users and items."""

    train: Interactions
    validation: Interactions
    test: Interactions


def random_split(interactions: Interactions, ratios: Sequence[float], seed: int) -> Split:
    """Deal the distinct pairs at random into three parts; the paper uses 70, 10 and 20 %.

    The draw is over all pairs together, not per user, so a user may lack validation or test pairs.

    Args:
        interactions: the pairs to deal out.
        ratios: shares of train, validation and test. The first two sizes are rounded, the test
            part is what remains.
        seed: of this split's own generator; the same seed gives the same parts.
    """
    train_share, validation_share, _ = check_ratios(ratios)
    count = len(interactions)
    order = np.random.default_rng(seed).permutation(count)
    train_end = round(train_share * count)
    validation_end = min(train_end + round(validation_share * count), count)
    parts = np.split(order, [train_end, validation_end])
    return Split(*(interactions.select(np.sort(part)) for part in parts))


def check_ratios(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Return the three shares as floats; raise where they do not describe a split."""
    shares = tuple(float(share) for share in ratios)
    if (
        len(shares) != 3
        or not all(math.isfinite(share) and share >= 0 for share in shares)
        or not math.isclose(sum(shares), 1.0, abs_tol=1e-6)
        or shares[0] == 0
    ):
        raise ValueError(
            "ratios must be three shares (train, validation, test), none negative, train above "
            f"zero, with sum 1; got {list(ratios)}. The paper uses [0.7, 0.1, 0.2]."
        )
    return shares[0], shares[1], shares[2]
