import numpy as np
import pytest

from recsys_models.data import Ratings, describe
from recsys_models.data.__main__ import main
from recsys_models.data.interactions import Interactions
from recsys_models.data.splits import Split


def test_statistics_worked_by_hand():
    pairs = Interactions(np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 3, 0, 0, 1]), 4, 5)
    ratings = Ratings(pairs, np.arange(6.0), np.arange(4), np.arange(5), repeated=2, dropped=7)
    parts = (np.array([0, 1, 3]), np.array([2]), np.array([4, 5]))
    found = describe(ratings, Split(*(pairs.select(part) for part in parts)))
    assert (found.users, found.items, found.interactions) == (3, 3, 6)
    assert found.density == pytest.approx(6 / 9)
    assert found.per_user == (1, 2.0, 3)
    assert found.per_item == (1, 2.0, 3)
    assert found.rating_mean == 2.5
    assert (found.repeated, found.dropped) == (2, 7)
    assert (found.train, found.validation, found.test) == (3, 1, 2)
    assert (found.skipped_at_validation, found.skipped_at_test) == (2, 2)


def cells(output: str, label: str) -> list[str]:
    (line,) = (line for line in output.splitlines() if line[1:].strip().startswith(label))
    return [cell.strip() for cell in line.split("│")[2:-1]]


def test_the_command_prints_a_column_for_each_data_set(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    table = tmp_path / "mine.csv"
    table.write_text("who,what,stars\n" + "".join(f"u{k % 4},{k % 7},{k % 5}\n" for k in range(28)))
    generated = ["num_users=30", "num_items=20", "num_interactions=200", "popularity=0.5"]
    filters = ["--rating-threshold", "1", "--k-core", "2", "--split", "per_user"]
    columns = ["--user-column", "who", "--item-column", "what", "--rating-column", "stars"]
    main(
        ["--dataset", "synthetic", "--synthetic", *generated]
        + ["--dataset", "table", "--path", str(table), *columns, *filters]
    )
    output = capsys.readouterr().out
    assert cells(output, "users  ") == ["30", "4"]
    assert cells(output, "interactions")[0] == "200"
    assert cells(output, "mean rating") == ["none", "2.4091"]
    assert cells(output, "train")[0] == "140"


def test_a_mistake_ends_the_command_with_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit, match="error: there is no table"):
        main(["--dataset", "table", "--path", str(tmp_path / "none.csv")])
    with pytest.raises(SystemExit):
        main(["--path", "x"])
    assert "--path belongs to a data set: give --dataset NAME before it" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["num_users=a", "num_users", "num_users=1e3"])
def test_a_number_that_is_none_is_said(argument, capsys):
    with pytest.raises(SystemExit):
        main(["--dataset", "synthetic", "--synthetic", "rank=3", argument])
    assert f"NAME=NUMBER, such as num_users=500; got '{argument}'" in capsys.readouterr().err
