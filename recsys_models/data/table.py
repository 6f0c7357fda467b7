"""Reads anybody's interactions from a CSV, TSV or Parquet table, given the names of its columns."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from recsys_models.data.archives import open_data
from recsys_models.data.interactions import IntArray
from recsys_models.data.ratings import IdArray, Ratings, index_ids
from recsys_models.data.timestamps import seconds

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns; a table may hold others, which are left out.

    Attributes:
        user: the column of user ids, whole numbers or text.
        item: the column of item ids, likewise.
        rating: the column of ratings, or None.
        time: the column of times, numbers or dates, or None.
    """

    user: str = "user"
    item: str = "item"
    rating: str | None = None
    time: str | None = None

    def names(self) -> list[str]:
        """Those that are given."""
        return [n for n in (self.user, self.item, self.rating, self.time) if n is not None]


def read_table(
    path: str | os.PathLike[str], columns: Columns | None = None, separator: str | None = None
) -> Ratings:
    """Read interactions from a table with a header, in plain form or packed.

    Ids that are all whole numbers are ordered as numbers, others as text. Of several rows of a
    pair the latest counts, or the last in the file where there are no times.

    Args:
        path: a file whose name ends in .csv, .tsv, .tab, .parquet or .pq, also with .gz, .bz2 or
            .xz behind it, or a .zip file with one such member. Any other name stands for comma
            separated text.
        columns: names of the columns; "user" and "item" when None.
        separator: the character between the fields of a text table, where its name misleads.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or a line lacks a value or holds one that is no number.
    """
    columns, path = columns or Columns(), Path(path)
    if not path.is_file():
        kind = ", which is a folder" if path.is_dir() else ""
        raise FileNotFoundError(
            f"there is no table at {path}{kind}. Give a file on this machine with data.path=FILE."
        )
    if separator is not None and len(separator.encode()) != 1:
        raise ValueError(f"separator must be one character, such as ';'; got {separator!r}.")
    with open_data(path, (*_SEPARATORS, *_PARQUET)) as (file, name):
        content = file.read()
    suffix = Path(name).suffix.lower()
    table = _Table(path, content, columns, separator or _SEPARATORS.get(suffix, ","))
    frame = table.parquet() if suffix in _PARQUET else table.text()
    if not frame.height:
        raise ValueError(f"{path} holds no rows below its header. Write it again.")

    ids = [table.ids(frame[column]) for column in (columns.user, columns.item)]
    for column in ids:
        table.check(column, column)
    numbers = {}
    if columns.rating:
        rating = frame[columns.rating]
        numbers["values"] = seconds(rating.cast(pl.Float64, strict=False))
        table.check(numbers["values"], rating)
    if columns.time:
        numbers["times"] = seconds(frame[columns.time])
        table.check(numbers["times"], frame[columns.time])
    values, times = (numbers[k].to_numpy() if k in numbers else None for k in ("values", "times"))
    (user_ids, users), (item_ids, items) = map(_index, ids)
    if times is not None:  # of a pair's rows the last counts, so the latest has to be the last
        order = np.argsort(times, kind="stable")
        users, items, times = users[order], items[order], times[order]
        values = None if values is None else values[order]
    return Ratings.from_rows((user_ids, users), (item_ids, items), values, times)


@dataclass(frozen=True)
class _Table:
    """One table's bytes, and where in them an error lies."""

    path: Path
    content: bytes
    columns: Columns
    separator: str

    def parquet(self) -> pl.DataFrame:
        try:
            self._check_header(list(pl.read_parquet_schema(io.BytesIO(self.content))))
            frame = pl.read_parquet(self.content, columns=self.columns.names())
        except PolarsError as error:
            raise ValueError(f"{self.path} is no Parquet table ({_summary(error)}).") from error
        return frame

    def text(self) -> pl.DataFrame:
        """The named columns as text, without the blank lines that may follow the last row."""
        try:
            self._check_header(next(self._rows())[1])
            # All columns first: asked for some, polars overlooks rows of too many fields.
            table = pl.read_csv(self.content, separator=self.separator, infer_schema=False)
            frame = table.select(self.columns.names())
        except StopIteration as error:
            raise ValueError(f"{self.path} is empty; expected a header and rows.") from error
        except PolarsError as error:
            raise ValueError(self._describe_unreadable(error)) from error
        filled = frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series().arg_true()
        return frame.head(int(filled[-1]) + 1 if len(filled) else 0)

    def ids(self, column: pl.Series) -> pl.Series:
        """A column of ids as numbers or text, null where one is missing."""
        if column.dtype.is_integer() or column.dtype == pl.String:
            return column
        if column.dtype.is_float():
            column = column.fill_nan(None)
        try:
            return column.cast(pl.String)
        except PolarsError as error:
            raise ValueError(
                f"{self.path}: ids are whole numbers or text; column {column.name!r} holds "
                f"{column.dtype}. Write it as one of these."
            ) from error

    def check(self, numbers: pl.Series, column: pl.Series) -> None:
        """Raise where a row's value is missing or, as `numbers` show by null, unreadable."""
        if numbers.has_nulls():
            row = numbers.is_null().arg_true()[0]
            value = column[row]
            problem = f"{column.name!r} is " + ("empty" if value is None else f"{value!r}")
            raise ValueError(self._describe_row(row, problem))

    def _check_header(self, header: list[str]) -> None:
        wanted = self.columns.names()
        missing = [name for name in wanted if name not in header]
        if missing:
            raise ValueError(
                f"{self.path} has no column {', '.join(map(repr, missing))}; its header names "
                f"{', '.join(map(repr, header))[:300]}. Name the columns with user_column, "
                "item_column, rating_column and time_column, and what stands between fields with "
                "separator."
            )
        twice = [name for name in wanted if header.count(name) > 1 or wanted.count(name) > 1]
        if twice:
            raise ValueError(
                f"{self.path}: users, items, ratings and times are columns of their own; "
                f"{twice[0]!r} stands for two, in its header or in what it was called for. Give "
                "each a name of its own."
            )

    def _describe_row(self, row: int, problem: str) -> str:
        if self.content.startswith(b"PAR1"):
            return f"{self.path}, row {row + 1}: {problem}. Correct or remove the row."
        start, _ = next(islice(self._rows(), row + 1, None))
        line = self.content.split(b"\n", start)[start - 1].decode("utf-8", "replace").rstrip("\r")
        head = line if len(line) <= 60 else line[:60] + "..."
        return (
            f"{self.path}, line {start}: {head!r} is no interaction, for {problem}. Ids must be "
            "given, ratings finite numbers, times all numbers or all dates. Correct or remove the "
            "line."
        )

    def _describe_unreadable(self, error: PolarsError) -> str:
        rows = self._rows()
        _, header = next(rows)
        with suppress(csv.Error):  # an open quotation may swallow more than csv puts up with
            for k, (_, row) in enumerate(rows):
                if len(row) > len(header):
                    problem = f"it has {len(row)} fields under {len(header)} headings"
                    return self._describe_row(k, problem)
        return f"{self.path} is no readable table ({_summary(error)}). Check quotes and encoding."

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Number of its first line and fields of every row, the header first."""
        text = io.TextIOWrapper(
            io.BytesIO(self.content), encoding="utf-8-sig", errors="replace", newline=""
        )
        reader = csv.reader(text, delimiter=self.separator)
        start = 1
        for row in reader:
            yield start, row
            start = reader.line_num + 1


def _index(column: pl.Series) -> tuple[IdArray, IntArray]:
    numbers = column.cast(pl.Int64, strict=False)
    # "007" and "7" may be two ids: text counts as a number only where it is spelt like one.
    if not numbers.has_nulls() and (
        column.dtype.is_integer() or (numbers.cast(pl.String) == column.cast(pl.String)).all()
    ):
        return index_ids(numbers.to_numpy())
    text = column.cast(pl.String)
    names = text.unique().sort()
    positions = text.cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int64)
    return np.array(names.to_list()), positions


def _summary(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
