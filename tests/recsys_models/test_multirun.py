"""Hydra sweeps: jobs one after another or side by side, none of which disturbs another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recsys_models import train

ROOT = Path(__file__).parents[2]
JOBS = ("seed=0,1", "tuner=none,deopt", "trainer.max_epochs=1", "search=fast")


@pytest.fixture
def sweep(tmp_path, rating_files):
    """Runs a sweep in a new process and returns it with the folder that it wrote to."""
    launcher = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_", "PL_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(launcher)}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    data = ("data=filmtrust", f"data.path={rating_files['filmtrust']}")

    def run(name, *overrides):
        command = [sys.executable, "-m", "recsys_models.train", "-m", *data, *overrides]
        done = subprocess.run(
            [*command, f"hydra.sweep.dir={tmp_path / name}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        return done, tmp_path / name

    return run


def results(folder):
    found = {
        path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/result.json")
    }
    kept = ("tuner", "seed", "val", "test", "schedule", "probe_steps")
    return {job: {key: result[key] for key in kept} for job, result in found.items()}


def test_a_job_that_fails_leaves_the_others(tmp_path, rating_files, monkeypatch, capsys):
    data = ("data=filmtrust", f"data.path={rating_files['filmtrust']}", "trainer.max_epochs=1")
    folder = tmp_path / "sweep"
    arguments = ["recsys-train", "-m", *data, "+model.dim=8,0,16", f"hydra.sweep.dir={folder}"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 1
    assert "dim must be at least 1; got 0" in capsys.readouterr().err
    assert set(results(folder)) == {"0", "2"}


def test_jobs_side_by_side_give_what_they_give_one_after_another(sweep):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")  # the extra "parallel"
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done, parallel = sweep("parallel", *JOBS, *joblib)
    assert done.returncode == 0, done.stderr
    done, one_by_one = sweep("one_by_one", *JOBS)
    assert done.returncode == 0, done.stderr
    assert results(parallel) == results(one_by_one)
    assert len(results(parallel)) == 4
    done, broken = sweep("broken", "trainer.max_epochs=1", "+model.dim=8,0,16,4", *joblib)
    assert done.returncode == 1
    assert set(results(broken)) == {"0", "2", "3"}
