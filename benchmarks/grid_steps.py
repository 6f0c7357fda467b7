"""Where do a grid's steps go, and how many does DE-Opt take beside those of its better half?

Run from the root of the checkout, with the folders of finished comparisons::

    python benchmarks/grid_steps.py docs/results/table3 docs/results/table4 docs/results/ml_100k

The grid reaches further down from the optimizer's own lr than up, and runs with lrs far below it
are long and end low. Trains nothing and prints only.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from recsys_models.comparison.archive import read_archive
from recsys_models.comparison.results import Results
from recsys_models.comparison.tables import costs_of

TUNER = "deopt"


def main() -> None:
    parser = argparse.ArgumentParser(description="The grid's steps at lrs below the own, and ours.")
    parser.add_argument("folders", nargs="+", type=Path, help="with runs.json and per_user.npz")
    print(f"{'data':10} {'model':8} {'runs':>4} {'below own':>12} {'best there':>10}", end=" ")
    print(f"{'steps / rest':>12} {'as good / rest':>14}")
    for folder in parser.parse_args().folders:
        with tempfile.TemporaryDirectory() as scratch:
            frame, cells = read_archive(folder, Path(scratch))
            results = Results(cells, frame.metrics, "grid")
        for data in results.datasets:
            for model in results.models:
                print_row(results, data, model)


def print_row(results, data, model) -> None:
    """One line for all seeds of a data set and a model that both tuners and the own setting have.

    Shares are of the grid's steps at lrs that are not below the own: all of DE-Opt's, and those
    until it was as good on validation as the whole grid in the end.
    """
    own, grid, ours = (results.by_seed(data, model, name) for name in ("none", "grid", TUNER))
    below, best_below, steps, rest, as_good = [], 0, [], [], []
    for seed in sorted(set(own) & set(grid) & set(ours)):
        own_lr = min(results.of[own[seed]].schedule[0]["lr"].values())
        whole, run = results.of[grid[seed]], results.of[ours[seed]]
        high = [point for point in whole.points if point["lr"] > 0.99 * own_lr]
        best = max(whole.points, key=lambda point: point["val"] or 0.0)
        rest.append(sum(point["steps"] for point in high))
        below.append(1 - rest[-1] / costs_of(whole)[0])
        best_below += best not in high
        steps.append(costs_of(run)[0])
        reached = [row.steps for row in run.curve if row.value >= whole.curve[-1].value]
        as_good += [reached[0] / rest[-1]] if reached else []
    if not rest:
        return
    mean = f"{np.mean(as_good):.0%}" if as_good else "-"
    print(f"{data:10} {model:8} {len(rest):4} {min(below):5.0%} to {max(below):3.0%}", end=" ")
    print(f"{best_below:10} {sum(steps) / sum(rest):12.0%} {mean:>8} ({len(as_good)})")


if __name__ == "__main__":
    main()
