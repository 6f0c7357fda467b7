import math

import lightning as L
import pytest
import torch

from recsys_models import train
from recsys_models.baselines import LambdaOpt
from recsys_models.baselines.penalty import Penalty
from recsys_models.baselines.penalty_tuner import ValidationPairs
from tests.recsys_models.baselines.reference import (
    OPTIMIZERS,
    batch_penalty,
    fit,
    loss_at,
    tiny_data,
    tiny_model,
    validation_loss_ahead,
)


class Recorder(L.Callback):
    """Keeps the training batches and how small the lambdas have been."""

    def __init__(self, tuner):
        self.tuner, self.batches, self.smallest = tuner, [], math.inf

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(batch)
        lowest = min(float(weights.min()) for weights in self.tuner.penalty.lambdas.values())
        self.smallest = min(self.smallest, lowest)


def replayed(name, granularity, batches, *, lr, batch_size):
    """The weights and lambdas of lambda-opt, by autograd alone and with whole tables."""
    data = tiny_data()
    model = tiny_model(data, name)
    stepper = model.configure_optimizers()
    tables = dict(model.named_parameters())
    penalty = Penalty(tables, granularity)
    leaves = [weights.requires_grad_() for weights in penalty.lambdas.values()]
    of_lambda = torch.optim.Adam(leaves, lr=lr, amsgrad=True)
    pairs = ValidationPairs(data, batch_size, seed=0)

    def lambdas():
        return {key: penalty.of(key, torch.arange(len(table))) for key, table in tables.items()}

    for number, batch in enumerate(batches):
        if number:
            ahead = validation_loss_ahead(name, model, stepper, lambdas(), batch, pairs.draw())
            gradients = torch.autograd.grad(ahead, leaves)
            for weights, gradient in zip(leaves, gradients, strict=True):
                weights.grad = gradient
            of_lambda.step()
            with torch.no_grad():
                for weights in leaves:
                    weights.clamp_(min=0)
        stepper.zero_grad()
        (loss_at(tables, batch) + batch_penalty(lambdas(), tables, batch)).backward()
        stepper.step()
    return tables, penalty.lambdas


@pytest.mark.parametrize(
    ("optimizer", "granularity"),
    [
        ("sgd", "dimension+user+item"),
        ("adam", "user+item"),
        ("amsgrad", "global"),
        ("adamod", "dimension"),
    ],
)
def test_training_equals_a_replay_by_autograd(optimizer, granularity):
    data = tiny_data()
    model = tiny_model(data, optimizer)
    tuner = LambdaOpt(granularity, lr=0.01, batch_size=16)
    recorder = Recorder(tuner)
    fit(model, data, [tuner, recorder])
    tables, lambdas = replayed(optimizer, granularity, recorder.batches, lr=0.01, batch_size=16)
    assert len(recorder.batches) == 2 * math.ceil(len(data.train) / 32)
    for name, table in model.named_parameters():
        torch.testing.assert_close(table, tables[name], rtol=1e-8, atol=1e-10)
    for key, weights in tuner.penalty.lambdas.items():
        torch.testing.assert_close(weights, lambdas[key].detach(), rtol=1e-8, atol=1e-10)
    assert any(weights.any() for weights in lambdas.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_learned_lambdas_change_the_weights_and_stay_at_least_zero(optimizer):
    data = tiny_data()
    weights = {}
    for tuner in (LambdaOpt(lr=0.05), LambdaOpt(lr=0.0)):
        model, recorder = tiny_model(data, optimizer), Recorder(tuner)
        fit(model, data, [tuner, recorder])
        assert recorder.smallest == 0.0
        weights[tuner.lr] = model.user_embedding.weight
    assert (weights[0.05] - weights[0.0]).abs().max() > 1e-4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_lambdas_kept_at_zero_leave_training_as_it_is_bit_for_bit(optimizer):
    data = tiny_data()
    states = []
    for callbacks in ([], [LambdaOpt(lr=0.0)]):
        model = tiny_model(data, optimizer).float()
        trainer = fit(model, data, callbacks)
        states.append(model.state_dict() | {"step": torch.tensor(trainer.global_step)})
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_hypergradients_are_clipped_by_their_norm(monkeypatch):
    monkeypatch.setattr("recsys_models.baselines.lambda_opt.MAX_NORM", 0.0)
    data, tuner = tiny_data(), LambdaOpt(lr=0.05)
    fit(tiny_model(data, "sgd"), data, [tuner])
    assert tuner.probe_steps_taken > 0
    assert not any(weights.any() for weights in tuner.penalty.lambdas.values())


def test_one_learned_lambda_lowers_validation_loss_where_training_overfits():
    """With a single number the tuner cannot memorise the validation pairs."""
    data = tiny_data()
    batch = ValidationPairs(data, 4000, seed=123).draw()
    losses = {}
    for name, lr, epochs in (("plain", 0.0, 1), ("overfit", 0.0, 12), ("tuned", 0.05, 12)):
        model = tiny_model(data, "adam", dim=8)
        model.configure_optimizers = lambda m=model: torch.optim.Adam(m.parameters(), lr=0.1)
        tuner = LambdaOpt("global", lr=lr, batch_size=64)
        fit(model, data, [tuner], max_epochs=epochs, limit_val_batches=0)
        losses[name] = float(model.training_loss(batch).detach())
    assert losses["overfit"] > 1.2 * losses["plain"]
    assert losses["tuned"] < losses["plain"]


def test_result_counts_assumed_steps_and_has_lambdas_by_layer(compose_train, tmp_path):
    overrides = ("tuner=lambda_opt", "optimizer=adamod", "trainer.accelerator=cpu")
    small = "+data.synthetic={num_users: 60, num_items: 40, num_interactions: 900}"
    cfg = compose_train(*overrides, small, "trainer.max_epochs=2", "+data.batch_size=64")
    train.run(cfg)
    (path,) = (tmp_path / "out" / "checkpoints").glob("*.ckpt")
    state = torch.load(path, weights_only=True)["callbacks"]["LambdaOpt"]
    assert set(state["lambdas"]) == {"user[60x64]", "item[40x64]", "item[40x1]"}
    result = (tmp_path / "out" / "result.json").read_text()
    assert f'"probe_steps": {2 * math.ceil(630 / 64) - 1},' in result
    assert '"lambda": {' in result


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"granularity": "column"},
            "granularity must be one of global, dimension, .* got 'column'",
        ),
        ({"lr": -1.0}, "lr must be at least 0; got -1.0"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
    ],
)
def test_bad_arguments_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        LambdaOpt(**options)
