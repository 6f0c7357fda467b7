"""Tasks shared out among this process and forked copies of it, each with one thread.

A forked process has the model, the batches and the Trainer as they are, without a copy being made
of what it only reads. So any task can run there, and what it changes stays there; its result is
pickled and comes back. The result of a task does not depend on where it runs.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from mmap import mmap
from multiprocessing import connection, current_process, get_context
from multiprocessing.context import ForkProcess
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray

from deopt_lightning.packing import packed, unpacked
from deopt_lightning.pure_steps import threads
from deopt_lightning.replay import Batches, Redrawn
from deopt_lightning.trainer_seam import loader_workers

if sys.platform == "linux":
    import fcntl

FloatArray = NDArray[np.float64]

_STANDS_STILL = 60.0  # seconds without work after which a process waits for what never comes
_PIPE_BYTES = 2**20  # as much as Linux gives anybody, unless it is set up otherwise


def worker_count(trainer: pl.Trainer, asked: int, batches: Batches) -> int:
    """How many processes to share candidates out among; 0 for none but this one.

    Args:
        trainer: A Trainer in `on_train_epoch_end`.
        asked: What the user asked for.
        batches: What candidates train on.
    """
    if asked > 1 and (reason := why_no_workers(trainer, batches)) is not None:
        rank_zero_warn(
            f"DEOptCallback(workers={asked}) goes without worker processes: {reason}. The results "
            "are the same."
        )
        return 0
    return asked


def why_no_workers(trainer: pl.Trainer, batches: Batches) -> str | None:
    """Why a Trainer's process cannot be forked; None if it can."""
    if sys.platform != "linux":
        return f"they are forked, which is not safe on {sys.platform}"
    if current_process().daemon:
        return "this process is a daemon, which may start none"
    if torch.cuda.is_available() or torch.xpu.is_available():
        return "torch's gradients do not survive a fork where there is a GPU"
    if type(trainer.strategy).__name__ != "SingleDeviceStrategy":
        return f"{type(trainer.strategy).__name__} has processes of its own"
    drawing = ["validation", *(["training"] if isinstance(batches, Redrawn) else [])]
    for stage in drawing:
        if loader_workers(trainer, stage):
            return f"the {stage} dataloader has workers of its own; set its num_workers=0"
    return None


class Workers:
    """This process and forked copies of it, which share tasks out among them.

    The copies are made when the first tasks are to be run, and wait for further ones until the
    end of a ``with`` block. They do not see what this process changes meanwhile, but for arrays
    from `shared_array`. Where they have waited for what never comes, ``stood_still`` is true.

    Args:
        task: Must give the same result for an index in every process.
        count: Number of processes, of which this is one; below 2 there is no other.
        known: Objects that results refer to, and that come back as the very same objects.
    """

    def __init__(
        self, task: Callable[[int], Any], count: int, known: Iterable[object] = ()
    ) -> None:
        self._task = task
        self._count = count
        self._known = list(known)
        self.stood_still = False
        self._numbers: _Numbers | None = None
        self._processes: dict[connection.Connection, ForkProcess] = {}  # by what they send

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, count: int) -> Iterator[tuple[int, Any]]:
        """Runs ``task(0)`` to ``task(count - 1)``; yields each index with its result, in any order.

        A task runs here again if its process died or could not do it, after a warning.
        """
        missing = set(range(count))
        if self._count > 1 and count > 1 and not self.stood_still:
            for index, result in self._side_by_side(count):
                missing.discard(index)
                yield index, result
                del result
            if missing:
                rank_zero_warn(
                    f"DEOptCallback: a worker process stopped before {len(missing)} of {count} "
                    "candidates were done; they are done again in the main process. Where this "
                    "repeats, workers=0 does without such processes."
                )
        for index in sorted(missing):
            yield index, self._here(index)

    def _here(self, index: int) -> Any:
        """Runs a task in this process, with as many threads as it would have in any."""
        with threads(1 if self._count > 1 else torch.get_num_threads()):
            return self._task(index)

    def _side_by_side(self, count: int) -> Iterator[tuple[int, Any]]:
        """Runs tasks here and in the forked processes; whoever is free takes the next."""
        forked = 0
        if self._numbers is None or self._numbers.ended:
            self.close()
            forked = min(self._count, count) - 1
            self._numbers = self._fork(forked)  # each begins with a task of its own
        self._numbers.put(range(forked, count))
        left = count
        while (index := self._numbers.take()) is not None:
            result = self._here(index)
            left -= 1
            yield index, result
            del result
            for found in self._results(seconds=0):
                left -= 1
                yield found
        while left and self._processes:
            missing, before = left, self._processor_seconds()
            for found in self._results(seconds=_STANDS_STILL):
                left -= 1
                yield found
            if left == missing and self._processes and self._processor_seconds() == before:
                rank_zero_warn(
                    f"DEOptCallback: a worker process has done nothing for {_STANDS_STILL:g} s and "
                    "is ended; no more are begun. It may wait for a thread of the main process, "
                    "of which a fork has none, such as one of a pool that the module holds."
                )
                self.stood_still = True
                self.close()

    def _fork(self, count: int) -> _Numbers:
        numbers = _Numbers()
        context = get_context("fork")
        for first in range(count):
            reader, writer = context.Pipe(duplex=False)
            _widen(writer)
            readers = [*self._processes, reader]
            life = partial(_work, self._task, first, numbers, readers, writer, self._known)
            process = context.Process(target=life, daemon=True)
            with warnings.catch_warnings(), _uncollected():
                # Python 3.12 warns of locks that threads may hold.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            writer.close()
            self._processes[reader] = process
        return numbers

    def close(self) -> None:
        """Ends the processes; the next tasks have new ones."""
        for reader, process in self._processes.items():
            process.terminate()  # its memory takes a while to go, for which nobody waits
            reader.close()
        self._processes = {}
        if self._numbers is not None:
            self._numbers.close()
            self._numbers = None

    def _processor_seconds(self) -> list[float]:
        """How long each process has computed; as much as before where none did anything."""
        # Linux's number of the clock of another process, which Python has no name for.
        clocks = [~(process.pid or 0) << 3 | 2 for process in self._processes.values()]
        with suppress(OSError):  # of one that has ended
            return [time.clock_gettime(clock) for clock in clocks]
        return []

    def _results(self, *, seconds: float) -> Iterator[tuple[int, Any]]:
        """What processes have sent; waits for it for so long.

        Where one is gone the others are to end, too, when they have done all, so that what it has
        left undone shows.
        """
        for reader in connection.wait(list(self._processes), seconds):
            assert isinstance(reader, connection.Connection)
            try:
                yield unpacked(reader.recv_bytes(), self._known)
            except (EOFError, OSError):  # the latter where it was amid a result
                assert self._numbers is not None
                self._numbers.end()
                self._processes.pop(reader).join()
                reader.close()


def shared_array(shape: tuple[int, ...]) -> FloatArray:
    """An array of zeros whose contents forked processes share with this one."""
    memory = mmap(-1, max(1, 8 * math.prod(shape)))
    return np.frombuffer(memory, dtype=np.float64, count=math.prod(shape)).reshape(shape)


def _widen(pipe: connection.Connection) -> None:
    """Lets a pipe hold more: each time that it is full, one process waits for the other to wake."""
    if sys.platform == "linux":
        with suppress(OSError):  # not everybody may have so much
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps present objects from garbage collection; in processes forked meanwhile, for good.

    A collection writes to all objects that it looks at, and a forked process copies each page that
    it writes to.
    """
    if gc.get_freeze_count():  # somebody else has done so, and is to undo it
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _work(
    task: Callable[[int], Any],
    first: int,
    numbers: _Numbers,
    readers: Sequence[connection.Connection],
    results: connection.Connection,
    known: list[object],
) -> None:
    """The life of a worker; an error ends it, and shows again where the task is redone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # threads that the main process started do not exist here
    numbers.end()  # of its own copy: the main process puts numbers in
    for reader in readers:  # likewise; without a reader a result does not wait for one
        reader.close()
    sent = None
    try:
        with ThreadPoolExecutor(1) as sender:  # the main process reads between tasks of its own
            for index in chain([first], numbers):
                buffer = packed((index, task(index)), known)
                if sent is not None:
                    sent.result()  # so that no more than one result lies here
                sent = sender.submit(results.send_bytes, buffer)
    except Exception:
        return


class _Numbers:
    """Numbers, each of which one process gets.

    They lie in a pipe from which forked processes read. A lock would do as well, until a process
    dies that holds it.
    """

    def __init__(self) -> None:
        self._source, sink = os.pipe()
        os.set_blocking(self._source, False)
        self._sink: int | None = sink

    def put(self, numbers: Sequence[int]) -> None:
        """Adds numbers, a few thousand at most."""
        assert self._sink is not None
        os.write(self._sink, struct.pack(f"={len(numbers)}i", *numbers))

    def take(self) -> int | None:
        """The next number; None where there is none."""
        try:
            taken = os.read(self._source, 4)
        except BlockingIOError:
            return None
        return int(struct.unpack("=i", taken)[0]) if taken else None

    def __iter__(self) -> Iterator[int]:
        """All numbers that this process gets until the end; waits for them."""
        while True:
            connection.wait([self._source])
            try:
                taken = os.read(self._source, 4)
            except BlockingIOError:  # another process was faster
                continue
            if not taken:
                return
            yield struct.unpack("=i", taken)[0]

    @property
    def ended(self) -> bool:
        """Whether this process puts no more in."""
        return self._sink is None

    def end(self) -> None:
        """Puts no more in; the end comes when no process does."""
        if self._sink is not None:
            os.close(self._sink)
            self._sink = None

    def close(self) -> None:
        """Leaves the rest to others."""
        self.end()
        os.close(self._source)
