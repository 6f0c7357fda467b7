"""Rows of tables and their products in C beside torch, with first and second gradients."""

import shutil

import pytest
import torch

from recsys_models import native
from recsys_models.models.rows import pair_scores, rows
from recsys_models.native import library

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(params=["C", "torch"])
def way(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(library, "_library", lambda: None)
    elif shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    return request.param


def problem(dim=19, count=3, dtype=torch.float32, one_table=False):
    generator = torch.Generator().manual_seed(dim)
    left = torch.randn(7, dim, generator=generator).to(dtype).requires_grad_()
    right = torch.randn(5, dim, generator=generator).to(dtype).requires_grad_()
    left_ids = torch.randint(7, (40,), generator=generator)  # rows come up again and again
    right_ids = torch.randint(5, (40, count), generator=generator)
    return left, left if one_table else right, left_ids, right_ids


def expected(left, right, left_ids, right_ids):
    return torch.einsum("bd,bnd->bn", left[left_ids], right[right_ids])


@pytest.mark.parametrize("one_table", [False, True])
@pytest.mark.parametrize("dim", [1, 8, 16, 19, 64])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_products_and_gradients_are_those_of_the_formula(way, dim, count, one_table):
    arguments = problem(dim, count, one_table=one_table)
    scores = pair_scores(*arguments)
    assert (type(scores.grad_fn).__name__ == "_PairScoresBackward") == (way == "C")
    reference = expected(*arguments)
    torch.testing.assert_close(scores, reference)
    tables = list(dict.fromkeys(arguments[:2]))
    slopes = torch.randn_like(scores)
    found = torch.autograd.grad(scores, tables, slopes)
    torch.testing.assert_close(found, torch.autograd.grad(reference, tables, slopes))


@pytest.mark.parametrize("one_table", [False, True])
def test_second_gradients_are_those_of_the_formula(way, one_table):
    arguments = problem(one_table=one_table)
    tables = list(dict.fromkeys(arguments[:2]))

    def second(scores):
        first = torch.autograd.grad(scores.square().sum(), tables, create_graph=True)
        return torch.autograd.grad(sum(part.square().sum() for part in first), tables)

    torch.testing.assert_close(
        second(pair_scores(*arguments)), second(expected(*arguments)), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_table_gets_no_gradient(way, frozen):
    arguments = problem()
    arguments[frozen].requires_grad_(False)
    free = arguments[1 - frozen]
    scores = pair_scores(*arguments)
    for create_graph in (False, True):
        (found,) = torch.autograd.grad(
            scores.sum(), free, create_graph=create_graph, retain_graph=True
        )
        (reference,) = torch.autograd.grad(expected(*arguments).sum(), free)
        torch.testing.assert_close(found, reference)
    assert arguments[frozen].grad is None


@pytest.mark.parametrize("wrong", [-6, 5, 10**9])
def test_an_id_out_of_bounds_raises(way, wrong):
    left, right, left_ids, right_ids = problem()
    right_ids[3, 1] = wrong
    with pytest.raises(IndexError):
        pair_scores(left, right, left_ids, right_ids)


def test_products_of_float64_are_torchs():
    arguments = problem(dtype=torch.float64)
    assert pair_scores(*arguments).dtype == torch.float64
    torch.testing.assert_close(pair_scores(*arguments), expected(*arguments))


@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_transforms_of_functions_are_torchs(way, transform):
    left, right, *ids = problem()

    def loss(table):
        return pair_scores(table, right.detach(), *ids).square().sum()

    def reference(table):
        return expected(table, right.detach(), *ids).square().sum()

    if transform == "grad":
        found, wanted = torch.func.grad(loss)(left), torch.func.grad(reference)(left)
    else:
        stacked = torch.stack([left, 2 * left]).detach()
        found = torch.vmap(torch.func.grad(loss))(stacked)
        wanted = torch.vmap(torch.func.grad(reference))(stacked)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_rows_that_lie_apart_are_taken():
    left, right, left_ids, right_ids = problem(count=4)
    apart = right_ids.T.contiguous().T
    scores = pair_scores(left, right, left_ids, apart)
    assert torch.equal(scores, pair_scores(left, right, left_ids, right_ids))
    slopes = torch.randn(4, 40).T  # a gradient may lie apart as well
    torch.testing.assert_close(
        torch.autograd.grad(scores, left, slopes),
        torch.autograd.grad(expected(left, right, left_ids, right_ids), left, slopes),
    )


@pytest.mark.parametrize("dim", [1, 3, 8, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_and_gradients_are_those_of_indexing(way, dim, dtype):
    table = problem(dim, dtype=dtype)[0]
    ids = torch.randint(7, (10, 4))
    found = rows(table, ids)
    assert torch.equal(found, table[ids])
    in_c = way == "C" and dtype == torch.float32
    flat = ids.flatten()
    sums, ones = torch.zeros_like(table), torch.ones(40, dim, dtype=dtype)
    assert native.add_rows(sums, flat, ones, 2.0) == in_c
    if in_c:
        counts = torch.bincount(flat, minlength=7)
        assert torch.equal(sums, 2.0 * counts.unsqueeze(1).expand_as(table))
    slopes = torch.randn(dim, 10, 4, dtype=dtype).movedim(0, 2)  # apart in memory
    torch.testing.assert_close(
        torch.autograd.grad(found, table, slopes), torch.autograd.grad(table[ids], table, slopes)
    )


def test_second_gradients_of_rows_are_those_of_indexing(way):
    table = problem()[0]
    ids = torch.randint(7, (10, 4))

    def second(found):
        (first,) = torch.autograd.grad(found.pow(3).sum(), table, create_graph=True)
        return torch.autograd.grad(first.square().sum(), table)

    torch.testing.assert_close(second(rows(table, ids)), second(table[ids]))


@pytest.mark.parametrize("wrong", [-8, 7])
def test_a_row_out_of_bounds_raises(way, wrong):
    with pytest.raises(IndexError):
        rows(problem()[0], torch.tensor([0, wrong]))


@pytest.mark.parametrize("wrong", [-1, 7])
def test_gradients_are_never_added_out_of_bounds(wrong):
    ids = torch.tensor([0, wrong])
    table = torch.zeros(7, 2)
    assert not native.add_rows(table, ids, torch.ones(2, 2))
    assert not table.any()
