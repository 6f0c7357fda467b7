"""Callbacks of the Trainer that average weights, and what they ask of a generation.

`WeightAveraging` and its relatives let validation see the averaged weights, so probes take them
along: the average is part of every snapshot and hears of a probe's steps and validation.
`StochasticWeightAveraging` averages once per epoch and shows its weights only after training: a
probe has nothing to do with it but for its LR schedule and its last pass over the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim.swa_utils import AveragedModel


def averages_of(trainer: pl.Trainer) -> list[Any]:
    """The callbacks whose average is what the run validates."""
    return named(trainer, "WeightAveraging")


def stochastic_averages_of(trainer: pl.Trainer) -> list[Any]:
    """The callbacks that average once per epoch, with an LR schedule of their own."""
    return named(trainer, "StochasticWeightAveraging")


def named(trainer: pl.Trainer, name: str) -> list[Any]:
    """The Trainer's callbacks of a class, by its name to fit both import names of Lightning."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if name in {ancestor.__name__ for ancestor in type(c).__mro__}]


def updates_of(averages: Sequence[Any]) -> int:
    """How often averages have taken in the model's weights."""
    models = [value for average in averages for value in vars(average).values()]
    return sum(int(model.n_averaged) for model in models if isinstance(model, AveragedModel))


def end_epoch(trainer: pl.Trainer) -> None:
    """Lets averages hear of the epoch's end; when they hear of it again, they do nothing more."""
    for average in averages_of(trainer):
        average.on_train_epoch_end(trainer, trainer.lightning_module)


def refuse_to_stand_still(average: object) -> None:
    """Refuses members all of whose steps an average ignores, so that validation cannot tell them.

    Raises:
        MisconfigurationException: Naming the callback and the way out.
    """
    raise MisconfigurationException(
        "DEOptCallback(carry='population') compares members by their averaged weights, but "
        f"{type(average).__name__} has averaged none of this epoch's steps. Set "
        "warmup_epochs to begin after averaging does, or average after steps."
    )


def training_is_over(trainer: pl.Trainer) -> bool:
    """Whether this epoch only brings batch norm up to date with weights that were averaged."""
    return any(trainer.current_epoch > swa.swa_end for swa in stochastic_averages_of(trainer))
