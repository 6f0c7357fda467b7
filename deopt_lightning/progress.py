"""A progress bar for one generation, in the style of the Trainer's own bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl


@contextmanager
def generation_progress(trainer: pl.Trainer, total: int) -> Iterator[Callable[[], None]]:
    """Shows how many candidates are scored; silent where the Trainer's bar is off.

    Args:
        trainer: The Trainer, with its callbacks in place.
        total: Expected number of candidates; local search may add some.

    Yields:
        A function to call after each candidate.
    """
    bar = trainer.progress_bar_callback
    shown = bar is not None and not getattr(bar, "is_disabled", False)
    rich_progress = getattr(bar, "progress", None)
    if shown and rich_progress is not None:
        yield from _rich(rich_progress, total)
    elif shown and hasattr(bar, "train_progress_bar"):
        yield from _tqdm(total)
    else:
        yield lambda: None


def _rich(progress: Any, total: int) -> Iterator[Callable[[], None]]:
    task = progress.add_task("[white]DE-Opt generation", total=total)
    try:
        yield lambda: progress.update(task, advance=1, refresh=True)
    finally:
        progress.remove_task(task)


def _tqdm(total: int) -> Iterator[Callable[[], None]]:
    from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

    bar = Tqdm(desc="DE-Opt generation", total=total, leave=False, dynamic_ncols=True, position=1)
    try:
        yield lambda: (bar.update(1), None)[1]
    finally:
        bar.close()
