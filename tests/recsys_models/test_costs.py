"""What is counted as the cost of a run."""

import subprocess
import sys
import time

import pytest

from recsys_models.costs import Clock, Row, best_so_far, corners, total

BUSY = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def test_processor_time_counts_work_and_not_waiting():
    clock = Clock()
    time.sleep(0.3)
    assert clock.seconds >= 0.3
    assert clock.cpu_seconds < 0.2


def test_processor_time_of_a_child_counts_once_it_has_ended():
    clock = Clock()
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert 0.25 < clock.cpu_seconds < 10


def test_costs_of_trainings_that_follow_one_another_add_up():
    first = [Row(5, 1, 1.0, 0.2, 0.5), Row(10, 2, 2.0, 0.1, 1.0)]
    second = [Row(5, 1, 3.0, 0.3, 2.0)]
    assert best_so_far([first, [], second], "max") == [
        Row(5, 1, 1.0, 0.2, 0.5),
        Row(10, 2, 2.0, 0.2, 1.0),
        Row(15, 3, 5.0, 0.3, 3.0),
    ]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_value_that_is_not_finite_costs_and_changes_nothing_else(mode):
    """An own module's, which JSON cannot hold either."""
    nan, inf = float("nan"), float("inf") if mode == "max" else -float("inf")
    diverged = [Row(5, 1, 1.0, nan, 0.5), Row(10, 2, 2.0, inf, 1.0)]
    trained = [Row(5, 1, 1.0, 0.2, 0.5), Row(10, 2, 2.0, nan, 1.0)]
    assert best_so_far([diverged, trained], mode) == [
        Row(15, 3, 3.0, 0.2, 1.5),
        Row(20, 4, 4.0, 0.2, 2.0),
    ]
    assert best_so_far([trained, diverged], mode)[-1] == Row(20, 4, 4.0, 0.2, 2.0)


def test_a_cost_that_is_not_known_of_a_part_is_not_known_of_the_whole():
    joined = best_so_far([[Row(5, 1, 1.0, 0.2)], [Row(5, 1, 1.0, 0.3, 1.0)]], "max")
    assert [row.cpu_seconds for row in joined] == [None, None]
    assert total([1.0, None]) is None
    assert total([]) == pytest.approx(0.0)


def test_corners_are_where_the_best_value_rises_and_both_ends():
    rows = [Row(k, k, k, value) for k, value in enumerate([0.1, 0.1, 0.3, 0.3, 0.3])]
    assert [row.steps for row in corners(rows)] == [0, 2, 4]
