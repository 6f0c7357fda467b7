"""NeuMF from a GMF and an MLP that were trained alone before, as its paper has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recsys_models.checkpoints import read_checkpoint
from recsys_models.data import RecsysDataModule
from recsys_models.models.base import MODEL, OptimizerFactory
from recsys_models.models.neumf import NeuMF


def pretrained_neumf(
    num_users: int,
    num_items: int,
    gmf: str | Path,
    mlp: str | Path,
    alpha: float = 0.5,
    optimizer: OptimizerFactory | None = None,
) -> NeuMF:
    """The NeuMF that ``NeuMF.from_pretrained`` makes of two checkpoints.

    It refuses to train on other pairs than its parts, whose training pairs might be held out there.

    Args:
        num_users: number of users.
        num_items: number of items.
        gmf: checkpoint of a ``NeuMF`` with ``mlp_dims=()``.
        mlp: checkpoint of a ``NeuMF`` with ``gmf_dim=0``, trained on the same data.
        alpha: weight of the GMF, between 0 and 1.
        optimizer: see ``RecommenderModule``; the paper goes on with SGD.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: one is of something else, or of other data.
    """
    parts: dict[str, NeuMF] = {}
    pairs = set()
    for name, file in (("gmf", Path(gmf)), ("mlp", Path(mlp))):
        saved = _contents(name, file)
        parts[name] = NeuMF.load_from_checkpoint(file, map_location="cpu")
        pairs.add(saved.get(RecsysDataModule.__qualname__, {}).get("pairs"))
        sizes = parts[name].num_users, parts[name].num_items
        if sizes != (num_users, num_items):
            raise ValueError(
                f"{name} must be trained on this data, of {num_users} users and {num_items} items; "
                f"got {file}, of {sizes[0]} and {sizes[1]}."
            )
    model = NeuMF.from_pretrained(parts["gmf"], parts["mlp"], alpha, optimizer)
    model.pretrained_on = frozenset(pairs - {None})
    return model


def _contents(name: str, file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(
            f"{name} must be the checkpoint of a trained part; there is no file {file}. Give for "
            "example OUTPUT/checkpoints/best.ckpt."
        )
    saved = read_checkpoint(file)
    if saved.get(MODEL) != NeuMF.__name__:
        raise ValueError(
            f"{name} must be the checkpoint of a NeuMF; got {file}, of {saved.get(MODEL)}. Train "
            "it with model=neumf +model.mlp_dims=[] or with model=neumf +model.gmf_dim=0."
        )
    return saved
