"""The paper's printed numbers stand beside ours, and only those that are known."""

from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir

from recsys_models import train
from recsys_models.compare import frame_of
from recsys_models.comparison.page import write_report
from recsys_models.comparison.printed import printed
from recsys_models.comparison.results import Results
from tests.recsys_models.invented import FRAME, cells, pretend


@pytest.fixture
def results(tmp_path):
    planned = cells(tmp_path)
    for cell in planned:
        cell.folder.mkdir(parents=True)
        (cell.folder / "cell.json").write_text(str(list(cell.overrides)).replace("'", '"'))
        pretend(cell)
    return Results(planned, FRAME.metrics, FRAME.baseline)


def frame(experiment):
    path = f"{train.config_dir()}/compare"
    with initialize_config_dir(path, version_base="1.3"):
        return frame_of(compose("compare", [f"experiment={experiment}"]), "")


def test_printed_numbers_stand_beside_the_row_that_is_named(results):
    values = [
        {"data": "ml_1m", "model": "neumf", "row": "A", "tuner": "deopt", "ndcg@10": 0.5},
        {"data": "ml_1m", "model": "any", "row": "B", "tuner": "MostPop", "recall@10": 0.25},
        {"data": "ml_1m", "model": "neumf", "row": "C", "ndcg@10": 0.75},
        {"data": "ml_1m", "model": "lrml", "row": "not run", "ndcg@10": 0.75},
        {"data": "eachmovie", "model": "neumf", "row": "gone", "ndcg@10": 0.75},
    ]
    told = {"source": "Somewhere.", "values": values, "why": ["For a reason."]}
    ours = replace(FRAME, printed=told)
    assert printed(results, ours).rows == [
        ["ml_1m", "neumf", "A", "deopt", "0.5000", "0.3705 ± 0.0007", "–", "0.7410 ± 0.0014"],
        ["ml_1m", "any", "B", "MostPop", "–", "0.2000", "0.2500", "0.1000"],
        ["ml_1m", "neumf", "C", "–", "0.7500", "–", "–", "–"],
    ]
    folder = results.cells[0].folder
    write_report(folder, ours, results)
    assert "- For a reason." in (folder / "report.md").read_text()
    assert "<li>For a reason.</li>" in (folder / "report.html").read_text()


@pytest.mark.parametrize(("experiment", "numbers"), [("table3", 2), ("table4", 3)])
def test_both_tables_say_what_the_paper_prints_and_why_ours_differ(experiment, numbers):
    told = frame(experiment)
    assert len(told.printed["values"]) == numbers
    assert len(told.printed["why"]) >= 5
    for row in told.printed["values"]:
        assert {"data", "model", "row"} < set(row)
        assert {name for name in row if "@" in name} == set(told.metrics)


def test_time_only_shows_nothing_but_costs(results, tmp_path):
    told = frame("eachmovie_time")
    assert told.time_only
    write_report(tmp_path / "page", told, results)
    text = (tmp_path / "page" / "report.md").read_text()
    assert "| bpr_mf | grid | 1,000 | 12 | 3 | 4 |" in text
    assert "0.3" not in text
    assert "data set withdrawn" in text
    assert (tmp_path / "page" / "report.html").read_text().count("<svg") == 1
