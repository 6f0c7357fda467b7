"""Recommends items: the best of each user by a trained model, with the ids of the rating file.

Run it on a checkpoint of ``recsys-train`` or of the Lightning CLI::

    python -m recsys_models.recommend OUTPUT/checkpoints/best.ckpt --k 10 --users ann bob
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recsys_models import models
from recsys_models.checkpoints import read_checkpoint
from recsys_models.data import Interactions, RecsysDataModule
from recsys_models.data.interactions import IntArray
from recsys_models.data.loaders import rows_of, users_within
from recsys_models.metrics import best_items
from recsys_models.models import RecommenderModule
from recsys_models.models.base import MODEL
from recsys_models.models.graph import GraphRecommender

LEFT_OUT = ("all", "train", "nothing")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the recommendations that it asks for."""
    chosen = _parser().parse_args(arguments)
    try:
        model, data = load(chosen.checkpoint, chosen.path)
        found = recommend(model, data, chosen.users, chosen.k, chosen.leave_out)
        _write(found, chosen.output)
    except (FloatingPointError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{chosen.output}: {found.height:,} items for {found['user'].n_unique():,} users")


def load(checkpoint: Path, path: Path | None = None) -> tuple[RecommenderModule, RecsysDataModule]:
    """The model of a checkpoint, and the data that it was trained on.

    Args:
        checkpoint: the file.
        path: the rating file or table, where it no longer lies where it did.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"there is no checkpoint at {checkpoint}. Give the file, such as "
            "OUTPUT/checkpoints/best.ckpt."
        )
    kind, state = _contents(checkpoint)
    file = path or state["file"]
    if file is not None and not Path(file).is_file():
        raise FileNotFoundError(
            f"there is no rating file at {file}, of which the model knows its users and items. Say "
            "where it lies with --path FILE."
        )
    given: dict[str, Any] = {} if file is None else {"path": str(file)}
    data = RecsysDataModule.load_from_checkpoint(checkpoint, **given)
    data.setup()
    model = kind.load_from_checkpoint(checkpoint, map_location="cpu")
    if isinstance(model, GraphRecommender):
        model.set_interactions(data.train)
    return model, data


@torch.no_grad()
def recommend(
    model: RecommenderModule,
    data: RecsysDataModule,
    users: Sequence[str | int] | None = None,
    k: int = 10,
    leave_out: str = "all",
) -> pl.DataFrame:
    """The best items of each user.

    Args:
        model: on the CPU.
        data: the data it was trained on.
        users: their ids in the rating file, of which one counts once; all when None.
        k: items for each user; fewer where so many are not left.
        leave_out: which items of a user are not recommended: "all" of the data, those in "train",
            or "nothing".

    Returns:
        Columns user and item with the ids of the rating file, rank from 1, and score.
    """
    if not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k must be at least 1; got {k!r}. Give a whole number; 10 is usual.")
    data.setup()
    chosen = _positions(data, users)
    seen = _left_out(data, leave_out).csr()
    model.eval()
    scorer, size = model.scorer(), users_within(data.score_bytes, data.num_items)
    parts = []
    for start in range(0, max(1, len(chosen)), size):  # of no users one part, which is empty
        some = chosen[start : start + size]
        scores = scorer(torch.from_numpy(some))
        scores[rows_of(seen, some)] = -torch.inf
        parts.append(_frame(data, some, *best_items(scores, min(k, data.num_items))))
    return pl.concat(parts)


def _contents(checkpoint: Path) -> tuple[type[RecommenderModule], dict[str, Any]]:
    """Which model a checkpoint is of, and what it says of the data."""
    saved = read_checkpoint(checkpoint)
    name, state = saved.get(MODEL), saved.get(RecsysDataModule.__qualname__)
    if name not in models.__all__ or state is None:
        raise ValueError(
            f"{checkpoint} does not say what it is of, one of {', '.join(models.__all__)} and a "
            f"RecsysDataModule; got {name!r}. It is of an earlier version, or of an own model: "
            "call recsys_models.recommend.recommend(model, data)."
        )
    return getattr(models, name), state


def _positions(data: RecsysDataModule, users: Sequence[str | int] | None) -> IntArray:
    if users is None:
        return np.arange(data.num_users)
    positions = {str(user): position for position, user in enumerate(data.user_ids.tolist())}
    wanted = list(dict.fromkeys(map(str, users)))
    unknown = [user for user in wanted if user not in positions]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of the users asked for have no pair in the data, the first of them "
            f"{unknown[0]!r}. Ids are those of the rating file, such as {data.user_ids[0]!s}."
        )
    return np.array([positions[user] for user in wanted], dtype=np.int64)


def _left_out(data: RecsysDataModule, leave_out: str) -> Interactions:
    if leave_out not in LEFT_OUT:
        raise ValueError(f"leave_out must be one of {', '.join(LEFT_OUT)}; got {leave_out!r}.")
    if leave_out == "all":
        return data.train.union(data.validation).union(data.test)
    return data.train if leave_out == "train" else data.train.select(np.arange(0))


def _frame(data: RecsysDataModule, users: IntArray, items: Tensor, scores: Tensor) -> pl.DataFrame:
    """One row for each item that is left for a user."""
    count = items.shape[1]
    return pl.DataFrame(
        {
            "user": data.user_ids[np.repeat(users, count)],
            "item": data.item_ids[items.flatten().numpy()],
            "rank": np.tile(np.arange(1, count + 1), len(users)),
            "score": scores.flatten().numpy(),
        }
    ).filter(pl.col("score") > -torch.inf)


def _write(found: pl.DataFrame, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix.lower() == ".parquet":
        found.write_parquet(output)
    else:
        found.write_csv(output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recsys_models.recommend",
        description="Write the best items of each user by a trained model.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="such as OUTPUT/checkpoints/best.ckpt")
    add("--k", type=int, default=10, help="items for each user (10)")
    add("--users", nargs="+", metavar="ID", help="ids of the rating file; by default all")
    add(
        "--leave-out",
        choices=LEFT_OUT,
        default="all",
        help="which items of a user are not recommended: all that the data has (the default), "
        "those that were trained on, or nothing",
    )
    add("--path", type=Path, help="the rating file, where it was moved since")
    add(
        "--output",
        type=Path,
        default=Path("recommendations.csv"),
        help="a .csv or .parquet file (recommendations.csv)",
    )
    return parser


if __name__ == "__main__":
    main()
