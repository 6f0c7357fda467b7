"""The adjacency, its product, and what a graph recommender does with both."""

import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.data import DataLoader

from deopt_lightning import DEOptCallback
from deopt_lightning.snapshot import Snapshot
from recsys_models.data import Interactions, RecsysDataModule, synthetic_interactions
from recsys_models.data.batches import RankingBatch, TrainBatch
from recsys_models.models import NGCF, LightGCN
from recsys_models.models.adjacency import Adjacency
from tests.recsys_models.trainers import quiet_trainer

HALF_ROOT = 0.5**0.5
CPU = torch.device("cpu")

# Users 0 to 2 and items 0 to 2; user 2 and item 2 have no pair.
PAIRS = [(0, 0), (0, 1), (1, 0)]
SYM = np.zeros((6, 6))
for user, item, value in ((0, 0, 0.5), (0, 1, HALF_ROOT), (1, 0, HALF_ROOT)):
    SYM[user, 3 + item] = SYM[3 + item, user] = value
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
NORMS = ["sym", "rw_selfloop"]
MODELS = [
    pytest.param(lambda *sizes: NGCF(*sizes, dim=4, layer_dims=(5, 3)), id="ngcf"),
    pytest.param(lambda *sizes: LightGCN(*sizes, dim=4, num_layers=2), id="lightgcn"),
]


def tiny_graph():
    users, items = np.array(PAIRS).T
    return Interactions.from_pairs(users, items, 3, 3)


def random_graph(num_users=7, num_items=5, num_pairs=14, seed=0):
    keys = np.random.default_rng(seed).choice(num_users * num_items, num_pairs, replace=False)
    return Interactions.from_pairs(*np.divmod(keys, num_items), num_users, num_items)


def double_adjacency(norm, train=None):
    adjacency = Adjacency.from_interactions(train or random_graph(), norm)
    return adjacency.to(CPU, torch.float64)


def dense(adjacency):
    return adjacency.csr().to_dense()


def small_data():
    module = RecsysDataModule(batch_size=64, eval_batch_size=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "recsys_models.data.datamodule.synthetic_interactions",
            lambda: synthetic_interactions(40, 30, 500),
        )
        module.setup()
    return module


@pytest.fixture(scope="module")
def data():
    return small_data()


def model_of(build, data):
    torch.manual_seed(0)
    model = build(data.num_users, data.num_items)
    model.set_interactions(data.train)
    return model


def count_propagations(model, monkeypatch):
    calls = []
    propagate = model.propagate

    def counted(adjacency, embeddings):
        calls.append(model.training)
        return propagate(adjacency, embeddings)

    monkeypatch.setattr(model, "propagate", counted)
    return calls


# --- the matrix -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "expected"), [("sym", SYM), ("rw_selfloop", RW_SELFLOOP)])
def test_matrix_equals_the_one_worked_by_hand(norm, expected):
    matrix = dense(Adjacency.from_interactions(tiny_graph(), norm)).numpy()
    assert matrix == pytest.approx(expected, abs=1e-7)


def test_symmetric_matrix_equals_its_transpose_and_keeps_one_copy_of_its_values():
    adjacency = Adjacency.from_interactions(random_graph(), "sym")
    assert torch.equal(dense(adjacency), dense(adjacency).T)
    assert adjacency.transposed_values is adjacency.values
    moved = adjacency.to(CPU, torch.float64)
    assert moved.transposed_values is moved.values


def test_rows_with_self_loops_sum_to_one():
    rows = dense(double_adjacency("rw_selfloop")).sum(1)
    torch.testing.assert_close(rows, torch.ones_like(rows), rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_transpose_is_the_transposed_matrix(norm, rate):
    torch.manual_seed(0)
    adjacency = Adjacency.from_interactions(random_graph(), norm).drop_entries(rate)
    assert torch.equal(dense(adjacency.transpose()), dense(adjacency).T)
    assert torch.equal(dense(adjacency.transpose().transpose()), dense(adjacency))


def test_matrix_without_a_single_pair_is_zero():
    none = np.empty(0, dtype=np.int64)
    adjacency = Adjacency.from_interactions(Interactions(none, none, 2, 3), "sym")
    x = torch.ones(5, 4, requires_grad=True)
    product = adjacency.product(x)
    product.sum().backward()
    assert product.eq(0).all()
    assert x.grad.eq(0).all()


# --- its product ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_product_and_gradient_equal_those_of_the_dense_matrix(norm, rate):
    torch.manual_seed(0)
    adjacency = double_adjacency(norm).drop_entries(rate)
    x, direction = torch.randn(2, 12, 3, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    product, expected = adjacency.product(ours), dense(adjacency) @ theirs
    product.backward(direction)
    expected.backward(direction)
    torch.testing.assert_close(product, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_product_passes_gradcheck_twice(norm, rate):
    torch.manual_seed(0)
    adjacency = double_adjacency(norm).drop_entries(rate)
    x = torch.randn(12, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(adjacency.product, x)
    assert gradgradcheck(lambda x: adjacency.product(x).square(), x)


@pytest.mark.parametrize("norm", NORMS)
def test_stacked_tables_give_what_a_loop_gives(norm):
    adjacency = double_adjacency(norm)
    x = torch.randn(4, 12, 3, dtype=torch.float64)

    def loss(x):
        return adjacency.product(x).square().sum()

    def loop(function):
        return torch.stack([function(table) for table in x])

    torch.testing.assert_close(torch.vmap(adjacency.product)(x), loop(adjacency.product))
    gradient = torch.func.grad(loss)
    torch.testing.assert_close(torch.vmap(gradient)(x), loop(gradient))


def test_dropped_entries_are_zero_and_the_rest_is_scaled_up():
    adjacency = Adjacency.from_interactions(synthetic_interactions(200, 100, 4000), "sym")
    torch.manual_seed(0)
    ratio = adjacency.drop_entries(0.25).values / adjacency.values
    kept = ratio > 0
    torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], 4 / 3))
    assert kept.double().mean() == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / 8000) ** 0.5)


def test_product_under_autocast_is_that_of_full_precision():
    adjacency = Adjacency.from_interactions(random_graph(), "sym")
    x = torch.randn(12, 3)
    with torch.autocast("cpu", torch.bfloat16):
        product = adjacency.product(x)
    assert torch.equal(product, adjacency.product(x))
    assert adjacency.product(x.bfloat16()).dtype == torch.bfloat16


# --- where the edges come from --------------------------------------------------------------------


@pytest.mark.parametrize("build", MODELS)
def test_edges_are_the_training_pairs_and_no_others(build, data):
    model = build(data.num_users, data.num_items)
    quiet_trainer(fast_dev_run=1).fit(model, datamodule=data)
    edges = dense(model._adjacency)[: data.num_users, data.num_users :] != 0
    assert edges.sum() == len(data.train)
    assert edges[data.train.users, data.train.items].all()
    for held_out in (data.validation, data.test):
        assert not edges[held_out.users, held_out.items].any()


@pytest.mark.parametrize("build", MODELS)
def test_a_later_data_module_replaces_the_edges(build, data):
    model = model_of(build, data)
    other = SimpleNamespace(train=data.test)
    model._trainer = SimpleNamespace(datamodule=other)
    model.setup("fit")
    assert model._adjacency.values.numel() == 2 * len(data.test)


@pytest.mark.parametrize("build", MODELS)
def test_edges_may_be_set_by_hand_for_plain_loaders(build, data):
    model = model_of(build, data)
    loaders = data.train_dataloader(), data.val_dataloader()
    trainer = quiet_trainer(fast_dev_run=1)
    trainer.fit(model, *loaders)
    assert "val/ndcg@10" in trainer.callback_metrics


@pytest.mark.parametrize("build", MODELS)
def test_a_trainer_without_training_interactions_is_refused(build, data):
    model = build(data.num_users, data.num_items)
    with pytest.raises(MisconfigurationException, match="call set_interactions"):
        quiet_trainer(fast_dev_run=1).fit(model, data.train_dataloader(), data.val_dataloader())


@pytest.mark.parametrize("build", MODELS)
def test_scores_without_edges_are_refused(build):
    with pytest.raises(RuntimeError, match="needs the training interactions for its graph"):
        build(3, 3).score_users(torch.arange(3))


@pytest.mark.parametrize("build", MODELS)
def test_interactions_of_other_sizes_are_refused(build):
    with pytest.raises(ValueError, match="built for 3 users and 4 items; got interactions of 3"):
        build(3, 4).set_interactions(tiny_graph())


# --- tables, scores and loss ----------------------------------------------------------------------


@pytest.mark.parametrize("build", MODELS)
def test_loss_equals_loops_over_pairs(build, data):
    model = model_of(build, data).eval()
    batch = TrainBatch(torch.tensor([0, 5]), torch.tensor([1, 8]), torch.tensor([[2, 3], [0, 0]]))
    scores = model.score_users(batch.users).tolist()
    differences = [
        row[positive] - row[negative]
        for row, positive, others in zip(scores, batch.items, batch.negatives, strict=True)
        for negative in others
    ]
    expected = np.log1p(np.exp(-np.array(differences))).mean()
    assert model.training_loss(batch).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("build", MODELS)
def test_each_evaluation_propagates_once(build, data, monkeypatch):
    model = model_of(build, data)
    calls = count_propagations(model, monkeypatch)
    trainer = quiet_trainer()
    assert len(data.val_dataloader()) > 1
    trainer.validate(model, datamodule=data, verbose=False)
    assert calls == [False]
    trainer.test(model, datamodule=data, verbose=False)
    assert calls == [False, False]


@pytest.mark.parametrize("build", MODELS)
def test_every_ranking_of_a_tuned_run_uses_the_weights_of_the_moment(build, data, monkeypatch):
    model = build(data.num_users, data.num_items)
    scorer = model.scorer
    calls = count_propagations(model, monkeypatch)
    rankings = []

    def checked():
        kept, model._evaluated = model._evaluated, None
        fresh = scorer()
        calls.pop()
        model._evaluated = kept
        used = scorer()
        rankings.append(all(map(torch.equal, used[:2], fresh[:2])))
        return used

    monkeypatch.setattr(model, "scorer", checked)
    callback = DEOptCallback(
        "val/ndcg@10", mode="max", population_size=4, probe_steps=2, lr_bounds=(1e-3, 1e-1)
    )
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback])
    trainer.fit(model, datamodule=data)
    assert all(rankings)
    # Not once per batch: in both of the Trainer's own validations, and in both generations twice to
    # test whether the model says what validation logs.
    assert calls.count(False) == callback.evaluations + 2 + 2 * 2
    own, by_the_loop = 2, 2  # validations that ask for each batch anew
    once = calls.count(False) - own - by_the_loop
    assert len(rankings) == once + (own + by_the_loop) * len(data.val_dataloader())


@pytest.mark.parametrize("build", MODELS)
def test_scores_outside_an_evaluation_follow_the_weights(build, data):
    model = model_of(build, data).eval()
    users = torch.arange(4)
    with torch.no_grad():
        before = model.score_users(users)
        model.item_embedding.weight.mul_(2)
        assert not torch.equal(model.score_users(users), before)


@pytest.mark.parametrize("build", MODELS)
def test_tables_of_an_evaluation_that_failed_are_not_used_again(build, data):
    model = model_of(build, data)
    bad = RankingBatch(*(torch.tensor([-1]),) * 5)
    with pytest.raises(ValueError, match="ids must lie between"):
        quiet_trainer().validate(model, DataLoader([bad], batch_size=None), verbose=False)
    model.train()
    assert model._evaluated is None


@pytest.mark.parametrize("build", MODELS)
def test_neither_checkpoint_nor_snapshot_holds_the_graph(build, data):
    model = model_of(build, data)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert not [name for name, _ in model.named_buffers() if "adjacency" in name]
    snapshot = Snapshot.take(model, [])
    saved = {name for owner, names in snapshot.attributes if owner is model for name in names}
    assert "_adjacency" not in saved
    adjacency, scores = model._adjacency, model.eval().score_users(torch.arange(4))
    with torch.no_grad():
        model.user_embedding.weight.zero_()
    snapshot.restore()
    assert model._adjacency is adjacency
    assert torch.equal(model.eval().score_users(torch.arange(4)), scores)


@pytest.mark.parametrize("build", MODELS)
def test_double_precision_and_pickling(build, data):
    model = model_of(build, data).eval()
    users = torch.arange(4)
    scores = model.score_users(users)
    copy = pickle.load(io.BytesIO(pickle.dumps(model)))
    assert torch.equal(copy.score_users(users), scores)
    exact = model.double().score_users(users)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), scores, rtol=1e-5, atol=1e-6)


def test_trains_on_a_graph_that_an_evaluation_moved(data):
    model = NGCF(data.num_users, data.num_items, dim=4, layer_dims=(4,), edge_dropout=0.5).double()
    model.set_interactions(data.train)
    quiet_trainer().validate(model, datamodule=data, verbose=False)
    model.train().training_loss(next(iter(data.train_dataloader()))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
