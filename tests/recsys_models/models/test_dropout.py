"""Dropout by cheap random numbers."""

import math

import pytest
import torch
from torch.nn import functional

from recsys_models.models.dropout import dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 1e-3])
def test_each_entry_is_dropped_with_the_rate_alone(rate):
    torch.manual_seed(0)
    draws = torch.stack([dropout(torch.ones(7, 11), rate) for _ in range(2000)])
    assert torch.allclose(draws[draws > 0], torch.tensor(1 / (1 - rate)), rtol=1e-4)
    dropped = (draws == 0).double()
    error = math.sqrt(rate * (1 - rate) / len(draws))  # of a share
    assert (dropped.mean(dim=0) - rate).abs().max() < 5 * error
    neighbours = (dropped.flatten(1)[:, 1:] * dropped.flatten(1)[:, :-1]).mean()
    assert neighbours == pytest.approx(rate**2, abs=5 * rate / math.sqrt(dropped.numel()))


def test_the_gradient_is_that_of_the_entries_left():
    x = torch.randn(50, 3, requires_grad=True)
    y = dropout(x, 0.3)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x, y)
    assert torch.equal(gradient == 0, y == 0)


def test_draws_follow_torchs_seed_and_go_on():
    x = torch.ones(40)
    torch.manual_seed(1)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)


def test_nothing_is_drawn_where_nothing_is_dropped():
    x = torch.randn(5)
    before = torch.get_rng_state()
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x
    assert dropout(torch.ones(0, 3), 0.5).shape == (0, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rate_next_to_one_leaves_finite_numbers():
    assert dropout(torch.ones(1000), 1 - 1e-9).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_are_torchs(dtype):
    x = torch.ones(30, dtype=dtype)
    torch.manual_seed(0)
    found = dropout(x, 0.5)
    torch.manual_seed(0)
    assert torch.equal(found, functional.dropout(x, 0.5))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_stacked_entries_are_dropped_alike_or_each_by_itself(randomness):
    draw = torch.vmap(lambda x: dropout(x, 0.5), randomness=randomness)
    torch.manual_seed(0)
    found = draw(torch.ones(2, 10, 10).mT)
    torch.manual_seed(0)
    alone = dropout(torch.ones(10, 10), 0.5)
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(found[0], found[1]) == (randomness == "same")
    assert torch.equal(found[0], alone)


def test_the_type_is_that_of_the_entries_whatever_the_default_is():
    torch.manual_seed(0)
    expected = dropout(torch.ones(40), 0.3)
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        found = dropout(torch.ones(40, dtype=torch.float32), 0.3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
