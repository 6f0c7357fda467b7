"""What a data set is like in numbers, as in the paper's Table 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys_models.data.interactions import IntArray
from recsys_models.data.ratings import Ratings
from recsys_models.data.splits import Split

Spread = tuple[int, float, int]


@dataclass(frozen=True)
class Statistics:
    """Sizes of a data set and of its split.

    Attributes:
        users: users with a pair.
        items: items with a pair.
        interactions: distinct (user, item) pairs.
        density: interactions divided by users times items.
        per_user: minimum, median and maximum of the pairs of a user with any.
        per_item: minimum, median and maximum of the pairs of an item with any.
        rating_mean: mean rating of the pairs; None without ratings.
        repeated: ratings left out because a later one of the same pair counts.
        dropped: lines left out because by the format's own rule they are no rating.
        train: pairs of the training part.
        validation: pairs of the validation part.
        test: pairs of the test part.
        skipped_at_validation: users without a validation pair, whom validation leaves out.
        skipped_at_test: users without a test pair, whom the test leaves out.
    """

    users: int
    items: int
    interactions: int
    density: float
    per_user: Spread
    per_item: Spread
    rating_mean: float | None
    repeated: int
    dropped: int
    train: int
    validation: int
    test: int
    skipped_at_validation: int
    skipped_at_test: int


def describe(ratings: Ratings, split: Split) -> Statistics:
    """Count a data set and its split."""
    pairs = ratings.interactions
    of_users, of_items = _counts(pairs.users), _counts(pairs.items)
    return Statistics(
        users=len(of_users),
        items=len(of_items),
        interactions=len(pairs),
        density=len(pairs) / (len(of_users) * len(of_items)),
        per_user=_spread(of_users),
        per_item=_spread(of_items),
        rating_mean=None if ratings.values is None else float(ratings.values.mean()),
        repeated=ratings.repeated,
        dropped=ratings.dropped,
        train=len(split.train),
        validation=len(split.validation),
        test=len(split.test),
        skipped_at_validation=len(of_users) - len(_counts(split.validation.users)),
        skipped_at_test=len(of_users) - len(_counts(split.test.users)),
    )


def _counts(ids: IntArray) -> IntArray:
    """How often each id occurs that does."""
    counts = np.bincount(ids)
    return counts[counts > 0]


def _spread(counts: IntArray) -> Spread:
    return int(counts.min()), float(np.median(counts)), int(counts.max())
