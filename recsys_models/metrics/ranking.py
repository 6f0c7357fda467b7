"""Ranking metrics of a whole data set, as sums that add up over batches and processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from recsys_models.data.batches import RankingBatch
from recsys_models.metrics.functional import METRICS
from recsys_models.metrics.products import Products
from recsys_models.metrics.ranks import Scorer, hits, ranks_by, ranks_of_relevant

DEFAULT_METRICS = ("ndcg", "recall", "hr")


class RankingMetrics(Metric):
    """Ranking metrics at several K, averaged over users, in one pass over the scores.

    States are float64 sums and three counts, so neither the batch size nor the order of the users
    nor their distribution over processes changes the result beyond rounding. Users without a
    relevant item say nothing about a ranking; they are left out and counted in ``skipped``. Where a
    batch asks for it (``one_by_one``), each relevant item is ranked alone and the mean is over
    relevant items; ``lists`` counts what the mean is over.

    Args:
        top_k: what to report. A number K, for example 10, stands for NDCG, Recall and HR at K; a
            name such as "map@20" for that one: "ndcg", "recall", "hr", "mrr", "precision" or "map".

    Attributes:
        names: the names of the metrics, for example ``["ndcg@10", "recall@10", "hr@10"]``.
    """

    full_state_update = False
    higher_is_better = True
    sums: Tensor
    lists: Tensor
    users: Tensor
    skipped: Tensor

    def __init__(self, top_k: Sequence[int | str] = (10,)) -> None:
        super().__init__()
        if isinstance(top_k, int | str):
            raise ValueError(f"top_k must be a list, such as [{top_k}]; got {top_k!r}.")
        wanted = dict.fromkeys(pair for entry in top_k for pair in _parse(entry))
        if not wanted:
            raise ValueError(
                "top_k must name at least one number of places; got []. Use for example [10]."
            )
        self.wanted = tuple(wanted)
        self.names = [f"{name}@{k}" for name, k in self.wanted]
        sums = torch.zeros(len(self.names), dtype=torch.float64)
        self.add_state("sums", default=sums, dist_reduce_fx="sum")
        for count in ("lists", "users", "skipped"):
            self.add_state(count, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor | Scorer, batch: RankingBatch) -> None:
        """Rank the unseen items of a batch of users and add up their metrics.

        Args:
            scores: shape (B, I), one row per user of the batch, overwritten by the masking. Or what
                gives scores; on a CPU it is asked for a few users at a time, so that their scores
                are ranked while they are cached, and products of vectors are ranked without it.
            batch: the users, the items to leave out and the items to find.
        """
        added = _sums(scores, batch.on(self.sums.device), self.wanted)
        # Not in place: a fit may not write to what `Trainer.validate` has made before it.
        self.sums = self.sums + added.sums
        self.lists = self.lists + added.lists
        self.users = self.users + added.users
        self.skipped = self.skipped + added.skipped

    def compute(self) -> dict[str, float]:
        """Means over users, or over relevant items ranked one by one.

        Returns:
            ``{"ndcg@10": ..., "recall@10": ..., "hr@10": ...}`` for every K.

        Raises:
            ValueError: no user had a relevant item.
        """
        return self._means(_Sums(self.sums, self.lists, self.users, self.skipped))

    def of(self, scorer: Scorer, batches: Iterable[RankingBatch]) -> dict[str, float]:
        """What ``compute`` returns after all batches alone, in this process; nothing is kept.

        Args:
            scorer: as for ``update``.
            batches: on the device of the metrics.
        """
        scorer = _at_hand(scorer)
        added = (_sums(scorer, batch, self.wanted) for batch in batches)
        first = _Sums(torch.zeros_like(self.sums), *[torch.zeros_like(self.lists)] * 3)
        return self._means(reduce(_Sums.plus, added, first))

    def _means(self, total: _Sums) -> dict[str, float]:
        if total.users == 0:
            raise ValueError(
                "ranking metrics need at least one user with a held-out item; "
                f"got none ({int(total.skipped)} users, all without). "
                "Use a larger validation or test ratio, or more batches."
            )
        return dict(zip(self.names, (total.sums / total.lists).tolist(), strict=True))


class _Sums(NamedTuple):
    """What batches add to metrics, by the names of these."""

    sums: Tensor
    lists: Tensor
    users: Tensor
    skipped: Tensor

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(*(one + more for one, more in zip(self, other, strict=True)))


def _sums(scores: Tensor | Scorer, batch: RankingBatch, wanted: Sequence[tuple[str, int]]) -> _Sums:
    """The sums of one batch."""
    places = max(k for _, k in wanted)
    if isinstance(scores, Tensor):
        ranks = ranks_of_relevant(scores, batch, places)
    else:
        ranks = ranks_by(scores, batch, places)
    lists = hits(ranks, batch, places)
    num_relevant = torch.bincount(batch.relevant_rows, minlength=len(batch.users))
    users = (num_relevant > 0).sum()
    if batch.one_by_one:
        num_relevant = torch.ones_like(batch.relevant_rows)
    # Who has no relevant item has no hit either, and so adds nothing.
    least = num_relevant.clamp(min=1)
    values = torch.stack([METRICS[name](lists, least, k) for name, k in wanted])
    return _Sums(
        sums=values.sum(dim=1),
        lists=torch.full_like(users, len(lists)) if batch.one_by_one else users,
        users=users,
        skipped=len(batch.users) - users,
    )


@torch.no_grad()
def evaluate(
    scorer: Scorer,
    batches: Iterable[RankingBatch],
    top_k: Sequence[int | str] = (10,),
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Ranking metrics of anything that scores users, without a Trainer.

    Where processes are joined in a group, each brings its own batches and all get the metrics of
    all users.

    Args:
        scorer: takes user ids on the CPU; or `Products` of tables on the device.
        batches: for example ``RecsysDataModule.val_dataloader()``.
        top_k: as for ``RankingMetrics``.
        device: where to rank, and to add up over processes.

    Returns:
        As ``RankingMetrics.compute``.
    """
    metrics = RankingMetrics(top_k).to(device)

    def on_device(users: Tensor) -> Tensor:
        return scorer(users.cpu()).to(device)

    ranked_by = _at_hand(scorer) if isinstance(scorer, Products) else on_device
    for batch in batches:
        metrics.update(ranked_by, batch)
    return metrics.compute()


def _at_hand(scorer: Scorer) -> Scorer:
    """A scorer for many batches: what each of them needs of products is made ready once."""
    return scorer.laid_out() if isinstance(scorer, Products) else scorer


def _parse(entry: int | str) -> list[tuple[str, int]]:
    """Names and K of one entry of ``top_k``."""
    name, _, number = str(entry).rpartition("@")
    names = (name,) if name else DEFAULT_METRICS
    if number.isdigit() and int(number) >= 1 and all(name in METRICS for name in names):
        return [(name, int(number)) for name in names]
    raise ValueError(
        f"top_k takes numbers of places, 1 or more, and metrics at one, such as 'map@10'; got "
        f"{entry!r}. The metrics are {', '.join(METRICS)}."
    )
