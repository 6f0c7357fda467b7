"""Candidates that diverge, and errors in probes."""

from __future__ import annotations

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from deopt_lightning import DEOptCallback
from tests.tiny import LAYERS, TinyModel, fit, fit_that_fails, probing_callback, same_state


def test_diverging_candidates_lose_and_the_run_goes_on(tmp_path: Path) -> None:
    """With lr up to 1e30 most probes end in NaN or infinite weights."""
    callback = probing_callback(lr_bounds=(1e-3, 1e30), population_size=6)
    build = partial(TinyModel, lambda p: torch.optim.SGD(p, lr=0.01))
    model, trainer = fit(tmp_path, [callback], model=build)
    perf = [p for r in callback.history for p in r["target_perf"] + r["trial_perf"]]
    assert None in perf
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert math.isfinite(float(trainer.callback_metrics["val_loss"]))
    probes = callback.probe_steps_taken / 3
    assert callback.evaluations < probes  # a diverged probe is not validated


def test_nan_loss_in_every_probe_changes_nothing_but_warns(tmp_path: Path) -> None:
    class NanInProbes(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            return (
                loss * float("nan")
                if type(self.trainer.fit_loop.epoch_loop).__name__ == ("ProbeEpochLoop")
                else loss
            )

    callback = probing_callback()
    plain, _ = fit(tmp_path / "plain")
    with pytest.warns(UserWarning, match="every candidate diverged after epoch 0"):
        model, _ = fit(tmp_path / "search", [callback], model=NanInProbes)
    assert same_state(plain.state_dict(), model.state_dict())
    assert callback.schedule[-1]["lr"] == dict.fromkeys(LAYERS, 0.01)
    assert all(p is None for p in callback.history[0]["target_perf"])


def test_floating_point_error_in_validation_counts_as_divergence(tmp_path: Path) -> None:
    class Strict(TinyModel):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if self(batch[0]).abs().max() > 100:
                raise FloatingPointError("scores out of range")
            super().validation_step(batch, batch_idx)

    callback = probing_callback(lr_bounds=(1e-3, 1e3), population_size=8)
    build = partial(Strict, lambda p: torch.optim.SGD(p, lr=0.01))
    fit(tmp_path, [callback], model=build, max_epochs=1)
    perf = callback.history[0]["target_perf"]
    assert None in perf
    assert any(p is not None for p in perf)


def test_an_error_in_a_probe_leaves_weights_and_search_as_they_were(tmp_path: Path) -> None:
    callback = probing_callback()
    model = fit_that_fails(tmp_path / "search", callback, at=30)
    plain, _ = fit(tmp_path / "plain", max_epochs=1)
    assert same_state(plain.state_dict(), model.state_dict())
    assert callback.history == []
    assert callback._search is not None
    assert callback._search.state_dict()["told"] == []
    assert all(module.training for module in model.modules())


class Refuses(TinyModel):
    """Raises its own error where a loss is too large, or a weight no number."""

    limit = 100.0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        if not float(loss.detach()) < self.limit:
            raise ValueError(f"a loss of {float(loss.detach())} makes no sense")
        return loss


@pytest.mark.parametrize("limit", [100.0, math.inf])
def test_a_member_whose_values_end_in_an_error_loses(limit: float, tmp_path: Path) -> None:
    class Limited(Refuses):
        pass

    Limited.limit = limit
    callback = DEOptCallback("val_loss", lr_bounds=(1e-3, 1e3), seed=1)
    build = partial(Limited, lambda p: torch.optim.SGD(p, lr=0.01))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _, trainer = fit(tmp_path, [callback], model=build, max_epochs=6)
    assert trainer.current_epoch == 6
    perf = [p for row in callback.history for p in row["perf"]]
    assert None in perf
    told = [str(w.message) for w in said if "ended in an error" in str(w.message)]
    assert all("ValueError: a loss of" in text for text in told)
    assert (limit == math.inf) or told


def test_a_gradient_that_detect_anomaly_refuses_is_a_divergence_from_the_first_generation_on(
    tmp_path: Path,
) -> None:
    class NanGradient(TinyModel):
        """At a high lr, that is of some members alone; its weights stay finite."""

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            high = max(group["lr"] for group in self.trainer.optimizers[0].param_groups) > 0.05
            return loss * float("nan") if high else loss

    callback = DEOptCallback("val_loss")
    fit(tmp_path, [callback], model=NanGradient, detect_anomaly=True, max_epochs=1)
    (record,) = callback.history
    assert None in record["perf"]
    assert record["perf"][record["leader"]] is not None


def test_an_error_in_the_first_generation_is_the_users(tmp_path: Path) -> None:
    class Wrong(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if type(self.trainer.fit_loop.epoch_loop).__name__ == "ProbeEpochLoop":
                raise ValueError("a bug")
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match="a bug"):
        fit(tmp_path, [DEOptCallback("val_loss")], model=Wrong)
