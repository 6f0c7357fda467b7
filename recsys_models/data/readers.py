"""Readers of published rating files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys_models.data.download import SOURCES
from recsys_models.data.interactions import IntArray, Interactions

FloatArray = NDArray[np.float64]

_ID = rb"\d{1,15}"  # float64 holds whole numbers of this length exactly
_NUMBER = rb"[-+]?\d+(?:\.\d*)?"


@dataclass(frozen=True)
class Ratings:
    """A rating file with its ids re-indexed in ascending order of the original ids.

    Attributes:
        interactions: the rated (user, item) pairs.
        values: rating of each pair, shape (n,), in the order of `interactions`.
        user_ids: original id of each user, shape (num_users,), ascending.
        item_ids: original id of each item, shape (num_items,), ascending.
    """

    interactions: Interactions
    values: FloatArray
    user_ids: IntArray
    item_ids: IntArray


@dataclass(frozen=True)
class _Format:
    """How one line is built: user, item, rating and perhaps a time stamp, which is not used."""

    separator: bytes
    separator_pattern: bytes
    shape: str
    timestamp: bool


_FORMATS = {
    "filmtrust": _Format(b" ", rb"[ \t]+", "user item rating", timestamp=False),
    "ml_1m": _Format(b"::", b"::", "user::item::rating or user::item::rating::timestamp", True),
}


def read_ratings(path: str | os.PathLike[str], dataset: str) -> Ratings:
    """Read a rating file as its publisher distributes it.

    Where a user rated an item more than once, the last rating in the file counts. Line ends may be
    LF or CRLF, and blank lines may follow the last rating. MovieLens-1M takes about one second.

    Args:
        path: the file.
        dataset: name of its format, "filmtrust" or "ml_1m".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown format, no ratings, or a line that is no rating (named by its number).
    """
    if dataset not in _FORMATS:
        raise ValueError(
            f"dataset names the format of a rating file, one of {', '.join(_FORMATS)}; "
            f"got {dataset!r}."
        )
    path = Path(path)
    if not path.is_file():
        source = SOURCES[dataset]
        raise FileNotFoundError(
            f"there is no ratings file of {dataset} at {path}. Put the publisher's "
            f"{Path(source.file).name} there (see {source.page}), or pass data.download=true, "
            "or data.path=FILE for a file elsewhere."
        )
    return _index(_parse(path, _FORMATS[dataset]))


def _parse(path: Path, form: _Format) -> FloatArray:
    """Rows (user, item, rating, ...) in file order; every line is checked before it is read."""
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # the mark some editors put first
    if not content.strip():
        raise ValueError(
            f"{path} holds no ratings ({len(content)} bytes); expected lines {form.shape}. "
            "Fetch the file again."
        )
    first_line = content.split(b"\n", 1)[0]
    has_timestamp = form.timestamp and first_line.count(form.separator) == 3
    fields = [_ID, _ID, _NUMBER] + [_ID] * has_timestamp
    line = rb"[ \t]*" + form.separator_pattern.join(fields) + rb"[ \t]*\r?(?:\n|\Z)"
    # The possessive *+ keeps no way back, so a million lines cost no memory.
    match = re.match(rb"(?:" + line + rb")*+(?:\s*\Z)?", content)
    end = match.end() if match else 0
    if end < len(content):
        raise ValueError(_describe_bad_line(path, content, end, form))
    numbers = content.replace(form.separator, b" ").decode("ascii")
    return np.fromstring(numbers, dtype=np.float64, sep=" ").reshape(-1, len(fields))


def _describe_bad_line(path: Path, content: bytes, start: int, form: _Format) -> str:
    number = content.count(b"\n", 0, start) + 1
    text = content[start : start + 200].split(b"\n", 1)[0].decode("latin-1").rstrip("\r")
    head = text if len(text) <= 60 else text[:60] + "..."
    return (
        f"{path}, line {number}: {head!r} is not a rating of the form {form.shape}, the same on "
        "every line, with whole-number ids and a finite rating. Correct or remove the line, or "
        "fetch the file again."
    )


def _index(rows: FloatArray) -> Ratings:
    """Re-index the ids, sort the pairs and keep the last rating of each."""
    user_ids, users = np.unique(rows[:, 0].astype(np.int64), return_inverse=True)
    item_ids, items = np.unique(rows[:, 1].astype(np.int64), return_inverse=True)
    keys = users * len(item_ids) + items
    order = np.argsort(keys, kind="stable")
    is_last = np.append(np.diff(keys[order]) > 0, True)
    kept = order[is_last]
    return Ratings(
        Interactions(users[kept], items[kept], len(user_ids), len(item_ids)),
        rows[kept, 2],
        user_ids,
        item_ids,
    )
