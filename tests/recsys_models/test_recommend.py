import json
import math
import sys
from collections import defaultdict

import numpy as np
import polars as pl
import pytest
import torch

from recsys_models import cli, models, train
from recsys_models.data import RecsysDataModule, synthetic_interactions
from recsys_models.metrics import best_items
from recsys_models.recommend import LEFT_OUT, load, main, recommend

MODELS = {
    "bpr_mf": (),
    "neumf": ("+model.item_bias=true", "+model.mlp_dims=[8,4]"),
    "lrml": ("+model.distance=l1",),
    "ngcf": ("+model.layer_dims=[8,8]",),
    "lightgcn": ("optimizer.lr=0.1",),
}
COLUMNS = {"user_column": "customer", "item_column": "product"}


@pytest.fixture
def shop(tmp_path):
    """A table with ids of people's and things' names."""
    pairs = synthetic_interactions(num_users=60, num_items=40, num_interactions=900)
    customers = [f"kündin {user:03}" for user in pairs.users]
    products = [f'{item} "x", y' for item in pairs.items]
    pl.DataFrame({"customer": customers, "product": products}).write_csv(tmp_path / "shop.csv")
    return tmp_path / "shop.csv"


@pytest.fixture
def trained(compose_train, shop, tmp_path):
    """Trains a model and gives its checkpoint."""

    def train_one(*overrides):
        table = ("data=table", f"data.path={shop}")
        columns = [f"data.{name}={value}" for name, value in COLUMNS.items()]
        short = ("trainer.max_epochs=2", "trainer.accelerator=cpu", "+data.batch_size=64")
        train.run(compose_train(*table, *columns, *short, *overrides))
        return tmp_path / "out" / "checkpoints" / "best.ckpt"

    return train_one


@pytest.fixture
def recommended(tmp_path, capsys):
    """What the command writes."""

    def run(checkpoint, *arguments, name="found.csv"):
        main([str(checkpoint), "--output", str(tmp_path / "new" / name), *arguments])
        capsys.readouterr()
        read = pl.read_parquet if name.endswith("parquet") else pl.read_csv
        return read(tmp_path / "new" / name)

    return run


@pytest.fixture
def refused(capsys):
    """The message with which the command ends."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return str(ended.value.code)

    return run


def pairs_by_name(data, part):
    names = defaultdict(set)
    for user, item in zip(part.users, part.items, strict=True):
        names[str(data.user_ids[user])].add(str(data.item_ids[item]))
    return names


@pytest.mark.parametrize("model", MODELS)
def test_metrics_of_the_file_are_those_of_the_run(trained, recommended, shop, tmp_path, model):
    """Hits counted by names, without any code of the metrics."""
    checkpoint = trained(f"model={model}", *MODELS[model])
    found = recommended(checkpoint, "--leave-out", "train")
    data = RecsysDataModule("table", str(shop), **COLUMNS)
    data.setup()
    held_out = pairs_by_name(data, data.validation)
    recalls, gains = [], []
    for user, wanted in held_out.items():
        items = found.filter(pl.col("user") == user).sort("rank")["item"].to_list()
        assert len(items) == 10
        hits = [item in wanted for item in items]
        recalls.append(sum(hits) / len(wanted))
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(10, len(wanted))))
        gains.append(sum(hit / math.log2(k + 2) for k, hit in enumerate(hits)) / ideal)
    val = json.loads((tmp_path / "out" / "result.json").read_text())["val"]
    assert np.mean(recalls) == pytest.approx(val["recall@10"], abs=1e-6)
    assert np.mean(gains) == pytest.approx(val["ndcg@10"], abs=1e-6)


def test_by_default_everything_new_to_a_user_is_ranked_best_first(trained, recommended, shop):
    found = recommended(trained(), "--k", "1000")
    known = set(pl.read_csv(shop).rows())
    assert len(found) == 60 * 40 - len(known)
    assert not set(found.select("user", "item").rows()) & known
    for _, rows in found.group_by("user"):
        assert rows["rank"].to_list() == list(range(1, len(rows) + 1))
        assert rows["score"].to_list() == sorted(rows["score"], reverse=True)


@pytest.mark.parametrize("leave_out", LEFT_OUT)
def test_what_is_left_out_can_be_chosen(trained, leave_out):
    model, data = load(trained())
    found = recommend(model, data, k=data.num_items, leave_out=leave_out)
    parts = {"all": (data.train, data.validation, data.test), "train": (data.train,), "nothing": ()}
    assert len(found) == 60 * 40 - sum(map(len, parts[leave_out]))


def test_some_users_in_the_order_asked_for(trained, recommended):
    checkpoint = trained()
    one_twice = ["kündin 007", "kündin 001", "kündin 007"]
    chosen = recommended(checkpoint, "--k", "2", "--users", *one_twice)
    assert chosen["user"].to_list() == ["kündin 007"] * 2 + ["kündin 001"] * 2
    everyone = recommended(checkpoint, "--k", "2", name="found.parquet")
    assert everyone.schema["rank"] == pl.Int64
    of_one = pl.col("user") == "kündin 001"
    assert chosen.filter(of_one)["item"].equals(everyone.filter(of_one)["item"])


def test_nobody_is_recommended_nothing(trained):
    model, data = load(trained())
    none, one = (recommend(model, data, users) for users in ([], ["kündin 001"]))
    assert len(none) == 0
    assert none.schema == one.schema


def test_whole_numbers_stay_numbers(compose_train, rating_files, recommended, tmp_path):
    short = ("trainer.max_epochs=1", "trainer.accelerator=cpu")
    train.run(compose_train("data=ml_1m", f"data.path={rating_files['ml_1m']}", *short))
    found = recommended(tmp_path / "out" / "checkpoints" / "best.ckpt", "--users", "60", "3")
    assert found["user"].unique(maintain_order=True).to_list() == [60, 3]
    assert found["item"].is_between(1, 40).all()


def test_a_checkpoint_of_the_lightning_cli(shop, recommended, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [f"--data.{name}={value}" for name, value in COLUMNS.items()]
    options += ["--data.dataset=table", "--data.path=shop.csv", "--model.num_layers=1"]
    options += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    options += ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=."]
    monkeypatch.setattr(sys, "argv", ["cli.py", "fit", "--model=LightGCN", *options])
    cli.main()
    torch.use_deterministic_algorithms(False)
    (checkpoint,) = tmp_path.rglob("best.ckpt")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the path of the table is known as a whole
    assert len(recommended(checkpoint, "--k", "3")) == 180


@pytest.mark.parametrize("name", ["BPRMF", "NGCF"])
def test_lightning_builds_models_from_their_checkpoints(trained, name):
    checkpoint = trained(f"model={'bpr_mf' if name == 'BPRMF' else 'ngcf'}", "+model.dim=8")
    model = getattr(models, name).load_from_checkpoint(checkpoint)
    assert model.user_embedding.weight.shape == (60, 8)
    assert model.num_items == 40


def test_a_table_that_was_moved_or_changed(trained, recommended, refused, shop, tmp_path):
    checkpoint = trained()
    moved = shop.rename(tmp_path / "moved.csv")
    assert "there is no rating file at" in (message := refused(checkpoint))
    assert "--path FILE" in message
    assert len(recommended(checkpoint, "--path", str(moved))) == 600
    pl.read_csv(moved)[:-1].write_csv(moved)
    assert "trained on other pairs" in refused(checkpoint, "--path", moved)


def test_what_cannot_be_done_is_said(trained, refused, tmp_path):
    checkpoint = trained()
    unknown = refused(checkpoint, "--users", "kündin 001", "nobody")
    assert "1 of the users asked for" in unknown
    assert "'nobody'" in unknown
    assert "k must be at least 1; got 0" in refused(checkpoint, "--k", 0)
    with pytest.raises(ValueError, match=r"k must be at least 1; got 2\.5\. Give a whole number"):
        recommend(*load(checkpoint), k=2.5)
    assert "there is no checkpoint at" in refused(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    assert "is no checkpoint, or a damaged one" in refused(tmp_path / "text.ckpt")
    (tmp_path / "half.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    torch.save(torch.ones(3), tmp_path / "tensor.ckpt")
    for name in ("half", "tensor"):
        message = refused(tmp_path / f"{name}.ckpt")
        assert f"{name}.ckpt is no checkpoint, or a damaged one" in message
    torch.save({"state_dict": {}}, tmp_path / "old.ckpt")
    assert "does not say what it is of" in refused(tmp_path / "old.ckpt")


def test_best_items_are_those_of_a_stable_sort():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-3, 3, (200, 30), generator=generator).float()
    scores[scores == 2] = -torch.inf
    for k in (1, 7, 30):
        items, best = best_items(scores, k)
        order = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(items, order)
        np.testing.assert_array_equal(best, np.take_along_axis(scores.numpy(), order, 1))
    scores[3, 4] = torch.nan
    with pytest.raises(FloatingPointError, match="diverged"):
        best_items(scores, 5)
