"""The real rating files, where they are at hand."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

_BESIDE_THE_REPOSITORY = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_file() -> Callable[[str], Path]:
    """Path of a rating file below RECSYS_TEST_DATA; skips the test where there is none."""

    def find(name: str) -> Path:
        path = Path(os.environ.get("RECSYS_TEST_DATA") or _BESIDE_THE_REPOSITORY) / name
        if not path.is_file():
            pytest.skip(f"{path} is not at hand")
        return path

    return find
