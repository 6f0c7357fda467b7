"""The two kinds of batches that the data module hands to a model."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TrainBatch(NamedTuple):
    """Observed pairs, each with freshly drawn negatives.

    Attributes:
        users: shape (B,), int64.
        items: the positive of each user, shape (B,), int64.
        negatives: items the user has no training pair with, shape (B, num_negatives), int64.
    """

    users: Tensor
    items: Tensor
    negatives: Tensor


class RankingBatch(NamedTuple):
    """Users to rank all items for; entries with row b belong to users[b].

    Attributes:
        users: shape (B,), int64, each with at least one relevant item.
        seen_rows: row of each item to mask, shape (S,), int64.
        seen_items: items to mask, shape (S,), int64.
        relevant_rows: row of each held-out positive, shape (R,), int64.
        relevant_items: held-out positives, shape (R,), int64.
    """

    users: Tensor
    seen_rows: Tensor
    seen_items: Tensor
    relevant_rows: Tensor
    relevant_items: Tensor
