"""Tuners at the cost of one of them."""

from dataclasses import replace

import pytest

from recsys_models.comparison.budget import equal_cost, time_to_match
from recsys_models.comparison.cells import plan, run_missing
from recsys_models.comparison.results import Results
from recsys_models.costs import Row
from recsys_models.report import write_json
from tests.recsys_models.invented import invented

CURVES = {  # CPU seconds -> best value; deopt is done after 3 seconds
    "deopt": {1.0: 0.1, 2.0: 0.3},
    "grid": {1.0: 0.1, 3.0: 0.2, 3.1: 0.9},
    "random": {2.5: 0.3},
    "optuna": {4.0: 0.8},
    "lambda_opt_adam": {1.0: 0.9},
}


def results(folder, curves, seeds=(0,), sign=1):
    def pretend(cell):
        rows = enumerate(curves[cell.tuner].items())
        curve = [Row(k, k, 0.0, sign * value, seconds) for k, (seconds, value) in rows]
        run = replace(invented(replace(cell, tuner="grid")), tuner=cell.tuner, curve=curve)
        write_json(run, cell.folder / "result.json")
        return 0

    cells = plan(folder, ["filmtrust"], ["bpr_mf"], list(curves), seeds, {}, {"filmtrust": []})
    run_missing(cells, pretend, 1, lambda text: None)
    return Results(cells, ["ndcg@10"], "grid")


@pytest.mark.parametrize("sign", [1, -1])
def test_values_at_the_cost_of_deopt_and_their_ranks(sign, tmp_path):
    table = equal_cost(results(tmp_path, CURVES, sign=sign))
    assert table.header == ["tuner", "filmtrust bpr_mf", "mean rank"]
    assert {row[0]: row[1:] for row in table.rows} == {
        "deopt": [f"{sign * 0.3:.4f}", "1.5"],
        "grid": [f"{sign * 0.2:.4f}", "3.0"],
        "random": [f"{sign * 0.3:.4f}", "1.5"],
    }


def test_a_cost_is_that_of_the_same_seed(tmp_path):
    found = results(tmp_path, {"deopt": {1.0: 0.5}, "grid": {1.0: 0.1, 2.0: 0.4}}, seeds=(0, 1))
    for cell, run in found.of.items():
        if cell.tuner == "deopt":
            found.of[cell] = replace(run, train_cpu_seconds=1.0 + cell.seed)
    assert ["grid", "0.2500", "2.0"] in equal_cost(found).rows


def test_without_deopt_there_is_no_such_table(tmp_path):
    assert equal_cost(results(tmp_path, {"grid": {1.0: 0.1}})).rows == []


def test_costs_that_are_not_known_leave_a_run_out(tmp_path):
    curves = {"deopt": {1.0: 0.5}, "grid": {None: 0.1}}
    assert [row[0] for row in equal_cost(results(tmp_path, curves)).rows] == ["deopt"]


@pytest.mark.parametrize("sign", [1, -1])
def test_steps_until_as_good_as_the_baseline(sign, tmp_path):
    """A curve's k-th row stands for k steps, so that the grid takes four in all."""
    curves = {
        "grid": dict(enumerate([0.1, 0.1, 0.2, 0.3, 0.3])),
        "deopt": dict(enumerate([0.1, 0.3, 0.4])),
        "random": dict(enumerate([0.1, 0.2, 0.29])),
        "lambda_opt_adam": dict(enumerate([0.1, 0.9])),
    }
    found = results(tmp_path, curves, seeds=(0, 1), sign=sign)
    table = time_to_match(found)
    assert table.header == ["tuner", "filmtrust bpr_mf"]
    assert table.rows == [["deopt", "25% (2 of 2)"], ["random", "– (0 of 2)"]]

    slow = next(c for c in found.of if c.tuner == "deopt" and c.seed == 1)
    found.of[slow] = replace(found.of[slow], curve=[Row(3, 0, 0.0, sign * 0.3, 0.0)])
    assert time_to_match(found).rows[0] == ["deopt", "50% (2 of 2)"]

    alone = next(c for c in found.of if c.tuner == "grid" and c.seed == 1)
    del found.of[alone]
    assert time_to_match(found).rows[0] == ["deopt", "25% (1 of 1)"]


def test_without_the_baseline_there_is_nothing_to_match(tmp_path):
    assert time_to_match(results(tmp_path, {"deopt": {1.0: 0.5}})).rows == []
