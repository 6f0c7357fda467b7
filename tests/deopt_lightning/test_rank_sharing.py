"""share_over_ranks: processes that train candidates apart come to what they do together."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deopt_lightning.rank_sharing import share_out
from tests.tiny import same_state

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, os, signal, sys, torch, warnings
import lightning as L
from functools import partial
from pathlib import Path
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader
from deopt_lightning import DEOptCallback, replay
from tests.deopt_lightning.test_direct_steps import Clamps, Lies, NoTrainingLoss, Pure
from tests.tiny import fit, tiny_data

torch.set_num_threads(1)
folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])


class Normed(Pure):
    def __init__(self, *args):
        super().__init__(*args)
        self.net.insert(1, nn.BatchNorm1d(8))


class Dies(Pure):
    def training_loss(self, batch):
        epoch, alone = self.trainer.current_epoch, "log" in vars(self)
        if epoch == 2 and alone and self.trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_loss(batch)


class Fails(Pure):
    def training_loss(self, batch):
        if self.trainer.current_epoch == 1 and "log" in vars(self) and self.trainer.global_rank:
            raise ArithmeticError("out of luck")
        return super().training_loss(batch)


class Diverges(Pure):
    def training_loss(self, batch):
        lr = self.trainer.optimizers[0].param_groups[-1]["lr"]
        return super().training_loss(batch) * (float("nan") if lr > 0.012 else 1.0)


OPTIMIZERS = {
    "adam": None,
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
}
classes = [Pure, Clamps, Lies, NoTrainingLoss, Normed, Dies, Fails, Diverges]
CLASSES = {kind.__name__: kind for kind in classes}


def run(name, model="Pure", optimizer="adam", devices=2, callback=None, **options):
    replay.KEPT_BYTES = options.pop("kept", 2**31)
    if "start" in options:
        options["ckpt_path"] = str(folder / options.pop("start"))
    kept = {"population_size": 5, "share_over_ranks": True, "carry": "population"}
    search = DEOptCallback("val_loss", **{**kept, **(callback or {})})
    checkpoint = ModelCheckpoint(folder / name, save_last=True, filename="best-{epoch}")
    module, trainer = fit(
        folder / name, [search, checkpoint], model=partial(CLASSES[model], OPTIMIZERS[optimizer]),
        devices=devices, strategy="ddp" if devices > 1 else "auto", use_distributed_sampler=True,
        train=DataLoader(tiny_data(), batch_size=8, shuffle=True),
        **{"max_epochs": 4, **options},
    )
    return {
        "weights": module.state_dict(),
        "history": [{**row, "seconds": 0} for row in search.history],
        "schedule": search.schedule,
        "bytes": search.member_bytes,
    }, trainer.global_rank


said, show = [], warnings.showwarning
warnings.simplefilter("always")
warnings.showwarning = lambda message, *rest: (said.append(str(message)), show(message, *rest))
for name, case in cases.items():
    said.clear()
    result, rank = run(name, **case)
    result["said"] = [text for text in said if "DEOptCallback" in text]
    torch.save(result, folder / f"{name}-{rank}.pt")
"""


def launch(folder: Path, cases: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Runs cases one after the other in one pair of processes."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "run.py"
    script.write_text(SCRIPT)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PL_", "LOCAL_RANK", "NODE"))}
    return subprocess.run(
        [sys.executable, str(script), str(folder), json.dumps(cases)],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def run(folder: Path, cases: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """For each case what each process has found."""
    done = launch(folder, cases)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: [
            torch.load(folder / f"{name}-{rank}.pt", weights_only=True)
            for rank in range(case.get("devices", 2))
        ]
        for name, case in cases.items()
    }


def close(one: Any, other: Any) -> bool:
    """Whether plain data is equal but for rounding."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[k], other[k]) for k in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4)
    return bool(one == other)


EQUAL: dict[str, dict[str, Any]] = {
    "members": {},
    "accumulate": {"optimizer": "momentum", "accumulate_grad_batches": 4},
    "clip": {"model": "Clamps", "gradient_clip_val": 0.1},
    "every second epoch": {"callback": {"every_n_epochs": 2}},
    "dry": {"callback": {"adopt": False}},
    "diverging": {"model": "Diverges"},
    "weights": {"callback": {"carry": "weights", "probe_steps": 3}},
    "hyperparameters": {"callback": {"carry": "hyperparameters", "probe_steps": 3}},
}
PARAMETERS = 6 * 8 + 8 + 8 + 1
SIZE = 4 * (3 * PARAMETERS + 4)  # bytes of weights, two averages, and a step count for each tensor
REFUSED = {
    "Lies": "Lies.training_loss(batch) does not train as training_step does",
    "NoTrainingLoss": "NoTrainingLoss has no method training_loss(batch)",
    "Normed": "training changes buffers of Normed",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    cases: dict[str, dict[str, Any]] = {}
    for name, case in EQUAL.items():
        own = case.get("callback", {})
        cases[name] = case
        cases[f"{name} together"] = {**case, "callback": {**own, "share_over_ranks": False}}
    cases |= {name: {"model": name, "max_epochs": 2} for name in REFUSED}
    cases["redrawn"] = {"kept": 0, "max_epochs": 2}
    cases["loops"] = {"callback": {"direct_steps": False}, "max_epochs": 2}
    cases["short"] = {"max_epochs": 2}
    cases["resumed"] = {"start": "short/last.ckpt"}
    return run(tmp_path_factory.mktemp("shared"), cases)


@pytest.mark.parametrize("name", EQUAL)
def test_shared_candidates_equal_data_parallel_ones(name: str, results: dict[str, Any]) -> None:
    apart, together = results[name], results[f"{name} together"]
    assert apart[0]["said"] == together[0]["said"] == []
    assert len(apart[0]["history"]) > 0
    assert close(apart[0]["history"], together[0]["history"])
    assert close(apart[0]["schedule"], together[0]["schedule"])
    torch.testing.assert_close(apart[0]["weights"], together[0]["weights"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", EQUAL)
def test_ranks_agree(name: str, results: dict[str, Any]) -> None:
    left, right = results[name]
    assert left["history"] == right["history"]
    assert left["schedule"] == right["schedule"]
    assert same_state(left["weights"], right["weights"])


def test_members_are_shared_out_in_memory(results: dict[str, Any]) -> None:
    """The leader and two trials have one state, the others of five and two beside them four."""
    assert [found["bytes"] for found in results["members together"]] == [5 * SIZE, 5 * SIZE]
    assert sum(found["bytes"] for found in results["members"]) < 2 * 5 * SIZE


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shared_is_trained_together_and_said_once(
    name: str, results: dict[str, Any]
) -> None:
    (said,) = (text for text in results[name][0]["said"] if "share_over_ranks" in text)
    assert f"trains its candidates data-parallel: {REFUSED[name]}" in said
    assert len(results[name][0]["history"]) == 2


def test_loops_are_not_shared_out(results: dict[str, Any]) -> None:
    (said,) = results["loops"][0]["said"]
    assert "data-parallel: direct_steps=False" in said


def test_batches_that_are_drawn_anew_are_not_shared_out(results: dict[str, Any]) -> None:
    (said,) = results["redrawn"][0]["said"]
    assert "data-parallel: a generation's batches are too many to be kept" in said
    rows = results["members together"][0]["history"]
    assert results["redrawn"][0]["history"] == results["redrawn"][1]["history"] == rows[:2]


def test_a_resumed_run_equals_the_unbroken_one(results: dict[str, Any]) -> None:
    for unbroken, resumed in zip(results["members"], results["resumed"], strict=True):
        assert resumed["history"] == unbroken["history"]
        assert same_state(resumed["weights"], unbroken["weights"])


def test_a_lost_process_ends_the_run_and_its_checkpoint_goes_on(tmp_path: Path) -> None:
    done = launch(tmp_path, {"run": {"model": "Dies"}})
    assert done.returncode != 0
    assert "process 0 has lost another process of this run" in done.stderr
    last = {"start": "run/last.ckpt"}
    pair = run(tmp_path, {"pair": last})["pair"]
    alone = run(tmp_path, {"alone": {**last, "devices": 1}})["alone"]
    assert [len(found[0]["history"]) for found in (pair, alone)] == [4, 4]
    assert pair[0]["history"][:2] == alone[0]["history"][:2]
    assert same_state(pair[0]["weights"], pair[1]["weights"])


def test_an_error_in_one_process_is_raised_in_all(tmp_path: Path) -> None:
    done = launch(tmp_path, {"run": {"model": "Fails"}})
    assert done.returncode != 0
    assert "DEOptCallback: process 1 failed: ArithmeticError: out of luck" in done.stderr


def test_members_go_where_their_state_is() -> None:
    assert share_out([1, 2, 3, 4], [None] * 5, 2) == {1: 0, 2: 1, 3: 0, 4: 1}
    assert share_out([0, 2, 3, 4], [None, None, 1, 0, None], 2) == {2: 1, 3: 0, 0: 0, 4: 1}
    assert share_out([0, 1, 2], [None, None, None], 8) == {0: 0, 1: 1, 2: 2}
