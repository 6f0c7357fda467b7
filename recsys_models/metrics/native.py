"""Ranks of relevant items, counted by a small function in C that is compiled when first needed.

`torch.topk` sorts what only has to be compared: a relevant item's rank is the number of items
before it. Counting takes one pass over a row of scores, or the first part of it where K are found
there. Torch has no operation for this that does not write as much as it reads.

The function gives the very ranks of the torch operations in hits.py, which take its place where
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
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("ranks.c")
_OPTIONS = ("-O3", "-march=native", "-shared", "-fPIC")
_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64
_log = logging.getLogger(__name__)


def ranks(
    scores: Tensor, pairs: tuple[Tensor, Tensor, Tensor, Tensor], limit: int, *, one_by_one: bool
) -> Tensor | None:
    """How many items rank before each relevant one.

    Args:
        scores: shape (B, I), overwritten as in hits.py.
        pairs: rows and items to leave out, rows and items that are relevant, each int64.
        limit: what to write where as many or more rank before an item.
        one_by_one: see `hits_one_by_one`; else `hits_in_one_list`.

    Returns:
        Shape (R,), int64; None where torch has to do it, or to say what is wrong.
    """
    devices = {tensor.device.type for tensor in (scores, *pairs)}
    types = [scores.dtype, *(ids.dtype for ids in pairs)]
    if devices != {"cpu"} or types != [torch.float32] + 4 * [torch.int64]:
        return None
    if not scores.is_contiguous() or (function := _function()) is None:
        return None
    seen_rows, seen_items, relevant_rows, relevant_items = (ids.contiguous() for ids in pairs)
    found = torch.empty(len(relevant_rows), dtype=torch.int64)
    own = torch.empty(len(relevant_rows))
    seen = seen_rows.data_ptr(), seen_items.data_ptr(), len(seen_rows)
    relevant = relevant_rows.data_ptr(), relevant_items.data_ptr(), len(relevant_rows)
    memory = own.data_ptr(), found.data_ptr()
    size = len(scores), scores.shape[1]
    done = function(scores.data_ptr(), *size, *seen, *relevant, one_by_one, limit, *memory)
    return found if done else None


@cache
def _function() -> ctypes._NamedFuncPointer | None:
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
    compiler = shlex.split(os.environ.get("CC", "cc"))
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
