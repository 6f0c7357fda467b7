"""Splits into train, validation and test: at random, per user, or by time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recsys_models.data.interactions import IntArray, Interactions
from recsys_models.data.ratings import FloatArray

SPLITS = ("random", "per_user", "leave_one_out")


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


def per_user_split(interactions: Interactions, ratios: Sequence[float], seed: int) -> Split:
    """Deal every user's pairs at random into three parts, so that all users are judged alike.

    A user with n pairs gives round(train * n) of them, at least one, to train, round(validation *
    n) to validation and what remains to test; with few pairs a part may stay empty.

    Args:
        interactions: the pairs to deal out.
        ratios: shares of train, validation and test.
        seed: of this split's own generator; the same seed gives the same parts.
    """
    train_share, validation_share, _ = check_ratios(ratios)
    draws = np.random.default_rng(seed).random(len(interactions))
    order = np.lexsort((draws, interactions.users))
    places, counts = _places(interactions)
    train_end = np.maximum(np.rint(train_share * counts), 1)
    validation_end = train_end + np.rint(validation_share * counts)
    part = np.empty(len(interactions), dtype=np.int64)
    part[order] = (places >= train_end).astype(np.int64) + (places >= validation_end)
    return Split(*(interactions.select(part == k) for k in range(3)))


def leave_one_out_split(interactions: Interactions, times: FloatArray | None) -> Split:
    """Hold out the last pair of every user for test and the one before it for validation.

    A user with fewer than three pairs stays in train whole. Of pairs of equal time the one with the
    higher item counts as later.

    Args:
        interactions: the pairs.
        times: time of each pair, shape (n,), growing.
    """
    if times is None:
        raise ValueError(
            "split=leave_one_out holds out each user's last pair and so needs the times of all "
            'pairs; this data set has none. Use split="random" or split="per_user", a file with '
            "times, or for a table name the column with time_column."
        )
    order = np.lexsort((times, interactions.users))  # stable: pairs come sorted by item
    places, counts = _places(interactions)
    part = np.empty(len(interactions), dtype=np.int64)
    part[order] = np.where(counts < 3, 0, np.maximum(places - counts + 3, 0))
    return Split(*(interactions.select(part == k) for k in range(3)))


def _places(interactions: Interactions) -> tuple[IntArray, IntArray]:
    """Each pair's place 0, 1, ... among its user's pairs, and how many there are."""
    indptr, _ = interactions.csr()
    counts = np.diff(indptr)[interactions.users]
    return np.arange(len(interactions)) - indptr[interactions.users], counts


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
