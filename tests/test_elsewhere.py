"""The tasks of benchmarks/elsewhere train by configuration alone, in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

ROOT = Path(__file__).parents[1]
ELSEWHERE = ROOT / "benchmarks" / "elsewhere"
CLASSES = {"cut": 5, "color": 7, "clarity": 8}


def diamonds(folder: Path) -> list[str]:
    """Overrides for invented diamonds, whose price grows with their weight."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.2, 3, 300)
    columns = {name: weights for name in ("carat", "depth", "table", "x", "y", "z")}
    columns |= {name: [str(i % size) for i in range(300)] for name, size in CLASSES.items()}
    columns["price"] = np.exp(weights) * 1000
    pl.DataFrame(columns).write_csv(folder / "diamonds.csv")
    sizes = ["+data.num_train=200", "+data.num_val=50"]
    return ["data=diamonds", f"data.path={folder / 'diamonds.csv'}", *sizes]


def source_text(_: Path) -> list[str]:
    """Overrides for little text."""
    sizes = ["+data.num_train=6000", "+data.num_val=2000", "+data.num_test=2000"]
    return ["data=source_text", *sizes]


@pytest.mark.parametrize(
    ("data", "model", "metric", "least"),
    [(diamonds, "price_network", "r2", 0.5), (source_text, "language_model", "log_likelihood", -4)],
)
def test_it_trains(data, model: str, metric: str, least: float, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "recsys_models.train", "--config-dir", "conf", *data(tmp_path)]
        + [f"model={model}", f"monitor=val/{metric}", "tuner=deopt", "trainer.max_epochs=4"]
        + [f"hydra.run.dir={out}"],
        cwd=ELSEWHERE,
        env=os.environ | {"PYTHONPATH": f".{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "slower loops" not in done.stderr  # training_loss is what training_step returns
    result = json.loads((out / "result.json").read_text())
    assert result["test"][metric] > least
    assert result["probe_steps"] > 0
