"""One epoch and one evaluation of BPR-MF on growing data: seconds and peak memory.

Run from the root of the checkout, with as many threads as wanted::

    OMP_NUM_THREADS=1 python benchmarks/scale.py

All data are generated: one, two and four times ML-1M, by more pairs per user and by more users, and
one set of EachMovie's size. Each runs in a process of its own, so that the peak of its memory, data
generation included, is its own. Writes benchmarks/results/scale_<threads>t.json.

An epoch that is linear in the pairs has level seconds per million pairs. Where users grow too it
cannot be quite level: dense Adam visits every embedding row at every step, pairs times rows in all.
Each figure is of one run, not a median.
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

SIZES = {  # users, items, pairs
    "ml_1m": (6_040, 3_706, 1_000_000),
    "2x pairs": (6_040, 3_706, 2_000_000),
    "4x pairs": (6_040, 3_706, 4_000_000),
    "2x users": (12_080, 3_706, 2_000_000),
    "4x users": (24_160, 3_706, 4_000_000),
    "eachmovie": (72_916, 1_628, 2_811_983),
}
WIDTH, BATCH_SIZE = 64, 2048
MEMORY_TARGET_GB = 4.0
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(*map(int, sys.argv[1:]))))
        return
    rows = {}
    print(f"{'':10} {'users':>6} {'items':>6} {'pairs':>9} {'make':>6} {'epoch':>6}", end=" ")
    print("s/1M pairs  evaluate   us/user  peak GB")
    for name, sizes in SIZES.items():
        command = [sys.executable, __file__, *map(str, sizes)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        row = rows[name] = json.loads(output.splitlines()[-1])
        print(
            f"{name:10} {row['users']:6} {row['items']:6} {row['pairs']:9} "
            f"{row['make_seconds']:6.1f} {row['epoch_seconds']:6.1f} "
            f"{row['epoch_seconds_per_million_pairs']:10.2f} {row['evaluate_seconds']:9.2f} "
            f"{row['evaluate_microseconds_per_user']:9.1f} {row['peak_gb']:8.2f}",
            flush=True,
        )
    report(rows)


def measure(users: int, items: int, pairs: int) -> dict[str, float]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # of Lightning: few workers, no validation loop
    L.seed_everything(0, verbose=False)
    numbers = {"num_users": users, "num_items": items, "num_interactions": pairs}
    data = RecsysDataModule(synthetic=numbers, batch_size=BATCH_SIZE)
    make_seconds = clock(data.setup)
    adam = partial(torch.optim.Adam, lr=1e-3, fused=True)
    model = BPRMF(users, items, dim=WIDTH, optimizer=adam)
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


def report(rows: dict[str, dict[str, float]]) -> None:
    base = rows["ml_1m"]
    result = {
        "width": WIDTH,
        "batch_size": BATCH_SIZE,
        "threads": base["threads"],
        "torch": str(torch.__version__),
        "lightning": L.__version__,
        "python": platform.python_version(),
        "sizes": rows,
        "epoch_growth": {
            n: row["epoch_seconds"] / base["epoch_seconds"] for n, row in rows.items()
        },
        "evaluate_growth": {
            n: row["evaluate_seconds"] / base["evaluate_seconds"] for n, row in rows.items()
        },
        "largest_peak_gb": max(row["peak_gb"] for row in rows.values()),
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"scale_{result['threads']}t.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    for name in ("2x pairs", "4x pairs", "2x users", "4x users"):
        epoch, evaluate = result["epoch_growth"][name], result["evaluate_growth"][name]
        print(f"{name}: {epoch:.2f}x the epoch, {evaluate:.2f}x the evaluation of ml_1m")
    peak = result["largest_peak_gb"]
    verdict = "below" if peak < MEMORY_TARGET_GB else "above"
    print(f"{base['threads']} threads; largest peak {peak:.2f} GB, {verdict} {MEMORY_TARGET_GB} GB")


if __name__ == "__main__":
    main()
