"""Ranks of relevant items, counted by a small function in C that is compiled when first needed.

`torch.topk` sorts what only has to be compared: a relevant item's rank is the number of items
before it. Counting takes one pass over a row of scores, or the first part of it where K are found
there. Torch has no operation for this that does not write as much as it reads.

The function gives the very ranks of the torch operations in ranks.py, which take its place where
there is no C compiler, on other devices and for other types.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from recsys_models.data.batches import RankingBatch

_SOURCE = Path(__file__).with_name("ranks.c")
_OPTIONS = ("-O3", "-march=native", "-shared", "-fPIC")
_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64
_log = logging.getLogger(__name__)


def ranks(scores: Tensor, batch: RankingBatch, k: int) -> Tensor | None:
    """The result of ``ranks_of_relevant``.

    Returns:
        None where torch has to work it out, or to say what is wrong.
    """
    ids = batch[1:5]
    if len(ids[0]) != len(ids[1]) or len(ids[2]) != len(ids[3]):
        return None
    types = {(tensor.device.type, tensor.dtype) for tensor in ids}
    if types != {("cpu", torch.int64)} or scores.device.type != "cpu":
        return None
    if scores.dtype != torch.float32 or not scores.is_contiguous():
        return None
    if (function := _function()) is None:
        return None
    seen_rows, seen_items, relevant_rows, relevant_items = (part.contiguous() for part in ids)
    found = torch.empty(len(relevant_rows), dtype=torch.int64)
    own = torch.empty(len(relevant_rows))
    done = function(
        *(scores.data_ptr(), len(scores), scores.shape[1]),
        *(seen_rows.data_ptr(), seen_items.data_ptr(), len(seen_rows)),
        *(relevant_rows.data_ptr(), relevant_items.data_ptr(), len(relevant_rows)),
        *(batch.one_by_one, k, own.data_ptr(), found.data_ptr()),
    )
    return found if done else None


@cache
def _function() -> Callable[..., int] | None:
    try:
        function = ctypes.CDLL(str(_compiled())).ranks
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.info("Items are ranked by torch, since ranks.c cannot be compiled: %s", error)
        return None
    matrix, pairs = (_POINTER, _INT64, _INT64), (_POINTER, _POINTER, _INT64)
    function.argtypes = [*matrix, *pairs, *pairs, ctypes.c_int, _INT64, _POINTER, _POINTER]
    function.restype = ctypes.c_int
    return function


def _compiled() -> Path:
    """The shared library, from the user's cache if it was compiled for this processor before."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    made_by = [*compiler, *_OPTIONS, platform.machine(), _processor()]
    key = hashlib.sha256(_SOURCE.read_bytes() + "\n".join(made_by).encode()).hexdigest()
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deopt-lightning"
    library = cached / f"ranks-{key[:32]}.so"
    if library.exists():
        return library
    if shutil.which(compiler[0]) is None:
        raise FileNotFoundError(
            f"there is no C compiler {compiler[0]!r}; install one, or name it in CC"
        )
    cached.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached) as folder:
        fresh = Path(folder) / library.name
        command = [*compiler, *_OPTIONS, str(_SOURCE), "-o", str(fresh)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        fresh.replace(library)  # in one step, since other processes may be at it, too
    return library


def _processor() -> str:
    """What the processor can do, so that a cache on a shared disk serves different machines."""
    description = Path("/proc/cpuinfo")
    lines = description.read_text().splitlines() if description.exists() else []
    found = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join(dict.fromkeys(found)) or platform.processor()
