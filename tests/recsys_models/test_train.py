import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from recsys_models import train
from recsys_models.data import RecsysDataModule

ROOT = Path(__file__).parents[2]
SHORT = ("trainer.max_epochs=3", "trainer.accelerator=cpu", "+data.batch_size=64")

pytestmark = pytest.mark.usefixtures("tiny_synthetic")


class FakeTuner(L.Callback):
    """Offers what a tuner offers, without being one."""

    def __init__(self):
        self.probe_steps_taken = 12
        self.evaluations = 5
        self.schedule = [{"epoch": 0, "lr": {"users": 0.5}, "weight_decay": {"users": 0.25}}]


def read_result(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((tmp_path / "out" / "result.json").read_text(), parse_constant=refuse)


@pytest.fixture
def in_process(tmp_path, monkeypatch):
    """The console entry, run here in ``tmp_path``."""

    def recsys_train(*arguments):
        monkeypatch.setattr(sys, "argv", ["recsys-train", *arguments])
        monkeypatch.chdir(tmp_path)
        train.main()

    return recsys_train


def in_new_process(*overrides, cwd):
    # What a Trainer in this process left for its own launcher is not meant for the new one.
    launcher = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_", "PL_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(launcher)}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "recsys_models.train", *overrides],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_result_holds_the_whole_run(compose_train, tmp_path):
    best = train.run(compose_train(*SHORT, "seed=3"))
    result = read_result(tmp_path)
    names = {"ndcg@10", "recall@10", "hr@10"}
    assert (result["model"], result["data"], result["tuner"]) == ("BPRMF", "synthetic", "none")
    assert result["seed"] == 3
    assert set(result["val"]) == set(result["test"]) == names
    for reference in (result["reference"], result["reference_val"]):
        assert list(reference) == ["MostPop", "EASE"]
        assert all(set(metrics) == names for metrics in reference.values())
    assert result["val"]["ndcg@10"] == best
    assert result["epochs"] == result["evaluations"] == 3
    assert result["train_steps"] == 3 * math.ceil(630 / 64)
    assert result["probe_steps"] == 0
    assert 0 < result["train_seconds"] < result["seconds"]
    assert 0 < result["train_cpu_seconds"] < 1.5 * result["train_seconds"]
    assert result["versions"]["torch"] == str(torch.__version__)


def test_without_a_tuner_the_schedule_is_what_the_optimizer_holds(compose_train, tmp_path):
    train.run(compose_train(*SHORT, "optimizer.lr=0.02", "optimizer.weight_decay=0.001"))
    values = {
        "lr": {"users": 0.02, "items": 0.02},
        "weight_decay": {"users": 0.001, "items": 0.001},
    }
    assert read_result(tmp_path)["schedule"] == [{"epoch": epoch, **values} for epoch in range(3)]


def test_a_tuner_is_read_by_what_it_offers(compose_train, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "FakeTuner", FakeTuner, raising=False)
    train.run(compose_train(*SHORT, "tuner.callback={_target_: recsys_models.train.FakeTuner}"))
    result = read_result(tmp_path)
    assert result["tuner"] == "FakeTuner"
    assert result["probe_steps"] == 12
    assert result["evaluations"] == 3 + 5
    assert result["schedule"] == FakeTuner().schedule


def test_test_set_is_read_once_and_only_after_training(compose_train, monkeypatch):
    events = []
    fit, make_loader = L.Trainer.fit, RecsysDataModule.test_dataloader

    def noted_fit(self, *args, **kwargs):
        fit(self, *args, **kwargs)
        events.append("fit has ended")

    def noted_loader(self):
        events.append("test loader")
        return make_loader(self)

    class Poisoned:
        """Stands for ``RecsysDataModule.test``: deadly to whoever looks before fit has ended."""

        def __get__(self, module, owner=None):
            assert events, "the test set was read before training had ended"
            return module.__dict__["_test"]

        def __set__(self, module, value):
            module.__dict__["_test"] = value

    monkeypatch.setattr(L.Trainer, "fit", noted_fit)
    monkeypatch.setattr(RecsysDataModule, "test_dataloader", noted_loader)
    monkeypatch.setattr(RecsysDataModule, "test", Poisoned(), raising=False)
    train.run(compose_train(*SHORT))
    assert events == ["fit has ended", "test loader"]


def test_a_test_set_without_a_pair_is_refused_before_training(compose_train, tmp_path):
    with pytest.raises(ValueError, match="the test set has no positives"):
        train.run(compose_train(*SHORT, "+data.ratios=[0.8,0.2,0]"))
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_with_many_items_ease_is_left_out_of_the_table(compose_train, tmp_path, monkeypatch):
    """Its memory grows with the square of their number, and would end a run that is trained."""
    monkeypatch.setattr(train, "MOST_ITEMS", 39)
    with pytest.warns(UserWarning, match="EASE is left out of the table: .* the cube of 40 items"):
        train.run(compose_train(*SHORT))
    result = read_result(tmp_path)
    assert list(result["reference"]) == list(result["reference_val"]) == ["MostPop"]


def test_reports_the_best_epoch_and_not_the_last(compose_train, tmp_path):
    # So large a step ruins the ranking after the first epochs.
    overrides = ("trainer.max_epochs=8", "+data.batch_size=16", "optimizer.lr=0.3", "seed=1")
    best = train.run(compose_train(*overrides))
    rows = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val/ndcg@10")
    values = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    *by_epoch, read_again = values
    assert len(by_epoch) == 8
    assert best == pytest.approx(max(by_epoch), abs=1e-6)
    assert read_again == pytest.approx(best, abs=1e-6)
    assert by_epoch[-1] < max(by_epoch)


def test_same_seed_same_result(compose_train, tmp_path):
    results = []
    for _ in range(2):
        train.run(compose_train(*SHORT))
        results.append(read_result(tmp_path))
    assert results[0]["val"] == results[1]["val"]
    assert results[0]["test"] == results[1]["test"]
    train.run(compose_train(*SHORT, "seed=1"))
    assert read_result(tmp_path)["val"] != results[0]["val"]


def test_other_k_and_monitor(compose_train, tmp_path):
    overrides = ("+model.top_k=[5,20]", "monitor=val/recall@20")
    best = train.run(compose_train(*SHORT, *overrides))
    result = read_result(tmp_path)
    assert best == result["val"]["recall@20"]
    assert set(result["reference"]["EASE"]) == set(result["test"])


def test_every_metric_can_be_read_on_a_narrow_console(compose_train, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    train.run(compose_train(*SHORT, "+model.top_k=[5,10,20,map@30]"))
    printed, result = capsys.readouterr().out, read_result(tmp_path)
    for stage, of_model in (("val", result["val"]), ("test", result["test"])):
        assert len(of_model) == 10
        for metric, value in of_model.items():
            assert re.search(rf"{stage} {metric} +│ +{value:.4f} │", printed)


def test_command_line_writes_to_a_dated_folder_and_prints_the_table(rating_files, tmp_path):
    overrides = ("data=filmtrust", f"data.path={rating_files['filmtrust']}", "trainer.max_epochs=2")
    done = in_new_process(*overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for row in ("bpr_mf", "MostPop", "EASE"):
        assert row in done.stdout
    (result,) = tmp_path.glob("outputs/*/*/result.json")
    for path in (result, result.parent / "checkpoints" / "best.ckpt"):
        assert f"written: {path.resolve()}\n" in done.stdout
    assert done.stderr == ""


def test_two_processes_rank_every_user_once(rating_files, tmp_path, compose_train):
    data = ("data=filmtrust", f"data.path={rating_files['filmtrust']}", "trainer.max_epochs=2")
    options = ("trainer=ddp", "trainer.accelerator=cpu", "+data.eval_batch_size=7")
    done = in_new_process(*data, *options, "hydra.run.dir=ddp", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    joint = json.loads((tmp_path / "ddp" / "result.json").read_text())
    train.run(compose_train(*data))
    alone = read_result(tmp_path)
    for key in ("reference", "reference_val"):
        for name in ("MostPop", "EASE"):
            assert joint[key][name] == pytest.approx(alone[key][name], abs=1e-12)
    assert set(joint["val"]) == set(alone["val"])


def test_multirun_takes_a_seed_from_each_job(rating_files, tmp_path, in_process):
    data = ("data=filmtrust", f"data.path={rating_files['filmtrust']}")
    in_process("-m", *data, "seed=0,1", "trainer.max_epochs=1")
    results = [json.loads(p.read_text()) for p in tmp_path.glob("multirun/*/*/*/result.json")]
    assert sorted(result["seed"] for result in results) == [0, 1]
    assert {(r["model"], r["data"], r["tuner"]) for r in results} == {
        ("bpr_mf", "filmtrust", "none")
    }


def test_a_folder_of_own_configurations_joins_in(rating_files, tmp_path, in_process):
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /data: ml_1m\n"
        f"data:\n  path: {rating_files['ml_1m']}\n"
    )
    in_process("--config-dir", "own", "experiment=mine", "trainer.fast_dev_run=true")
    (result,) = tmp_path.glob("outputs/*/*/result.json")
    assert json.loads(result.read_text())["data"] == "ml_1m"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=filmtrust", "data.path=nowhere.txt"], "nowhere.txt"),
        (["+model.dim=0"], "dim must be at least 1; got 0"),
        (["+model.dim=abc"], "BPRMF"),
        (["+data.ratios=[1,1,1]"], "ratios"),
        (["trainer.max_epochs=1", "monitor=val/loss"], "val/loss"),
        (["mode=min"], "mode must be 'max' for val/ndcg@10, which is better the larger it is"),
        (["seed=abc"], "seed must be a whole number from 0 on; got 'abc'"),
        (["seed=-1"], "seed must be a whole number from 0 on; got -1"),
        (["data=unknown"], "unknown"),
        (["optimizer.lr=abc"], "optimizer.lr must be a number; got 'abc'"),
        (["tuner=grid", "optimizer.lr=null"], "optimizer.lr must be a number; got None"),
        (["optimizer.weight_decay=abc"], "optimizer.weight_decay must be a number; got 'abc'"),
        (["trainer.max_epochs=abc"], "trainer.max_epochs must be a whole number from -1 on, or"),
        (["threads=0"], "threads must be a whole number from 1 on, or null; got 0"),
        (["+trainer.limit_val_batches=0"], "limit_val_batches must be above 0"),
        (["+trainer.limit_test_batches=0.0"], "limit_test_batches must be above 0"),
    ],
)
def test_bad_input_ends_in_one_clear_message(overrides, said, in_process, capsys):
    with pytest.raises(SystemExit) as stopped:
        in_process(*overrides)
    message = capsys.readouterr().err
    assert stopped.value.code == 1
    assert said in message
    assert "Traceback" not in message


@pytest.mark.parametrize("missing", ["mine_that_needs_more", "a_library_that_is_not_there"])
def test_an_own_module_that_cannot_be_imported_is_named(
    missing, in_process, tmp_path, monkeypatch, capsys
):
    if missing != "mine_that_needs_more":
        (tmp_path / "mine_that_needs_more.py").write_text(f"import {missing}\n")
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit):
        in_process("data._target_=mine_that_needs_more.Data")
    said, _ = capsys.readouterr().err.splitlines()
    assert said.startswith("error: Error loading 'mine_that_needs_more.Data'")
    assert f"No module named '{missing}" in said


def test_failed_download_says_what_to_put_where(in_process, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "ratings"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(SystemExit):
        in_process("data=ml_1m", "data.download=true")
    said = capsys.readouterr().err
    assert f"put its ratings.dat at {tmp_path / 'ratings' / 'ml-1m' / 'ratings.dat'}" in said
