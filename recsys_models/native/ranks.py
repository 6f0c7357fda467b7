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

_MATRIX = (POINTER, INT64, INT64)
_PAIRS = (POINTER, POINTER, INT64)
_ARGUMENTS = (*_MATRIX, *_PAIRS, *_PAIRS, INT, INT64, POINTER, POINTER)


def ranks(scores: Tensor, batch: RankingBatch, k: int) -> Tensor | None:
    """The result of ``ranks_of_relevant``.

    Returns:
        None where torch has to work it out, or to say what is wrong.
    """
    ids = [part.contiguous() for part in batch[1:5]]
    if len(ids[0]) != len(ids[1]) or len(ids[2]) != len(ids[3]):
        return None
    if not (fits(torch.int64, *ids) and fits(torch.float32, scores)):
        return None
    if (count := function("ranks", _ARGUMENTS)) is None:
        return None
    seen_rows, seen_items, relevant_rows, relevant_items = ids
    found = torch.empty(len(relevant_rows), dtype=torch.int64)
    own = torch.empty(len(relevant_rows))
    done = count(
        *(scores.data_ptr(), len(scores), scores.shape[1]),
        *(seen_rows.data_ptr(), seen_items.data_ptr(), len(seen_rows)),
        *(relevant_rows.data_ptr(), relevant_items.data_ptr(), len(relevant_rows)),
        *(batch.one_by_one, k, own.data_ptr(), found.data_ptr()),
    )
    return found if done else None
