"""Ranking metrics at K as pure functions: from scores to top K, from top K to hits, to a number.

B users, I items, K places. Relevance is 0 or 1. Every metric gives one float64 value per user; the
mean over users is taken by the caller, who leaves out users without a relevant item.
"""

from collections.abc import Callable

import torch
from torch import Tensor

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

    Equal scores rank the lower id first. ``torch.topk`` leaves their order open, so ranks are
    counted: those of the few relevant items that reach the K-th best score, among the K + 1 best.
    Only where an item's score is that of place K + 1, and so may tie with items beyond, is the
    whole row counted.

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
    scores[seen_rows, seen_items] = -torch.inf
    num_items = scores.shape[1]
    best, items = scores.topk(min(k + 1, num_items), dim=1)
    _refuse_nan(best)  # topk ranks NaN above all numbers, so none escapes here
    own = scores[relevant_rows, relevant_items]
    last = best[relevant_rows, min(k, num_items) - 1]
    near = (own >= last) & (own > -torch.inf)
    rows, ids, own = relevant_rows[near], relevant_items[near].unsqueeze(1), own[near].unsqueeze(1)
    rank = _number_ahead(best[rows], items[rows], own, ids)
    if k < num_items:
        tied = own.squeeze(1) == best[rows, k]
        everything = torch.arange(num_items, device=scores.device)
        for some in torch.split(tied.nonzero().squeeze(1), _ROWS_AT_ONCE):
            rank[some] = _number_ahead(scores[rows[some]], everything, own[some], ids[some])
    hits = torch.zeros(len(scores), k, dtype=torch.bool, device=scores.device)
    within = rank < k
    hits[rows[within], rank[within]] = True
    return hits


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
    own = scores[relevant_rows, relevant_items]
    scores[seen_rows, seen_items] = -torch.inf
    scores[relevant_rows, relevant_items] = -torch.inf
    best_others = scores.topk(min(k, scores.shape[1]), dim=1).values
    _refuse_nan(best_others)
    _refuse_nan(own)
    hits = torch.zeros(len(own), k, dtype=torch.bool, device=scores.device)
    near = (own >= best_others[relevant_rows, -1]).nonzero().squeeze(1)
    rank = (best_others[relevant_rows[near]] > own[near].unsqueeze(1)).sum(dim=1)
    within = rank < k
    hits[near[within], rank[within]] = True
    return hits


def ndcg(hits: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """Normalised discounted cumulative gain at K.

    DCG is the sum of 1 / log2(rank + 1) over the hits among the first K ranks (counted from 1).
    The denominator is the DCG of an ideal list: the first min(K, num_relevant) ranks all hit.

    Args:
        hits: booleans in rank order, shape (B, at least K).
        num_relevant: relevant items of each user, shape (B,), at least 1.
        k: number of ranks that count.

    Returns:
        NDCG@K of each user, shape (B,).
    """
    ranks = torch.arange(1, k + 1, device=hits.device)
    gains = 1.0 / torch.log2(ranks.double() + 1.0)
    dcg = hits[:, :k].double() @ gains[: hits.shape[1]]
    ideal = (ranks <= num_relevant.unsqueeze(1)).double() @ gains
    return dcg / ideal


def recall(hits: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """Recall at K: hits among the first K ranks, divided by all relevant items of the user.

    The denominator is not cut to K, so the best possible value is below 1 for a user with more
    than K relevant items.

    Args:
        hits: booleans in rank order, shape (B, at least K).
        num_relevant: relevant items of each user, shape (B,), at least 1.
        k: number of ranks that count.

    Returns:
        Recall@K of each user, shape (B,).
    """
    return hits[:, :k].sum(dim=1).double() / num_relevant


def hit_rate(hits: Tensor, k: int) -> Tensor:
    """Hit rate at K: 1 if any of the first K ranks is a hit, else 0.

    Args:
        hits: booleans in rank order, shape (B, at least K).
        k: number of ranks that count.

    Returns:
        HR@K of each user, shape (B,).
    """
    return hits[:, :k].any(dim=1).double()


def reciprocal_rank(hits: Tensor, k: int) -> Tensor:
    """Reciprocal rank at K, whose mean over users is MRR@K: 1 / rank of the first hit.

    It is 0 where none of the first K ranks is a hit.

    Args:
        hits: booleans in rank order, shape (B, at least K).
        k: number of ranks that count.

    Returns:
        The value of each user, shape (B,).
    """
    ranks = torch.arange(1, hits[:, :k].shape[1] + 1, device=hits.device)
    return (hits[:, :k] / ranks.double()).max(dim=1).values


def precision(hits: Tensor, k: int) -> Tensor:
    """Precision at K: hits among the first K ranks, divided by K.

    The denominator stays K where the list is shorter or the user has fewer relevant items, so the
    best possible value may be below 1.

    Args:
        hits: booleans in rank order, shape (B, at least K).
        k: number of ranks that count.

    Returns:
        Precision@K of each user, shape (B,).
    """
    return hits[:, :k].sum(dim=1).double() / k


def average_precision(hits: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """Average precision at K, whose mean over users is MAP@K.

    The sum of precision@rank over the ranks up to K that hit, divided by all relevant items of the
    user. As for recall the denominator is not cut to K (others divide by min(K, num_relevant)).

    Args:
        hits: booleans in rank order, shape (B, at least K).
        num_relevant: relevant items of each user, shape (B,), at least 1.
        k: number of ranks that count.

    Returns:
        The value of each user, shape (B,).
    """
    hits = hits[:, :k].double()
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    return (hits * hits.cumsum(dim=1) / ranks).sum(dim=1) / num_relevant


METRICS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "ndcg": ndcg,
    "recall": recall,
    "hr": lambda hits, _, k: hit_rate(hits, k),
    "mrr": lambda hits, _, k: reciprocal_rank(hits, k),
    "precision": lambda hits, _, k: precision(hits, k),
    "map": average_precision,
}


def _number_ahead(scores: Tensor, items: Tensor, own: Tensor, own_items: Tensor) -> Tensor:
    """How many items rank before each of R own ones, whose scores and ids have shape (R, 1)."""
    return ((scores > own) | ((scores == own) & (items < own_items))).sum(dim=1)


def _refuse_nan(scores: Tensor) -> None:
    if scores.isnan().any():
        raise FloatingPointError(
            "scores must be numbers to be ranked; got NaN, so the model has diverged: "
            "lower the learning rate or clip the gradients."
        )
