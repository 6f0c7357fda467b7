"""A learned lr is a constant factor on every kind of schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedule

from deopt_lightning.layer_control import LayerControl

SCHEDULES: dict[str, Any] = {
    "lambda": lambda o: schedule.LambdaLR(o, lambda e: 1 / (1 + e)),
    "multiplicative": lambda o: schedule.MultiplicativeLR(o, lambda e: 0.9),
    "step": lambda o: schedule.StepLR(o, 2, 0.5),
    "multistep": lambda o: schedule.MultiStepLR(o, [1, 3], 0.3),
    "exponential": lambda o: schedule.ExponentialLR(o, 0.8),
    "cosine": lambda o: schedule.CosineAnnealingLR(o, 5, eta_min=0.01),
    "warm restarts": lambda o: schedule.CosineAnnealingWarmRestarts(o, 2, eta_min=0.01),
    "one cycle": lambda o: schedule.OneCycleLR(o, 0.5, total_steps=8),
    "cyclic": lambda o: schedule.CyclicLR(o, 0.05, 0.2, step_size_up=2),
    "polynomial": lambda o: schedule.PolynomialLR(o, 5),
    "sequential": lambda o: schedule.SequentialLR(
        o, [schedule.ConstantLR(o, 0.5, 2), schedule.CosineAnnealingLR(o, 4)], [2]
    ),
    "chained": lambda o: schedule.ChainedScheduler(
        [schedule.ConstantLR(o, 0.5, 2), schedule.ExponentialLR(o, 0.9)]
    ),
}


def lr_series(make: Any, factors: list[float] | None) -> np.ndarray:
    """The lr that each of 6 steps really uses, per parameter; gradients are all one."""
    net = nn.ParameterDict({name: nn.Parameter(torch.zeros(1)) for name in "ab"}).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.0)
    scheduler = make(optimizer)
    if factors is not None:
        control = LayerControl([optimizer], net, ["a", "b"], [scheduler])
        own_lr = control.own_values[:2]
        control.write(np.concatenate([own_lr * factors, [0.0, 0.0]]))
    series = []
    for _ in range(6):
        before = [p.item() for p in net.parameters()]
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        for group in optimizer.param_groups:
            group["momentum"] = 0.0  # cyclic schedules move it
        optimizer.step()
        series.append([b - p.item() for b, p in zip(before, net.parameters(), strict=True)])
        scheduler.step()
    return np.array(series)


@pytest.mark.parametrize("name", SCHEDULES)
def test_learned_lr_multiplies_the_schedule(name: str) -> None:
    plain = lr_series(SCHEDULES[name], None)
    learned = lr_series(SCHEDULES[name], [2.0, 0.25])
    assert len(set(plain[:, 0].round(9))) > 1
    np.testing.assert_allclose(learned, plain * [2.0, 0.25], rtol=1e-12)


def test_closing_ends_the_effect() -> None:
    net = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    control = LayerControl([optimizer], net, None, [schedule.StepLR(optimizer, 1)])
    control.write(np.array([0.5, 0.0]))
    control.close()
    before = net.bias.item()
    net.bias.grad = torch.ones(1)
    optimizer.step()
    assert before - net.bias.item() == pytest.approx(0.1)
