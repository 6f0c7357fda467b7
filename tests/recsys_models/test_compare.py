import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from recsys_models import compare, train
from recsys_models.comparison.archive import read_archive, write_archive
from recsys_models.comparison.cells import run_missing
from recsys_models.comparison.page import write_report
from recsys_models.comparison.results import Results
from recsys_models.comparison.statistics import holm, mean_and_sd, one_sided_signed_rank
from recsys_models.data import RecsysDataModule
from recsys_models.metrics import evaluate
from recsys_models.metrics.per_user import per_user
from recsys_models.models import BPRMF
from recsys_models.report import write_json
from tests.recsys_models.invented import FRAME, GAIN, cells, invented, pretend

ROOT = Path(__file__).parents[2]


def compose_compare(*overrides):
    path = str(Path(train.config_dir()) / "compare")
    with initialize_config_dir(path, version_base="1.3"):
        return compose("compare", list(overrides))


@pytest.fixture
def finished(tmp_path):
    planned = cells(tmp_path)
    run_missing(planned, pretend, 1, lambda text: None)
    return planned


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The console entry, run here in ``tmp_path``."""

    def recsys_compare(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare", *arguments])
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        compare.main()

    return recsys_compare


# --- cells ----------------------------------------------------------------------------------------


def test_every_combination_is_a_cell_with_a_folder_of_its_own(tmp_path):
    planned = cells(tmp_path)
    assert len({cell.folder for cell in planned}) == len(planned) == 2 * 2 * 2 * 3
    assert planned[2].overrides == (
        "data=filmtrust",
        "model=bpr_mf",
        "tuner=random",
        "search=fast",
        "trainer.max_epochs=1",
        "seed=0",
    )


def test_what_is_named_twice_is_one_cell(tmp_path):
    """Two jobs would train it in one folder at the same time."""
    assert cells(tmp_path, seeds=[0, 1, 0], datasets=("filmtrust",) * 2) == cells(
        tmp_path, datasets=["filmtrust"]
    )


def test_a_second_call_runs_only_what_is_missing(tmp_path, finished):
    finished[3].folder.joinpath("result.json").unlink()
    ran = []

    def noted(cell):
        ran.append(cell)
        return pretend(cell)

    assert run_missing(finished, noted, 2, lambda text: None) == []
    assert ran == [finished[3]]


def test_a_cell_that_crashes_leaves_the_others_and_is_listed(tmp_path):
    planned = cells(tmp_path, seeds=[0])

    def crashing(cell):
        if cell.tuner == "deopt":
            (cell.folder / "log.txt").write_text("...\nerror: out of luck\n")
            return 1
        return pretend(cell)

    said = []
    failed = run_missing(planned, crashing, 2, said.append)
    assert {cell.tuner for cell in failed} == {"deopt"}
    assert len(failed) == 4
    assert sum("failed: error: out of luck" in line for line in said) == 4
    results = Results(planned, ["ndcg@10"], "grid")
    assert results.missing == failed
    write_report(tmp_path, FRAME, results)
    assert (
        "filmtrust neumf deopt seed 0: no result; it ended with: error: out of luck"
        in (tmp_path / "report.md").read_text()
    )


def test_a_folder_of_other_settings_is_refused(tmp_path, finished):
    other = [replace(cell, overrides=(*cell.overrides, "threads=2")) for cell in finished]
    with pytest.raises(ValueError, match="Choose another output_dir"):
        run_missing(other, pretend, 1, lambda text: None)


@pytest.mark.parametrize("name", ["result.json", "cell.json"])
def test_a_damaged_file_is_named(name, finished):
    path = finished[0].folder / name
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        Results(finished, FRAME.metrics, FRAME.baseline)


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "printed"), [([], 0.0156), ([1], 0.0313), ([2], 0.0469), ([4], 0.1094)]
)
def test_signed_rank_gives_the_p_values_that_the_paper_prints_for_six_pairs(losses, printed):
    # The difference of rank r is r, negative where it is a loss; W- is the sum of lost ranks.
    differences = [-rank if rank in losses else rank for rank in range(1, 7)]
    assert one_sided_signed_rank(differences) == pytest.approx(printed, abs=5.1e-5)


def test_signed_rank_leaves_out_pairs_without_a_difference():
    assert one_sided_signed_rank([0.0, 1.0, 2.0, 3.0]) == one_sided_signed_rank([1.0, 2.0, 3.0])
    assert one_sided_signed_rank([0.0]) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_mean_and_deviation_over_seeds():
    assert mean_and_sd([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_sd([1.0]) == (1.0, None)


def test_pairs_are_data_sets_models_and_metrics(finished):
    results = Results(finished, ["ndcg@10", "recall@10"], "grid")
    assert results.signed_rank("deopt", results.models) == (pytest.approx(1 / 2**8), 8)
    assert results.signed_rank("random", ["neumf"]) == (1.0, 4)


def test_a_seed_that_one_side_lacks_says_nothing(finished):
    """A hard seed that the baseline alone has run would pass for a gain of the other."""
    first = finished[0].seed
    for cell in finished:
        if (cell.tuner, cell.seed) == ("grid", first):
            write_json(invented(cell, ndcg=0.0), cell.folder / "result.json")
    kept = [cell for cell in finished if (cell.tuner, cell.seed) != ("random", first)]
    assert Results(kept, ["ndcg@10"], "grid").signed_rank("random", ["neumf"]) == (1.0, 2)
    assert Results(kept, ["ndcg@10"], "grid").signed_rank("deopt", ["neumf"]) == (0.25, 2)


def test_users_are_paired_with_themselves_and_tests_are_corrected(finished):
    rows = Results(finished, ["recall@10", "ndcg@10"], "grid").per_user
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row.difference == pytest.approx(GAIN[row.tuner] / 2)
        assert row.users == 100  # every second one, whatever its own level
        assert row.p_value < row.corrected < 1e-10


@pytest.mark.parametrize("protocol", ["honest", "lambda_opt"])
def test_values_per_user_have_the_reported_mean(protocol):
    data = RecsysDataModule(
        synthetic={"num_users": 50, "num_items": 30, "num_interactions": 500},
        protocol=protocol,
        eval_batch_size=7,
    )
    data.setup()
    model = BPRMF(data.num_users, data.num_items, init_std=1.0).requires_grad_(False)
    top_k = [5, "map@3"]
    reported = evaluate(model.score_users, data.test_dataloader(), top_k)
    values = per_user(model.score_users, data.test_dataloader(), top_k)
    users, counts = np.unique(data.test.users, return_counts=True)
    weights = counts if protocol == "lambda_opt" else None
    for name, mean in reported.items():
        assert values[name].shape == users.shape
        assert np.average(values[name], weights=weights) == pytest.approx(mean)


# --- report ---------------------------------------------------------------------------------------


def test_the_report_has_a_row_for_everything(tmp_path, finished):
    results = Results(finished, ["ndcg@10", "recall@10"], "grid")
    frame = replace(FRAME, title="A <title>", withdrawn=["eachmovie"], command="recsys-compare x=1")
    write_report(tmp_path, frame, results)
    text = (tmp_path / "report.md").read_text()
    for start in ("| – | MostPop | 0.2000 |", "| – | EASE | – |"):
        assert start in text
    assert "| neumf | deopt | **0.3705 ± 0.0007** |" in text
    assert text.count("data set withdrawn") == 2 + 2 * 3 + 2 * 3
    assert "| bpr_mf | grid | 1,000 | 12 | 3 | 4 | 1,000 | 12 | 3 | 4 |" in text
    assert "recsys-compare x=1" in text
    assert "every parameter θ, looked up or not" in text
    lines = (tmp_path / "cells.csv").read_text().splitlines()
    assert len(lines) == 1 + len(finished)
    assert lines[0].startswith("data,model,tuner,seed,val/ndcg@10")
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;title&gt;" in page
    assert page.count("<svg") == 5
    assert "src=" not in page
    assert "<link" not in page


def test_results_of_older_versions_are_read_and_shown(tmp_path, finished):
    for cell in finished:
        path = cell.folder / "result.json"
        plain = json.loads(path.read_text())
        del plain["train_cpu_seconds"]
        plain["curve"] = [row[:4] for row in plain["curve"]]
        path.write_text(json.dumps(plain))
    results = Results(finished, ["ndcg@10"], "grid")
    assert {row.cpu_seconds for result in results.of.values() for row in result.curve} == {None}
    write_report(tmp_path, FRAME, results)
    text = (tmp_path / "report.md").read_text()
    assert "| bpr_mf | grid | 1,000 | 12 | – | 4 | 1,000 | 12 | – | 4 |" in text


def test_an_unfinished_comparison_shows_what_it_has(tmp_path):
    planned = cells(tmp_path, seeds=[0])
    run_missing(planned[:1], pretend, 1, lambda text: None)
    write_report(tmp_path, FRAME, Results(planned, ["ndcg@10"], "grid"))
    text = (tmp_path / "report.md").read_text()
    assert "1 of 12 runs finished" in text
    assert "| neumf | deopt | – | – |" in text
    empty = tmp_path / "empty"
    frame = replace(FRAME, withdrawn=["eachmovie"])
    write_report(empty, frame, Results(cells(empty), ["ndcg@10"], "grid"))
    assert "0 of 24 runs finished" in (empty / "report.html").read_text()


# --- configuration and command --------------------------------------------------------------------


@pytest.mark.parametrize("experiment", [[], ["experiment=table3"], ["experiment=table4"]])
@pytest.mark.parametrize("fast", ["true", "false"])
def test_every_cell_is_a_command_line_that_composes(experiment, fast, tmp_path):
    cfg = compose_compare(*experiment, f"fast={fast}", "seeds=[0]")
    planned = compare.cells_of(cfg, tmp_path)
    assert "eachmovie" not in {cell.data for cell in planned}
    for cell in planned:
        if cell.data == planned[0].data and cell.model == planned[0].model:
            with initialize_config_dir(train.config_dir(), version_base="1.3"):
                composed = compose("train", [*cell.overrides, "output_dir=out"])
            instantiate(composed.tuner)


def test_overrides_by_hand_come_last(tmp_path):
    cfg = compose_compare("fast=true", 'extra=["trainer.max_epochs=1"]')
    for cell in compare.cells_of(cfg, tmp_path):
        lengths = [part for part in cell.overrides if part.startswith("trainer.max_epochs")]
        assert lengths[-2:] == ["trainer.max_epochs=4", "trainer.max_epochs=1"]
        with initialize_config_dir(train.config_dir(), version_base="1.3"):
            assert compose("train", list(cell.overrides)).trainer.max_epochs == 1


def test_table_4_has_every_tuner_and_lambda_opt_with_four_optimizers():
    tuners = set(compose_compare("experiment=table4").tuners)
    assert {f"lambda_opt_{name}" for name in ("sgd", "adam", "amsgrad", "adamod")} <= tuners
    own = {path.stem for path in (Path(train.config_dir()) / "tuner").glob("*.yaml")}
    assert own - {"lambda_opt"} <= tuners


def test_all_tuners_have_the_same_space(tmp_path):
    cfg = compose_compare("experiment=table4", "data=synthetic", "seeds=[0]")
    spaces = set()
    for cell in compare.cells_of(cfg, tmp_path):
        with initialize_config_dir(train.config_dir(), version_base="1.3"):
            composed = compose("train", list(cell.overrides))
        if cell.tuner in ("grid", "random", "optuna", "pbt"):
            space = instantiate(composed.tuner.sweep.space)
            spaces.add((space.lr, space.weight_decay))
        elif cell.tuner.startswith("deopt") or cell.tuner == "authors":
            callback = instantiate(composed.tuner.callback)
            spaces.add((tuple(callback.lr_bounds), tuple(callback.weight_decay_bounds)))
    assert spaces == {((1e-6, 1e-2), (1e-7, 1e-3))}


def test_command_runs_cells_lists_a_crash_and_rebuilds_the_report(command, tmp_path, capsys):
    choice = ("data=synthetic", "tuners=[none,nonsense]", "seeds=[0]", "fast=true", "n_jobs=2")
    choice = (*choice, "metrics=[ndcg@10,ndcg@20]")
    with pytest.raises(SystemExit) as stopped:
        command(*choice)
    assert stopped.value.code == 1
    folder = tmp_path / "comparisons" / "comparison_fast"
    said = capsys.readouterr()
    assert "failed: synthetic bpr_mf nonsense seed 0" in said.err
    assert "none seed 0" in said.out
    assert "has no ndcg@20, only ndcg@10, recall@10, hr@10" in said.out
    assert "nonsense seed 0: failed: In 'train': Could not find 'tuner/nonsense'" in said.out
    assert "no tests: the baseline grid is none of none, nonsense" in said.out
    text = (folder / "report.md").read_text()
    assert "| bpr_mf | none | **0." in text
    (folder / "report.md").unlink()
    command(*choice, "report_only=true", "collect=kept")
    remade = (folder / "report.md").read_text()
    assert "synthetic bpr_mf nonsense seed 0: no result" in remade
    (tmp_path / "kept" / "report.md").unlink()
    command("output_dir=kept", "report_only=true")
    assert (tmp_path / "kept" / "report.md").read_text() == remade
    (tmp_path / "kept" / "report.md").unlink()
    command(*choice, "report_only=true", "add_to=kept")
    assert (tmp_path / "kept" / "report.md").read_text() == remade
    cell = folder / "cells" / "synthetic" / "bpr_mf" / "none" / "seed0"
    kept = json.loads((cell / "result.json").read_text())
    assert kept["tuner"] == "none"
    with np.load(cell / "per_user.npz") as arrays:
        assert arrays["ndcg@10"].mean() == pytest.approx(kept["test"]["ndcg@10"])


def test_runs_join_collected_ones_in_place_of_earlier_runs_of_the_same_cells(tmp_path):
    first = cells(tmp_path / "first", seeds=[0])
    second = cells(tmp_path / "second", seeds=[0, 1], datasets=["ml_1m"])
    run_missing(first[:-1], pretend, 1, lambda text: None)
    write_archive(tmp_path / "kept", FRAME, Results(first, FRAME.metrics, FRAME.baseline))
    for cell in second:
        cell.folder.mkdir(parents=True)
        (cell.folder / "cell.json").write_text(json.dumps(list(cell.overrides)))
        write_json(invented(cell, ndcg=0.9), cell.folder / "result.json")
    again = Results(second, FRAME.metrics, FRAME.baseline)
    compare.add_runs(list(again.of), tmp_path / "kept", tmp_path / "scratch")
    _, kept = read_archive(tmp_path / "kept", tmp_path / "read")
    values = {cell.name: cell.result().test["ndcg@10"] for cell in kept}
    assert len(kept) == 2 * 2 * 3 + 2 * 3
    assert {name for name, value in values.items() if value == 0.9} == {c.name for c in second}
    assert values["filmtrust neumf grid seed 0"] == pytest.approx(0.35)
    assert "18 of 18 runs finished, seeds 0, 1" in (tmp_path / "kept" / "report.md").read_text()


def test_bad_settings_end_in_one_clear_message(command, capsys, tmp_path):
    for wrong in (
        ["n_jobs=0"],
        ["tuners=[]"],
        ["add_to=nowhere"],
        ["report_only=true", "add_to=nowhere"],
        ["tuners=none"],
        ["seeds=0", "report_only=true"],
        ["metrics=ndcg@10"],
        ["report_only=true"],
    ):
        with pytest.raises(SystemExit) as stopped:
            command(*wrong)
        assert stopped.value.code == 1
        assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "comparisons").exists()
