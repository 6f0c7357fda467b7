"""What LRML's relations change in the distance of all pairs, worked out for 16 items at a time.

Torch writes and reads the weights over slots, N numbers for each pair, five times.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from recsys_models.native.library import (
    INT64,
    POINTER,
    column_parts,
    fits,
    function,
    needs_gradient,
)

_ITEMS = 16  # as ITEMS in relations.c
_ARGUMENTS = (
    *(POINTER, INT64, INT64, POINTER, INT64, POINTER),
    *(POINTER, POINTER, POINTER, INT64, POINTER),
)


def squared_distances(p: Tensor, q: Tensor, keys: Tensor, memories: Tensor) -> Tensor | None:
    """LRML's || p + r - q ||^2 of all users and items, by as many threads as torch has.

    Args:
        p: vectors of B users, shape (B, dim).
        q: vectors of I items, shape (I, dim).
        keys: shape (N, dim).
        memories: shape (N, dim).

    Returns:
        Shape (B, I); None where torch has to work it out.
    """
    vectors = p, q, keys, memories
    if not fits(torch.float32, *vectors) or needs_gradient(vectors):
        return None
    if (add_relations := function("add_relations", _ARGUMENTS)) is None:
        return None
    distances = torch.addmm(p.square().sum(1, keepdim=True) + q.square().sum(1), p, q.T, alpha=-2)
    gram, user_memories = memories @ memories.T, 2 * (p @ memories.T)
    items, item_memories = (column_parts(rows, _ITEMS) for rows in (q.T, 2 * (memories @ q.T)))

    def some(first: int, count: int) -> int:
        return add_relations(
            *(p[first:].data_ptr(), count, p.shape[1], keys.data_ptr(), len(keys)),
            *(gram.data_ptr(), user_memories[first:].data_ptr()),
            *(items.data_ptr(), item_memories.data_ptr(), len(q), distances[first:].data_ptr()),
        )

    threads = torch.get_num_threads()
    if threads == 1:
        return distances if some(0, len(p)) else None
    firsts = torch.arange(len(p)).tensor_split(threads)
    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(lambda users: some(int(users[0]), len(users)), filter(len, firsts))
        return distances if all(done) else None
