"""RecBole's side: an epoch of its Trainer, each time its turn comes.

Runs in the environment that throughput.py makes for it. RecBole itself is not changed; its own
Trainer trains, and only its epoch waits for the turn.
"""

from itertools import islice

import numpy as np
import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed
from turns import Turns


class TrainerThatTakesTurns(Trainer):
    """Makes every epoch wait for its turn, and reports it."""

    def __init__(self, config: Config, model: torch.nn.Module, turns: Turns, facts: dict) -> None:
        super().__init__(config, model)
        self._turns = turns
        self._facts = facts

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        steps = self._turns.settings["steps"]
        self._turns.begin()
        loss = super()._train_epoch(islice(train_data, steps), epoch_idx, loss_func, show_progress)
        self._turns.stop()
        self._turns.answer(**self._facts, loss=loss / (steps or self._facts["steps"]))
        return loss


def main() -> None:
    turns = Turns()
    given = turns.settings
    config = Config(given["model"], given["dataset"], config_dict=given["config"])
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train_data, _, _ = data_preparation(config, dataset)
    model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
    versions = {"torch": torch, "numpy": np, "recbole": recbole}
    facts = {
        "positives": train_data.sample_size,
        "steps": len(train_data),
        "negatives": config["train_neg_sample_args"]["sample_num"],
        "users": dataset.user_num - 1,  # id 0 is padding
        "items": dataset.item_num - 1,
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "versions": {name: str(module.__version__) for name, module in versions.items()},
    }
    trainer = TrainerThatTakesTurns(config, model, turns, facts)
    trainer.fit(train_data, valid_data=None, saved=False, verbose=False)


if __name__ == "__main__":
    main()
