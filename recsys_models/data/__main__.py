r"""Prints the statistics of data sets as a table, like Table 2 of the paper.

The options after a ``--dataset`` belong to it, so that several data sets can be told apart::

    python -m recsys_models.data --dataset filmtrust --path ratings.txt \
        --dataset table --path mine.csv --user-column who --item-column what
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from recsys_models.data.datamodule import DATASETS, RecsysDataModule
from recsys_models.data.splits import SPLITS
from recsys_models.data.statistics import Spread, Statistics, describe


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and the data sets it names, and print one column for each."""
    chosen = _parser().parse_args(arguments).dataset or [{"dataset": "synthetic"}]
    try:
        statistics = [_describe(one) for one in chosen]
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    _print([one["dataset"] for one in chosen], statistics)


class _Gather(argparse.Action):
    """``--dataset`` begins the arguments of a data set; any other option adds one to them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        gathered = namespace.dataset or []
        if self.dest == "dataset":
            gathered = [*gathered, {}]
        elif not gathered:
            parser.error(f"{option_string} belongs to a data set: give --dataset NAME before it")
        gathered[-1][self.dest] = values
        namespace.dataset = gathered


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recsys_models.data",
        description="Print the statistics of data sets. Without --dataset: of the generated one.",
        epilog="Options after a --dataset belong to it. Generated data: --synthetic "
        "num_users=500 num_items=300 num_interactions=9000.",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--dataset", action=_Gather, choices=DATASETS, default=None, help="may be repeated")
    add("--path", action=_Gather, help="rating file or table, also packed (.zip, .gz, .bz2, .xz)")
    add("--data-dir", action=_Gather, help="folder in which published files are looked up")
    add("--split", action=_Gather, choices=SPLITS)
    add("--split-seed", action=_Gather, type=int)
    add("--ratios", action=_Gather, type=float, nargs=3, metavar=("TRAIN", "VALIDATION", "TEST"))
    add("--rating-threshold", action=_Gather, type=float, help="keep ratings of at least this")
    add("--k-core", action=_Gather, type=int, help="least pairs of every user and item")
    for column in ("user", "item", "rating", "time"):
        add(f"--{column}-column", action=_Gather, metavar="NAME", help="of a table")
    add("--separator", action=_Gather, help="of a text table")
    add("--synthetic", action=_Gather, nargs="+", type=_argument, metavar="NAME=NUMBER")
    return parser


def _argument(text: str) -> tuple[str, int | float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number) if "." in number else int(number)
    except ValueError:
        message = f"give NAME=NUMBER, such as num_users=500; got {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def _describe(chosen: dict[str, Any]) -> Statistics:
    data = RecsysDataModule(**{**chosen, "synthetic": dict(chosen.get("synthetic", ()))})
    ratings = data.load()
    return describe(ratings, data.divide(ratings))


def _print(names: list[str], statistics: list[Statistics]) -> None:
    table = Table(title="Data sets")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for label, cells in zip(_LABELS, zip(*map(_cells, statistics), strict=True), strict=True):
        table.add_row(label, *cells)
    Console().print(table)


_LABELS = (
    "users",
    "items",
    "interactions",
    "density",
    "per user: min / median / max",
    "per item: min / median / max",
    "mean rating",
    "repeated ratings, left out",
    "lines that are no rating, left out",
    "train",
    "validation",
    "test",
    "users skipped at validation",
    "users skipped at test",
)


def _cells(one: Statistics) -> list[str]:
    mean = "none" if one.rating_mean is None else f"{one.rating_mean:.4f}"
    counts = (one.train, one.validation, one.test, one.skipped_at_validation, one.skipped_at_test)
    return [
        *(f"{count:,}" for count in (one.users, one.items, one.interactions)),
        f"{one.density:.2%}",
        *map(_spread, (one.per_user, one.per_item)),
        mean,
        *(f"{count:,}" for count in (one.repeated, one.dropped, *counts)),
    ]


def _spread(spread: Spread) -> str:
    least, median, most = spread
    return f"{least:,} / {median:,g} / {most:,}"


if __name__ == "__main__":
    main()
