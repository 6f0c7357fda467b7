import numpy as np
import pytest
import torch
from torch import Tensor

from recsys_models.data import Interactions, NegativeSampler, synthetic_interactions

# The 99.9 % quantile of the chi-square distribution, by degrees of freedom.
CHI_SQUARE_LIMIT = {1: 10.83, 4: 18.47, 8: 26.12}


@pytest.fixture(scope="module")
def train() -> Interactions:
    """Nine items; user 0 has four, user 1 none, user 2 all but two, user 3 the first and last."""
    items = {0: [1, 2, 5, 8], 2: [0, 1, 2, 4, 5, 6, 8], 3: [0, 8]}
    pairs = [(user, item) for user, row in items.items() for item in row]
    users, items = np.array(pairs, dtype=np.int64).T
    return Interactions.from_pairs(users, items, num_users=4, num_items=9)


def sample(train: Interactions, users: Tensor, count: int, seed: int = 0) -> Tensor:
    return NegativeSampler(train).sample(users, count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("user", [0, 1, 2])
def test_draws_are_uniform_over_the_items_the_user_does_not_have(train, user):
    draws = sample(train, torch.tensor([user]), 90_000)[0]
    counts = torch.bincount(draws, minlength=9).double()
    free = np.setdiff1d(np.arange(9), train.items[train.users == user])
    assert counts[free].sum() == 90_000
    expected = 90_000 / len(free)
    statistic = ((counts[free] - expected) ** 2 / expected).sum()
    assert statistic < CHI_SQUARE_LIMIT[len(free) - 1]


@pytest.mark.parametrize("seed", range(3))
def test_no_positive_is_ever_drawn_and_every_other_item_is(seed):
    train = synthetic_interactions(
        num_users=30, num_items=40, num_interactions=400, popularity=2.0, seed=seed
    )
    draws = sample(train, torch.arange(30), 3000, seed)
    drawn = torch.zeros((30, 40), dtype=torch.bool).scatter_(1, draws, True)
    positive = torch.zeros((30, 40), dtype=torch.bool)
    positive[train.users, train.items] = True
    assert torch.equal(drawn, ~positive)


def test_rows_follow_the_order_of_the_users_asked_for(train):
    users = torch.tensor([3, 2, 0, 2])
    draws = sample(train, users, 50)
    assert draws.shape == (4, 50)
    assert draws.dtype == torch.int64
    for user, row in zip(users.tolist(), draws.tolist(), strict=True):
        assert not set(row) & set(train.items[train.users == user])


def test_randomness_comes_from_the_generator_or_else_from_torch(train):
    sampler, users = NegativeSampler(train), torch.arange(4).repeat(20)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    given = sampler.sample(users, 3, torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(given, sampler.sample(users, 3, torch.Generator().manual_seed(5)))
    first = sampler.sample(users, 3)
    torch.set_rng_state(state)
    assert torch.equal(sampler.sample(users, 3), first)


def test_a_user_with_every_item_is_refused():
    items = np.array([0, 1, 2, 1], dtype=np.int64)
    train = Interactions(np.array([1, 1, 1, 2], dtype=np.int64), items, 3, 3)
    with pytest.raises(ValueError, match="user 1 has all 3 items"):
        NegativeSampler(train)
