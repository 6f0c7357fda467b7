"""Ranks of relevant items, counted.

`torch.topk` sorts what only has to be compared: a relevant item's rank is the number of items
before it. Counting takes one pass over a row of scores, or the first part of it where K are found
there. Torch has no operation for this that does not write as much as it reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_models.data.batches import RankingBatch
from recsys_models.native.library import INT, INT64, POINTER, fits, function

_PAIRS = (POINTER, POINTER, INT64)
_RESULT = (*_PAIRS, *_PAIRS, INT, INT64, POINTER, POINTER)
_OF_SCORES = (POINTER, INT64, INT64, *_RESULT)
_OF_PRODUCTS = (POINTER, POINTER, POINTER, INT64, INT64, INT64, *_RESULT, INT)


def ranks(scores: Tensor, batch: RankingBatch, k: int) -> Tensor | None:
    """The result of ``ranks_of_relevant``.

    Returns:
        None where torch has to work it out, or to say what is wrong.
    """
    if not fits(torch.float32, scores):
        return None
    return _counted("ranks", _OF_SCORES, (scores.data_ptr(), *scores.shape), batch, k)


def product_ranks(
    users: Tensor, items: Tensor, bias: Tensor | None, batch: RankingBatch, k: int
) -> Tensor | None:
    """The same of scores that are products of vectors, which no matrix holds.

    Args:
        users: of the batch, shape (B, dim).
        items: shape (I, dim).
        bias: added to the items' scores, shape (I,).
        batch: the users; rows of its entries ascend.
        k: number of places.
    """
    tensors = (users, items) if bias is None else (users, items, bias)
    fit = users.shape[1] == items.shape[1] and (bias is None or len(bias) == len(items))
    if not (fit and fits(torch.float32, *tensors)):
        return None
    pointers = users.data_ptr(), items.data_ptr(), None if bias is None else bias.data_ptr()
    sizes = len(users), *items.shape
    return _counted(
        "product_ranks", _OF_PRODUCTS, (*pointers, *sizes), batch, k, torch.get_num_threads()
    )


def _counted(
    name: str,
    types: tuple[type, ...],
    scores: tuple[int | None, ...],
    batch: RankingBatch,
    k: int,
    *threads: int,
) -> Tensor | None:
    ids = [part.contiguous() for part in batch[1:5]]
    if len(ids[0]) != len(ids[1]) or len(ids[2]) != len(ids[3]) or not fits(torch.int64, *ids):
        return None
    if (count := function(name, types)) is None:
        return None
    seen_rows, seen_items, relevant_rows, relevant_items = ids
    found = torch.empty(len(relevant_rows), dtype=torch.int64)
    own = torch.empty(len(relevant_rows), dtype=torch.float32)
    done = count(
        *scores,
        *(seen_rows.data_ptr(), seen_items.data_ptr(), len(seen_rows)),
        *(relevant_rows.data_ptr(), relevant_items.data_ptr(), len(relevant_rows)),
        *(batch.one_by_one, k, own.data_ptr(), found.data_ptr()),
        *threads,
    )
    return found if done else None
