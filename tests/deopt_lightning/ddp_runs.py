"""Trains on two processes in several ways and writes down what each process got.

python -m tests.deopt_lightning.ddp_runs FOLDER [STRATEGY KIND ...]
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from deopt_lightning import DEOptCallback
from tests.tiny import SilentDryRun, TinyModel, fit, tiny_data

KINDS = ("plain", "dry", "search", "population", "diverging", "collapsing", "uneven")
KINDS += ("broken", "resumed")  # the second resumes the first
KILLED = ("killed", "after_kill")  # the second resumes the first, and should end like "population"


class Diverges(TinyModel):
    """On the second process only: NaN losses at a high lr, and a failure where scores explode."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        high = self.trainer.optimizers[0].param_groups[-1]["lr"] > 0.05
        return loss * float("nan") if high and self.global_rank == 1 else loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self.global_rank == 1 and self.trainer.optimizers[0].param_groups[0]["lr"] > 0.05:
            raise FloatingPointError("scores out of range")
        super().validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        pass


class Collapses(TinyModel):
    """On the second process only, every member's loss is NaN in the second epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        ruined = self.trainer.current_epoch == 1 and self.global_rank == 1
        return loss * float("nan") if ruined else loss


class Killed(TinyModel):
    """The second process is gone in the middle of the second generation."""

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        probing = type(self.trainer.fit_loop.epoch_loop).__name__ == "ProbeEpochLoop"
        if probing and self.trainer.current_epoch == 1 and self.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


MODELS = {"diverging": Diverges, "collapsing": Collapses, "killed": Killed}


class Report(L.Callback):
    """Writes a file from each process, since spawned ones take all else with them."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        searches = [c for c in trainer.callbacks if isinstance(c, DEOptCallback)]
        history = searches[0].history if searches else []
        result = {
            "weights": pl_module.state_dict(),
            "perf": [r.get("perf") or r["target_perf"] + r["trial_perf"] for r in history],
            "schedule": searches[0].schedule if searches else [],
        }
        torch.save(result, self.folder / f"{self.kind}-{trainer.global_rank}.pt")


def callbacks_of(kind: str, folder: Path) -> list[L.Callback]:
    probes = {"population_size": 4, "probe_steps": 3}
    places = {"broken": "checkpoints", "killed": "before_kill"}
    place = folder / places.get(kind, "none")
    checkpoint = ModelCheckpoint(place, save_top_k=-1, filename="{epoch}")
    members = DEOptCallback("val_loss", population_size=4, carry="population")
    return {
        "plain": [],
        "dry": [SilentDryRun()],
        "population": [members],
        "collapsing": [members],
        "killed": [members, checkpoint],
        "after_kill": [members],
        "broken": [DEOptCallback("val_loss", **probes), checkpoint],
    }.get(kind, [DEOptCallback("val_loss", **probes)])


def uneven_loaders() -> dict[str, Any]:
    """The processes' last batches and their numbers of validation batches differ."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    return {
        "train": DataLoader(tiny_data(42 + rank), batch_size=8, shuffle=True),
        "val": DataLoader(tiny_data(16 + 16 * rank, seed=4), batch_size=8),
        "use_distributed_sampler": False,
    }


def train(kind: str, folder: Path, strategy: str) -> None:
    options: dict[str, Any] = uneven_loaders() if kind == "uneven" else {}
    written_by = {"resumed": "checkpoints", "after_kill": "before_kill"}
    if kind in written_by:
        options["ckpt_path"] = str(folder / written_by[kind] / "epoch=0.ckpt")
    fit(
        folder / kind,
        [*callbacks_of(kind, folder), Report(folder, kind)],
        model=MODELS.get(kind, TinyModel),
        max_epochs=2,
        devices=2,
        strategy=strategy,
        **options,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, way, *kinds = [*sys.argv[1:], "ddp"][:2] + sys.argv[3:]
    for chosen in kinds or KINDS:
        train(chosen, Path(target), way)
