"""Where the rating files live, and how to fetch them from their publishers."""

from __future__ import annotations

import http.client
import os
import shutil
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Source:
    """A published data set.

    Attributes:
        file: where the ratings lie below the data folder; the last part is also their file name
            inside the publisher's archive.
        archive: address of the zip archive; None where it is no longer distributed.
        page: the publisher's page, with the terms of use.
    """

    file: str
    archive: str | None
    page: str


SOURCES = {
    "filmtrust": Source(
        file="filmtrust/ratings.txt",
        archive="https://guoguibing.github.io/librec/datasets/filmtrust.zip",
        page="https://guoguibing.github.io/librec/datasets.html",
    ),
    "ml_1m": Source(
        file="ml-1m/ratings.dat",
        archive="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        page="https://grouplens.org/datasets/movielens/1m/",
    ),
    "ml_100k": Source(
        file="ml-100k/u.data",
        archive="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        page="https://grouplens.org/datasets/movielens/100k/",
    ),
    "ml_10m": Source(
        file="ml-10m/ratings.dat",
        archive="https://files.grouplens.org/datasets/movielens/ml-10m.zip",
        page="https://grouplens.org/datasets/movielens/10m/",
    ),
    "eachmovie": Source(
        file="eachmovie/Vote.txt",
        archive=None,
        page="https://grouplens.org/datasets/eachmovie/",
    ),
}


def ratings_path(dataset: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The file in which the ratings of `dataset` are looked up; it need not exist.

    Args:
        dataset: a name in `SOURCES`.
        data_dir: folder of all data sets. When None, the environment variable RECSYS_DATA names
            it; without that it is recsys_models in XDG_CACHE_HOME or in ~/.cache.
    """
    folder = data_dir or os.environ.get("RECSYS_DATA")
    if not folder:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "recsys_models"
    return Path(folder).expanduser() / SOURCES[dataset].file


def download_ratings(dataset: str, target: Path) -> None:
    """Fetch the ratings of `dataset` from their publisher and put them at `target`.

    The file appears at `target` only when it is complete; a file already there is kept.
    """
    if target.is_file():
        return
    source = SOURCES[dataset]
    if source.archive is None:
        raise ValueError(
            f"{dataset} is no longer distributed, so download=true cannot fetch it "
            f"(see {source.page}). Put your copy of {Path(source.file).name} at {target}, "
            "or give data.path=FILE."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="download-") as folder:
            archive, ratings = Path(folder) / "archive.zip", Path(folder) / "ratings"
            _fetch(source.archive, archive)
            _unpack(archive, Path(source.file).name, ratings)
            ratings.replace(target)
    except (OSError, http.client.HTTPException, zipfile.BadZipFile, LookupError) as error:
        raise OSError(
            f"could not download {dataset} from {source.archive}: {error}. "
            f"Get the archive yourself (see {source.page}) and put its "
            f"{Path(source.file).name} at {target}, or give data.path=FILE."
        ) from error


def _fetch(address: str, target: Path) -> None:
    with (
        urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as response,
        target.open("wb") as file,
    ):
        shutil.copyfileobj(response, file)


def _unpack(archive: Path, name: str, target: Path) -> None:
    """Write the archive's one file called `name`, in whatever folder, to `target`."""
    with zipfile.ZipFile(archive) as content:
        members = [member for member in content.namelist() if Path(member).name == name]
        if len(members) != 1:
            raise LookupError(f"the archive holds {len(members)} files named {name}, not one")
        with content.open(members[0]) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file)
