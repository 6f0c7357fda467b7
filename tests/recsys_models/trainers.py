"""A Trainer that says and writes nothing, for the recommenders' tests."""

from __future__ import annotations

from typing import Any

import lightning as L


def quiet_trainer(**options: Any) -> L.Trainer:
    """A real one on the CPU; options override what it is made with."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**quiet | options)
