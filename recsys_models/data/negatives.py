"""Uniform sampling of items a user has no pair with: exact, in at most three draws."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_models.data.interactions import Interactions
from recsys_models.data.ratings import IdArray

_BITMAP_BYTES = 64 * 2**20


class NegativeSampler:
    """Draws, for given users, items outside their training pairs, all with equal probability.

    Let a user's n positives be i_0 < i_1 < ... in a catalogue of I items. Then gap_k = i_k - k
    non-positives lie below i_k, and the non-positive of rank r is r + #{k : gap_k <= r}. A draw is
    therefore one uniform r in 0..I-n-1 and one binary search. Keys user * (I + 1) + gap_k put the
    gaps of all users into one sorted array. Memory: 8 bytes per training pair.

    Such a search misses the caches. So where one bit per user and item fits into ``_BITMAP_BYTES``,
    an item is drawn from all I first, and once more if it is a positive; the search then replaces
    the few that are positives still. Every non-positive stays as likely as any other.

    Args:
        train: pairs that must not be drawn. A user who has all items would have no negative.
        user_ids: of the rating file, by which such a user is named.
    """

    def __init__(self, train: Interactions, user_ids: IdArray | None = None) -> None:
        indptr, items = train.csr()
        counts = np.diff(indptr)
        full = np.flatnonzero(counts == train.num_items)
        if full.size and len(train):
            name = full[0] if user_ids is None else user_ids[full[0]]
            raise ValueError(
                "every user needs an item without a training pair, to draw negatives from; "
                f"user {name} has all {train.num_items} items ({full.size} such users). "
                "Remove such users or add items."
            )
        gaps = items - (np.arange(len(train)) - np.repeat(indptr[:-1], counts))
        self._num_items = train.num_items
        self._stride = train.num_items + 1
        self._keys = train.users * self._stride + gaps
        self._starts = torch.from_numpy(indptr[:-1].copy())
        self._free = torch.from_numpy(train.num_items - counts)
        fits = train.num_users * train.num_items <= 8 * _BITMAP_BYTES
        self._bitmap = _bitmap(train) if fits else None

    def sample(
        self, users: Tensor, num_negatives: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw `num_negatives` items per user, with replacement.

        Args:
            users: shape (B,), int64, on the CPU.
            num_negatives: draws per user.
            generator: source of randomness; torch's global one when None.

        Returns:
            Items, shape (B, num_negatives), int64.
        """
        users = users.repeat_interleave(num_negatives)
        if self._bitmap is None:
            return self._search(users, generator).view(-1, num_negatives)
        items = torch.randint(self._num_items, users.shape, generator=generator)
        again = self._positives(self._bitmap, users, items)
        items[again] = torch.randint(self._num_items, again.shape, generator=generator)
        again = again[self._positives(self._bitmap, users[again], items[again])]
        items[again] = self._search(users[again], generator)
        return items.view(-1, num_negatives)

    # NumPy's look-ups and search stay on one thread. torch's start several for a batch of this
    # size, and where other processes keep the cores busy, waiting for them takes a hundred times
    # longer.

    def _positives(self, bitmap: NDArray[np.uint8], users: Tensor, items: Tensor) -> Tensor:
        """Places at which the user has the item."""
        pairs = (users * self._num_items + items).numpy()
        return torch.from_numpy(np.flatnonzero(bitmap[pairs >> 3] >> (pairs & 7) & 1))

    def _search(self, users: Tensor, generator: torch.Generator | None) -> Tensor:
        """One non-positive for each user, by rank."""
        uniform = torch.rand(users.shape, dtype=torch.float64, generator=generator)
        ranks = (uniform * self._free[users]).long()
        queries = ranks + users * self._stride
        found = torch.from_numpy(np.searchsorted(self._keys, queries.numpy(), side="right"))
        return ranks + found - self._starts[users]


def _bitmap(train: Interactions) -> NDArray[np.uint8]:
    """Bit user * num_items + item, lowest first in each byte, is set for each training pair."""
    pairs = train.users * train.num_items + train.items
    bitmap = np.zeros(train.num_users * train.num_items // 8 + 1, dtype=np.uint8)
    np.bitwise_or.at(bitmap, pairs >> 3, (1 << (pairs & 7)).astype(np.uint8))
    return bitmap
