"""Our side: an epoch of recsys_models under Lightning's Trainer, each time its turn comes.

Everything is composed from conf/ as `recsys-train` does it, except that nothing is validated, and
so no epoch is chosen and no checkpoint written.
"""

import logging
import warnings

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from turns import Turns

from recsys_models.data import RecsysDataModule
from recsys_models.models import RecommenderModule
from recsys_models.train import config_dir


class TakesTurns(L.Callback):
    """Makes every epoch wait for its turn, and reports it."""

    def __init__(self, turns: Turns, facts: dict) -> None:
        self._turns = turns
        self._facts = facts

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait, then start the clock."""
        self._turns.begin()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock and report."""
        self._turns.stop()
        self._turns.answer(**self._facts, loss=float(trainer.callback_metrics["train/loss"]))


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # of Lightning: few workers, no validation loop
    turns = Turns()
    given = turns.settings
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", ["data=ml_1m", *given["overrides"]])
    cfg.data.path, cfg.data.batch_size = given["path"], given["batch_size"]
    cfg.output_dir = given["folder"]
    L.seed_everything(cfg.seed, verbose=False)
    data = instantiate(cfg.data)
    data.setup()
    model = instantiate(cfg.model, num_users=data.num_users, num_items=data.num_items)
    trainer = instantiate(
        cfg.trainer,
        max_epochs=given["epochs"],
        limit_train_batches=given["steps"],
        limit_val_batches=0,
        callbacks=[TakesTurns(turns, describe(data, model))],
        logger=instantiate(cfg.logger),
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, datamodule=data)


def describe(data: RecsysDataModule, model: RecommenderModule) -> dict:
    versions = {"torch": torch, "numpy": np, "lightning": L}
    return {
        "positives": len(data.train),
        "steps": len(data.train_dataloader()),
        "negatives": data.num_negatives,
        "users": data.num_users,
        "items": data.num_items,
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "versions": {name: str(module.__version__) for name, module in versions.items()},
    }


if __name__ == "__main__":
    main()
