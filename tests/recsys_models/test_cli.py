import csv
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from deopt_lightning import DEOptCallback
from recsys_models import cli, models
from recsys_models.data import RecsysDataModule

ROOT = Path(__file__).parents[2]
SYNTHETIC = {"num_users": 60, "num_items": 40, "num_interactions": 900}
TINY = (
    f"--data.synthetic={json.dumps(SYNTHETIC)}",
    "--data.batch_size=64",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.logger=CSVLogger",
    "--trainer.logger.save_dir=.",
    "--trainer.enable_progress_bar=false",
)
SHORT = (*TINY, "--trainer.max_epochs=3")
DEOPT = (
    "--trainer.callbacks+=deopt_lightning.DEOptCallback",
    "--trainer.callbacks.monitor=val/ndcg@10",
    "--trainer.callbacks.mode=max",
)
MODELS = {
    "BPRMF": ("--model.dim=8", "--model.item_bias=false"),
    "NeuMF": ("--model.gmf_dim=4", "--model.mlp_dims=[8,4]"),
    "LRML": ("--model.num_memories=4", "--model.distance=l1"),
    "NGCF": ("--model.layer_dims=[8,8]", "--model.norm=rw_selfloop"),
    "LightGCN": ("--model.num_layers=2",),
}


@pytest.fixture
def recsys_cli(tmp_path, monkeypatch):
    """The entry, run here in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cli.py", *arguments])
        cli.main()

    yield run
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def printed(recsys_cli, capsys):
    """What the entry prints before it ends of itself."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            recsys_cli(*arguments)
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


def log_folder(tmp_path, version=0):
    return tmp_path / "lightning_logs" / f"version_{version}"


def rows(tmp_path, version=0):
    with (log_folder(tmp_path, version) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def values(tmp_path, name, version=0):
    return [float(row[name]) for row in rows(tmp_path, version) if row.get(name)]


def best_checkpoint(tmp_path, version=0):
    return log_folder(tmp_path, version) / "checkpoints" / "best.ckpt"


def load_best(tmp_path, version=0):
    return torch.load(best_checkpoint(tmp_path, version), weights_only=True)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_with_plain_arguments(model, recsys_cli, tmp_path):
    recsys_cli("fit", f"--model={model}", *MODELS[model], *SHORT)
    assert len(values(tmp_path, "val/ndcg@10")) == 3
    assert {60, 40} <= {len(weight) for weight in load_best(tmp_path)["state_dict"].values()}


def test_every_public_model_is_tested():
    assert set(MODELS) == set(models.__all__) - {"RecommenderModule"}


def test_optimizer_and_its_arguments_reach_the_model(recsys_cli, tmp_path):
    recsys_cli(
        *("fit", "--model=BPRMF", *TINY, "--trainer.max_epochs=1"),
        *("--model.init_args.optimizer", "torch.optim.SGD"),
        *("--model.init_args.optimizer.lr", "0.5"),
        *("--model.init_args.optimizer.momentum", "0.25"),
    )
    (optimizer,) = load_best(tmp_path)["optimizer_states"]
    (group,) = optimizer["param_groups"]
    assert (group["lr"], group["momentum"]) == (0.5, 0.25)


def test_callback_from_the_command_line_learns(recsys_cli, tmp_path):
    recsys_cli("fit", "--model=BPRMF", *TINY, "--trainer.max_epochs=8", *DEOPT)
    lr = values(tmp_path, "deopt/lr/users")
    assert len(lr) == 8
    assert all(1e-6 <= value <= 1e-1 for value in lr)
    assert len(set(lr)) > 1
    assert all(spread > 0 for spread in values(tmp_path, "deopt/spread"))


def test_callback_takes_pairs_and_patterns(recsys_cli, tmp_path):
    options = ('--trainer.callbacks.layers={"all": "*"}', "--trainer.callbacks.lr_bounds=[0.1,0.2]")
    recsys_cli("fit", "--model=BPRMF", *SHORT, *DEOPT, *options)
    assert all(0.1 <= value <= 0.2 for value in values(tmp_path, "deopt/lr/all"))


def test_printed_configuration_repeats_the_run(recsys_cli, printed, tmp_path):
    arguments = ("fit", "--model=LRML", "--model.optimizer=Adam", "--model.optimizer.lr=0.01")
    arguments += (*TINY, *DEOPT, "--trainer.max_epochs=2", "--seed_everything=5")
    (tmp_path / "printed.yaml").write_text(printed(*arguments, "--print_config"))
    recsys_cli(*arguments)
    recsys_cli("fit", "--config=printed.yaml")
    recsys_cli("fit", "--config=printed.yaml", "--seed_everything=6")
    first, second, other = (
        (log_folder(tmp_path, version) / "metrics.csv").read_text() for version in range(3)
    )
    assert first == second != other
    weights, again = (load_best(tmp_path, version)["state_dict"] for version in (0, 1))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_test_reads_the_best_epoch_back(recsys_cli, tmp_path):
    # So large a step ruins the ranking after the first epochs.
    steep = ("--model.optimizer=Adam", "--model.optimizer.lr=0.3", "--data.batch_size=16")
    steep += ("--seed_everything=1",)  # a seed whose last epoch is not its best
    recsys_cli("fit", "--model=BPRMF", *SHORT, *steep, "--trainer.max_epochs=5")
    config = log_folder(tmp_path) / "config.yaml"
    recsys_cli("test", f"--config={config}", f"--ckpt_path={best_checkpoint(tmp_path)}")

    by_epoch, saved = values(tmp_path, "val/ndcg@10"), load_best(tmp_path)
    assert by_epoch[saved["epoch"]] == max(by_epoch) > by_epoch[-1]
    data = RecsysDataModule(synthetic=SYNTHETIC)
    model = models.BPRMF(60, 40)
    model.load_state_dict(saved["state_dict"])
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (expected,) = trainer.test(model, data, verbose=False)
    for name, value in expected.items():
        assert values(tmp_path, name, version=1) == [pytest.approx(value, abs=1e-6)]


def test_monitor_chooses_the_epoch_and_ends_the_run(recsys_cli, tmp_path):
    options = ("--model.top_k=[5,map@20]", "--monitor=val/map@20", "--early_stopping.patience=1")
    steep = ("--model.optimizer=Adam", "--model.optimizer.lr=0.3", "--data.batch_size=16")
    recsys_cli("fit", "--model=BPRMF", *TINY, *options, *steep)
    by_epoch = values(tmp_path, "val/map@20")
    assert len(values(tmp_path, "val/ndcg@5")) == len(by_epoch) < 100
    assert load_best(tmp_path)["epoch"] == by_epoch.index(max(by_epoch)) == len(by_epoch) - 2


def test_data_arguments_are_read(printed, recsys_cli, rating_files, tmp_path):
    recsys_cli(
        *("fit", "--model=BPRMF", "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"),
        *("--data.dataset=table", f"--data.path={rating_files['table']}"),
        *("--data.user_column=user", "--data.ratios=[0.5,0.25,0.25]", "--data.protocol=paper"),
    )
    given = ("--data.ratios=[0.5,0.25,0.25]", "--data.synthetic.num_users=9")
    config = printed("fit", "--model=BPRMF", *given, "--print_config")
    assert "ratios:\n  - 0.5\n  - 0.25\n  - 0.25\n" in config
    assert "synthetic:\n    num_users: 9\n" in config


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data.dataset=filmtrust", "--data.path=nowhere.txt"], "file of filmtrust at nowhere"),
        (["--data.ratios=[1,1,1]"], "with sum 1; got [1.0, 1.0, 1.0]"),
        (["--data.dataset=unknown"], "got 'unknown'"),
        (["--model.dim=0"], "error: dim must be at least 1; got 0"),
        (["--model.dim=abc"], "Got value: abc"),
        (["--model.top_k=[5]"], "got 'val/ndcg@10'. Choose one of val/ndcg@5, val/recall@5"),
        ([*DEOPT, "--trainer.callbacks.population_size=3"], "population_size must be at least 4"),
    ],
)
def test_bad_input_ends_in_one_message(arguments, said, recsys_cli, capsys):
    with pytest.raises(SystemExit) as stopped:
        recsys_cli("fit", "--model=BPRMF", *arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert "compute_fn" not in message


@pytest.mark.parametrize(
    ("arguments", "prefix", "documented"),
    [
        *((["--model.help", name], "model", getattr(models, name)) for name in MODELS),
        (["--model.help", "RecommenderModule"], "model", models.RecommenderModule),
        (["--help"], "data", RecsysDataModule),
        (
            ["--trainer.callbacks.help", "deopt_lightning.DEOptCallback"],
            "trainer.callbacks",
            DEOptCallback,
        ),
    ],
)
def test_help_explains_every_argument(arguments, prefix, documented, printed):
    text = " ".join(printed("fit", *arguments).split())
    for name in inspect.signature(documented).parameters:
        assert f"--{prefix}.{name} " in text
    # The type of an argument that no docstring explains follows its name at once.
    assert not re.search(rf"--{prefix}\.\w+ \S+ \((type|required)", text)


def test_module_runs_as_a_program(tmp_path):
    launcher = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_", "PL_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(launcher)}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "recsys_models.cli",
            "fit",
            "--model=BPRMF",
            *TINY,
            "--trainer.max_epochs=1",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert len(values(tmp_path, "val/ndcg@10")) == 1
