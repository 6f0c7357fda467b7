"""Ranking metrics at K as pure functions: from scores to top K, from top K to hits, to a number.

B users, I items, K places. Relevance is 0 or 1. Every metric gives one float64 value per user; the
mean over users is taken by the caller, who leaves out users without a relevant item.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def masked_top_k(scores: Tensor, seen_rows: Tensor, seen_items: Tensor, k: int) -> Tensor:
    """The K best unseen items of every user, best first; equal scores rank the lower id first.

    ``torch.topk`` leaves the order of equal scores open. We ask it for one place more: only where
    the places K and K+1 hold the same score is the choice open, and only such rows are sorted in
    full (about fifty times the work).

    Args:
        scores: shape (B, I), higher is better. Overwritten: seen items become minus infinity.
        seen_rows: rows of ``scores``, shape (S,).
        seen_items: the item to leave out in each of these rows, shape (S,).
        k: number of places, cut to I where it is larger.

    Returns:
        Item ids, shape (B, K). A place that no candidate is left for holds -1.

    Raises:
        FloatingPointError: a candidate's score is NaN.
    """
    scores[seen_rows, seen_items] = -torch.inf
    num_items = scores.shape[1]
    k = min(k, num_items)
    values, items = scores.topk(min(k + 1, num_items), dim=1)
    _refuse_nan(values)  # topk ranks NaN above all numbers, so none escapes here
    boundary = values[:, k - 1]
    open_rows = (values[:, -1] == boundary) & (boundary > -torch.inf)
    values, items = _lower_id_first(values[:, :k], items[:, :k])
    if k < num_items and open_rows.any():
        ordered = scores[open_rows].sort(dim=1, descending=True, stable=True)
        values[open_rows], items[open_rows] = ordered.values[:, :k], ordered.indices[:, :k]
    return items.masked_fill(values == -torch.inf, -1)


def hits_from_top_k(
    top_items: Tensor, relevant_rows: Tensor, relevant_items: Tensor, num_items: int
) -> Tensor:
    """Which of the recommended items are relevant.

    Args:
        top_items: item ids, shape (B, K); -1 marks an empty place.
        relevant_rows: rows of ``top_items``, shape (R,).
        relevant_items: a relevant item of each of these rows, shape (R,).
        num_items: I, the size of the catalogue.

    Returns:
        Booleans in rank order, shape (B, K).
    """
    rows = torch.arange(len(top_items), device=top_items.device).unsqueeze(1)
    found = torch.isin(rows * num_items + top_items, relevant_rows * num_items + relevant_items)
    return found & (top_items >= 0)


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
        scores: shape (B, I), higher is better. Overwritten as in ``masked_top_k``.
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
    ahead = (best_others[relevant_rows] > own.unsqueeze(1)).sum(dim=1)
    return ahead.unsqueeze(1) == torch.arange(k, device=scores.device)


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


def _refuse_nan(scores: Tensor) -> None:
    if scores.isnan().any():
        raise FloatingPointError(
            "scores must be numbers to be ranked; got NaN, so the model has diverged: "
            "lower the learning rate or clip the gradients."
        )


def _lower_id_first(values: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row by falling value and, where values are equal, by rising item id."""
    items, by_id = items.sort(dim=1)
    values, by_value = values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    return values, items.gather(1, by_value)
