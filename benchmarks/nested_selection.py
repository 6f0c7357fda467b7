r"""Compare settings by test NDCG@10 of inner splits, of which the real test set is no part.

Training and validation pairs of the configured split are put together and split anew, by the same
ratios, with several seeds. In each inner split every setting trains with early stopping on inner
validation, and inner test tells how far it gets above MostPop. Run from the root of the checkout,
with the overrides of ``recsys-train`` that all settings share, and ``--try`` for what each adds::

    python benchmarks/nested_selection.py experiment=filmtrust/neumf data.path=ratings.txt \
        --try "" --try "optimizer.lr=3e-4 callbacks.early_stopping.patience=60"

Prints one row per setting: the gap of each split, in units of 1e-4, their mean and its standard
error, and each split's chosen epoch. The error is too small, because the splits share their pairs.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from recsys_models.baselines import MostPop
from recsys_models.data import RecsysDataModule
from recsys_models.data.splits import random_split
from recsys_models.metrics import evaluate
from recsys_models.models import RecommenderModule
from recsys_models.train import config_dir
from recsys_models.training import Training, load_weights, quieten


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare settings without the test set.")
    parser.add_argument("shared", nargs="*", help="overrides of all settings")
    parser.add_argument("--try", dest="settings", action="append", help="overrides of one setting")
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2, 3], help="their seeds")
    args = parser.parse_args()
    quieten()
    print("| setting | gap to MostPop by split, 1e-4 | mean | standard error | epochs |")
    print("|---|---|---|---|---|")
    for setting in args.settings or [""]:
        runs = [inner_run([*args.shared, *setting.split()], seed) for seed in args.splits]
        gaps = [1e4 * gap for gap, _ in runs]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        each, epochs = " ".join(f"{gap:.0f}" for gap in gaps), [epoch for _, epoch in runs]
        row = f"{each} | {statistics.mean(gaps):.1f} | {error:.1f} | {epochs}"
        print(f"| `{setting}` | {row} |", flush=True)


def inner_run(overrides: Sequence[str], seed: int) -> tuple[float, int]:
    """Train in one inner split, whose seed is the run's too: gap to MostPop, and the best epoch."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = composed([*overrides, f"output_dir={folder}", "logger=none", f"seed={seed}"])
        data = inner_data(cfg, seed)
        training = Training(cfg, data)
        training.fit()
        load_weights(training.model, training.best_weights)
        values = [row.value for row in training.costs.rows]
    assert isinstance(training.model, RecommenderModule)
    training.model.eval().cpu()
    batches = list(data.test_dataloader())
    with torch.no_grad():
        ours = evaluate(training.model.scorer(), batches)["ndcg@10"]
    popular = evaluate(MostPop(data.train).score_users, batches)["ndcg@10"]
    best = max if cfg.mode == "max" else min
    return float(ours - popular), 1 + values.index(best(values))


def composed(overrides: list[str]) -> DictConfig:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose("train", overrides)


def inner_data(cfg: DictConfig, seed: int) -> RecsysDataModule:
    """The data with what is known before test split anew; the test pairs are dropped."""
    data: RecsysDataModule = instantiate(cfg.data)
    data.setup()
    known = data.train.union(data.validation)
    data.train, data.validation, data.test = random_split(known, data.ratios, seed)
    return data


if __name__ == "__main__":
    main()
