"""Keeps callbacks and logs out of what probes do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger


@contextmanager
def deaf(callbacks: list[Any]) -> Iterator[None]:
    """Lets callbacks hear nothing of the loops, while user code still finds them on the Trainer."""
    hooks = [name for name in dir(Callback) if name.startswith("on_")]
    own = [{name: vars(c)[name] for name in hooks if name in vars(c)} for c in callbacks]
    try:
        for callback in callbacks:
            vars(callback).update(dict.fromkeys(hooks, _ignore))
        yield
    finally:
        for callback, attributes in zip(callbacks, own, strict=True):
            for name in hooks:
                vars(callback).pop(name, None)
            vars(callback).update(attributes)


def _of_logger(name: str) -> Any:
    return property(lambda quiet: getattr(quiet.logger, name, None))


class QuietLogger(DummyLogger):
    """Takes the place of a logger and writes nothing; its folders have the same names.

    Args:
        logger: The logger, which is asked when somebody wants to know.
    """

    name, version, save_dir, log_dir, root_dir = map(
        _of_logger, ("name", "version", "save_dir", "log_dir", "root_dir")
    )

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self.logger = logger


@contextmanager
def muted(module: pl.LightningModule) -> Iterator[None]:
    """Lets `self.log` do nothing: nobody reads what a probe's steps log, and it takes time."""
    own = {"log": vars(module)["log"]} if "log" in vars(module) else {}
    vars(module)["log"] = _ignore
    try:
        yield
    finally:
        del vars(module)["log"]
        vars(module).update(own)


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Does nothing, in the place of a hook or of `self.log`."""
