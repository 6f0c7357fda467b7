"""Steps of an optimizer over some rows of a table, each of them read and written once."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_models.native.library import DOUBLE, INT64, POINTER, fits, function

_CATCH_UP = (POINTER, INT64, INT64, POINTER, POINTER, POINTER, POINTER, INT64, POINTER)
_VISIT = (INT64, INT64, POINTER, INT64, POINTER)
_MOMENTUM = (POINTER, POINTER, POINTER, POINTER, INT64, *_VISIT, POINTER, *[DOUBLE] * 3)
_ADAM = (POINTER, POINTER, POINTER, *_VISIT, POINTER, *[DOUBLE] * 6)


def caught_up_rows(
    table: Tensor, momentum: Tensor, written_after: Tensor, products: Tensor, ids: Tensor
) -> Tensor | None:
    """Rows with all deferred steps done, see ``deferred.caught_up``.

    Args:
        table: shape (rows, dim).
        momentum: likewise.
        written_after: shape (rows,), int32.
        products: shape (steps, 4), float64.
        ids: of the rows, shape (n,).

    Returns:
        Shape (n, dim); None where torch has to work it out.
    """
    if not (_fit(table, momentum, written_after, products) and fits(torch.int64, ids)):
        return None
    if (catch_up := function("caught_up_rows", _CATCH_UP)) is None:
        return None
    found = table.new_empty(len(ids), table.shape[1])
    done = catch_up(
        *(table.data_ptr(), *table.shape, momentum.data_ptr(), written_after.data_ptr()),
        *(products.data_ptr(), ids.data_ptr(), len(ids), found.data_ptr()),
    )
    return found if done else None


def momentum_rows(
    table: Tensor,
    momentum: Tensor,
    written_after: Tensor,
    products: Tensor,
    number: int,
    ids: Tensor,
    grad: Tensor,
    last: Tensor,
    options: tuple[float, ...],
) -> bool:
    """A step of SGD with momentum, which is deferred for all other rows.

    Args:
        table: shape (rows, dim), of which rows are overwritten.
        momentum: likewise.
        written_after: see ``deferred``, as are the next two; shape (rows,), int32.
        products: shape (steps, 4), float64.
        number: of this step, at least 1 and below ``steps``.
        ids: of the rows, shape (n,); one may stand there repeatedly.
        grad: shape (n, dim); a row's gradients are summed.
        last: room to work in, shape (rows,), int64.
        options: lr, momentum and weight decay.

    Returns:
        False where torch has to do it.
    """
    grad = grad.contiguous()
    if not (
        _fit(table, momentum, written_after, products)
        and fits(torch.float32, grad)
        and fits(torch.int64, ids, last)
    ):
        return False
    if (step := function("momentum_rows", _MOMENTUM)) is None:
        return False
    return bool(
        step(
            *(table.data_ptr(), momentum.data_ptr(), written_after.data_ptr()),
            *(products.data_ptr(), number, *table.shape, ids.data_ptr(), len(ids)),
            *(grad.data_ptr(), last.data_ptr(), *options),
        )
    )


def adam_rows(
    table: Tensor,
    first: Tensor,
    second: Tensor,
    ids: Tensor,
    grad: Tensor,
    last: Tensor,
    options: tuple[float, ...],
) -> bool:
    """A step of Adam, as the above.

    Args:
        table: shape (rows, dim), of which rows are overwritten.
        first: the first moment, likewise.
        second: the second moment, likewise.
        ids: of the rows, shape (n,); one may stand there repeatedly.
        grad: shape (n, dim).
        last: room to work in, shape (rows,), int64.
        options: lr, both betas, eps, weight decay and the number of this step, from 1.

    Returns:
        False where torch has to do it.
    """
    grad = grad.contiguous()
    if not (fits(torch.float32, table, first, second, grad) and fits(torch.int64, ids, last)):
        return False
    if (step := function("adam_rows", _ADAM)) is None:
        return False
    return bool(
        step(
            *(table.data_ptr(), first.data_ptr(), second.data_ptr(), *table.shape),
            *(ids.data_ptr(), len(ids), grad.data_ptr(), last.data_ptr(), *options),
        )
    )


def _fit(table: Tensor, momentum: Tensor, written_after: Tensor, products: Tensor) -> bool:
    """Whether what is deferred is of the types that the functions take."""
    return (
        fits(torch.float32, table, momentum)
        and fits(torch.int32, written_after)
        and fits(torch.float64, products)
    )
