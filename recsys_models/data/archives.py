"""Opens a data file as it is, or unpacked: of a zip archive a member, of .gz, .bz2 or .xz all."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

_UNPACKED_BY: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
_DAMAGE = (zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError)


@contextmanager
def open_data(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[IO[bytes], str]]:
    """The bytes of a file, unpacked on the fly where its name says so, and its inner name.

    Args:
        path: the file or archive.
        wanted: ends of the member's name, for example ("/ratings.dat",) or (".csv", ".tsv"). The
            one member that matches is opened, or the only one of an archive, whatever its name.

    Raises:
        ValueError: not exactly one member matches, or the archive is damaged.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                member = _member(path, archive, wanted)
                with archive.open(member) as file:
                    yield file, PurePosixPath(member).name
        elif suffix in _UNPACKED_BY:
            with _UNPACKED_BY[suffix](path, "rb") as file:
                yield file, path.stem
        else:
            with path.open("rb") as file:
                yield file, path.name
    except _DAMAGE as error:
        if getattr(error, "errno", None):  # what the system says of a file, not of its content
            raise
        raise ValueError(f"{path} is damaged ({error}). Fetch the archive again.") from error


def _member(path: Path, archive: zipfile.ZipFile, wanted: tuple[str, ...]) -> str:
    names = [
        info.filename
        for info in archive.infolist()
        if not info.is_dir() and not info.filename.startswith("__MACOSX/")  # copies made by macOS
    ]
    matching = [name for name in names if f"/{name}".lower().endswith(wanted)]
    if len(names) == 1:
        return names[0]
    if len(matching) != 1:
        raise ValueError(
            f"{path} must hold one file named {' or '.join('*' + end for end in wanted)}; it holds "
            f"{len(matching)} of them among {len(names)} files. Unpack it and give the file itself."
        )
    return matching[0]
