"""The functions of the C files in this folder, compiled into one library when first needed."""

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
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

POINTER, INT64, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
DOUBLE = ctypes.c_double

_SOURCES = sorted(Path(__file__).parent.glob("*.c"))
_HEADERS = sorted(Path(__file__).parent.glob("*.h"))
# GNU's library for OpenMP is torch's as well, whose threads then do this work between their own.
_PARALLEL = "-fopenmp"
_OPTIONS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
_log = logging.getLogger(__name__)


def function(name: str, argument_types: tuple[type, ...]) -> Callable[..., int] | None:
    """A function of the library, which returns whether it could do its work.

    Returns:
        None where the library cannot be compiled; the reason is logged once, as a warning.
    """
    library = _library()
    return None if library is None else _typed(library, name, argument_types)


def fits(dtype: torch.dtype, *tensors: Tensor) -> bool:
    """Whether a function may read these: of this type, in CPU memory, one number after another."""
    try:
        return all(
            tensor.dtype == dtype
            and tensor.device.type == "cpu"
            and tensor.is_contiguous()
            and tensor.data_ptr() is not None
            for tensor in tensors
        )
    except RuntimeError:  # under vmap a tensor stands for many, and has no memory of its own
        return False


def needs_gradient(tensors: Iterable[Tensor]) -> bool:
    """Whether what is worked out from these is to be differentiated, which no function can."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def column_parts(dense: Tensor, width: int) -> Tensor:
    """Some columns at a time, so that they lie close together.

    Args:
        dense: shape (m, columns).
        width: columns of a part.

    Returns:
        The parts, zeros after the last column, shape (parts, m, width).
    """
    padded = pad(dense, (0, -dense.shape[1] % width))
    return padded.reshape(len(dense), -1, width).transpose(0, 1).contiguous()


@cache
def _typed(library: ctypes.CDLL, name: str, argument_types: tuple[type, ...]) -> Callable[..., int]:
    found = getattr(library, name)
    found.argtypes = argument_types
    found.restype = ctypes.c_int
    return found  # type: ignore[no-any-return]


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(_compiled()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.warning("Torch does what C would do faster, which cannot be compiled: %s", error)
        return None


def _compiled() -> Path:
    """The shared library, from the user's cache if it was compiled for this processor before."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    made_by = [*compiler, *_OPTIONS, _PARALLEL, platform.machine(), _processor()]
    sources = b"".join(file.read_bytes() for file in (*_HEADERS, *_SOURCES))
    key = _digest(sources + "\n".join(made_by).encode())
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deopt-lightning"
    for library in sorted(cached.glob(f"native-{key}-*.so")):
        if library.name == _name(key, library):  # to load half a library would end the process
            return library
    if shutil.which(compiler[0]) is None:
        raise FileNotFoundError(
            f"there is no C compiler {compiler[0]!r}; install one, or name it in CC"
        )
    cached.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached) as folder:
        fresh = Path(folder) / "native.so"
        command = [*compiler, *_OPTIONS, *map(str, _SOURCES), "-o", str(fresh)]
        try:
            _compile([*command, _PARALLEL], fresh)
        except (OSError, subprocess.CalledProcessError):  # a compiler without OpenMP: one thread
            _compile(command, fresh)
        # In one step, since other processes may be at it, too.
        return fresh.replace(cached / _name(key, fresh))


def _name(key: str, library: Path) -> str:
    """What a library is called that was made for a key and has these contents."""
    return f"native-{key}-{_digest(library.read_bytes())}.so"


def _digest(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()[:32]


def _compile(command: list[str], library: Path) -> None:
    """Runs a compiler, and tests whether all is there that the library needs."""
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    ctypes.CDLL(str(library))


def _processor() -> str:
    """What the processor can do, so that a cache on a shared disk serves different machines."""
    description = Path("/proc/cpuinfo")
    lines = description.read_text().splitlines() if description.exists() else []
    found = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join(dict.fromkeys(found)) or platform.processor()
