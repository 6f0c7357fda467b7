"""Keeping other processes from what one is at work on, where there are locks."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl


def lock(file: IO[str] | int, *, wait: bool) -> bool:
    """Keep others from a file until it is closed.

    Args:
        file: an open file or its descriptor.
        wait: whether to wait until others have closed it.

    Returns:
        Whether it is free, as far as can be told.
    """
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
    return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps a second run out of a folder where it would mix its files with the first one's.

    The processes that a run has begun keep others out, too, should they outlive it.

    Args:
        folder: made where it is missing.

    Raises:
        ValueError: another run is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # where folders cannot be opened
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        if not lock(opened, wait=False):
            raise ValueError(
                f"another run is at work in {folder}. Wait until it has ended, end it, or choose "
                "another folder with hydra.run.dir."
            )
        yield
    finally:
        os.close(opened)
