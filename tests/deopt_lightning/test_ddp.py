"""Two real processes: all decisions and weights are equal, and a dry run leaves no trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys, torch
import lightning as L
from pathlib import Path
from deopt_lightning import DEOptCallback
from tests.tiny import SilentDryRun, TinyModel, fit

kind, folder = sys.argv[1], Path(sys.argv[2])
torch.set_num_threads(1)
callbacks = {
    "plain": [],
    "dry": [SilentDryRun()],
    "search": [DEOptCallback("val_loss", population_size=4, probe_steps=3)],
    "population": [DEOptCallback("val_loss", population_size=4, carry="population")],
}[kind]
model, trainer = fit(
    folder / kind, callbacks, max_epochs=2, devices=2, strategy="ddp",
    use_distributed_sampler=True,
)
history = callbacks[0].history if callbacks else []
torch.save(
    {
        "weights": model.state_dict(),
        "perf": [r.get("perf") or r["target_perf"] + r["trial_perf"] for r in history],
        "schedule": callbacks[0].schedule if callbacks else [],
    },
    folder / f"{kind}-{trainer.global_rank}.pt",
)
"""

KINDS = ("plain", "dry", "search", "population")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("ddp")
    script = folder / "run.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    for kind in KINDS:
        done = subprocess.run(
            [sys.executable, str(script), kind, str(folder)],
            cwd=root,
            env={**_environment(), "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return {
        f"{kind}-{rank}": torch.load(folder / f"{kind}-{rank}.pt", weights_only=True)
        for kind in KINDS
        for rank in (0, 1)
    }


def _environment() -> dict[str, str]:
    import os

    return {k: v for k, v in os.environ.items() if not k.startswith(("PL_", "LOCAL_RANK", "NODE"))}


def _parameters(result: dict) -> list[torch.Tensor]:
    """Buffers of batch norm and metrics belong to each process; weights must agree."""
    return [v for k, v in result["weights"].items() if k.endswith(("weight", "bias"))]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_processes_agree(results: dict[str, dict], kind: str) -> None:
    left, right = results[f"{kind}-0"], results[f"{kind}-1"]
    assert len(left["perf"]) == 2
    assert left["perf"] == right["perf"]
    assert left["schedule"] == right["schedule"]
    assert all(map(torch.equal, _parameters(left), _parameters(right)))


def test_dry_run_leaves_no_trace(results: dict[str, dict]) -> None:
    for rank in (0, 1):
        plain, dry = results[f"plain-{rank}"]["weights"], results[f"dry-{rank}"]["weights"]
        assert all(torch.equal(plain[name], dry[name]) for name in plain)


@pytest.mark.parametrize("kind", KINDS[2:])
def test_search_changes_the_run(kind: str, results: dict[str, dict]) -> None:
    plain, search = _parameters(results["plain-0"]), _parameters(results[f"{kind}-0"])
    assert not all(map(torch.equal, plain, search))
