import numpy as np
import pytest

from recsys_models.data import random_split, synthetic_interactions
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
