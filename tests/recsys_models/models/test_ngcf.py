import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from recsys_models.data import Interactions
from recsys_models.models import NGCF

# Users 0 to 2 and items 0 to 2; user 2 and item 2 have no pair.
PAIRS = [(0, 0), (0, 1), (1, 0)]
NEIGHBOURS = {0: [3, 4], 1: [3], 2: [], 3: [0, 1], 4: [0], 5: []}
RW_SELFLOOP = np.array(
    [
        [1 / 3, 0, 0, 1 / 3, 1 / 3, 0],
        [0, 1 / 2, 0, 1 / 2, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [1 / 3, 1 / 3, 0, 1 / 3, 0, 0],
        [1 / 2, 0, 0, 0, 1 / 2, 0],
        [0, 0, 0, 0, 0, 1],
    ]
)


def make_model(build=NGCF, **options):
    torch.manual_seed(0)
    model = build(num_users=3, num_items=3, dim=4, layer_dims=(5, 2), **options)
    for layer in model.layers:
        torch.nn.init.normal_(layer.w1.bias)
        torch.nn.init.normal_(layer.w2.bias)
    users, items = np.array(PAIRS).T
    model.set_interactions(Interactions.from_pairs(users, items, 3, 3))
    return model.double().eval()


def numbers(model):
    """E^(0) and each layer's W1, b1, W2, b2 for products from the right."""
    tables = [model.user_embedding.weight, model.item_embedding.weight]
    layers = [
        [p.detach().numpy().T for p in (m.w1.weight, m.w1.bias, m.w2.weight, m.w2.bias)]
        for m in model.layers
    ]
    return torch.cat(tables).detach().numpy(), layers


def leaky_relu(x):
    return np.where(x > 0, x, 0.2 * x)


def unit_rows(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def scores_of_tables(tables):
    table = np.concatenate(tables, axis=1)
    return table[:3] @ table[3:].T


def messages_by_node(model):
    """The paper's own form: each node adds up the messages of its neighbours and its own."""
    embeddings, layers = numbers(model)
    tables = [embeddings]
    for w1, b1, w2, b2 in layers:
        rows = []
        for node, neighbours in NEIGHBOURS.items():
            e = embeddings[node]
            total = e @ w1 + b1 + b2
            for other in neighbours:
                decay = 1 / np.sqrt(len(neighbours) * len(NEIGHBOURS[other]))
                total = total + decay * (embeddings[other] @ w1 + (embeddings[other] * e) @ w2)
            rows.append(leaky_relu(total))
        embeddings = np.array(rows)
        tables.append(embeddings)
    return scores_of_tables(tables)


def authors_program(model, concat_normalised=True, propagate_normalised=False):
    """Row-normalised matrix with self loops in both terms, an activation for each."""
    embeddings, layers = numbers(model)
    tables = [embeddings]
    for w1, b1, w2, b2 in layers:
        side = RW_SELFLOOP @ embeddings
        both = leaky_relu(side @ w1 + b1) + leaky_relu((embeddings * side) @ w2 + b2)
        tables.append(unit_rows(both) if concat_normalised else both)
        embeddings = unit_rows(both) if propagate_normalised else both
    return scores_of_tables(tables)


def scores_of(model):
    return model.score_users(torch.arange(3)).detach().numpy()


def test_defaults_are_the_messages_of_the_paper():
    model = make_model()
    assert scores_of(model) == pytest.approx(messages_by_node(model), abs=1e-6)


def test_preset_is_the_program_of_the_authors(compose_train):
    cfg = compose_train("model=ngcf_authors_tf")

    def build(**sizes):
        return instantiate(cfg.model, **sizes)

    model = make_model(build)
    assert scores_of(model) == pytest.approx(authors_program(model), abs=1e-6)


@pytest.mark.parametrize("concat_normalised", [False, True])
@pytest.mark.parametrize("propagate_normalised", [False, True])
def test_rows_are_normalised_where_asked(concat_normalised, propagate_normalised):
    where = {
        "concat_normalised": concat_normalised,
        "propagate_normalised": propagate_normalised,
    }
    model = make_model(norm="rw_selfloop", activation_per_term=True, **where)
    assert scores_of(model) == pytest.approx(authors_program(model, **where), abs=1e-6)


def test_nodes_without_edges_depend_on_themselves_alone():
    model = make_model()
    before = scores_of(model)
    with torch.no_grad():
        model.user_embedding.weight[:2] += 1
        model.item_embedding.weight[:2] -= 1
    after = scores_of(model)
    assert after[2, 2] == before[2, 2]
    assert (after[:2, :2] != before[:2, :2]).all()


@pytest.mark.parametrize("rate", ["message_dropout", "edge_dropout"])
def test_dropout_acts_in_training_only(rate):
    options = {"message_dropout": 0.0, "edge_dropout": 0.0}
    plain, dropped = make_model(**options), make_model(**(options | {rate: 0.5}))
    assert np.array_equal(scores_of(plain), scores_of(dropped))
    plain.train()
    dropped.train()
    torch.manual_seed(0)
    assert not np.array_equal(scores_of(plain), scores_of(dropped))
    torch.manual_seed(1)
    first = scores_of(dropped)
    torch.manual_seed(1)
    assert np.array_equal(first, scores_of(dropped))


def test_all_layers_of_a_step_see_the_same_edges(monkeypatch):
    model = make_model(edge_dropout=0.5, message_dropout=0.0).train()
    seen = []
    product = type(model._adjacency).product
    monkeypatch.setattr(
        type(model._adjacency), "product", lambda self, x: seen.append(self) or product(self, x)
    )
    scores_of(model)
    assert len(seen) == 2
    assert seen[0] is seen[1]
    assert seen[0] is not model._adjacency


@pytest.mark.parametrize("norm", ["sym", "rw_selfloop"])
def test_gradients_through_dropped_edges_are_exact(norm):
    model = make_model(norm=norm, edge_dropout=0.4, message_dropout=0.0).train()
    users, items = model.user_embedding.weight, model.item_embedding.weight

    def final(users, items):
        torch.manual_seed(3)  # the same entries are dropped each time
        adjacency = model._adjacency.to(users.device, users.dtype)
        return torch.cat(model.propagate(adjacency, torch.cat([users, items])), dim=1)

    assert torch.autograd.gradcheck(final, (users, items))


def test_layers_are_the_embeddings_and_each_propagation():
    groups = make_model().layer_groups()
    assert list(groups) == ["embeddings", "layer_1", "layer_2"]
    assert groups["layer_2"] == [
        f"layers.1.{name}" for name in ("w1.weight", "w1.bias", "w2.weight", "w2.bias")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be at least 1; got 0"),
        ({"layer_dims": ()}, "layer_dims must hold at least one width"),
        ({"layer_dims": (4, 0)}, r"each 1 or more; got \[4, 0\]"),
        ({"message_dropout": 1.0}, "message_dropout must be at least 0 and below 1; got 1.0"),
        ({"edge_dropout": -0.1}, "edge_dropout must be at least 0 and below 1; got -0.1"),
        ({"norm": "rw"}, "norm must be 'sym' or 'rw_selfloop'; got 'rw'"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NGCF(3, 3, **options)
