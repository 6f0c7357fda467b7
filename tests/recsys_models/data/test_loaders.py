import time

import numpy as np
import pytest
import torch

from recsys_models.data import Interactions, random_split, synthetic_interactions
from recsys_models.data.loaders import (
    ShuffledBatches,
    WholeBatches,
    ranking_batches,
    ranking_loader,
    train_loader,
)


@pytest.fixture(scope="module")
def split():
    data = synthetic_interactions(num_users=57, num_items=40, num_interactions=600)
    return random_split(data, (0.6, 0.1, 0.3), seed=0)


def pair_set(interactions: Interactions) -> set[tuple[int, int]]:
    return set(zip(interactions.users.tolist(), interactions.items.tolist(), strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_holds_every_training_pair_once_with_true_negatives(split, num_workers):
    loader = train_loader(split.train, 100, num_negatives=3, num_workers=num_workers)
    batches = list(loader)
    assert len(batches) == len(loader) == 4
    assert [len(batch.users) for batch in batches] == [100, 100, 100, 60]
    seen = [pair for b in batches for pair in zip(b.users.tolist(), b.items.tolist(), strict=True)]
    assert len(seen) == len(split.train)
    assert set(seen) == pair_set(split.train)
    for batch in batches:
        assert batch.negatives.shape == (len(batch.users), 3)
        for user, negatives in zip(batch.users.tolist(), batch.negatives.tolist(), strict=True):
            assert not {(user, item) for item in negatives} & pair_set(split.train)


def test_restoring_torchs_generator_reproduces_the_negatives(split):
    loader = train_loader(split.train, 100, num_negatives=2, num_workers=0)
    batches = iter(loader)
    next(batches)
    state = torch.get_rng_state()
    rest = list(batches)
    again = iter(loader)
    next(again)
    torch.set_rng_state(state)
    for first, second in zip(rest, again, strict=True):
        assert all(map(torch.equal, first, second))


def order(**arguments) -> list[int]:
    sampler = ShuffledBatches(50, 8, **{"seed": 0, "num_replicas": 1, "rank": 0} | arguments)
    return torch.cat(list(sampler)).tolist()


def test_the_order_follows_from_seed_and_epoch_alone(monkeypatch):
    sampler = ShuffledBatches(50, 8, seed=0)
    torch.manual_seed(1)
    first = torch.cat(list(sampler)).tolist()
    torch.manual_seed(2)
    assert order() == first == torch.cat(list(sampler)).tolist()
    sampler.set_epoch(1)
    second = torch.cat(list(sampler)).tolist()
    assert sorted(second) == list(range(50))
    assert second not in (first, order(seed=1))


def test_the_loader_takes_its_seed_from_seed_everything(split, monkeypatch):
    def first_users(seed: str) -> list[int]:
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        return next(iter(train_loader(split.train, 100, 1, 0))).users.tolist()

    assert first_users("5") == first_users("5") != first_users("6")


@pytest.mark.parametrize("count", [1, 2, 7, 16, 50])
@pytest.mark.parametrize("num_replicas", [1, 2, 3, 4])
def test_ranks_cover_all_positions_with_equally_many_batches(count, num_replicas):
    samplers = [ShuffledBatches(count, 4, 0, num_replicas, rank) for rank in range(num_replicas)]
    batches = [list(sampler) for sampler in samplers]
    assert len({len(own) for own in batches} | {len(sampler) for sampler in samplers}) == 1
    positions = torch.cat([torch.cat(own) for own in batches])
    assert set(positions.tolist()) == set(range(count))
    assert len(positions) - count < num_replicas


def test_ranking_batches_hold_each_user_with_relevant_items_once_and_all_their_items(split):
    batches = list(ranking_loader(split.test, split.train, users_per_batch=20))
    users = torch.cat([batch.users for batch in batches])
    assert users.tolist() == np.unique(split.test.users).tolist()
    assert max(len(batch.users) for batch in batches) <= 20
    relevant, seen = set(), set()
    for batch in batches:
        owners = batch.users[batch.relevant_rows].tolist()
        relevant |= set(zip(owners, batch.relevant_items.tolist(), strict=True))
        owners = batch.users[batch.seen_rows].tolist()
        seen |= set(zip(owners, batch.seen_items.tolist(), strict=True))
    assert relevant == pair_set(split.test)
    assert seen == {pair for pair in pair_set(split.train) if pair[0] in set(users.tolist())}


@pytest.mark.parametrize("users_per_batch", [1, 5, 16, 1000])
@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5])
def test_ranks_share_the_ranking_users_exactly_and_get_equally_many_batches(
    split, users_per_batch, num_replicas
):
    batches = ranking_batches(split.test, split.train, users_per_batch, num_replicas)
    shares = [
        [batches[k] for k in WholeBatches(len(batches), num_replicas, rank)]
        for rank in range(num_replicas)
    ]
    assert len({len(share) for share in shares}) == 1
    users = [user for share in shares for batch in share for user in batch.users.tolist()]
    assert sorted(users) == np.unique(split.test.users).tolist()
    assert all(len(batch.users) for batch in batches)


def test_fewer_ranking_users_than_ranks_are_refused(split):
    with pytest.raises(ValueError, match="for 64 ranks"):
        ranking_batches(split.test, split.train, 10, num_replicas=64)


def test_the_time_of_many_ranking_batches_grows_with_their_pairs():
    """Not with the number of batches times that of all pairs: 50,000 items make thousands."""
    users, items = np.repeat(np.arange(2000), 1000), np.tile(np.arange(1000), 2000)
    data = Interactions(users, items, 2000, 1000)

    def seconds(work) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    once = min(seconds(data.csr) for _ in range(5))
    assert seconds(lambda: ranking_batches(data, data, users_per_batch=1)) < 1000 * once
