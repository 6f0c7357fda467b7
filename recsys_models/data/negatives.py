"""Uniform sampling of items a user has no pair with: exact, and without retries."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recsys_models.data.interactions import Interactions


class NegativeSampler:
    """Draws, for given users, items outside their training pairs, all with equal probability.

    Let a user's n positives be i_0 < i_1 < ... in a catalogue of I items. Then gap_k = i_k - k
    non-positives lie below i_k, and the non-positive of rank r is r + #{k : gap_k <= r}. A draw is
    therefore one uniform r in 0..I-n-1 and one binary search. Keys user * (I + 1) + gap_k put the
    gaps of all users into one sorted array. Memory: 8 bytes per training pair.

    Args:
        train: pairs that must not be drawn. A user who has all items would have no negative.
    """

    def __init__(self, train: Interactions) -> None:
        indptr, items = train.csr()
        counts = np.diff(indptr)
        full = np.flatnonzero(counts == train.num_items)
        if full.size and len(train):
            raise ValueError(
                "every user needs an item without a training pair, to draw negatives from; "
                f"user {full[0]} has all {train.num_items} items ({full.size} such users). "
                "Remove such users or add items."
            )
        gaps = items - (np.arange(len(train)) - np.repeat(indptr[:-1], counts))
        self._stride = train.num_items + 1
        self._keys = train.users * self._stride + gaps
        self._starts = torch.from_numpy(indptr[:-1].copy())
        self._free = torch.from_numpy(train.num_items - counts)

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
        uniform = torch.rand(
            (users.numel(), num_negatives), dtype=torch.float64, generator=generator
        )
        ranks = (uniform * self._free[users, None]).long()
        queries = ranks + users[:, None] * self._stride
        # NumPy's search stays on one thread. torch's starts several for a batch of this size, and
        # where other processes keep the cores busy, waiting for them takes a hundred times longer.
        found = torch.from_numpy(np.searchsorted(self._keys, queries.numpy(), side="right"))
        return ranks + found - self._starts[users, None]
