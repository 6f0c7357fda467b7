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
    laid = products.laid_out().laid
    if laid is None:
        return None
    return native.product_ranks(products.users[batch.users], products.items, laid, batch, k)


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
    return Products(*(part.double() for part in products[:3]))


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


def skewed(num_users=60, num_items=1000, dim=16, spread=1.0, seed=0):
    """Vectors of any length, and biases of which few are large: most items cannot be hits.

    All are multiples of 1 / 16, so that products have no rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    users, items = (torch.randn(n, dim, generator=generator) for n in (num_users, num_items))
    user_lengths, lengths = (
        torch.rand(len(part), 1, generator=generator) for part in (users, items)
    )
    bias = spread * torch.rand(num_items, generator=generator).log()
    return Products(
        *((16 * part).round() / 16 for part in (users * user_lengths, items * lengths, bias))
    )


@needs_compiler
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("spread", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("dim", [5, 16, 70])
def test_scores_that_are_not_worked_out_change_no_rank(dim, spread, one_by_one):
    products = skewed(dim=dim, spread=spread)
    batch = make_batch(num_items=1000, one_by_one=one_by_one, with_empty_users=True)
    expected = ranks_of_relevant(products(batch.users), batch, 10)
    assert torch.equal(ranks(products, batch, 10), expected)
    popular = products._replace(users=products.users + 3 * torch.ones(dim))  # all of one taste
    expected = ranks_of_relevant(popular(batch.users), batch, 10)
    assert torch.equal(ranks(popular, batch, 10), expected)


@needs_compiler
@pytest.mark.parametrize("dim", [1, 8, 17, 64])
def test_rounding_neither_puts_an_item_before_itself_nor_breaks_a_tie(dim):
    torch.manual_seed(0)
    users, items = torch.randn(60, dim), torch.randn(20, dim)
    products, batch = Products(users, items.repeat(2, 1)), make_batch()
    scores = (users.double() @ items.double().T).repeat(1, 2)  # of the same bits where vectors are
    expected = ranks_of_relevant(scores, batch, 40)
    assert torch.equal(ranks(products, batch, 40), expected)


@needs_compiler
@pytest.mark.parametrize("vectors", ["items", "users", "item_bias"])
def test_no_number_is_found_among_scores_that_cannot_matter(vectors):
    products, batch = skewed(spread=100.0), make_batch(num_items=1000)
    least = products.item_bias.argmin()
    getattr(products, vectors)[least if vectors != "users" else 7] = torch.nan
    assert ranks(products, batch, 10) is None


@needs_compiler
def test_scores_that_may_be_infinite_are_all_looked_at():
    products, batch = skewed(spread=100.0), make_batch(num_items=1000)
    products.items[products.item_bias.argmin()] = torch.inf
    products.users[7] = 0.0
    assert ranks(products, batch, 10) is None


@needs_compiler
def test_items_that_are_laid_out_serve_all_batches():
    products, batch = products_of(num_items=33), make_batch(num_items=33)
    laid = products.laid_out()
    items, places = laid.laid.places[:, :33].long()
    assert torch.equal(items.sort().values, torch.arange(33))
    assert torch.equal(items[places], torch.arange(33))
    parts = [laid.ranks(part, 10) for part in batch.split(40)]  # the last is of 20 users
    assert torch.equal(parts[0], ranks(products, batch.split(40)[0], 10))


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
    assert ranks(Products(*tables), make_batch(), 10) is None
