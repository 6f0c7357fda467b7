"""evaluator="vectorised": all candidates trained at once, with the results of one by one."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from deopt_lightning import DEOptCallback, evaluator_choice, stacked_steps
from recsys_models.data.datamodule import RecsysDataModule
from recsys_models.models import BPRMF, NGCF, NeuMF
from tests.deopt_lightning.test_compiled_steps import (
    Branches,
    Interrupt,
    assert_equal_but_for_rounding,
    nesterov,
    perf,
    search,
)
from tests.deopt_lightning.test_direct_steps import (
    Clamps,
    NoTrainingLoss,
    Pure,
    scheduled,
    warmed_up,
)
from tests.tiny import same_state

OPTIMIZERS = {
    "adam": None,
    "amsgrad": partial(torch.optim.Adam, lr=0.01, amsgrad=True, weight_decay=1e-3),
    "adamw": partial(torch.optim.AdamW, lr=0.01, fused=True),
    "sgd": partial(torch.optim.SGD, lr=0.02),
    "nesterov": nesterov,
    "scheduled": scheduled,
}
FALLBACK = "DEOptCallback trains candidates one after the other, not stacked: "


def run(folder: Path, model: Any, evaluator: str, *others: Any, **options: Any) -> Any:
    settings = {"evaluator": evaluator, "compile_steps": False, "lr_bounds": (1e-3, 0.03)}
    return search(folder, model, *others, **settings | options)


@pytest.fixture
def stacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many members each stack had, but for the one that is a test of its own."""
    counts: list[int] = []
    train = stacked_steps.StackedSteps.train

    def note(self: Any, count: int, prepare: Any) -> None:
        counts.append(count)
        train(self, count, prepare)

    monkeypatch.setattr(stacked_steps.StackedSteps, "train", note)
    return counts


@pytest.mark.parametrize("carry", ["weights", "population"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_search_equals_the_sequential_one(
    carry: str, optimizer: str, tmp_path: Path, stacked: list[int]
) -> None:
    model = partial(Pure, OPTIMIZERS[optimizer])
    ways = [
        run(tmp_path / way, model, way, carry=carry, local_search=None)
        for way in ("vectorised", "sequential")
    ]
    assert_equal_but_for_rounding(*ways)
    assert ways[0][0].probe_steps_taken == ways[1][0].probe_steps_taken
    # Two to test it; then all members but the leader, of which one more goes on in the second
    # generation, or the targets and the trials.
    assert stacked == [2, *([3, 4] if carry == "population" else [4, 4, 4, 4])]


def test_a_resumed_run_equals_the_unbroken_one(tmp_path: Path) -> None:
    options = {"max_epochs": 3, "carry": "population"}
    checkpoint = ModelCheckpoint(tmp_path / "broken", save_last=True)
    unbroken = run(tmp_path / "unbroken", Pure, "vectorised", **options)
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "broken", Pure, "vectorised", checkpoint, Interrupt(), **options)
    saved = str(tmp_path / "broken" / "last.ckpt")
    resumed = run(tmp_path / "resumed", Pure, "vectorised", ckpt_path=saved, **options)
    assert torch.equal(perf(unbroken[0]), perf(resumed[0]))
    assert same_state(unbroken[1].state_dict(), resumed[1].state_dict())


class Normalised(Pure):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.net.insert(1, nn.BatchNorm1d(8))


class SaysNothing(Pure):
    """Refuses stacked weights without a word."""

    def training_loss(self, batch: Any) -> Tensor:
        if not isinstance(self.net[0].weight, nn.Parameter):
            raise NotImplementedError
        return super().training_loss(batch)


class DrawsInEveryMember(Pure):
    """Random numbers of a shape that vmap does not hide are fine; these depend on the weights."""

    def training_loss(self, batch: Any) -> Tensor:
        noise = torch.rand_like(self.net[0].weight)
        return super().training_loss(batch) + (noise * self.net[0].weight).mean()


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (Branches, {}, "vmap refuses training_loss"),
        (Normalised, {}, "vmap refuses training_loss"),
        (SaysNothing, {}, r"vmap refuses training_loss \(NotImplementedError\)"),
        (Clamps, {}, "on_train_batch_end is overridden"),
        (NoTrainingLoss, {}, "NoTrainingLoss has no method training_loss"),
        (Pure, {"direct_steps": False}, "direct steps are off"),
        (Pure, {"gradient_clip_val": 0.1}, "gradients are clipped"),
        (partial(Pure, warmed_up), {"carry": "population"}, "an LR schedule goes on at each step"),
        (
            partial(Pure, partial(torch.optim.SGD, lr=0.01, momentum=0.9, dampening=0.1)),
            {},
            "momentum is dampened",
        ),
    ],
)
def test_what_cannot_be_stacked_is_trained_in_turn_with_the_reason(
    model: Any, options: Any, reason: str, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=FALLBACK + reason) as caught:
        callback, module = run(tmp_path / "1", model, "vectorised", **options)
    assert sum("DEOptCallback" in str(warning.message) for warning in caught) == 1
    assert callback.state_dict()["decisions"]["vectorised"] is False
    _, plain = run(tmp_path / "2", model, "sequential", **options)
    assert same_state(module.state_dict(), plain.state_dict())


def test_random_numbers_of_a_members_weights_shape_are_its_own_too(tmp_path: Path) -> None:
    ways = [
        run(tmp_path / way, DrawsInEveryMember, way, carry="population")
        for way in ("vectorised", "sequential")
    ]
    assert_equal_but_for_rounding(*ways)


class FreezesLater(Pure):
    """From its third epoch on, members have frozen weights and a buffer of their own."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("scale", torch.tensor(1.0))

    def on_train_epoch_start(self) -> None:
        self.net[0].requires_grad_(self.current_epoch < 2)

    def on_validation_start(self) -> None:
        self.scale.fill_(float(self.net[3].weight.detach().norm()))

    def training_loss(self, batch: Any) -> Tensor:
        return self.scale * super().training_loss(batch)


def test_frozen_weights_and_buffers_are_each_members_own(
    tmp_path: Path, stacked: list[int]
) -> None:
    ways = [
        run(tmp_path / way, FreezesLater, way, carry="population", max_epochs=4)
        for way in ("vectorised", "sequential")
    ]
    assert_equal_but_for_rounding(*ways)
    assert len(stacked) == 5


def test_on_a_cpu_auto_is_sequential_without_a_word(tmp_path: Path, stacked: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="DEOptCallback")
        _, module = run(tmp_path / "1", Pure, "auto")
    assert stacked == []
    _, plain = run(tmp_path / "2", Pure, "sequential")
    assert same_state(module.state_dict(), plain.state_dict())


def test_auto_takes_what_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice itself, which a CPU never comes to, between times that are given."""
    times = iter([1.0, 3.0, 1.0, 5.0])
    monkeypatch.setattr(evaluator_choice, "seconds_of", lambda *args: next(times))
    choices = []

    class Chooses(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            from deopt_lightning.direct_steps import DirectSteps
            from deopt_lightning.evaluator_choice import _is_faster
            from deopt_lightning.generation import take_snapshot

            start = take_snapshot(trainer)
            steps = DirectSteps(trainer, [next(iter(trainer.train_dataloader))])
            choices.extend(_is_faster(steps, start, 4) for _ in range(2))

    run(tmp_path, Pure, "sequential", Chooses(), max_epochs=1)
    assert choices == [True, False]


def recommend(make: Any, folder: Path, evaluator: str, accelerator: str = "cpu") -> Any:
    L.seed_everything(3, verbose=False)
    data = RecsysDataModule(dataset="synthetic", batch_size=512)
    data.prepare_data()
    data.setup("fit")
    model = make(data.num_users, data.num_items)
    callback = DEOptCallback(
        "val/ndcg@10", "max", 4, carry="population", evaluator=evaluator, workers=0
    )
    trainer = L.Trainer(
        max_epochs=2,
        limit_train_batches=6,
        accelerator=accelerator,
        devices=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=data)
    return callback, model


RECOMMENDERS = [
    BPRMF,
    partial(NeuMF, mlp_dims=(8, 4)),
    partial(NGCF, layer_dims=(8, 8), message_dropout=0.1),
]


@pytest.mark.parametrize(("make", "then"), zip(RECOMMENDERS, (4, 4, 4), strict=True))
def test_recommenders_can_be_stacked(
    make: Any, then: int, tmp_path: Path, stacked: list[int]
) -> None:
    together = recommend(make, tmp_path, "vectorised")
    assert stacked == [2, 3, then]
    in_turn = recommend(make, tmp_path, "sequential")
    torch.testing.assert_close(perf(together[0]), perf(in_turn[0]), rtol=0, atol=5e-3)
    torch.testing.assert_close(
        together[1].state_dict(), in_turn[1].state_dict(), rtol=1e-2, atol=1e-4
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", RECOMMENDERS)
def test_recommenders_can_be_stacked_on_a_gpu(
    make: Any, tmp_path: Path, stacked: list[int]
) -> None:
    together = recommend(make, tmp_path, "vectorised", "gpu")
    assert stacked[:2] == [2, 3]
    assert stacked[2:] == [len(together[0].history[1]["perf"]) - 1]
    in_turn = recommend(make, tmp_path, "sequential", "gpu")
    torch.testing.assert_close(perf(together[0]), perf(in_turn[0]), rtol=0, atol=1e-2)
    chosen, _ = recommend(make, tmp_path, "auto", "gpu")
    assert chosen.state_dict()["decisions"]["vectorised"] is not None
