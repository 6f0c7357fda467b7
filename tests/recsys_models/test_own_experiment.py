"""A user's own data and own LightningModule, put in by configuration files alone."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from recsys_models import compare, train
from recsys_models.report import read_json

ROOT = Path(__file__).parents[2]
OWN_MODULE = '''
import os
import signal

import lightning as L
import torch

class Own(L.LightningModule):
    """Knows nothing of recommenders but what it is given."""

    def __init__(self, num_users, num_items, optimizer):
        super().__init__()
        self.make_optimizer = optimizer
        self.bias = torch.nn.Parameter(torch.zeros(num_items))

    def training_step(self, batch, batch_idx):
        return -self.bias[batch.items].mean() + self.bias.square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/bias", self.bias.mean(), batch_size=1)

    def test_step(self, batch, batch_idx):
        self.log("test/bias", self.bias.mean(), batch_size=1)

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


class Diverges(Own):
    """With its own lr, and logs beside its value what is no number."""

    def validation_step(self, batch, batch_idx):
        (optimizer,) = self.trainer.optimizers or [None]
        diverged = optimizer is not None and optimizer.param_groups[0]["lr"] >= 1e-3
        self.log("val/bias", torch.nan if diverged else self.bias.mean(), batch_size=1)
        self.log("val/spare", torch.inf, batch_size=1)

    def test_step(self, batch, batch_idx):
        super().test_step(batch, batch_idx)
        self.log("test/spare", torch.nan, batch_size=1)


class Killed(Own):
    """Takes too much memory, as it were."""

    def training_step(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture
def own(tmp_path, monkeypatch, rating_files):
    """A foreign folder of configurations, and beside it the module that they name."""
    (tmp_path / "own_module.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    model = "_target_: own_module.{}\noptimizer: ${{optimizer}}\n"
    for name, text in {
        "data/mine": f"defaults: [table]\npath: {rating_files['table']}\n",
        "model/mine": model.format("Own"),
        "model/killed": model.format("Killed"),
        "model/diverges": model.format("Diverges"),
        "tuner/slow": "# @package _global_\noptimizer:\n  lr: 1.0e-5\ntuner:\n  callback: null\n",
    }.items():
        path = tmp_path / "own" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "own"


def test_own_data_and_own_module_train_by_configuration_alone(own, tmp_path, monkeypatch):
    for tuner in ("grid", "deopt"):
        monkeypatch.setattr(
            sys,
            "argv",
            ["train", "--config-dir", str(own), "data=mine", "model=mine"]
            + [f"tuner={tuner}", "search=fast", "trainer.max_epochs=2", "monitor=val/bias"]
            + [f"hydra.run.dir={tmp_path / tuner}"],
        )
        train.main()
        result = json.loads((tmp_path / tuner / "result.json").read_text())
        assert (result["model"], result["data"]) == ("mine", "mine")
        assert set(result["test"]) == {"bias"}
        assert set(result["schedule"][0]["lr"]) == ({"all"} if tuner == "grid" else {"root"})
        read = json.loads(json.dumps(asdict(read_json(tmp_path / tuner / "result.json"))))
        assert read == result


def test_what_an_own_module_logs_need_not_be_finite(own, tmp_path, monkeypatch):
    """A setting that diverges is not chosen, and a metric that is no number costs no result."""
    command = ["train", "--config-dir", str(own), "data=mine", "model=diverges", "tuner=random"]
    command += ["search=fast", "trainer.max_epochs=2", "monitor=val/bias"]
    monkeypatch.setattr(sys, "argv", [*command, f"hydra.run.dir={tmp_path / 'out'}"])
    with pytest.warns(UserWarning, match="test/spare is nan at the chosen epoch, and left out"):
        train.main()
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (set(result["val"]), set(result["test"])) == ({"bias"}, {"bias"})
    values = {point["lr"]: point["val"] for point in result["points"]}
    assert values[0.001] is None
    known = {lr: value for lr, value in values.items() if value is not None}
    assert result["schedule"][0]["lr"]["all"] == max(known, key=known.get) < 1e-3
    assert result["val"]["bias"] == pytest.approx(max(known.values()))


def test_a_comparison_takes_them_and_survives_a_run_that_is_killed(
    own, tmp_path, monkeypatch, capsys
):
    choice = ["datasets=[mine]", "tuners=[none,slow,deopt]", "seeds=[0]", "baseline=none"]
    choice += ["metrics=[bias]", "overrides=['monitor=val/bias']", "fast=true", "output_dir=out"]

    def recsys_compare(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare", "--config-dir", str(own), *arguments])
        monkeypatch.chdir(tmp_path)
        compare.main()

    with pytest.raises(SystemExit) as stopped:
        recsys_compare(*choice, "models=[mine,killed]", "tuners=[none]", "n_jobs=2")
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert "mine killed none seed 0: failed: ended by signal 9 (Killed)" in said.out
    assert "failed: mine killed none seed 0" in said.err
    text = (tmp_path / "out" / "report.md").read_text()
    assert "- mine killed none seed 0: no result; it ended with: ended by signal 9" in text

    recsys_compare(*choice, "models=[mine]")
    assert "3 cells, 1 finished before, 2 to run" in capsys.readouterr().out
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Not finished" not in text
    rows = {line.split(" | ")[1] for line in text.splitlines() if line.startswith("| mine | ")}
    assert rows == {"none", "slow", "deopt"}
    assert "mine on mine" in (tmp_path / "out" / "report.html").read_text()
