"""A sparse matrix times a dense one, some columns at a time, which then lie in the cache.

Torch's product takes each row of the dense matrix from memory as often as it is named.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_models.native.library import INT64, POINTER, column_parts, fits, function

PART_WIDTH = 32  # as WIDTH in sparse.c
_MOST_THREADS = 4  # torch's product takes three to four times as long on one core
_ARGUMENTS = (POINTER, POINTER, POINTER, INT64, POINTER, INT64, INT64, POINTER)


def sparse_product(
    offsets: Tensor, ids: Tensor, values: Tensor, dense: Tensor, parts: Tensor | None = None
) -> Tensor | None:
    """A matrix in compressed rows times a dense one, on one core.

    Two gain nothing, since it is the cache that they wait for.

    Args:
        offsets: first entry of each row, and the number of entries, shape (rows + 1,), int32.
        ids: column of each entry, below m, shape (entries,), int32.
        values: value of each entry, shape (entries,).
        dense: shape (m, columns).
        parts: ``column_parts(dense, PART_WIDTH)``, if they are there already.

    Returns:
        The product, shape (rows, columns); None where torch has to work it out, or may do so with
        enough threads to be as fast.
    """
    multiply = function("sparse_product", _ARGUMENTS)
    if multiply is None or torch.get_num_threads() > _MOST_THREADS:
        return None
    parts = column_parts(dense, PART_WIDTH) if parts is None else parts
    if not (fits(torch.int32, offsets, ids) and fits(torch.float32, values, parts)):
        return None
    rows = len(offsets) - 1
    product = torch.empty(rows, dense.shape[1], dtype=torch.float32)
    multiply(
        *(offsets.data_ptr(), ids.data_ptr(), values.data_ptr(), rows),
        *(parts.data_ptr(), *dense.shape, product.data_ptr()),
    )
    return product
