"""What every recommender must do. A new model joins by one line in ``MODELS``."""

from functools import partial

import lightning as L
import numpy as np
import pytest
import torch

from deopt_lightning import DEOptCallback
from recsys_models.data import Interactions, RecsysDataModule
from recsys_models.data.batches import RankingBatch, TrainBatch
from recsys_models.models import BPRMF, LRML, NGCF, LightGCN, NeuMF
from tests.recsys_models.trainers import quiet_trainer

NUM_USERS, NUM_ITEMS = 36, 30
adam = partial(torch.optim.Adam, lr=0.05)

# (id, builder of a small model that learns the checkerboard within CHECKERBOARD_EPOCHS)
MODELS = [
    ("bpr_mf", lambda users, items: BPRMF(users, items, dim=8, init_std=0.1, optimizer=adam)),
    (
        "neumf",
        lambda users, items: NeuMF(
            users, items, gmf_dim=4, mlp_dims=(16, 8, 4), init_std=0.1, optimizer=adam
        ),
    ),
    (
        "neumf_item_bias",
        lambda users, items: NeuMF(
            users, items, 4, (16, 8, 4), item_bias=True, init_std=0.1, optimizer=adam
        ),
    ),
    ("lrml", lambda users, items: LRML(users, items, dim=8, num_memories=5, optimizer=adam)),
    (
        "lrml_item_bias",
        lambda users, items: LRML(
            users, items, dim=8, num_memories=5, item_bias=True, optimizer=adam
        ),
    ),
    (
        "ngcf",
        lambda users, items: NGCF(
            users, items, dim=8, layer_dims=(8, 8), optimizer=partial(adam, lr=0.02)
        ),
    ),
    ("lightgcn", lambda users, items: LightGCN(users, items, dim=8, optimizer=adam)),
]
CHECKERBOARD_EPOCHS = 3  # longer, and held-out items drawn as negatives are learned by heart


@pytest.fixture(params=[pytest.param(build, id=name) for name, build in MODELS], scope="module")
def build(request):
    return request.param


@pytest.fixture(scope="module")
def data():
    """Users take items of their own parity only; a part of these is held out."""
    users, items = np.nonzero(np.add.outer(np.arange(NUM_USERS), np.arange(NUM_ITEMS)) % 2 == 0)
    checkerboard = Interactions(users, items, NUM_USERS, NUM_ITEMS)
    module = RecsysDataModule(
        ratios=(0.85, 0.05, 0.1), batch_size=32, eval_batch_size=7, num_negatives=4
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys_models.data.datamodule.synthetic_interactions", lambda: checkerboard)
        module.setup()
    return module


@pytest.fixture(scope="module")
def trained(build, data):
    """The Trainer and the model after a short training; tests leave both as they are."""
    trainer, model = fit(build, data, max_epochs=CHECKERBOARD_EPOCHS, limit_val_batches=0)
    return trainer, model.eval()


def fit(build, data, callbacks=(), prepare=lambda model: None, **options):
    L.seed_everything(0, verbose=False)
    model = build(NUM_USERS, NUM_ITEMS)
    prepare(model)
    trainer = quiet_trainer(callbacks=list(callbacks), **options)
    trainer.fit(model, datamodule=data)
    return trainer, model


@torch.no_grad()
def scores_of(model, users=range(NUM_USERS)):
    return model.score_users(torch.tensor(list(users)))


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_held_out_items_of_the_checkerboard_rank_first(trained, data):
    _, model = trained
    metrics = quiet_trainer().test(model, datamodule=data, verbose=False)[0]
    assert metrics["test/ndcg@10"] > 0.99  # without having learned the squares about a half


def test_scores_are_fresh_and_finite(trained):
    _, model = trained
    first = scores_of(model)
    kept = first.clone()
    first.fill_(torch.nan)  # the ranking overwrites what it gets
    assert kept.shape == (NUM_USERS, NUM_ITEMS)
    assert kept.isfinite().all()
    assert torch.equal(scores_of(model), kept)


def test_scores_depend_neither_on_the_order_nor_on_the_size_of_the_batch(trained):
    _, model = trained
    expected = scores_of(model)
    order = torch.randperm(NUM_USERS, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scores_of(model, order), expected[order], rtol=0, atol=1e-5)
    one_by_one = torch.cat([scores_of(model, [user]) for user in range(NUM_USERS)])
    torch.testing.assert_close(one_by_one, expected, rtol=0, atol=1e-5)


def test_no_users_have_no_scores(trained):
    _, model = trained
    assert model.score_users(torch.arange(0)).shape == (0, NUM_ITEMS)


def test_scores_survive_a_checkpoint(trained, build, data, tmp_path):
    trainer, model = trained
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    L.seed_everything(1, verbose=False)
    other = build(NUM_USERS, NUM_ITEMS)
    quiet_trainer().validate(other, datamodule=data, ckpt_path=path, verbose=False)
    assert torch.equal(scores_of(other.eval()), scores_of(model))


def test_layers_cover_every_trainable_parameter_once(build):
    model = build(NUM_USERS, NUM_ITEMS)
    names = [name for layer in model.layer_groups().values() for name in layer]
    assert sorted(names) == sorted(weights_of(model))


def test_weight_decay_of_a_layer_changes_the_step_of_this_layer_only(build, data):
    def one_step(decayed=None):
        def layered_sgd(model):
            parameters = dict(model.named_parameters())
            groups = [
                {
                    "params": [parameters[name] for name in names],
                    "weight_decay": 0.5 if layer == decayed else 0.0,
                }
                for layer, names in model.layer_groups().items()
            ]
            model.configure_optimizers = lambda: torch.optim.SGD(groups, lr=0.1)

        _, model = fit(build, data, prepare=layered_sgd, max_steps=1, limit_val_batches=0)
        return weights_of(model)

    plain = one_step()
    for decayed, names in build(NUM_USERS, NUM_ITEMS).layer_groups().items():
        changed = {name for name, p in one_step(decayed).items() if not torch.equal(p, plain[name])}
        assert changed, f"weight decay of {decayed} has no effect"
        assert changed <= set(names)


class Both(torch.nn.Module):
    """Loss and scores of a model, as the forward pass that `functional_call` wants."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch, users):
        return self.model.training_loss(batch), self.model.score_users(users)


def test_loss_and_scores_are_functions_of_the_weights_alone(build, data):
    batch, users = next(iter(data.train_dataloader())), torch.tensor([3, 0, 3])
    models = [Both(build(NUM_USERS, NUM_ITEMS)).eval() for _ in range(3)]
    for both in models:
        if hasattr(both.model, "set_interactions"):
            both.model.set_interactions(data.train)
    weights, _ = torch.func.stack_module_state(models)

    def of(weights):
        return torch.func.functional_call(models[0], weights, (batch, users))

    with torch.no_grad():
        together = torch.vmap(of)(weights)
        alone = [both(batch, users) for both in models]
    for ours, each in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(each), rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_trains_and_ranks_at_precision(build, data, precision):
    trainer, model = fit(build, data, precision=precision, max_epochs=1)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in weights_of(model).values())
    assert 0 < trainer.callback_metrics["val/ndcg@10"] <= 1


def test_ranks_in_float32_whatever_the_precision_of_training(trained, data, monkeypatch):
    _, model = trained
    scorer = model.scorer
    ranked = {}
    for precision in ("32-true", "bf16-mixed"):
        batches = ranked[precision] = []

        def noted(users, batches=batches):
            batches.append(scorer()(users))
            return batches[-1].clone()

        monkeypatch.setattr(model, "scorer", lambda noted=noted: noted)
        quiet_trainer(precision=precision).validate(model, datamodule=data, verbose=False)
    for full, mixed in zip(*ranked.values(), strict=True):
        assert torch.equal(mixed, full)


@pytest.mark.parametrize(
    ("kind", "field", "bad"),
    [("user", "users", NUM_USERS), ("item", "items", NUM_ITEMS), ("item", "negatives", -1)],
)
def test_unknown_ids_in_training_are_named(trained, kind, field, bad):
    ids = torch.zeros(2, dtype=torch.int64)
    batch = TrainBatch(ids, ids, ids.unsqueeze(1))
    batch = batch._replace(**{field: torch.full_like(getattr(batch, field), bad)})
    with pytest.raises(ValueError, match=f"{kind} ids must lie between 0 and .* got {bad}"):
        trained[1].training_step(batch, 0)


@pytest.mark.parametrize(
    ("kind", "field", "bad"), [("user", "users", -1), ("item", "relevant_items", NUM_ITEMS)]
)
def test_unknown_ids_in_ranking_are_named(trained, kind, field, bad):
    ids = torch.zeros(1, dtype=torch.int64)
    batch = RankingBatch(ids, ids, ids, ids, ids + 1)._replace(**{field: torch.tensor([bad])})
    with pytest.raises(ValueError, match=f"{kind} ids must lie between 0 and .* got {bad}"):
        trained[1].validation_step(batch, 0)


@pytest.mark.parametrize("user", [-1, NUM_USERS])
def test_no_scores_for_users_that_the_model_does_not_know(trained, user):
    for scorer in (trained[1].score_users, trained[1].scorer()):
        with pytest.raises((IndexError, ValueError)):
            scorer(torch.tensor([0, user]))


@pytest.mark.parametrize(
    ("field", "bad"),
    [("users", -1), ("users", NUM_USERS), ("items", -1), ("negatives", NUM_ITEMS)],
)
def test_a_loss_asked_for_alone_knows_no_other_ids_either(trained, field, bad):
    ids = torch.zeros(2, dtype=torch.int64)
    batch = TrainBatch(ids, ids, ids.unsqueeze(1))
    batch = batch._replace(**{field: torch.full_like(getattr(batch, field), bad)})
    with pytest.raises((IndexError, ValueError)):
        trained[1].training_loss(batch)


def test_says_what_a_validation_logs(trained, data):
    model = trained[1]
    with torch.no_grad():
        found = model.validation_metrics(data.val_dataloader())
    (logged,) = quiet_trainer().validate(model, datamodule=data, verbose=False)
    assert {name: float(value) for name, value in found.items()} == logged
    assert model.val_metrics.lists == 0


def test_deopt_learns_a_value_for_each_layer(build, data):
    callback = DEOptCallback(
        "val/ndcg@10", mode="max", population_size=4, probe_steps=2, lr_bounds=(1e-3, 1e-1)
    )
    _, model = fit(build, data, [callback], max_epochs=2)
    assert len(callback.history) == 2
    assert [row["epoch"] for row in callback.schedule] == [0, 1]
    assert list(callback.schedule[1]["lr"]) == list(model.layer_groups())
    assert all(p.isfinite().all() for p in weights_of(model).values())
    assert callback.evaluations >= 4
