"""What RecBole needs before it can train: an environment of its own, and files in its format."""

import subprocess
import sys
import venv
from pathlib import Path

import torch

from recsys_models.data import Interactions, RecsysDataModule

RECBOLE = "recbole==1.2.1"
# What it imports for these models. Its own list has Ray besides, for searches only, and no upper
# bounds, which it needs. With these versions nothing of it must be changed.
REQUIREMENTS = (
    "numpy==1.26.4",  # uses np.float_ and its like, gone in 2.0
    "scipy==1.11.4",  # NGCF uses dok_matrix._update, gone in 1.13
    "pandas==2.2.3",
    "scikit-learn==1.5.2",
    "colorlog==4.7.2",
    "colorama==0.4.4",
    "pyyaml",
    "tensorboard",
    "texttable",
    "tqdm",
)


def make_environment(cache: Path) -> Path:
    """The Python of RecBole's environment, with the torch that runs here; made if missing."""
    torch_version = str(torch.__version__).partition("+")[0]
    folder = cache / f"recbole-torch-{torch_version}"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    ready = folder / "ready"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    if not ready.exists():
        print(f"making an environment for {RECBOLE} in {folder}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, f"torch=={torch_version}", *REQUIREMENTS], check=True)
        subprocess.run([*pip, "--no-deps", RECBOLE], check=True)
        ready.touch()
    return python


def write_atomic_files(data: RecsysDataModule, cache: Path) -> None:
    """The three parts as RecBole reads them: cache/ratings/ratings.<part>.inter."""
    folder = cache / "ratings"
    folder.mkdir(exist_ok=True)
    parts = {"train": data.train, "valid": data.validation, "test": data.test}
    for name, part in parts.items():
        (folder / f"ratings.{name}.inter").write_text(atomic(part))


def atomic(part: Interactions) -> str:
    pairs = zip(part.users.tolist(), part.items.tolist(), strict=True)
    return "\n".join(["user_id:token\titem_id:token", *(f"{u}\t{i}" for u, i in pairs)]) + "\n"
