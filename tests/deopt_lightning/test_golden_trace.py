"""One seeded search, compared number by number with a stored trace.

A change of the search that is meant to change its numbers rewrites the trace:
`python -m tests.deopt_lightning.test_golden_trace --rewrite`
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from deopt_lightning.differential_evolution import DifferentialEvolution
from deopt_lightning.search_space import SearchSpace

TRACE = Path(__file__).with_name("golden_trace.json")


def distance(values):
    """How far (lr, weight_decay) are from 1e-2 and 1e-3, for rows of two layers."""
    lr, weight_decay = values[:, :2], values[:, 2:]
    return ((lr - 1e-2) ** 2).sum(axis=1) + 10 * ((weight_decay - 1e-3) ** 2).sum(axis=1)


def trace():
    space = SearchSpace.for_layers(["embedding", "head"], (1e-4, 1e-1), (0, 1e-2))
    search = DifferentialEvolution(space, 5, local_search="all", seed=2024)
    generations = []
    for _ in range(8):
        while len(candidates := search.ask()):
            search.tell(-distance(space.decode(candidates)))
        done = search.last_generation
        generations.append(
            {
                "trials": done.trials.tolist(),
                "trial_perf": done.trial_perf.tolist(),
                "scale_factors": done.scale_factors.tolist(),
                "omegas": done.omegas.tolist(),
                "accepted": done.accepted.tolist(),
                "evaluations": search.evaluations,
            }
        )
    return generations


def test_seeded_search_follows_the_stored_trace():
    stored = json.loads(TRACE.read_text(encoding="utf-8"))
    run = trace()
    assert len(run) == len(stored)
    for generation, expected in zip(run, stored, strict=True):
        assert generation.keys() == expected.keys()
        for name, numbers in expected.items():
            np.testing.assert_allclose(generation[name], numbers, rtol=1e-12, err_msg=name)


def test_trace_covers_local_search():
    evaluations = [generation["evaluations"] for generation in json.loads(TRACE.read_text())]
    assert np.diff(evaluations).max() > 10


if __name__ == "__main__":
    if sys.argv[1:] != ["--rewrite"]:
        pytest.exit(__doc__, returncode=2)
    TRACE.write_text(json.dumps(trace(), indent=1) + "\n", encoding="utf-8")
