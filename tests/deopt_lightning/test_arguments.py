"""Arguments as NumPy, Hydra and YAML hand them over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deopt_lightning import DEOptCallback
from tests.tiny import fit, same_state


@pytest.mark.parametrize(
    "options",
    [
        {"probe_steps": 5, "limit_probe_val_batches": 3},
        {"probe_steps": 0.25, "limit_probe_val_batches": 0.5, "lr_bounds": [0.25, 0.5]},
        {"population_size": 4, "seed": 7, "every_n_epochs": 2, "adopt": False},
        {"warmup_epochs": 2, "max_generations": 1, "optimizer_index": 0},
        {"carry": "chain", "mode": "min", "monitor": "val_loss"},
    ],
    ids=str,
)
def test_numbers_of_numpy_are_those_of_python(options: dict[str, Any], tmp_path: Path) -> None:
    states, checkpoints = [], []
    for given in (options, {name: np.array(value)[()] for name, value in options.items()}):
        callback = DEOptCallback(**{"monitor": "val_loss"} | given)
        module, trainer = fit(tmp_path / str(len(states)), [callback], max_epochs=2)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        torch.load(tmp_path / "a.ckpt", weights_only=True)
        states.append(module.state_dict())
        checkpoints.append((callback.probe_steps_taken, callback.evaluations))
    assert same_state(*states)
    assert checkpoints[0] == checkpoints[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adopt": "no"}, r"adopt must be one of \(True, False\); got 'no'"),
        ({"compile_steps": None}, r"compile_steps must be one of \(True, False\); got None"),
        ({"probe_steps": True}, "probe_steps must be a positive int .* got True"),
        ({"probe_steps": np.array([5])}, r"probe_steps must be a positive int .* got \[5\]"),
        ({"probe_steps": torch.tensor(5)}, r"probe_steps must be .* got tensor\(5\)"),
        ({"probe_steps": 1, "limit_probe_val_batches": True}, "must be a number .* got True"),
        ({"lr_bounds": torch.tensor([0.1, 1.0])}, "lr_bounds must be a pair .* got tensor"),
        ({"lr_bounds": ((1, 2), (1,))}, "lr_bounds must be a pair"),
        ({"lr_bounds": (True, 2)}, r"lr_bounds must be a pair .* got \(True, 2\)"),
        ({"layers": 3}, "layers must be a sequence or a mapping of patterns"),
        ({"layers": "*"}, r"layers must be a sequence .* Write \['\*'\]"),
    ],
)
def test_values_of_other_kinds_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DEOptCallback(**{"monitor": "val_loss"} | options)


def test_a_subclass_keeps_what_it_had_set_before() -> None:
    class Own(DEOptCallback):
        def __init__(self) -> None:
            self.weights = np.ones(3)
            super().__init__("val_loss")

    assert isinstance(Own().weights, np.ndarray)
