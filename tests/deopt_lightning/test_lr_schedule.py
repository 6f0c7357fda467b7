"""A learned lr is a constant factor on every kind of schedule."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import lr_scheduler as schedule

from deopt_lightning import DEOptCallback
from deopt_lightning.layer_control import LayerControl
from tests.tiny import TinyModel, fit, same_state

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


class ByHand(TinyModel):
    """Writes lrs that fall with the steps, in one of the places where programs do so."""

    place = "on_train_batch_start"

    def __init__(self) -> None:
        super().__init__(partial(torch.optim.SGD, lr=0.02))

    def lr(self) -> float:
        return 0.02 * 0.98**self.trainer.global_step

    def write(self, place: str) -> None:
        if place == self.place:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = self.lr()

    def on_train_epoch_start(self) -> None:
        self.write("on_train_epoch_start")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.write("on_train_batch_start")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.write("training_step")
        return super().training_step(batch, batch_idx)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
        self.write("optimizer_step")
        super().optimizer_step(epoch, batch_idx, optimizer, closure)


class Multiplies(ByHand):
    place = "nowhere"

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] *= 0.98


class Keeps(ByHand):
    """Steps a scheduler itself, of which Lightning knows nothing."""

    place = "nowhere"

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        self.kept = schedule.LambdaLR(optimizer, lambda step: 0.98**step)
        return optimizer

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.kept.step()


class Configures(ByHand):
    """The same as Lightning would have it."""

    place, interval = "nowhere", "step"

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        share = 1 if self.interval == "step" else 12
        made = schedule.LambdaLR(optimizer, lambda step: 0.98 ** (share * step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": made, "interval": self.interval},
        }


class ConfiguresEpochs(Configures):
    interval = "epoch"


class InSteps(ByHand):
    place = "training_step"


class InOptimizerSteps(ByHand):
    place = "optimizer_step"


class InEpochs(ByHand):
    place = "on_train_epoch_start"


@pytest.mark.parametrize(
    ("model", "same"),
    [
        (ByHand, Configures),
        (InSteps, Configures),
        (InOptimizerSteps, Configures),
        (InEpochs, ConfiguresEpochs),
        (Multiplies, Configures),
        (Keeps, Configures),
    ],
)
def test_lrs_that_a_program_writes_are_a_schedule(model: Any, same: Any, tmp_path: Path) -> None:
    runs = []
    for number, build in enumerate((model, same)):
        callback = DEOptCallback("val_loss", lr_bounds=(2e-4, 0.2))
        found, _ = fit(tmp_path / str(number), [callback], model=build, max_epochs=4)
        runs.append((found.state_dict().values(), [row["perf"] for row in callback.history]))
    (weights, perf), (expected, expected_perf) = runs
    assert all(len(set(row)) > 2 for row in perf)
    for row, expected_row in zip(perf, expected_perf, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-3)
    for left, right in zip(weights, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


class Drops(ByHand):
    """Takes a part of what it finds, and may so come back to about the lr that it began with."""

    place = "nowhere"

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 2:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] *= 0.2


class ConfiguresDrops(ByHand):
    place = "nowhere"

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [schedule.MultiStepLR(optimizer, [2], 0.2)]


def test_a_multiple_of_learned_lrs_is_no_lr_of_its_own(tmp_path: Path) -> None:
    runs = []
    for build in (Drops, ConfiguresDrops):
        callback = DEOptCallback("val_loss", seed=1)
        found, _ = fit(tmp_path / build.__name__, [callback], model=build, max_epochs=4)
        runs.append(callback)
    found, expected = (
        np.array([p for row in run.history for p in row["perf"]], dtype=float) for run in runs
    )
    learned = np.array(list(runs[0].schedule[2]["lr"].values()))
    assert len(set(learned)) > 1
    assert abs(np.log(0.2 * learned.max() / 0.02)) < abs(np.log(0.2))  # near to the first lr
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("model", [ByHand, InEpochs, Multiplies])
def test_a_run_whose_program_writes_lrs_resumes_exactly(model: Any, tmp_path: Path) -> None:
    whole = DEOptCallback("val_loss")
    found, _ = fit(tmp_path / "whole", [whole], model=model, max_epochs=4)
    _, trainer = fit(tmp_path / "part", [DEOptCallback("val_loss")], model=model, max_epochs=2)
    path = tmp_path / "two.ckpt"
    trainer.save_checkpoint(path)
    rest = DEOptCallback("val_loss")
    again, _ = fit(tmp_path / "rest", [rest], model=model, max_epochs=4, ckpt_path=str(path))
    assert same_state(found.state_dict(), again.state_dict())
    assert [row["perf"] for row in rest.history] == [row["perf"] for row in whole.history]


def test_a_program_that_writes_the_lr_of_the_first_group_alone_is_refused(tmp_path: Path) -> None:
    class First(ByHand):
        def write(self, place: str) -> None:
            if place == self.place:
                self.trainer.optimizers[0].param_groups[0]["lr"] = self.lr()

    with pytest.raises(MisconfigurationException, match=r"go over all of optimizer.param_groups"):
        fit(tmp_path, [DEOptCallback("val_loss")], model=First)
