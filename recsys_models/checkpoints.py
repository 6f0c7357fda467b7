"""What a checkpoint file holds."""

from pathlib import Path
from typing import Any

import torch


def read_checkpoint(file: Path) -> dict[str, Any]:
    """The contents of a checkpoint, on the CPU.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none, or damaged, or holds more than torch loads by default.
    """
    with file.open("rb") as opened:  # outside of what follows: it may be forbidden to read it
        try:
            return dict(torch.load(opened, "cpu", weights_only=True))
        except Exception as error:  # whatever its bytes lead torch to
            raise ValueError(
                f"{file} is no checkpoint, or a damaged one, or holds objects of classes that "
                "torch.load refuses unless torch.serialization.add_safe_globals names them."
            ) from error
