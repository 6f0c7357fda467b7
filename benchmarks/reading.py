"""Time and memory of reading a published rating file, for example MovieLens-1M's ratings.dat.

Run from the root of the checkout::

    OMP_NUM_THREADS=1 python benchmarks/reading.py ml-1m/ratings.dat

Writes benchmarks/results/reading.json. Memory is the largest resident size of the process, in all
and beyond what it was before the first reading, when only libraries were loaded.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import time
from pathlib import Path

import numpy as np

from recsys_models.data.readers import read_ratings

ROUNDS = 7
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the reading of a rating file.")
    parser.add_argument("path", help="the file or its zip archive")
    parser.add_argument("--dataset", default="ml_1m", help="name of its format")
    chosen = parser.parse_args()
    before, seconds, load = peak_megabytes(), [], os.getloadavg()[0]
    for _ in range(ROUNDS):
        started = time.perf_counter()
        ratings = read_ratings(chosen.path, chosen.dataset)
        seconds.append(time.perf_counter() - started)
    result = {
        "dataset": chosen.dataset,
        "ratings": len(ratings.interactions),
        "first_seconds": seconds[0],
        "median_seconds": statistics.median(seconds),
        "peak_megabytes": peak_megabytes(),
        "of_which_reading": peak_megabytes() - before,
        "load_average": load,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "reading.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def peak_megabytes() -> float:
    """The largest resident size so far; Linux counts it in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
