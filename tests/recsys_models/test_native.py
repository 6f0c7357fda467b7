"""Functions in C, each beside torch, and how they are compiled."""

import logging

import pytest
import torch

from recsys_models import native
from recsys_models.data import RankingBatch, RecsysDataModule
from recsys_models.metrics import Products, evaluate
from recsys_models.metrics.ranks import ranks_of_relevant
from recsys_models.models import LRML, NGCF, LightGCN
from recsys_models.native import library
from tests.recsys_models.in_c import needs_compiler, with_threads
from tests.recsys_models.trainers import quiet_trainer

ZERO, ONE = torch.tensor([0]), torch.tensor([1])
BATCH = RankingBatch(ZERO, ZERO, ZERO, ZERO, ONE)  # the first item is left out, the second relevant


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, and nothing known of what was compiled before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library._library.cache_clear()
    yield tmp_path / "deopt-lightning"
    library._library.cache_clear()


def rank():
    return ranks_of_relevant(torch.tensor([[4.0, 2.0, 3.0]]), BATCH, 2).tolist()


@needs_compiler
def test_it_is_compiled_once_for_all_processes(cache):
    assert rank() == [1]
    (file,) = cache.iterdir()
    made = file.stat().st_mtime_ns
    library._library.cache_clear()
    assert library._library() is not None
    assert [file.stat().st_mtime_ns for file in cache.iterdir()] == [made]


@needs_compiler
@pytest.mark.parametrize("kept", [0, 3000])
def test_a_library_of_which_the_cache_has_a_part_is_compiled_anew(kept, cache):
    file = library._compiled()
    whole = file.read_bytes()
    file.unlink()  # it is in use
    file.write_bytes(whole[:kept])  # as a full disk or the end of power leaves it
    assert rank() == [1]
    assert library._library() is not None
    assert [file.read_bytes() == whole for file in cache.iterdir()] == [True]


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_torch_ranks_where_it_cannot_be_compiled_and_says_so_once(
    compiler, cache, monkeypatch, caplog
):
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.WARNING):
        assert rank() == rank() == [1]
    assert library._library() is None
    (said,) = caplog.messages
    assert said.startswith("Torch does what C would do faster")
    assert compiler in said


def test_torch_ranks_where_nothing_can_be_written(cache, monkeypatch):
    cache.parent.joinpath("deopt-lightning").write_text("a file in its place")
    assert rank() == [1]
    assert library._library() is None


@pytest.mark.parametrize("field", ["seen_items", "relevant_items"])
def test_rows_without_an_item_never_reach_the_function(field):
    batch = BATCH._replace(**{field: torch.tensor([0, 1, 2])})
    assert native.ranks(torch.zeros(1, 3), batch, 2) is None


@needs_compiler
def test_an_empty_name_of_a_compiler_is_none(monkeypatch, cache):
    monkeypatch.setenv("CC", "")
    assert library._compiled().parent == cache


@pytest.mark.parametrize(
    "scores",
    [torch.randn(2, 4, dtype=torch.float64), torch.randn(4, 2).T, torch.randn(2, 4).half()],
)
def test_other_types_and_layouts_are_left_to_torch(scores):
    assert native.ranks(scores, BATCH, 2) is None


def random_matrix(rows, columns, density=0.2):
    """A sparse matrix, of which the first row and the last are empty."""
    generator = torch.Generator().manual_seed(rows * columns)
    matrix = torch.randn(rows, columns, generator=generator)
    matrix *= torch.rand(rows, columns, generator=generator) < density
    matrix[[0, -1]] = 0
    return matrix


def product(matrix, dense):
    csr = matrix.to_sparse_csr()
    parts = csr.crow_indices().int(), csr.col_indices().int(), csr.values()
    return native.sparse_product(*parts, dense)


@needs_compiler
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 100])
def test_a_sparse_product_is_that_of_the_dense_matrix(columns):
    matrix, dense = random_matrix(50, 70), torch.randn(70, columns)
    torch.testing.assert_close(product(matrix, dense), matrix @ dense)


def test_torch_does_sparse_products_where_it_has_many_threads():
    assert with_threads(5, lambda: product(torch.eye(4), torch.ones(4, 2))) is None


@needs_compiler
def test_a_sparse_product_takes_rows_that_lie_apart():
    matrix, dense = random_matrix(50, 70), torch.randn(40, 70).T
    torch.testing.assert_close(product(matrix, dense), matrix @ dense)


@needs_compiler
def test_nothing_times_nothing_is_nothing():
    assert torch.equal(product(torch.zeros(3, 4), torch.ones(4, 2)), torch.zeros(3, 2))
    assert product(torch.zeros(3, 4), torch.ones(4, 0)).shape == (3, 0)


@pytest.mark.parametrize("wrong", [torch.ones(4, 2).double(), torch.ones(4, 2).bfloat16()])
def test_sparse_products_of_other_types_are_left_to_torch(wrong):
    assert product(torch.eye(4), wrong) is None


def relations(num_users=5, num_items=37, dim=6, num_memories=5, std=1.0):
    torch.manual_seed(num_items + num_memories)
    return LRML(num_users, num_items, dim, num_memories, init_std=std)


@torch.no_grad()
def distances(model, by_torch=False):
    p, q = model.user_embedding.weight, model.item_embedding.weight
    if by_torch:
        return model._distances_by_torch(p, q)
    return native.squared_distances(p, q, model.keys, model.memories)


@needs_compiler
@pytest.mark.parametrize(
    "sizes",
    [{}, {"num_items": 32}, {"num_items": 1}, {"num_memories": 1}, {"num_memories": 8}, {"dim": 1}],
    ids=str,
)
@pytest.mark.parametrize("threads", [1, 4, 7])
def test_distances_are_those_of_torch(sizes, threads):
    model = relations(**sizes)
    found = with_threads(threads, lambda: distances(model)).double()
    expected = distances(model.double(), by_torch=True)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


@needs_compiler
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4])
def test_attention_may_be_even_or_all_on_one_slot(scale):
    model = relations()
    model.keys.data *= scale
    found = distances(model).double()
    model.double()
    torch.testing.assert_close(found, distances(model, by_torch=True), rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("name", ["user_embedding.weight", "keys", "memories"])
def test_what_is_no_number_stays_none(name):
    model = relations()
    model.get_parameter(name).data[1, 1] = torch.nan
    found = distances(model)
    assert torch.equal(found.isnan(), distances(model, by_torch=True).isnan())
    assert found[1].isnan().all()


def test_distances_to_be_differentiated_are_left_to_torch():
    model = relations()
    arguments = model.user_embedding.weight, model.item_embedding.weight, model.keys, model.memories
    assert native.squared_distances(*arguments) is None
    scores = model.score_users(torch.arange(5))
    assert scores.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(scores.detach(), model.score_users(torch.arange(5)))


@torch.no_grad()
def test_stacked_users_are_left_to_torch():
    model = relations()
    groups = torch.tensor([[0, 1], [2, 3]])
    expected = torch.stack([model.score_users(users) for users in groups])
    torch.testing.assert_close(torch.vmap(model.score_users)(groups), expected)


@pytest.mark.parametrize("name", ["no-such-compiler", "false"])
def test_models_score_by_torch_where_nothing_is_compiled(name, cache, monkeypatch):
    monkeypatch.setenv("CC", name)
    model = relations()
    assert distances(model) is None
    assert product(torch.eye(4), torch.ones(4, 2)) is None
    with torch.no_grad():
        expected = -distances(model, by_torch=True)
        torch.testing.assert_close(model.score_users(torch.arange(5)), expected)


@pytest.fixture
def doubles_by_default():
    """As in a program that computes in float64, or within a Trainer's precision="bf16-true"."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@needs_compiler
def test_results_have_their_arguments_type_whatever_is_the_default(doubles_by_default):
    matrix, dense = random_matrix(7, 9).float(), torch.randn(9, 5).float()
    torch.testing.assert_close(product(matrix, dense), matrix @ dense)
    left, right = torch.randn(4, 3).float(), torch.randn(6, 3).float()
    left_ids, ids = torch.tensor([0, 3]), torch.tensor([[5, 1], [2, 0]])
    expected = (left[left_ids].unsqueeze(1) * right[ids]).sum(-1)
    torch.testing.assert_close(native.pair_products(left, right, left_ids, ids), expected)
    assert rank() == [1]
    assert native.ranks(torch.tensor([[4.0, 2.0, 3.0]]).float(), BATCH, 2).tolist() == [1]


@pytest.mark.parametrize("kind", [NGCF, LightGCN])
def test_a_trainer_in_bfloat16_ranks_by_what_the_graph_gives(kind):
    data = RecsysDataModule(synthetic={"num_users": 60, "num_items": 40, "num_interactions": 900})
    data.setup()
    model = kind(60, 40, dim=8)
    trainer = quiet_trainer(max_epochs=1, precision="bf16-true")
    trainer.fit(model, datamodule=data)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    tables = model.scorer()
    wide = Products(tables.users.float(), tables.items.float())
    ndcg = evaluate(wide, data.val_dataloader())["ndcg@10"]
    assert logged["val/ndcg@10"] == pytest.approx(ndcg, abs=0.05)  # rounded scores tie
    assert logged["train/loss"] == pytest.approx(0.69, abs=0.05)
