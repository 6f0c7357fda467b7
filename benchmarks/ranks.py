"""A population over the processes of one run: what sharing its members out saves, and its parts.

Run from the root of the checkout::

    OMP_NUM_THREADS=1 python benchmarks/ranks.py [number of processes]

BPR-MF on generated data of ML-1M's size, five members, Adam, 2048 pairs per batch and process, over
gloo. The members train the same epochs once data-parallel ("together") and once shared out among
the processes ("apart"); both in turn, one pair of processes each. Each figure is the median over
the calls of process 0, without the first generation; "generation" is what an epoch takes beyond
the Trainer's own. Writes benchmarks/results/ranks.json.
"""

import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from functools import partial
from pathlib import Path

import lightning as L
import torch

from deopt_lightning import DEOptCallback, held_state, rank_sharing
from deopt_lightning.evaluators import distributed
from deopt_lightning.evaluators.probe import Probe
from deopt_lightning.trainer_seam import ProbeLoops
from recsys_models.data import RecsysDataModule
from recsys_models.models import BPRMF

USERS, ITEMS, PAIRS = 6_040, 3_706, 1_000_209
WIDTH, BATCH_SIZE, MEMBERS, EPOCHS = 64, 2048, 5, 4
PARTS = {  # name -> where the function is that it times
    "train one member together": (ProbeLoops, "train"),
    "train one member apart": (distributed.AloneSteps, "__call__"),
    "validate one member": (Probe, "validate"),
    "weights of one member to all": (distributed, "broadcast_into"),
    "state of the best member to all": (held_state, "spread_snapshot"),
    "batches of all, and random states": (rank_sharing, "gather_ranks"),
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    if len(sys.argv) == 3:
        measure(int(sys.argv[1]), Path(sys.argv[2]))
        return
    ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    RESULTS.mkdir(exist_ok=True)
    rows = {}
    for way in ("together", "apart"):
        file = RESULTS / f"ranks_{way}.json"
        subprocess.run([sys.executable, __file__, str(ranks), str(file)], check=True)
        rows[way] = json.loads(file.read_text())
        file.unlink()
    result = {
        "ranks": ranks,
        "members": MEMBERS,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "lightning": L.__version__,
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        **rows,
    }
    (RESULTS / "ranks.json").write_text(json.dumps(result, indent=2) + "\n")
    for way, row in rows.items():
        print(
            f"\n{way}: {row['steps']} steps an epoch, {row['member_megabytes']:.0f} MB of members"
        )
        for name, seconds in row["seconds"].items():
            print(f"  {name:36} {seconds:8.4f} s")


def measure(ranks: int, file: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    times: dict[str, list[float]] = defaultdict(list)
    for name, (owner, attribute) in PARTS.items():
        setattr(owner, attribute, timed(getattr(owner, attribute), times[name]))
    L.seed_everything(0, verbose=False)
    numbers = {"num_users": USERS, "num_items": ITEMS, "num_interactions": PAIRS}
    data = RecsysDataModule(synthetic=numbers, batch_size=BATCH_SIZE)
    model = BPRMF(USERS, ITEMS, dim=WIDTH, optimizer=partial(torch.optim.Adam, lr=1e-3))
    callback = DEOptCallback(
        "val/ndcg@10",
        mode="max",
        population_size=MEMBERS,
        carry="population",
        share_over_ranks=file.stem == "ranks_apart",
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp",
        callbacks=[callback],
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    if trainer.global_rank == 0:
        generations = [row["seconds"] for row in callback.history[1:]]
        seconds = {"generation": statistics.median(generations), **step_parts(data)}
        if callback.share_over_ranks:
            times["train one member together"].clear()  # a few steps, once, to compare
        for name, taken in times.items():
            later = taken[len(taken) // EPOCHS :]  # the first generation also tries and compares
            if later:
                seconds[name] = statistics.median(later)
        row = {
            "steps": trainer.global_step // EPOCHS,
            "seconds": seconds,
            "member_megabytes": callback.member_bytes / 1e6,
            "batch_megabytes": trainer.global_step // EPOCHS * ranks * BATCH_SIZE * 3 * 8 / 1e6,
        }
        file.write_text(json.dumps(row))


def step_parts(data: RecsysDataModule) -> dict[str, float]:
    """Seconds of what a step consists of, while the other process waits."""
    model = BPRMF(USERS, ITEMS, dim=WIDTH)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    parts: dict[str, list[float]] = {"gradient of one batch": [], "update": []}
    for batch, _ in zip(data.train_dataloader(), range(100), strict=False):
        optimizer.zero_grad()
        timed(lambda b=batch: model.training_loss(b).backward(), parts["gradient of one batch"])()
        timed(optimizer.step, parts["update"])()
    return {name: statistics.median(taken) for name, taken in parts.items()}


def timed(function, taken: list[float]):
    def call(*args, **options):
        started = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            taken.append(time.perf_counter() - started)

    return call


if __name__ == "__main__":
    main()
