"""Where training ends from a good own lr and from bad ones, without the callback and with it.

Run from the root of the checkout, with scikit-learn installed::

    OMP_NUM_THREADS=1 python benchmarks/own_lr.py [number of processes] [resnet or transformer]

The classifier of examples/classifier: 500 images of handwritten digits to train on, a small
convolutional network. SGD with momentum 0.9 and weight decay 1e-4, and AdamW with 1e-2; a constant
lr (at most 100 epochs, early stopping after 10), one cosine and OneCycle, both over 30 epochs;
seven own lrs half a decade apart; three seeds of split, weights and batches. The callback has its
defaults. The log-likelihood of 400 validation images chooses the checkpoint that is tested on the
other 897. Also counted: how often the weights at the end of the last epoch are ruined, which is to
say worse than guessing on validation. Writes benchmarks/results/own_lr.json.

With a network of many layers instead (networks.py; every module with weights is a layer of its
own), AdamW with a constant lr, three own lrs a decade apart and at most 60 epochs. Writes
benchmarks/results/own_lr_<network>.json.
"""

import json
import logging
import math
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from itertools import product
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from networks import NETWORKS
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from deopt_lightning import DEOptCallback

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples" / "classifier"))

from digits import ConvNet, Digits  # noqa: E402

MONITOR = "val/log_likelihood"
EPOCHS, MOST_EPOCHS, MOST_EPOCHS_OF_MANY_LAYERS, PATIENCE = 30, 100, 60, 10
SEEDS = (0, 1, 2)
CALLBACK = (False, True)
OWN_LRS = {
    "sgd": (1.7e-3, 5e-3, 1.7e-2, 5e-2, 0.15, 0.5, 1.5),
    "adamw": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1),
}
OWN_LRS_OF_MANY_LAYERS = {"adamw": (1e-4, 1e-3, 1e-2)}
SCHEDULES = ("constant", "cosine", "onecycle")
GUESSING = -math.log(10)  # the log-likelihood of ten equally likely digits


class Scheduled(ConvNet):
    """The example's module with one of the optimizers and schedules."""

    def __init__(self, network: str, optimizer: str, schedule: str, lr: float, steps: int) -> None:
        super().__init__(optimizer=None)
        if network in NETWORKS:
            self.net = NETWORKS[network]()
        self.optimizer_name, self.schedule, self.lr, self.steps = optimizer, schedule, lr, steps

    def configure_optimizers(self):  # noqa: D102
        if self.optimizer_name == "sgd":
            momentum, weight_decay = 0.9, 1e-4
            optimizer = torch.optim.SGD(self.parameters(), self.lr, momentum, 0, weight_decay)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=1e-2)
        if self.schedule == "constant":
            return optimizer
        if self.schedule == "cosine":
            scheduler, interval = CosineAnnealingLR(optimizer, EPOCHS), "epoch"
        else:
            scheduler = OneCycleLR(optimizer, self.lr, total_steps=self.steps)
            interval = "step"
        return [optimizer], [{"scheduler": scheduler, "interval": interval}]


def run(network: str, optimizer: str, schedule: str, lr: float, seed: int, callback: bool) -> dict:
    """One training run and its test."""
    be_quiet()
    most = MOST_EPOCHS_OF_MANY_LAYERS if network in NETWORKS else MOST_EPOCHS
    L.seed_everything(seed, verbose=False)
    data = Digits(seed)
    model = Scheduled(network, optimizer, schedule, lr, EPOCHS * len(data.train_dataloader()))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ModelCheckpoint(folder, monitor=MONITOR, mode="max")
        callbacks = [checkpoint]
        if schedule == "constant":
            callbacks.append(EarlyStopping(MONITOR, mode="max", patience=PATIENCE))
        if callback:
            callbacks.append(DEOptCallback(MONITOR, mode="max", seed=seed))
        trainer = L.Trainer(
            max_epochs=most if schedule == "constant" else EPOCHS,
            accelerator="cpu",
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        started = time.process_time()
        trainer.fit(model, data)
        seconds = time.process_time() - started
        last = trainer.callback_metrics[MONITOR].item()
        (tested,) = trainer.test(model, data, checkpoint.best_model_path, verbose=False)
    return {
        "optimizer": optimizer,
        "schedule": schedule,
        "own_lr": lr,
        "seed": seed,
        "callback": callback,
        "validation_log_likelihood": checkpoint.best_model_score.item(),
        "last_validation_log_likelihood": last,
        "test_log_likelihood": tested["test/log_likelihood"],
        "test_accuracy": tested["test/accuracy"],
        "epochs": trainer.current_epoch,
        "processor_seconds": seconds,
    }


def be_quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)


def main() -> None:
    networks = [argument for argument in sys.argv[1:] if argument in NETWORKS]
    processes = [int(argument) for argument in sys.argv[1:] if argument not in NETWORKS]
    network, name = (networks[0], f"own_lr_{networks[0]}") if networks else ("", "own_lr")
    own_lrs = OWN_LRS_OF_MANY_LAYERS if network else OWN_LRS
    schedules = SCHEDULES[:1] if network else SCHEDULES
    runs = [
        (network, optimizer, schedule, lr, seed, callback)
        for optimizer, schedule in product(own_lrs, schedules)
        for lr, seed, callback in product(own_lrs[optimizer], SEEDS, CALLBACK)
    ]
    with multiprocessing.get_context("spawn").Pool(processes[0] if processes else 1) as pool:
        rows = pool.starmap(run, runs, chunksize=1)
    result = {
        "torch": str(torch.__version__),
        "lightning": L.__version__,
        "python": platform.python_version(),
        "rows": rows,
    }
    file = Path(__file__).parent / "results" / f"{name}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    report(rows)


def report(rows: list[dict]) -> None:
    """Means over seeds of test accuracy for each own lr, and how often the end was ruin."""
    cells = defaultdict(list)
    for row in rows:
        cells[row["optimizer"], row["schedule"], row["callback"], row["own_lr"]].append(row)
    for optimizer, schedule, callback in dict.fromkeys(key[:3] for key in cells):
        lrs = sorted(key[3] for key in cells if key[:3] == (optimizer, schedule, callback))
        chosen = [cells[optimizer, schedule, callback, lr] for lr in lrs]
        means = [statistics.mean(row["test_accuracy"] for row in cell) for cell in chosen]
        every = [row for cell in chosen for row in cell]
        ruined = sum(row["last_validation_log_likelihood"] < GUESSING for row in every)
        seconds = statistics.mean(row["processor_seconds"] for row in every)
        accuracies = " ".join(f"{lr:g}: {mean:.3f}" for lr, mean in zip(lrs, means, strict=True))
        print(
            f"{optimizer} {schedule} {'with' if callback else 'without'}: {accuracies}; "
            f"mean {statistics.mean(means):.3f}, {ruined} of {len(every)} ruined, {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
