"""First members that go on beside the population once trials have taken their places."""

from __future__ import annotations

import json

import numpy as np
import pytest

from deopt_lightning.run_beside import PATIENCE
from deopt_lightning.steady_state import OWN_STAYS, SteadyStateDE
from tests.deopt_lightning.searches import NAN, OWN, around_own


def with_own_beside(seed: int = 0) -> SteadyStateDE:
    """A search whose own vector's member has just been replaced, and goes on beside it."""
    search = around_own(seed=seed)
    for perf in ([0.0, NAN, NAN, 3.0, 4.0], *[[0.0, 1.0, 2.0, 3.0, 4.0]] * (OWN_STAYS - 1)):
        search.tell(perf)  # the members with lrs far away diverge
    assert search.tell([0.0, 1.0, 2.0, 3.0, 4.0]).tolist() == [4, 4, 2, 3, 4, 0]
    assert np.array_equal(search.vectors[5], OWN)
    return search


def test_an_own_vector_that_is_replaced_goes_on_beside_the_population() -> None:
    search = with_own_beside()
    for perf in np.arange(3 * PATIENCE):  # it gets better, although it is the worst
        assert search.tell([99.0, 99.1, 99.2, 99.3, 99.4, perf]).tolist() == [4, 4, 2, 3, 4, 5]
    assert np.array_equal(search.vectors[5], OWN)
    assert len(search.vectors) == 6


@pytest.mark.parametrize("seed", range(10))
def test_no_trial_is_made_of_an_own_vector_beside_the_population(seed: int) -> None:
    """All members agree, so that a trial that differs would be made of the own vector."""
    search = with_own_beside(seed)
    search.first, search.archive = np.array([OWN + 1] * 5), np.array([OWN + 1] * 20)
    search.vectors[:5] = OWN + 1
    search.tell([0.0, 1.0, 2.0, 3.0, 4.0, 0.5])
    assert np.array_equal(search.vectors[:5], np.array([OWN + 1] * 5))


def test_an_own_vector_that_comes_to_lead_has_trials_around_it() -> None:
    search = with_own_beside()
    search.first, search.archive = np.array([OWN] * 5), np.array([OWN] * 20)
    search.vectors[:5] = OWN
    assert search.tell([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).tolist() == [5, 5, 2, 3, 4, 5]
    assert np.array_equal(search.vectors, np.array([OWN] * 6))


def test_an_own_vector_ends_where_early_stopping_would_have_ended_it() -> None:
    search = with_own_beside()
    perfs = [3.0, 3.5, 3.5, 3.2] + [3.0] * (PATIENCE - 3)
    for perf in perfs:
        assert len(search.tell([9.0, 9.1, 9.2, 9.3, 9.4, perf])) == 6
    assert search.tell([9.0, 9.1, 9.2, 9.3, 9.4, 3.4]).tolist() == [4, 4, 2, 3, 4]
    assert len(search.vectors) == 5
    assert search.tell([9.0, 9.1, 9.2, 9.3, 9.4]).tolist() == [4, 4, 2, 3, 4]


def test_an_own_vector_that_leads_does_not_end() -> None:
    search = with_own_beside()
    for _ in range(2 * PATIENCE):
        assert search.tell([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])[5] == 5


def test_an_own_vector_beside_the_population_ends_if_it_diverges_or_all_collapse() -> None:
    diverged = with_own_beside()
    two_replaced = len(diverged.archive) + 2
    assert diverged.tell([0, 1, 2, 3, 4, float("nan")]).tolist() == [4, 4, 2, 3, 4]
    assert len(diverged.archive) == two_replaced
    collapsed = with_own_beside()
    collapsed.begin_anew(OWN + 0.5)
    assert len(collapsed.vectors) == 5
    for _ in range(OWN_STAYS + 1):
        assert len(collapsed.tell([0.0, 1.0, 2.0, 3.0, 4.0])) == 5


def test_an_own_vector_beside_the_population_is_part_of_the_state() -> None:
    first, second = with_own_beside(), around_own(seed=1)
    first.tell([0.0, 1.0, 2.0, 3.0, 4.0, 2.5])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(PATIENCE + 1):
        perf = [0.0, 1.0, 2.0, 3.0, 4.0, 2.0][: len(first.vectors)]
        assert first.tell(perf).tolist() == second.tell(perf).tolist()
    assert len(second.vectors) == 5
    assert second.state_dict() == first.state_dict()


def test_first_members_with_lrs_far_away_go_on_beside_the_population() -> None:
    search = around_own()
    low, high = search.vectors[1:3].copy()
    assert search.tell([2.0, 0.0, 1.0, 3.0, 4.0]).tolist() == [0, 4, 4, 3, 4, 1, 2]
    assert np.array_equal(search.vectors[5:], [low, high])
    for _ in range(OWN_STAYS - 1):
        assert search.tell([2.0, 0.0, 1.0, 3.0, 4.0, 0.0, 1.0]).tolist() == [0, 4, 4, 3, 4, 5, 6]
    parents = search.tell([0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 1.0])
    assert parents.tolist() == [4, 4, 2, 3, 4, 0, 5, 6]
    assert np.array_equal(search.vectors[5:], [OWN, low, high])
    parents = search.tell([0.0, 1.0, 2.0, 3.0, 4.0, 1.0, NAN, 1.5])
    assert parents.tolist() == [4, 4, 2, 3, 4, 5, 7]
    assert np.array_equal(search.vectors[5:], [OWN, high])
    assert search.tell([0.0, 1.0, 2.0, 3.0, 4.0, 1.0, 5.0]).tolist() == [6, 6, 2, 3, 4, 5, 6]


def test_a_first_member_that_is_never_replaced_is_not_held_twice() -> None:
    search = around_own()
    for _ in range(3 * PATIENCE):
        search.tell([2.0, 0.0, 5.0, 3.0, 4.0, 0.0, 0.0][: len(search.vectors)])
    assert np.array_equal(search.vectors[2, :2], OWN[:2] + 1)
    assert len(search.vectors) == 5


def far_beside() -> SteadyStateDE:
    """A search beside whose population its own vector and those far from it go on."""
    search = around_own()
    search.tell([2.0, 0.0, 1.0, 3.0, 4.0])
    for _ in range(OWN_STAYS - 1):
        search.tell([2.0, 0.0, 1.0, 3.0, 4.0, 0.0, 1.0])
    assert len(search.tell([0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 1.0])) == 8
    return search


def test_what_is_far_behind_ends_while_it_gets_better_but_the_own_vector_goes_on() -> None:
    search = far_beside()
    first = search.generation + 1
    for generation in range(first, first + PATIENCE + 1):
        led, behind = 10.0 * generation, 10.0 * (generation - PATIENCE)
        perf = [0.0, 1.0, 2.0, 3.0, led, behind - 1, behind - 1, behind + 1]
        places = search.tell(perf).tolist()[5:]
        assert places == ([5, 6, 7] if generation < first + PATIENCE else [5, 7])
    assert np.array_equal(search.vectors[5], OWN)
    assert np.array_equal(search.vectors[6, :2], OWN[:2] + 1)


def test_what_was_once_near_is_not_far_behind() -> None:
    search = far_beside()
    search.tell([0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 4.0])
    for _ in range(PATIENCE - 1):
        search.tell([0.0, 1.0, 2.0, 3.0, 3.8, 0.0, 0.0, 0.0][: len(search.vectors)])
    assert np.array_equal(search.vectors[5:, :2], [OWN[:2] + 1])


def test_runs_beside_the_population_are_part_of_the_state() -> None:
    first, second = far_beside(), around_own(seed=1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for generation in range(PATIENCE + 3):
        perf = [0.0, 1.0, 2.0, 3.0, 4.0 + generation, 1.0, 2.5, 4.5][: len(first.vectors)]
        assert first.tell(perf).tolist() == second.tell(perf).tolist()
    assert len(second.vectors) < 8
    assert second.state_dict() == first.state_dict()


def test_the_version_before_kept_late_bests_with_each_run() -> None:
    first, second = far_beside(), around_own(seed=1)
    state = first.state_dict()
    late = state.pop("late_bests")
    state["runs"] = [{**run, "led": late} for run in state["runs"]]
    second.load_state_dict(state)
    for generation in range(PATIENCE):
        perf = [0.0, 1.0, 2.0, 3.0, 9.0 + generation, 1.0 + generation / 10, 2.5, 4.5]
        count = len(first.vectors)
        assert first.tell(perf[:count]).tolist() == second.tell(perf[:count]).tolist()
    assert len(second.vectors) < 8


def test_states_of_older_versions_have_the_own_vector_beside_them_or_nothing() -> None:
    first = with_own_beside()
    old = first.state_dict()
    (run,) = old.pop("runs")
    del old["late_bests"]
    second = around_own()
    second.load_state_dict(
        {**old, "own": {k: run[k] for k in ("place", "best", "best_generation")}}
    )
    for _ in range(PATIENCE + 1):
        perf = [0.0, 1.0, 2.0, 3.0, 4.0, 2.0][: len(first.vectors)]
        assert first.tell(perf).tolist() == second.tell(perf).tolist()
    assert len(second.vectors) == 5
    for own in ({}, {"own": {"place": None, "best": 0.0, "best_generation": 1}}):
        second.load_state_dict({**old, "vectors": old["vectors"][:5], **own})
        assert second.tell([0.0, 1.0, 2.0, 3.0, 4.0]).tolist() == [4, 4, 2, 3, 4]
