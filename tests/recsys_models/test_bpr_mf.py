from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus
from torch.utils.data import DataLoader

from recsys_models.data.batches import RankingBatch, TrainBatch
from recsys_models.metrics import evaluate
from recsys_models.models import BPRMF
from tests.recsys_models import trainers

quiet_trainer = partial(trainers.quiet_trainer, num_sanity_val_steps=2)  # as Lightning has it

ALL = [pytest.param(True, id="item_bias"), pytest.param(False, id="no_bias")]


def make_model(item_bias=True, **kwargs):
    torch.manual_seed(0)
    model = BPRMF(num_users=6, num_items=9, dim=4, item_bias=item_bias, init_std=1.0, **kwargs)
    if item_bias:
        torch.nn.init.normal_(model.item_bias.weight)
    return model


def score_by_loop(model, user, item):
    p = model.user_embedding.weight[user].tolist()
    q = model.item_embedding.weight[item].tolist()
    score = sum(a * b for a, b in zip(p, q, strict=True))
    return score + (model.item_bias.weight[item, 0].item() if model.item_bias else 0.0)


def one_batch():
    return TrainBatch(
        torch.tensor([0, 5]), torch.tensor([1, 8]), torch.tensor([[2, 3, 4], [0, 0, 7]])
    )


def loader(*batches):
    return DataLoader(list(batches), batch_size=None)


def ranking_batch(relevant_items=(3, 4)):
    rows = torch.arange(len(relevant_items))
    none = torch.empty(0, dtype=torch.int64)
    relevant = torch.tensor(relevant_items, dtype=torch.int64)
    return RankingBatch(torch.arange(2), none, none, rows, relevant)


@pytest.mark.parametrize("item_bias", ALL)
def test_scores_equal_the_formula(item_bias):
    model = make_model(item_bias)
    scores = model.score_users(torch.tensor([4, 0]))
    expected = [[score_by_loop(model, user, item) for item in range(9)] for user in (4, 0)]
    assert scores.shape == (2, 9)
    assert scores.flatten().tolist() == pytest.approx(np.ravel(expected), abs=1e-5)


@pytest.mark.parametrize("item_bias", ALL)
def test_loss_equals_loops_over_pairs(item_bias):
    model = make_model(item_bias)
    users, items, negatives = (column.tolist() for column in one_batch())
    differences = [
        score_by_loop(model, u, i) - score_by_loop(model, u, j)
        for u, i, others in zip(users, items, negatives, strict=True)
        for j in others
    ]
    expected = softplus(-torch.tensor(differences)).mean().item()
    assert model.training_loss(one_batch()).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("item_bias", ALL)
def test_layers_cover_every_trainable_parameter_once(item_bias):
    model = make_model(item_bias)
    names = [name for group in model.layer_groups().values() for name in group]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert list(model.layer_groups()) == ["users", "items"]


def test_learns_a_checkerboard():
    users, items = np.nonzero(np.add.outer(np.arange(20), np.arange(20)) % 2 == 0)
    held_out = users == items
    train = [torch.from_numpy(ids[~held_out]) for ids in (users, items)]
    test = [torch.from_numpy(ids[held_out]) for ids in (users, items)]
    generator = torch.Generator().manual_seed(0)
    offsets = 2 * torch.randint(0, 10, (30, len(train[0]), 2), generator=generator)
    epochs = [
        TrainBatch(train[0], train[1], (train[0].unsqueeze(1) + 1 + offset) % 20)
        for offset in offsets
    ]
    torch.manual_seed(0)
    model = BPRMF(20, 20, dim=8, init_std=0.1, optimizer=partial(torch.optim.Adam, lr=0.1))
    quiet_trainer(max_epochs=3, limit_val_batches=0).fit(model, loader(*epochs))
    batch = RankingBatch(torch.arange(20), *train, *test)
    assert evaluate(model.score_users, [batch], [1])["hr@1"] == 1.0


def test_logs_train_loss_and_validation_metrics():
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(make_model(top_k=[1, 10]), loader(one_batch()), loader(ranking_batch()))
    names = {f"val/{name}@{k}" for name in ("ndcg", "recall", "hr") for k in (1, 10)}
    assert set(trainer.callback_metrics) == names | {"train/loss"}


def test_validation_metrics_equal_the_same_ranking_outside_the_trainer():
    model = make_model()
    trainer = quiet_trainer()
    logged = trainer.validate(model, loader(ranking_batch(), ranking_batch()), verbose=False)[0]
    expected = evaluate(model.score_users, [ranking_batch()])
    assert logged == pytest.approx({f"val/{k}": v for k, v in expected.items()}, abs=1e-6)
    tested = trainer.test(model, loader(ranking_batch()), verbose=False)[0]
    assert tested == pytest.approx({f"test/{k}": v for k, v in expected.items()}, abs=1e-6)


def test_training_goes_on_after_a_validation():
    model, trainer = make_model(), quiet_trainer(max_epochs=2)
    loaders = loader(one_batch()), loader(ranking_batch())
    (alone,) = quiet_trainer().validate(model, loaders[1], verbose=False)
    trainer.fit(model, *loaders)
    (again,) = trainer.validate(model, loaders[1], verbose=False)
    assert alone.keys() == again.keys() <= trainer.callback_metrics.keys()
    quiet_trainer(max_epochs=1).fit(model, *loaders)


def test_sanity_check_may_see_only_users_without_positives():
    trainer = quiet_trainer(max_epochs=1, num_sanity_val_steps=1)
    batches = loader(ranking_batch(()), ranking_batch())
    trainer.fit(make_model(), loader(one_batch()), batches)
    assert "val/ndcg@10" in trainer.callback_metrics


def test_validation_without_positives_is_an_error():
    with pytest.raises(ValueError, match="held-out item"):
        quiet_trainer().validate(make_model(), loader(ranking_batch(())), verbose=False)


@pytest.mark.parametrize("top_k", [10, "map@5"])
def test_a_single_k_is_asked_for_as_a_list(top_k):
    with pytest.raises(ValueError, match=r"top_k must be a list, such as \[(10|map@5)\]; got"):
        BPRMF(3, 4, top_k=top_k)


@pytest.mark.parametrize(
    ("field", "kind", "bad"),
    [("users", "user", 6), ("items", "item", 9), ("negatives", "item", -1)],
)
def test_unknown_ids_in_training_are_named(field, kind, bad):
    ids = torch.full_like(getattr(one_batch(), field), bad)
    batch = one_batch()._replace(**{field: ids})
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0)
    with pytest.raises(ValueError, match=f"{kind} ids must lie between .* got {bad}"):
        trainer.fit(make_model(), loader(batch))


def test_unknown_ids_in_validation_are_named():
    with pytest.raises(ValueError, match="item ids must lie between 0 and 8"):
        quiet_trainer().validate(make_model(), loader(ranking_batch((3, 9))), verbose=False)


@pytest.mark.parametrize("sizes", [(0, 5, 4), (5, 0, 4), (5, 5, 0)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="must be at least 1; got 0"):
        BPRMF(*sizes)


def test_optimizer_is_made_by_the_given_factory():
    model = make_model(optimizer=partial(torch.optim.SGD, lr=0.5, weight_decay=0.25))
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["lr"] == 0.5
    assert optimizer.defaults["weight_decay"] == 0.25


def test_same_seed_gives_the_same_model():
    assert torch.equal(make_model().user_embedding.weight, make_model().user_embedding.weight)
