"""The authors' schedule: what it compares a trial with, and how it draws one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from deopt_lightning import equations
from deopt_lightning.running_best import RunningBestDE
from deopt_lightning.search_space import SearchSpace

SPACE = SearchSpace.for_layers(["a", "b", "c"], (1e-5, 1e-1), (1e-7, 1e-3))


def make_search(**options: Any) -> RunningBestDE:
    return RunningBestDE(SPACE, **{"population_size": 5, "seed": 0} | options)


def play(search: RunningBestDE, perf: list[float]) -> list[np.ndarray]:
    """Tells a round, and returns its trials."""
    trials = []
    for value in perf:
        assert search.trial is not None
        trials.append(search.trial)
        search.tell(value)
    return trials


def test_a_trial_is_compared_with_the_best_of_its_round_and_not_with_its_target() -> None:
    search = make_search()
    before = search.vectors.copy()
    search.open(0.5)
    trials = play(search, [0.4, 0.6, 0.5, 0.6, 0.7])
    assert search.round.accepted == [False, True, False, True, True]
    for target, trial in enumerate(trials):
        expected = trial if search.round.accepted[target] else before[target]
        assert np.array_equal(search.vectors[target], expected)
    assert np.array_equal(search.accepted, trials[4])
    assert search.round.best == 0.7
    assert search.trial is None


def test_the_next_round_begins_with_the_perf_that_it_is_opened_with() -> None:
    search = make_search()
    search.open(0.5)
    play(search, [0.9, 0.2, 0.2, 0.2, 0.2])
    search.open(0.2)
    play(search, [0.3])
    assert search.round.accepted == [True]


def test_an_accepted_trial_is_a_parent_within_the_same_round() -> None:
    """In place, as in the authors' program: later trials depend on what was accepted before."""
    accepted, rejected = make_search(), make_search()
    for search, perf in ((accepted, 1.0), (rejected, 0.0)):
        search.open(0.5)
        play(search, [perf])
    later = [play(search, [0.0] * 4) for search in (accepted, rejected)]
    assert any(not np.array_equal(*pair) for pair in zip(*later, strict=True))


@pytest.mark.parametrize("perf", [float("nan"), float("inf"), -float("inf")])
def test_a_diverged_trial_is_never_accepted(perf: float) -> None:
    search = make_search()
    search.open(float("nan"))
    play(search, [perf, 0.1])
    assert search.round.accepted == [False, True]


def test_lr_and_decay_of_a_layer_share_parents_factor_and_omega() -> None:
    """Where both halves of all vectors are equal, so are those of every trial; layers differ."""
    space = SearchSpace(
        ("lr/a", "lr/b", "weight_decay/a", "weight_decay/b"),
        low=np.zeros(4),
        high=np.ones(4),
        scale="linear",
    )
    half = np.random.default_rng(3).random((5, 1)).repeat(2, axis=1)
    both = np.concatenate([half, half], axis=1)
    search = RunningBestDE(space, 5, initial=both, seed=0)
    search.open(1.0)
    trials = np.array(play(search, [0.0] * 5))
    assert np.array_equal(trials[:, :2], trials[:, 2:])
    assert not np.allclose(trials[:, 0], trials[:, 1])


def test_the_scale_factor_stays_below_one() -> None:
    """The program's 8 and 20 are left out: no trial lies further off than F = 1 allows."""
    search = make_search(strategy="current_to_rand")
    low, high = search.vectors.min(axis=0), search.vectors.max(axis=0)
    farthest = (high - low) * 2
    for _ in range(200):
        search.open(1.0)
        for trial in play(search, [0.0] * 5):
            assert (trial >= low - farthest).all()
            assert (trial <= high + farthest).all()


@pytest.mark.parametrize("strategy", ["current_to_rand", "mutant_then_trial"])
def test_trials_are_those_of_the_equations(strategy: Any) -> None:
    """With one layer, a trial is Eq. 9, or Eq. 7 put into Eq. 8, for the drawn numbers."""
    space = SearchSpace.for_layers(["a"], (1e-5, 1e-1), (1e-7, 1e-3))
    search = RunningBestDE(space, 5, strategy=strategy, seed=4)
    rng = np.random.Generator(np.random.PCG64())
    rng.bit_generator.state = search.state_dict()["random_state"]
    r1, r2, r3 = rng.permutation([1, 2, 3, 4])[:3]
    uniform, redrawn, rare, omega = rng.random((4, 1))
    factor = np.where(rare < 0.1, 0.1 + 0.9 * redrawn, uniform)
    x, x1, x2, x3 = (search.vectors[[k]] for k in (0, r1, r2, r3))
    if strategy == "current_to_rand":
        expected = equations.current_to_rand(x, x1, x2, x3, factor, omega)
    else:
        expected = equations.trial_vectors(x, equations.mutant_vectors(x1, x2, x3, factor), omega)
    search.open(0.0)
    assert np.allclose(search.trial, space.repair(expected[0], "clip"))


def test_telling_without_a_trial_is_refused() -> None:
    with pytest.raises(RuntimeError, match="call open first"):
        make_search().tell(0.5)


@pytest.mark.parametrize("told", [0, 2, 5])
def test_a_saved_search_goes_on_as_the_unbroken_one(told: int) -> None:
    unbroken = make_search()
    unbroken.open(0.5)
    play(unbroken, [0.6, 0.4, 0.7, 0.1, 0.9][:told])
    state = json.loads(json.dumps(unbroken.state_dict()))
    resumed = make_search(seed=9)
    resumed.load_state_dict(state)
    for search in (unbroken, resumed):
        if told == 5:
            search.open(0.9)
        play(search, [0.8, 0.3, 1.0])
    assert unbroken.state_dict() == resumed.state_dict()


def test_a_state_of_another_search_is_refused() -> None:
    with pytest.raises(ValueError, match="population_size=5, but this one has population_size=6"):
        make_search(population_size=6).load_state_dict(make_search().state_dict())
