"""A recommender's training loss, compiled by torch together with its gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


def compiled_loss(module: nn.Module, batch: Any) -> Tensor:
    """What the class's `training_loss` gives for a module, up to rounding.

    The first call takes some ten seconds, fewer where torch's cache on disk has the result; so
    does the first batch of another size. On a CPU it runs with one thread, since torch's compiled
    look-ups are slower with several. Where torch cannot compile the loss, the module goes back to
    its own method, with a warning.
    """
    loss: Callable[..., Tensor] = type(module).training_loss  # type: ignore[attr-defined]
    threads = torch.get_num_threads()
    on_cpu = next(module.parameters()).device.type == "cpu"
    try:
        torch.set_num_threads(1 if on_cpu else threads)
        result: Tensor = _compile(loss)(module, batch)
    except Exception as error:  # torch raises what its compilers raise
        result = loss(module, batch)
        del module.training_loss
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"{type(module).__name__}(compile=True) trains without compiling: {reason}",
            stacklevel=2,
        )
    finally:
        torch.set_num_threads(threads)
    return result


@cache
def _compile(loss: Any) -> Callable[..., Any]:
    return torch.compile(loss, fullgraph=True, options={"fallback_random": True})
