"""Whole runs with row-sparse optimizers: evaluations, checkpoints, DE-Opt, and refusals."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from deopt_lightning import DEOptCallback
from recsys_models import train
from recsys_models.data import RecsysDataModule
from recsys_models.models import BPRMF
from recsys_models.optim import RowSparseSGD

ROOT = Path(__file__).parents[3]
OPTIONS = {"lr": 0.5, "weight_decay": 0.01}

pytestmark = pytest.mark.usefixtures("tiny_synthetic")


def fit(optimizer, callbacks=(), start=None, epochs=3, **options):
    L.seed_everything(0, verbose=False)
    data = RecsysDataModule(batch_size=4)
    data.setup()
    model = BPRMF(data.num_users, data.num_items, dim=4, init_std=0.1, optimizer=optimizer)
    trainer = L.Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"accelerator": "cpu", "devices": 1} | options,
    )
    batches = DataLoader(list(data.train_dataloader()), batch_size=None)  # the same every epoch
    trainer.fit(model, batches, data.val_dataloader(), ckpt_path=start)
    return model, trainer


def sgd(kind, momentum=0.9):
    return partial(kind, **OPTIONS, momentum=momentum)


def same(left, right):
    return all(map(torch.equal, left.parameters(), right.parameters()))


class Watch(L.Callback):
    """Notes whether rows are behind."""

    def __init__(self):
        self.in_training, self.in_validation = [], []

    @staticmethod
    def pending(module):
        optimizer = module._row_optimizer
        return any(optimizer.is_pending(p) for p in module.parameters())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.in_training.append(self.pending(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.in_validation.append(self.pending(pl_module))


@pytest.mark.parametrize(
    "options", [{}, {"gradient_clip_val": 0.01}, {"accumulate_grad_batches": 3}]
)
def test_a_run_is_that_of_torchs_optimizer(options):
    ours, _ = fit(sgd(RowSparseSGD), **options)
    dense, _ = fit(sgd(torch.optim.SGD), **options)
    for mine, theirs in zip(ours.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_evaluations_and_the_end_see_rows_up_to_date():
    watch = Watch()
    model, _ = fit(sgd(RowSparseSGD), [watch], val_check_interval=10, limit_val_batches=1)
    assert any(watch.in_training)
    assert watch.in_validation
    assert not any(watch.in_validation)
    assert not Watch.pending(model)
    model, _ = fit(sgd(RowSparseSGD), limit_val_batches=0)
    assert not Watch.pending(model)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_resuming_is_bit_exact(tmp_path, momentum):
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    unbroken, _ = fit(sgd(RowSparseSGD, momentum), [saving])
    resumed, _ = fit(sgd(RowSparseSGD, momentum), [saving], start=str(tmp_path / "epoch=1.ckpt"))
    assert same(resumed, unbroken)


@pytest.mark.parametrize("carry", ["hyperparameters", "weights", "population"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_deopt_finds_what_it_finds_with_float64_and_a_dense_optimizer(carry, momentum):
    histories = []
    for kind in (RowSparseSGD, torch.optim.SGD):
        callback = DEOptCallback(
            "val/ndcg@10", mode="max", population_size=4, carry=carry, weight_decay_bounds=(1e-4, 1)
        )
        fit(sgd(kind, momentum), [callback], epochs=2, precision="64-true")
        histories.append(callback.history)
    for mine, theirs in zip(*histories, strict=True):
        for key in ("perf",) if carry == "population" else ("target_perf", "trial_perf"):
            assert mine[key] == pytest.approx(theirs[key], abs=1e-9)


@pytest.mark.parametrize("options", [{"workers": 2}, {"direct_steps": False}])
def test_deopt_gives_the_same_bits_however_it_trains_its_probes(options):
    runs = []
    for changed in ({"workers": 0}, options):
        callback = DEOptCallback("val/ndcg@10", mode="max", population_size=4, **changed)
        runs.append(fit(sgd(RowSparseSGD), [callback], epochs=2)[0])
    assert same(*runs)


@pytest.mark.parametrize("carry", ["weights", "population"])
def test_deopt_resumes_bit_for_bit(tmp_path, carry):
    def callback():
        return DEOptCallback("val/ndcg@10", mode="max", population_size=4, carry=carry)

    saving = ModelCheckpoint(
        tmp_path, save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=True
    )
    unbroken, _ = fit(sgd(RowSparseSGD), [callback(), saving])
    checkpoint = str(tmp_path / "epoch=1.ckpt")
    resumed, _ = fit(sgd(RowSparseSGD), [callback()], start=checkpoint)
    assert same(resumed, unbroken)


@pytest.mark.parametrize("optimizer", ["row_sparse_sgd", "row_sparse_adam"])
@pytest.mark.parametrize("carry", ["weights", "population"])
def test_configured_runs_end_with_a_result(compose_train, tmp_path, optimizer, carry):
    cfg = compose_train(
        f"optimizer={optimizer}",
        "tuner=deopt",
        f"+tuner.callback.carry={carry}",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "+data.batch_size=4",
    )
    assert 0 < train.run(cfg) <= 1
    assert (tmp_path / "out" / "result.json").is_file()


def test_a_gradient_scaler_is_refused():
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(MisconfigurationException, match="a gradient scaler.*bf16-mixed"):
        fit(sgd(RowSparseSGD), plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])


def test_a_compiled_loss_is_refused(compose_train):
    cfg = compose_train(
        "optimizer=row_sparse_sgd", "+model.compile=true", "trainer.accelerator=cpu"
    )
    with pytest.raises(MisconfigurationException, match="a compiled loss. Use compile=False"):
        train.run(cfg)


def test_several_processes_are_refused(tmp_path):
    options = ("trainer=ddp", "trainer.accelerator=cpu", "optimizer=row_sparse_sgd")
    done = subprocess.run(
        [sys.executable, "-m", "recsys_models.train", *options, "hydra.run.dir=out"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "got 2 processes. Use devices=1" in done.stderr
