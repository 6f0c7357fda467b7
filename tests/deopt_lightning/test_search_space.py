import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deopt_lightning.search_space import SearchSpace

SPACE = SearchSpace(
    names=("shift", "lr", "weight_decay", "frozen"),
    low=[-3.0, 1e-5, 1e-6, 0.25],
    high=[5.0, 1e-1, 1e-2, 0.25],
    scale=("linear", "log", "log_or_zero", "log"),
)
MIDDLE = [0.0, 1e-3, 1e-4, 0.25]


def with_value(dimension, value):
    return [*MIDDLE[:dimension], value, *MIDDLE[dimension + 1 :]]


# --- values and coordinates


def test_coordinates_match_numbers_worked_by_hand():
    np.testing.assert_allclose(SPACE.coordinate_low, [-3, -5, -7, 0.25])
    np.testing.assert_allclose(SPACE.coordinate_high, [5, -1, -2, 0.25])
    np.testing.assert_allclose(SPACE.encode([1.0, 1e-2, 1e-3, 0.25]), [1, -2, -3, 0.25])
    np.testing.assert_allclose(SPACE.decode([1.0, -2, -3, 0.25]), [1.0, 1e-2, 1e-3, 0.25])


def test_zero_is_the_band_of_one_decade_below_low():
    assert SPACE.encode(with_value(2, 0.0))[2] == pytest.approx(-6.5)
    coordinates = [with_value(2, c) for c in (-7.0, -6.5, np.nextafter(-6, -7))]
    assert SPACE.decode(coordinates)[:, 2].tolist() == [0, 0, 0]
    assert SPACE.decode(with_value(2, -6.0))[2] == 1e-6


def test_zero_is_drawn_as_often_as_its_band_is_wide():
    zeros = SPACE.decode(SPACE.sample(4000, np.random.default_rng(0)))[:, 2] == 0
    assert zeros.mean() == pytest.approx(1 / 5, abs=0.03)


@settings(deadline=None, max_examples=60)
@given(
    shift=st.floats(-3, 5),
    lr=st.floats(1e-5, 1e-1),
    weight_decay=st.one_of(st.just(0.0), st.floats(1e-6, 1e-2)),
)
def test_decode_inverts_encode(shift, lr, weight_decay):
    values = np.array([shift, lr, weight_decay, 0.25])
    decoded = SPACE.decode(SPACE.encode(values))
    np.testing.assert_allclose(decoded, values, rtol=1e-12)
    assert (decoded[2] == 0) == (weight_decay == 0)


@pytest.mark.parametrize("bound", ["low", "high"])
def test_bounds_decode_to_themselves(bound):
    values = getattr(SPACE, bound)
    np.testing.assert_allclose(SPACE.decode(SPACE.encode(values)), values, rtol=4e-16, atol=0)


def test_single_vectors_and_rows_agree():
    rows = SPACE.sample(5, np.random.default_rng(1))
    for convert in (SPACE.decode, SPACE.repair, lambda v: SPACE.encode(SPACE.decode(v))):
        np.testing.assert_array_equal(convert(rows), [convert(row) for row in rows])


def test_samples_lie_inside_the_bounds_and_repeat_with_the_seed():
    samples = SPACE.sample(200, np.random.default_rng(2))
    assert ((samples >= SPACE.coordinate_low) & (samples <= SPACE.coordinate_high)).all()
    np.testing.assert_array_equal(samples, SPACE.sample(200, np.random.default_rng(2)))
    values = SPACE.decode(samples)
    assert ((values >= SPACE.low) & (values <= SPACE.high) | (values == 0)).all()


# --- repair


@settings(deadline=None, max_examples=80)
@given(
    vectors=st.lists(st.lists(st.floats(-1e9, 1e9), min_size=4, max_size=4), min_size=1),
    method=st.sampled_from(["reflect", "clip"]),
)
def test_repaired_vectors_lie_inside_the_bounds(vectors, method):
    given_vectors = np.array(vectors)
    repaired = SPACE.repair(given_vectors, method)
    assert ((repaired >= SPACE.coordinate_low) & (repaired <= SPACE.coordinate_high)).all()
    inside = (given_vectors >= SPACE.coordinate_low) & (given_vectors <= SPACE.coordinate_high)
    np.testing.assert_array_equal(repaired[inside], given_vectors[inside])


@pytest.mark.parametrize(
    ("coordinate", "reflected", "clipped"),
    [(-4, -2, -3), (6, 4, 5), (14, -2, 5), (-3 + 16 * 7 + 1, -2, 5), (5, 5, 5), (-3, -3, -3)],
)
def test_overshoot_is_folded_back_or_clipped(coordinate, reflected, clipped):
    vector = [coordinate, -3, -4, 0.25]
    assert SPACE.repair(vector)[0] == pytest.approx(reflected)
    assert SPACE.repair(vector, "clip")[0] == clipped


def test_frozen_dimension_keeps_its_value():
    for method in ("reflect", "clip"):
        assert SPACE.repair(with_value(3, 99.0), method)[3] == 0.25
    assert (SPACE.sample(9, np.random.default_rng(0))[:, 3] == 0.25).all()


# --- building a space


def test_for_layers_lists_all_lr_then_all_weight_decay():
    space = SearchSpace.for_layers(["a", "b"], (1e-4, 1e-1), [(0, 1e-2), (1e-5, 1e-3)])
    assert space.names == ("lr/a", "lr/b", "weight_decay/a", "weight_decay/b")
    assert space.scale == ("log", "log", "log_or_zero", "log_or_zero")
    assert space.dimensions == 4
    np.testing.assert_allclose(space.low, [1e-4, 1e-4, 1e-6, 1e-5])
    np.testing.assert_allclose(space.high, [1e-1, 1e-1, 1e-2, 1e-3])


def test_two_pairs_for_two_layers_are_one_pair_each():
    space = SearchSpace.for_layers(["a", "b"], [(1e-4, 1e-3), (1e-2, 1e-1)], (0, 1))
    assert space.low[:2].tolist() == [1e-4, 1e-2]


@pytest.mark.parametrize("bounds", [(0, 0), (0.01, 0.01)])
def test_equal_weight_decay_bounds_freeze_it(bounds):
    space = SearchSpace.for_layers(["a"], (1e-4, 1e-1), bounds)
    values = space.decode(space.sample(20, np.random.default_rng(0)))
    assert (values[:, 1] == bounds[0]).all()


def test_split_parts_lr_and_weight_decay():
    space = SearchSpace.for_layers(["a", "b"], (1e-4, 1e-1), (0, 1e-2))
    lr, weight_decay = space.split([[1.0, 2.0, 3.0, 4.0]])
    assert lr.tolist() == [[1, 2]]
    assert weight_decay.tolist() == [[3, 4]]
    with pytest.raises(ValueError, match="one weight decay for each lr"):
        SPACE.split(MIDDLE)


def test_around_reaches_ten_times_the_optimum():
    space = SearchSpace.around({"lr": 0.01, "weight_decay": 0.1})
    assert space.scale == ("log", "log_or_zero")
    np.testing.assert_allclose(space.low, [1e-5, 1e-4])
    np.testing.assert_allclose(space.high, [0.1, 1.0])


def test_around_on_the_linear_scale_starts_at_zero():
    space = SearchSpace.around({"lr": 0.01, "weight_decay": 0.1}, scale="linear")
    assert space.low.tolist() == [0, 0]
    np.testing.assert_allclose(space.high, [0.1, 1.0])


def test_one_scale_serves_all_dimensions():
    assert SearchSpace(("x", "y"), [0, 0], [1, 1], "linear").scale == ("linear", "linear")


def test_given_arrays_are_copied_and_kept_read_only():
    low = np.zeros(1)
    space = SearchSpace(("x",), low, np.ones(1), ("linear",))
    low[0] = 0.5
    assert space.low[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        space.low[0] = 0.5


# --- errors


@pytest.mark.parametrize(
    ("names", "low", "high", "scale", "message"),
    [
        (("x", "lr"), [0, 0.5], [1, 0.1], "linear", r"'lr'.*reversed.*low=0\.5.*high=0\.1"),
        (("x",), [0], [np.inf], "linear", "'x' needs finite bounds.*high=inf"),
        (("x",), [np.nan], [1], "linear", "'x' needs finite bounds.*low=nan"),
        (("x",), [0], [1], "log", "'x' needs a positive low.*'log'; got 0"),
        (("x",), [-1], [1], "log_or_zero", "'x' needs a positive low.*got -1"),
        (("x", "x"), [0, 0], [1, 1], "linear", r"differ from one another; got \['x'\]"),
        (("x", "y"), [0], [1, 1], "linear", "low must hold one entry for each of the 2 names"),
        (("x",), [0], [1, 1], "linear", "high must hold one entry"),
        (("x",), [0], [1], ("linear", "log"), "scale must hold one entry"),
        (("x",), [0], [1], "cubic", "'x' got the scale 'cubic'; choose one of"),
        ((), [], [], (), "at least one dimension"),
    ],
)
def test_impossible_spaces_are_refused(names, low, high, scale, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(names, low, high, scale)


@pytest.mark.parametrize(
    ("dimension", "value", "message"),
    [
        (0, 5.5, "'shift' got the value 5.5; choose a value from -3 to 5"),
        (1, 0.0, "'lr' got the value 0; choose a value from 1e-05"),
        (2, 1e-8, "'weight_decay' got the value 1e-08; choose 0 or a value from 1e-06"),
        (0, np.nan, "'shift' got the value nan"),
    ],
)
def test_values_outside_the_bounds_are_refused(dimension, value, message):
    with pytest.raises(ValueError, match=message):
        SPACE.encode(with_value(dimension, value))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"vectors must have the shape \(4,\).*got \(3,\)"):
        SPACE.decode([1, 2, 3])
    with pytest.raises(ValueError, match="lr_bounds must be one .* each of the 3 layers"):
        SearchSpace.for_layers("abc", [(1e-4, 1e-1)] * 2, (0, 1))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_around_refuses_an_optimum_that_has_no_multiples(value):
    with pytest.raises(ValueError, match="optimum must hold positive numbers"):
        SearchSpace.around({"lr": value})
