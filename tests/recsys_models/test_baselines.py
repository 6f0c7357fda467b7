import numpy as np
import pytest
import torch

from recsys_models.baselines import EASE, MostPop
from recsys_models.data.batches import RankingBatch
from recsys_models.data.interactions import Interactions
from recsys_models.metrics import evaluate


def random_matrix(num_users=30, num_items=8, seed=0):
    return np.random.default_rng(seed).random((num_users, num_items)) < 0.35


def as_interactions(matrix):
    return Interactions(*np.nonzero(matrix), *matrix.shape)


def validation_batch(train, seed=1):
    rows, items = np.nonzero(random_matrix(seed=seed) & ~train)
    arrays = (np.arange(len(train)), *np.nonzero(train), rows, items)
    return RankingBatch(*(torch.from_numpy(np.asarray(a)) for a in arrays))


def test_most_pop_scores_are_interaction_counts():
    matrix = random_matrix()
    scores = MostPop(as_interactions(matrix)).score_users(torch.tensor([0, 29, 3]))
    assert scores.tolist() == [matrix.sum(axis=0).tolist()] * 3


def test_most_pop_knows_items_without_an_interaction():
    matrix = np.array([[True, False, False]])
    assert MostPop(as_interactions(matrix)).score_users(torch.tensor([0])).tolist() == [[1, 0, 0]]


def test_most_pop_hands_out_a_fresh_tensor():
    most_pop = MostPop(as_interactions(random_matrix()))
    before = most_pop.score_users(torch.tensor([0])).clone()
    most_pop.score_users(torch.tensor([0])).fill_(-1)
    assert torch.equal(most_pop.score_users(torch.tensor([0])), before)


@pytest.mark.parametrize("penalty", [0.5, 20.0])
def test_ease_equals_one_ridge_regression_per_item_on_all_other_items(penalty):
    matrix = random_matrix().astype(float)
    weights = np.zeros((8, 8))
    for item in range(8):
        others = [i for i in range(8) if i != item]
        x = matrix[:, others]
        gram = x.T @ x + penalty * np.eye(7)
        weights[others, item] = np.linalg.solve(gram, x.T @ matrix[:, item])
    users = torch.tensor([5, 0])
    scores = EASE(as_interactions(matrix > 0), penalty).score_users(users)
    np.testing.assert_allclose(scores.numpy(), matrix[users] @ weights, atol=1e-5)


def test_ease_selects_the_penalty_with_the_best_validation_ndcg():
    matrix = random_matrix()
    train, batches = as_interactions(matrix), [validation_batch(matrix)]
    penalties = [0.1, 1.0, 10.0, 1e4]
    by_penalty = {p: evaluate(EASE(train, p).score_users, batches)["ndcg@10"] for p in penalties}
    chosen = EASE.select(train, batches, penalties)
    assert by_penalty[chosen.penalty] == max(by_penalty.values())
    assert len(set(by_penalty.values())) > 1


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_ease_refuses_a_penalty_that_leaves_no_inverse(penalty):
    with pytest.raises(ValueError, match="penalty must be above 0"):
        EASE(as_interactions(random_matrix()), penalty)
