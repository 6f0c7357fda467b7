"""Ranks of relevant items, counted.

`torch.topk` sorts what only has to be compared: a relevant item's rank is the number of items
before it. Counting takes one pass over a row of scores, or the first part of it where K are found
there. Torch has no operation for this that does not write as much as it reads.

Where scores are products of vectors, most need not even be worked out: items lie by the largest
score that they may reach, so that K others are found early, and it is known early, by the
Cauchy-Schwarz inequality, that no further one can rank before. LEMP (Teflioudi et al., SIGMOD 2015)
leaves items out by such bounds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from recsys_models.data.batches import RankingBatch
from recsys_models.native.library import INT, INT64, POINTER, fits, function

_PAIRS = (POINTER, POINTER, INT64)
_RESULT = (*_PAIRS, *_PAIRS, INT, INT64, POINTER, POINTER)
_OF_SCORES = (POINTER, INT64, INT64, *_RESULT)
_OF_PRODUCTS = (*(POINTER,) * 5, INT64, INT64, INT64, *_RESULT, INT)
_OF_ITEMS = (POINTER, INT64, POINTER, POINTER, INT64, INT64, *(POINTER,) * 3, INT64, INT)
_LAID = 32  # of which there is a multiple of items, as in C


def ranks(scores: Tensor, batch: RankingBatch, k: int) -> Tensor | None:
    """The result of ``ranks_of_relevant``.

    Returns:
        None where torch has to work it out, or to say what is wrong.
    """
    if not fits(torch.float32, scores):
        return None
    return _counted("ranks", _OF_SCORES, (scores.data_ptr(), *scores.shape), batch, k)


class LaidItems(NamedTuple):
    """Items as `product_ranks` reads them, those first that may score most.

    Attributes:
        vectors: the items' vectors and biases, and how large these are from a place on, shape
            (dim + 2, I or a few more).
        places: the item in each place and the place of each item, int32, shape (2, I or a few
            more).
        direction: in which most users' vectors lie, of length 1, shape (dim,).
    """

    vectors: Tensor
    places: Tensor
    direction: Tensor


def laid_items(users: Tensor, items: Tensor, bias: Tensor | None) -> LaidItems | None:
    """Lays items out; the copy serves any number of batches.

    Args:
        users: shape (U, dim). What their vectors are like decides in what order items are looked
            at, which changes no rank.
        items: shape (I, dim).
        bias: added to the items' scores, shape (I,).

    Returns:
        None where torch has to work with what there is.
    """
    if not fits(torch.float32, users, items, *([] if bias is None else [bias])):
        return None
    if users.shape[1] != items.shape[1] or (bias is not None and len(bias) != len(items)):
        return None
    if (lay := function("lay_items", _OF_ITEMS)) is None:
        return None
    columns, dim = items.shape
    stride = -(-columns // _LAID) * _LAID
    laid = LaidItems(
        vectors=torch.zeros(dim + 2, stride),
        places=torch.empty(2, stride, dtype=torch.int32),
        direction=torch.empty(dim),
    )
    done = lay(
        *(users.data_ptr(), len(users), items.data_ptr()),
        *(None if bias is None else bias.data_ptr(), columns, dim),
        *(each.data_ptr() for each in laid),
        *(stride, torch.get_num_threads()),
    )
    return laid if done else None


def product_ranks(
    users: Tensor, items: Tensor, laid: LaidItems, batch: RankingBatch, k: int
) -> Tensor | None:
    """The same of scores that are products of vectors, most of which need not be worked out.

    Args:
        users: of the batch, shape (B, dim).
        items: shape (I, dim).
        laid: the items as `laid_items` has laid them out.
        batch: the users; rows of its entries ascend.
        k: number of places.
    """
    if users.shape[1] != items.shape[1] or not fits(torch.float32, users, items):
        return None
    tables = [each.data_ptr() for each in (users, items, *laid)]
    scores = *tables, len(users), *items.shape
    return _counted("product_ranks", _OF_PRODUCTS, scores, batch, k, torch.get_num_threads())


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
