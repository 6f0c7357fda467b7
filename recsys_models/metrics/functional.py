"""Ranking metrics at K as pure functions: from scores to top K, from top K to hits, to a number.

B users, I items, K places. Relevance is 0 or 1. Every metric gives one float64 value per user; the
mean over users is taken by the caller, who leaves out users without a relevant item.
"""

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
    if values.isnan().any():  # topk ranks NaN above all numbers, so none escapes here
        raise FloatingPointError(
            "scores must be numbers to be ranked; got NaN, so the model has diverged: "
            "lower the learning rate or clip the gradients."
        )
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


def _lower_id_first(values: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row by falling value and, where values are equal, by rising item id."""
    items, by_id = items.sort(dim=1)
    values, by_value = values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    return values, items.gather(1, by_value)
