"""Settings of lr and weight decay, the space they are taken from, and what training one gave."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from recsys_models.costs import Row, Watch

Bounds = tuple[float, float]


class Setting(NamedTuple):
    """One lr and one weight decay, the same for all layers."""

    lr: float
    weight_decay: float

    def as_dict(self) -> dict[str, float]:
        """The values by the names that an optimizer's groups have for them."""
        return {"lr": self.lr, "weight_decay": self.weight_decay}


def bounds_around(value: float, down: float = 1000.0, up: float = 10.0) -> Bounds:
    """Bounds of a search around an optimizer's own lr: from value / down to value * up."""
    return (value / down, value * up)


class Space:
    """The lr and weight decays that a sweep may try: the same for every tuner.

    Both move on a log scale. A weight decay of exactly 0 takes the decade below its lower bound,
    as in DE-Opt's space; an upper bound of 0 leaves weight decay at 0.

    Args:
        lr: smallest and largest lr.
        weight_decay: smallest and largest weight decay; a smallest of 0 stands for a
            ten-thousandth of the largest.
        own: the optimizer's own values, with which all but the grid begin.
    """

    def __init__(self, lr: Bounds, weight_decay: Bounds, own: tuple[float, float]) -> None:
        if not 0 < lr[0] <= lr[1] < math.inf:
            raise ValueError(f"lr must be a pair (low, high) above 0; got {lr}. Try (1e-6, 1e-2).")
        if not 0 <= weight_decay[0] <= weight_decay[1] < math.inf:
            raise ValueError(
                "weight_decay must be a pair (low, high), neither below 0; "
                f"got {weight_decay}. Try (1e-7, 1e-3)."
            )
        self.lr = (float(lr[0]), float(lr[1]))
        self.weight_decay = (float(weight_decay[0]) or 1e-4 * weight_decay[1], weight_decay[1])
        self.own = Setting(float(own[0]), float(own[1]))

    @property
    def has_decay(self) -> bool:
        """Whether there is a weight decay to search for."""
        return self.weight_decay[1] > 0

    @property
    def box(self) -> tuple[Bounds, Bounds]:
        """Bounds of the two coordinates: log10 of lr, and of weight decay from a decade lower."""
        low, high = (math.log10(value) for value in self.lr)
        if not self.has_decay:
            return (low, high), (0.0, 0.0)
        return (low, high), (math.log10(self.weight_decay[0]) - 1, math.log10(self.weight_decay[1]))

    def decode(self, log_lr: float, log_decay: float) -> Setting:
        """The setting at two coordinates of the box."""
        decay = 10.0**log_decay if self.has_decay else 0.0
        return Setting(10.0**log_lr, decay if decay >= self.weight_decay[0] > 0 else 0.0)

    def encode(self, setting: Setting) -> tuple[float, float]:
        """The coordinates of a setting, at the nearest point of the box."""
        (low, high), (decay_low, decay_high) = self.box
        log_decay = math.log10(setting.weight_decay) if setting.weight_decay > 0 else decay_low
        return (
            min(max(math.log10(setting.lr), low), high),
            min(max(log_decay, decay_low), decay_high),
        )

    def sample(self, rng: np.random.Generator) -> Setting:
        """A setting whose coordinates are uniform in the box."""
        return self.decode(*(float(rng.uniform(low, high)) for low, high in self.box))

    def clip(self, setting: Setting) -> Setting:
        """The nearest setting within the bounds; a weight decay of 0 stays 0."""
        lr = min(max(setting.lr, self.lr[0]), self.lr[1])
        decay = setting.weight_decay
        return Setting(lr, decay and min(max(decay, self.weight_decay[0]), self.weight_decay[1]))

    def grid(self, lrs: int, decays: int) -> list[Setting]:
        """Every pair of so many lr, evenly spread on the log scale, and 0 and weight decays."""
        rates = np.geomspace(*self.lr, lrs).tolist()
        several = decays - 1 if self.has_decay else 0
        penalties = [0.0, *np.geomspace(*self.weight_decay, several)] if several else [0.0]
        return [Setting(lr, float(decay)) for lr in rates for decay in penalties]


@dataclass(frozen=True)
class Outcome:
    """What training one setting gave and cost, in plain data.

    Attributes:
        setting: the lr and weight decay.
        val: the best monitored value; None where training diverged.
        steps: optimizer steps taken for it.
        evaluations: validation passes made for it.
        seconds: wall-clock time of its training, with the validation passes.
        weights: the checkpoint of its best epoch; empty where none was written.
        lineage: the setting of every epoch that these weights were trained in.
        total_steps: optimizer steps that these weights were trained for.
        curve: costs and values after each validation pass.
        cpu_seconds: processor time of its training; None where an older version trained it.
    """

    setting: Setting
    val: float | None
    steps: int
    evaluations: int
    seconds: float
    weights: str
    lineage: list[Setting] = field(default_factory=list)
    total_steps: int = 0
    curve: list[Row] = field(default_factory=list)
    cpu_seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Outcome":
        """An outcome from what `as_dict` gave."""
        fields = data | {
            "setting": Setting(*data["setting"]),
            "lineage": [Setting(*pair) for pair in data["lineage"]],
            "curve": [Row(*row) for row in data["curve"]],
        }
        return cls(**fields)


class Trainable(Protocol):
    """Trains settings, each with the same data, first weights, batches and early stopping."""

    def fit(self, setting: Setting, watch: Watch | None = None) -> Outcome:
        """Train a setting to its end, or until the watch says stop."""

    def fit_leg(
        self, setting: Setting, start: Outcome | None, end_epoch: int, weights: Path
    ) -> Outcome:
        """Go on from the weights of another leg until an epoch, and save them to a file."""

    @property
    def folder(self) -> Path:
        """Where the sweep may keep files."""


class Sweep(Protocol):
    """Decides which settings are trained, by their validation values alone."""

    def run(self, trainable: Trainable) -> list[Outcome]:
        """Train settings, and return all outcomes in the order in which they came."""


def choose(outcomes: Iterable[Outcome], mode: str) -> Outcome:
    """The outcome with the best validation value; the first of equals."""
    sign = 1 if mode == "max" else -1
    values = [outcome for outcome in outcomes if outcome.val is not None]
    if not values:
        raise FloatingPointError(
            "every setting of the sweep diverged; got no validation value at all. "
            "Lower the optimizer's lr, which the bounds of the search follow."
        )
    return max(values, key=lambda outcome: sign * (outcome.val or 0.0))


def check_count(name: str, value: int, least: int) -> None:
    """Refuse a count that is too small."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}. Raise it.")
