"""What the curves of a comparison show."""

import numpy as np

from recsys_models.comparison.colours import KNOWN, colours_of
from recsys_models.comparison.figures import mean_curve


def test_mean_curve_starts_where_all_have_a_value_and_keeps_that_of_a_run_that_has_ended():
    short = np.array([1.0, 3.0]), np.array([0.2, 0.4])
    long = np.array([2.0, 5.0]), np.array([0.1, 0.6])
    costs, values = mean_curve([short, long])
    assert costs.tolist() == [2.0, 3.0, 5.0]
    assert np.allclose(values, [(0.2 + 0.1) / 2, (0.4 + 0.1) / 2, (0.4 + 0.6) / 2])


def test_every_tuner_of_a_table_has_a_colour_of_its_own():
    colours = colours_of([*KNOWN, "mine", "yours"])
    assert len(set(colours.values())) == len(KNOWN) + 2
    assert colours_of(["mine", "deopt"])["deopt"] == KNOWN["deopt"]
