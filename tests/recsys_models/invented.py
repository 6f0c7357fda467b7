"""A comparison whose runs are invented: every number is known, and none takes time."""

import numpy as np

from recsys_models.comparison.cells import plan
from recsys_models.comparison.frame import Frame
from recsys_models.costs import Row
from recsys_models.report import Result, write_json

TUNERS = ["grid", "deopt", "random"]
GAIN = {"grid": 0.0, "deopt": 0.02, "random": -0.01}
FRAME = Frame("A comparison", ["ndcg@10", "recall@10"], "grid")


def cells(folder, seeds=(0, 1), datasets=("filmtrust", "ml_1m")):
    return plan(
        folder,
        datasets,
        ["bpr_mf", "neumf"],
        TUNERS,
        seeds,
        {"random": ["tuner=random", "search=fast"]},
        {name: ["trainer.max_epochs=1"] for name in datasets},
    )


def invented(cell, ndcg=None):
    """A result without a training."""
    base = 0.3 + GAIN[cell.tuner] + 0.001 * cell.seed + 0.05 * (cell.model == "neumf")
    metrics = {"ndcg@10": base if ndcg is None else ndcg, "recall@10": 2 * base}
    return Result(
        model=cell.model,
        data=cell.data,
        tuner=cell.tuner,
        seed=cell.seed,
        epochs=2,
        train_steps=100,
        probe_steps=900,
        evaluations=12,
        schedule=[],
        val=metrics,
        test=metrics,
        reference={"MostPop": {"ndcg@10": 0.2, "recall@10": 0.1}},
        train_seconds=4.0,
        train_cpu_seconds=3.0,
        curve=[Row(10, 1, 1.0, 0.1, 0.75), Row(20, 2, 2.0, 0.2, 1.5)],
        versions={"python": "3"},
    )


def pretend(cell):
    """Stands for the process that runs a cell."""
    write_json(invented(cell), cell.folder / "result.json")
    users = np.random.default_rng(cell.seed).random(200)
    gain = np.full(200, GAIN[cell.tuner]) * (np.arange(200) % 2)
    np.savez(cell.folder / "per_user.npz", **{"ndcg@10": users + gain})
    return 0
