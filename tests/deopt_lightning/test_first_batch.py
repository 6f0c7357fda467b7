"""Members train an epoch as the run's hooks have prepared it."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from deopt_lightning import DEOptCallback
from tests.deopt_lightning.test_members import Plain, pinned
from tests.tiny import fit, same_state


class Anneals(Plain):
    """Its loss's weight falls from epoch to epoch, in training and in validation."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.begin_with(0.0)

    def begin_with(self, beta: float) -> None:
        self.beta: Any = beta

    def on_train_epoch_start(self) -> None:
        self.beta = 1 - self.current_epoch / 4

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (
            super().training_step(batch, batch_idx) + self.beta * self.first.weight.square().sum()
        )

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.val_error.update(self(batch[0]), batch[1])
        self.log("val_loss", self.beta + self.first.weight.square().sum())


class AnnealsBuffer(Anneals):
    """Keeps that weight in a buffer, and changes it at the end of an epoch."""

    def begin_with(self, beta: float) -> None:
        self.register_buffer("beta", torch.tensor(1.0))

    def on_train_epoch_start(self) -> None:
        pass

    def on_train_epoch_end(self) -> None:
        self.beta.mul_(0.5)


class FreezesStatistics(Plain):
    """A part is in eval mode whatever the rest is in."""

    def on_train_epoch_start(self) -> None:
        self.norm.train(self.current_epoch == 0)


class Collects(Plain):
    """A list that the end of an epoch reads and clears."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.outputs: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert len(self.outputs) == batch_idx
        loss = super().training_step(batch, batch_idx)
        self.outputs.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.outputs.clear()


class Remembers(Plain):
    """A state that steps hand on, and that an epoch begins without."""

    state: Tensor | None = None

    def on_train_epoch_start(self) -> None:
        self.state = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert (self.state is None) == (batch_idx == 0)
        loss = super().training_step(batch, batch_idx)
        self.state = loss.detach() + (0.0 if self.state is None else 0.5 * self.state)
        return loss * self.state


class Teaches(Plain):
    """A frozen part follows the weights once per epoch, and the optimizer holds it, too."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.teacher = torch.nn.Linear(6, 8).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        taught = self.first(batch[0]) - self.teacher(batch[0])
        return super().training_step(batch, batch_idx) + taught.square().mean()

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        for slow, fast in zip(self.teacher.parameters(), self.first.parameters(), strict=True):
            slow.lerp_(fast.detach(), 0.5)


class Running:
    """An average of losses in an object of its own."""

    def __init__(self) -> None:
        self.value, self.history = 1.0, [0.0]

    def update(self, loss: float) -> float:
        self.value = 0.9 * self.value + 0.1 * loss
        self.history.append(self.value)
        return self.value


class Scales(Plain):
    """Divides its loss by that average."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.running = Running()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss / self.running.update(float(loss.detach()))


class CountsAnew(Plain):
    """Puts another tensor in the place of a buffer as an epoch begins."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("count", torch.tensor(5.0))

    def on_train_epoch_start(self) -> None:
        self.count = torch.tensor(0.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.count += 1
        return super().training_step(batch, batch_idx) * (1 + 1 / self.count)


class WarmsMomentumUp(Plain):
    """Writes an option of the optimizer by hand."""

    def __init__(self, *args: Any) -> None:
        super().__init__(partial(torch.optim.SGD, lr=0.01))

    def on_train_epoch_start(self) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            group["momentum"] = 0.3 * self.current_epoch


class Outside(L.Callback):
    """Sets the weight of `Anneals` from outside."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.beta = 1 - 0.1 * trainer.current_epoch


class TakesWeight(Anneals):
    def on_train_epoch_start(self) -> None:
        pass


@pytest.mark.parametrize(
    ("model", "callbacks"),
    [
        (Anneals, []),
        (AnnealsBuffer, []),
        (FreezesStatistics, []),
        (Collects, []),
        (Remembers, []),
        (Teaches, []),
        (CountsAnew, []),
        (Scales, []),
        (WarmsMomentumUp, []),
        (TakesWeight, [Outside()]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_members_with_equal_values_are_as_the_trainers_model(
    model: Any, callbacks: list[L.Callback], tmp_path: Path
) -> None:
    options = {"model": model, "max_epochs": 4, "num_sanity_val_steps": 0}
    plain, _ = fit(tmp_path / "plain", callbacks, **options)
    callback = pinned()
    found, _ = fit(tmp_path / "search", [callback, *callbacks], **options)
    assert [len(set(row["perf"])) for row in callback.history] == [1, 1, 1, 1]
    assert same_state(plain.state_dict(), found.state_dict())


def test_what_a_hook_writes_survives_another_leader(tmp_path: Path) -> None:
    callback = pinned()
    callback.lr_bounds = (1e-3, 0.1)
    model, _ = fit(tmp_path, [callback], model=AnnealsBuffer, max_epochs=5)
    assert any(row["leader"] != 0 for row in callback.history)
    assert float(model.beta) == 0.5**5


class Centres(Plain):
    """Keeps a mean of what its weights make of the data, in a buffer."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("mean", torch.zeros(8))

    def update(self, mean: Tensor) -> None:
        self.mean.copy_(mean)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        mean = torch.zeros(8) if self.mean is None else self.mean
        self.update(0.9 * mean + 0.1 * self.first(batch[0]).detach().mean(0))
        return (
            super().training_step(batch, batch_idx)
            + (self.first.weight.mean(1) - self.mean).square().sum()
        )


class CentresAnew(Centres):
    """The same with another tensor after each step."""

    def update(self, mean: Tensor) -> None:
        self.mean = mean


class CentresLate(CentresAnew):
    """The same with none before the first step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.mean = None


@pytest.mark.parametrize("model", [CentresAnew, CentresLate])
def test_members_keep_buffers_that_steps_replace(model: Any, tmp_path: Path) -> None:
    histories = []
    for build in (Centres, model):
        callback = DEOptCallback("val_loss", lr_bounds=(1e-3, 0.1))
        found, _ = fit(tmp_path / build.__name__, [callback], model=build, max_epochs=4)
        histories.append(([row["perf"] for row in callback.history], found.mean.tolist()))
    assert histories[0] == histories[1]


class Clips(Plain):
    """Keeps trained weights small, once per epoch or before each step."""

    steps = False

    def clip(self) -> None:
        self.first.weight.data.clamp_(-0.1, 0.1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.steps:
            self.clip()

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        if not self.steps:
            self.clip()


class ClipsSteps(Clips):
    steps = True


@pytest.mark.parametrize("model", [Clips, ClipsSteps])
def test_trained_weights_that_hooks_change_for_the_trainers_model_alone_are_named(
    model: type[Clips], tmp_path: Path
) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(tmp_path, [pinned()], model=model, max_epochs=3)
    texts = [str(w.message) for w in said if "changed between two epochs" in str(w.message)]
    assert len(texts) == (not model.steps)
    assert all("first.weight" in text and "on_train_batch_start" in text for text in texts)
