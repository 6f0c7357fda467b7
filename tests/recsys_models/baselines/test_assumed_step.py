import pytest
import torch

from recsys_models.baselines.assumed_step import AssumedStep
from recsys_models.baselines.penalty import Penalty, row_shares
from recsys_models.data.batches import TrainBatch
from tests.recsys_models.baselines.reference import (
    OPTIMIZERS,
    loss_at,
    tiny_data,
    tiny_model,
    validation_loss_ahead,
)

GRANULARITIES = ["global", "dimension", "user", "item", "user+item", "dimension+user+item"]


def random_batch(seed, size=40, num_users=20, num_items=15):
    draw = torch.Generator().manual_seed(seed)
    users = torch.randint(num_users, (size,), generator=draw)
    items = torch.randint(num_items, (size,), generator=draw)
    return TrainBatch(users, items, torch.randint(num_items, (size, 2), generator=draw))


def set_up(optimizer, granularity, touched_before=True, **options):
    """A model in mid-training, and its gradients of a batch's loss."""
    model = tiny_model(tiny_data(), optimizer, **options)
    stepper = model.configure_optimizers()
    tables = dict(model.named_parameters())
    penalty = Penalty(tables, granularity)
    for weights in penalty.lambdas.values():
        weights.copy_(torch.rand(weights.shape) / 5)
    for _ in range(3):
        for table in tables.values():
            table.grad = torch.randn(table.shape, dtype=table.dtype) / 10
            if not touched_before:
                table.grad[: len(table) // 2] = 0
        stepper.step()
    train, validation = random_batch(10, size=8), random_batch(11, size=8)
    grads = torch.autograd.grad(loss_at(tables, train), list(tables.values()))
    assumed = AssumedStep(model, stepper, penalty)
    return (
        model,
        stepper,
        penalty,
        assumed,
        train,
        validation,
        dict(zip(tables, grads, strict=True)),
    )


def whole(penalty):
    return {name: penalty.of(name, torch.arange(len(t))) for name, t in penalty.tables.items()}


def assert_equal(found, expected, within=1e-10):
    for key, gradient in expected.items():
        scale = gradient.abs().max()
        assert scale > 0
        assert (found[key] - gradient).abs().max() <= within * scale, key


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("granularity", [*GRANULARITIES, "group+dimension"])
def test_hypergradient_equals_double_backward(granularity, optimizer):
    model, stepper, penalty, assumed, train, validation, grads = set_up(optimizer, granularity)
    found = assumed.hypergradients(grads, row_shares(train, 20, 15, torch.float64), validation)

    leaves = [weights.requires_grad_() for weights in penalty.lambdas.values()]
    loss = validation_loss_ahead(optimizer, model, stepper, whole(penalty), train, validation)
    expected = dict(zip(penalty.lambdas, torch.autograd.grad(loss, leaves), strict=True))
    assert_equal(found, expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_assumed_step_is_the_one_that_the_optimizer_takes(optimizer):
    """A difference quotient over real steps, of copies of model and optimizer."""
    granularity, width = "dimension", 1e-4
    losses = []
    for shift in (-width, width):
        model, stepper, penalty, assumed, train, validation, grads = set_up(optimizer, granularity)
        shares = row_shares(train, 20, 15, torch.float64)
        found = assumed.hypergradients(grads, shares, validation)
        penalty.lambdas["all[1x3]"][0, 1] += shift
        for name, table in penalty.tables.items():
            table.grad = grads[name].clone()
        penalty.add_to_gradients(shares)
        stepper.step()
        losses.append(loss_at(penalty.tables, validation).item())
    quotient = (losses[1] - losses[0]) / (2 * width)
    assert found["all[1x3]"][0, 1].item() == pytest.approx(quotient, rel=1e-5)


def test_looking_ahead_changes_nothing():
    model, stepper, penalty, assumed, train, validation, grads = set_up("adam", "user")
    tables = {name: table.detach().clone() for name, table in penalty.tables.items()}
    state = {k: v.clone() for k, v in stepper.state[model.user_embedding.weight].items()}
    kept = {name: grad.clone() for name, grad in grads.items()}
    assumed.hypergradients(grads, row_shares(train, 20, 15, torch.float64), validation)
    assert all(torch.equal(table, tables[name]) for name, table in penalty.tables.items())
    assert all(
        torch.equal(v, state[k]) for k, v in stepper.state[model.user_embedding.weight].items()
    )
    assert all(torch.equal(grad, kept[name]) for name, grad in grads.items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rows_without_a_past_or_outside_the_batch_do_no_harm(optimizer):
    *_, assumed, train, validation, grads = set_up(
        optimizer, "dimension+user+item", touched_before=False
    )
    shares = row_shares(train, 20, 15, torch.float64)
    found = assumed.hypergradients(grads, shares, validation)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    outside = shares["user"] == 0
    assert 0 < outside.sum() < 20
    assert not found["user[20x3]"][outside].any()
    assert found["user[20x3]"].any()


@pytest.mark.parametrize("bias", [True, False])
def test_sgda_gradient_in_closed_form(bias):
    """dL_V/dlambda = -2 a sum of theta c/P dL_V/dtheta', with g and c/P of an earlier batch."""
    model, _, penalty, assumed, train, validation, grads = set_up(
        "sgd", "group+dimension", item_bias=bias
    )
    shares = row_shares(train, 20, 15, torch.float64)
    with torch.no_grad():  # the weights have moved on since that batch
        for table in penalty.tables.values():
            table.add_(torch.randn(table.shape, dtype=table.dtype) / 10)
    found = assumed.hypergradients(grads, shares, validation)
    weights, expected, ahead = whole(penalty), {}, {}
    for name, table in penalty.tables.items():
        share = shares[name[:4]].unsqueeze(1)
        ahead[name] = table - 0.5 * (grads[name] + 2 * weights[name] * share * table)
    by_theta = torch.autograd.grad(loss_at(ahead, validation), list(ahead.values()))
    for (name, table), gradient in zip(penalty.tables.items(), by_theta, strict=True):
        key = f"{name[:4]}[1x{table.shape[1]}]"
        share = shares[name[:4]].unsqueeze(1)
        expected[key] = (-2 * 0.5 * share * table * gradient).sum(0, keepdim=True).detach()
    assert_equal(found, expected)
