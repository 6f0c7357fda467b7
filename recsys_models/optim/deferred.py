"""A linear recurrence of all rows of a table, put off until a row is needed.

A step without a gradient takes a row's m vectors x (its weights, then its momentum) to ``M x``,
with the same m x m matrix M for all rows of a table. So it is enough to know, for each row, the
step after which it was last written, and for each such step the product of the matrices since.
Nothing is divided, and the products are float64, so it holds for any M and any change of it.

All lives in the optimizer's state of the table, under these keys, which `settle` removes:

- ``written_after``: the step after which a row was last written, shape (rows,), int32.
- ``products``: the product of all M since each step, shape (LONGEST + 1, m * m), float64.
- ``deferred_steps``: how many steps have been deferred, a tensor of one number on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LONGEST = 1024  # steps; then all rows are brought up to date, at a thousandth of a pass per step

State = dict[str, Any]
Matrix = list[list[float]]


def is_pending(state: State) -> bool:
    """Whether anything is deferred."""
    return "deferred_steps" in state


def width(state: State) -> int:
    """The number m of vectors of a row."""
    return 1 if state["products"].shape[1] == 1 else 2


def is_full(state: State) -> bool:
    """Whether no further step can be deferred."""
    return int(state["deferred_steps"]) == LONGEST


def caught_up(state: State, vectors: list[Tensor], ids: Tensor | None = None) -> list[Tensor]:
    """Vectors of rows with all deferred steps done.

    Args:
        state: the table's state, with something deferred.
        vectors: m vectors of each row, each of shape (n, dim), as they were last written.
        ids: the rows, shape (n,); None for all.
    """
    after = state["written_after"]
    after = after if ids is None else after.index_select(0, ids)
    factors = state["products"].to(vectors[0].dtype).index_select(0, after).split(1, dim=1)
    size = len(vectors)
    return [
        _sum([factors[size * row + column] * vectors[column] for column in range(size)])
        for row in range(size)
    ]


def defer(state: State, table: Tensor, matrix: Matrix, written: Tensor) -> None:
    """Defer one step of all rows of a table but those that were just written.

    Args:
        state: the table's state.
        table: the table.
        matrix: M of this step.
        written: ids of the rows that have taken the step, shape (n,).
    """
    size = len(matrix)
    identity = [[float(row == column) for column in range(size)] for row in range(size)]
    if matrix != identity:
        if not is_pending(state):
            _begin(state, table, size)
        products = state["products"].view(-1, size, size)
        rows = products.unbind(1)
        products.copy_(
            torch.stack(
                [_sum([f * r for f, r in zip(line, rows, strict=True)]) for line in matrix], 1
            )
        )
        state["deferred_steps"] += 1
        now = int(state["deferred_steps"])
        products[now] = torch.eye(size, dtype=torch.float64)
    if is_pending(state):
        state["written_after"][written] = int(state["deferred_steps"])


def _begin(state: State, table: Tensor, size: int) -> None:
    products = torch.zeros(LONGEST + 1, size * size, dtype=torch.float64, device=table.device)
    products[0] = torch.eye(size, dtype=torch.float64).flatten()
    state["products"] = products
    state["written_after"] = torch.zeros(len(table), dtype=torch.int32, device=table.device)
    state["deferred_steps"] = torch.tensor(0)


def settle(state: State) -> None:
    """Forget what was deferred, after all rows have caught up."""
    for key in ("written_after", "products", "deferred_steps"):
        del state[key]


def _sum(parts: list[Tensor]) -> Tensor:
    """Their sum, in place of the first."""
    for part in parts[1:]:
        parts[0].add_(part)
    return parts[0]
