"""What LRML's relations change in the distance of all pairs, worked out for some items at a time.

Torch writes and reads the weights over slots, N numbers for each pair, five times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_models.native.library import INT, INT64, POINTER, fits, function, needs_gradient

_VECTORS = (POINTER, INT64, POINTER, INT64, INT64)
_ARGUMENTS = (*_VECTORS, POINTER, INT64, POINTER, POINTER, POINTER, POINTER, INT)


def squared_distances(p: Tensor, q: Tensor, keys: Tensor, memories: Tensor) -> Tensor | None:
    """LRML's || p + r - q ||^2 of all users and items.

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
    gram, user_memories, item_memories = (
        memories @ memories.T,
        2 * (p @ memories.T),
        2 * (q @ memories.T),
    )
    done = add_relations(
        *(p.data_ptr(), len(p), q.data_ptr(), *q.shape, keys.data_ptr(), len(keys)),
        *(gram.data_ptr(), user_memories.data_ptr(), item_memories.data_ptr()),
        *(distances.data_ptr(), torch.get_num_threads()),
    )
    return distances if done else None
