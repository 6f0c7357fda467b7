"""The cells of a comparison, each one run of ``recsys-train`` in a process and a folder."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from typing import IO

import numpy as np
from numpy.typing import NDArray

from recsys_models.locks import lock
from recsys_models.report import Result, read_arrays, read_json, read_plain


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        data: name of the data set in its configuration group.
        model: likewise.
        tuner: the row of the table.
        seed: the run's seed.
        overrides: the whole command line of ``recsys-train`` but for the output folder.
        folder: where it writes result.json, per_user.npz and log.txt.
    """

    data: str
    model: str
    tuner: str
    seed: int
    overrides: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        """The cell in words."""
        return f"{self.data} {self.model} {self.tuner} seed {self.seed}"

    def result(self) -> Result | None:
        """What the run has left, if it is finished.

        Raises:
            ValueError: the folder holds a run with another command line, finished or interrupted.
        """
        path = self.folder / "result.json"
        if not path.is_file() and not self.last.is_file():
            return None
        kept = read_plain(self.folder / "cell.json")
        if kept != list(self.overrides):
            raise ValueError(
                f"{self.folder} holds a run of {' '.join(kept)}; this comparison asks for "
                f"{' '.join(self.overrides)}. Choose another output_dir, or remove that folder."
            )
        return read_json(path) if path.is_file() else None

    def per_user(self, metric: str) -> NDArray[np.float64] | None:
        """A test metric of every user, if the run has kept it."""
        path = self.folder / "per_user.npz"
        return read_arrays(path).get(metric) if path.is_file() else None

    @property
    def last(self) -> Path:
        """The checkpoint from which the run goes on, where it was interrupted."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def has_begun(self) -> bool:
        """Whether the run was ever started."""
        return (self.folder / "log.txt").is_file()

    def last_words(self) -> str:
        """The last line that a run printed, the reason where it failed.

        Hydra gives the reason first, then all that it could have been, and where it looked.
        """
        lines = []
        if self.has_begun:
            lines = (self.folder / "log.txt").read_text(errors="replace").splitlines()
        said = [line for line in lines if line.strip() and "HYDRA_FULL_ERROR" not in line]
        reasons = [line for line in said if "Could not " in line]
        return [*said, *reasons][-1].strip() if said else "it said nothing"


_running: set[subprocess.Popen[bytes]] = set()
Launch = Callable[[Cell], int]  # runs a cell and returns its exit status


def plan(
    folder: Path,
    datasets: Iterable[str],
    models: Sequence[str],
    tuners: Sequence[str],
    seeds: Sequence[int],
    rows: Mapping[str, Sequence[str]],
    overrides: Mapping[str, Sequence[str]],
) -> list[Cell]:
    """All cells, seed by seed, so that a comparison that is stopped early has whole tables.

    Args:
        folder: of the comparison.
        datasets: names in their configuration group.
        models: likewise.
        tuners: rows of the table.
        seeds: of the runs.
        rows: the overrides that a row stands for, where that is not tuner=ROW.
        overrides: further ones for each data set.
    """
    every = (
        Cell(
            data,
            model,
            tuner,
            seed,
            (
                f"data={data}",
                f"model={model}",
                *rows.get(tuner, [f"tuner={tuner}"]),
                *overrides[data],
                f"seed={seed}",
            ),
            folder / "cells" / data / model / tuner / f"seed{seed}",
        )
        for seed in seeds
        for data in datasets
        for model in models
        for tuner in tuners
    )
    return list(dict.fromkeys(every))  # what is named twice is one cell, and one folder


def run_missing(
    cells: Sequence[Cell],
    launch: Launch,
    n_jobs: int,
    say: Callable[[str], None] = print,
    metrics: Sequence[str] = (),
) -> list[Cell]:
    """Run the cells that have no result yet; returns those that failed.

    Every cell is a process of its own rather than a worker of a pool: whatever ends one, be it
    memory or a signal, leaves the others, and each can be repeated by the command in its folder.

    Args:
        cells: all of them.
        launch: runs one.
        n_jobs: how many run at the same time.
        say: hears of each that has ended.
        metrics: what the table shows; of a run that lacks one this is said at once.

    Raises:
        ValueError: a folder holds another run, or one that was trained on other pairs.
    """
    finished = finished_of(cells)
    missing = [cell for cell in cells if cell not in finished]
    say(f"{len(cells)} cells, {len(cells) - len(missing)} finished before, {len(missing)} to run")

    def run(numbered: tuple[int, Cell]) -> Cell | None:
        number, cell = numbered
        cell.folder.mkdir(parents=True, exist_ok=True)
        with (cell.folder / "cell.json").open("a") as own:
            if not lock(own, wait=False):
                result, done = None, "another comparison is at it"
            elif (result := cell.result()) is not None:
                done = "finished by another comparison"
            else:
                own.truncate(0)
                own.write(json.dumps(list(cell.overrides)) + "\n")
                own.flush()
                result = cell.result() if launch(cell) == 0 else None
                done = f"failed: {cell.last_words()}" if result is None else _said(result, metrics)
        say(f"[{number}/{len(missing)}] {cell.name}: {done}")
        if result is None:
            return cell
        finished[cell] = result
        check_pairs(finished.copy())
        return None

    with _ending_together(), ThreadPoolExecutor(n_jobs) as pool:
        failed = list(pool.map(run, enumerate(missing, start=1)))
    return [cell for cell in failed if cell is not None]


def _said(result: Result, metrics: Sequence[str]) -> str:
    lacks = [name for name in metrics if name not in result.test]
    lack = f"; has no {', '.join(lacks)}, only {', '.join(result.test)}" if lacks else ""
    return f"{result.seconds:.0f} s{lack}"


def finished_of(cells: Iterable[Cell]) -> dict[Cell, Result]:
    """The cells that have a result.

    Raises:
        ValueError: a folder holds another run, or one that was trained on other pairs.
    """
    found = {cell: cell.result() for cell in cells}
    finished = {cell: result for cell, result in found.items() if result is not None}
    check_pairs(finished)
    return finished


def check_pairs(finished: Mapping[Cell, Result]) -> None:
    """Raise where runs of one data set were not trained on the same pairs."""
    first: dict[str, Cell] = {}
    for cell, result in finished.items():
        if result.pairs is None:
            continue
        other = first.setdefault(cell.data, cell)
        if result.pairs != finished[other].pairs:
            raise ValueError(
                f"{cell.name} and {other.name} were trained on different pairs, so they cannot be "
                f"compared: the data has changed between them. Choose another output_dir, or "
                f"remove the older of {cell.folder} and {other.folder}, and others of its time."
            )


def launcher(config_dir: str | None) -> Launch:
    """Runs cells by ``python -m recsys_models.train`` and keeps what they print in log.txt.

    Args:
        config_dir: a folder of the user's own configurations, which joins in.
    """
    own = [] if config_dir is None else ["--config-dir", config_dir]

    def launch(cell: Cell) -> int:
        folder = cell.folder.resolve()
        command = [sys.executable, "-m", "recsys_models.train", *own, *cell.overrides]
        if cell.last.is_file():  # of a training that was interrupted
            command.append(f"ckpt_path={_quoted(cell.last.resolve())}")
        with (cell.folder / "log.txt").open("a") as log:  # to which another run may still write
            log.truncate(0)
            status = _call([*command, f"hydra.run.dir={_quoted(folder)}"], log)
            if status < 0:
                log.write(f"\nended by signal {-status} ({signal.strsignal(-status)})\n")
        return status

    return launch


def _call(command: list[str], log: IO[str]) -> int:
    with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
        _running.add(process)
        try:
            return process.wait()
        finally:
            _running.discard(process)


@contextmanager
def _ending_together() -> Iterator[None]:
    """Lets SIGTERM do what Ctrl-C does, which reaches the cells' processes as well."""

    def end(*_: object) -> None:
        for process in tuple(_running):
            process.send_signal(signal.SIGINT)
        raise KeyboardInterrupt

    if current_thread() is not main_thread():  # which alone hears of signals
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _quoted(path: Path) -> str:
    """A path as Hydra's command line takes it."""
    escaped = str(path).replace("'", "\\'")
    return f"'{escaped}'"
