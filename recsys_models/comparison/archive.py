"""Runs of a comparison in two small files, kept beside its page, which can be made from them again.

``runs.json`` has one line for each run: its command line and its result. What no page shows is
shortened: of lr and weight decay four digits and the epochs in which they change, of a curve where
it rises. ``per_user.npz`` has the metric that is tested user by user, in ten-thousandths, which is
as finely as the test takes it.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_models.comparison.cells import Cell
from recsys_models.comparison.frame import Frame
from recsys_models.comparison.results import PER_USER_STEP, Results
from recsys_models.costs import corners
from recsys_models.locks import lock
from recsys_models.report import Result, from_json, read_arrays, read_plain, write_json

RUNS, PER_USER = "runs.json", "per_user.npz"
DIGITS = 4


def is_archive(folder: Path) -> bool:
    """Whether a folder holds runs in this form."""
    return (folder / RUNS).is_file()


def write_archive(folder: Path, frame: Frame, results: Results) -> None:
    """Write the two files."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_plain_cell(cell, results.of.get(cell))) for cell in results.cells]
    head = json.dumps(asdict(frame))
    text = f'{{"frame": {head},\n"runs": [\n' + ",\n".join(lines) + "\n]}\n"
    arrays = BytesIO()
    np.savez_compressed(arrays, **_per_user(results))  # type: ignore[arg-type]
    contents = {PER_USER: arrays.getvalue(), RUNS: text.encode()}
    parts = {name: (folder / name).with_suffix(".part") for name in contents}
    for name, part in parts.items():  # both first, since there may be no other copy of the runs
        part.write_bytes(contents[name])
    for name, part in parts.items():
        part.replace(folder / name)


@contextmanager
def kept_from_others(folder: Path) -> Iterator[None]:
    """Lets processes that add to a folder do so one after the other, where there are locks."""
    if sys.platform == "win32":  # folders cannot be opened
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def read_archive(folder: Path, scratch: Path) -> tuple[Frame, list[Cell]]:
    """Read what `write_archive` has written.

    Args:
        folder: of the two files.
        scratch: an empty folder, which gets a folder for every run as if it had just been made.

    Returns:
        The frame, and all cells, also those without a result.
    """
    kept, users = read_plain(folder / RUNS), read_arrays(folder / PER_USER)
    try:
        return Frame(**kept["frame"]), _read_cells(kept["runs"], users, scratch)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / RUNS} holds no runs as this version writes them ({error}). Restore it, or "
            "take the version that wrote it."
        ) from error


def _read_cells(
    runs: list[dict[str, Any]], users: dict[str, NDArray[Any]], scratch: Path
) -> list[Cell]:
    cells = []
    for plain in runs:
        cell = _cell_of(plain, scratch)
        cell.folder.mkdir(parents=True)
        (cell.folder / "cell.json").write_text(json.dumps(list(cell.overrides)))
        if "said" in plain:
            (cell.folder / "log.txt").write_text(plain["said"])
        if plain["result"] is not None:
            write_json(from_json(plain["result"]), cell.folder / "result.json")
        if (name := _name(cell)) in users:
            values = users[name] * PER_USER_STEP
            of_metric: dict[str, Any] = {users["metric"].item(): values}
            np.savez(cell.folder / "per_user.npz", **of_metric)
        cells.append(cell)
    return cells


def _plain_cell(cell: Cell, result: Result | None) -> dict[str, Any]:
    identity = {name: getattr(cell, name) for name in ("data", "model", "tuner", "seed")}
    kept: dict[str, Any] = {**identity, "overrides": list(cell.overrides), "result": None}
    if result is None:
        return kept | ({"said": cell.last_words()} if cell.has_begun else {})
    plain = asdict(result)
    plain["curve"] = corners(result.curve)
    plain["schedule"] = _rounded(_changes(plain["schedule"]))
    plain["points"] = _rounded(plain["points"])
    return kept | {"result": plain}


def _cell_of(plain: dict[str, Any], scratch: Path) -> Cell:
    data, model, tuner, seed = (plain[name] for name in ("data", "model", "tuner", "seed"))
    folder = scratch / data / model / tuner / f"seed{seed}"
    return Cell(data, model, tuner, seed, tuple(plain["overrides"]), folder)


def _changes(schedule: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The epochs that train with other values than the one before."""
    kept: list[dict[str, Any]] = []
    for row in schedule:
        if not kept or {**row, "epoch": 0} != {**kept[-1], "epoch": 0}:
            kept.append(row)
    return kept


def _rounded(plain: Any) -> Any:
    if isinstance(plain, float):
        return float(f"{plain:.{DIGITS}g}")
    if isinstance(plain, dict):
        return {key: _rounded(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [_rounded(value) for value in plain]
    return plain


def _per_user(results: Results) -> dict[str, NDArray[Any]]:
    metric = results.user_metric
    of = {_name(cell): cell.per_user(metric) for cell in results.of}
    known = {name: values for name, values in of.items() if values is not None}
    steps = {name: np.rint(v / PER_USER_STEP).astype(np.int16) for name, v in known.items()}
    return {"metric": np.array(metric), **steps}


def _name(cell: Cell) -> str:
    return f"{cell.data}/{cell.model}/{cell.tuner}/{cell.seed}"
