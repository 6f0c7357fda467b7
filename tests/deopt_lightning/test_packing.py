"""Results as bytes."""

import pytest
import torch

from deopt_lightning.packing import packed, unpacked
from deopt_lightning.snapshot import same_values

NAN = torch.tensor([torch.nan, -0.0, torch.inf])
STRIDED = [
    torch.tensor(1.5),
    torch.zeros(0, 3),
    NAN,
    torch.arange(6).view(2, 3).T,
    torch.ones(3).expand(2, 3),
    torch.tensor([True, False]),
    torch.ones(2, dtype=torch.bfloat16),
    torch.ones(2, dtype=torch.complex64),
    torch.ones(2, requires_grad=True),
    torch.nn.Parameter(torch.ones(2)),
]


@pytest.mark.parametrize("tensor", STRIDED)
def test_it_lies_in_memory_as_it_did(tensor: torch.Tensor) -> None:
    assert unpacked(bytes(packed(tensor, [])), []).stride() == tensor.stride()


@pytest.mark.parametrize("tensor", [*STRIDED, torch.eye(3).to_sparse()])
def test_a_tensor_comes_back_as_it_was(tensor: torch.Tensor) -> None:
    (found,) = unpacked(bytes(packed([tensor], [])), [])
    assert type(found) is type(tensor)
    assert found.requires_grad == tensor.requires_grad
    assert found.layout == tensor.layout
    assert found.dtype == tensor.dtype
    dense, expected = (each.detach().to_dense() for each in (found, tensor))
    assert same_values(dense, expected)
    assert torch.equal(dense.real.signbit(), expected.real.signbit())


def test_a_tensor_that_comes_back_can_be_written_to() -> None:
    found = unpacked(bytes(packed(torch.ones(3), [])), [])
    found += 1
    assert found.tolist() == [2.0, 2.0, 2.0]


def test_what_is_known_is_not_sent() -> None:
    table = torch.ones(1000)
    data = bytes(packed({"of": table, "beside": table.clone()}, [table]))
    assert len(data) < 2 * table.nbytes
    found = unpacked(data, [table])
    assert found["of"] is table
    assert found["beside"] is not table
