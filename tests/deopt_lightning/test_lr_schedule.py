"""A learned lr is a constant factor on every kind of schedule."""

from __future__ import annotations

import math
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
    "plateau": lambda o: schedule.ReduceLROnPlateau(o, factor=0.5, patience=0),
    "chained": lambda o: schedule.ChainedScheduler(
        [schedule.ConstantLR(o, 0.5, 2), schedule.ExponentialLR(o, 0.9)]
    ),
}


def cosine(share: float, low: float, high: float) -> float:
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2


# The lr of steps 0 to 5 from an lr of 0.1, by hand.
BY_HAND: dict[str, list[float]] = {
    "lambda": [0.1 / (1 + t) for t in range(6)],
    "multiplicative": [0.1 * 0.9**t for t in range(6)],
    "step": [0.1, 0.1, 0.05, 0.05, 0.025, 0.025],
    "multistep": [0.1, 0.03, 0.03, 0.009, 0.009, 0.009],
    "exponential": [0.1 * 0.8**t for t in range(6)],
    "cosine": [cosine(t / 5, 0.01, 0.1) for t in range(6)],
    "warm restarts": [cosine(t % 2 / 2, 0.01, 0.1) for t in range(6)],
    "one cycle": [0.02, cosine(1 / 1.4, 0.5, 0.02)]
    + [cosine((t - 1.4) / 5.6, 2e-6, 0.5) for t in range(2, 6)],
    "cyclic": [0.05, 0.125, 0.2, 0.125, 0.05, 0.125],
    "polynomial": [0.1, 0.08, 0.06, 0.04, 0.02, 0.0],
    "sequential": [0.05, 0.05, *(cosine(t / 4, 0.0, 0.1) for t in range(4))],
    "plateau": [0.1, 0.1, 0.05, 0.025, 0.0125, 0.00625],
    "chained": [0.05, 0.045, *(0.1 * 0.9**t for t in range(2, 6))],
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
        scheduler.step(*([1.0] if isinstance(scheduler, schedule.ReduceLROnPlateau) else []))
    return np.array(series)


@pytest.mark.parametrize("name", SCHEDULES)
def test_learned_lr_multiplies_the_schedule(name: str) -> None:
    plain = lr_series(SCHEDULES[name], None)
    learned = lr_series(SCHEDULES[name], [2.0, 0.25])
    np.testing.assert_allclose(plain[:, 0], BY_HAND[name], rtol=1e-9, atol=1e-15)
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
