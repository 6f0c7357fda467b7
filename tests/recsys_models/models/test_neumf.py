import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys_models import native
from recsys_models.data.batches import TrainBatch
from recsys_models.models import NeuMF, neumf
from recsys_models.native import library
from tests.recsys_models.in_c import needs_compiler, with_threads

SHAPES = [
    pytest.param(3, (10, 7, 5, 2), False, id="fused"),
    pytest.param(3, (10, 7, 5, 2), True, id="fused_item_bias"),
    pytest.param(3, (), False, id="gmf_only"),
    pytest.param(0, (4, 3), False, id="mlp_only"),
    pytest.param(0, (4, 3), True, id="mlp_only_item_bias"),
]


def make_model(gmf_dim=3, mlp_dims=(10, 7, 5, 2), item_bias=False, num_items=9, seed=0):
    torch.manual_seed(seed)
    model = NeuMF(6, num_items, gmf_dim, mlp_dims, item_bias)
    for parameter in model.parameters():  # biases, too
        torch.nn.init.normal_(parameter, std=0.7)
    return model


@torch.no_grad()
def pair_logit(model, user, item):
    """The formula as the paper has it, one pair at a time."""
    fused = []
    if model.gmf is not None:
        fused.append(model.gmf.users.weight[user] * model.gmf.items.weight[item])
    if model.mlp is not None:
        hidden = torch.cat([model.mlp.users.weight[user], model.mlp.items.weight[item]])
        for layer in model.dense:
            hidden = torch.relu(layer.weight @ hidden + layer.bias)
        fused.append(hidden)
    bias = 0.0 if model.item_bias is None else model.item_bias.weight[item, 0]
    return (model.head.weight[0] @ torch.cat(fused) + model.head.bias[0] + bias).item()


def all_logits(model, users):
    return torch.tensor([[pair_logit(model, u, i) for i in range(model.num_items)] for u in users])


def test_logit_worked_by_hand():
    model = NeuMF(1, 1, gmf_dim=2, mlp_dims=(2, 2, 1))
    by_hand = {
        "gmf.users.weight": [[1.0, 2.0]],
        "gmf.items.weight": [[3.0, -1.0]],  # g = [3, -2]
        "mlp.users.weight": [[2.0]],
        "mlp.items.weight": [[-1.0]],  # z_0 = [2, -1]
        "dense.0.weight": [[1.0, 1.0], [-1.0, 0.0]],
        "dense.0.bias": [0.5, 1.0],  # z_1 = relu([1.5, -1]) = [1.5, 0]
        "dense.1.weight": [[2.0, 9.0]],
        "dense.1.bias": [-1.0],  # z_2 = [2]
        "head.weight": [[1.0, 0.5, 4.0]],
        "head.bias": [0.25],  # y = 3 - 1 + 8 + 0.25
    }
    model.load_state_dict({name: torch.tensor(value) for name, value in by_hand.items()})
    assert model.score_users(torch.tensor([0])).item() == 10.25


@pytest.mark.parametrize(("gmf_dim", "mlp_dims", "item_bias"), SHAPES)
@pytest.mark.parametrize("tower_bytes", [None, 1, 700, 2**24])
def test_factorised_ranking_equals_the_formula(
    gmf_dim, mlp_dims, item_bias, tower_bytes, monkeypatch
):
    if tower_bytes is not None:  # by torch, which minds it
        monkeypatch.setattr(library, "_library", lambda: None)
        monkeypatch.setattr(neumf, "_TOWER_BYTES", tower_bytes)
    model = make_model(gmf_dim, mlp_dims, item_bias)
    users = [5, 0, 5, 2]
    scores = model.score_users(torch.tensor(users))
    torch.testing.assert_close(scores, all_logits(model, users), rtol=0, atol=1e-5)


def towers(model, by_torch=False):
    """What the MLP adds to logits of 1 for all users and items."""
    parts = (
        model._user_part(torch.arange(model.num_users)),
        model._item_part(model.mlp.items.weight),
    )
    logits = torch.ones(model.num_users, model.num_items, dtype=parts[0].dtype)
    if by_torch:
        model._add_towers_by_torch(logits, *parts)
        return logits
    layers = [(layer.weight, layer.bias) for layer in model.dense[1:]]
    done = native.add_towers(logits, *parts, layers, model.head.weight[0, model.gmf_dim :])
    return logits if done else None


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 4, 7])
@pytest.mark.parametrize("num_items", [1, 32, 37])
@pytest.mark.parametrize("widths", [(2, 1), (6, 5, 3), (64, 32, 16, 8), (16, 9, 20)])
def test_towers_in_c_are_those_of_torch(widths, num_items, threads):
    torch.manual_seed(num_items)
    model = NeuMF(5, num_items, mlp_dims=widths, init_std=1.0)
    for layer in model.dense:
        torch.nn.init.normal_(layer.bias)
    found = with_threads(threads, lambda: towers(model)).double()
    torch.testing.assert_close(found, towers(model.double(), by_torch=True), rtol=2e-6, atol=2e-6)


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("name", ["mlp.users.weight", "dense.0.weight", "dense.1.bias"])
def test_what_is_no_number_stays_none(name):
    model = make_model()
    model.get_parameter(name).data[1] = torch.nan
    found = towers(model)
    assert found[1].isnan().all()
    assert torch.equal(found.isnan(), towers(model, by_torch=True).isnan())


@pytest.mark.parametrize("mode", ["gradient", "double"])
def test_other_towers_are_left_to_torch(mode):
    model = make_model()
    if mode == "double":
        model.double().requires_grad_(False)
    assert towers(model) is None
    torch.testing.assert_close(
        model.score_users(torch.arange(6)).float(), all_logits(model, range(6)), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(("gmf_dim", "mlp_dims", "item_bias"), SHAPES)
def test_loss_equals_the_mean_over_all_labelled_pairs(gmf_dim, mlp_dims, item_bias):
    model = make_model(gmf_dim, mlp_dims, item_bias)
    batch = TrainBatch(
        torch.tensor([0, 5]), torch.tensor([1, 8]), torch.tensor([[2, 3, 4], [0, 0, 7]])
    )
    logits = all_logits(model, [0, 5])
    taken = torch.cat([logits[0, [1, 2, 3, 4]], logits[1, [8, 0, 0, 7]]])
    labels = torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0])
    expected = binary_cross_entropy_with_logits(taken, labels)
    torch.testing.assert_close(model.training_loss(batch), expected, rtol=0, atol=1e-6)


def test_every_parameter_learns():
    model = make_model(item_bias=True)
    users = torch.arange(6)
    model.training_loss(TrainBatch(users, users, users.unsqueeze(1) + 3)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_first_weights_follow_the_authors():
    torch.manual_seed(0)
    model = NeuMF(500, 500)
    for table in (model.gmf.users, model.gmf.items, model.mlp.users, model.mlp.items):
        assert table.weight.std().item() == pytest.approx(0.01, rel=0.1)
    glorot = (6 / (64 + 32)) ** 0.5
    assert 0.9 * glorot < model.dense[0].weight.abs().max() <= glorot
    assert model.head.weight.abs().max() <= (3 / 16) ** 0.5
    assert all(not layer.bias.any() for layer in (*model.dense, model.head))


def test_layers_are_tables_dense_layers_and_head():
    assert list(make_model().layer_groups()) == [
        "gmf",
        "mlp",
        "dense_1",
        "dense_2",
        "dense_3",
        "head",
    ]
    assert list(make_model(3, ()).layer_groups()) == ["gmf", "head"]
    assert list(make_model(0, (4, 3)).layer_groups()) == ["mlp", "dense_1", "head"]


@pytest.mark.parametrize("item_bias", [False, True])
@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_pretrained_parts_are_mixed_by_alpha(alpha, item_bias):
    gmf, mlp = make_model(3, (), item_bias, seed=1), make_model(0, (4, 3), item_bias, seed=2)
    model = NeuMF.from_pretrained(gmf, mlp, alpha)
    users = torch.arange(6)
    expected = alpha * gmf.score_users(users) + (1 - alpha) * mlp.score_users(users)
    torch.testing.assert_close(model.score_users(users), expected, rtol=0, atol=1e-5)
    assert (model.gmf_dim, model.mlp_dims) == (3, (4, 3))


def test_pretrained_parts_are_copied():
    gmf, mlp = make_model(3, ()), make_model(0, (4, 3))
    model = NeuMF.from_pretrained(gmf, mlp)
    before = gmf.gmf.users.weight.clone()
    with torch.no_grad():
        model.gmf.users.weight.zero_()
    assert torch.equal(gmf.gmf.users.weight, before)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("parts", "alpha", "said"),
    [
        ((make_model(), make_model(0, (4, 3))), 0.5, "GMF alone and an MLP alone"),
        ((make_model(3, ()), make_model(0, (4, 3), num_items=8)), 0.5, "of the same data"),
        ((make_model(3, (), True), make_model(0, (4, 3))), 0.5, "agree about item_bias"),
        ((make_model(3, ()), make_model(0, (4, 3))), 1.5, "alpha must lie between 0 and 1"),
    ],
)
def test_unfit_pretrained_parts_are_refused(parts, alpha, said):
    with pytest.raises(ValueError, match=said):
        NeuMF.from_pretrained(*parts, alpha=alpha)


@pytest.mark.parametrize(
    ("gmf_dim", "mlp_dims", "said"),
    [
        (-1, (4, 2), "gmf_dim must be at least 0; got -1"),
        (0, (), "needs a GMF or an MLP"),
        (8, (4,), "at least two widths"),
        (8, (5, 2), "the first even"),
        (8, (4, 0), "each 1 or more"),
    ],
)
def test_impossible_sizes_are_refused(gmf_dim, mlp_dims, said):
    with pytest.raises(ValueError, match=said):
        NeuMF(6, 9, gmf_dim, mlp_dims)


@pytest.mark.parametrize("data", ["synthetic", "filmtrust", "ml_1m"])
@pytest.mark.parametrize(("model", "negatives"), [("neumf", 4), ("neumf_deopt_paper", 30)])
def test_choosing_the_model_sets_its_number_of_negatives(compose_train, model, negatives, data):
    chosen = f"model={model}", f"data={data}"
    assert compose_train(*chosen).data.num_negatives == negatives
    assert compose_train(*chosen, "data.num_negatives=7").data.num_negatives == 7


def test_other_models_leave_the_number_of_negatives_to_the_data(compose_train):
    assert compose_train("model=bpr_mf", "data=filmtrust").data.num_negatives == 16
    assert "num_negatives" not in compose_train("model=lrml", "data=ml_1m").data
