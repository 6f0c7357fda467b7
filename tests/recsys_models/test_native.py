"""The compiled function's surroundings; what it computes is tested beside the metrics."""

import logging
import shutil

import pytest
import torch

from recsys_models.data import RankingBatch
from recsys_models.metrics import native
from recsys_models.metrics.ranks import ranks_of_relevant

ZERO, ONE = torch.tensor([0]), torch.tensor([1])
BATCH = RankingBatch(ZERO, ZERO, ZERO, ZERO, ONE)  # the first item is left out, the second relevant


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, and nothing known of what was compiled before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._function.cache_clear()
    yield tmp_path / "deopt-lightning"
    native._function.cache_clear()


def rank():
    return ranks_of_relevant(torch.tensor([[4.0, 2.0, 3.0]]), BATCH, 2).tolist()


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_it_is_compiled_once_for_all_processes(cache):
    assert rank() == [1]
    (library,) = cache.iterdir()
    made = library.stat().st_mtime_ns
    native._function.cache_clear()
    assert native._function() is not None
    assert [file.stat().st_mtime_ns for file in cache.iterdir()] == [made]


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_torch_ranks_where_it_cannot_be_compiled(compiler, cache, monkeypatch, caplog):
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.INFO):
        assert rank() == [1]
    assert native._function() is None
    assert "ranked by torch" in caplog.text
    assert compiler in caplog.text


def test_torch_ranks_where_nothing_can_be_written(cache, monkeypatch):
    cache.parent.joinpath("deopt-lightning").write_text("a file in its place")
    assert rank() == [1]
    assert native._function() is None


@pytest.mark.parametrize("field", ["seen_items", "relevant_items"])
def test_rows_without_an_item_never_reach_the_function(field):
    batch = BATCH._replace(**{field: torch.tensor([0, 1, 2])})
    assert native.ranks(torch.zeros(1, 3), batch, 2) is None


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_an_empty_name_of_a_compiler_is_none(monkeypatch, cache):
    monkeypatch.setenv("CC", "")
    assert native._compiled().parent == cache


@pytest.mark.parametrize(
    "scores",
    [torch.randn(2, 4, dtype=torch.float64), torch.randn(4, 2).T, torch.randn(2, 4).half()],
)
def test_other_types_and_layouts_are_left_to_torch(scores):
    assert native.ranks(scores, BATCH, 2) is None
