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

from recsys_models import native

LONGEST = 1024  # steps; then all rows are brought up to date, at a thousandth of a pass per step

State = dict[str, Any]


def is_pending(state: State) -> bool:
    """Whether anything is deferred."""
    return "deferred_steps" in state


def is_full(state: State) -> bool:
    """Whether no further step can be deferred."""
    return is_pending(state) and int(state["deferred_steps"]) == LONGEST


def caught_up(
    state: State, weights: Tensor, momentum: Tensor, rows: Tensor | slice
) -> list[Tensor]:
    """Weights and momentum of rows with all deferred steps done.

    Args:
        state: the table's state, with something deferred.
        weights: as they were last written, shape (n, dim).
        momentum: likewise.
        rows: which rows they are: ids, shape (n,), or a slice.
    """
    after = state["written_after"][rows]
    factors = state["products"].to(weights.dtype).index_select(0, after)
    ww, mw, wm, mm = factors.split(1, dim=1)
    return [(ww * weights).add_(wm * momentum), (mw * weights).add_(mm * momentum)]


def caught_up_rows(state: State, table: Tensor, momentum: Tensor, ids: Tensor) -> list[Tensor]:
    """The same of rows by their ids, shape (n,); table and momentum have all rows."""
    found = native.caught_up_rows(table, momentum, state["written_after"], state["products"], ids)
    if found is not None:
        return found
    return caught_up(state, table.index_select(0, ids), momentum.index_select(0, ids), ids)


def defer(state: State, table: Tensor, matrix: list[list[float]], written: Tensor) -> None:
    """Defer one step of all rows of a table but those that were just written.

    Args:
        state: the table's state, not full.
        table: the table.
        matrix: M of this step.
        written: ids of the rows that have taken the step, shape (n,).
    """
    if not is_pending(state):
        identity = torch.eye(2, dtype=torch.float64, device=table.device)
        state["products"] = identity.view(1, 4).repeat(LONGEST + 1, 1)
        state["written_after"] = torch.zeros(len(table), dtype=torch.int32, device=table.device)
        state["deferred_steps"] = torch.tensor(0)
    now = int(state["deferred_steps"]) + 1
    past = state["products"][:now]  # those from `now` on are still identities
    step = torch.tensor(matrix, dtype=torch.float64, device=past.device)
    past.copy_((past.view(-1, 2) @ step.T).view(-1, 4))
    state["deferred_steps"].fill_(now)
    state["written_after"].index_fill_(0, written, now)


def settle(state: State) -> None:
    """Forget what was deferred, after all rows have caught up."""
    for key in ("written_after", "products", "deferred_steps"):
        del state[key]
