"""From scores to hits: which of a user's K best items are relevant.

B users, I items, K places. Relevance is 0 or 1.
"""

import torch
from torch import Tensor

from recsys_models.metrics import native

_ROWS_AT_ONCE = 256  # whole rows that are compared at a time where scores tie


def hits_in_one_list(
    scores: Tensor,
    seen_rows: Tensor,
    seen_items: Tensor,
    relevant_rows: Tensor,
    relevant_items: Tensor,
    k: int,
) -> Tensor:
    """Which of the K best unseen items of every user are relevant.

    Equal scores rank the lower id first.

    Args:
        scores: shape (B, I), higher is better. Overwritten: seen items become minus infinity.
        seen_rows: rows of ``scores``, shape (S,).
        seen_items: the item to leave out in each of these rows, shape (S,).
        relevant_rows: rows of ``scores``, shape (R,).
        relevant_items: a relevant item of each of these rows, shape (R,), none named twice. One
            that is to be left out is never a hit.
        k: number of places.

    Returns:
        Booleans in rank order, shape (B, K). Places that no candidate is left for are no hits.

    Raises:
        FloatingPointError: a candidate's score is NaN.
    """
    pairs = seen_rows, seen_items, relevant_rows, relevant_items
    rank = native.ranks(scores, pairs, k, one_by_one=False)
    if rank is None:
        rank = _ranks_in_one_list(scores, *pairs, k)
    return _hits(rank, relevant_rows, len(scores), k)


def hits_one_by_one(
    scores: Tensor,
    seen_rows: Tensor,
    seen_items: Tensor,
    relevant_rows: Tensor,
    relevant_items: Tensor,
    k: int,
) -> Tensor:
    """Where each relevant item ranks on its own among the items its user never had.

    The rank is 1 + the number of items, neither seen nor relevant, with a higher score; an equal
    score does not push it back. This is the protocol of the lambda-opt papers. The row of an item
    is a list with this one relevant item, so any metric below applies with ``num_relevant`` 1: the
    hit rate is 1[rank <= K] and NDCG is 1[rank <= K] / log2(1 + rank).

    Args:
        scores: shape (B, I), higher is better. Overwritten as in ``hits_in_one_list``.
        seen_rows: rows of ``scores``, shape (S,).
        seen_items: the item to leave out in each of these rows, shape (S,).
        relevant_rows: rows of ``scores``, shape (R,).
        relevant_items: a relevant item of each of these rows, shape (R,).
        k: number of places.

    Returns:
        Booleans in rank order, shape (R, K), at most one of them true in each row.

    Raises:
        FloatingPointError: a candidate's score is NaN.
    """
    pairs = seen_rows, seen_items, relevant_rows, relevant_items
    rank = native.ranks(scores, pairs, k, one_by_one=True)
    if rank is None:
        rank = _ranks_one_by_one(scores, *pairs, k)
    return _hits(rank, torch.arange(len(rank), device=rank.device), len(rank), k)


def _ranks_in_one_list(
    scores: Tensor,
    seen_rows: Tensor,
    seen_items: Tensor,
    relevant_rows: Tensor,
    relevant_items: Tensor,
    k: int,
) -> Tensor:
    """How many items rank before each relevant one, shape (R,), or K where that is no hit.

    ``torch.topk`` leaves the order of equal scores open, so ranks are counted: those of the few
    relevant items that reach the K-th best score, among the K + 1 best. Only where an item's score
    is that of place K + 1, and so may tie with items beyond, is the whole row counted.
    """
    scores[seen_rows, seen_items] = -torch.inf
    num_items = scores.shape[1]
    best, items = scores.topk(min(k + 1, num_items), dim=1)
    _refuse_nan(best)  # topk ranks NaN above all numbers, so none escapes here
    own = scores[relevant_rows, relevant_items]
    last = best[relevant_rows, min(k, num_items) - 1]
    near = ((own >= last) & (own > -torch.inf)).nonzero().squeeze(1)
    rows, ids, own = relevant_rows[near], relevant_items[near].unsqueeze(1), own[near].unsqueeze(1)
    rank = _number_ahead(best[rows], items[rows], own, ids)
    if k < num_items:
        tied = own.squeeze(1) == best[rows, k]
        everything = torch.arange(num_items, device=scores.device)
        for some in torch.split(tied.nonzero().squeeze(1), _ROWS_AT_ONCE):
            rank[some] = _number_ahead(scores[rows[some]], everything, own[some], ids[some])
    return torch.full_like(relevant_rows, k).index_copy_(0, near, rank)


def _ranks_one_by_one(
    scores: Tensor,
    seen_rows: Tensor,
    seen_items: Tensor,
    relevant_rows: Tensor,
    relevant_items: Tensor,
    k: int,
) -> Tensor:
    """How many rivals rank before each relevant item, shape (R,), or K or more where no hit."""
    own = scores[relevant_rows, relevant_items]
    scores[seen_rows, seen_items] = -torch.inf
    scores[relevant_rows, relevant_items] = -torch.inf
    best_others = scores.topk(min(k, scores.shape[1]), dim=1).values
    _refuse_nan(best_others)
    _refuse_nan(own)
    near = (own >= best_others[relevant_rows, -1]).nonzero().squeeze(1)
    rank = (best_others[relevant_rows[near]] > own[near].unsqueeze(1)).sum(dim=1)
    return torch.full_like(relevant_rows, k).index_copy_(0, near, rank)


def _hits(rank: Tensor, rows: Tensor, num_rows: int, k: int) -> Tensor:
    """Booleans, shape (num_rows, K): true at the ranks below K of each row."""
    hits = torch.zeros(num_rows, k, dtype=torch.bool, device=rank.device)
    within = (rank < k).nonzero().squeeze(1)
    hits[rows[within], rank[within]] = True
    return hits


def _number_ahead(scores: Tensor, items: Tensor, own: Tensor, own_items: Tensor) -> Tensor:
    """How many items rank before each of R own ones, whose scores and ids have shape (R, 1)."""
    return ((scores > own) | ((scores == own) & (items < own_items))).sum(dim=1)


def _refuse_nan(scores: Tensor) -> None:
    if scores.isnan().any():
        raise FloatingPointError(
            "scores must be numbers to be ranked; got NaN, so the model has diverged: "
            "lower the learning rate or clip the gradients."
        )
