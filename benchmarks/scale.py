"""One epoch and one evaluation of BPR-MF on growing data: seconds and peak memory.

Run from the root of the checkout, with as many threads as wanted::

    OMP_NUM_THREADS=1 python benchmarks/scale.py

All data are generated: one, two and four times ML-1M, by more pairs per user and by more users, and
one set of EachMovie's size. Each runs in a process of its own, so that the peak of its memory, data
generation included, is its own. Writes benchmarks/results/scale_<threads>t.json.

An epoch that is linear in the pairs has level seconds per million pairs. Where users grow too,
``adam`` cannot: it visits every embedding row at every step, pairs times rows in all.
``row_sparse_adam`` visits those of the batch. Each figure is of one run, not a median.
"""

import json
import logging
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import torch

from recsys_models.data import RecsysDataModule
from recsys_models.models import BPRMF
from recsys_models.optim import RowSparseAdam

SIZES = {  # users, items, pairs
    "ml_1m": (6_040, 3_706, 1_000_000),
    "2x pairs": (6_040, 3_706, 2_000_000),
    "4x pairs": (6_040, 3_706, 4_000_000),
    "2x users": (12_080, 3_706, 2_000_000),
    "4x users": (24_160, 3_706, 4_000_000),
    "eachmovie": (72_916, 1_628, 2_811_983),
}
OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=1e-3, fused=True),
    "row_sparse_adam": partial(RowSparseAdam, lr=1e-3),
}
WIDTH, BATCH_SIZE = 64, 2048
MEMORY_TARGET_GB = 4.0
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:]))))
        return
    by_optimizer = {}
    for optimizer in OPTIMIZERS:
        rows = by_optimizer[optimizer] = {}
        print(f"{optimizer:15} {'users':>6} {'items':>6} {'pairs':>9} {'make':>6}", end=" ")
        print(" epoch s/1M pairs  evaluate   us/user  peak GB")
        for name, sizes in SIZES.items():
            command = [sys.executable, __file__, optimizer, *map(str, sizes)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            row = rows[name] = json.loads(output.splitlines()[-1])
            print(
                f"{name:15} {row['users']:6} {row['items']:6} {row['pairs']:9} "
                f"{row['make_seconds']:6.1f} {row['epoch_seconds']:6.1f} "
                f"{row['epoch_seconds_per_million_pairs']:10.2f} {row['evaluate_seconds']:9.2f} "
                f"{row['evaluate_microseconds_per_user']:9.1f} {row['peak_gb']:8.2f}",
                flush=True,
            )
    report(by_optimizer)


def measure(optimizer: str, users: int, items: int, pairs: int) -> dict[str, float]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # of Lightning: few workers, no validation loop
    L.seed_everything(0, verbose=False)
    numbers = {"num_users": users, "num_items": items, "num_interactions": pairs}
    data = RecsysDataModule(synthetic=numbers, batch_size=BATCH_SIZE)
    make_seconds = clock(data.setup)
    model = BPRMF(users, items, dim=WIDTH, optimizer=OPTIMIZERS[optimizer])
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    epoch_seconds = clock(lambda: trainer.fit(model, data))
    evaluator = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    evaluate_seconds = clock(lambda: evaluator.validate(model, data, verbose=False))
    ranked = users - data.skipped_users["validation"]
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return {
        "users": users,
        "items": items,
        "pairs": pairs,
        "train_pairs": len(data.train),
        "steps": trainer.global_step,
        "ranked_users": ranked,
        "threads": torch.get_num_threads(),
        "make_seconds": make_seconds,
        "epoch_seconds": epoch_seconds,
        "epoch_seconds_per_million_pairs": 1e6 * epoch_seconds / len(data.train),
        "evaluate_seconds": evaluate_seconds,
        "evaluate_microseconds_per_user": 1e6 * evaluate_seconds / ranked,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9,
        "load_average": os.getloadavg()[0],
    }


def clock(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def report(by_optimizer: dict[str, dict[str, dict[str, float]]]) -> None:
    threads = by_optimizer["adam"]["ml_1m"]["threads"]
    peak = max(row["peak_gb"] for rows in by_optimizer.values() for row in rows.values())
    result = {
        "width": WIDTH,
        "batch_size": BATCH_SIZE,
        "threads": threads,
        "torch": str(torch.__version__),
        "lightning": L.__version__,
        "python": platform.python_version(),
        "optimizers": {
            optimizer: {
                "sizes": rows,
                "epoch_growth": growth(rows, "epoch_seconds"),
                "evaluate_growth": growth(rows, "evaluate_seconds"),
            }
            for optimizer, rows in by_optimizer.items()
        },
        "largest_peak_gb": peak,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"scale_{threads}t.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    for optimizer, found in result["optimizers"].items():
        for name in ("2x pairs", "4x pairs", "2x users", "4x users"):
            epoch, evaluate = found["epoch_growth"][name], found["evaluate_growth"][name]
            print(
                f"{optimizer}, {name}: {epoch:.2f}x ml_1m's epoch, {evaluate:.2f}x its evaluation"
            )
    verdict = "below" if peak < MEMORY_TARGET_GB else "above"
    print(f"{threads} threads; largest peak {peak:.2f} GB, {verdict} {MEMORY_TARGET_GB} GB")


def growth(rows: dict[str, dict[str, float]], what: str) -> dict[str, float]:
    """Of each size, over ML-1M's."""
    return {name: row[what] / rows["ml_1m"][what] for name, row in rows.items()}


if __name__ == "__main__":
    main()
