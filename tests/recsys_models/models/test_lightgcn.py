import numpy as np
import pytest
import torch

from recsys_models.data import Interactions
from recsys_models.models import LightGCN

# Users 0 to 2 and items 0 to 2; user 2 and item 2 have no pair.
PAIRS = [(0, 0), (0, 1), (1, 0)]
LAPLACIAN = np.zeros((6, 6))
for row, column, value in ((0, 3, 0.5), (0, 4, 0.5**0.5), (1, 3, 0.5**0.5)):
    LAPLACIAN[row, column] = LAPLACIAN[column, row] = value


def make_model(**options):
    torch.manual_seed(0)
    model = LightGCN(3, 3, dim=4, **options)
    users, items = np.array(PAIRS).T
    model.set_interactions(Interactions.from_pairs(users, items, 3, 3))
    return model.double()


@pytest.mark.parametrize("num_layers", [1, 3])
def test_scores_are_those_of_the_mean_of_all_layers(num_layers):
    model = make_model(num_layers=num_layers)
    first = torch.cat([model.user_embedding.weight, model.item_embedding.weight]).detach().numpy()
    powers = [np.linalg.matrix_power(LAPLACIAN, k) @ first for k in range(num_layers + 1)]
    mean = np.mean(powers, axis=0)
    scores = model.score_users(torch.arange(3)).detach().numpy()
    assert scores == pytest.approx(mean[:3] @ mean[3:].T, abs=1e-6)


def test_nodes_without_edges_keep_a_share_of_their_own_embedding():
    model = make_model(num_layers=3)
    expected = model.user_embedding.weight[2] @ model.item_embedding.weight[2] / 16
    assert model.score_users(torch.tensor([2]))[0, 2].item() == pytest.approx(expected.item())


def test_layers_are_users_and_items():
    assert list(make_model().layer_groups()) == ["users", "items"]


@pytest.mark.parametrize("num_layers", [0, -1])
def test_impossible_number_of_layers_is_refused(num_layers):
    with pytest.raises(ValueError, match=f"num_layers must be at least 1; got {num_layers}"):
        LightGCN(3, 3, num_layers=num_layers)
