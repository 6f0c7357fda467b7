"""NeuMF from parts that were trained before, by commands."""

import pytest
import torch
from hydra.utils import instantiate

from recsys_models import train
from recsys_models.models import NeuMF
from recsys_models.models.pretraining import pretrained_neumf
from recsys_models.recommend import load

SHORT = ("trainer.max_epochs=2", "trainer.accelerator=cpu", "+data.batch_size=64")
PARTS = {"gmf": "+model.mlp_dims=[]", "mlp": "+model.gmf_dim=0"}


@pytest.fixture
def train_here(compose_train, tiny_synthetic, tmp_path):
    def run(name, *overrides):
        folder = tmp_path / name
        train.run(compose_train(*SHORT, *overrides, f"output_dir={folder}"))
        return folder / "checkpoints" / "best.ckpt"

    return run


@pytest.fixture
def parts(train_here):
    return {name: train_here(name, "model=neumf", option) for name, option in PARTS.items()}


def of_parts(parts):
    return ["model=neumf_pretrained", *(f"model.{name}={file}" for name, file in parts.items())]


def test_training_goes_on_from_the_mean_of_the_parts(parts, train_here, compose_train):
    cfg = compose_train(*of_parts(parts))
    model = instantiate(cfg.model, num_users=60, num_items=40, optimizer=None)
    gmf, mlp = (NeuMF.load_from_checkpoint(file) for file in parts.values())
    users = torch.arange(60)
    mean = (gmf.score_users(users) + mlp.score_users(users)) / 2
    torch.testing.assert_close(model.score_users(users), mean, rtol=0, atol=1e-5)

    still = "optimizer.lr=1e-30"
    (kept, _) = load(train_here("kept", *of_parts(parts), "optimizer=sgd", still))
    torch.testing.assert_close(kept.score_users(users), mean, rtol=0, atol=1e-5)
    (trained, _) = load(train_here("trained", *of_parts(parts), "optimizer=sgd"))
    assert not torch.equal(trained.head.weight, kept.head.weight)


def test_parts_of_other_pairs_are_refused(parts, train_here):
    with pytest.raises(Exception, match="trained on other pairs than those of this data"):
        train_here("other", *of_parts(parts), "+data.split_seed=1")
    other = train_here("of_others", "model=neumf", PARTS["mlp"], "+data.split_seed=1")
    with pytest.raises(Exception, match="trained on other pairs than those of this data"):
        train_here("mixed", *of_parts(parts | {"mlp": other}))


def test_what_is_no_part_is_named(parts, train_here, tmp_path):
    with pytest.raises(Exception, match=r"gmf must be .* there is no file .*nowhere\.ckpt"):
        train_here("missing", *of_parts(parts | {"gmf": tmp_path / "nowhere.ckpt"}))
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(parts["gmf"].read_bytes()[:1000])
    with pytest.raises(Exception, match=r"damaged\.ckpt is no checkpoint"):
        train_here("damaged", *of_parts(parts | {"gmf": damaged}))
    other = train_here("bpr", "model=bpr_mf")
    with pytest.raises(Exception, match="mlp must be the checkpoint of a NeuMF; got .* of BPRMF"):
        train_here("foreign", *of_parts(parts | {"mlp": other}))
    with pytest.raises(Exception, match="a GMF alone and an MLP alone"):
        train_here("turned", *of_parts({"gmf": parts["mlp"], "mlp": parts["gmf"]}))
    with pytest.raises(ValueError, match="of 61 users and 40 items; got .*, of 60 and 40"):
        pretrained_neumf(61, 40, **parts)
