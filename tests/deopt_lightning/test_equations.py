import inspect
import re

import numpy as np
import pytest

from deopt_lightning import equations
from deopt_lightning.equations import (
    current_to_rand,
    initial_population,
    mutant_vectors,
    select,
    trial_vectors,
)

X = np.array([[1.0, 2.0], [0.0, -1.0]])
X_R1 = np.array([[3.0, 6.0], [1.0, 1.0]])
X_R2 = np.array([[5.0, 1.0], [2.0, 0.0]])
X_R3 = np.array([[1.0, 3.0], [4.0, 0.0]])
F = np.array([0.5, 2.0])
OMEGA = np.array([0.25, 0.5])


def random_rows(seed):
    rng = np.random.default_rng(seed)
    return *rng.normal(size=(4, 6, 3)), *rng.random((2, 6))


def test_each_equation_from_6_to_10_is_claimed_once_and_in_paper_order():
    docstrings = [
        function.__doc__
        for _, function in sorted(
            inspect.getmembers(equations, inspect.isfunction),
            key=lambda member: member[1].__code__.co_firstlineno,
        )
    ]
    claimed = [int(re.match(r"Eq\. \((\d+)\)\.", doc).group(1)) for doc in docstrings]
    assert claimed == [6, 7, 8, 9, 10]


def test_initial_population_maps_uniform_draws_onto_the_bounds():
    low, high = np.array([-1.0, 10.0]), np.array([1.0, 30.0])
    draws = np.random.default_rng(3).random((4, 2))
    population = initial_population(low, high, 4, np.random.default_rng(3))
    np.testing.assert_allclose(population, [[2 * a - 1, 20 * b + 10] for a, b in draws])


def test_mutants_match_numbers_worked_by_hand():
    # Row 0: 3 + 0.5 (5 - 1) = 5 and 6 + 0.5 (1 - 3) = 5. Row 1: 1 + 2 (2 - 4) = -3 and 1 + 0 = 1.
    np.testing.assert_allclose(mutant_vectors(X_R1, X_R2, X_R3, F), [[5, 5], [-3, 1]])


def test_trials_match_numbers_worked_by_hand():
    # Row 0: 1 + 0.25 (5 - 1) = 2 and 2 + 0.25 (5 - 2) = 2.75. Row 1: 0 + 0.5 (-3 - 0) = -1.5 and
    # -1 + 0.5 (1 + 1) = 0.
    mutants = np.array([[5.0, 5.0], [-3.0, 1.0]])
    np.testing.assert_allclose(trial_vectors(X, mutants, OMEGA), [[2, 2.75], [-1.5, 0]])


def test_current_to_rand_matches_numbers_worked_by_hand():
    # Row 0: 1 + 0.25 (3 - 1) + 0.5 (5 - 1) = 3.5 and 2 + 0.25 (6 - 2) + 0.5 (1 - 3) = 2.
    # Row 1: 0 + 0.5 (1 - 0) + 2 (2 - 4) = -3.5 and -1 + 0.5 (1 + 1) + 2 (0 - 0) = 0.
    expected = [[3.5, 2], [-3.5, 0]]
    np.testing.assert_allclose(current_to_rand(X, X_R1, X_R2, X_R3, F, OMEGA), expected)


def test_selection_keeps_the_better_and_prefers_the_trial_on_a_tie():
    targets, trials = np.zeros((4, 1)), np.ones((4, 1))
    target_perf = np.array([1.0, 2.0, 3.0, -np.inf])
    trial_perf = np.array([2.0, 2.0, 2.0, -5.0])
    survivors, perf, accepted = select(targets, target_perf, trials, trial_perf)
    assert survivors[:, 0].tolist() == [1, 1, 0, 1]
    assert perf.tolist() == [2, 2, 3, -5]
    assert accepted.tolist() == [True, True, False, True]


def test_trial_equals_target_when_omega_is_zero():
    assert (trial_vectors(X, mutant_vectors(X_R1, X_R2, X_R3, F), np.zeros(2)) == X).all()


def test_trial_equals_mutant_when_omega_is_one():
    mutants = mutant_vectors(X_R1, X_R2, X_R3, F)
    np.testing.assert_allclose(trial_vectors(X, mutants, np.ones(2)), mutants)


@pytest.mark.parametrize("seed", range(5))
def test_equation_9_with_f_times_omega_is_equation_7_put_into_equation_8(seed):
    targets, x_r1, x_r2, x_r3, factors, omegas = random_rows(seed)
    composed = trial_vectors(targets, mutant_vectors(x_r1, x_r2, x_r3, factors), omegas)
    printed = current_to_rand(targets, x_r1, x_r2, x_r3, omegas * factors, omegas)
    np.testing.assert_allclose(printed, composed)
    assert not np.allclose(current_to_rand(targets, x_r1, x_r2, x_r3, factors, omegas), composed)


@pytest.mark.parametrize("seed", range(5))
def test_rows_do_not_mix(seed):
    rows = random_rows(seed)
    together = current_to_rand(*rows)
    one_by_one = [current_to_rand(*(array[i : i + 1] for array in rows))[0] for i in range(6)]
    np.testing.assert_array_equal(together, one_by_one)


def test_arguments_are_not_changed():
    arguments = [array.copy() for array in (X, X_R1, X_R2, X_R3, F, OMEGA)]
    current_to_rand(*arguments)
    trial_vectors(arguments[0], mutant_vectors(*arguments[1:5]), OMEGA)
    select(arguments[0], arguments[4], arguments[1], arguments[5])
    for array, original in zip(arguments, (X, X_R1, X_R2, X_R3, F, OMEGA), strict=True):
        np.testing.assert_array_equal(array, original)
