"""Data loaders that index tensors a batch at a time, alone or shared out among ranks.

Lightning replaces the sampler of a distributed run unless it is a `DistributedSampler`. Both
samplers here are, because its usual replacement shuffles single pairs and repeats ranking batches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from recsys_models.data.batches import RankingBatch, TrainBatch
from recsys_models.data.interactions import IntArray, Interactions
from recsys_models.data.negatives import NegativeSampler
from recsys_models.data.ratings import IdArray


def train_loader(
    train: Interactions,
    batch_size: int,
    num_negatives: int,
    num_workers: int,
    user_ids: IdArray | None = None,
) -> DataLoader[TrainBatch]:
    """Batches of training pairs with fresh negatives.

    The order follows from the seed of `lightning.seed_everything` (0 without it) and the epoch;
    negatives come from torch's global generator.
    """
    # Lightning keeps the seed in this variable, so that all ranks agree on the order.
    seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
    return DataLoader(
        _TrainPairs(train, num_negatives, user_ids),
        batch_size=None,
        sampler=ShuffledBatches(len(train), batch_size, seed),
        num_workers=num_workers,
    )


def ranking_loader(
    relevant: Interactions, seen: Interactions, users_per_batch: int, one_by_one: bool = False
) -> DataLoader[RankingBatch]:
    """The users who have relevant items, with their seen items, in batches prepared once."""
    num_replicas, rank = _world(None, None)
    batches = _ListOfBatches(
        ranking_batches(relevant, seen, users_per_batch, num_replicas, one_by_one)
    )
    return DataLoader(
        batches, batch_size=None, sampler=WholeBatches(len(batches), num_replicas, rank)
    )


def ranking_batches(
    relevant: Interactions,
    seen: Interactions,
    users_per_batch: int,
    num_replicas: int = 1,
    one_by_one: bool = False,
) -> list[RankingBatch]:
    """Cut the users who have relevant items, in ascending order, into batches of equal size.

    Their number is a multiple of the number of ranks: a rank that ran out of batches would leave
    the others waiting where a model's buffers are synchronised before every step.
    """
    users = np.unique(relevant.users)
    if len(users) < num_replicas:
        raise ValueError(
            "every rank needs a user to rank items for; got "
            f"{len(users)} users with held-out items for {num_replicas} ranks. "
            "Use fewer devices or hold out more."
        )
    rounds = -(-len(users) // (users_per_batch * num_replicas))
    count = min(rounds, len(users) // num_replicas) * num_replicas
    seen_of, relevant_of = seen.csr(), relevant.csr()
    batches = []
    for chunk in np.array_split(users, max(count, 1)):
        pairs = (*rows_of(seen_of, chunk), *rows_of(relevant_of, chunk))
        batches.append(RankingBatch(torch.from_numpy(chunk), *pairs, one_by_one))
    return batches


def users_within(score_bytes: int, num_items: int) -> int:
    """How many users' float32 scores of all items fit into `score_bytes`."""
    users = score_bytes // (4 * max(num_items, 1))
    if not users:
        raise ValueError(
            f"score_bytes must hold the scores of one user, {4 * num_items} bytes for {num_items} "
            f"items; got {score_bytes}. Raise it, or give eval_batch_size."
        )
    return users


def rows_of(csr: tuple[IntArray, IntArray], users: IntArray) -> tuple[Tensor, Tensor]:
    """Row within `users` and item of each of their pairs, in ascending order.

    Args:
        csr: of all pairs, see `Interactions.csr`.
        users: some users.
    """
    indptr, items = csr
    counts = indptr[users + 1] - indptr[users]
    rows = np.repeat(np.arange(len(users)), counts)
    within_row = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return torch.from_numpy(rows), torch.from_numpy(items[indptr[users][rows] + within_row])


class ShuffledBatches(DistributedSampler[Tensor]):
    """Yields index tensors that together cover every position once per epoch.

    The last batch may be short. Under several ranks each gets as many positions, for which up to
    num_replicas - 1 positions appear twice, as in `DistributedSampler`.

    Args:
        num_samples: number of positions to cover.
        batch_size: positions per index tensor.
        seed: with the epoch (see `set_epoch`) it decides the order; equal on all ranks.
        num_replicas: number of ranks; that of torch.distributed when None, or 1 without it.
        rank: this process; as above, or 0.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        num_replicas, rank = _world(num_replicas, rank)
        super().__init__(range(num_samples), num_replicas, rank, seed=seed)  # type: ignore[arg-type]
        self._count = num_samples
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Tensor]:
        # Mixed rather than added, so that seed 0 in epoch 1 is not seed 1 in epoch 0.
        seed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)[0]
        order = torch.randperm(self._count, generator=torch.Generator().manual_seed(int(seed)))
        if self.total_size > self._count > 0:  # several ranks, which get as many
            order = order[torch.arange(self.total_size) % self._count]
        yield from torch.split(order[self.rank :: self.num_replicas], self._batch_size)

    def __len__(self) -> int:
        return -(-self.num_samples // self._batch_size)


class WholeBatches(DistributedSampler[int]):
    """Shares prepared batches out among ranks, each to one rank only and none twice.

    So sums over ranks are exact, which the padding of `DistributedSampler` would spoil.
    """

    def __init__(
        self, num_batches: int, num_replicas: int | None = None, rank: int | None = None
    ) -> None:
        num_replicas, rank = _world(num_replicas, rank)
        super().__init__(range(num_batches), num_replicas, rank)  # type: ignore[arg-type]
        self._mine = range(rank, num_batches, num_replicas)

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine)

    def __len__(self) -> int:
        return len(self._mine)


class _TrainPairs(Dataset[TrainBatch]):
    """Training pairs, taken a whole batch of positions at a time."""

    def __init__(self, train: Interactions, num_negatives: int, user_ids: IdArray | None) -> None:
        self._users = torch.from_numpy(train.users)
        self._items = torch.from_numpy(train.items)
        self._negatives = NegativeSampler(train, user_ids)
        self._num_negatives = num_negatives

    def __getitem__(self, positions: Tensor | int) -> TrainBatch:
        positions = torch.as_tensor(positions).view(-1)  # overfit_batches asks for pairs one by one
        users = self._users[positions]
        negatives = self._negatives.sample(users, self._num_negatives)
        return TrainBatch(users, self._items[positions], negatives)

    def __len__(self) -> int:
        return self._users.numel()


class _ListOfBatches(Dataset[RankingBatch]):
    def __init__(self, batches: list[RankingBatch]) -> None:
        self._batches = batches

    def __getitem__(self, index: int) -> RankingBatch:
        return self._batches[index]

    def __len__(self) -> int:
        return len(self._batches)


def _world(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    in_group = distributed.is_available() and distributed.is_initialized()
    if num_replicas is None:
        num_replicas = distributed.get_world_size() if in_group else 1
    if rank is None:
        rank = distributed.get_rank() if in_group else 0
    return num_replicas, rank
