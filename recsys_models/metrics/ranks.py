"""From scores to ranks, and from ranks to hits: which of a user's K best items are relevant.

B users, I items, R relevant items, K places. Relevance is 0 or 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from recsys_models import native
from recsys_models.data.batches import RankingBatch
from recsys_models.metrics.products import Products

Scorer = Callable[[Tensor], Tensor] | Products
"""From user ids, shape (B,), to fresh scores of all items, shape (B, I)."""

_USERS_AT_ONCE = 128  # on a CPU, where their scores are still in the cache when they are ranked
_ROWS_AT_ONCE = 256  # whole rows that are compared at a time where scores tie


def ranks_of_relevant(scores: Tensor, batch: RankingBatch, k: int) -> Tensor:
    """How many items rank before each relevant one, if fewer than K.

    In a user's list are the unseen items; equal scores rank the lower id first.

    Where the batch asks for it, each relevant item ranks on its own among the items its user never
    had, neither seen nor relevant, and an equal score does not push it back. This is the protocol
    of the lambda-opt papers.

    Args:
        scores: shape (B, I), higher is better. Overwritten: items that are left out become minus
            infinity.
        batch: the users, on the scores' device. No relevant item is named twice; one that is seen
            ranks nowhere in the list.
        k: number of places.

    Returns:
        Shape (R,), int64: from 0, or K where an item reaches none of the K places.

    Raises:
        FloatingPointError: a candidate's score is NaN.
    """
    ranks = native.ranks(scores, batch, k)
    if ranks is not None:
        return ranks
    near, ranks = (_sorted_alone if batch.one_by_one else _sorted)(scores, batch, k)
    return torch.full_like(batch.relevant_rows, k).index_copy_(0, near, ranks.clamp(max=k))


def best_items(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K best items of each user, best first; equal scores rank the lower id first.

    Args:
        scores: shape (B, I), higher is better.
        k: number of places, at most I.

    Returns:
        Items and their scores, both of shape (B, K).

    Raises:
        FloatingPointError: a score is NaN.
    """
    best, items = scores.topk(k, dim=1)
    _refuse_nan(best)
    # topk leaves open which of equal scores it takes: whole rows are sorted where it had to choose.
    tied = (scores >= best[:, -1:]).sum(dim=1) > k
    items[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    items = items.sort(dim=1).values
    best, order = scores.gather(1, items).sort(dim=1, descending=True, stable=True)
    return items.gather(1, order), best


def ranks_by(scorer: Scorer, batch: RankingBatch, k: int) -> Tensor:
    """The same by what gives scores; on a CPU it is asked for a few users at a time."""
    on_cpu = batch.users.device.type == "cpu"
    if on_cpu and isinstance(scorer, Products):
        ranks = scorer.ranks(batch, k)
        if ranks is not None:
            return ranks
    parts = batch.split(_USERS_AT_ONCE if on_cpu else len(batch.users))
    return torch.cat([ranks_of_relevant(scorer(part.users), part, k) for part in parts])


def hits(ranks: Tensor, batch: RankingBatch, k: int) -> Tensor:
    """Which of the K places of each list are taken by a relevant item.

    Args:
        ranks: of each relevant item, as ``ranks_of_relevant``.
        batch: the users.
        k: number of places.

    Returns:
        Booleans in rank order, shape (B, K). Places that no item is left for are no hits. Where
        relevant items rank one by one, each is a list of its own: shape (R, K), at most one of them
        true in each row, so that any metric applies with ``num_relevant`` 1.
    """
    size = len(batch.relevant_rows) if batch.one_by_one else len(batch.users)
    # One place more, for all that reach none.
    found = torch.zeros(size, k + 1, dtype=torch.bool, device=ranks.device)
    rows = torch.arange(size, device=ranks.device) if batch.one_by_one else batch.relevant_rows
    found[rows, ranks] = True
    return found[:, :k]


def _sorted(scores: Tensor, batch: RankingBatch, k: int) -> tuple[Tensor, Tensor]:
    """Which relevant items may be hits, and their ranks.

    ``torch.topk`` leaves the order of equal scores open, so ranks are counted: those of the few
    relevant items that reach the K-th best score, among the K + 1 best. Only where an item's score
    is that of place K + 1, and so may tie with items beyond, is the whole row counted.
    """
    scores[batch.seen_rows, batch.seen_items] = -torch.inf
    num_items = scores.shape[1]
    best, items = scores.topk(min(k + 1, num_items), dim=1)
    _refuse_nan(best)  # topk ranks NaN above all numbers, so none escapes here
    own = scores[batch.relevant_rows, batch.relevant_items]
    last = best[batch.relevant_rows, min(k, num_items) - 1]
    near = ((own >= last) & (own > -torch.inf)).nonzero().squeeze(1)
    rows, ids = batch.relevant_rows[near], batch.relevant_items[near].unsqueeze(1)
    own = own[near].unsqueeze(1)
    ranks = _number_ahead(best[rows], items[rows], own, ids)
    if k < num_items:
        tied = own.squeeze(1) == best[rows, k]
        everything = torch.arange(num_items, device=scores.device)
        for some in torch.split(tied.nonzero().squeeze(1), _ROWS_AT_ONCE):
            ranks[some] = _number_ahead(scores[rows[some]], everything, own[some], ids[some])
    return near, ranks


def _sorted_alone(scores: Tensor, batch: RankingBatch, k: int) -> tuple[Tensor, Tensor]:
    """The same for relevant items that rank one by one."""
    own = scores[batch.relevant_rows, batch.relevant_items]
    scores[batch.seen_rows, batch.seen_items] = -torch.inf
    scores[batch.relevant_rows, batch.relevant_items] = -torch.inf
    best_others = scores.topk(min(k, scores.shape[1]), dim=1).values
    _refuse_nan(best_others)
    _refuse_nan(own)
    near = (own >= best_others[batch.relevant_rows, -1]).nonzero().squeeze(1)
    ranks = (best_others[batch.relevant_rows[near]] > own[near].unsqueeze(1)).sum(dim=1)
    return near, ranks


def _number_ahead(scores: Tensor, items: Tensor, own: Tensor, own_items: Tensor) -> Tensor:
    """How many items rank before each of R own ones, whose scores and ids have shape (R, 1)."""
    return ((scores > own) | ((scores == own) & (items < own_items))).sum(dim=1)


def _refuse_nan(scores: Tensor) -> None:
    if scores.isnan().any():
        raise FloatingPointError(
            "scores must be numbers to be ranked; got NaN, so the model has diverged: "
            "lower the learning rate or clip the gradients."
        )
