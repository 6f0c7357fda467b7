"""Ctrl-C or SIGTERM ends all that was begun, and nothing begins after it."""

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


def press_ctrl_c(process):
    os.killpg(process, signal.SIGINT)


def terminate(process):
    os.kill(process, signal.SIGTERM)


def interrupt(command, begun, folder, how=press_ctrl_c):
    """Ends a command when a file is there; its status, its words, whether a process is left."""
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # As at a terminal; what runs in the background of a shell ignores Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        while process.poll() is None and not list(folder.glob(begun)):
            time.sleep(0.05)
        how(process.pid)
        process.wait(60)
    finally:
        left = is_there(process.pid)
        if left:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, (folder / "said.txt").read_text(), left


def is_there(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("how", [press_ctrl_c, terminate])
def test_a_comparison_begins_no_other_cell(how, tmp_path):
    command = ["recsys_models.compare", "tuners=[none]", "seeds=[0,1,2]", "output_dir=out"]
    command += [f"overrides={[f'+{SMALL}', *LONG]}"]
    status, said, left = interrupt(command, "out/**/last.ckpt", tmp_path, how)
    assert not left
    assert status == 130
    assert said.endswith("interrupted; the same command again runs what is missing\n")
    assert [path.parent.name for path in tmp_path.glob("out/**/log.txt")] == ["seed0"]


def test_a_sweep_in_several_processes_begins_no_other_setting(tmp_path):
    command = ["recsys_models.train", "tuner=grid", "tuner.sweep.n_jobs=2", f"+{SMALL}", *LONG]
    status, *_ = interrupt([*command, "hydra.run.dir=out"], "out/**/last.ckpt", tmp_path)
    assert status != 0
    assert len(list(tmp_path.glob("out/points/*"))) <= 2


def test_a_run_that_outlives_its_comparison_keeps_its_folder(tmp_path):
    """Killed, a comparison cannot end what it has begun, and the same command starts it again."""
    cell = tmp_path / "out" / "cells" / "synthetic" / "bpr_mf" / "none" / "seed0"
    command = ["recsys_models.compare", "data=synthetic", "models=[bpr_mf]", "tuners=[none]"]
    command += ["seeds=[0]", "output_dir=out", f"overrides={[f'+{SMALL}', *LONG]}"]

    def kill(process):
        os.kill(process, signal.SIGKILL)
        again = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        said.append(again.stdout + again.stderr)

    said = []
    _, _, left = interrupt(command, "out/**/last.ckpt", tmp_path, kill)
    assert left
    assert f"seed 0: failed: error: another run is at work in {cell}. Wait until" in said[0]
