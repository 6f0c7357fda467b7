"""Forward and backward of one sparse product of NGCF, in four ways, on a graph of ML-1M's shape.

Run from the root of the checkout, with as many threads as wanted::

    OMP_NUM_THREADS=1 python benchmarks/spmm.py

``coo_autograd`` and ``csr_autograd`` are torch's own, gradient included; ``csr`` is torch's product
with our gradient, which uses the symmetry; ``ours`` is the default, in C. Writes
benchmarks/results/spmm_<threads>t.json. The ways take turns, round by round, so that other
load on the machine meets all of them alike. ``share_of_peak`` is the time in which as many rows are
copied as the two products gather, over the time of a way (see machine.py); nothing else in them is
bound to take long.
"""

import json
import os
import platform
import statistics
import time
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import machine
import torch

from recsys_models.data import synthetic_interactions
from recsys_models.models.adjacency import Adjacency
from recsys_models.native import library

NUM_USERS, NUM_ITEMS, NUM_EDGES, WIDTH = 6040, 3706, 700_000, 64
WARM_UP, ROUNDS = 3, 25
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    train = synthetic_interactions(NUM_USERS, NUM_ITEMS, NUM_EDGES)
    adjacency = Adjacency.from_interactions(train, "sym")
    warnings.filterwarnings("ignore", message=".*invariant checks are implicitly disabled.*")
    csr = adjacency.csr()
    coo = csr.to_sparse_coo().coalesce()
    ways = {
        "coo_autograd": lambda x: torch.sparse.mm(coo, x),
        "csr_autograd": lambda x: torch.sparse.mm(csr, x),
        "csr": adjacency.product,
        "ours": adjacency.product,
    }
    torch.manual_seed(0)
    x, direction = torch.randn(2, NUM_USERS + NUM_ITEMS, WIDTH)
    check_agreement(ways, x, direction)
    seconds = {name: [] for name in ways}
    for number in range(WARM_UP + ROUNDS):
        for name, way in ways.items():
            with product_of(name):
                elapsed = time_once(way, x, direction)
            if number >= WARM_UP:
                seconds[name].append(elapsed)
    report(seconds)


@contextmanager
def product_of(name: str):
    """For "csr" torch does our product; C does it otherwise."""
    with patch.object(library, "_library", lambda: None) if name == "csr" else nullcontext():
        yield


def check_agreement(ways, x, direction) -> None:
    results = []
    for name, way in ways.items():
        leaf = x.clone().requires_grad_()
        with product_of(name):
            product = way(leaf)
            product.backward(direction)
        results.append((product.detach(), leaf.grad))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-5)


def time_once(way, x, direction) -> float:
    leaf = x.clone().requires_grad_()
    started = time.perf_counter()
    way(leaf).backward(direction)
    return time.perf_counter() - started


def report(seconds) -> None:
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    size = 2 * 2 * NUM_EDGES * 4 * WIDTH  # both directions of each edge, forward and backward
    peaks = machine.peaks((NUM_USERS + NUM_ITEMS) * 4 * WIDTH)  # where the rows lie
    limit = peaks.limit(size=size)
    result = {
        "users": NUM_USERS,
        "items": NUM_ITEMS,
        "edges": NUM_EDGES,
        "width": WIDTH,
        "threads": torch.get_num_threads(),
        "rounds": ROUNDS,
        "load_average": os.getloadavg()[0],
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "milliseconds": {
            name: {
                "median": 1e3 * medians[name],
                "quartiles": [1e3 * q for q in statistics.quantiles(times, n=4)[::2]],
            }
            for name, times in seconds.items()
        },
        "peaks": peaks.as_dict(),
        "share_of_peak": {name: limit / median for name, median in medians.items()},
        "speedup_over_coo": medians["coo_autograd"] / medians["ours"],
        "speedup_over_csr": medians["csr_autograd"] / medians["ours"],
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"spmm_{result['threads']}t.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{NUM_EDGES} edges, width {WIDTH}, {result['threads']} threads, {ROUNDS} rounds")
    for name, numbers in result["milliseconds"].items():
        low, high = numbers["quartiles"]
        share = result["share_of_peak"][name]
        print(
            f"{name:13} {numbers['median']:7.1f} ms  (quartiles {low:.1f} to {high:.1f})  "
            f"{share:.0%} of the copy's speed"
        )
    print(f"ours is {result['speedup_over_coo']:.1f}x as fast as COO")
    print(f"ours is {result['speedup_over_csr']:.1f}x as fast as CSR with torch's own gradient")


if __name__ == "__main__":
    main()
