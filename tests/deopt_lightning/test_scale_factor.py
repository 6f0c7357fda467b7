import numpy as np
import pytest

from deopt_lightning.scale_factor import (
    GOLDEN_RATIO,
    TAU,
    adapt,
    golden_section,
    hill_climb,
    in_lockstep,
)


def drive(search, perf_of):
    """Answer a search from a function; return its result and all scale factors it asked for."""
    asked = []
    factors = next(search)
    while True:
        asked.extend(factors.tolist())
        try:
            factors = search.send(np.array([perf_of(factor) for factor in factors]))
        except StopIteration as end:
            return end.value, asked


def adapt_many(local_search="best", best=7, count=20_000, tau=TAU, seed=0):
    remembered = np.full(count, 0.55), np.full(count, 0.25)
    return adapt(*remembered, best, local_search, np.random.default_rng(seed), tau)


# --- golden section


@pytest.mark.parametrize("optimum", [-0.93, -0.5, 0.0, 0.123, 0.618, 0.97])
def test_golden_section_finds_a_single_peak_to_the_final_width(optimum):
    (factor, perf), asked = drive(golden_section(), lambda f: -abs(f - optimum))
    assert abs(factor - optimum) <= 2 / GOLDEN_RATIO**8
    assert perf == -abs(factor - optimum)
    assert all(-1 <= f <= 1 for f in asked)


@pytest.mark.parametrize("iterations", [0, 1, 8])
def test_golden_section_scores_two_points_and_one_more_per_iteration(iterations):
    _, asked = drive(golden_section(iterations=iterations), lambda f: -(f**2))
    assert len(asked) == 2 + iterations
    assert len(set(asked)) == len(asked)


def test_golden_section_starts_at_the_golden_points():
    first = next(golden_section(0.0, 1.0))
    np.testing.assert_allclose(first, [1 - 1 / GOLDEN_RATIO, 1 / GOLDEN_RATIO])
    assert pytest.approx(1.618033988749895) == GOLDEN_RATIO


# --- hill climb


@pytest.mark.parametrize("optimum", [-0.7, 0.31, 0.5, 0.52, 1.9])
def test_hill_climb_finds_a_single_peak(optimum):
    (factor, perf), _ = drive(hill_climb(0.5), lambda f: -((f - optimum) ** 2))
    assert factor == pytest.approx(optimum, abs=0.01)
    assert perf == -((factor - optimum) ** 2)


def test_hill_climb_reaches_as_far_as_its_steps():
    (factor, _), asked = drive(hill_climb(0.5), lambda f: f)
    assert factor == pytest.approx(0.5 + 20 * 0.1)
    assert len(asked) == 3 + 19


def test_hill_climb_halves_its_step_where_the_centre_is_best():
    (factor, _), asked = drive(hill_climb(0.5, iterations=3), lambda f: -abs(f - 0.5))
    assert factor == 0.5
    np.testing.assert_allclose(asked, [0.4, 0.5, 0.6, 0.45, 0.55, 0.475, 0.525])


@pytest.mark.parametrize("seed", range(5))
def test_hill_climb_takes_at_most_41_evaluations_and_returns_the_best(seed):
    rng = np.random.default_rng(seed)
    scored = {}
    (factor, perf), asked = drive(
        hill_climb(rng.random()), lambda f: scored.setdefault(f, rng.normal())
    )
    assert len(asked) <= 41
    assert perf == max(scored.values())
    assert scored[factor] == perf


@pytest.mark.parametrize("search", [golden_section, lambda: hill_climb(0.5)])
def test_searches_live_with_perf_that_is_minus_infinity_everywhere(search):
    (factor, perf), _ = drive(search(), lambda _: -np.inf)
    assert np.isfinite(factor)
    assert perf == -np.inf


# --- self-adaptation


def test_published_rates_are_kept():
    adapted = adapt_many(local_search=None)
    redrawn = adapted.scale_factors != 0.55
    assert redrawn.mean() == pytest.approx(0.1, abs=0.01)
    assert adapted.scale_factors[redrawn].min() >= 0.1
    assert adapted.scale_factors[redrawn].max() <= 1.0
    assert (adapted.omegas != 0.25).mean() == pytest.approx(0.1, abs=0.01)


def test_local_search_on_all_takes_place_at_the_published_rates():
    adapted = adapt_many(local_search="all")
    assert adapted.golden_section.mean() == pytest.approx(0.03, abs=0.005)
    assert adapted.hill_climb.mean() == pytest.approx(0.04, abs=0.005)
    assert not (adapted.golden_section & adapted.hill_climb).any()
    searched = adapted.golden_section | adapted.hill_climb
    assert (adapted.scale_factors[searched] == 0.55).all()


def test_local_search_on_best_leaves_all_others_alone():
    searched = np.zeros(200, dtype=bool)
    for seed in range(200):
        adapted = adapt_many(count=10, seed=seed)
        targets = np.flatnonzero(adapted.golden_section | adapted.hill_climb)
        assert set(targets) <= {7}
        searched[seed] = len(targets) > 0
    assert 0 < searched.mean() < 0.2


def test_no_local_search_means_none():
    adapted = adapt_many(local_search=None)
    assert not (adapted.golden_section | adapted.hill_climb).any()
    assert adapted.searches() == {}


def test_rates_of_zero_keep_everything_and_rates_of_one_redraw_everything():
    kept = adapt_many(tau=(0, 0, 0, 0))
    assert (kept.scale_factors == 0.55).all()
    assert (kept.omegas == 0.25).all()
    redrawn = adapt_many(tau=(1, 1, 0, 0))
    assert (redrawn.scale_factors != 0.55).all()
    assert (redrawn.omegas != 0.25).all()


@pytest.mark.parametrize("local_search", ["best", "all", None])
def test_five_uniforms_per_target_are_drawn_whatever_happens(local_search):
    rng, reference = np.random.default_rng(0), np.random.default_rng(0)
    adapt(np.ones(6), np.ones(6), 0, local_search, rng)
    reference.random(30)
    assert rng.random() == reference.random()


# --- several searches side by side


def test_lockstep_equals_one_search_after_another():
    peaks = {2: 0.3, 5: 0.8, 9: -0.4}
    starts = {5: 0.45, 9: 0.1}
    searches = {2: golden_section()} | {target: hill_climb(f) for target, f in starts.items()}
    alone = {
        target: drive(search, lambda f, p=peaks[target]: -abs(f - p))
        for target, search in searches.items()
    }

    searches = {2: golden_section()} | {target: hill_climb(f) for target, f in starts.items()}
    lockstep = in_lockstep(searches, lambda rows, factors: np.stack([rows, factors], axis=1))
    batch, rounds, scored = next(lockstep), 0, 0
    while True:
        rounds, scored = rounds + 1, scored + len(batch)
        try:
            batch = lockstep.send(np.array([-abs(f - peaks[int(row)]) for row, f in batch]))
        except StopIteration as end:
            found = end.value
            break
    assert found == {target: result for target, (result, _) in alone.items()}
    assert scored == sum(len(asked) for _, asked in alone.values())
    assert rounds == 20


def test_lockstep_without_searches_asks_for_nothing():
    with pytest.raises(StopIteration) as end:
        next(in_lockstep({}, lambda rows, factors: factors))
    assert end.value.value == {}
