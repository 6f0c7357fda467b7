"""A training that was interrupted goes on, and its result is that of the unbroken one."""

import json
import time
from dataclasses import replace

import lightning as L
import pytest
import torch

from recsys_models import train
from recsys_models.comparison import cells as cells_module
from recsys_models.comparison.cells import Cell, launcher, run_missing
from recsys_models.comparison.results import Results
from recsys_models.report import write_json
from tests.recsys_models.invented import cells, invented, pretend

SHORT = ("trainer.max_epochs=5", "trainer.accelerator=cpu", "+data.batch_size=64")
CUT = "+callbacks.cut._target_=tests.recsys_models.test_going_on.PowerCut"

pytestmark = pytest.mark.usefixtures("tiny_synthetic")


class PowerCut(L.Callback):
    """Ends a run hard at the start of its fourth epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 3:
            raise RuntimeError("power cut")


@pytest.fixture
def both(compose_train, tmp_path):
    """Results of a run that goes on and of the unbroken one."""

    def results(*overrides):
        train.run(compose_train(*SHORT, *overrides))
        out = tmp_path / "out"
        assert [path.name for path in (out / "checkpoints").iterdir()] == ["best.ckpt"]
        unbroken = json.loads((out / "result.json").read_text())
        (out / "result.json").unlink()

        with pytest.raises(RuntimeError, match="power cut"):
            train.run(compose_train(*SHORT, *overrides, CUT))
        last = out / "checkpoints" / "last.ckpt"
        train.run(compose_train(*SHORT, *overrides, f"ckpt_path={last}"))
        assert not last.exists()
        return json.loads((out / "result.json").read_text()), unbroken

    return results


def test_costs_are_those_of_the_unbroken_run(both):
    """Without the callback Lightning draws other batches from then on."""
    resumed, unbroken = both("tuner=none")
    for name in ("epochs", "train_steps", "probe_steps", "evaluations", "schedule"):
        assert resumed[name] == unbroken[name], name
    assert resumed["curve"][-1][:2] == unbroken["curve"][-1][:2]
    seconds = [row[2] for row in resumed["curve"]]
    assert seconds == sorted(seconds)
    assert resumed["train_seconds"] > seconds[-1]


def test_with_the_callback_everything_is_what_it_would_have_been(both):
    resumed, unbroken = both("tuner=deopt")
    for name in ("val", "test", "epochs", "train_steps", "probe_steps", "evaluations", "schedule"):
        assert resumed[name] == unbroken[name], name
    reached = [[row[:2] + row[3:4] for row in run["curve"]] for run in (resumed, unbroken)]
    assert reached[0][-1] == reached[1][-1]
    assert all(row in reached[1] for row in reached[0])


def test_other_pairs_than_the_checkpoint_was_trained_on_are_refused(compose_train, tmp_path):
    """They may be those that validation and test ask for."""
    train.run(compose_train(*SHORT, "tuner=none"))
    best = tmp_path / "out" / "checkpoints" / "best.ckpt"
    for other in ("+data.split_seed=1", "+data.ratios=[0.6,0.2,0.2]"):
        with pytest.raises(ValueError, match="trained on other pairs than the"):
            train.run(compose_train(*SHORT, other, "trainer.max_epochs=9", f"ckpt_path={best}"))


def test_another_models_checkpoint_is_refused_in_one_sentence(compose_train, tmp_path):
    train.run(compose_train(*SHORT, "tuner=none"))
    best = f"ckpt_path={tmp_path / 'out' / 'checkpoints' / 'best.ckpt'}"
    with pytest.raises(ValueError, match="is of BPRMF with other weights than this NeuMF has"):
        train.run(compose_train(*SHORT, "model=neumf", best))
    shapes = r"item_embedding.weight has the shape \(40, 64\) there and \(40, 8\) here"
    with pytest.raises(ValueError, match=shapes):
        train.run(compose_train(*SHORT, "+model.dim=8", best))


@pytest.mark.parametrize("content", [b"", b"user,item\n1,2\n", b"PK\x03\x04cut short"])
def test_a_damaged_checkpoint_is_refused_in_one_sentence(content, compose_train, tmp_path):
    damaged = tmp_path / "last.ckpt"
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.ckpt is no checkpoint, or a damaged one"):
        train.run(compose_train(*SHORT, f"ckpt_path={damaged}"))


def test_a_sweep_takes_no_checkpoint(compose_train):
    with pytest.raises(ValueError, match="ckpt_path is for one training; got 'last.ckpt' and a"):
        train.run(compose_train(*SHORT, "tuner=grid", "ckpt_path=last.ckpt"))


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_cell_that_was_interrupted_goes_on(interrupted, tmp_path, monkeypatch):
    commands = []

    def call(command, log):
        commands.append(command)
        return 0

    monkeypatch.setattr(cells_module, "_call", call)
    folder = tmp_path / "it's a cell"
    last = folder / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    if interrupted:
        last.touch()
    launcher(None)(Cell("filmtrust", "bpr_mf", "deopt", 0, ("tuner=deopt",), folder))
    escaped = str(last).replace("'", "\\'")
    assert (f"ckpt_path='{escaped}'" in commands[0]) == interrupted


def test_an_interrupted_cell_of_other_settings_is_refused(tmp_path):
    """It would go on from their checkpoint, with their lr, under the new command line."""

    def interrupted(cell):
        cell.last.parent.mkdir()
        cell.last.touch()
        return 1

    began = cells(tmp_path, seeds=[0])
    assert run_missing(began, interrupted, 1, lambda text: None) == began
    assert all(cell.result() is None for cell in began)
    other = [replace(cell, overrides=(*cell.overrides, "optimizer.lr=1")) for cell in began]
    with pytest.raises(ValueError, match="Choose another output_dir"):
        run_missing(other, pretend, 1, lambda text: None)


def test_runs_on_other_pairs_are_refused_before_more_are_trained(tmp_path):
    def on(pairs):
        def launch(cell):
            ran.append(cell)
            time.sleep(0.1)  # a run takes long enough for the one before it to be looked at
            write_json(replace(invented(cell), pairs=pairs), cell.folder / "result.json")
            return 0

        return launch

    ran = []
    planned = cells(tmp_path, datasets=["filmtrust"])
    earlier, later = planned[:2], planned[2:]
    run_missing(earlier, on("some"), 1, lambda text: None)
    Results(planned, ["ndcg@10"], "grid")
    with pytest.raises(ValueError, match="were trained on different pairs, so they cannot be"):
        run_missing(planned, on("others"), 1, lambda text: None)
    assert len(ran) < len(planned)
    assert {cell.folder for cell in ran[:2]} == {cell.folder for cell in earlier}
    with pytest.raises(ValueError, match=str(later[0].folder)):
        Results(planned, ["ndcg@10"], "grid")
    with pytest.raises(ValueError, match="Choose another output_dir"):
        run_missing(planned, on("others"), 1, lambda text: None)


def test_a_result_knows_its_pairs(compose_train, tmp_path):
    found = []
    for split_seed in (0, 0, 1):
        train.run(compose_train(*SHORT, "tuner=none", f"+data.split_seed={split_seed}"))
        found.append(json.loads((tmp_path / "out" / "result.json").read_text())["pairs"])
    assert found[0] == found[1] != found[2]
    assert None not in found


def test_two_comparisons_in_one_folder_share_its_cells(tmp_path):
    """Side by side they would write to one folder, and go on from one another's checkpoints."""
    planned = cells(tmp_path, seeds=[0], datasets=["filmtrust"])
    first, second, *_ = planned
    said, ran = [], []

    def launch(cell):
        ran.append(cell)
        if cell == first:  # another comparison, started meanwhile
            assert run_missing([first, second], noted, 1, said.append) == [first]
        return pretend(cell)

    def noted(cell):
        ran.append(cell)
        return pretend(cell)

    assert run_missing(planned, launch, 1, said.append) == []
    assert sorted(ran, key=planned.index) == planned
    assert f"[1/2] {first.name}: another comparison is at it" in said
    assert f"[2/{len(planned)}] {second.name}: finished by another comparison" in said


def test_another_run_in_the_folder_leaves_its_own_checkpoints(compose_train, tmp_path):
    """By the names that recommend and ckpt_path are given; those of the run before are gone."""
    train.run(compose_train(*SHORT, "tuner=none"))
    checkpoints = tmp_path / "out" / "checkpoints"
    (checkpoints / "last.ckpt").write_text("of a run that was interrupted")
    with pytest.raises(RuntimeError, match="power cut"):
        train.run(compose_train(*SHORT, "model=lrml", CUT))
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    for path in checkpoints.iterdir():
        assert torch.load(path, weights_only=True)["recommender"] == "LRML"
    train.run(compose_train(*SHORT, "model=lrml", f"ckpt_path={checkpoints / 'last.ckpt'}"))
    assert [path.name for path in checkpoints.iterdir()] == ["best.ckpt"]
    assert torch.load(checkpoints / "best.ckpt", weights_only=True)["recommender"] == "LRML"
