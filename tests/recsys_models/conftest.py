"""Small data and composed configurations for whole runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from recsys_models.data import synthetic_interactions
from recsys_models.train import config_dir


def tiny_interactions():
    return synthetic_interactions(num_users=60, num_items=40, num_interactions=900)


@pytest.fixture
def tiny_synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generated data set, cut to a size that trains in a moment."""
    monkeypatch.setattr("recsys_models.data.datamodule.synthetic_interactions", tiny_interactions)


@pytest.fixture
def rating_files(tmp_path: Path) -> dict[str, Path]:
    """One tiny rating file for each data set that is read from a file."""
    pairs = tiny_interactions()
    files = {}
    forms = {
        "filmtrust": "{} {} 3\n",
        "ml_1m": "{}::{}::3\n",
        "ml_100k": "{}\t{}\t3\t881250949\n",
        "ml_10m": "{}::{}::3.5::838985046\n",
        "eachmovie": "{} {} 0.6 1 1996-02-07\n",
        "table": "{},{}\n",
    }
    for name, form in forms.items():
        lines = ["user,item\n"] if name == "table" else []
        lines += [form.format(u + 1, i + 1) for u, i in zip(pairs.users, pairs.items, strict=True)]
        files[name] = tmp_path / f"{name}.txt"
        files[name].write_text("".join(lines))
    return files


@pytest.fixture
def compose_train(tmp_path: Path) -> Callable[..., DictConfig]:
    """Compose train.yaml with overrides; the run writes to ``tmp_path / "out"``."""

    def compose_with(*overrides: str) -> DictConfig:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            return compose("train", [f"output_dir={tmp_path / 'out'}", *overrides])

    return compose_with
