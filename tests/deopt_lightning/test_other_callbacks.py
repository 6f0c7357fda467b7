"""Callbacks of the user's own that change what the Trainer's model alone trains with."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from deopt_lightning import DEOptCallback
from tests.deopt_lightning.test_members import Plain, pinned
from tests.tiny import TinyModel, fit, same_state


class WithTarget(TinyModel):
    """Has a slow copy of its first layer, as self-supervised models have."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.target = deepcopy(self.first).requires_grad_(False)


class Averages(L.Callback):
    """Validates an average of the weights, which it swaps in and out."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.shadow = deepcopy(pl_module.state_dict())

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.own = deepcopy(pl_module.state_dict())
        if not trainer.sanity_checking:
            for key, value in self.own.items():
                self.shadow[key] = torch.lerp(self.shadow[key].float(), value.float(), 0.1)
        pl_module.load_state_dict(self.shadow)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.load_state_dict(self.own)


class AveragesLate(Averages):
    on_validation_epoch_start = Averages.on_validation_start

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        pass


class MixesBatches(L.Callback):
    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        batch[0].copy_(0.7 * batch[0] + 0.3 * batch[0].flip(0))


class ScalesGradients(L.Callback):
    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        for parameter in module.first.parameters():
            parameter.grad.mul_(0.5)


class MovesTarget(L.Callback):
    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        for slow, fast in zip(module.target.parameters(), module.first.parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.1)


CHANGES = [
    (Averages, "Averages.on_validation_start changes the weights"),
    (AveragesLate, "AveragesLate.on_validation_epoch_start changes the weights"),
    (MixesBatches, "MixesBatches.on_train_batch_start changes the batch"),
    (ScalesGradients, "ScalesGradients.on_before_optimizer_step changes the gradients"),
    (MovesTarget, "MovesTarget.on_train_batch_end changes the weights"),
]


@pytest.mark.parametrize(("other", "message"), CHANGES)
def test_members_are_not_trained_beside_it(other: Any, message: str, tmp_path: Path) -> None:
    for callbacks in ([other(), DEOptCallback("val_loss")], [DEOptCallback("val_loss"), other()]):
        with pytest.raises(MisconfigurationException, match=message):
            fit(tmp_path, callbacks, model=WithTarget)


@pytest.mark.parametrize("other", [other for other, _ in CHANGES])
def test_probes_all_go_without_it(other: Any, tmp_path: Path) -> None:
    callback = DEOptCallback("val_loss", population_size=4, probe_steps=2)
    fit(tmp_path, [other(), callback], model=WithTarget)
    assert len(callback.history) == 3


class TrainsProbe(L.Callback):
    """Trains a layer of its own on the module's features, within the module, and looks around."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.probe = nn.Linear(8, 1)
        self.optimizer = torch.optim.SGD(pl_module.probe.parameters(), 0.01)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch[0].mean())

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.seen.append([p.grad.norm() for p in module.first.parameters()])

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, *_: Any) -> None:
        loss = (module.probe(module.first(batch[0]).detach()) - batch[1]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def hooks(callback: L.Callback) -> dict[str, Any]:
    return {name: value for name, value in vars(callback).items() if name.startswith("on_")}


def test_what_looks_on_is_left_alone(tmp_path: Path) -> None:
    counted: list[int] = []
    fits = {}
    for name, search in {"plain": [], "search": [pinned()]}.items():
        others = [
            TrainsProbe(),
            LambdaCallback(on_train_batch_end=lambda *_: counted.append(1)),
        ]
        before = [hooks(other) for other in others]
        fits[name], _ = fit(tmp_path / name, [*others, *search], model=Plain)
        assert [hooks(other) for other in others] == before
    assert same_state(
        *({k: v for k, v in m.state_dict().items() if "probe" not in k} for m in fits.values())
    )
    assert len(counted) == 2 * 3 * 12
