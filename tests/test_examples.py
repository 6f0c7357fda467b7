"""Every example runs as its first lines say, with fewer epochs."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(example: str, *arguments: str, cwd: Path) -> str:
    """Standard output of an example, run in a process of its own."""
    launcher = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_", "PL_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(launcher)}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def columns(folder: Path) -> set[str]:
    """Names of the logged metrics below a folder, which holds one metrics.csv."""
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return set(next(csv.reader(file)))


def test_existing_trainer_prints_what_each_epoch_was_trained_with(tmp_path: Path) -> None:
    lines = run("existing_trainer.py", "--max_epochs=2", cwd=tmp_path).splitlines()
    first, second = (line for line in lines if line.startswith("epoch "))
    assert first.count("lr 1.0e-03, weight decay 0.0e+00") == 2
    for layer in ("hidden: lr ", "head: lr "):
        assert 1e-6 <= float(second.partition(layer)[2].partition(",")[0]) <= 1e-2


def test_lightning_cli_takes_the_callback_by_name(tmp_path: Path) -> None:
    options = (
        "--trainer.max_epochs=1",
        "--trainer.logger=CSVLogger",
        "--trainer.logger.save_dir=.",
    )
    callback = "--trainer.callbacks+=deopt_lightning.DEOptCallback"
    monitor = "--trainer.callbacks.monitor=val_loss"
    run("lightning_cli.py", "fit", *options, callback, monitor, cwd=tmp_path)
    layers = ("encoder.0", "encoder.2", "decoder.0", "decoder.2")
    assert {f"deopt/lr/{layer}" for layer in layers} < columns(tmp_path)


def test_hydra_app_sweeps_over_its_callbacks(tmp_path: Path) -> None:
    run("hydra_app/app.py", "-m", "callbacks=none,deopt", "trainer.max_epochs=1", cwd=tmp_path)
    without, with_callback = sorted(tmp_path.glob("multirun/*/*/[01]"))
    assert "val_loss" in columns(without) & columns(with_callback)
    assert not any(name.startswith("deopt/") for name in columns(without))
    assert "deopt/lr/layers.0" in columns(with_callback)


def test_hydra_app_returns_the_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "hydra_app"))
    import app

    overrides = ["callbacks=deopt", "trainer.max_epochs=1", "trainer.logger=false"]
    with initialize_config_dir(str(EXAMPLES / "hydra_app" / "conf"), version_base="1.3"):
        cfg = compose("config", overrides)
    assert 0 < app.main(cfg) < 10


def test_a_classifier_is_compared_by_configuration_alone(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "recsys_models.compare", "--config-dir", "conf"]
        + ["datasets=[digits]", "models=[convnet]", "seeds=[0]", "tuners=[none,grid,deopt]"]
        + ["metrics=[accuracy,log_likelihood]", "overrides=['monitor=val/log_likelihood']"]
        + ["fast=true", f"output_dir='{out}'"],
        cwd=EXAMPLES / "classifier",
        env=os.environ | {"PYTHONPATH": f".{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in (out / "report.md").read_text().splitlines()]
    first = next(row for row in rows if row[0] == "| model")
    assert first[2:4] == ["digits accuracy", "digits log_likelihood |"]
    assert [row[1] for row in rows if row[0] == "| convnet"][:3] == ["none", "grid", "deopt"]
    assert not any(row[0] == "| –" for row in rows)  # popularity means nothing here


def test_examples_stay_short() -> None:
    programs = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py")}
    assert programs == {
        "existing_trainer.py",
        "lightning_cli.py",
        "hydra_app/app.py",
        "classifier/digits.py",
    }
    assert all(len((EXAMPLES / name).read_text().splitlines()) < 80 for name in programs)
