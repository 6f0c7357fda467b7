"""Update rules: what torch.optim computes, with all numbers as tensors."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from deopt_lightning.update_rules import rule_of

OPTIMIZERS = {
    "sgd": partial(SGD, lr=0.1),
    "sgd_decay": partial(SGD, lr=0.1, weight_decay=0.1),
    "momentum": partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "dampening": partial(SGD, lr=0.1, momentum=0.9, dampening=0.3),
    "nesterov": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(Adam, lr=0.01),
    "adam_decay": partial(Adam, lr=0.01, weight_decay=0.1, betas=(0.8, 0.95)),
    "amsgrad": partial(Adam, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adamw": partial(AdamW, lr=0.01, weight_decay=0.1),
    "adamw_amsgrad": partial(AdamW, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adam_fused": partial(Adam, lr=0.01, fused=True, eps=1e-3),
}


def after_a_step(make: Any, generator: torch.Generator) -> Any:
    """A parameter and its optimizer, which has taken a first step."""
    parameter = torch.nn.Parameter(torch.randn(5, 3, generator=generator))
    optimizer = make([parameter])
    parameter.grad = torch.randn(5, 3, generator=generator)
    optimizer.step()
    return parameter, optimizer


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_rules_equal_torch_optim(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter, optimizer = after_a_step(OPTIMIZERS[kind], generator)
    (group,) = optimizer.param_groups
    rule = rule_of(optimizer, group)
    assert rule is not None
    own = parameter.detach().clone()
    state = [optimizer.state[parameter][name].clone() for name in rule.state_names]
    for step in range(2, 12):
        parameter.grad = torch.randn(5, 3, generator=generator)
        optimizer.step()
        numbers = torch.tensor(rule.numbers(group, group["lr"], step))
        rule.update(own, parameter.grad, state, numbers.unbind(), group.get("eps", 0.0))
    torch.testing.assert_close(own, parameter.detach(), rtol=1e-5, atol=1e-6)
    for name, tensor in zip(rule.state_names, state, strict=True):
        torch.testing.assert_close(tensor, optimizer.state[parameter][name], rtol=1e-5, atol=1e-6)


def test_stacked_members_with_numbers_of_their_own_step_as_each_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    parameter, optimizer = after_a_step(OPTIMIZERS["amsgrad"], generator)
    (group,) = optimizer.param_groups
    rule = rule_of(optimizer, group)
    assert rule is not None
    rows = torch.tensor([rule.numbers(group, lr, step) for lr, step in ((0.1, 2), (0.01, 7))])
    grads = torch.randn(2, 5, 3, generator=generator)
    state = [optimizer.state[parameter][name] for name in rule.state_names]
    stacked = parameter.detach().expand(2, 5, 3).clone()
    stacked_state = [tensor.expand(2, 5, 3).clone() for tensor in state]
    rule.update(stacked, grads, stacked_state, rows.T[..., None, None].unbind(), group["eps"])
    for member in range(2):
        alone, alone_state = parameter.detach().clone(), [tensor.clone() for tensor in state]
        rule.update(alone, grads[member], alone_state, rows[member].unbind(), group["eps"])
        torch.testing.assert_close(stacked[member], alone)
        torch.testing.assert_close([t[member] for t in stacked_state], alone_state)


class Own(Adam):
    """An optimizer that may do anything."""


@pytest.mark.parametrize(
    "make",
    [
        partial(Adam, maximize=True),
        partial(SGD, lr=0.1, differentiable=True),
        Own,
        torch.optim.RMSprop,
    ],
)
def test_other_optimizers_have_no_rule(make: Any) -> None:
    optimizer = make([torch.nn.Parameter(torch.zeros(2))])
    assert rule_of(optimizer, optimizer.param_groups[0]) is None
