"""Ranks of products that no matrix holds, beside those of the matrix.

Vectors are of small whole numbers: their products have no rounding, and many of them tie.
"""

import pytest
import torch

from recsys_models import native
from recsys_models.data import RecsysDataModule
from recsys_models.metrics import Products, evaluate
from recsys_models.metrics.ranks import ranks_by, ranks_of_relevant
from recsys_models.models import BPRMF
from tests.recsys_models.in_c import needs_compiler
from tests.recsys_models.test_metrics import make_batch


def whole_numbers(*shape, seed=0):
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def ranks(products, batch, k):
    return native.product_ranks(products.users[batch.users], *products[1:], batch, k)


def products_of(num_users=60, num_items=40, dim=5, with_bias=True):
    bias = whole_numbers(num_items, seed=2) if with_bias else None
    return Products(whole_numbers(num_users, dim), whole_numbers(num_items, dim, seed=1), bias)


@needs_compiler
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize(
    ("num_users", "num_items", "dim", "k"),
    [(1, 8, 1, 3), (12, 32, 64, 10), (13, 33, 5, 40), (60, 97, 16, 10), (6, 700, 3, 700)],
)
def test_they_are_those_of_the_scores(num_users, num_items, dim, k, one_by_one):
    batch = make_batch(num_users, num_items, one_by_one=one_by_one, with_empty_users=True)
    for with_bias in (False, True):
        products = products_of(num_users, num_items, dim, with_bias)
        expected = ranks_of_relevant(products(batch.users), batch, k)
        assert torch.equal(ranks(products, batch, k), expected)


@needs_compiler
def test_users_may_come_in_any_order_and_more_than_once():
    batch, products = make_batch(), products_of()
    batch = batch._replace(users=torch.randint(60, (60,)))
    expected = ranks_of_relevant(products(batch.users), batch, 10)
    assert torch.equal(ranks(products, batch, 10), expected)


def backwards(batch):
    names = "seen_rows", "seen_items", "relevant_rows", "relevant_items"
    return batch._replace(**{name: getattr(batch, name).flip(0) for name in names})


def as_double(products):
    return Products(*(part.double() for part in products))


@pytest.mark.parametrize(
    ("products", "batch"),
    [
        (products_of(), backwards(make_batch())),
        (as_double(products_of()), make_batch()),
        (products_of()._replace(items=whole_numbers(5, 40, seed=1).T), make_batch()),
    ],
)
def test_other_orders_types_and_layouts_take_the_matrix(products, batch):
    assert ranks(products, batch, 10) is None
    expected = ranks_of_relevant(products(batch.users), batch, 10)
    assert torch.equal(ranks_by(products, batch, 10), expected)


@needs_compiler
def test_few_users_are_not_worth_a_copy_of_the_items():
    batch, products = make_batch(), products_of()
    few, *_ = batch.split(31)
    assert products.ranks(few, 10) is None
    assert torch.equal(ranks_by(products, few, 10), ranks(products, few, 10))
    assert torch.equal(products.ranks(batch, 10), ranks(products, batch, 10))


@pytest.mark.parametrize("field", ["seen_items", "relevant_items", "seen_rows", "relevant_rows"])
@pytest.mark.parametrize("wrong", [-1, 60])
def test_ids_out_of_bounds_never_reach_memory(field, wrong):
    batch = make_batch()
    ids = getattr(batch, field).clone()
    ids[0 if wrong < 0 else -1] = wrong
    assert ranks(products_of(), batch._replace(**{field: ids}), 10) is None


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_what_is_no_number_raises(part, one_by_one):
    products, batch = products_of(), make_batch(one_by_one=one_by_one)
    products[part][3] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        ranks_by(products, batch, 10)


def test_a_model_has_the_same_metrics_by_its_tables_and_by_its_scores():
    shape = {"num_users": 70, "num_items": 50, "num_interactions": 900}
    data = RecsysDataModule(synthetic=shape, eval_batch_size=40)
    data.setup()
    model = BPRMF(data.num_users, data.num_items, dim=8)
    with torch.no_grad():
        for number, weights in enumerate(model.parameters()):
            weights.copy_(whole_numbers(*weights.shape, seed=number))
    batches = list(data.test_dataloader())
    expected = evaluate(model.score_users, batches, [5, "map@10"])
    assert evaluate(model.scorer(), batches, [5, "map@10"]) == expected


@needs_compiler
def test_a_score_does_not_depend_on_the_other_users():
    vectors = [torch.randn(rows, 16) for rows in (60, 40)]
    products, batch = Products(*vectors), make_batch()
    whole = ranks(products, batch, 40)
    parts = [ranks(products, part, 40) for part in batch.split(7)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(("length", "biases"), [(4, 40), (5, 39)])
def test_tables_that_do_not_fit_together_are_left_to_torch(length, biases):
    tables = whole_numbers(60, 5), whole_numbers(40, length), whole_numbers(biases)
    assert native.product_ranks(*tables, make_batch(), 10) is None
