"""Two real processes score, train and rank as one does, each over its share of the users."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json
import lightning as L
import torch

from recsys_models.data import RecsysDataModule
from recsys_models.models import BPRMF, LRML, NGCF, LightGCN, NeuMF

SIZES = {"num_users": 61, "num_items": 40, "num_interactions": 900}
MODELS = {
    "bpr_mf": lambda *sizes: BPRMF(*sizes, dim=4, init_std=0.5),
    "neumf": lambda *sizes: NeuMF(*sizes, gmf_dim=4, mlp_dims=(8, 4), init_std=0.5),
    "lrml": lambda *sizes: LRML(*sizes, dim=4, num_memories=3, init_std=0.5),
    "lrml_item_bias": lambda *sizes: LRML(*sizes, dim=4, item_bias=True, bias_scale=1.0),
    "ngcf": lambda *sizes: NGCF(*sizes, dim=4, layer_dims=(4,)),
    "lightgcn": lambda *sizes: LightGCN(*sizes, dim=4),
}


def ranked(build, devices, trained):
    L.seed_everything(0, verbose=False)
    data = RecsysDataModule(synthetic=SIZES, batch_size=64, eval_batch_size=7)
    data.setup()
    model = build(data.num_users, data.num_items)
    model.configure_optimizers = lambda: torch.optim.Adam(model.parameters(), lr=0.05)
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp_fork" if devices > 1 else "auto",
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )
    if not trained:
        return trainer.validate(model, datamodule=data, verbose=False)[0]
    trainer.fit(model, datamodule=data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({
        name: {
            "alone": ranked(build, 1, False),
            "joint": ranked(build, 2, False),
            "trained": ranked(build, 2, True),
        }
        for name, build in MODELS.items()
    }))
"""

MODELS = ["bpr_mf", "neumf", "lrml", "lrml_item_bias", "ngcf", "lightgcn"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    script = tmp_path_factory.mktemp("ranks") / "rank.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_rank_as_one(found, model):
    assert found[model]["joint"] == pytest.approx(found[model]["alone"], abs=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_train(found, model):
    trained = found[model]["trained"]
    assert 0 < trained["train/loss"] < 10
    assert 0 < trained["val/ndcg@10"] <= 1
    assert trained["val/ndcg@10"] != found[model]["alone"]["val/ndcg@10"]
