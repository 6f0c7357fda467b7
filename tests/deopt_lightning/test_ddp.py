"""Two real processes: all decisions and weights are equal, and a dry run leaves no trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.deopt_lightning.ddp_runs import KILLED, KINDS

ROOT = Path(__file__).parents[2]


def launch(folder: Path, *arguments: str, fails: bool = False) -> None:
    launcher = ("PL_", "LOCAL_RANK", "NODE", "WORLD_SIZE", "MASTER_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(launcher)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.deopt_lightning.ddp_runs", str(folder), *arguments],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr[-3000:]


def read(folder: Path, kind: str) -> list[dict]:
    return [torch.load(folder / f"{kind}-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("ddp")
    launch(folder)
    return {kind: read(folder, kind) for kind in KINDS}


def parameters(result: dict) -> list[torch.Tensor]:
    """Buffers of batch norm and metrics belong to each process; weights must agree."""
    return [v for k, v in result["weights"].items() if k.endswith(("weight", "bias"))]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_processes_agree(results: dict[str, list[dict]], kind: str) -> None:
    """Although val_loss is logged without sync_dist, and each process sees other data."""
    left, right = results[kind]
    assert len(left["perf"]) == 2
    assert left["perf"] == right["perf"]
    assert left["schedule"] == right["schedule"]
    assert all(map(torch.equal, parameters(left), parameters(right)))


def test_dry_run_leaves_no_trace(results: dict[str, list[dict]]) -> None:
    for plain, dry in zip(results["plain"], results["dry"], strict=True):
        assert all(
            torch.equal(plain["weights"][name], dry["weights"][name]) for name in plain["weights"]
        )


@pytest.mark.parametrize("kind", ["search", "population", "diverging"])
def test_search_changes_the_run(kind: str, results: dict[str, list[dict]]) -> None:
    plain, search = parameters(results["plain"][0]), parameters(results[kind][0])
    assert not all(map(torch.equal, plain, search))


def test_a_candidate_that_diverges_on_one_process_loses_on_all(
    results: dict[str, list[dict]],
) -> None:
    perf = [value for row in results["diverging"][0]["perf"] for value in row]
    assert None in perf
    assert any(value is not None for value in perf)


def test_a_population_that_collapses_goes_back_to_its_best_weights(
    results: dict[str, list[dict]],
) -> None:
    run = results["collapsing"][0]
    assert run["perf"][1] == [None] * 5  # four members, and one beside them
    assert all(torch.isfinite(weights).all() for weights in parameters(run))


def test_resumed_run_equals_the_unbroken_one(results: dict[str, list[dict]]) -> None:
    for unbroken, resumed in zip(results["broken"], results["resumed"], strict=True):
        assert all(map(torch.equal, parameters(unbroken), parameters(resumed)))
        assert (unbroken["perf"], unbroken["schedule"]) == (resumed["perf"], resumed["schedule"])


def test_spawned_processes_do_the_same(results: dict[str, list[dict]], tmp_path: Path) -> None:
    launch(tmp_path, "ddp_spawn", "search")
    for spawned, started in zip(read(tmp_path, "search"), results["search"], strict=True):
        assert spawned["perf"] == started["perf"]
        assert all(map(torch.equal, parameters(spawned), parameters(started)))


def test_a_run_whose_process_is_killed_goes_on_bit_for_bit(
    results: dict[str, list[dict]], tmp_path: Path
) -> None:
    killed, after_kill = KILLED
    launch(tmp_path, "ddp", killed, fails=True)
    assert not list(tmp_path.glob(f"{killed}-*.pt"))  # neither process came to its end
    launch(tmp_path, "ddp", after_kill)
    resumed = read(tmp_path, after_kill)
    for unbroken, again in zip(results["population"], resumed, strict=True):
        assert all(map(torch.equal, parameters(unbroken), parameters(again)))
        assert (unbroken["perf"], unbroken["schedule"]) == (again["perf"], again["schedule"])
