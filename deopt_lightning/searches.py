"""The search that each form of `carry` stands for, built around the optimizer's own values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning.pytorch as pl

from deopt_lightning.averaging import stochastic_averages_of
from deopt_lightning.chained import ChainedSearch
from deopt_lightning.differential_evolution import DifferentialEvolution
from deopt_lightning.epoch_start import schedulers_of
from deopt_lightning.evaluators.probe import Monitor
from deopt_lightning.generation import ProbeMaker, epochs_left
from deopt_lightning.layer_control import LayerControl
from deopt_lightning.members import MemberSearch
from deopt_lightning.probing import ProbeSearch
from deopt_lightning.running_best import RunningBestDE
from deopt_lightning.steady_state import SteadyStateDE
from deopt_lightning.trainer_seam import regroup_schedule

PROBE_STEPS = 0.25  # of an epoch, unless given
LR_UP, LR_UP_OF_MEMBERS = 10, 100  # times the own lr, unless bounds are given
_LENGTH = ("population_size", "carry", "every_n_epochs", "max_generations")
Search = ProbeSearch | MemberSearch | ChainedSearch


def build_maker(arguments: Mapping[str, Any]) -> ProbeMaker:
    """What makes the probes of a search.

    Args:
        arguments: Those of DEOptCallback, by name.
    """
    return ProbeMaker(
        Monitor(arguments["monitor"], arguments["mode"]),
        direct=arguments["direct_steps"],
        workers=arguments["workers"],
        share=arguments["share_over_ranks"],
        snapshot_device=arguments["snapshot_device"],
        evaluator=arguments["evaluator"],
        compile_steps=arguments["compile_steps"],
        passes_left=partial(_passes_left, {name: arguments[name] for name in _LENGTH}),
        limit_val_batches=arguments["limit_probe_val_batches"],
        schedules=arguments["carry"] == "population",
    )


def _passes_left(arguments: Mapping[str, Any], trainer: pl.Trainer) -> float:
    """How often candidates pass over a generation's batches, from the first generation on."""
    size: int = arguments["population_size"]
    every: int = arguments["every_n_epochs"]
    generations = epochs_left(trainer)
    if arguments["carry"] == "population":  # members train in every epoch
        return generations * (size - 1)
    most: float = arguments["max_generations"] or math.inf
    return min(generations / every, most) * 2 * size


def build_control(trainer: pl.Trainer, arguments: Mapping[str, Any]) -> LayerControl:
    """Splits the Trainer's optimizers by layer, and the LR schedules that go with them.

    Args:
        trainer: The Trainer, at the start of its fit.
        arguments: Those of DEOptCallback, by name.
    """
    stochastic_averages = stochastic_averages_of(trainer)
    control = LayerControl(
        trainer.optimizers,
        trainer.lightning_module,
        arguments["layers"],
        schedulers_of(trainer),
        optimizer_index=arguments["optimizer_index"],
        scheduled=bool(stochastic_averages),
    )
    for average in stochastic_averages:  # it allows one optimizer only
        regroup_schedule(average, control.splits[0])
    return control


def build_search(
    arguments: Mapping[str, Any],
    control: LayerControl,
    maker: ProbeMaker,
    resumed: Mapping[str, Any],
) -> Search:
    """A search whose first vector is the optimizer's own.

    Args:
        arguments: Those of DEOptCallback, by name.
        control: Writes values into the optimizer.
        maker: Makes probes.
        resumed: State of DEOptCallback from which it is to go on; else empty.
    """
    size, carry = arguments["population_size"], arguments["carry"]
    lr_up = LR_UP_OF_MEMBERS if carry == "population" else LR_UP
    bounds = arguments["lr_bounds"], arguments["weight_decay_bounds"]
    state = resumed.get("search", {})
    saved = state.get("search", state).get("settings")
    space, own = control.search_space(*bounds, lr_up, saved)
    settings = {name: arguments[name] for name in ("strategy", "repair", "seed")}
    if carry == "population":
        members = SteadyStateDE(space, size, own=own, **settings)
        return MemberSearch(members, control, maker, adopt=arguments["adopt"])
    settings["initial"] = [own]
    if carry == "chain":
        trials = RunningBestDE(space, size, **settings)
        return ChainedSearch(trials, control, maker, arguments["max_generations"])
    probe_steps, local_search = arguments["probe_steps"], arguments["local_search"]
    targets = DifferentialEvolution(space, size, local_search=local_search, **settings)
    return ProbeSearch(
        targets,
        control,
        maker,
        probe_steps=PROBE_STEPS if probe_steps is None else probe_steps,
        seed=arguments["seed"],
        carry_weights=carry == "weights",
        adopt=arguments["adopt"],
    )
