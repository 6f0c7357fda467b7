import numpy as np
import pytest

from recsys_models.data import random_split, synthetic, synthetic_interactions
from recsys_models.data.interactions import Interactions


def matrix(interactions: Interactions) -> np.ndarray:
    dense = np.zeros((interactions.num_users, interactions.num_items))
    dense[interactions.users, interactions.items] = 1
    return dense


def ndcg_at_10(scores: np.ndarray, seen: np.ndarray, relevant: np.ndarray) -> float:
    scores = np.where(seen > 0, -np.inf, scores)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    discounts = 1 / np.log2(np.arange(10) + 2)
    gains = (np.take_along_axis(relevant, top, axis=1) * discounts).sum(axis=1)
    counts = relevant.sum(axis=1).astype(int)
    ideal = np.cumsum(discounts)[np.clip(counts, 1, 10) - 1]
    return float((gains / ideal)[counts > 0].mean())


@pytest.fixture(scope="module")
def default() -> Interactions:
    return synthetic_interactions()


def test_default_has_filmtrusts_size_and_long_tails(default):
    assert (default.num_users, default.num_items, len(default)) == (1508, 2071, 35_000)
    per_user = np.bincount(default.users, minlength=1508)
    assert per_user.min() >= 5
    assert per_user.max() > 8 * np.median(per_user)
    per_item = np.sort(np.bincount(default.items, minlength=2071))[::-1]
    assert per_item[:207].sum() > 0.5 * len(default)  # a tenth of the items, over half the pairs


def test_the_same_seed_gives_the_same_data_and_another_seed_others(default):
    assert synthetic_interactions() == default
    assert synthetic_interactions(seed=1) != default


def test_popularity_is_a_fair_baseline_and_a_linear_model_clearly_beats_it(default):
    train, validation, test = (matrix(part) for part in random_split(default, (0.7, 0.1, 0.2), 0))
    seen = train + validation
    most_pop = ndcg_at_10(np.tile(train.sum(axis=0), (1508, 1)), seen, test)
    precision = np.linalg.inv(train.T @ train + 100 * np.eye(2071))  # EASE
    weights = -precision / np.diag(precision)
    np.fill_diagonal(weights, 0)
    assert most_pop > 0.12
    assert ndcg_at_10(train @ weights, seen, test) > 1.3 * most_pop


@pytest.mark.parametrize(("rank", "better", "worse", "times"), [(1, 2, 16, 1.05), (16, 17, 2, 2)])
def test_tastes_of_a_rank_are_learned_best_by_a_factorisation_of_about_that_rank(
    rank, better, worse, times
):
    data = synthetic_interactions(400, 300, 12_000, rank=rank, popularity=0.0)
    train, validation, test = (matrix(part) for part in random_split(data, (0.7, 0.1, 0.2), 0))
    seen = train + validation
    left, strengths, right = np.linalg.svd(seen, full_matrices=False)

    def ndcg(kept: int) -> float:
        """Of the best approximation of so many dimensions; one more than rank, for the mean."""
        return ndcg_at_10(left[:, :kept] * strengths[:kept] @ right[:kept], seen, test)

    assert ndcg(better) > times * ndcg(worse)


def test_a_wide_catalogue_is_scored_in_smaller_pieces_with_the_same_result(monkeypatch):
    sizes = {"num_users": 90, "num_items": 64, "num_interactions": 1200}
    whole = synthetic_interactions(**sizes)
    monkeypatch.setattr(synthetic, "_SCORES_PER_CHUNK", 7 * 64)
    assert synthetic_interactions(**sizes) == whole


def test_without_popularity_items_are_alike_and_with_much_of_it_they_are_not():
    def share_of_the_first_tenth(popularity: float) -> float:
        data = synthetic_interactions(200, 100, 4000, popularity=popularity)
        return np.sort(np.bincount(data.items, minlength=100))[-10:].sum() / len(data)

    assert share_of_the_first_tenth(0.0) < 0.2 < 0.3 < share_of_the_first_tenth(2.0)


def test_without_noise_and_taste_everybody_has_the_most_popular_items():
    data = synthetic_interactions(50, 40, 500, preference=0.0, noise=0.0)
    counts = np.sort(np.bincount(data.users))
    per_item = np.sort(np.bincount(data.items, minlength=40))[::-1]
    assert per_item.tolist() == [int((counts > place).sum()) for place in range(40)]


@pytest.mark.parametrize("count", [150, 400, 600])
def test_the_number_of_pairs_is_exact_up_to_half_of_all_items_for_every_user(count):
    data = synthetic_interactions(num_users=30, num_items=40, num_interactions=count)
    assert len(data) == count
    per_user = np.bincount(data.users, minlength=30)
    assert per_user.min() >= 5
    assert per_user.max() <= 20


@pytest.mark.parametrize("count", [149, 601])
def test_a_number_of_pairs_that_cannot_be_met_is_refused(count):
    with pytest.raises(ValueError, match=f"150 to 600 for 30 users and 40 items; got {count}"):
        synthetic_interactions(num_users=30, num_items=40, num_interactions=count)


def test_a_catalogue_of_few_items_is_generated_too():
    assert len(synthetic_interactions(10, 8, 40)) == 40


@pytest.mark.parametrize(
    ("name", "value"),
    [("rank", 0), ("num_users", 0), ("noise", float("nan")), ("noise", -1.0), ("preference", -0.1)],
)
def test_what_describes_no_data_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
        synthetic_interactions(**{name: value})
