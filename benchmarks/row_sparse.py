"""One training step of BPR-MF: optimizers that visit only the rows in a batch, beside dense ones.

Run from the root of the checkout, with as many threads as wanted::

    OMP_NUM_THREADS=1 python benchmarks/row_sparse.py

Data are generated, of the shapes of ML-1M and EachMovie. A step is the loss, its gradient and the
update; all ways take turns on the same batches, round by round, so that other load on the machine
meets all of them alike. Figures are first deciles over all steps: such load only adds to a step's
time, and mostly stays above them. Medians are in the results as well, which are written to
benchmarks/results/row_sparse_<threads>t.json.

- ``plain`` is an optimizer of torch with its default settings, ``dense`` the same with
  ``fused=True``, ``rows`` ours.
- ``flush`` is what an evaluation costs more: all rows brought up to date, once.
- ``growth`` is EachMovie's step over ML-1M's: 12 times the users.
- ``share_of_peak`` is the time that a copy of as many bytes takes as an update reads and writes (of
  all rows, or of those in the batch), over the time of the whole step. What fits into a cache is
  copied there (see machine.py).
"""

import json
import os
import platform
import statistics
import time
from functools import partial
from itertools import islice
from pathlib import Path

import machine
import torch

from recsys_models.data import RecsysDataModule
from recsys_models.models import BPRMF
from recsys_models.optim import RowSparseAdam, RowSparseSGD

SHAPES = {  # users, items, pairs
    "ml_1m": (6_040, 3_706, 1_000_209),
    "eachmovie": (72_916, 1_628, 2_811_983),
}
WIDTH, BATCH_SIZE, STEPS = 64, 2048, 20
WARM_UP, ROUNDS = 2, 15
GROWTH_TARGET = 1.3
SGD = {"lr": 3.0, "weight_decay": 1e-5}
MOMENTUM = {"lr": 0.3, "weight_decay": 1e-5, "momentum": 0.9}
ADAM = {"lr": 1e-3, "weight_decay": 1e-5}
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, RowSparseSGD, SGD),
    "momentum": (torch.optim.SGD, RowSparseSGD, MOMENTUM),
    "adam": (torch.optim.Adam, RowSparseAdam, ADAM),
}
MOVED = {"sgd": 3, "momentum": 5, "adam": 7}  # floats per weight: itself, gradient, state
RESULTS = Path(__file__).parent / "results"


class Stepper:
    """A model in training."""

    def __init__(self, users: int, items: int, optimizer) -> None:
        torch.manual_seed(0)
        self.model = BPRMF(users, items, dim=WIDTH, optimizer=optimizer)
        self.optimizer = self.model.configure_optimizers()

    def step(self, batch) -> float:
        """Seconds of a step."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        self.model.training_loss(batch).backward()
        self.optimizer.step()
        return time.perf_counter() - started

    def flush(self) -> float:
        """Seconds to bring all rows up to date."""
        started = time.perf_counter()
        self.model.eval()
        return time.perf_counter() - started


def main() -> None:
    batches = {shape: draw_batches(*sizes) for shape, sizes in SHAPES.items()}
    seconds, flushes = {}, {}
    steppers = {
        (shape, name, way): Stepper(*SHAPES[shape][:2], optimizer)
        for shape in SHAPES
        for name in OPTIMIZERS
        for way, optimizer in ways(name).items()
    }
    for number in range(WARM_UP + ROUNDS):
        for key, stepper in steppers.items():
            times = [stepper.step(batch) for batch in batches[key[0]]]
            flush = stepper.flush()
            if number >= WARM_UP:
                seconds.setdefault(key, []).extend(times)
                flushes.setdefault(key, []).append(flush)
    report(seconds, flushes, {shape: touched_rows(some) for shape, some in batches.items()})


def ways(name: str) -> dict:
    dense, rows, options = OPTIMIZERS[name]
    return {
        "plain": partial(dense, **options),
        "dense": partial(dense, **options, fused=True),
        "rows": partial(rows, **options),
    }


def draw_batches(users: int, items: int, pairs: int) -> list:
    sizes = {"num_users": users, "num_items": items, "num_interactions": pairs}
    data = RecsysDataModule(synthetic=sizes, batch_size=BATCH_SIZE)
    data.setup()
    return list(islice(data.train_dataloader(), STEPS))


def touched_rows(batches: list) -> float:
    """Of both tables, by a step."""
    counts = [
        len(batch.users.unique())
        + len(torch.cat([batch.items, batch.negatives.flatten()]).unique())
        for batch in batches
    ]
    return statistics.mean(counts)


def first_decile(times: list[float]) -> float:
    """In microseconds."""
    return 1e6 * statistics.quantiles(times, n=10)[0]


def report(seconds, flushes, touched) -> None:
    micro = {key: first_decile(times) for key, times in seconds.items()}
    threads = torch.get_num_threads()
    rows = []
    print(f"microseconds per step, {threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"{'':20} {'plain':>7} {'dense':>7} {'rows':>7} {'dense/rows':>10} {'flush':>7}  of peak")
    for shape, (users, items, _) in SHAPES.items():
        for name in OPTIMIZERS:
            plain, dense, ours = (micro[shape, name, way] for way in ("plain", "dense", "rows"))
            flush, gain = first_decile(flushes[shape, name, "rows"]), dense / ours
            row = {"shape": shape, "optimizer": name, "plain_us": plain, "dense_us": dense}
            row |= {"rows_us": ours, "flush_us": flush}
            row |= {"plain_over_rows": plain / ours, "dense_over_rows": gain}
            sizes = dict.fromkeys(("plain", "dense"), users + items) | {"rows": touched[shape]}
            row["share_of_peak"] = shares = {}
            for way, count in sizes.items():
                size = 4 * WIDTH * MOVED[name] * count
                microseconds = size / (1e3 * machine.copy_gigabytes(size))
                shares[way] = microseconds / micro[shape, name, way]
            row["medians_us"] = {
                way: 1e6 * statistics.median(seconds[shape, name, way]) for way in ways(name)
            }
            rows.append(row)
            label = f"{shape} {name}"
            print(
                f"{label:20} {plain:7.0f} {dense:7.0f} {ours:7.0f} {gain:9.1f}x {flush:7.0f}  "
                + " ".join(f"{way} {share:.0%}" for way, share in shares.items())
            )
    growth = {
        name: {way: micro["eachmovie", name, way] / micro["ml_1m", name, way] for way in ways(name)}
        for name in OPTIMIZERS
    }
    for name, by_way in growth.items():
        by_way["rows_over_plain_ml_1m"] = (
            micro["eachmovie", name, "rows"] / micro["ml_1m", name, "plain"]
        )
        verdict = "within" if by_way["rows"] <= GROWTH_TARGET else "above"
        print(
            f"{name}: EachMovie's step is {by_way['rows']:.2f}x ML-1M's, {verdict} "
            f"{GROWTH_TARGET}x (plain {by_way['plain']:.1f}x, dense {by_way['dense']:.1f}x), "
            f"and {by_way['rows_over_plain_ml_1m']:.2f}x ML-1M's plain step"
        )
    result = {
        "width": WIDTH,
        "batch_size": BATCH_SIZE,
        "shapes": SHAPES,
        "threads": threads,
        "rounds": ROUNDS,
        "steps_per_round": STEPS,
        "load_average": os.getloadavg()[0],
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "rows": rows,
        "growth": growth,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"row_sparse_{threads}t.json"
    file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
