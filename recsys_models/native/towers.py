"""What NeuMF's MLP adds to the logits of all pairs, whose units never leave the nearest cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_models.native.library import INT, INT64, POINTER, fits, function, needs_gradient

_ARGUMENTS = (POINTER, INT64, POINTER, INT64, POINTER, INT64, POINTER, POINTER, INT)


def add_towers(
    logits: Tensor,
    user_parts: Tensor,
    item_parts: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    head: Tensor,
) -> bool:
    """Adds h . z_L to the logits of all users and items.

    Args:
        logits: shape (B, I).
        user_parts: the users' share of W_1 z_0 + b_1, shape (B, width of z_1).
        item_parts: the items' share, shape (I, width of z_1).
        layers: weight and bias of each layer after the first.
        head: h, shape (width of z_L,).

    Returns:
        False where torch has to work it out.
    """
    tensors = logits, user_parts, item_parts, head, *(part for layer in layers for part in layer)
    if needs_gradient(tensors) or not fits(torch.float32, logits, user_parts, item_parts):
        return False
    if (add := function("add_towers", _ARGUMENTS)) is None:
        return False
    weights = torch.cat([part.flatten() for part in (*tensors[4:], head)])
    if not fits(torch.float32, weights):
        return False
    widths = torch.tensor([user_parts.shape[1], *(len(bias) for _, bias in layers)])
    return bool(
        add(
            *(user_parts.data_ptr(), len(user_parts), item_parts.data_ptr(), len(item_parts)),
            *(widths.data_ptr(), len(widths), weights.data_ptr(), logits.data_ptr()),
            torch.get_num_threads(),
        )
    )
