"""The README's Python runs, and what documents name exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import TinyModel, train_loader, val_loader

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted(
    [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
)
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(document: Path) -> None:
    text = document.read_text()
    links = re.findall(r"\]\(([^)#:]+)[#)]", text)
    assert not [link for link in links if not (document.parent / link).exists()]
    named = re.findall(r"`((?:deopt_lightning|recsys_models|tests|benchmarks|conf)/[\w/.]+)`", text)
    assert not [name for name in named if not (ROOT / name).exists()]
    folders = ("deopt_lightning", "recsys_models", "tests", "benchmarks", "examples")
    programs = {path.stem for folder in folders for path in (ROOT / folder).rglob("*.py")}
    by_name = re.findall(r"`(\w+)\.py[` ]", text) + re.findall(r"`(test_\w+)`", text)
    assert not [name for name in by_name if name not in programs]
    assert named or document != ROOT / "README.md"


def test_named_equations_exist() -> None:
    from deopt_lightning import equations, param_groups

    for name in ("initial_population", "mutant_vectors", "trial_vectors", "current_to_rand"):
        assert f"`{name}`" in README
        assert hasattr(equations, name)
    assert hasattr(param_groups, "write_hyperparameters")
