"""Ranking metrics of a whole data set, as sums that add up over batches and processes."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from recsys_models.data.batches import RankingBatch
from recsys_models.metrics.functional import hit_rate, hits_from_top_k, masked_top_k, ndcg, recall


class RankingMetrics(Metric):
    """NDCG, Recall and hit rate at several K, averaged over users, in one pass over the scores.

    States are float64 sums over users and two counts, so neither the batch size nor the order of
    the users changes the result beyond rounding. Users without a relevant item say nothing about a
    ranking; they are left out and counted in ``skipped``.

    Args:
        top_k: the values of K, for example ``(10, 50)``.

    Attributes:
        names: the names of the metrics, for example ``["ndcg@10", "recall@10", "hr@10"]``.
    """

    full_state_update = False
    higher_is_better = True
    sums: Tensor
    users: Tensor
    skipped: Tensor

    def __init__(self, top_k: Sequence[int] = (10,)) -> None:
        super().__init__()
        if not top_k or min(top_k) < 1:
            raise ValueError(
                "top_k must name at least one number of places, each 1 or more; "
                f"got {list(top_k)}. Use for example [10]."
            )
        self.top_k = tuple(top_k)
        self.names = [f"{name}@{k}" for k in self.top_k for name in ("ndcg", "recall", "hr")]
        sums = torch.zeros(len(self.names), dtype=torch.float64)
        self.add_state("sums", default=sums, dist_reduce_fx="sum")
        self.add_state("users", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("skipped", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, batch: RankingBatch) -> None:
        """Rank the unseen items of a batch of users and add up their metrics.

        Args:
            scores: shape (B, I), one row per user of the batch. Overwritten by the masking.
            batch: the users, the items to leave out and the items to find.
        """
        top_items = masked_top_k(scores, batch.seen_rows, batch.seen_items, max(self.top_k))
        hits = hits_from_top_k(
            top_items, batch.relevant_rows, batch.relevant_items, scores.shape[1]
        )
        num_relevant = torch.bincount(batch.relevant_rows, minlength=len(scores))
        counted = num_relevant > 0
        hits, num_relevant = hits[counted], num_relevant[counted]
        per_user = [
            values
            for k in self.top_k
            for values in (
                ndcg(hits, num_relevant, k),
                recall(hits, num_relevant, k),
                hit_rate(hits, k),
            )
        ]
        self.sums += torch.stack(per_user).sum(dim=1)
        self.users += counted.sum()
        self.skipped += (~counted).sum()

    def compute(self) -> dict[str, float]:
        """Means over users.

        Returns:
            ``{"ndcg@10": ..., "recall@10": ..., "hr@10": ...}`` for every K.

        Raises:
            ValueError: no user had a relevant item.
        """
        if self.users == 0:
            raise ValueError(
                "ranking metrics need at least one user with a held-out item; "
                f"got none ({int(self.skipped)} users, all without). "
                "Use a larger validation or test ratio, or more batches."
            )
        return dict(zip(self.names, (self.sums / self.users).tolist(), strict=True))


@torch.no_grad()
def evaluate(
    score_users: Callable[[Tensor], Tensor],
    batches: Iterable[RankingBatch],
    top_k: Sequence[int] = (10,),
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Ranking metrics of anything that scores users, without a Trainer.

    Where processes are joined in a group, each brings its own batches and all get the metrics of
    all users.

    Args:
        score_users: from user ids on the CPU, shape (B,), to fresh scores, shape (B, I).
        batches: for example ``RecsysDataModule.val_dataloader()``.
        top_k: the values of K.
        device: where to rank, and to add up over processes.

    Returns:
        As ``RankingMetrics.compute``.
    """
    metrics = RankingMetrics(top_k).to(device)
    for batch in batches:
        scores = score_users(batch.users).to(device)
        metrics.update(scores, RankingBatch(*(ids.to(device) for ids in batch)))
    return metrics.compute()
