"""What a generation and an epoch of members cost, beside a plain loop over the candidates.

Run from the root of the checkout; ratings are generated where no files are given::

    python benchmarks/generation.py [filmtrust=FILE] [ml_1m=FILE] [rounds=3] [candidates=10]
        [only=filmtrust/bpr_mf]

Each way has a process of its own; they take turns, in rounds, and the medians are compared.
With 10 candidates or as many as asked for, each trained for 10 steps and validated on all users:

- ``plain``: for each candidate the weights and the optimizer, torch's Adam as it comes, are loaded,
  one parameter group per layer is written, 10 batches are indexed and trained on, and all users
  ranked; loss and ranking as one writes them at first (see plain.py); two threads. ``plain, fused``
  has Adam with ``fused=True`` as conf/ has, and the package's loss and ranking.
- ``literal``: a Trainer and torch's DataLoader over single pairs for each candidate, else as
  ``plain, fused``; ``literal, batched`` has the package's DataLoader, which draws whole batches.
- ``loops``, ``direct``, ``workers``, ``compiled``, ``compiled, workers``: the callback in a Trainer
  with Lightning's loops, with direct steps, with two processes as well, and with compiled steps
  in one or two (compile time is not part of a generation's). Direct steps are the default. All
  have conf/'s Adam.

``own epoch`` is one of the Trainer's own epochs with torch's Adam as it comes, validation included,
``own epoch, fused`` with conf/'s; what follows it are epochs of five members
(``carry="population"``), the leader's in the Trainer among them. Writes
benchmarks/results/generation.json, or generation_N.json for N candidates, which has no epochs;
``only`` takes one of the cases, and adds its name to the file's.

For BPR-MF it says what share of the machine's limit a way reaches: the time that its products take
at the speed of a large one, and its dense Adam updates at the speed of a copy, both with as many
threads in the same run (see machine.py), over the time that it takes.
"""

import copy
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import machine
import plain
import torch

from deopt_lightning import DEOptCallback
from recsys_models.data import RecsysDataModule
from recsys_models.metrics import evaluate
from recsys_models.models import BPRMF, LRML, NeuMF

RESULTS = Path(__file__).parent / "results"
MODELS = {"bpr_mf": BPRMF, "neumf": NeuMF, "lrml": LRML}
CASES = [
    ("filmtrust", "bpr_mf"),
    ("ml_1m", "bpr_mf"),
    ("filmtrust", "neumf"),
    ("filmtrust", "lrml"),
]
SHAPES = {"filmtrust": (1_508, 2_071, 35_494), "ml_1m": (6_040, 3_706, 1_000_209)}
STEPS, MEMBERS = 10, 5
EPOCHS, LONG_RUN = 8, 5_000  # measured, and of a run that compiling would be worth it for
SAMPLE = 10  # candidates of which the median is taken, where each is a loop's or a Trainer's
SETTLING = 2  # generations that are not timed: the first tests which steps may be taken
GENERATION_WAYS = (
    *("plain", "plain, fused", "literal", "literal, batched", "loops", "direct", "workers"),
    *("compiled", "compiled, workers"),
)
OWN_EPOCHS = ("own epoch", "own epoch, fused")
EPOCH_WAYS = (
    *OWN_EPOCHS,
    *("members, in turn", "members, workers", "members, compiled", "members, compiled in workers"),
)
PLAIN_USERS = 256  # ranked at a time
WIDTH, ADAM_FLOATS = 64, 7  # per row of a table; read or written per weight of a dense step
CALLBACK = {
    "loops": {"direct_steps": False, "workers": 0},
    "direct": {"workers": 0},
    "workers": {"workers": 2},
    "compiled": {"workers": 0, "compile_steps": True},
    "compiled, workers": {"workers": 2, "compile_steps": True},
    "members, in turn": {"workers": 0},
    "members, workers": {"workers": 2},
    "members, compiled": {"workers": 0, "compile_steps": True},
    "members, compiled in workers": {"workers": 2, "compile_steps": True},
}


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(*sys.argv[2:5], int(sys.argv[5]), sys.argv[6] or None)))
        return
    paths = dict(argument.split("=", 1) for argument in sys.argv[1:])
    rounds, candidates = int(paths.pop("rounds", 3)), int(paths.pop("candidates", 10))
    only = paths.pop("only", "")
    cases = [case for case in CASES if "/".join(case) == only or not only]
    name = "generation" if candidates == 10 else f"generation_{candidates}"
    name += only and "_" + only.replace("/", "_")
    rows = {}
    RESULTS.mkdir(exist_ok=True)
    for data, model in cases:
        ways = GENERATION_WAYS
        if model == "bpr_mf" and candidates == 10:
            ways += EPOCH_WAYS
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                seconds = in_process(data, model, way, str(candidates), paths.get(data, ""))
                taken[way].append(seconds)
        least = least_seconds(data, candidates, paths.get(data)) if model == "bpr_mf" else {}
        rows[f"{data} {model}"] = report(data, model, taken, least)
        facts = {
            "torch": torch.__version__,
            "lightning": L.__version__,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "real_data": sorted(paths),
            "rounds": rounds,
            "candidates": candidates,
            "rows": rows,
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")


def in_process(*what: str) -> float:
    command = [sys.executable, __file__, "--measure", *what]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return float(json.loads(done.stdout.splitlines()[-1]))


def least_seconds(data: str, candidates: int, path: str | None) -> dict[str, float]:
    """What the machine needs at least, for each way."""
    made = make_data(data, "bpr_mf", path)
    users = made.num_users - made.skipped_users["validation"]
    table = 4 * WIDTH * (made.num_users + made.num_items)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    peaks = machine.peaks(ADAM_FLOATS * table)
    torch.set_num_threads(before)
    step = peaks.limit(size=ADAM_FLOATS * table)
    ranking = peaks.limit(flops=2 * WIDTH * users * made.num_items)
    epoch = len(made.train_dataloader()) * step + ranking
    generations = dict.fromkeys(GENERATION_WAYS, candidates * (STEPS * step + ranking))
    epochs = dict.fromkeys(EPOCH_WAYS, MEMBERS * epoch) | dict.fromkeys(OWN_EPOCHS, epoch)
    return generations | epochs


def report(
    data: str, model: str, taken: dict[str, list[float]], least: dict[str, float]
) -> dict[str, dict[str, float]]:
    median = {way: statistics.median(seconds) for way, seconds in taken.items()}
    for base, ways in (("plain", GENERATION_WAYS), ("own epoch", EPOCH_WAYS)):
        for way in ways:
            if way in median:
                ratio = median[base] / median[way]
                line = f"{data:10} {model:7} {way:28} {1e3 * median[way]:10.1f} ms {ratio:6.2f}x"
                limit = f" {least[way] / median[way]:6.0%} of the limit" if least else ""
                print(line + limit)
    sys.stdout.flush()
    return {
        "seconds": median,
        "share_of_limit": {way: least[way] / median[way] for way in median if least},
    }


def measure(data: str, model: str, way: str, candidates: int, path: str | None) -> float:
    """Seconds of a generation, or of an epoch."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    L.seed_everything(0, verbose=False)
    module_data = make_data(data, model, path)
    sizes = module_data.num_users, module_data.num_items
    fused = way not in ("plain", "own epoch")
    optimizer = partial(torch.optim.Adam, lr=1e-3, fused=fused)
    module = MODELS[model](*sizes, optimizer=optimizer)
    if way.startswith("plain"):
        return candidates * by_hand(module, module_data, optimizer, all_plain=not fused)
    if way.startswith("literal"):
        return candidates * literal(module, module_data, batched=way == "literal, batched")
    return in_trainer(module, module_data, way, candidates)


def make_data(data: str, model: str, path: str | None) -> RecsysDataModule:
    users, items, pairs = SHAPES[data]
    sizes = {"num_users": users, "num_items": items, "num_interactions": pairs}
    source = {"dataset": data, "path": path} if path else {"synthetic": sizes}
    made = RecsysDataModule(
        **source,
        batch_size=2048 if data == "ml_1m" else 1024,
        num_negatives=4 if model == "neumf" else 1,
    )
    made.setup()
    return made


def by_hand(
    module: L.LightningModule, data: RecsysDataModule, make_optimizer, all_plain: bool
) -> float:
    """A candidate of several, one after the other in a loop."""
    names = module.layer_groups()
    parameters = dict(module.named_parameters())
    groups = [{"params": [parameters[name] for name in layer]} for layer in names.values()]
    optimizer = make_optimizer(groups)
    loader, validation = data.train_dataloader(), list(data.val_dataloader())
    parts = [part for batch in validation for part in batch.split(PLAIN_USERS)]
    batches = [batch for batch, _ in zip(loader, range(STEPS), strict=False)]
    loss = partial(plain.loss, module) if all_plain else module.training_loss
    train_by_hand(loss, optimizer, batches)
    check_plain(module, batches[0], validation, parts)
    weights, state = copy.deepcopy(module.state_dict()), copy.deepcopy(optimizer.state_dict())
    seconds = []
    for candidate in range(SAMPLE):
        began = time.perf_counter()
        module.load_state_dict(weights)
        optimizer.load_state_dict(copy.deepcopy(state))
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = 1e-3 * (candidate + 1), 1e-6
        train_by_hand(loss, optimizer, batches)
        module.eval()
        with torch.no_grad():
            if all_plain:
                plain.ndcg(module, parts)
            else:
                evaluate(module.scorer(), validation)
        module.train()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


@torch.no_grad()
def check_plain(module, batch, validation, parts) -> None:
    torch.testing.assert_close(plain.loss(module, batch), module.training_loss(batch))
    ours = evaluate(module.scorer(), validation)["ndcg@10"]
    torch.testing.assert_close(plain.ndcg(module, parts), ours, rtol=1e-3, atol=1e-5)


def train_by_hand(loss, optimizer, batches) -> None:
    for batch in batches:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()


def literal(module: L.LightningModule, data: RecsysDataModule, batched: bool) -> float:
    """A candidate in a Trainer of its own."""
    seconds = []
    for candidate in range(SAMPLE):
        began = time.perf_counter()
        trained = copy.deepcopy(module)
        trained._make_optimizer = partial(torch.optim.Adam, lr=1e-3 * (candidate + 1), fused=True)
        loader = data.train_dataloader()
        if not batched:
            pairs = plain.Pairs(data.train, data.num_negatives)
            loader = torch.utils.data.DataLoader(pairs, data.batch_size, shuffle=True)
        trainer = quiet_trainer(max_steps=STEPS)
        trainer.fit(trained, loader, data.val_dataloader())
        trainer.validate(trained, data.val_dataloader(), verbose=False)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


class Clock(L.Callback):
    """Seconds of each epoch; ends the run after some of them."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, *_) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def on_train_epoch_end(self, trainer: L.Trainer, *_) -> None:
        """Enough is enough."""
        trainer.should_stop = len(self.times) == EPOCHS

    def on_train_end(self, *_) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def in_trainer(
    module: L.LightningModule, data: RecsysDataModule, way: str, candidates: int
) -> float:
    clock, callbacks = Clock(), []
    if way in GENERATION_WAYS:
        options = {"carry": "weights", "population_size": candidates, "probe_steps": STEPS}
        callbacks = [DEOptCallback("val/ndcg@10", "max", **options, **CALLBACK[way])]
    elif way in CALLBACK:
        options = {"carry": "population", "population_size": MEMBERS}
        callbacks = [DEOptCallback("val/ndcg@10", "max", **options, **CALLBACK[way])]
    quiet_trainer(max_epochs=LONG_RUN, callbacks=[*callbacks, clock]).fit(module, datamodule=data)
    if way in GENERATION_WAYS:
        rows = callbacks[0].history[SETTLING:]
        return statistics.median(candidates * r["seconds"] / r["evaluations"] for r in rows)
    times = clock.times[SETTLING:]
    return statistics.median(end - begin for begin, end in zip(times, times[1:], strict=False))


def quiet_trainer(**options) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


if __name__ == "__main__":
    main()
