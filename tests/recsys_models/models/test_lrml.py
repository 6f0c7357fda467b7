from functools import partial

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from deopt_lightning import DEOptCallback
from recsys_models.data.batches import RankingBatch, TrainBatch
from recsys_models.models import LRML, lrml

DISTANCES = ["squared_l2", "l1"]
BIASES = [pytest.param(False, id="no_bias"), pytest.param(True, id="item_bias")]


def make_model(**options):
    torch.manual_seed(0)
    sizes = {"num_users": 6, "num_items": 9, "dim": 4, "num_memories": 3}
    model = LRML(**{"init_std": 0.1} | sizes | options)
    with torch.no_grad():  # far from even attention
        model.keys.normal_(std=4.0)
        model.memories.normal_(std=1.0)
        if model.item_bias is not None:
            model.item_bias.weight.normal_(std=0.5)
    return model


def relation(model, user, item):
    """The relation r of one pair, as the paper has it."""
    p, q = model.user_embedding.weight[user], model.item_embedding.weight[item]
    attention = torch.softmax(torch.stack([key @ (p * q) for key in model.keys]), dim=0)
    return sum(a * memory for a, memory in zip(attention, model.memories, strict=True))


def distance(model, user, item, r):
    """Of one pair, less the item's bias."""
    difference = model.user_embedding.weight[user] + r - model.item_embedding.weight[item]
    distance = (difference**2 if model.distance == "squared_l2" else difference.abs()).sum()
    return distance - (0 if model.item_bias is None else model.item_bias.weight[item, 0])


def one_batch():
    return TrainBatch(
        torch.tensor([0, 5]), torch.tensor([1, 8]), torch.tensor([[2, 3, 4], [0, 0, 7]])
    )


def test_distance_worked_by_hand():
    model = LRML(1, 1, dim=2, num_memories=2)
    by_hand = {
        "user_embedding.weight": [[0.5, 0.5]],
        "item_embedding.weight": [[0.8, 0.0]],  # p * q = [0.4, 0]
        "keys": [[0.0, 7.0], [2.5 * torch.log(torch.tensor(3.0)).item(), -3.0]],  # a = [1/4, 3/4]
        "memories": [[2.0, 0.0], [0.0, 4.0]],  # r = [0.5, 3]
    }
    model.load_state_dict({name: torch.tensor(value) for name, value in by_hand.items()})
    users = torch.tensor([0])
    assert model.score_users(users).item() == pytest.approx(-(0.2**2 + 3.5**2), abs=1e-5)
    model.distance = "l1"
    assert model.score_users(users).item() == pytest.approx(-(0.2 + 3.5), abs=1e-5)


@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.parametrize("attention_bytes", [1, 1500, 2**24])
@pytest.mark.parametrize("item_bias", BIASES)
def test_ranking_equals_the_formula_pair_by_pair(metric, attention_bytes, item_bias, monkeypatch):
    monkeypatch.setattr(lrml, "_ATTENTION_BYTES", attention_bytes)
    model = make_model(distance=metric, item_bias=item_bias)
    users = [5, 0, 5, 2]
    pairs = [[distance(model, u, i, relation(model, u, i)).item() for i in range(9)] for u in users]
    scores = model.score_users(torch.tensor(users))
    torch.testing.assert_close(scores, -torch.tensor(pairs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.parametrize("share_relation", [True, False])
@pytest.mark.parametrize("item_bias", BIASES)
def test_loss_equals_loops_over_pairs(metric, share_relation, item_bias):
    options = {"share_relation": share_relation, "item_bias": item_bias}
    model = make_model(distance=metric, margin=0.2, **options)
    terms = []
    for user, item, negatives in zip(*one_batch(), strict=True):
        r = relation(model, user, item)
        for negative in negatives:
            other = r if share_relation else relation(model, user, negative)
            nearer = distance(model, user, item, r) - distance(model, user, negative, other)
            terms.append(torch.clamp(0.2 + nearer, min=0))
    expected = torch.stack(terms).mean()
    assert 0 < sum(term > 0 for term in terms) < len(terms)
    torch.testing.assert_close(model.training_loss(one_batch()), expected, rtol=0, atol=1e-5)


def test_keys_memories_and_bias_learn():
    model = make_model(item_bias=True)
    model.training_loss(one_batch()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_first_vectors_lie_in_the_unit_ball():
    model = LRML(50, 50, dim=8, init_std=1.0)
    for table in (model.user_embedding, model.item_embedding):
        assert table.weight.norm(dim=1).max() <= 1 + 1e-6


@pytest.mark.parametrize(
    "optimizer", [partial(torch.optim.SGD, lr=3.0), partial(torch.optim.Adam, lr=0.5)]
)
def test_no_row_leaves_the_unit_ball_in_training(optimizer):
    model = make_model(optimizer=optimizer)
    stepper = model.configure_optimizers()
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        items = torch.randint(9, (3, 4), generator=generator)
        users = torch.randint(6, (3,), generator=generator)
        stepper.zero_grad()
        model.training_loss(TrainBatch(users, items[:, 0], items[:, 1:])).backward()
        stepper.step()
        model.on_train_batch_end(None, None, step)
        for table in (model.user_embedding, model.item_embedding):
            assert table.weight.norm(dim=1).max() <= 1 + 1e-6


def test_projection_scales_rows_outside_and_leaves_rows_inside_bit_for_bit():
    model = make_model()
    table = model.user_embedding.weight
    with torch.no_grad():
        table[2] *= 5.0 / table[2].norm()
    before = table.detach().clone()
    model.on_train_batch_end(None, None, 0)
    inside = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(table[inside], before[inside])
    torch.testing.assert_close(table[2], before[2] / 5, rtol=0, atol=1e-6)


def test_no_row_leaves_the_unit_ball_in_probes():
    none = torch.empty(0, dtype=torch.int64)
    ranking = RankingBatch(torch.arange(2), none, none, torch.arange(2), torch.tensor([3, 4]))
    model = make_model(optimizer=partial(torch.optim.SGD, lr=3.0))
    tuner = DEOptCallback("val/ndcg@10", "max", population_size=4, probe_steps=2)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[tuner],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = (DataLoader([batch], batch_size=None) for batch in (one_batch(), ranking))
    trainer.fit(model, *loaders)
    assert tuner.probe_steps_taken > 0
    for table in (model.user_embedding, model.item_embedding):
        assert table.weight.norm(dim=1).max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dim": 0}, "dim must be at least 1; got 0"),
        ({"num_memories": 0}, "num_memories must be at least 1; got 0"),
        ({"margin": 0.0}, "margin must be above 0"),
        ({"margin": float("nan")}, "margin must be above 0"),
        ({"distance": "cosine"}, "must be 'squared_l2' or 'l1'; got 'cosine'"),
    ],
)
def test_impossible_arguments_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        LRML(6, 9, **options)
