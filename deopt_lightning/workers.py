"""Tasks shared out among this process and forked copies of it, each with one thread.

A forked process has the model, the batches and the Trainer as they are, without a copy being made
of what it only reads. So any task can run there, and what it changes stays there; its result is
pickled and comes back. The result of a task does not depend on where it runs.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import connection, get_context
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from deopt_lightning.pure_steps import threads
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
        workers: Number of processes, of which this is one; below 2 there is no other. A task runs
            here again if its process died or could not do it, after a warning.
        known: Objects that results refer to, and that come back as the very same objects.
    """
    missing = set(range(count))
    if workers > 1:
        for index, result in _side_by_side(task, count, min(workers, count), known):
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


def _side_by_side(
    task: Callable[[int], Result], count: int, workers: int, known: Iterable[object]
) -> Iterator[tuple[int, Result]]:
    """Runs tasks here and in forked processes; after one each, whoever is free takes the next."""
    table = list(known)
    context = get_context("fork")
    numbers = _Numbers(range(workers - 1, count))
    processes, readers = [], []
    try:
        for first in range(workers - 1):
            reader, writer = context.Pipe(duplex=False)
            life = partial(_work, task, chain([first], numbers), writer, table)
            process = context.Process(target=life, daemon=True)
            with warnings.catch_warnings():  # Python 3.12 warns of locks that threads may hold
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            writer.close()
            processes.append(process)
            readers.append(reader)
        for index in numbers:
            with threads(1):
                result = task(index)
            yield index, result
            del result
            yield from _results(readers, table, wait=False)
        yield from _results(readers, table, wait=True)
    finally:
        numbers.close()
        for process in processes:
            process.terminate()
            process.join()
        for reader in readers:
            reader.close()


def _results(
    readers: list[connection.Connection], table: list[object], *, wait: bool
) -> Iterator[tuple[int, Any]]:
    """What processes have sent; on request, all that they will send. Drops those that are done."""
    while readers:
        ready = connection.wait(readers, None if wait else 0)
        if not ready:
            return
        for reader in ready:
            assert isinstance(reader, connection.Connection)
            try:
                yield _Unpickler(io.BytesIO(reader.recv_bytes()), table).load()
            except EOFError:  # this worker is done, or gone
                readers.remove(reader)
                reader.close()


def _work(
    task: Callable[[int], Any],
    numbers: Iterable[int],
    results: connection.Connection,
    known: list[object],
) -> None:
    """The life of a worker; an error ends it, and shows again where the task is redone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # threads that the main process started do not exist here
    sent = None
    try:
        with ThreadPoolExecutor(1) as sender:  # the main process reads between tasks of its own
            for index in numbers:
                buffer = io.BytesIO()
                _Pickler(buffer, known).dump((index, task(index)))
                if sent is not None:
                    sent.result()  # so that no more than one result lies here
                sent = sender.submit(results.send_bytes, buffer.getbuffer())
    except Exception:
        return


class _Numbers:
    """Numbers, each of which one process gets, and no process waits for another.

    They lie in a pipe from which forked processes read. A lock would do as well, until a process
    dies that holds it.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._source, sink = os.pipe()
        os.write(sink, struct.pack(f"={len(numbers)}i", *numbers))
        os.close(sink)

    def __iter__(self) -> Iterator[int]:
        while taken := os.read(self._source, 4):
            yield struct.unpack("=i", taken)[0]

    def close(self) -> None:
        """Leaves the rest to others."""
        os.close(self._source)


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
