import numpy as np
import pytest

from recsys_models.data import Ratings, at_least, k_core
from recsys_models.data.interactions import Interactions
from recsys_models.data.ratings import index_ids


def random_ratings(seed: int, num_users: int = 30, num_items: int = 20) -> Ratings:
    rng = np.random.default_rng(seed)
    likely = rng.random((num_users, 1)) * rng.random(num_items)
    users, items = np.nonzero(rng.random((num_users, num_items)) < likely)
    user_ids, users = np.unique(users, return_inverse=True)
    item_ids, items = np.unique(items, return_inverse=True)
    pairs = Interactions(users, items, len(user_ids), len(item_ids))
    values = rng.integers(1, 6, len(pairs)).astype(float)
    return Ratings(pairs, values, user_ids * 10, item_ids * 100, rng.random(len(pairs)))


def rows(ratings: Ratings) -> set[tuple]:
    pairs = ratings.interactions
    ids = ratings.user_ids[pairs.users], ratings.item_ids[pairs.items]
    return set(zip(*ids, ratings.values, ratings.times, strict=True))


def assert_every_id_is_used(ratings: Ratings) -> None:
    pairs = ratings.interactions
    assert np.unique(pairs.users).tolist() == list(range(len(ratings.user_ids)))
    assert np.unique(pairs.items).tolist() == list(range(len(ratings.item_ids)))
    assert (pairs.num_users, pairs.num_items) == (len(ratings.user_ids), len(ratings.item_ids))


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_keeps_the_ratings_of_at_least_its_value(seed):
    ratings = random_ratings(seed)
    kept = at_least(ratings, 4)
    assert rows(kept) == {row for row in rows(ratings) if row[2] >= 4}
    assert_every_id_is_used(kept)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_core_is_what_removing_poor_users_and_items_one_at_a_time_leaves(seed, k):
    ratings = random_ratings(seed)
    left = rows(ratings)
    while True:
        ids = [[row[side] for row in left] for side in (0, 1)]
        poor = [(side, i) for side in (0, 1) for i in ids[side] if ids[side].count(i) < k]
        if not poor:
            break
        left = {row for row in left if row[poor[0][0]] != poor[0][1]}
    core = k_core(ratings, k)
    assert rows(core) == left
    assert_every_id_is_used(core)


def test_filters_that_leave_nothing_are_refused():
    ratings = random_ratings(0)
    with pytest.raises(ValueError, match="lie between 1 and 5"):
        at_least(ratings, 6)
    with pytest.raises(ValueError, match="k_core=50 leaves no pair"):
        k_core(ratings, 50)


def test_a_threshold_without_ratings_is_refused():
    pairs = random_ratings(0).interactions
    ids = np.arange(pairs.num_users), np.arange(pairs.num_items)
    with pytest.raises(ValueError, match="needs ratings.*rating_column"):
        at_least(Ratings(pairs, None, *ids), 3)
    assert k_core(Ratings(pairs, None, *ids), 1).values is None


@pytest.mark.parametrize("offset", [0, -3, 10**12])
def test_ids_are_indexed_as_by_sorting(offset):
    ids = np.random.default_rng(0).integers(0, 50, 200) * 3 + offset
    expected = np.unique(ids, return_inverse=True)
    for ours, theirs in zip(index_ids(ids), expected, strict=True):
        assert ours.tolist() == theirs.tolist()
