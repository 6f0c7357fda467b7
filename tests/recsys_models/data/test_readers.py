import subprocess
import sys
import zipfile

import numpy as np
import pytest

from recsys_models.data import read_ratings, readers


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
        ("ml_10m", b"40::30::1::978300760\n7::200::4::978302109\n7::30::3.5::978301968\n"),
        ("ml_100k", b"40\t30\t1\t978300760\n7\t200\t4\t978302109\n7\t30\t3.5\t978301968\n"),
        ("eachmovie", b"40 30 1 1 d\n7\t200\t4\t1\td e\n1 1 0 .5 f\r\n7 30 3.5 0.2 g h  \r\n"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 7, 25, 1 << 22])
def test_each_form_gives_the_same_ratings_with_ids_in_ascending_order(
    tmp_path, monkeypatch, dataset, content, chunk_bytes
):
    monkeypatch.setattr(readers, "_CHUNK_BYTES", chunk_bytes)
    ratings = read_ratings(written(tmp_path, content), dataset)
    assert as_dict(ratings) == EXPECTED
    assert ratings.user_ids.tolist() == [7, 40]
    assert ratings.item_ids.tolist() == [30, 200]
    assert ratings.interactions.users.tolist() == [0, 0, 1]
    assert ratings.interactions.items.tolist() == [0, 1, 0]


def test_the_last_of_several_ratings_of_a_pair_counts(tmp_path):
    path = written(tmp_path, b"1 2 4\n1 1 1\n1 2 0.5\n2 2 3\n1 2 2.5\n")
    ratings = read_ratings(path, "filmtrust")
    assert as_dict(ratings) == {(1, 1): 1.0, (1, 2): 2.5, (2, 2): 3.0}
    assert (ratings.repeated, ratings.dropped) == (2, 0)


@pytest.mark.parametrize(
    ("dataset", "content", "times"),
    [
        ("filmtrust", b"1 2 4\n1 1 1\n", None),
        ("ml_1m", b"1::2::4\n1::1::1\n", None),
        ("ml_1m", b"1::2::4::99\n1::1::1::97\n", [97, 99]),
        ("ml_10m", b"1::2::4.5::99\n1::1::1::97\n", [97, 99]),
        ("ml_100k", b"1\t2\t4\t99\n1\t1\t1\t97\n", [97, 99]),
        ("eachmovie", b"1 2 .4 1 1996-02-08\n1 1 1 1 1996-02-07\n", [823651200, 823737600]),
        ("eachmovie", b"1 2 .4 1 2/7/96 0:00:10\n1 1 1 1 2/7/96\n", [823651200, 823651210]),
        ("eachmovie", b"1 2 .4 1 1996-02-08\n1 1 1 1 yesterday\n", None),
    ],
)
def test_times_are_kept_in_the_order_of_the_pairs(tmp_path, dataset, content, times):
    found = read_ratings(written(tmp_path, content), dataset).times
    assert (found if times is None else found.tolist()) == times


def test_clicks_on_sounds_awful_are_no_ratings_and_counted(tmp_path):
    path = written(
        tmp_path,
        b"1 1 0 1 d\n"  # seen and found awful
        b"1 2 0 0.2 d\n"  # never seen
        b"1 3 0.2 0.2 d\n"
        b"2 2 0.0 .5 d\n",
    )
    ratings = read_ratings(path, "eachmovie")
    assert as_dict(ratings) == {(1, 1): 0.0, (1, 3): 0.2}
    assert ratings.dropped == 2
    assert ratings.user_ids.tolist() == [1]


def test_a_file_of_clicks_alone_holds_no_ratings(tmp_path):
    with pytest.raises(ValueError, match="holds no ratings .1 lines"):
        read_ratings(written(tmp_path, b"1 2 0 0.2 d\n"), "eachmovie")


def zipped(tmp_path, **members: bytes):
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return path


@pytest.mark.parametrize(
    "members",
    [
        {"ml-1m__README": b"x", "ml-1m__ratings_dat": b"40::30::1\n7::200::4\n7::30::3.5\n"},
        {"mine_txt": b"40::30::1\n7::200::4\n7::30::3.5\n"},
    ],
)
def test_a_zip_archive_is_read_directly(tmp_path, members):
    assert as_dict(read_ratings(zipped(tmp_path, **members), "ml_1m")) == EXPECTED


@pytest.mark.parametrize("folders", [(), ("a", "b")])
def test_an_archive_with_no_or_several_rating_files_is_refused(tmp_path, folders):
    members = {f"{folder}__ratings_dat": b"1::2::3\n" for folder in folders}
    path = zipped(tmp_path, README=b"x", LICENSE=b"y", **members)
    with pytest.raises(ValueError, match=rf"it holds {len(folders)} of them among"):
        read_ratings(path, "ml_1m")


def test_a_damaged_archive_is_refused(tmp_path):
    path = zipped(tmp_path, ratings_dat=b"1::2::3\n")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="is damaged"):
        read_ratings(path, "ml_1m")


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
        ("ml_10m", b"1::2::3"),
        ("ml_100k", b"1\t2\t3"),
        ("eachmovie", b"1 2 3 4"),
        ("eachmovie", b"1 2 x 1 d"),
    ],
)
@pytest.mark.parametrize("position", [0, 1, 4])
@pytest.mark.parametrize("chunk_bytes", [20, 1 << 22])
def test_a_malformed_line_is_named_by_number_and_content(
    tmp_path, monkeypatch, dataset, line, position, chunk_bytes
):
    monkeypatch.setattr(readers, "_CHUNK_BYTES", chunk_bytes)
    good = {
        "filmtrust": b"1 2 3.0",
        "ml_1m": b"1::2::3.0",
        "ml_10m": b"1::2::3.5::9",
        "ml_100k": b"1\t2\t3\t9",
        "eachmovie": b"1 2 3 1 d",
    }[dataset]
    lines = [good] * 5
    lines[position] = line
    ending = b"\n" if line else b"\n" + good + b"\n"  # a blank line at the end would be allowed
    path = written(tmp_path, b"\r\n".join(lines) + ending)
    with pytest.raises(ValueError, match=f"line {position + 1}: ") as error:
        read_ratings(path, dataset)
    assert repr(line.decode("latin-1")) in str(error.value)
    assert "is not a rating of the form" in str(error.value)


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


def test_a_missing_file_that_nobody_distributes_offers_no_download(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Put the publisher's Vote\.txt there") as error:
        read_ratings(tmp_path / "Vote.txt", "eachmovie")
    assert "download" not in str(error.value)


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="filmtrust, ml_1m, .*; got 'netflix'"):
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


def test_reading_needs_no_torch(tmp_path):
    """Its import takes more time and memory than reading MovieLens-1M."""
    path = written(tmp_path, b"40 30 1\n7 200 4.0\n")
    program = (
        "import sys; from recsys_models.data import read_ratings; "
        f"read_ratings({str(path)!r}, 'filmtrust'); "
        "assert 'torch' not in sys.modules; "
        "from recsys_models.data import RecsysDataModule; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from recsys_models.data import Nothing  # noqa: F401
