"""Validation without Lightning's loop, for modules that can say what one logs.

Beside what a small model computes, a validation is mostly the loop and its logs. A module that has
a method ::

    def validation_metrics(self, batches) -> dict[str, Tensor]

promises that these are the very values that a validation of the batches logs, and that working
them out changes nothing but torch's random generators. Then a probe's validation is that call, in
``eval`` mode and without gradients, between ``on_validation_start``, ``on_validation_epoch_start``
and ``on_validation_end``. The promise is tested in the first generation and, ever more seldom, in
later ones, see `equals_loop`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from deopt_lightning.compatibility import overrides
from deopt_lightning.direct_steps import (
    TRANSFER_HOOKS,
    left_by,
    same_left,
    why_not_alone,
    why_overridden,
)
from deopt_lightning.quiet import muted
from deopt_lightning.snapshot import Snapshot
from deopt_lightning.trainer_seam import ProbeLoops, draws_plainly

_HEARD = ("on_validation_start", "on_validation_epoch_start", "on_validation_end")
_HOOKS = (  # those that Lightning's loop calls in a validation and a direct one does not
    *TRANSFER_HOOKS,
    "on_validation_model_eval",
    "on_validation_model_train",
    "on_validation_batch_start",
    "on_validation_batch_end",
)


class DirectValidation:
    """Validates as Lightning's loop does, bit for bit, without it.

    Args:
        loops: Quiet loops of a Trainer that `can_validate` has nothing against.
    """

    def __init__(self, loops: ProbeLoops) -> None:
        self._loops = loops

    def __call__(self) -> dict[str, Tensor]:
        """Validates the present weights; returns what a validation logs."""
        trainer = self._loops.trainer
        module = trainer.lightning_module
        modes = [(part, part.training) for part in module.modules()]
        trainer.validating = True
        module.eval()
        try:
            with torch.no_grad(), muted(module):
                module.on_validation_start()
                module.on_validation_epoch_start()
                with trainer.precision_plugin.val_step_context():
                    found = module.validation_metrics(self._batches())  # type: ignore[operator]
                module.on_validation_end()
            return {name: _as_logged(value) for name, value in found.items()}
        finally:
            for part, training in modes:
                part.training = training
            trainer.training = True

    def _batches(self) -> Iterator[Any]:
        strategy, batches = self._loops.trainer.strategy, self._loops.validation_batches()
        on_cpu = strategy.root_device.type == "cpu"  # where loaders leave batches
        return batches if on_cpu else map(strategy.batch_to_device, batches)


def can_validate(trainer: pl.Trainer) -> bool:
    """Whether nothing speaks against validating a Trainer's module without the loop."""
    return (
        callable(getattr(trainer.lightning_module, "validation_metrics", None))
        and draws_plainly(trainer)
        and why_not_alone(trainer) is None
        and why_overridden(trainer, _HOOKS) is None
    )


def hears(trainer: pl.Trainer) -> bool:
    """Whether a direct validation calls a hook that a Trainer's module has of its own."""
    return any(overrides(trainer.lightning_module, hook) for hook in _HEARD)


def equals_loop(loops: ProbeLoops, start: Snapshot) -> bool | None:
    """Whether the present weights have the very same metrics both ways.

    Args:
        loops: Quiet loops.
        start: The present state, which is restored.

    Returns:
        None if it cannot be told, since the weights cannot be validated.
    """
    trainer = loops.trainer
    try:
        start.restore()
        logged = {name: float(value) for name, value in loops.validate().items()}
        left, plain = left_by(trainer), _plain_of(trainer)
        start.restore()
        try:
            found = DirectValidation(loops)()
        except FloatingPointError:
            raise
        except Exception:  # of a method of that name that is made for something else
            return False
        same = logged.keys() == found.keys() and np.array_equal(
            list(logged.values()), [float(found[name]) for name in logged], equal_nan=True
        )
        return same and same_left(left, left_by(trainer)) and plain == _plain_of(trainer)
    except FloatingPointError:
        return None
    finally:
        start.restore()


def _as_logged(value: Any) -> Tensor:
    """A value in the type in which Lightning logs it: the default's, and at least its own."""
    kind = torch.promote_types(torch.float32, torch.get_default_dtype())
    if isinstance(value, Tensor):
        if value.dtype == kind:
            return value
        kind = torch.promote_types(kind, value.dtype)
    return torch.as_tensor(value, dtype=kind)


def _plain_of(trainer: pl.Trainer) -> dict[str, Any]:
    """The module's plain attributes."""
    attributes = vars(trainer.lightning_module).items()
    return {
        name: value for name, value in attributes if isinstance(value, bool | int | float | str)
    }
