import numpy as np
import pytest

from recsys_models.data import (
    leave_one_out_split,
    per_user_split,
    random_split,
    synthetic_interactions,
)
from recsys_models.data.interactions import Interactions


def pair_set(interactions: Interactions) -> set[tuple[int, int]]:
    return set(zip(interactions.users.tolist(), interactions.items.tolist(), strict=True))


@pytest.fixture(scope="module")
def interactions() -> Interactions:
    return synthetic_interactions(num_users=60, num_items=50, num_interactions=703)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ratios", [(0.7, 0.1, 0.2), (0.6, 0.2, 0.2), (0.5, 0.0, 0.5), (1, 0, 0)])
def test_parts_are_disjoint_complete_and_sized_by_the_ratios(interactions, ratios, seed):
    parts = random_split(interactions, ratios, seed)
    sets = [pair_set(part) for part in parts]
    assert set.union(*sets) == pair_set(interactions)
    assert sum(map(len, sets)) == len(interactions)
    for part, share in zip(parts, ratios, strict=True):
        assert abs(len(part) - share * len(interactions)) <= 1
        assert (part.num_users, part.num_items) == (60, 50)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ratios", [(0.7, 0.1, 0.2), (0.5, 0.0, 0.5), (1, 0, 0)])
def test_every_user_is_dealt_out_by_the_ratios(interactions, ratios, seed):
    parts = per_user_split(interactions, ratios, seed)
    sets = [pair_set(part) for part in parts]
    assert set.union(*sets) == pair_set(interactions)
    assert sum(map(len, sets)) == len(interactions)
    counts = np.bincount(interactions.users, minlength=60)
    for part, share, within in zip(parts, ratios, (0.5, 0.5, 1.0), strict=True):
        assert np.abs(np.bincount(part.users, minlength=60) - share * counts).max() <= within
    assert per_user_split(interactions, ratios, seed) == parts
    assert ratios == (1, 0, 0) or per_user_split(interactions, ratios, seed + 1) != parts


def test_a_users_only_pair_is_for_training():
    pairs = Interactions.from_pairs(np.arange(9), np.zeros(9, dtype=np.int64), 9, 1)
    assert per_user_split(pairs, (0.3, 0.3, 0.4), 0).train == pairs


def test_a_users_pairs_land_in_each_part_equally_often():
    pairs = Interactions.from_pairs(np.zeros(10, np.int64), np.arange(10), 1, 10)
    in_test = np.zeros(10)
    for seed in range(600):
        in_test[per_user_split(pairs, (0.7, 0.1, 0.2), seed).test.items] += 1
    assert np.abs(in_test / 600 - 0.2).max() < 0.07  # over four standard deviations


def test_the_last_pair_of_a_user_is_for_test_and_the_one_before_for_validation():
    users = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
    items = np.array([0, 1, 2, 3, 0, 1, 2, 0, 1, 0])
    times = np.array([5.0, 9, 7, 1, 4, 4, 4, 1, 2, 1])
    train, validation, test = leave_one_out_split(Interactions(users, items, 5, 4), times)
    assert pair_set(test) == {(0, 1), (1, 2)}
    assert pair_set(validation) == {(0, 2), (1, 1)}
    assert pair_set(train) == {(0, 0), (0, 3), (1, 0), (2, 0), (2, 1), (3, 0)}
    assert (test.num_users, test.num_items) == (5, 4)


@pytest.mark.parametrize("seed", range(3))
def test_no_held_out_pair_is_earlier_than_one_kept(interactions, seed):
    times = np.random.default_rng(seed).permutation(len(interactions)).astype(float)
    when = dict(zip(zip(interactions.users, interactions.items, strict=True), times, strict=True))
    parts = leave_one_out_split(interactions, times)
    assert set.union(*map(pair_set, parts)) == pair_set(interactions)
    assert [len(parts.validation), len(parts.test)] == [60, 60]
    for u, i in pair_set(parts.train):
        (v,), (t,) = (p.items[p.users == u] for p in (parts.validation, parts.test))
        assert when[u, i] < when[u, v] < when[u, t]


def test_without_times_nothing_can_be_left_out_last(interactions):
    with pytest.raises(ValueError, match="needs the times.*per_user.*time_column"):
        leave_one_out_split(interactions, None)


def test_the_seed_decides_the_split_and_the_global_generator_does_not(interactions):
    np.random.seed(1)
    first = random_split(interactions, (0.7, 0.1, 0.2), seed=3)
    np.random.seed(2)
    assert random_split(interactions, [0.7, 0.1, 0.2], seed=3) == first
    assert random_split(interactions, (0.7, 0.1, 0.2), seed=4) != first


def test_a_pair_lands_in_each_part_as_often_as_the_ratios_say():
    pairs = Interactions.from_pairs(np.arange(10), np.zeros(10, dtype=np.int64), 10, 1)
    in_train = np.zeros(10)
    for seed in range(600):
        in_train[random_split(pairs, (0.7, 0.1, 0.2), seed).train.users] += 1
    assert np.abs(in_train / 600 - 0.7).max() < 0.08  # over four standard deviations


@pytest.mark.parametrize(
    "ratios",
    [(0.7, 0.3), (0.7, 0.2, 0.2), (1.1, -0.1, 0.0), (float("nan"), 0.5, 0.5), (0.0, 0.5, 0.5)],
)
def test_ratios_that_are_no_split_are_refused(interactions, ratios):
    with pytest.raises(ValueError, match="three shares"):
        random_split(interactions, ratios, seed=0)
