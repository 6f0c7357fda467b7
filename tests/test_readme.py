"""The README's Python runs, and the names in its tables exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import TinyModel, train_loader, val_loader

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_python_blocks_run(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = BLOCKS[index].replace("max_epochs=20", "max_epochs=2, logger=False")
    names: dict[str, Any] = {
        "model": TinyModel(),
        "train_loader": train_loader(),
        "val_loader": val_loader(),
    }
    exec(code, names)
    if "search" in names:
        assert names["perf"] > -1e-6


def test_named_files_exist() -> None:
    named = re.findall(r"`((?:deopt_lightning|recsys_models|tests)/[\w/.]+)`", README)
    named += re.findall(r"\]\(([^)#]+)\)", README)
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_named_equations_exist() -> None:
    from deopt_lightning import equations, param_groups

    for name in ("initial_population", "mutant_vectors", "trial_vectors", "current_to_rand"):
        assert f"`{name}`" in README
        assert hasattr(equations, name)
    assert hasattr(param_groups, "write_hyperparameters")
