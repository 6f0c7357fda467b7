"""However a fit ends, nothing of the package stays on the user's own objects."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from deopt_lightning import DEOptCallback
from tests.tiny import ManualModel, TinyModel, fit, train_loader, val_loader


class Looks(L.Callback):
    """Does nothing in each of the hooks that the package looks at."""

    def on_train_batch_start(self, *_: Any) -> None: ...
    def on_train_batch_end(self, *_: Any) -> None: ...
    def on_after_backward(self, *_: Any) -> None: ...
    def on_before_optimizer_step(self, *_: Any) -> None: ...
    def on_validation_start(self, *_: Any) -> None: ...
    def on_validation_epoch_start(self, *_: Any) -> None: ...


class FailsAtBatch(Looks):
    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int) -> None:
        if i == 1:
            raise RuntimeError("out of luck")


class FailsAtEnd(Looks):
    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        raise RuntimeError("out of luck")


class ChangesWeights(Looks):
    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        with torch.no_grad():
            module.last.bias.add_(1)


class FailsInGeneration(ManualModel):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        if type(self.trainer.fit_loop.epoch_loop).__name__ == "ProbeEpochLoop":
            raise RuntimeError("out of luck")
        super().training_step(batch, batch_idx)


class NoDecay(ManualModel):
    """The second of its optimizers cannot be controlled."""

    def configure_optimizers(self) -> Any:
        (body, _), (schedule, _) = super().configure_optimizers()
        head = torch.optim.Rprop(self.last.parameters(), lr=0.1)
        return [body, head], [schedule, torch.optim.lr_scheduler.LinearLR(head, 0.5)]


class Scheduled(TinyModel):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)]


NORMAL, RAISES, REFUSED = None, RuntimeError, MisconfigurationException


class Keeps(L.Callback):
    """Lets a test see what a fit that fails has made."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.seen = [trainer, trainer.fit_loop, trainer.fit_loop.epoch_loop, *pl_module.modules()]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self.seen += [*trainer.optimizers, *schedulers]


def of_ours(owner: Any) -> list[Any]:
    """What is of the package among an object's attributes and in their containers, but itself."""
    found: list[Any] = []
    for name, value in vars(owner).items():
        parts = value.values() if isinstance(value, dict) else value
        for part in parts if isinstance(value, dict | list | tuple) else [value]:
            modules = type(part).__module__, getattr(part, "__module__", None)
            is_ours = any(str(module).startswith("deopt_lightning") for module in modules)
            if is_ours and not isinstance(part, DEOptCallback):
                found.append((name, part))
    return found


def names_after(folder: Path, search: list[Any], error: Any, **arguments: Any) -> Any:
    """Trains; names of the attributes that the user's and Lightning's objects then have."""
    other, keeps = arguments.pop("other")(), Keeps()
    loaders = [train_loader(), val_loader()]
    arguments |= {"train": loaders[0], "val": loaders[1]}
    with pytest.raises(error) if error else nullcontext():
        fit(folder, [keeps, *search, other], **arguments)
    owners = [*keeps.seen, other, keeps, *loaders, *(loader.dataset for loader in loaders)]
    assert [of_ours(owner) for owner in owners] == [[] for _ in owners]
    return [(type(owner).__name__, *sorted(vars(owner))) for owner in owners]


@pytest.mark.parametrize("carry", ["population", "weights"])
@pytest.mark.parametrize(
    ("model", "other", "options", "error"),
    [
        (Scheduled, Looks, {"max_epochs": 2}, NORMAL),
        (ManualModel, Looks, {"max_epochs": 2}, NORMAL),
        (Scheduled, Looks, {"limit_train_batches": 2, "max_epochs": 1}, NORMAL),
        (Scheduled, FailsAtBatch, {}, RAISES),
        (Scheduled, FailsAtEnd, {}, RAISES),
        (FailsInGeneration, Looks, {}, RAISES),
        (Scheduled, ChangesWeights, {}, REFUSED),
        (NoDecay, Looks, {}, REFUSED),
    ],
)
def test_a_fit_leaves_nothing_behind(
    model: Any, other: Any, options: dict[str, Any], error: Any, carry: str, tmp_path: Path
) -> None:
    arguments = {"model": model, "other": other, **options}
    if other is ChangesWeights and carry == "weights":
        error = NORMAL  # probes all go without it
    probes = {"probe_steps": 6} if carry == "weights" else {}
    search = [DEOptCallback("val_loss", population_size=4, carry=carry, **probes)]
    found = names_after(tmp_path / "search", search, error, **arguments)
    plain = RAISES if other in (FailsAtBatch, FailsAtEnd) else NORMAL
    without = names_after(tmp_path / "plain", [], plain, **arguments)
    for names, known in zip(found, without, strict=True):
        assert set(names) <= set(known)
