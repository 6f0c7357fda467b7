"""Keeping other processes from what one is at work on, where there are locks."""

import sys
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
