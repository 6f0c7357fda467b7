"""A sparse matrix times a dense one, some columns at a time, which then lie in the cache.

Torch's product takes each row of the dense matrix from memory as often as it is named.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn.functional import pad

from recsys_models.native.library import INT64, POINTER, fits, function

_WIDTH = 32  # as WIDTH in sparse.c
_ARGUMENTS = (POINTER, POINTER, POINTER, INT64, POINTER, INT64, INT64, POINTER)


def column_parts(dense: Tensor) -> Tensor:
    """A dense matrix as ``sparse_product`` reads it, for one that is multiplied often.

    Args:
        dense: shape (m, columns).

    Returns:
        Its columns, some at a time with zeros after the last, shape (parts, m, _WIDTH).
    """
    padded = pad(dense, (0, -dense.shape[1] % _WIDTH))
    return padded.view(len(dense), -1, _WIDTH).transpose(0, 1).contiguous()


def sparse_product(
    offsets: Tensor, ids: Tensor, values: Tensor, dense: Tensor, parts: Tensor | None = None
) -> Tensor | None:
    """A matrix in compressed rows times a dense one, by as many threads as torch has.

    Args:
        offsets: first entry of each row, and the number of entries, shape (rows + 1,), int32.
        ids: column of each entry, below m, shape (entries,), int32.
        values: value of each entry, shape (entries,).
        dense: shape (m, columns).
        parts: ``column_parts(dense)``, if they are there already.

    Returns:
        The product, shape (rows, columns); None where torch has to work it out.
    """
    if (multiply := function("sparse_product", _ARGUMENTS)) is None:
        return None
    parts = column_parts(dense) if parts is None else parts
    if not (fits(torch.int32, offsets, ids) and fits(torch.float32, values, parts)):
        return None
    rows, threads = len(offsets) - 1, torch.get_num_threads()
    product = torch.empty(rows, dense.shape[1])

    def share(first: int, last: int) -> None:
        multiply(
            *(offsets[first:].data_ptr(), ids.data_ptr(), values.data_ptr(), last - first),
            *(parts.data_ptr(), *dense.shape, product[first:].data_ptr()),
        )

    if threads == 1:
        share(0, rows)
        return product
    # Shares of equal work, since rows differ in length.
    shares = torch.linspace(0, len(ids), threads + 1)[1:-1].int()
    bounds = [0, *torch.searchsorted(offsets, shares).clamp(max=rows).tolist(), rows]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, bounds[:-1], bounds[1:]))
    return product
