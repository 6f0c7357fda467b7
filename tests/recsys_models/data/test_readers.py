import numpy as np
import pytest

from recsys_models.data import read_ratings


def written(tmp_path, content: bytes):
    path = tmp_path / "ratings"
    path.write_bytes(content)
    return path


def as_dict(ratings):
    pairs = ratings.interactions
    keys = zip(ratings.user_ids[pairs.users], ratings.item_ids[pairs.items], strict=True)
    return dict(zip(keys, ratings.values, strict=True))


EXPECTED = {(7, 30): 3.5, (7, 200): 4.0, (40, 30): 1.0}


@pytest.mark.parametrize(
    ("dataset", "content"),
    [
        ("filmtrust", b"40 30 1\n7 200 4.0\n7 30 3.5\n"),
        ("filmtrust", b"40\t30  1 \n7 200 4.0\n7 30 3.5"),
        ("ml_1m", b"40::30::1\n7::200::4\n7::30::3.5\n"),
        ("ml_1m", b"40::30::1::978300760\n7::200::4::978302109\n7::30::3.5::978301968\n"),
        ("ml_1m", b"40::30::1\r\n7::200::4\r\n7::30::3.5\r\n\r\n \r\n"),
        ("ml_1m", b"\xef\xbb\xbf40::30::1\n7::200::4\n7::30::3.5"),
    ],
)
def test_each_form_gives_the_same_ratings_with_ids_in_ascending_order(tmp_path, dataset, content):
    ratings = read_ratings(written(tmp_path, content), dataset)
    assert as_dict(ratings) == EXPECTED
    assert ratings.user_ids.tolist() == [7, 40]
    assert ratings.item_ids.tolist() == [30, 200]
    assert ratings.interactions.users.tolist() == [0, 0, 1]
    assert ratings.interactions.items.tolist() == [0, 1, 0]


def test_the_last_of_several_ratings_of_a_pair_counts(tmp_path):
    path = written(tmp_path, b"1 2 4\n1 1 1\n1 2 0.5\n2 2 3\n1 2 2.5\n")
    assert as_dict(read_ratings(path, "filmtrust")) == {(1, 1): 1.0, (1, 2): 2.5, (2, 2): 3.0}


@pytest.mark.parametrize(
    ("dataset", "line"),
    [
        ("filmtrust", b"1 2"),
        ("filmtrust", b"1 2 3 4"),
        ("filmtrust", b"1::2::3"),
        ("filmtrust", b"1 2 nan"),
        ("filmtrust", b"1 2 inf"),
        ("ml_1m", b"1::2"),
        ("ml_1m", b"1::2::3::4::5"),
        ("ml_1m", b"u1::2::3"),
        ("ml_1m", b"1::2.5::3"),
        ("ml_1m", b"-1::2::3"),
        ("ml_1m", b"1::2::"),
        ("ml_1m", b"1::2::caf\xe9"),
        ("ml_1m", b""),
    ],
)
@pytest.mark.parametrize("position", [0, 1, 4])
def test_a_malformed_line_is_named_by_number_and_content(tmp_path, dataset, line, position):
    good = b"1 2 3.0" if dataset == "filmtrust" else b"1::2::3.0"
    lines = [good] * 5
    lines[position] = line
    ending = b"\n" if line else b"\n" + good + b"\n"  # a blank line at the end would be allowed
    path = written(tmp_path, b"\r\n".join(lines) + ending)
    with pytest.raises(ValueError, match=f"line {position + 1}: ") as error:
        read_ratings(path, dataset)
    assert repr(line.decode("latin-1")) in str(error.value)
    assert "user" in str(error.value)


@pytest.mark.parametrize("lines", [b"1::2::3\n1::3::3::97\n", b"1::2::3::97\n1::3::3\n"])
def test_a_line_that_differs_from_the_first_in_its_time_stamp_is_named(tmp_path, lines):
    with pytest.raises(ValueError, match="line 2: '1::3::3.*the same on every line"):
        read_ratings(written(tmp_path, lines), "ml_1m")


def test_a_broken_line_amid_a_large_file_is_named_and_cut_short(tmp_path):
    lines = [b"%d::%d::3" % (k // 100 + 1, k % 100 + 1) for k in range(200_000)]
    lines[123_456] = b"x" * 5000
    with pytest.raises(ValueError, match=r"line 123457: 'x{60}\.\.\.' is not") as error:
        read_ratings(written(tmp_path, b"\n".join(lines)), "ml_1m")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("content", [b"", b"\n\r\n  "])
def test_a_file_without_ratings_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="holds no ratings"):
        read_ratings(written(tmp_path, content), "ml_1m")


def test_a_missing_file_is_refused_with_what_to_put_where(tmp_path):
    path = tmp_path / "ml-1m" / "ratings.dat"
    with pytest.raises(FileNotFoundError) as error:
        read_ratings(path, "ml_1m")
    for hint in (
        str(path),
        "ratings.dat there",
        "grouplens.org",
        "data.download=true",
        "data.path",
    ):
        assert hint in str(error.value)


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="filmtrust, ml_1m; got 'netflix'"):
        read_ratings(tmp_path, "netflix")


@pytest.mark.data
def test_filmtrust_has_its_published_size_and_its_last_duplicates_count(real_file):
    ratings = read_ratings(real_file("filmtrust/ratings.txt"), "filmtrust")
    pairs = ratings.interactions
    assert (pairs.num_users, pairs.num_items, len(pairs)) == (1508, 2071, 35_494)
    assert {i: as_dict(ratings)[308, i] for i in (12, 207, 235)} == {12: 4.0, 207: 3.0, 235: 1.5}


@pytest.mark.data
def test_movielens_1m_has_its_published_size(real_file):
    ratings = read_ratings(real_file("ml-1m/ratings.dat"), "ml_1m")
    pairs = ratings.interactions
    assert (pairs.num_users, pairs.num_items, len(pairs)) == (6040, 3706, 1_000_209)
    assert np.bincount(ratings.values.astype(int)).tolist() == [
        0,
        56174,
        107557,
        261197,
        348971,
        226310,
    ]
    assert (ratings.item_ids[0], ratings.item_ids[-1]) == (1, 3952)
