"""Ctrl-C ends all that was begun, and nothing begins after it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = "data.synthetic={num_users: 60, num_items: 40, num_interactions: 900}"
LONG = ("trainer.max_epochs=100000", "callbacks.early_stopping.patience=100000")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to a group")


def interrupt(command, begun, folder):
    """Runs a command, and presses Ctrl-C as soon as a file is there; its status and its words."""
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while process.poll() is None and not list(folder.glob(begun)):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, (folder / "said.txt").read_text()


def test_a_comparison_begins_no_other_cell(tmp_path):
    command = ["recsys_models.compare", "tuners=[none]", "seeds=[0,1,2]", "output_dir=out"]
    command += [f"overrides={[f'+{SMALL}', *LONG]}"]
    status, said = interrupt(command, "out/**/last.ckpt", tmp_path)
    assert status == 130
    assert said.endswith("interrupted; the same command again runs what is missing\n")
    assert [path.parent.name for path in tmp_path.glob("out/**/log.txt")] == ["seed0"]


def test_a_sweep_in_several_processes_begins_no_other_setting(tmp_path):
    command = ["recsys_models.train", "tuner=grid", "tuner.sweep.n_jobs=2", f"+{SMALL}", *LONG]
    status, _ = interrupt([*command, "hydra.run.dir=out"], "out/**/last.ckpt", tmp_path)
    assert status != 0
    assert len(list(tmp_path.glob("out/points/*"))) <= 2
