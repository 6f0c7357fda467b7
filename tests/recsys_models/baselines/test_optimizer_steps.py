import pytest
import torch

from tests.recsys_models.baselines.reference import HYPERS, OPTIMIZERS, RULES

SHAPE = (40, 6)


def zero_state(rule, dtype=torch.float64):
    return {"step": torch.tensor(0)} | {k: torch.zeros(SHAPE, dtype=dtype) for k in rule.moments}


def gradients(count, dtype, seed=0):
    """Gradients that grow and shrink, with rows that no batch looks up."""
    generator = torch.Generator().manual_seed(seed)
    for t in range(count):
        grad = torch.randn(SHAPE, generator=generator, dtype=dtype) * (1.0 + t % 7) / 4
        yield grad * (torch.rand(SHAPE[0], 1, generator=generator) < 0.4)


def state_after(name, count):
    rule, hyper = RULES[name], HYPERS[name]
    theta, state = torch.zeros(SHAPE, dtype=torch.float64), zero_state(rule)
    for grad in gradients(count, torch.float64, seed=1):
        theta, state = rule.step(theta, grad, state, hyper)
    return state


@pytest.mark.parametrize("name", RULES)
def test_two_hundred_steps_equal_those_of_the_real_optimizer(name):
    rule, hyper = RULES[name], HYPERS[name]
    torch.manual_seed(0)
    theta = torch.randn(SHAPE)
    parameter = torch.nn.Parameter(theta.clone())
    optimizer = OPTIMIZERS[name]([parameter])
    state = zero_state(rule, torch.float32)
    for grad in gradients(200, torch.float32):
        parameter.grad = grad.clone()
        optimizer.step()
        theta, state = rule.step(theta, grad, state, hyper)
    real = optimizer.state[parameter]
    for key, ours in {"theta": theta, **{k: state[k] for k in rule.moments}}.items():
        theirs = parameter.detach() if key == "theta" else real[key]
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max(), key


@pytest.mark.parametrize("steps", [1, 5, 60])
@pytest.mark.parametrize("name", RULES)
def test_slope_equals_autograd(name, steps):
    rule, hyper = RULES[name], HYPERS[name]
    state = state_after(name, steps)
    grad = 2.5 * torch.randn(SHAPE, dtype=torch.float64, generator=torch.manual_seed(2))
    grad.requires_grad_()
    ahead, _ = rule.step(torch.zeros_like(grad), grad, state, hyper)
    (expected,) = torch.autograd.grad(ahead.sum(), grad)
    with torch.no_grad():
        found = rule.slope(grad, state, hyper)
    # Not per entry: where a gradient meets a fresh state, two large terms cancel.
    assert (found - expected).abs().max() <= 1e-13 * expected.abs().max()


def test_slopes_were_compared_on_both_sides_of_each_bend():
    grad = 2.5 * torch.randn(SHAPE, dtype=torch.float64, generator=torch.manual_seed(2))
    state = state_after("amsgrad", 60)
    _, new = RULES["amsgrad"].step(grad, grad, state, HYPERS["amsgrad"])
    grows = new["max_exp_avg_sq"] > state["max_exp_avg_sq"]
    assert 0.1 < grows.double().mean() < 0.9
    state, hyper = state_after("adamod", 60), HYPERS["adamod"]
    ahead, new = RULES["adamod"].step(torch.zeros_like(grad), grad, state, hyper)
    bounded = torch.isclose(-ahead / new["exp_avg"], new["exp_avg_lr"], rtol=1e-12)
    assert 0.1 < bounded.double().mean() < 0.9


@pytest.mark.parametrize("name", RULES)
def test_slope_of_a_row_never_touched_is_that_of_the_first_moment(name):
    """There the root of v has no derivative; m is 0, so that it must not matter."""
    rule, hyper = RULES[name], HYPERS[name]
    state = zero_state(rule) | {"step": torch.tensor(3)}
    zero = torch.zeros(SHAPE, dtype=torch.float64)
    found = rule.slope(zero, state, hyper)
    if name == "sgd":
        expected = -hyper.lr
    elif name == "adamod":
        eta = hyper.lr * (1 - 0.999**4) ** 0.5 / (1 - 0.9**4) / 1e-8
        expected = -0.1 * min(eta, (1 - 0.999) * eta)
    else:
        expected = -hyper.lr / (1 - 0.9**4) * 0.1 / 1e-8
    torch.testing.assert_close(found, torch.full_like(zero, expected), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", RULES)
def test_a_step_leaves_its_arguments_as_they_are(name):
    rule, state = RULES[name], state_after(name, 3)
    before = {key: value.clone() for key, value in state.items()}
    theta, grad = torch.ones(SHAPE, dtype=torch.float64), next(gradients(1, torch.float64))
    kept = grad.clone()
    rule.step(theta, grad, state, HYPERS[name])
    rule.slope(grad, state, HYPERS[name])
    assert torch.equal(theta, torch.ones_like(theta))
    assert torch.equal(grad, kept)
    assert all(torch.equal(state[key], before[key]) for key in before)
