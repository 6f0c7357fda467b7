import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from deopt_lightning import scale_factor
from deopt_lightning.differential_evolution import DifferentialEvolution
from deopt_lightning.population import draw_parents
from deopt_lightning.search_space import SearchSpace

STRATEGIES = ["current_to_rand", "mutant_then_trial"]
LOCAL_SEARCHES = ["best", "all", None]


def sphere(x):
    return (x**2).sum(axis=-1)


def rosenbrock(x):
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(axis=-1)


def rastrigin(x):
    return (10 + x**2 - 10 * np.cos(2 * np.pi * x)).sum(axis=-1)


def box(dimensions=3, bound=5.0):
    names = tuple(f"x{i}" for i in range(dimensions))
    low, high = np.full(dimensions, -bound), np.full(dimensions, bound)
    return SearchSpace(names, low, high, ("linear",) * dimensions)


def build(seed=0, population_size=6, **options):
    return DifferentialEvolution(box(), population_size, seed=seed, **options)


def run_generations(search, count, error=sphere):
    """Complete `count` generations; return every batch that was asked for, in order."""
    batches = []
    for _ in range(count):
        while len(candidates := search.ask()):
            batches.append(candidates)
            search.tell(-error(candidates))
    return batches


def final_error(error, dimensions, population_size, budget, seed, **options):
    search = DifferentialEvolution(
        box(dimensions), population_size, seed=seed, rescore_targets=False, **options
    )
    while search.evaluations < budget:
        if len(candidates := search.ask()):
            search.tell(-error(candidates))
    return -search.best[1]  # as of the last generation that was completed inside the budget


@pytest.fixture
def always_search(monkeypatch):
    """Search F for every target that may be: half by golden section, half by hill climb."""
    monkeypatch.setattr(scale_factor.adapt, "__defaults__", ((0.1, 0.1, 0.5, 1.0),))


# --- what one generation does


@settings(deadline=None, max_examples=40)
@given(population_size=st.integers(4, 30), seed=st.integers(0, 2**32 - 1))
def test_target_and_its_three_parents_are_all_different(population_size, seed):
    parents = draw_parents(population_size, np.random.default_rng(seed))
    assert parents.shape == (population_size, 3)
    for target, row in enumerate(parents.tolist()):
        assert len({target, *row}) == 4
        assert set(row) <= set(range(population_size))


def test_parents_are_drawn_uniformly():
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_parents(5, rng) for _ in range(4000)])
    for target in range(5):
        for column in range(3):
            shares = np.bincount(drawn[:, target, column], minlength=5) / 4000
            assert shares[target] == 0
            np.testing.assert_allclose(np.delete(shares, target), 0.25, atol=0.04)


@pytest.mark.parametrize(
    ("strategy", "local_search", "repair", "seed"),
    list(itertools.product(STRATEGIES, LOCAL_SEARCHES, ["reflect", "clip"], range(2))),
)
def test_candidates_lie_inside_the_bounds(strategy, local_search, repair, seed):
    search = build(seed, strategy=strategy, local_search=local_search, repair=repair)
    for batch in run_generations(search, 15):
        assert (np.abs(batch) <= 5).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_selection_never_lowers_perf(strategy):
    search = build(strategy=strategy)
    for _ in range(20):
        run_generations(search, 1)
        done = search.last_generation
        assert (search.population.perf >= done.target_perf).all()
        np.testing.assert_array_equal(done.accepted, done.trial_perf >= done.target_perf)
        survivors = np.where(done.accepted[:, None], done.trials, done.targets)
        np.testing.assert_array_equal(search.population.vectors, survivors)
        np.testing.assert_array_equal(search.population.perf, -sphere(survivors))


@pytest.mark.parametrize(("rescore_targets", "batches"), [(True, 2), (False, 1)])
def test_targets_are_rescored_only_where_asked(rescore_targets, batches):
    search = build(rescore_targets=rescore_targets, local_search=None)
    assert len(run_generations(search, 1)) == 2
    targets = search.population.vectors
    asked = run_generations(search, 1)
    assert len(asked) == batches
    if rescore_targets:
        np.testing.assert_array_equal(asked[0], targets)


def test_rescored_perf_replaces_the_old():
    search = build(local_search=None)
    run_generations(search, 1)
    search.ask()
    search.tell(np.full(6, -1000.0))
    trials = search.ask()
    search.tell(np.full(len(trials), -2000.0))
    assert len(search.ask()) == 0
    assert search.population.perf.tolist() == [-1000.0] * 6


@pytest.mark.parametrize("rescore_targets", [True, False])
def test_evaluations_are_counted(rescore_targets):
    search = build(rescore_targets=rescore_targets, local_search=None)
    run_generations(search, 5)
    assert search.generation == 5
    assert search.evaluations == (5 * 12 if rescore_targets else 6 + 5 * 6)


def test_local_search_costs_about_two_evaluations_a_generation():
    search = build(local_search="best", rescore_targets=False)
    run_generations(search, 400)
    assert 0.8 < search.evaluations / 400 - 6 < 3


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.usefixtures("always_search")
def test_trial_scored_by_local_search_is_not_scored_again(strategy):
    search = build(strategy=strategy, rescore_targets=False)
    for _ in range(6):
        asked = run_generations(search, 1)
        assert len(asked[-1]) == 5
        done = search.last_generation
        np.testing.assert_array_equal(done.trial_perf, -sphere(done.trials))
        best = int(np.argmax(done.target_perf))
        local = np.concatenate([batch for batch in asked[:-1] if len(batch) < 5])
        assert done.trial_perf[best] == -sphere(local).min()


@pytest.mark.usefixtures("always_search")
def test_local_search_on_all_runs_in_lockstep_and_leaves_nothing_to_score():
    search = build(local_search="all", rescore_targets=False)
    run_generations(search, 1)
    asked = run_generations(search, 1)
    assert len(asked) <= 20
    assert len(asked[0]) >= 2 * 6
    done = search.last_generation
    np.testing.assert_array_equal(done.trial_perf, -sphere(done.trials))


@pytest.mark.usefixtures("always_search")
def test_local_search_never_does_worse_than_the_remembered_scale_factor():
    for seed in range(10):
        search = build(seed, rescore_targets=False)
        asked = run_generations(search, 1)
        if len(asked[1]) == 3:  # a hill climb: F - h, F, F + h
            done = search.last_generation
            best = int(np.argmax(done.target_perf))
            assert done.trial_perf[best] >= -sphere(asked[1][1])


def test_first_generation_opens_with_the_given_vectors():
    given_vectors = [[1.0, 2.0, 3.0], [-5.0, 5.0, 0.0]]
    search = build(initial=given_vectors)
    first = search.ask()
    assert first[:2].tolist() == given_vectors
    assert len(first) == 6


def test_best_is_the_target_with_the_highest_perf():
    search = build(initial=[[1.0, 2.0, 3.0]])
    vector, perf = search.best
    assert vector.tolist() == [1, 2, 3]
    assert perf == -np.inf
    run_generations(search, 5)
    vector, perf = search.best
    assert perf == search.population.perf.max() == -sphere(vector)


# --- perf that is not finite


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_non_finite_perf_never_wins_against_finite(broken):
    search = build(local_search="all")
    rng = np.random.default_rng(0)
    for _ in range(15):
        while len(candidates := search.ask()):
            fails = rng.random(len(candidates)) < 0.4
            search.tell(np.where(fails, broken, -sphere(candidates)))
        done = search.last_generation
        assert not np.isnan(done.trial_perf).any()
        assert not (
            done.accepted & (done.trial_perf == -np.inf) & (done.target_perf > -np.inf)
        ).any()
        assert search.best[1] < np.inf


def test_tell_leaves_its_argument_alone():
    search = build()
    perf = np.full(len(search.ask()), np.nan)
    search.tell(perf)
    assert np.isnan(perf).all()


def test_returned_arrays_may_be_written_to():
    untouched, touched = build(), build()
    for _ in range(4):
        while len(candidates := touched.ask()):
            np.testing.assert_array_equal(candidates, untouched.ask())
            perf = -sphere(candidates)
            candidates[:] = 99
            untouched.tell(perf)
            touched.tell(perf)
            perf[:] = 99
        untouched.ask()
        touched.best[0][:] = 99


# --- seeds and states


@pytest.mark.parametrize("local_search", LOCAL_SEARCHES)
def test_same_seed_same_run(local_search):
    first, second, other = (
        np.concatenate(run_generations(build(seed, local_search=local_search), 20))
        for seed in (4, 4, 5)
    )
    np.testing.assert_array_equal(first, second)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_global_random_state_is_neither_used_nor_changed():
    before = np.random.get_state()[1].copy()
    run_generations(build(), 3)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(
    ("local_search", "rescore_targets"), list(itertools.product(LOCAL_SEARCHES, [True, False]))
)
@pytest.mark.parametrize("asked_before_saving", [True, False])
@pytest.mark.usefixtures("always_search")
def test_resuming_at_every_point_equals_the_unbroken_run(
    local_search, rescore_targets, asked_before_saving
):
    options = {"local_search": local_search, "rescore_targets": rescore_targets}
    unbroken, carried = build(seed=8, **options), build(seed=8, **options)
    for _ in range(80):
        if asked_before_saving and len(carried.ask()) == 0:
            assert len(unbroken.ask()) == 0
            continue
        state = json.loads(json.dumps(carried.state_dict()))
        carried = build(seed=999, **options)
        carried.load_state_dict(state)
        expected, candidates = unbroken.ask(), carried.ask()
        np.testing.assert_array_equal(candidates, expected)
        if len(candidates):
            unbroken.tell(-rosenbrock(expected))
            carried.tell(-rosenbrock(candidates))
        assert carried.evaluations == unbroken.evaluations
        assert carried.generation == unbroken.generation
        assert carried.best[1] == unbroken.best[1]
    assert unbroken.generation >= 2


def test_state_holds_plain_python_types_only():
    def types_in(value):
        if isinstance(value, dict):
            return {str}.union(*(types_in(entry) for entry in value.values()))
        if isinstance(value, list):
            return set().union(*(types_in(entry) for entry in value))
        return {type(value)}

    search = build()
    search.ask()
    search.tell([np.nan] * 6)
    assert types_in(search.state_dict()) <= {int, float, str, bool, type(None)}


def test_loading_an_earlier_state_rolls_a_broken_generation_back():
    search = build()
    run_generations(search, 2)
    state = search.state_dict()
    first_try = run_generations(search, 1)
    search.ask()
    search.load_state_dict(state)
    assert search.generation == 2
    for batch, again in zip(first_try, run_generations(search, 1), strict=True):
        np.testing.assert_array_equal(batch, again)


def test_saved_state_does_not_follow_the_search():
    search = build()
    state = search.state_dict()
    before = json.dumps(state)
    run_generations(search, 2)
    assert json.dumps(state) == before
    state["population"]["vectors"][0][0] = 99.0
    assert search.state_dict()["population"]["vectors"][0][0] != 99.0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (build(population_size=7), "population_size=6, but this one has population_size=7"),
        (build(strategy="mutant_then_trial"), "strategy=current_to_rand, but .*mutant_then_trial"),
        (build(rescore_targets=False), "rescore_targets=True"),
        (DifferentialEvolution(box(4), 6), r"names=\['x0', 'x1', 'x2'\], but this one"),
        (DifferentialEvolution(box(bound=6), 6), r"low=\[-5.0, -5.0, -5.0\], but .*-6.0"),
    ],
)
def test_state_of_a_different_search_is_refused(other, message):
    untouched = other.state_dict()
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(build().state_dict())
    assert other.state_dict() == untouched


# --- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population_size": 3}, "at least 4 because Eq. 7 needs three other members; got 3"),
        ({"population_size": 5.0}, "population_size must be a whole number; got 5.0"),
        ({"population_size": "5"}, "population_size must be a whole number; got '5'"),
        ({"strategy": "best"}, "strategy must be one of .*'current_to_rand'.*; got 'best'"),
        ({"local_search": "some"}, "local_search must be one of .*; got 'some'"),
        ({"repair": "wrap"}, "repair must be one of .*; got 'wrap'"),
        ({"initial": [[1.0, 2.0]]}, r"at most 6 vectors of 3 coordinates; got the shape \(1, 2\)"),
        ({"initial": np.zeros((7, 3))}, r"at most 6 vectors .* \(7, 3\)"),
        ({"initial": [[0.0, 0.0, 5.1]]}, "initial must lie inside the bounds"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_ask_and_tell_must_take_turns():
    search = build()
    with pytest.raises(RuntimeError, match="tell was called with 6 values.*call ask first"):
        search.tell(np.zeros(6))
    search.ask()
    with pytest.raises(RuntimeError, match="twice in a row; tell the perf of the last 6"):
        search.ask()
    for wrong in (np.zeros(5), np.zeros((6, 1)), 0.0):
        with pytest.raises(ValueError, match="one number for each of the 6 candidates"):
            search.tell(wrong)
    search.tell(np.zeros(6))
    with pytest.raises(RuntimeError, match="no candidates are waiting"):
        search.tell(np.zeros(6))


# --- does it find the optimum?


@pytest.mark.parametrize(
    ("error", "strategy", "population_size", "budget", "bound"),
    [
        (sphere, "current_to_rand", 20, 3000, 1e-12),
        (sphere, "mutant_then_trial", 20, 3000, 1e-4),
        (rosenbrock, "current_to_rand", 30, 6000, 1e-6),
        (rosenbrock, "mutant_then_trial", 40, 6000, 0.5),
        (rastrigin, "current_to_rand", 40, 9000, 0.05),
        (rastrigin, "mutant_then_trial", 40, 9000, 0.05),
    ],
)
def test_median_run_converges_in_three_dimensions(error, strategy, population_size, budget, bound):
    errors = [
        final_error(error, 3, population_size, budget, seed, strategy=strategy) for seed in range(7)
    ]
    print(f"{error.__name__} {strategy}: {np.sort(errors)}")
    assert np.median(errors) <= bound


@pytest.mark.parametrize("error", [sphere, rosenbrock])
def test_no_worse_than_twice_the_error_of_scipy_on_equal_evaluations(error):
    """SciPy's defaults (best1bin, 15 members per dimension) in 5 dimensions against 30 targets.

    Four times this budget, at which SciPy's greedier strategy pays off on Rosenbrock, is not
    claimed: there 30 targets reach about 0.15 and SciPy 0.004.
    """
    dimensions, generations = 5, 19
    budget = 15 * dimensions * (generations + 1)
    theirs, ours = [], []
    for seed in range(20):
        result = optimize.differential_evolution(
            error, [(-5, 5)] * dimensions, seed=seed, maxiter=generations, tol=0, polish=False
        )
        assert result.nfev == budget
        theirs.append(result.fun)
        ours.append(final_error(error, dimensions, 30, budget, seed))
    print(f"{error.__name__}: ours {np.median(ours):.2e}, SciPy {np.median(theirs):.2e}")
    assert np.median(ours) <= 2 * np.median(theirs)
