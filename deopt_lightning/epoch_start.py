"""How an epoch of the Trainer began, for those that are to train it once more."""

from __future__ import annotations

from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from torch.optim.lr_scheduler import LRScheduler

from deopt_lightning.lr_schedule import parts_of
from deopt_lightning.param_groups import set_option
from deopt_lightning.random_state import RandomState
from deopt_lightning.rank_exchange import gather_ranks
from deopt_lightning.snapshot import SCHEDULED_OPTIONS
from deopt_lightning.step_counts import step_counts
from deopt_lightning.trainer_seam import loader_generators


@dataclass(frozen=True)
class EpochStart:
    """What the other members need in order to train the epoch that the Trainer has trained.

    Attributes:
        random: The random generators, so that they draw the same batches.
        progress: Counts of optimizer steps.
        options: What LR schedulers, and hooks, had written into each parameter group.
        schedulers: States of the LR schedulers.
    """

    random: RandomState
    progress: list[dict[str, Any]]
    options: list[dict[str, Any]]
    schedulers: list[dict[str, Any]]

    @classmethod
    def take(cls, trainer: pl.Trainer, rng: dict[str, Any]) -> EpochStart:
        """Notes how the epoch begins.

        Args:
            trainer: A Trainer in `on_train_epoch_start`.
            rng: State of the global random generators from which the epoch's order is drawn.
        """
        random = RandomState.take(loader_generators(trainer), rng)
        states = [deepcopy(_state_of(part)) for part in scheduler_parts_of(trainer)]
        return cls(random, step_counts(trainer), scheduled_options(trainer), states)

    def write_schedule(self, trainer: pl.Trainer) -> None:
        """Puts schedulers, and what they had written, where they were as the epoch began."""
        for group, options in zip(_groups(trainer), self.options, strict=True):
            for key, value in options.items():
                set_option(group, key, value)
        # Checkpoints of earlier versions have no states of inner schedulers.
        for part, state in zip(scheduler_parts_of(trainer), self.schedulers, strict=False):
            part.load_state_dict(deepcopy(state))

    def to_plain(self) -> list[Any]:
        """All ranks' random states and the rest, for a checkpoint; every process must call it."""
        return [gather_ranks(self.random.rng), self.progress, self.options, self.schedulers]

    @classmethod
    def from_plain(cls, plain: list[Any], trainer: pl.Trainer) -> EpochStart:
        """What `to_plain` returned, with this rank's random state where there is one."""
        random, *others = plain
        rng = random[trainer.global_rank] if len(random) == trainer.world_size else random[0]
        return cls(RandomState.take(loader_generators(trainer), rng), *others)


def scheduled_options(trainer: pl.Trainer) -> list[dict[str, Any]]:
    """The options of each parameter group that LR schedulers write."""
    return [
        {key: copy(group[key]) for key in SCHEDULED_OPTIONS if key in group}
        for group in _groups(trainer)
    ]


def _groups(trainer: pl.Trainer) -> list[dict[str, Any]]:
    return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]


def schedulers_of(trainer: pl.Trainer) -> list[Any]:
    """The LR schedulers that the Trainer steps, and those that the module keeps for itself."""
    configured = [config.scheduler for config in trainer.lr_scheduler_configs]
    known = {id(optimizer) for optimizer in trainer.optimizers}
    kept = [
        value
        for value in vars(trainer.lightning_module).values()
        if isinstance(value, LRScheduler)
        and id(value.optimizer) in known
        and all(value is not scheduler for scheduler in configured)
    ]
    return [*configured, *kept]


def scheduler_parts_of(trainer: pl.Trainer) -> list[Any]:
    """The LR schedulers with a state, and those that others hold, such as one after a warm-up."""
    outer = schedulers_of(trainer)
    parts = [part for scheduler in outer for part in _inside(scheduler)]
    return [*outer, *(part for part in parts if callable(getattr(part, "load_state_dict", None)))]


def _state_of(scheduler: Any) -> dict[str, Any]:
    """A scheduler's state, without schedulers in it, which have states of their own."""
    state: dict[str, Any] = scheduler.state_dict()
    inner = _inside(scheduler)
    return {name: value for name, value in state.items() if all(value is not s for s in inner)}


def _inside(scheduler: Any) -> list[Any]:
    """The schedulers that another one holds, at any depth."""
    return parts_of(scheduler, getattr(scheduler, "optimizer", scheduler))[1:]
