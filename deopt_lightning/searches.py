"""Builds the search that the arguments of DEOptCallback describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deopt_lightning.differential_evolution import DifferentialEvolution
from deopt_lightning.evaluators.probe import Monitor
from deopt_lightning.generation import ProbeMaker
from deopt_lightning.layer_control import LayerControl
from deopt_lightning.members import MemberSearch
from deopt_lightning.probing import ProbeSearch
from deopt_lightning.steady_state import SteadyStateDE

PROBE_STEPS = 0.25  # of an epoch, unless given


def build_search(arguments: Mapping[str, Any], control: LayerControl) -> ProbeSearch | MemberSearch:
    """A search around the optimizer's own values, which open the first population.

    Args:
        arguments: Those of DEOptCallback, by name.
        control: Writes values into the optimizer.
    """
    space, own, near = control.search_space(
        arguments["lr_bounds"], arguments["weight_decay_bounds"]
    )
    maker = ProbeMaker(
        Monitor(arguments["monitor"], arguments["mode"]),
        direct=arguments["direct_steps"],
        workers=arguments["workers"],
        share=arguments["share_over_ranks"],
        snapshot_device=arguments["snapshot_device"],
    )
    size, adopt = arguments["population_size"], arguments["adopt"]
    common = {name: arguments[name] for name in ("strategy", "repair", "seed")}
    if arguments["carry"] == "population":
        members = SteadyStateDE(space, size, initial=[own], near=near, **common)
        return MemberSearch(members, control, maker, adopt=adopt)
    steps, local = arguments["probe_steps"], arguments["local_search"]
    return ProbeSearch(
        DifferentialEvolution(space, size, local_search=local, initial=[own], **common),
        control,
        maker,
        probe_steps=PROBE_STEPS if steps is None else steps,
        seed=arguments["seed"],
        carry_weights=arguments["carry"] == "weights",
        adopt=adopt,
    )
