"""Rows of embedding tables, and products p_u . q_i of them, for a batch of pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recsys_models import native


def rows(table: Tensor, ids: Tensor) -> Tensor:
    """The rows of a table, shape (n, dim): from ids of shape (...) to (..., dim).

    The same as an embedding's look-up, whose gradient takes five to ten times as long on a CPU.
    """
    flat = ids.flatten()
    if torch.compiler.is_compiling() or not native.fits(torch.float32, table):
        found = table.index_select(0, flat)
    else:
        found = _Rows.apply(table, flat)  # type: ignore[no-untyped-call]
    return found.view(*ids.shape, table.shape[1])


def pair_scores(left: Tensor, right: Tensor, left_ids: Tensor, right_ids: Tensor) -> Tensor:
    """Product of each left row with its right rows; differentiable in the tables.

    Args:
        left: shape (m, dim).
        right: shape (n, dim); may be the very same table.
        left_ids: shape (B,).
        right_ids: shape (B, count).

    Returns:
        Shape (B, count).
    """
    arguments = left, right, left_ids.contiguous(), right_ids.contiguous()
    if torch.compiler.is_compiling() or not native.can_multiply_pairs(*arguments):
        return _by_torch(*arguments)
    scores: Tensor = _PairScores.apply(left is right, *arguments)  # type: ignore[no-untyped-call]
    return scores


def _by_torch(left: Tensor, right: Tensor, left_ids: Tensor, right_ids: Tensor) -> Tensor:
    vectors = rows(left, left_ids)  # right rows one by one, so that less is held at once
    columns = [(vectors * rows(right, ids)).sum(-1, keepdim=True) for ids in right_ids.unbind(1)]
    return torch.cat(columns, dim=1)


class _Rows(torch.autograd.Function):
    """A look-up, whose gradient is worked out in C."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(table, ids)
        return table.index_select(0, ids)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None]:
        table, ids = ctx.saved_tensors
        gradient = torch.zeros_like(table)
        graph = torch.is_grad_enabled()  # of the gradient
        if graph or not native.add_rows(gradient, ids, slopes):
            gradient = gradient.index_add(0, ids, slopes)
        return gradient, None


class _PairScores(torch.autograd.Function):
    """The function in C and its gradient in C; a gradient of that gradient is torch's."""

    @staticmethod
    def forward(ctx: Any, one_table: bool, *arguments: Tensor) -> Tensor:
        ctx.one_table = one_table
        ctx.save_for_backward(*arguments)
        return native.pair_products(*arguments)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        left, right, left_ids, right_ids = ctx.saved_tensors
        right = left if ctx.one_table else right
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            tables = {id(table): table for table in (left, right) if table.requires_grad}
            scores = _by_torch(left, right, left_ids, right_ids)
            found = torch.autograd.grad(scores, list(tables.values()), slopes, create_graph=True)
            gradients = dict(zip(tables, found, strict=True))
            first, second = gradients.get(id(left)), gradients.get(id(right))
        else:
            first, second = native.pair_gradients(left, right, left_ids, right_ids, slopes)
        return None, first, None if ctx.one_table else second, None, None
