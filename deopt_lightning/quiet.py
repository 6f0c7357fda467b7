"""Keeps callbacks and logs out of what probes do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
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
    """Takes the place of a logger and writes nothing; code that asks finds it to be that logger.

    Args:
        logger: The logger, which is asked when somebody wants to know.
    """

    name, version, save_dir, log_dir, root_dir = map(
        _of_logger, ("name", "version", "save_dir", "log_dir", "root_dir")
    )

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self.logger = logger

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """That of the logger, for `isinstance`, as in ``trainer.log_dir``."""
        return type(self.logger)

    @property
    def experiment(self) -> Any:
        """The logger's experiment, of which only values can be read."""
        return _Silent(self.logger.experiment)

    def __getattr__(self, name: str) -> Any:
        """A value of the logger, such as a folder; all else does nothing."""
        return getattr(_Silent(self.logger), name)


class _Silent:
    """Stands for an object: its values can be read, and calls do nothing."""

    def __init__(self, stands_for: Any = None) -> None:
        self._stands_for = stands_for

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self._stands_for, name, None)
        return value if isinstance(value, _VALUES) else _Silent(value)

    def __call__(self, *args: Any, **kwargs: Any) -> _Silent:
        return _Silent()

    def __getitem__(self, key: Any) -> _Silent:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *error: object) -> None:
        pass


_VALUES = (str, int, float, PathLike, Mapping, list, tuple)


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
