"""Products of rows of two tables without copies of the rows, and gradients of tables."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_models.native.library import DOUBLE, INT64, POINTER, fits, function

_TABLES = (POINTER, INT64, POINTER, INT64, INT64)
_IDS = (POINTER, POINTER, INT64, INT64)
_PRODUCTS = (*_TABLES, *_IDS, POINTER)
_GRADIENTS = (POINTER, POINTER, INT64, *_IDS, POINTER, POINTER, POINTER)
_ADD_ROWS = (POINTER, INT64, INT64, POINTER, INT64, POINTER, DOUBLE)


def add_rows(table: Tensor, ids: Tensor, vectors: Tensor, factor: float = 1.0) -> bool:
    """Adds vectors, times a factor, to rows of a table.

    Args:
        table: shape (n, dim).
        ids: of the rows, shape (count,); one may stand there repeatedly.
        vectors: shape (count, dim).
        factor: what they are multiplied by.

    Returns:
        False where torch has to do it.
    """
    vectors = vectors.contiguous()
    if not (fits(torch.float32, table, vectors) and fits(torch.int64, ids)):
        return False
    if (add := function("add_rows", _ADD_ROWS)) is None:
        return False
    pointers = ids.data_ptr(), len(ids), vectors.data_ptr()
    return bool(add(table.data_ptr(), *table.shape, *pointers, factor))


def can_multiply_pairs(left: Tensor, right: Tensor, left_ids: Tensor, right_ids: Tensor) -> bool:
    """Whether the functions below can do their work on these."""
    return (
        fits(torch.float32, left, right)
        and fits(torch.int64, left_ids, right_ids)
        and function("pair_products", _PRODUCTS) is not None
    )


def pair_products(left: Tensor, right: Tensor, left_ids: Tensor, right_ids: Tensor) -> Tensor:
    """Product of each left row with its right rows.

    Args:
        left: shape (m, dim).
        right: shape (n, dim).
        left_ids: shape (B,).
        right_ids: shape (B, count).

    Returns:
        Shape (B, count).

    Raises:
        IndexError: an id is no row of its table.
    """
    multiply = function("pair_products", _PRODUCTS)
    assert multiply is not None
    products = torch.empty(right_ids.shape, dtype=torch.float32)
    done = multiply(
        *(left.data_ptr(), len(left), right.data_ptr(), len(right), left.shape[1]),
        *(left_ids.data_ptr(), right_ids.data_ptr(), *right_ids.shape, products.data_ptr()),
    )
    if not done:
        raise IndexError(
            f"ids must be rows of tables with {len(left)} and {len(right)} rows; got ids from "
            f"{left_ids.min()} to {left_ids.max()} and from {right_ids.min()} to {right_ids.max()}."
        )
    return products


def pair_gradients(
    left: Tensor, right: Tensor, left_ids: Tensor, right_ids: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the tables from those of the products, shape (B, count).

    Where both tables are one, its gradient is the first result, and the second is the same.
    """
    add = function("pair_gradients", _GRADIENTS)
    assert add is not None
    slopes = slopes.contiguous()
    gradient = torch.zeros_like(left)
    other = gradient if left is right else torch.zeros_like(right)
    add(
        *(left.data_ptr(), right.data_ptr(), left.shape[1]),
        *(left_ids.data_ptr(), right_ids.data_ptr(), *right_ids.shape),
        *(slopes.data_ptr(), gradient.data_ptr(), other.data_ptr()),
    )
    return gradient, other
