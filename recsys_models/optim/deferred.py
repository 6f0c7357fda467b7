"""Momentum's course of rows without a gradient, put off until a row is needed.

A step without a gradient takes the pair of a row's weights and momentum to M times this pair, with
the same 2 x 2 matrix M for all rows of a table. So it is enough to know, for each row, the step
after which it was last written, and for each such step the product of the matrices since. Nothing
is divided, and the products are float64, so it holds for any M and any change of it.

All lives in the optimizer's state of the table, under these keys, which `settle` removes:

- ``written_after``: the step after which a row was last written, shape (rows,), int32.
- ``products``: the product of all M since each step, transposed and flat, shape (LONGEST + 1, 4).
- ``deferred_steps``: how many steps have been deferred, a tensor of one number on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LONGEST = 1024  # steps; then all rows are brought up to date, at a thousandth of a pass per step

State = dict[str, Any]


def is_pending(state: State) -> bool:
    """Whether anything is deferred."""
    return "deferred_steps" in state


def is_full(state: State) -> bool:
    """Whether no further step can be deferred."""
    return is_pending(state) and int(state["deferred_steps"]) == LONGEST


def tensors_of(state: State) -> tuple[Tensor, Tensor, Tensor]:
    """What steps that are deferred are worked out from, beside the table itself."""
    return state["momentum_buffer"], state["written_after"], state["products"]


def caught_up(state: State, table: Tensor, rows: Tensor | slice) -> list[Tensor]:
    """Weights and momentum of rows with all deferred steps done, shape (n, dim).

    Args:
        state: the table's state, with something deferred.
        table: the table.
        rows: ids, shape (n,), or a slice.
    """
    momentum, written_after, products = tensors_of(state)
    factors = products.to(table.dtype).index_select(0, written_after[rows])
    ww, mw, wm, mm = factors.unsqueeze(-1).unbind(1)  # each (n, 1)
    weights, velocity = table[rows], momentum[rows]
    return [(ww * weights).add_(wm * velocity), (mw * weights).add_(mm * velocity)]


def begin_step(state: State, table: Tensor) -> int:
    """Count a step, which is then to be deferred for all rows of a table that it does not write.

    Args:
        state: the table's state, not full.
        table: the table.

    Returns:
        The step's number, from 1.
    """
    if not is_pending(state):
        identity = torch.eye(2, dtype=torch.float64, device=table.device)
        state["products"] = identity.view(1, 4).repeat(LONGEST + 1, 1)
        state["written_after"] = torch.zeros(len(table), dtype=torch.int32, device=table.device)
        state["deferred_steps"] = torch.tensor(0)
    return int(state["deferred_steps"].add_(1))


def defer(state: State, matrix: list[list[float]], written: Tensor) -> None:
    """Defer the step that has begun, of all rows but those that were just written.

    Args:
        state: the table's state.
        matrix: M of this step.
        written: ids of the rows that have taken the step, shape (n,).
    """
    now = int(state["deferred_steps"])
    past = state["products"][:now]  # those from `now` on are still identities
    step = torch.tensor(matrix, dtype=torch.float64, device=past.device)
    past.copy_((past.view(-1, 2) @ step.T).view(-1, 4))
    state["written_after"].index_fill_(0, written, now)


def settle(state: State) -> None:
    """Forget what was deferred, after all rows have caught up."""
    for key in ("written_after", "products", "deferred_steps"):
        del state[key]
