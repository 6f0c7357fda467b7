"""Signals that have a checkpoint written, as SLURM's before a requeue, wait for the run's state."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_HELD = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class HeldSignals:
    """Holds signals while members and probes train in the Trainer's place."""

    def __init__(self) -> None:
        self._came: list[Any] = []

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lets SIGUSR1 and SIGUSR2 come at the end; `check` makes that earlier."""
        in_main = threading.current_thread() is threading.main_thread()
        found = {number: signal.getsignal(number) for number in _HELD if in_main}
        handlers = {number: handler for number, handler in found.items() if callable(handler)}
        for number in handlers:
            signal.signal(number, lambda *arguments: self._came.append(arguments))
        try:
            yield
        except _CameError:
            pass
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            came, self._came = self._came, []
            for arguments in came:
                handlers[arguments[0]](*arguments)

    def check(self) -> None:
        """Leaves the `held` block at once if a signal has come."""
        if self._came:
            raise _CameError


class _CameError(BaseException):
    """Unlike an error, no candidate is to blame for it."""
