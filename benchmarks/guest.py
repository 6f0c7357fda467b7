"""What the callback costs a run: outside generations, in a probe's steps, in snapshots, in memory.

Run from the root of the checkout::

    OMP_NUM_THREADS=1 python benchmarks/guest.py

Writes benchmarks/results/guest_<threads>t.json. All times are CPU time of the process, and what is
compared takes turns, so that other load on the machine matters less. Memory is measured in
processes of their own. Outside generations there are three baselines: the user's own run, one
whose optimizer has a group per layer from the start, without the callback, and this with a callback
that does nothing. Learning per layer needs those groups, and torch's optimizers loop over them;
Lightning asks any callback at each of its hooks; what the third leaves is the callback's own.
"""

import gc
import json
import logging
import multiprocessing
import os
import platform
import statistics
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from deopt_lightning import DEOptCallback
from deopt_lightning.snapshot import Snapshot
from recsys_models.data import RecsysDataModule
from recsys_models.models import BPRMF, NeuMF

ROUNDS, RESTING_ROUNDS, BATCHES, BATCH_SIZE = 11, 31, 100, 128
MEMORY = {  # where malloc takes large tensors from, and what becomes of those that are freed
    "used_again": {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"},
    "fresh_from_the_system": {
        "MALLOC_MMAP_THRESHOLD_": "1000000",
        "MALLOC_TRIM_THRESHOLD_": "1000000",
    },
}
FILMTRUST = {"num_users": 1_508, "num_items": 2_071, "num_interactions": 35_494}
RESULTS = Path(__file__).parent / "results"


class Perceptron(L.LightningModule):
    """Six layers; notes when each training step begins, and whether in a probe."""

    def __init__(self, width: int, group_per_layer: bool = False) -> None:
        super().__init__()
        self.group_per_layer = group_per_layer
        layers = [layer for _ in range(6) for layer in (nn.Linear(width, width), nn.ReLU())]
        self.net = nn.Sequential(*layers)
        object.__setattr__(self, "began", Began())

    def training_step(self, batch, batch_idx):  # noqa: D102
        loop = type(self.trainer.fit_loop.epoch_loop).__name__
        self.began.steps.append((loop, batch_idx, time.process_time()))
        loss = (self.net(batch[0]) - batch[0]).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):  # noqa: D102
        self.log("val_loss", (self.net(batch[0]) - batch[0]).square().mean())

    def configure_optimizers(self):  # noqa: D102
        layers = [layer for layer in self.net if isinstance(layer, nn.Linear)]
        groups = [{"params": list(layer.parameters())} for layer in layers]
        return torch.optim.Adam(groups if self.group_per_layer else self.parameters(), lr=1e-3)


class Began:
    """No plain value, so a snapshot leaves it alone."""

    def __init__(self) -> None:
        self.steps = []


def train(
    width, callbacks, epochs=1, batches=BATCHES, batch_size=BATCH_SIZE, group_per_layer=False
):
    L.seed_everything(0, verbose=False)
    model = Perceptron(width, group_per_layer)
    trainer = quiet_trainer(epochs, callbacks)
    data = TensorDataset(torch.randn(batches * batch_size, width))
    validation = TensorDataset(torch.randn(batch_size, width))
    loaders = (DataLoader(d, batch_size=batch_size) for d in (data, validation))
    trainer.fit(model, *loaders)
    return model.began.steps


def quiet_trainer(epochs, callbacks):
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
    )


def periods(steps, loop):
    """CPU seconds from the beginning of one step to the next one's, in loops of a kind."""
    pairs = zip(steps, steps[1:], strict=False)
    return [b[2] - a[2] for a, b in pairs if a[0] == b[0] == loop and b[1] == a[1] + 1]


def outside_generations(width):
    """Epoch with the callback at rest over each baseline: medians of the rounds' ratios."""
    ratios = {
        "over_users_groups": [],
        "over_a_group_per_layer": [],
        "over_these_and_an_idle_callback": [],
    }
    for _ in range(RESTING_ROUNDS):
        *baselines, resting = (
            sum(periods(steps, "_TrainingEpochLoop"))
            for steps in (
                train(width, []),
                train(width, [], group_per_layer=True),
                train(width, [L.Callback()], group_per_layer=True),
                train(width, [DEOptCallback("val_loss", warmup_epochs=10)]),
            )
        )
        for taken, baseline in zip(ratios.values(), baselines, strict=True):
            taken.append(resting / baseline)
    return {name: summary(taken) for name, taken in ratios.items()}


def epochs_of_recommenders():
    """Whole epochs, validation included, with the callback at rest over the user's own run."""
    data = RecsysDataModule(synthetic=FILMTRUST, batch_size=1024, num_negatives=4)
    data.setup()
    return {
        model.__name__: summary(
            [epoch(model, data, True) / epoch(model, data, False) for _ in range(ROUNDS)]
        )
        for model in (BPRMF, NeuMF)
    }


def epoch(model, data, resting):
    """CPU seconds of an epoch, the median of a short run's."""
    callbacks = [DEOptCallback("val/ndcg@10", "max", warmup_epochs=100)] if resting else []
    clock = Clock()
    L.seed_everything(0, verbose=False)
    trainer = quiet_trainer(6, [*callbacks, clock])
    trainer.fit(model(data.num_users, data.num_items), datamodule=data)
    pairs = zip(clock.times[1:], clock.times[2:], strict=False)
    return statistics.median(after - before for before, after in pairs)


class Clock(L.Callback):
    """Processor time at the beginning of each epoch."""

    def __init__(self) -> None:
        self.times = []

    def on_train_epoch_start(self, *_) -> None:  # noqa: D102
        self.times.append(time.process_time())


def probe_step(width):
    """A probe's step over the Trainer's step, of the same run."""
    ratios = []
    for _ in range(ROUNDS):
        search = DEOptCallback("val_loss", population_size=4, probe_steps=30, workers=0)
        steps = train(width, [search], batches=60)
        own, probes = (
            statistics.median(periods(steps, loop))
            for loop in ("_TrainingEpochLoop", "ProbeEpochLoop")
        )
        ratios.append(probes / own)
    return summary(ratios)


def snapshot(width, fresh):
    """Taking and restoring a snapshot over one foreach copy, both into memory of a kind."""
    model = Perceptron(width)
    optimizer = model.configure_optimizers()
    model.net(torch.randn(8, width)).sum().backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values()]
    tensors = [*(p.detach() for p in model.parameters()), *moments]
    copies = [tensor.clone() for tensor in tensors]
    ratios = []
    for _ in range(3 * ROUNDS):
        started = time.process_time()
        if fresh:
            copies = [torch.empty_like(tensor) for tensor in tensors]
        torch._foreach_copy_(copies, tensors)
        copied = time.process_time()
        Snapshot.take(model, [optimizer]).restore()
        ratios.append((time.process_time() - copied) / (copied - started))
    return summary(ratios)


def peak_memory(width):
    """Peak over the plain run's, in copies of model and optimizer state; of five members.

    In six epochs the first members, own setting and far lrs, are replaced and go on beside five.
    """
    copy = 3 * 4 * sum(p.numel() for p in Perceptron(width).parameters())
    plain = peak_of(width, None)
    peaks = {carry: peak_of(width, carry) for carry in ("population", "weights", "hyperparameters")}
    peaks["population and others beside it"] = peak_of(width, "population", epochs=6)
    return {name: (found - plain) / copy for name, found in peaks.items()}


def peak_of(width, carry, epochs=2):
    return in_a_process(peak, (width, carry, epochs), MEMORY["fresh_from_the_system"])


def peak(width, carry, epochs):
    length = {} if carry == "population" else {"probe_steps": 2}
    callbacks = [DEOptCallback("val_loss", carry=carry, workers=0, **length)] if carry else []
    gc.collect()
    train(width, callbacks, epochs=epochs, batches=4, batch_size=8)
    status = Path("/proc/self/status").read_text()  # getrusage tells the parent's peak, too
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def in_a_process(function, arguments, malloc):
    """What a function returns in a process of its own, whose malloc has the given settings."""
    os.environ.update(malloc)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(sender, function, arguments))
    process.start()
    result = receiver.recv()
    process.join()
    return result


def send(sender, function, arguments) -> None:
    be_quiet()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    sender.send(function(*arguments))


def summary(ratios):
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"median": median, "quartiles": [low, high]}


def be_quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def main() -> None:
    be_quiet()
    result = {
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": str(torch.__version__),
        "lightning": L.__version__,
        "python": platform.python_version(),
        "rounds": ROUNDS,
        "rounds_outside_generations": RESTING_ROUNDS,
        "epoch_outside_generations": {str(w): outside_generations(w) for w in (64, 256)},
        "whole_epoch_of_recommenders": epochs_of_recommenders(),
        "probe_step": {str(w): probe_step(w) for w in (64, 256)},
        "snapshot_and_restore_over_a_copy": {
            memory: {
                str(w): in_a_process(snapshot, (w, memory != "used_again"), malloc)
                for w in (512, 2048)
            }
            for memory, malloc in MEMORY.items()
        },
        "peak_memory_in_copies": peak_memory(2048),
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"guest_{result['threads']}t.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
