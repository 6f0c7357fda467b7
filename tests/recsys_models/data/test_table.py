import bz2
import gzip
import lzma
import zipfile
from datetime import datetime

import polars as pl
import pytest

from recsys_models import train
from recsys_models.data import Columns, read_table, synthetic_interactions
from recsys_models.data.timestamps import seconds

COLUMNS = Columns("who", "what", "stars", "when")
FRAME = {
    "when": ["2024-01-01 00:00:10", "2024-01-01", "2024-01-02"],
    "note": ["a", None, "c"],
    "who": ["zoë", "bob", "bob"],
    "what": [10, 9, 10],
    "stars": [4.5, 3.0, 1.0],
}
DAY = 86_400
NEW_YEAR = 1_704_067_200


def written(path, frame=None):
    frame = pl.DataFrame(frame or FRAME)
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    return path


def text(tmp_path, content: str, name: str = "t.csv"):
    path = tmp_path / name
    path.write_bytes(content.encode())
    return path


PACKED = {"csv.gz": gzip.compress, "tsv.bz2": bz2.compress, "parquet.xz": lzma.compress}


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "txt", "zip", *PACKED])
def test_every_form_gives_the_same_ratings(tmp_path, form):
    path = written(tmp_path / f"t.{'csv' if form == 'zip' else form.split('.')[0]}")
    if form in PACKED:
        packed = tmp_path / f"t.{form}"
        packed.write_bytes(PACKED[form](path.read_bytes()))
        path = packed
    if form == "zip":
        archive = tmp_path / "t.zip"
        with zipfile.ZipFile(archive, "w") as content:
            content.write(path, "inner/t.csv")
            content.writestr("README", "x")
        path = archive
    ratings = read_table(path, COLUMNS)
    assert ratings.user_ids.tolist() == ["bob", "zoë"]
    assert ratings.item_ids.tolist() == [9, 10]
    assert ratings.interactions.users.tolist() == [0, 0, 1]
    assert ratings.interactions.items.tolist() == [0, 1, 1]
    assert ratings.values.tolist() == [3.0, 1.0, 4.5]
    assert ratings.times.tolist() == [NEW_YEAR, NEW_YEAR + DAY, NEW_YEAR + 10]


def test_ratings_and_times_are_optional_and_the_last_row_of_a_pair_counts(tmp_path):
    ratings = read_table(text(tmp_path, "user,item,x\n1,2,a\n1,1,b\n1,2,c\n\n\n"))
    assert len(ratings.interactions) == 2
    assert (ratings.values, ratings.times, ratings.repeated) == (None, None, 1)


def test_of_a_pairs_rows_the_latest_counts_in_whatever_order_they_stand(tmp_path):
    rows = "1,2,5,30\n1,2,3,10\n1,3,4,20\n1,2,1,20\n1,3,2,20\n"
    ratings = read_table(
        text(tmp_path, "user,item,r,t\n" + rows), Columns("user", "item", "r", "t")
    )
    assert ratings.times.tolist() == [30, 20]
    assert ratings.values.tolist() == [5, 2]  # of rows of the same time the last one
    assert ratings.repeated == 3


def test_another_separator_can_be_named(tmp_path):
    path = text(tmp_path, "user;item\n3;4\n")
    assert read_table(path, separator=";").item_ids.tolist() == [4]
    with pytest.raises(ValueError, match="separator must be one character, .* got '::'"):
        read_table(path, separator="::")


@pytest.mark.parametrize("packed", ["t.csv.gz", "t.csv.bz2", "t.csv.xz"])
def test_a_damaged_packed_table_is_refused(tmp_path, packed):
    with pytest.raises(ValueError, match=f"{packed} is damaged"):
        read_table(text(tmp_path, "user,item\n3,4\n", packed))
    whole = PACKED[{"gz": "csv.gz", "bz2": "tsv.bz2", "xz": "parquet.xz"}[packed[6:]]](b"u" * 999)
    (tmp_path / packed).write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=f"{packed} is damaged"):
        read_table(tmp_path / packed)


def test_a_byte_order_mark_and_foreign_line_ends_do_no_harm(tmp_path):
    path = text(tmp_path, "\ufeffuser,item\r\n3,4\r\n\r\n")
    assert read_table(path).user_ids.tolist() == [3]


def test_quoted_fields_may_hold_separators_and_line_ends(tmp_path):
    path = text(tmp_path, 'user,item\n"a, b","x\ny"\n"a, b",z\n')
    assert read_table(path).item_ids.tolist() == ["x\ny", "z"]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["10", "9"], [9, 10]),
        (["-1", "9"], [-1, 9]),
        (["7", "007"], ["007", "7"]),
        (["1.0", "2"], ["1.0", "2"]),
        (["10", "9a"], ["10", "9a"]),
    ],
)
def test_ids_are_numbers_only_if_all_are_spelt_as_such(tmp_path, ids, expected):
    path = text(tmp_path, "user,item\n" + "".join(f"{i},5\n" for i in ids))
    assert read_table(path).user_ids.tolist() == expected


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("u", "'what' is empty"),
        (",5,3,9", "'who' is empty"),
        ("u,5,good,9", "'stars' is 'good'"),
        ("u,5,nan,9", "'stars' is 'nan'"),
        ("u,5,,9", "'stars' is empty"),
        ("u,5,3,soon", "'when' is 'soon'"),
        ("u,5,3,2024-01-01", "'when' is '2024-01-01'"),
        ("u,5,3,9,1", "5 fields under 4 headings"),
        ("", "'who' is empty"),
    ],
)
@pytest.mark.parametrize("position", [0, 2])
def test_a_malformed_line_is_named_by_number_and_content(tmp_path, line, problem, position):
    lines = ['"a\nb",5,3,9', *["u,5,3,9"] * 3]
    lines.insert(position, line)
    path = text(tmp_path, "who,what,stars,when\r\n" + "\r\n".join(lines) + "\r\n")
    number = position + 2 + (position > 0)  # the first row takes two lines
    with pytest.raises(ValueError, match=f"line {number}: ") as error:
        read_table(path, COLUMNS)
    assert f"{line!r} is no interaction" in str(error.value)
    assert problem in str(error.value)


@pytest.mark.parametrize("line", ["u,Good, Bad,7", "u,Good, Bad,7,", "u,a,b,c,d,e"])
def test_a_line_of_more_fields_is_refused_beside_columns_that_are_not_read(tmp_path, line):
    """Its item would be a part of its title."""
    path = text(tmp_path, f"user,title,item\nu,Bad,3\n{line}\nv,Good,4\n")
    with pytest.raises(ValueError, match="line 3: .* under 3 headings"):
        read_table(path)


def test_columns_that_are_not_read_may_share_a_name(tmp_path):
    path = text(tmp_path, ",user,x,item,x\n0,u,a,3,b\n1,v,,4,\n")
    assert read_table(path).item_ids.tolist() == [3, 4]


def test_categories_are_ids_and_lists_are_none(tmp_path):
    names = pl.Series(["b", "a", "b"], dtype=pl.Categorical)
    path = written(tmp_path / "t.parquet", {"user": names, "item": [1, 2, 3]})
    assert read_table(path).user_ids.tolist() == ["a", "b"]
    written(path, {"user": [[1], [2]], "item": [1, 2]})
    with pytest.raises(ValueError, match="column 'user' holds List"):
        read_table(path)


def test_a_user_that_is_no_number_is_a_missing_one(tmp_path):
    path = written(tmp_path / "t.parquet", {"user": [1.0, float("nan"), 2.0], "item": [1, 2, 3]})
    with pytest.raises(ValueError, match="row 2: 'user' is empty"):
        read_table(path)


def test_a_missing_value_in_parquet_is_named_by_its_row(tmp_path):
    path = written(tmp_path / "t.parquet", {**FRAME, "stars": [1.0, None, 2.0]})
    with pytest.raises(ValueError, match="row 2: 'stars' is empty"):
        read_table(path, COLUMNS)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_missing_column_is_named_beside_those_there_are(tmp_path, name):
    path = written(tmp_path / name)
    with pytest.raises(ValueError, match="no column 'user', 'item'; its header names 'when'"):
        read_table(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("user,item\n", "no rows below its header"),
        ("user,item\n\n", "no rows below its header"),
        ('user,item\n1,"2\n', "is no readable table"),
        ('user,item\n1,"2\n' + "3,4\n" * 50_000, "is no readable table"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_table(text(tmp_path, content))


def test_what_is_no_parquet_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no Parquet table"):
        read_table(text(tmp_path, "user,item\n", "t.parquet"))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="data.path=FILE"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError, match="which is a folder"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([978300760, 1], [978300760.0, 1.0]),
        (["978300760.5", "x", None], [978300760.5, None, None]),
        (
            [
                "2024-01-01",
                "2024-01-01T00:00:00Z",
                "1/1/24 0:00:00",
                "1/1/2024",
                "2024-01-01 00:00",
            ],
            [float(NEW_YEAR)] * 5,
        ),
        (["2024-01-01T00:00:00.25"], [NEW_YEAR + 0.25]),
        (
            [
                "2024-01-01T02:00:00+02:00",
                "2024-01-01 05:30:00.5+0530",
                "2023-12-31 23:00-01:00",
                "2024-01-01 00:00:00 UTC",
                "2024-01-01T00:00",
                "2024/01/01",
                "01.01.2024",
            ],
            [NEW_YEAR, NEW_YEAR + 0.5, *[float(NEW_YEAR)] * 5],
        ),
        ([datetime(2024, 1, 1)], [float(NEW_YEAR)]),
        (["nan", "inf"], [None, None]),
        (["2024-01-01", "20240101"], [None, 20240101.0]),
    ],
)
def test_times_are_read_as_numbers_or_dates(column, expected):
    assert seconds(pl.Series(column)).to_list() == expected


def test_one_command_trains_on_a_users_own_table(tmp_path, compose_train):
    pairs = synthetic_interactions(60, 40, 900)
    columns = {"who": [f"u{u}" for u in pairs.users], "what": pairs.items, "t": range(len(pairs))}
    path = written(tmp_path / "mine.csv", columns)
    cfg = compose_train(
        "data=table",
        f"data.path={path}",
        "data.user_column=who",
        "data.item_column=what",
        "data.time_column=t",
        "+data.split=leave_one_out",
        "+data.protocol=lambda_opt",
        "+model.top_k=[10,map@5]",
        "monitor=val/map@5",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
    )
    assert 0 < train.run(cfg) <= 1


@pytest.mark.parametrize("name", ["user", "item"])
def test_a_column_that_is_there_twice_is_refused(name, tmp_path):
    """Which of the two counts is not for the reader to guess."""
    with pytest.raises(ValueError, match=f"'{name}' stands for two, in its header"):
        read_table(text(tmp_path, f"user,item,{name}\n1,2,3\n"))


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_one_column_is_not_taken_for_two(end, tmp_path):
    table = written(tmp_path / f"t.{end}")
    for columns in (Columns("who", "who"), Columns("who", "what", "when", "when")):
        with pytest.raises(ValueError, match="stands for two, in its header or in what"):
            read_table(table, columns)
