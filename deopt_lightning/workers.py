"""Tasks shared out among forked copies of this process, each with one thread.

A forked process has the model, the batches and the Trainer as they are, without a copy being made
of what it only reads. So any task can run there, and what it changes stays there; its result is
pickled and comes back. The result of a task does not depend on where it runs.
"""

from __future__ import annotations

import io
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection, get_context
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from deopt_lightning.trainer_seam import validation_workers

Result = TypeVar("Result")


def worker_count(trainer: pl.Trainer, asked: int) -> int:
    """How many processes to share candidates out among; 0 for none but this one.

    Args:
        trainer: A Trainer in `on_train_epoch_end`.
        asked: What the user asked for.
    """
    if asked > 1 and (reason := why_no_workers(trainer)) is not None:
        rank_zero_warn(
            f"DEOptCallback(workers={asked}) goes without worker processes: {reason}. The results "
            "are the same."
        )
        return 0
    return asked


def why_no_workers(trainer: pl.Trainer) -> str | None:
    """Why a Trainer's process cannot be forked; None if it can."""
    if sys.platform != "linux":
        return f"they are forked, which is not safe on {sys.platform}"
    if torch.cuda.is_available() or torch.xpu.is_available():
        return "torch's gradients do not survive a fork where there is a GPU"
    if type(trainer.strategy).__name__ != "SingleDeviceStrategy":
        return f"{type(trainer.strategy).__name__} has processes of its own"
    if validation_workers(trainer):
        return "the validation dataloader has workers of its own; set its num_workers=0"
    return None


def run_shared_out(
    task: Callable[[int], Result], count: int, workers: int, known: Iterable[object] = ()
) -> Iterator[tuple[int, Result]]:
    """Runs ``task(0)`` to ``task(count - 1)``; yields each index with its result, in any order.

    Args:
        task: Must give the same result in every process.
        count: How often to call it.
        workers: Number of processes; below 2, all tasks run in this one. A task also runs here if
            its process died or could not do it, after a warning.
        known: Objects that results refer to, and that come back as the very same objects.
    """
    missing = set(range(count))
    if workers > 1:
        for index, result in _from_workers(task, count, min(workers, count), known):
            missing.discard(index)
            yield index, result
        if missing:
            rank_zero_warn(
                f"DEOptCallback: a worker process stopped before {len(missing)} of {count} "
                "candidates were done; they are done again in the main process. Where this "
                "repeats, workers=0 does without such processes."
            )
    for index in sorted(missing):
        yield index, task(index)


def _from_workers(
    task: Callable[[int], Result], count: int, workers: int, known: Iterable[object]
) -> Iterator[tuple[int, Result]]:
    table = list(known)
    context = get_context("fork")
    processes, readers = [], []
    try:
        for worker in range(workers):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(task, range(worker, count, workers), writer, table), daemon=True
            )
            with warnings.catch_warnings():  # Python 3.12 warns of locks that threads may hold
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            writer.close()
            processes.append(process)
            readers.append(reader)
        while readers:
            for ready in connection.wait(readers):
                assert isinstance(ready, connection.Connection)
                try:
                    index, result = _Unpickler(io.BytesIO(ready.recv_bytes()), table).load()
                except EOFError:  # this worker is done, or gone
                    readers.remove(ready)
                    ready.close()
                else:
                    yield index, result
    finally:
        for process in processes:
            process.terminate()
            process.join()
        for reader in readers:
            reader.close()


def _work(
    task: Callable[[int], Any],
    indices: Iterable[int],
    results: connection.Connection,
    known: list[object],
) -> None:
    """The life of a worker; an error ends it, and shows again where the task is redone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # threads that the main process started do not exist here
    try:
        for index in indices:
            buffer = io.BytesIO()
            _Pickler(buffer, known).dump((index, task(index)))
            results.send_bytes(buffer.getbuffer())
    except Exception:
        return


class _Pickler(pickle.Pickler):
    """Writes known objects as their places in the table; forked processes agree on them."""

    def __init__(self, file: io.BytesIO, known: list[object]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._places = {id(thing): place for place, thing in enumerate(known)}

    def persistent_id(self, thing: object) -> int | None:
        return self._places.get(id(thing))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, known: list[object]) -> None:
        super().__init__(file)
        self._known = known

    def persistent_load(self, place: int) -> object:
        return self._known[place]
