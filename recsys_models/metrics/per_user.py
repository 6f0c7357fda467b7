"""Ranking metrics of every single user, for tests that pair users."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_models.data.batches import RankingBatch
from recsys_models.metrics.functional import METRICS
from recsys_models.metrics.ranking import RankingMetrics
from recsys_models.metrics.ranks import Scorer, hits, ranks_by


@torch.no_grad()
def per_user(
    scorer: Scorer,
    batches: Iterable[RankingBatch],
    top_k: Sequence[int | str] = (10,),
    device: torch.device | str = "cpu",
) -> dict[str, NDArray[np.float64]]:
    """The numbers that `RankingMetrics` takes means of, in the order of the batches.

    Args:
        scorer: takes user ids on the device.
        batches: for example ``RecsysDataModule.test_dataloader()``.
        top_k: as for ``RankingMetrics``.
        device: where to rank.

    Returns:
        For every metric an array over users. Where relevant items are ranked one by one, a user's
        value is the mean over the own items, so that users stay independent of one another.
    """
    named = RankingMetrics(top_k)
    values: dict[str, list[Tensor]] = {name: [] for name in named.names}
    for on_cpu in batches:
        batch = on_cpu.on(device)
        places = max(k for _, k in named.wanted)
        lists, relevant = _lists(scorer, batch, places)
        for label, (metric, k) in zip(named.names, named.wanted, strict=True):
            found = METRICS[metric](lists, relevant, k)
            values[label].append((_per_row(found, batch) if batch.one_by_one else found).cpu())
    return {name: torch.cat(parts).numpy() for name, parts in values.items()}


def _lists(scorer: Scorer, batch: RankingBatch, places: int) -> tuple[Tensor, Tensor]:
    """Hits of each list, and its number of relevant items."""
    found = hits(ranks_by(scorer, batch, places), batch, places)
    if batch.one_by_one:
        return found, torch.ones_like(batch.relevant_rows)
    return found, torch.bincount(batch.relevant_rows, minlength=len(batch.users))


def _per_row(values: Tensor, batch: RankingBatch) -> Tensor:
    """Means over each user's relevant items."""
    rows = batch.relevant_rows
    sums = torch.zeros(len(batch.users), dtype=values.dtype, device=values.device)
    return sums.index_add_(0, rows, values) / torch.bincount(rows, minlength=len(sums))
