"""Ratings as every reader returns them, and the two filters that papers apply before a split."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recsys_models.data.interactions import IntArray, Interactions

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IdArray = IntArray | NDArray[np.str_]


@dataclass(frozen=True)
class Ratings:
    """Distinct rated pairs, with ids re-indexed in ascending order of the original ids.

    Attributes:
        interactions: the rated (user, item) pairs.
        values: rating of each pair, shape (n,), in the order of `interactions`; None where the
            data set has no ratings.
        user_ids: original id of each user, shape (num_users,), ascending.
        item_ids: original id of each item, shape (num_items,), ascending.
        times: time of each pair, shape (n,), growing; dates in seconds since 1970, numbers as they
            stand in the file. None where the file has no times.
        repeated: ratings left out because a later one of the same pair counts.
        dropped: lines left out because by the format's own rule they are no rating.
    """

    interactions: Interactions
    values: FloatArray | None
    user_ids: IdArray
    item_ids: IdArray
    times: FloatArray | None = None
    repeated: int = 0
    dropped: int = 0

    @classmethod
    def from_rows(
        cls,
        users: tuple[IdArray, IntArray],
        items: tuple[IdArray, IntArray],
        values: FloatArray | None,
        times: FloatArray | None,
        dropped: int = 0,
    ) -> Ratings:
        """Sort rows into pairs; of several ratings of a pair the last in the file counts.

        Args:
            users: original ids, ascending, and each row's position among them (see `index_ids`).
            items: likewise.
            values: rating of each row, or None.
            times: time of each row, or None.
            dropped: number of lines left out before.
        """
        (user_ids, user_of), (item_ids, item_of) = users, items
        keys = user_of * len(item_ids) + item_of
        order = np.argsort(keys, kind="stable")
        is_last = np.append(np.diff(keys[order]) > 0, True)
        kept = order[is_last]
        return cls(
            Interactions(user_of[kept], item_of[kept], len(user_ids), len(item_ids)),
            None if values is None else values[kept],
            user_ids,
            item_ids,
            None if times is None else times[kept],
            repeated=len(order) - len(kept),
            dropped=dropped,
        )

    def select(self, keep: BoolArray) -> Ratings:
        """The pairs where the mask `keep` is true; users and items left without a pair go too."""
        users, user_of = index_ids(self.interactions.users[keep])
        items, item_of = index_ids(self.interactions.items[keep])
        return replace(
            self,
            interactions=Interactions(user_of, item_of, len(users), len(items)),
            values=None if self.values is None else self.values[keep],
            user_ids=self.user_ids[users],
            item_ids=self.item_ids[items],
            times=None if self.times is None else self.times[keep],
        )


def index_ids(ids: IntArray) -> tuple[IntArray, IntArray]:
    """The distinct ids, ascending, and each id's position among them.

    As `numpy.unique` with `return_inverse`, but ids that lie close together, as in most files, are
    counted instead of sorted, which is ten times faster.
    """
    if ids.size and ids.min() >= 0 and ids.max() < 1_000_000 + 2 * ids.size:
        present = np.bincount(ids) > 0
        return np.flatnonzero(present), (np.cumsum(present) - 1)[ids]
    distinct, positions = np.unique(ids, return_inverse=True)
    return distinct, positions


def at_least(ratings: Ratings, threshold: float) -> Ratings:
    """Keep the ratings of `threshold` and above, for example 4 of 5 as "liked"."""
    if ratings.values is None:
        raise ValueError(
            f"rating_threshold={threshold} needs ratings, and this data set has none. "
            "Name the column that holds them with rating_column, or leave the threshold out."
        )
    kept = ratings.select(ratings.values >= threshold)
    if not len(kept.interactions):
        raise ValueError(
            f"rating_threshold={threshold} leaves no rating: they lie between "
            f"{ratings.values.min():g} and {ratings.values.max():g}. Choose a lower threshold."
        )
    return kept


def k_core(ratings: Ratings, k: int) -> Ratings:
    """The largest part in which every user and every item has at least `k` pairs.

    Users and items with fewer go, which may take pairs from others, until none is left to go. The
    result does not depend on the order of removal.
    """
    users, items = ratings.interactions.users, ratings.interactions.items
    keep = np.ones(len(users), dtype=np.bool_)
    while True:
        enough = (np.bincount(users[keep], minlength=ratings.interactions.num_users) >= k)[users]
        enough &= (np.bincount(items[keep], minlength=ratings.interactions.num_items) >= k)[items]
        if np.array_equal(keep, keep & enough):
            break
        keep &= enough
    if not keep.any():
        raise ValueError(
            f"k_core={k} leaves no pair: the {len(users)} pairs of "
            f"{ratings.interactions.num_users} users and {ratings.interactions.num_items} items "
            "hold no part that dense. Choose a smaller k."
        )
    return ratings.select(keep)
