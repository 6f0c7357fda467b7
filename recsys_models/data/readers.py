"""Readers of published rating files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from recsys_models.data.archives import open_data
from recsys_models.data.download import SOURCES
from recsys_models.data.ratings import FloatArray, Ratings, index_ids
from recsys_models.data.timestamps import seconds

_CHUNK_BYTES = 1 << 22  # a file is taken in pieces, so that its text never lies in memory at once
_ID = rb"\d{1,15}"  # float64 holds whole numbers of this length exactly
_NUMBER = rb"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
_TEXT = rb"\S[^\r\n]*"
_BLANKS = rb"[ \t]+"


@dataclass(frozen=True)
class _Format:
    """How one line is built.

    Attributes:
        shape: the line in words, for messages.
        separator: pattern between two fields.
        fields: pattern of each field.
        optional: pattern of one more field, on every line or on none.
        time: position of the time among the fields, where there is one.
        weighted: the line is EachMovie's, whose fourth field tells ratings from mere clicks.
    """

    shape: str
    separator: bytes
    fields: tuple[bytes, ...]
    optional: tuple[bytes, ...] = ()
    time: int | None = None
    weighted: bool = False


_RATING = (_ID, _ID, _NUMBER)
_FORMATS = {
    "filmtrust": _Format("user item rating", _BLANKS, _RATING),
    "ml_1m": _Format(
        "user::item::rating or user::item::rating::timestamp", b"::", _RATING, (_ID,), time=3
    ),
    "ml_100k": _Format("user item rating timestamp", _BLANKS, (*_RATING, _ID), time=3),
    "ml_10m": _Format("user::item::rating::timestamp", b"::", (*_RATING, _ID), time=3),
    "eachmovie": _Format(
        "Person_ID Movie_ID Score Weight Modified",
        _BLANKS,
        (*_RATING, _NUMBER, _TEXT),
        time=4,
        weighted=True,
    ),
}


def read_ratings(path: str | os.PathLike[str], dataset: str) -> Ratings:
    """Read a rating file as its publisher distributes it, unpacked or in its zip archive.

    Where a user rated an item more than once, the last rating in the file counts. Line ends may be
    LF or CRLF, and blank lines may follow the last rating. In EachMovie a Score of 0 with a Weight
    below 1 is a click on "sounds awful" and no rating: such lines are dropped and counted.
    MovieLens-1M takes about one second, MovieLens-10M ten times as long.

    Args:
        path: the file, or a .zip file that holds it.
        dataset: name of its format, "filmtrust", "ml_1m", "ml_100k", "ml_10m" or "eachmovie".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown format, no ratings, or a line that is no rating (named by its number).
    """
    if dataset not in _FORMATS:
        raise ValueError(
            f"dataset names the format of a rating file, one of {', '.join(_FORMATS)}; "
            f"got {dataset!r}."
        )
    path, name = Path(path), Path(SOURCES[dataset].file).name
    if not path.is_file():
        download = "pass data.download=true, or " if SOURCES[dataset].archive else ""
        raise FileNotFoundError(
            f"there is no ratings file of {dataset} at {path}. Put the publisher's {name} there "
            f"(see {SOURCES[dataset].page}), or {download}data.path=FILE for a file elsewhere."
        )
    with open_data(path, (f"/{name.lower()}",)) as (file, _):
        return _parse(path, file, _FORMATS[dataset])


def _parse(path: Path, file: IO[bytes], form: _Format) -> Ratings:
    columns: tuple[list[FloatArray], ...] = ([], [], [], [])
    dropped = 0
    for content, fields in _checked(path, file, form):
        rows, times = _numbers(content, form, fields)
        if form.weighted:
            kept = (rows[:, 2] != 0) | (rows[:, 3] >= 1)
            rows, times = rows[kept], times[kept]
            dropped += int(len(kept) - kept.sum())
        for column, values in zip(columns, (*rows[:, :3].T, times), strict=True):
            column.append(values.copy())
    if not any(len(part) for part in columns[0]):
        raise ValueError(
            f"{path} holds no ratings ({dropped} lines that are none); expected lines "
            f"{form.shape}. Fetch the file again."
        )
    users, items = (index_ids(_join(column).astype(np.int64)) for column in columns[:2])
    values, times = _join(columns[2]), _join(columns[3])
    return Ratings.from_rows(
        users, items, values, None if np.isnan(times).any() else times, dropped
    )


def _join(parts: list[FloatArray]) -> FloatArray:
    whole = np.concatenate(parts)
    parts.clear()  # of a large file two copies of one column at a time are enough
    return whole


def _numbers(content: bytes, form: _Format, fields: int) -> tuple[FloatArray, FloatArray]:
    """The leading fields as numbers, shape (n, fields), and the times, NaN where unreadable."""
    if form.weighted:  # the date may hold blanks: all behind the fourth field belongs to it
        lines = re.findall(rb"(?m)^[ \t]*((?:\S+[ \t]+){4})(\S[^\r\n]*)", content)
        numbers = b"\n".join(number for number, _ in lines)
        dates = pl.Series([date.decode("latin-1") for _, date in lines], dtype=pl.String)
        times = seconds(dates).fill_null(np.nan).to_numpy()
        return _floats(numbers, 4), times
    rows = _floats(content.replace(b"::", b" "), fields)
    has_time = form.time is not None and form.time < fields
    return rows, rows[:, form.time] if has_time else np.full(len(rows), np.nan)


def _floats(text: bytes, fields: int) -> FloatArray:
    rows: FloatArray = np.fromstring(text.decode("ascii"), dtype=np.float64, sep=" ")
    return rows.reshape(-1, fields)


def _checked(path: Path, file: IO[bytes], form: _Format) -> Iterator[tuple[bytes, int]]:
    """Pieces of the file, whole lines found well formed, with the number of fields of a line."""
    content = file.readline().removeprefix(b"\xef\xbb\xbf")  # a mark some editors put first
    longest = (*form.fields, *form.optional)
    fields = longest if re.fullmatch(_line(form, longest), content) else form.fields
    # The possessive *+ keeps no way back, so many lines cost no memory.
    lines = re.compile(rb"(?:" + _line(form, fields) + rb")*+")
    line_number = 1
    while content:
        piece = file.read(_CHUNK_BYTES)
        cut = content.rfind(b"\n") + 1 if piece else len(content)
        match = lines.match(content, 0, cut)
        end = match.end() if match else 0
        line_number += content.count(b"\n", 0, end)
        if content[end:cut].strip():
            raise ValueError(_describe_bad_line(path, content[end:cut], line_number, form))
        if end:
            yield content[:end], len(fields)
        if not piece:
            return
        content = content[end:] + piece


def _line(form: _Format, fields: tuple[bytes, ...]) -> bytes:
    return rb"[ \t]*" + form.separator.join(fields) + rb"[ \t]*\r?(?:\n|\Z)"


def _describe_bad_line(path: Path, content: bytes, number: int, form: _Format) -> str:
    text = content[:200].split(b"\n", 1)[0].decode("latin-1").rstrip("\r")
    head = text if len(text) <= 60 else text[:60] + "..."
    return (
        f"{path}, line {number}: {head!r} is not a rating of the form {form.shape}, the same on "
        "every line, with whole-number ids and a finite rating. Correct or remove the line, or "
        "fetch the file again."
    )
