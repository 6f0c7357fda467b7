"""Steps over rows in C, beside the same steps by torch."""

import pytest
import torch

from recsys_models import native
from recsys_models.native import library
from recsys_models.optim import RowSparseAdam, RowSparseSGD
from tests.recsys_models.in_c import needs_compiler

ROWS = 50


def train(optimizer, table, steps=12, count=9):
    """Looks up a few rows per step, some of them twice; the loss is not linear in them."""
    generator = torch.Generator().manual_seed(0)
    for number in range(steps):
        ids = torch.randint(ROWS, (count,), generator=generator)
        ids[-2:] = ids[0]
        optimizer.zero_grad()
        optimizer.lookup(table, ids).pow(3).sum().backward()
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + number % 3)
        optimizer.step()
    optimizer.flush()
    state = optimizer.state_dict()["state"][0]
    return [table.detach(), *(state[key] for key in sorted(state))]


def made(kind, dim, **options):
    torch.manual_seed(dim)
    table = torch.nn.Parameter(torch.randn(ROWS, dim))
    return kind([table], lr=0.01, weight_decay=0.1, **options), table


@needs_compiler
@pytest.mark.parametrize("dim", [1, 3, 8, 64])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (RowSparseSGD, {}),
        (RowSparseSGD, {"momentum": 0.9}),
        (RowSparseAdam, {"betas": (0.5, 0.9)}),
    ],
)
def test_they_are_those_of_torch(kind, options, dim, monkeypatch):
    found = train(*made(kind, dim, **options))
    monkeypatch.setattr(library, "_library", lambda: None)
    expected = train(*made(kind, dim, **options))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def rows_of(dtype=torch.float32):
    return [torch.ones(5, 2, dtype=dtype) for _ in range(3)]


def steps(tensors, ids):
    """Whether each of the functions took a step."""
    table, first, second = tensors
    grad, places = torch.ones(len(ids), 2, dtype=table.dtype), torch.zeros(5, dtype=torch.int64)
    visit = ids, grad
    behind = first, torch.zeros(5, dtype=torch.int32), torch.ones(2, 4).double()
    return [
        native.momentum_rows(table, *behind, 1, *visit, places, (0.1, 0.9, 0.0)),
        native.adam_rows(*tensors, *visit, places, (0.1, 0.9, 0.99, 1e-8, 0.0, 1.0)),
        native.caught_up_rows(table, *behind, ids) is not None,
    ]


@needs_compiler
@pytest.mark.parametrize("wrong", [-1, 5])
def test_rows_out_of_bounds_are_neither_read_nor_written(wrong):
    tensors = rows_of()
    assert steps(tensors, torch.tensor([0, wrong])) == [False] * 3
    assert all(torch.equal(tensor, torch.ones(5, 2)) for tensor in tensors)
    assert steps(tensors, torch.tensor([0, 4])) == [True] * 3


def test_other_types_are_left_to_torch():
    assert steps(rows_of(torch.float64), torch.tensor([0, 4])) == [False] * 3


def test_they_are_left_to_torch_where_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(library, "_library", lambda: None)
    assert steps(rows_of(), torch.tensor([0, 4])) == [False] * 3
