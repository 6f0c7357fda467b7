"""The bias that begins at an item's popularity: where it begins, when, and what it leaves alone."""

from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recsys_models.baselines import MostPop
from recsys_models.data import Interactions, RecsysDataModule
from recsys_models.models import LRML, NeuMF
from tests.recsys_models.trainers import quiet_trainer

MODELS = [
    pytest.param(partial(NeuMF, gmf_dim=4, mlp_dims=(8, 4)), id="neumf"),
    pytest.param(partial(LRML, dim=4, num_memories=3, bias_scale=1.0), id="lrml"),
]
SIZES = {"num_users": 60, "num_items": 40, "num_interactions": 900}
biased = pytest.mark.parametrize("build", MODELS)


@pytest.fixture(scope="module")
def data():
    module = RecsysDataModule(synthetic=SIZES, batch_size=64, eval_batch_size=7)
    module.setup()
    return module


def make_model(build, data, **options):
    torch.manual_seed(0)
    return build(data.num_users, data.num_items, **{"item_bias": True} | options)


def biases_of(model):
    return model.item_bias.weight.detach().squeeze(1).clone()


@pytest.mark.parametrize(
    ("model", "scale"),
    [(NeuMF(3, 4, item_bias=True), 1.0), (LRML(3, 4, item_bias=True, bias_scale=0.3), 0.3)],
    ids=["neumf", "lrml"],
)
def test_first_biases_worked_by_hand(model, scale):
    train = Interactions.from_pairs(np.array([0, 1, 2, 0]), np.array([0, 0, 0, 1]), 3, 4)
    model.set_interactions(train)  # 3, 1, 0 and 0 pairs, so shares of 4/5, 2/5, 1/5 and 1/5
    expected = scale * torch.tensor([4 / 1, 2 / 3, 1 / 4, 1 / 4]).log()
    torch.testing.assert_close(biases_of(model), expected, rtol=0, atol=1e-6)


@biased
@torch.no_grad()
def test_begins_at_the_ranking_of_popularity(build, data):
    model = make_model(build, data, init_std=1e-6)
    model.set_interactions(data.train)
    pairs = MostPop(data.train).score_users(torch.tensor([0]))[0]
    more = pairs.unsqueeze(1) > pairs
    for scores in model.score_users(torch.arange(data.num_users)):
        assert (scores.unsqueeze(1) > scores)[more].all()


@biased
def test_held_out_pairs_are_not_counted(build, data):
    model, other = (make_model(build, data) for _ in range(2))
    quiet_trainer().validate(model, datamodule=data, verbose=False)
    other.set_interactions(data.train)
    assert torch.equal(biases_of(model), biases_of(other))
    other.set_interactions(data.train.union(data.validation))
    assert not torch.equal(biases_of(model), biases_of(other))


@biased
def test_what_was_learned_outlives_later_runs_of_a_trainer(build, data, tmp_path):
    model = make_model(build, data)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(model, datamodule=data)
    learned = biases_of(model)
    begun = make_model(build, data)
    begun.set_interactions(data.train)
    assert not torch.equal(learned, biases_of(begun))
    quiet_trainer().test(model, datamodule=data, verbose=False)
    assert torch.equal(biases_of(model), learned)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = make_model(build, data)
    path = tmp_path / "model.ckpt"
    quiet_trainer().test(loaded, datamodule=data, ckpt_path=path, verbose=False)
    assert torch.equal(biases_of(loaded), learned)


@biased
def test_the_other_weights_begin_as_without_a_bias(build, data):
    plain = make_model(build, data, item_bias=False).state_dict()
    weights = make_model(build, data).state_dict()
    assert set(weights) - set(plain) == {"item_bias.weight"}
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


@biased
def test_is_left_out_unless_asked_for_and_then_needs_no_pairs(build, data):
    model = build(data.num_users, data.num_items)
    assert model.item_bias is None
    quiet_trainer(fast_dev_run=1).fit(model, data.train_dataloader(), data.val_dataloader())


@biased
def test_a_trainer_without_training_interactions_is_refused(build, data):
    loaders = data.train_dataloader(), data.val_dataloader()
    with pytest.raises(MisconfigurationException, match="for its item biases; got none"):
        quiet_trainer(fast_dev_run=1).fit(make_model(build, data), *loaders)
    model = make_model(build, data)
    model.set_interactions(data.train)
    quiet_trainer(fast_dev_run=1).fit(model, *loaders)


@biased
def test_interactions_of_other_sizes_are_refused(build, data):
    with pytest.raises(ValueError, match="built for 3 users and 4 items; got interactions of 60"):
        build(3, 4, item_bias=True).set_interactions(data.train)
