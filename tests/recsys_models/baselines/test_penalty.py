import pytest
import torch

from recsys_models.baselines.penalty import Penalty, row_shares
from recsys_models.data.batches import TrainBatch
from recsys_models.models import BPRMF
from tests.recsys_models.baselines.reference import batch_penalty

BATCH = TrainBatch(
    users=torch.tensor([0, 2, 0]),
    items=torch.tensor([1, 1, 3]),
    negatives=torch.tensor([[0, 2], [0, 0], [2, 1]]),
)
LAMBDAS = {  # of 3 users and 4 items with vectors of 2 numbers
    "global": {"all[1x1]"},
    "dimension": {"all[1x2]", "all[1x1]"},
    "user": {"user[3x1]", "item[1x1]"},
    "item": {"user[1x1]", "item[4x1]"},
    "user+item": {"user[3x1]", "item[4x1]"},
    "dimension+user+item": {"user[3x2]", "item[4x2]", "item[4x1]"},
    "group+dimension": {"user[1x2]", "item[1x2]", "item[1x1]"},
}


def make_penalty(granularity, bias=True):
    model = BPRMF(3, 4, dim=2, item_bias=bias, init_std=1.0).double()
    penalty = Penalty(dict(model.named_parameters()), granularity)
    for weights in penalty.lambdas.values():
        weights.copy_(torch.rand(weights.shape))
    return penalty


def whole(penalty):
    """Lambda of every table, asked for by row."""
    return {name: penalty.of(name, torch.arange(len(t))) for name, t in penalty.tables.items()}


@pytest.mark.parametrize("granularity", LAMBDAS)
def test_granularity_says_which_entries_share_a_lambda(granularity):
    assert set(make_penalty(granularity).lambdas) == LAMBDAS[granularity]


def test_all_lambdas_start_at_zero():
    model = BPRMF(3, 4, dim=2)
    penalty = Penalty(dict(model.named_parameters()), "dimension+user+item")
    assert all(not weights.any() for weights in penalty.lambdas.values())


def test_users_and_items_have_one_column_lambda_in_common_at_dimension():
    weights = whole(make_penalty("dimension"))
    assert weights["user_embedding.weight"] is weights["item_embedding.weight"]


def test_shares_count_the_pairs_of_the_loss():
    shares = row_shares(BATCH, 3, 4, torch.float64)
    # Six pairs: both users' rows are in each of their pairs, a negative's in one.
    assert (6 * shares["user"]).tolist() == pytest.approx([4, 0, 2])
    assert (6 * shares["item"]).tolist() == pytest.approx([3, 5, 2, 2])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("granularity", LAMBDAS)
def test_added_gradient_is_that_of_the_mean_over_pairs(granularity, bias):
    penalty = make_penalty(granularity, bias)
    omega = batch_penalty(whole(penalty), penalty.tables, BATCH)
    expected = torch.autograd.grad(omega, list(penalty.tables.values()))
    for table in penalty.tables.values():
        table.grad = torch.ones_like(table)
    penalty.add_to_gradients(row_shares(BATCH, 3, 4, torch.float64))
    for table, gradient in zip(penalty.tables.values(), expected, strict=True):
        torch.testing.assert_close(table.grad - 1, gradient, rtol=1e-12, atol=1e-14)


def test_rows_outside_the_batch_are_not_penalised():
    penalty = make_penalty("dimension+user+item")
    for table in penalty.tables.values():
        table.grad = torch.zeros_like(table)
    penalty.add_to_gradients(row_shares(BATCH, 3, 4, torch.float64))
    assert not penalty.tables["user_embedding.weight"].grad[1].any()
    assert penalty.tables["user_embedding.weight"].grad[[0, 2]].all()


def test_mean_of_a_layer_counts_every_entry_alike():
    penalty = make_penalty("group+dimension")
    penalty.lambdas["item[1x2]"].copy_(torch.tensor([[1.0, 2.0]]))
    penalty.lambdas["item[1x1]"].fill_(6.0)
    layers = {"items": ["item_embedding.weight", "item_bias.weight"]}
    assert penalty.means(layers) == {"items": pytest.approx((1 + 2 + 6) / 3)}
