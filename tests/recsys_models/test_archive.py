"""Runs that are kept in small files give the same page again."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from recsys_models.compare import add_runs
from recsys_models.comparison.archive import read_archive, write_archive
from recsys_models.comparison.cells import run_missing
from recsys_models.comparison.page import write_report
from recsys_models.comparison.results import Results
from recsys_models.report import Result, from_json
from tests.recsys_models.invented import FRAME, cells, invented, pretend

REPORT = ("report.md", "report.html", "cells.csv")
OTHER_FRAME = replace(FRAME, withdrawn=["eachmovie"], command="recsys-compare fast=true")


@pytest.fixture
def collected(tmp_path):
    """A comparison with a crash and a cell that was never run, and its archive."""
    planned = cells(tmp_path / "runs")

    def crashing(cell):
        if cell.tuner == "random" and cell.seed == 1:
            (cell.folder / "log.txt").write_text("error: out of luck\n")
            return 1
        return pretend(cell)

    run_missing(planned[:-1], crashing, 1, lambda text: None)
    results = Results(planned, FRAME.metrics, FRAME.baseline)
    write_archive(tmp_path / "kept", OTHER_FRAME, results)
    return results


def test_the_page_is_the_same_to_the_last_digit(tmp_path, collected):
    frame, again = read_archive(tmp_path / "kept", tmp_path / "scratch")
    assert frame == OTHER_FRAME
    results = Results(again, frame.metrics, frame.baseline)
    write_report(tmp_path / "before", OTHER_FRAME, collected)
    write_report(tmp_path / "after", frame, results)
    for name in REPORT:
        before, after = (tmp_path / side / name for side in ("before", "after"))
        assert before.read_text() == after.read_text()
    text = (tmp_path / "after" / "report.md").read_text()
    assert "random seed 1: no result; it ended with: error: out of luck" in text
    assert "| ml_1m | neumf | deopt | +0.0100 | 100 |" in text


def test_the_files_can_be_read_without_this_package(tmp_path, collected):
    kept = json.loads((tmp_path / "kept" / "runs.json").read_text())
    assert kept["frame"]["metrics"] == FRAME.metrics
    found = [run["result"]["test"]["ndcg@10"] for run in kept["runs"] if run["result"]]
    assert found == [result.test["ndcg@10"] for result in collected.of.values()]
    cell = next(iter(collected.of))
    values = np.load(tmp_path / "kept" / "per_user.npz")[
        f"{cell.data}/{cell.model}/{cell.tuner}/{cell.seed}"
    ]
    assert values / 1e4 == pytest.approx(cell.per_user("ndcg@10"), abs=5e-5)


def test_long_schedules_and_curves_are_kept_where_they_change(tmp_path):
    (cell,) = cells(tmp_path, seeds=[0], datasets=["ml_1m"])[:1]
    rows = [{"epoch": k, "lr": {"a": 1 / 3 if k < 40 else 0.1}} for k in range(50)]
    curve = [(k, k, float(k), 0.1 if k < 25 else 0.2, 0.5 * k) for k in range(50)]
    long = replace(invented(cell), schedule=rows, curve=curve)
    results = Results([cell], FRAME.metrics, FRAME.baseline)
    results.of[cell] = from_json(vars(long))
    write_archive(tmp_path / "kept", FRAME, results)
    plain = json.loads((tmp_path / "kept" / "runs.json").read_text())["runs"][0]["result"]
    assert [row["epoch"] for row in plain["schedule"]] == [0, 40]
    assert plain["schedule"][0]["lr"]["a"] == 0.3333
    assert [row[0] for row in plain["curve"]] == [0, 25, 49]
    assert Result(**plain).test == long.test


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("per_user.npz", lambda whole: b"", "per_user.npz is damaged"),
        ("per_user.npz", lambda whole: whole[:300], "per_user.npz is damaged"),
        ("per_user.npz", lambda whole: whole[:500] + bytes(9) + whole[509:], "npz is damaged"),
        ("runs.json", lambda whole: whole[:500], "runs.json is damaged"),
        ("runs.json", lambda whole: b"[]", "runs.json holds no runs as this version writes them"),
        ("runs.json", lambda whole: whole.replace(b'"title"', b'"new"'), "holds no runs as this"),
        ("runs.json", lambda whole: whole.replace(b'"epochs"', b'"new"'), "holds no runs as this"),
    ],
)
def test_what_is_damaged_is_named(name, damage, message, tmp_path, collected):
    file = tmp_path / "kept" / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=message):
        read_archive(tmp_path / "kept", tmp_path / "scratch")


def test_metrics_per_user_of_a_run_that_are_damaged_are_named(tmp_path):
    cell = cells(tmp_path)[0]
    cell.folder.mkdir(parents=True)
    (cell.folder / "per_user.npz").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"grid/seed0/per_user\.npz is damaged"):
        cell.per_user("ndcg@10")


def test_an_archive_that_cannot_be_written_whole_stays_as_it_was(tmp_path, collected):
    before = {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()}
    (tmp_path / "kept" / "runs.part").mkdir()  # as where the disk is full
    with pytest.raises(OSError, match=r"runs\.part"):
        write_archive(tmp_path / "kept", FRAME, collected)
    assert {name: (tmp_path / "kept" / name).read_bytes() for name in before} == before


@pytest.mark.skipif(sys.platform == "win32", reason="has no such locks")
def test_runs_that_two_processes_add_at_once_are_all_there(tmp_path):
    planned = cells(tmp_path / "runs")
    run_missing(planned, pretend, 1, lambda text: None)
    kept = tmp_path / "kept"
    write_archive(kept, FRAME, Results(planned[-1:], FRAME.metrics, FRAME.baseline))
    with ThreadPoolExecutor(2) as pool:  # each call opens the folder anew, as a process does
        for part in range(4):
            pool.submit(add_runs, planned[3 * part : 3 * part + 3], kept, tmp_path / str(part))
    _, found = read_archive(kept, tmp_path / "scratch")
    assert sorted(cell.name for cell in found) == sorted(
        cell.name for cell in [*planned[:12], planned[-1]]
    )


def test_it_is_small(tmp_path):
    """Thirty runs on MovieLens-1M's number of users take less than half a megabyte."""
    planned = [replace(cell, data="ml_1m") for cell in cells(tmp_path, seeds=range(10))[::4]]

    def large(cell):
        pretend(cell)
        ranks = np.random.default_rng(cell.seed).random((6040, 10)) < 0.2
        discounts = 1 / np.log2(np.arange(10) + 2)
        values = (ranks * discounts).sum(axis=1) / discounts.sum()
        np.savez(cell.folder / "per_user.npz", **{"ndcg@10": values, "recall@10": values})
        return 0

    run_missing(planned, large, 1, lambda text: None)
    write_archive(tmp_path / "kept", FRAME, Results(planned, FRAME.metrics, FRAME.baseline))
    size = sum(path.stat().st_size for path in (tmp_path / "kept").iterdir())
    assert len(planned) == 30
    assert size < 500_000
