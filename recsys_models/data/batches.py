"""The two kinds of batches that the data module hands to a model."""

from __future__ import annotations

from typing import NamedTuple

import torch
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
        one_by_one: rank each held-out positive alone among the items the user never had, instead
            of all of them in one list.
    """

    users: Tensor
    seen_rows: Tensor
    seen_items: Tensor
    relevant_rows: Tensor
    relevant_items: Tensor
    one_by_one: bool = False

    def on(self, device: torch.device | str) -> RankingBatch:
        """The same batch on a device."""
        users, seen_rows, seen_items, rows, items = (ids.to(device) for ids in self[:5])
        return RankingBatch(users, seen_rows, seen_items, rows, items, self.one_by_one)

    def split(self, size: int) -> list[RankingBatch]:
        """The same users in batches of up to ``size``; in one if entries are not in rows' order."""
        rows = self.seen_rows.contiguous(), self.relevant_rows.contiguous()
        if size >= len(self.users) or not all(map(_ascends, rows)):
            return [self]
        starts = torch.arange(0, len(self.users) + size, size)
        seen, relevant = (torch.searchsorted(each, starts).tolist() for each in rows)
        parts = []
        for number, start in enumerate(starts[:-1].tolist()):
            left_out = slice(*seen[number : number + 2])
            held_out = slice(*relevant[number : number + 2])
            parts.append(
                RankingBatch(
                    self.users[start : start + size],
                    self.seen_rows[left_out] - start,
                    self.seen_items[left_out],
                    self.relevant_rows[held_out] - start,
                    self.relevant_items[held_out],
                    self.one_by_one,
                )
            )
        return parts


def _ascends(rows: Tensor) -> bool:
    return bool((rows[1:] >= rows[:-1]).all())
