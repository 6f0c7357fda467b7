"""When a probe counts as diverged."""

from __future__ import annotations

import pytest
import torch

from deopt_lightning.evaluators.probe import _finite


@pytest.mark.parametrize(
    ("weights", "finite"),
    [
        ([1.0, -2.0], True),
        ([3e38, 3e38], True),  # their sum is not
        ([], True),
        ([1.0, float("nan")], False),
        ([1.0, float("inf")], False),
        ([float("inf"), -float("inf")], False),
    ],
)
def test_weights_are_finite_if_each_is(weights: list[float], finite: bool) -> None:
    assert _finite(torch.nn.Parameter(torch.tensor(weights))) is finite
