"""A learned lr is a constant factor on every kind of schedule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
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


class Linear(schedule.LRScheduler):
    """A user's own, as torch has them: from the first lrs to others."""

    def __init__(self, optimizer: Any, **lists: Any) -> None:
        vars(self).update(lists)
        self.ends = next(iter(lists))
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        share = self.last_epoch / 8
        ends = getattr(self, self.ends)
        return [a + (b - a) * share for a, b in zip(self.base_lrs, ends, strict=False)]


class Plain:
    """A user's own, as timm has them: no class of torch's, and it writes the groups itself."""

    def __init__(self, optimizer: Any, values: str = "base_values") -> None:
        self.optimizer, self.epoch, self.values = optimizer, 0, values
        setattr(self, values, [group["lr"] for group in optimizer.param_groups])

    def step(self) -> None:
        self.epoch += 1
        for group, value in zip(
            self.optimizer.param_groups, getattr(self, self.values), strict=False
        ):
            group["lr"] = value * 0.5**self.epoch


class Delayed(schedule.LRScheduler):
    """A user's own around another one."""

    def __init__(self, optimizer: Any, after: Any) -> None:
        self.after = after
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        if self.last_epoch < 2:
            return self.base_lrs
        self.after.step()
        return self.after.get_last_lr()


USERS_OWN: dict[str, Any] = {
    "a float for the only group": lambda o: Linear(o, goals=[0.01]),
    "a tuple": lambda o: Linear(o, goals=(0.01,)),
    "named lrs": lambda o: Linear(o, end_lrs=[0]),
    "timm": lambda o: Plain(o),
    "the groups' lrs": lambda o: Plain(o, "whatever"),
    "around another": lambda o: Delayed(o, schedule.LambdaLR(o, lambda e: 0.5**e)),
    "inside torch's": lambda o: schedule.SequentialLR(
        o, [Linear(o, goals=[0.01]), schedule.ExponentialLR(o, 0.5)], [3]
    ),
}


@pytest.mark.parametrize("name", USERS_OWN)
def test_learned_lr_multiplies_a_schedule_of_the_users_own(name: str) -> None:
    plain = lr_series(USERS_OWN[name], None)
    learned = lr_series(USERS_OWN[name], [2.0, 0.25])
    assert len(set(plain[:, 0])) > 2
    np.testing.assert_allclose(learned, plain * [2.0, 0.25], rtol=1e-12)


def split_with(count: int, make: Any) -> Any:
    """A scheduler whose optimizer's groups have been split into two parts each."""
    nets = nn.ModuleList(nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)]) for _ in range(count))
    groups = [
        {"params": list(net.parameters()), "lr": lr}
        for net, lr in zip(nets, (0.1, 0.2), strict=False)
    ]
    optimizer = torch.optim.SGD(groups)
    scheduler = make(optimizer)
    LayerControl([optimizer], nets, None, [scheduler])
    return scheduler


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([0.3], [0.3, 0.3]),
        ([30], [30]),  # a milestone
        ([True], [True]),
        (["cos"], ["cos"]),
        ([0.1, 0.2], [0.1, 0.1, 0.2, 0.2]),  # the lrs
        ([0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_lists_of_a_users_scheduler_follow_the_groups_where_that_is_likely(
    before: list[Any], after: list[Any], recwarn: pytest.WarningsRecorder
) -> None:
    scheduler = split_with(len(before), lambda o: Linear(o, end_lrs=[1.0, 1.0], more=before))
    assert scheduler.more == after
    assert not [warning for warning in recwarn if "DEOptCallback" in str(warning.message)]


@pytest.mark.parametrize("values", [[0.9, 0.999], [30, 60], [abs]])
def test_a_list_that_may_or_may_not_follow_the_groups_stays_with_a_warning(
    values: list[Any],
) -> None:
    with pytest.warns(UserWarning, match=r"whether 'more' of Linear has one entry"):
        scheduler = split_with(len(values), lambda o: Linear(o, end_lrs=[1.0, 1.0], more=values))
    assert scheduler.more == values


def test_lists_of_torchs_schedulers_are_not_guessed() -> None:
    sequence = split_with(
        1, lambda o: schedule.SequentialLR(o, [schedule.ConstantLR(o) for _ in range(2)], [0.5])
    )
    assert sequence._milestones == [0.5]


def test_a_schedule_that_comes_to_a_part_of_a_group_only_is_refused() -> None:
    net = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = Plain(optimizer)
    LayerControl([optimizer], net, None, [scheduler])
    scheduler.base_values.pop()
    optimizer.step()
    scheduler.step()
    with pytest.raises(MisconfigurationException, match=r"Plain has given parts .* 0.05 and 0.1"):
        optimizer.step()
