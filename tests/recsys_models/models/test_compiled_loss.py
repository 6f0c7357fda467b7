"""compile=True: the same training, through a compiled loss."""

from __future__ import annotations

import copy
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from recsys_models.data.datamodule import RecsysDataModule
from recsys_models.models import BPRMF, NeuMF

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


def train(make: Any, folder: Path, **options: Any) -> Any:
    L.seed_everything(3, verbose=False)
    data = RecsysDataModule(dataset="synthetic", batch_size=512)
    data.prepare_data()
    data.setup("fit")
    model = make(data.num_users, data.num_items, **options)
    trainer = L.Trainer(
        max_epochs=1,
        limit_train_batches=8,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=data)
    return model


@needs_compiler
@pytest.mark.parametrize("make", [BPRMF, partial(NeuMF, mlp_dims=(8, 4))])
def test_a_compiled_loss_trains_the_same_model(make: Any, tmp_path: Path) -> None:
    graphs = counters["stats"]["unique_graphs"]
    compiled = train(make, tmp_path, compile=True)
    assert counters["stats"]["unique_graphs"] > graphs
    assert "training_loss" in vars(compiled)  # nothing has failed
    torch.testing.assert_close(
        compiled.state_dict(), train(make, tmp_path).state_dict(), rtol=1e-3, atol=1e-4
    )
    assert copy.deepcopy(compiled).training_loss.args[0] is not compiled


class Uncompilable(BPRMF):
    def training_loss(self, batch: Any) -> Tensor:
        if torch.compiler.is_compiling():
            raise ValueError("not in a graph")
        return super().training_loss(batch)


def test_a_loss_that_cannot_be_compiled_trains_without_after_one_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="trains without compiling") as caught:
        model = train(Uncompilable, tmp_path, compile=True)
    assert sum("compiling" in str(warning.message) for warning in caught) == 1
    plain = train(Uncompilable, tmp_path)
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
