from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from recsys_models import train
from recsys_models.report import read_json

CONF = Path(train.config_dir())
ELSEWHERE = {"conf/compare", "conf/model/neumf_pretrained.yaml"}  # test_compare, test_pretraining
FILES = sorted(
    path.relative_to(CONF)
    for path in CONF.glob("*/*.yaml")
    if not {str(path.relative_to(CONF.parent)), f"conf/{path.parent.name}"} & ELSEWHERE
)

pytestmark = pytest.mark.usefixtures("tiny_synthetic")


@pytest.fixture(autouse=True)
def leave_no_process_group():
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def needed_by(file, rating_files):
    """What a user has to add to a choice so that it runs on one CPU."""
    added = ["trainer.accelerator=cpu", "trainer.devices=1"]
    if file.parent.name == "data" and file.stem in rating_files:
        added.append(f"data.path={rating_files[file.stem]}")
    return added


def test_every_group_has_a_file():
    groups = {file.parent.name for file in FILES}
    expected = "model data trainer optimizer search tuner logger callbacks experiment"
    assert groups == set(expected.split())


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_composes_and_trains(file, compose_train, rating_files, tmp_path):
    choice = f"{file.parent.name}={file.stem}"
    cfg = compose_train(choice, "trainer.max_epochs=2", *needed_by(file, rating_files))
    assert 0 < train.run(cfg) <= 1
    assert (tmp_path / "out" / "result.json").is_file()


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_survives_fast_dev_run(file, compose_train, rating_files):
    choice = f"{file.parent.name}={file.stem}"
    train.run(compose_train(choice, "trainer.fast_dev_run=true", *needed_by(file, rating_files)))


@pytest.mark.parametrize("model", sorted(f.stem for f in CONF.glob("experiment/filmtrust/*.yaml")))
def test_every_preset_for_filmtrust_trains(model, compose_train, rating_files):
    data = f"data.path={rating_files['filmtrust']}"
    cfg = compose_train(f"experiment=filmtrust/{model}", data, "trainer.fast_dev_run=true")
    train.run(cfg)
    assert model == cfg.model._target_.rpartition(".")[2].lower()
    assert cfg.callbacks.early_stopping.patience == 30


@pytest.mark.parametrize("file", [f for f in FILES if f.parent.name == "optimizer"], ids=str)
def test_every_optimizer_reaches_the_model(file, compose_train):
    cfg = compose_train(f"optimizer={file.stem}", "optimizer.lr=0.25", "optimizer.weight_decay=0.5")
    optimizer = instantiate(cfg.model, num_users=3, num_items=4).configure_optimizers()
    homes = ("torch", "pytorch_optimizer", "recsys_models")
    assert type(optimizer).__module__.partition(".")[0] in homes
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.25, 0.5)


def test_tuner_gets_plain_values(compose_train):
    cfg = compose_train("tuner=deopt", "seed=7", "tuner.callback.lr_bounds=[0.001,0.1]")
    callback = instantiate(cfg.tuner.callback)
    assert callback.monitor == "val/ndcg@10"
    assert callback.mode == "max"
    assert type(callback.lr_bounds) in (list, tuple)


def test_checkpoint_of_a_tuned_run_loads_safely(compose_train, tmp_path):
    train.run(compose_train("tuner=deopt", "trainer.max_epochs=2", "trainer.accelerator=cpu"))
    (path,) = (tmp_path / "out" / "checkpoints").glob("*.ckpt")
    saved = torch.load(path, weights_only=True)
    assert "user_embedding.weight" in saved["state_dict"]


def test_configurations_need_no_environment_and_no_machine_paths():
    for file in CONF.rglob("*.yaml"):
        text = file.read_text()
        assert "oc.env" not in text
        assert "/home" not in text


def test_the_callback_among_others_counts_as_the_tuner(compose_train, tmp_path):
    train.run(compose_train("callbacks=deopt", "trainer.max_epochs=3"))
    result = read_json(tmp_path / "out" / "result.json")
    assert result.probe_steps > 0
    assert set(result.schedule[0]["lr"]) == {"users", "items"}
    assert result.schedule[0]["lr"] != result.schedule[-1]["lr"]
