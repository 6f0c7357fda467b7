"""Small data and composed configurations for whole runs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
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
    for name, separator in (("filmtrust", " "), ("ml_1m", "::")):
        rows = np.stack([pairs.users + 1, pairs.items + 1, np.full(len(pairs), 3)], axis=1)
        files[name] = tmp_path / f"{name}.txt"
        files[name].write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))
    return files


@pytest.fixture
def compose_train(tmp_path: Path) -> Callable[..., DictConfig]:
    """Compose train.yaml with overrides; the run writes to ``tmp_path / "out"``."""

    def compose_with(*overrides: str) -> DictConfig:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            return compose("train", [f"output_dir={tmp_path / 'out'}", *overrides])

    return compose_with
