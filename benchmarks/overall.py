"""Is DE-Opt better than the grid over all models and data sets? Wilcoxon's test over all tables.

Run from the root of the checkout, with the folders of finished comparisons::

    python benchmarks/overall.py docs/results/table3 docs/results/table4

A pair is a data set, a model and a metric of its table, on the test set: the mean difference over
the seeds that both tuners have. Two metrics of a model tend to agree, so NDCG is also tested alone.
Trains nothing. Writes benchmarks/results/overall.json.
"""

import argparse
import json
import tempfile
from pathlib import Path

from recsys_models.comparison.archive import read_archive
from recsys_models.comparison.results import Results
from recsys_models.comparison.statistics import one_sided_signed_rank

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description="Test a tuner against another over all tables.")
    parser.add_argument("folders", nargs="+", type=Path, help="with runs.json and per_user.npz")
    parser.add_argument("--tuner", default="deopt")
    parser.add_argument("--baseline", default="grid")
    arguments = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, folder in enumerate(arguments.folders):
            frame, cells = read_archive(folder, Path(scratch) / str(number))
            results = Results(cells, frame.metrics, arguments.baseline)
            pairs += results.pairs(arguments.tuner, results.models)
    p_value = one_sided_signed_rank([pair.difference for pair in pairs])
    print(f"{'data':10} {'model':8} {'metric':10} {'seeds':>5} {'difference':>11}")
    for pair in pairs:
        print(f"{pair.data:10} {pair.model:8} {pair.metric:10}", end=" ")
        print(f"{pair.seeds:5} {pair.difference:+11.4f}")
    print(f"{arguments.tuner} above {arguments.baseline}: p = {p_value:.2g}, n = {len(pairs)}")
    ndcg = [pair.difference for pair in pairs if pair.metric.startswith("ndcg")]
    if (of_ndcg := one_sided_signed_rank(ndcg)) is not None:
        print(f"by NDCG alone: p = {of_ndcg:.2g}, n = {len(ndcg)}")
    plain = {
        "tuner": arguments.tuner,
        "baseline": arguments.baseline,
        "p_value": p_value,
        "pairs": [vars(pair) for pair in pairs],
    }
    (RESULTS / "overall.json").write_text(json.dumps(plain, indent=2) + "\n")


if __name__ == "__main__":
    main()
