"""Dropout whose random numbers cost little on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_LEVELS = 2**16  # of a random number of 16 bits, four of which are drawn at once


def dropout(x: Tensor, rate: float, training: bool = True) -> Tensor:
    """Sets each entry to 0 with probability ``rate``, and divides the others by 1 - ``rate``.

    Torch draws a number for each entry, and takes five times as long for it. Here the rate is
    rounded to a multiple of 2^-16, for the divisor, too, so that the mean stays as it is.

    Args:
        x: of any shape.
        rate: at least 0 and below 1.
        training: whether to do anything.
    """
    if not training or not rate:
        return x
    if torch.compiler.is_compiling() or x.dtype != torch.float32 or x.device.type != "cpu":
        return functional.dropout(x, rate)
    drawn = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),))
    levels = min(round(rate * _LEVELS), _LEVELS - 1)  # of those that drop an entry
    kept = drawn.view(torch.int16)[: x.numel()].view(x.shape) >= levels - _LEVELS // 2
    factor = torch.tensor(_LEVELS / (_LEVELS - levels), dtype=x.dtype)  # whatever the default is
    return x * (kept * factor)
