"""A sparse matrix times a dense one, some columns at a time, which then lie in the cache.

Torch's product takes each row of the dense matrix from memory as often as it is named.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from recsys_models.native.library import INT64, POINTER, fits, function

_ARGUMENTS = (POINTER, POINTER, POINTER, INT64, POINTER, INT64, INT64, POINTER)


def sparse_product(offsets: Tensor, ids: Tensor, values: Tensor, dense: Tensor) -> Tensor | None:
    """A matrix in compressed rows times a dense one, by as many threads as torch has.

    Args:
        offsets: first entry of each row, and the number of entries, shape (rows + 1,), int32.
        ids: column of each entry, below m, shape (entries,), int32.
        values: value of each entry, shape (entries,).
        dense: shape (m, columns).

    Returns:
        The product, shape (rows, columns); None where torch has to work it out.
    """
    if not (fits(torch.int32, offsets, ids) and fits(torch.float32, values)):
        return None
    dense = dense.contiguous()
    if not fits(torch.float32, dense):
        return None
    if (multiply := function("sparse_product", _ARGUMENTS)) is None:
        return None
    rows, threads = len(offsets) - 1, torch.get_num_threads()
    product = torch.empty(rows, dense.shape[1])
    # Shares of equal work, since rows differ in length.
    shares = torch.linspace(0, len(ids), threads + 1)[1:-1].int()
    bounds = [0, *torch.searchsorted(offsets, shares).clamp(max=rows).tolist(), rows]

    def share(first: int, last: int) -> int:
        return multiply(
            *(offsets[first:].data_ptr(), ids.data_ptr(), values.data_ptr(), last - first),
            *(dense.data_ptr(), *dense.shape, product[first:].data_ptr()),
        )

    if threads == 1:
        return product if share(0, rows) else None
    with ThreadPoolExecutor(threads) as pool:
        return product if all(pool.map(share, bounds[:-1], bounds[1:])) else None
