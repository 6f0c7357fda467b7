"""Ranking metrics at K as pure functions, from hits to a number.

Every metric gives one float64 value per user; the mean over users is taken by the caller, who
leaves out users without a relevant item.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


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
    ranks, gains = _gains(k, hits.device)
    dcg = hits[:, :k].double() @ gains[: hits.shape[1]]
    ideal = (ranks <= num_relevant.unsqueeze(1)).double() @ gains
    return dcg / ideal


@cache
def _gains(k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ranks from 1 to K, and what a hit at each is worth to DCG."""
    ranks = torch.arange(1, k + 1, device=device)
    return ranks, 1.0 / torch.log2(ranks.double() + 1.0)


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
