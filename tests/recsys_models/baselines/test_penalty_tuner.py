"""What holds for both tuners, and what they refuse."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from pytorch_optimizer import AdaMod

from recsys_models.baselines import SGDA, LambdaOpt
from recsys_models.baselines.penalty_tuner import ValidationPairs
from recsys_models.models import LRML
from tests.recsys_models.baselines.reference import OPTIMIZERS, fit, tiny_data, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")

CASES = {
    "sgda": (SGDA, "sgd"),
    **{f"lambda-opt, {name}": (partial(LambdaOpt, lr=0.02), name) for name in OPTIMIZERS},
}


class Poison:
    """Stands for a data set that must not be looked at."""

    def __getattribute__(self, name):
        raise AssertionError(f"{name} of the test set was read")

    def __len__(self):
        raise AssertionError("the size of the test set was read")


class KeepsRandomState(L.Callback):
    """Training negatives come from torch's global generator, which no checkpoint holds."""

    rng = None

    def state_dict(self):
        return {"rng": torch.get_rng_state()}

    def load_state_dict(self, state_dict):
        self.rng = state_dict["rng"]

    def on_fit_start(self, trainer, pl_module):
        if self.rng is not None:
            torch.set_rng_state(self.rng)


class Interrupt(L.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            raise RuntimeError("power cut")


def same(left, right):
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    return torch.equal(left, right) if torch.is_tensor(left) else left == right


@pytest.mark.parametrize("case", CASES)
def test_test_set_is_never_read(case):
    make, optimizer = CASES[case]
    data = tiny_data()
    data.test = Poison()
    tuner = make()
    fit(tiny_model(data, optimizer), data, [tuner], max_epochs=2)
    assert tuner.probe_steps_taken > 0


def test_validation_pairs_are_positives_of_validation_with_negatives_outside_it_and_train():
    data = tiny_data()
    data.test = Poison()
    pairs = ValidationPairs(data, batch_size=500, seed=0)
    batch = pairs.draw()
    of = {
        part: set(zip(p.users.tolist(), p.items.tolist(), strict=True))
        for part, p in (("train", data.train), ("validation", data.validation))
    }
    drawn = set(zip(batch.users.tolist(), batch.items.tolist(), strict=True))
    users = batch.users[:, None].expand_as(batch.negatives)
    negatives = set(zip(users.flatten().tolist(), batch.negatives.flatten().tolist(), strict=True))
    assert drawn == of["validation"]
    assert batch.negatives.shape == (500, data.num_negatives)
    assert not negatives & (of["train"] | of["validation"])


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_equals_the_unbroken_one(case, tmp_path):
    make, optimizer = CASES[case]
    data = tiny_data()

    def run(name, tuner, *others, **options):
        model = tiny_model(data, optimizer)
        checkpoint = ModelCheckpoint(tmp_path / name, save_last=True)
        callbacks = [tuner, KeepsRandomState(), checkpoint, *others]
        fit(model, data, callbacks, max_epochs=4, enable_checkpointing=True, **options)
        return model

    unbroken, resumed = make(), make()
    whole = run("unbroken", unbroken)
    with pytest.raises(RuntimeError, match="power cut"):
        run("broken", make(), Interrupt())
    again = run("broken", resumed, ckpt_path=tmp_path / "broken" / "last.ckpt")
    assert [row["epoch"] for row in resumed.schedule] == [0, 1, 2, 3]
    assert same(resumed.state_dict(), unbroken.state_dict())
    assert same(dict(again.state_dict()), dict(whole.state_dict()))


def test_resuming_with_another_granularity_is_refused(tmp_path):
    data = tiny_data()

    def run(granularity, **options):
        callbacks = [LambdaOpt(granularity), ModelCheckpoint(tmp_path, save_last=True)]
        fit(tiny_model(data, "adam"), data, callbacks, enable_checkpointing=True, **options)

    run("item")
    with pytest.raises(MisconfigurationException, match="lambdas per item, but this run per user"):
        run("user", ckpt_path=tmp_path / "last.ckpt", max_epochs=3)


def test_schedule_has_the_mean_lambda_of_every_layer():
    data, tuner = tiny_data(), LambdaOpt("user", lr=0.02)
    trainer = fit(tiny_model(data, "adam"), data, [tuner], max_epochs=3)
    users, items = (float(w.mean()) for w in tuner.penalty.lambdas.values())
    assert [row["epoch"] for row in tuner.schedule] == [0, 1, 2]
    assert tuner.schedule[-1]["lr"] == {"users": 0.01, "items": 0.01}
    assert tuner.schedule[-1]["lambda"] == {
        "users": pytest.approx(users),
        "items": pytest.approx(items),
    }
    assert trainer.callback_metrics["lambda/users"] == pytest.approx(users)
    assert users > 0


def sgd(**options):
    return partial(torch.optim.SGD, lr=0.1, **options)


@pytest.mark.parametrize(
    ("optimizer", "options", "said"),
    [
        (sgd(momentum=0.9), {}, "SGD has momentum=0.9. Leave momentum out"),
        (sgd(weight_decay=0.1), {}, "penalty is learned .* SGD has weight_decay=0.1"),
        (partial(AdaMod, weight_decay=0.1), {}, "AdaMod has weight_decay=0.1"),
        (torch.optim.AdamW, {}, "got AdamW. Choose optimizer=sgd, adam, amsgrad or adamod"),
        (None, {"accumulate_grad_batches": 2}, "accumulate_grad_batches=2"),
        (None, {"gradient_clip_val": 1.0}, "gradient_clip_val=1.0"),
        (None, {"precision": "bf16-mixed"}, "precision=bf16-mixed"),
    ],
)
def test_what_the_assumed_step_would_not_know_of_is_refused(optimizer, options, said):
    data = tiny_data()
    model = tiny_model(data, "adam")
    model.configure_optimizers = lambda: (optimizer or torch.optim.Adam)(model.parameters())
    with pytest.raises(MisconfigurationException, match=said):
        fit(model, data, [LambdaOpt()], **options)


def test_other_models_are_refused():
    data = tiny_data()
    with pytest.raises(MisconfigurationException, match="got LRML. Use model=bpr_mf"):
        fit(LRML(data.num_users, data.num_items), data, [LambdaOpt()])


def test_other_data_are_refused():
    data = tiny_data()
    trainer = L.Trainer(callbacks=[SGDA()], accelerator="cpu", logger=False, max_epochs=1)
    with pytest.raises(MisconfigurationException, match="from a RecsysDataModule; got NoneType"):
        trainer.fit(tiny_model(data, "sgd"), data.train_dataloader(), data.val_dataloader())


def test_data_without_validation_pairs_are_refused():
    data = tiny_data()
    data.validation = data.validation.select([])
    with pytest.raises(MisconfigurationException, match="validation pairs, but there are 0"):
        fit(tiny_model(data, "adam"), data, [LambdaOpt()], limit_val_batches=0)
