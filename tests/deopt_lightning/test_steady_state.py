"""Members that live on: who is replaced, by what, and from whose state it goes on."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from deopt_lightning.search_space import SearchSpace
from deopt_lightning.steady_state import FALL, OWN_STAYS, SteadyStateDE
from tests.deopt_lightning.searches import NAN, OWN, around_own


def build(seed: int = 0, low: float = 0.0, high: float = 1.0, **options: Any) -> SteadyStateDE:
    dimensions = options.pop("dimensions", 4)
    names = [f"x{i}" for i in range(dimensions)]
    space = SearchSpace(names, [low] * dimensions, [high] * dimensions, "linear")
    return SteadyStateDE(space, **{"population_size": 5, "seed": seed} | options)


@pytest.mark.parametrize("seed", range(5))
def test_the_worst_two_of_five_are_replaced_and_go_on_from_the_best(seed: int) -> None:
    search = build(seed)
    before = search.vectors.copy()
    parents = search.tell([0.3, 0.9, 0.1, 0.5, 0.7])
    assert parents.tolist() == [1, 1, 1, 3, 4]
    changed = (search.vectors != before).any(axis=1)
    assert changed.tolist() == [True, False, True, False, False]
    assert np.array_equal(search.archive, before[[0, 2]])


def test_the_archive_is_bounded() -> None:
    search = build()
    rng = np.random.default_rng(2)
    for _ in range(30):
        search.tell(rng.random(5))
    assert search.archive.shape == (20, 4)


def test_without_an_own_vector_members_spread_over_the_space() -> None:
    slices = np.floor(build(population_size=10).vectors * 10).astype(int)
    assert all(sorted(column) == list(range(10)) for column in slices.T)


@pytest.mark.parametrize("seed", range(5))
def test_first_lrs_are_the_own_a_tenth_ten_times_and_between(seed: int) -> None:
    vectors = around_own(seed=seed).vectors
    assert np.array_equal(vectors[0], OWN)
    decades = vectors[1:, :2] - OWN[:2]
    assert decades[0] == pytest.approx([-1, -1])
    assert decades[1] == pytest.approx([1, 1])
    assert (np.abs(decades[2:]) < 1).all()
    assert len(np.unique(decades[2:])) == 4


def test_first_lrs_stay_inside_the_bounds() -> None:
    vectors = around_own(lr_bounds=(5e-4, 5e-3)).vectors
    low, high = np.log10([5e-4, 5e-3])
    assert ((vectors[:, :2] >= low) & (vectors[:, :2] <= high)).all()
    assert (vectors[1, :2] == low).all()
    assert (vectors[2, :2] == high).all()


def test_lrs_step_from_the_archive_to_members_and_decays_within_the_archive() -> None:
    """All members agree, so that every step comes from the archive."""
    space = SearchSpace.for_layers(["one"], (1e-9, 1e9), (1e-9, 1e9))
    search = SteadyStateDE(space, 5, seed=0)
    found = []
    for _ in range(100):
        search.vectors = np.zeros((5, 2))
        search.archive = np.array([[-2.0, -2.0], [-1.0, -1.0]] * 10)
        search.first = np.zeros((5, 2))
        search.tell([1.0, 0.1, 0.2, 0.3, 0.4])
        found += [*search.vectors[1:3]]
    lr, weight_decay = np.array(found).T
    assert lr.min() == 0  # where X_r3 is a member
    assert lr.max() > 1
    assert weight_decay.min() < -0.5
    assert weight_decay.max() > 0.5


@pytest.mark.parametrize("strategy", ["current_to_rand", "mutant_then_trial"])
def test_what_was_drawn_for_a_trial_is_what_it_is_made_with(strategy: str) -> None:
    """All members agree, so that a trial of one lr is 0, 1 or 2 times its factor."""
    space = SearchSpace.for_layers(["one"], (1e-9, 1e9), (1e-9, 1e9))
    search = SteadyStateDE(space, 5, seed=0, strategy=strategy)
    seen = set()
    for _ in range(50):
        search.vectors = np.zeros((5, 2))
        search.archive = np.array([[-2.0, -2.0], [-1.0, -1.0]] * 10)
        search.first = np.zeros((5, 2))
        search.tell([1.0, 0.1, 0.2, 0.3, 0.4])
        assert np.isfinite(search.drawn).all(axis=1).tolist() == [False, True, True, False, False]
        factor, omega = search.drawn[2]
        assert 0.1 <= factor <= 1
        assert 0 <= omega <= 1
        step = factor if strategy == "current_to_rand" else omega * factor
        seen.add(round(float(search.vectors[2, 0] / step), 9))
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("strategy", ["current_to_rand", "mutant_then_trial"])
@pytest.mark.parametrize("seed", range(5))
def test_a_trial_is_made_around_the_best(strategy: str, seed: int) -> None:
    """In one dimension each term is at most the largest difference of two members."""
    search = build(seed, dimensions=1, low=-1e6, high=1e6, strategy=strategy)
    search.first = search.vectors = np.array([[5.0], [5.0], [5.0], [5.0], [-3.0]])
    search.tell([0.1, 0.2, 0.3, 0.4, 0.0])
    assert search.vectors[1:4].tolist() == [[5.0], [5.0], [5.0]]
    assert np.abs(search.vectors[[0, 4]] - 5.0).max() <= 2 * 8


def test_an_lr_falls_by_little_at_a_time_and_rises_freely() -> None:
    wide = SearchSpace.for_layers(["one", "two"], (1e-9, 1.0), (1e-9, 1.0))
    search = SteadyStateDE(wide, 5, seed=0)
    rng = np.random.default_rng(1)
    steps = []
    for _ in range(200):
        perf, before = rng.random(5), search.vectors
        search.tell(perf)
        new = (search.vectors != before).any(axis=1)
        steps.append(search.vectors[new] - before[perf.argmax()])
    lr, weight_decay = np.split(np.concatenate(steps), 2, axis=1)
    assert lr.min() == pytest.approx(-FALL)
    assert lr.max() > 1
    assert weight_decay.min() < -1


def test_every_other_trial_leaves_some_lrs_as_they_are_but_never_all() -> None:
    layers = ["one", "two", "three"]
    space = SearchSpace.for_layers(layers, (1e-9, 1e9), (1e-9, 1e9))
    counts = set()
    for seed in range(60):
        search = SteadyStateDE(space, 5, seed=seed)
        best = search.vectors[0].copy()
        search.tell([1.0, 0.1, 0.2, 0.3, 0.4])  # the second and the third are replaced
        moved = search.vectors[1:3] != best
        assert moved[1].all()
        assert moved[0, 3:].all()
        counts.add(int(moved[0, :3].sum()))
    assert counts == {1, 2, 3}


def test_weight_decays_step_between_the_first_members_too() -> None:
    """All members and the archive agree, so that every step comes from the first members."""
    space = SearchSpace.for_layers(["one"], (1e-9, 1e9), (1e-9, 1e9))
    search = SteadyStateDE(space, 5, seed=0)
    for _ in range(20):
        search.vectors, search.archive = np.zeros((5, 2)), np.zeros((20, 2))
        search.tell([1.0, 0.1, 0.2, 0.3, 0.4])
        if search.vectors[:, 1].any():
            break
    assert search.vectors[1:3, 0].tolist() == [0, 0]
    assert search.vectors[1:3, 1].any()


def test_the_own_vector_stays_for_some_generations_unless_it_diverges() -> None:
    search = around_own()
    for perf in ([0.0, NAN, NAN, 3.0, 4.0], *[[0.0, 1.0, 2.0, 3.0, 4.0]] * (OWN_STAYS - 1)):
        parents = search.tell(perf)
        assert parents.tolist() == [0, 4, 4, 3, 4]
        assert np.array_equal(search.vectors[0], OWN)
    assert search.tell([0.0, 1.0, 2.0, 3.0, 4.0]).tolist() == [4, 4, 2, 3, 4, 0]
    assert not np.array_equal(search.vectors[0], OWN)
    diverged = around_own()
    assert diverged.tell([NAN, 1.0, 2.0, 3.0, 4.0]).tolist() == [4, 4, 2, 3, 4, 1]


def test_no_trial_is_made_of_an_own_vector_that_is_among_the_worst() -> None:
    """All others agree, so that a trial that differs from them would be made of the own vector."""
    search = around_own()
    search.vectors = search.first = np.array([OWN] + [OWN + 1] * 4)
    search.tell([0.0, 1.0, 2.0, 3.0, 4.0])
    assert np.array_equal(search.vectors[1:5, :2], np.array([OWN[:2] + 1] * 4))


def test_members_without_a_finite_perf_are_all_replaced() -> None:
    search = build()
    parents = search.tell([float("nan"), 0.2, float("inf"), 0.1, -float("inf")])  # 3 of 5
    assert parents.tolist() == [1, 1, 1, 3, 1]


def test_nothing_changes_when_all_diverge() -> None:
    search = build()
    before = search.vectors.copy()
    assert search.tell([float("nan")] * 5).tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(search.vectors, before)


def test_a_kept_member_stays_although_it_is_the_worst() -> None:
    search = build()
    before = search.vectors.copy()
    assert search.tell([0.0, 1.0, 2.0, 3.0, 4.0], keep=0).tolist() == [0, 4, 2, 3, 4]
    assert np.array_equal(search.vectors[0], before[0])


def test_the_best_survives_equal_perf() -> None:
    search = build()
    before = search.vectors[0].copy()
    assert search.tell([1.0] * 5).tolist() == [0, 0, 2, 3, 4]
    assert np.array_equal(search.vectors[0], before)


@pytest.mark.parametrize("repair", ["reflect", "clip"])
def test_vectors_stay_inside_the_bounds(repair: str) -> None:
    search = build(repair=repair)
    rng = np.random.default_rng(1)
    for _ in range(200):
        search.tell(rng.random(5))
    assert ((search.vectors >= 0) & (search.vectors <= 1)).all()


def test_an_own_vector_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="own must lie inside the bounds"):
        build(own=[0.1, 0.2, 0.3, 1.4])
    with pytest.raises(
        ValueError, match=r"at most 1 vectors of 4 coordinates; got the shape \(1, 3\)"
    ):
        build(own=[0.1, 0.2, 0.3])


def test_the_population_gathers_at_the_optimum() -> None:
    """States add up what a vector earns, as weights do: the sum decides, not the last step."""
    nearer = []
    for seed in range(8):
        search = build(seed, population_size=8)
        states, first = np.zeros(8), np.abs(search.vectors - 0.3).mean()
        for _ in range(150):
            states = states - np.square(search.vectors - 0.3).sum(axis=1)
            states = states[search.tell(states)]
        nearer.append(np.abs(search.vectors - 0.3).mean() / first)
    assert np.median(nearer) < 0.5


def test_a_resumed_search_goes_on_as_the_unbroken_one() -> None:
    rng = np.random.default_rng(5)
    perf = rng.random((10, 5))
    unbroken, first = build(7), build(7)
    for row in perf:
        unbroken.tell(row)
    for row in perf[:4]:
        first.tell(row)
    second = build(99)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for row in perf[4:]:
        second.tell(row)
    assert second.state_dict() == unbroken.state_dict()
    assert second.generation == 10


def test_a_state_of_another_search_is_refused() -> None:
    with pytest.raises(ValueError, match="population_size=6, but this one has population_size=5"):
        build().load_state_dict(build(population_size=6).state_dict())


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        build(population_size=3)
    with pytest.raises(ValueError, match=r"each of the 5 members; got the shape \(4,\)"):
        build().tell([1.0] * 4)
