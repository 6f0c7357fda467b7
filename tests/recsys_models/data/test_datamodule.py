import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from recsys_models.data import (
    RankingBatch,
    RecsysDataModule,
    TrainBatch,
    synthetic_interactions,
)
from recsys_models.metrics import evaluate
from recsys_models.models import BPRMF


def write_ratings(path, num_users: int = 40, num_items: int = 30, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    pairs = [(u, i) for u in range(num_users) for i in rng.permutation(num_items)[:10]]
    path.write_text("".join(f"{u + 1} {i + 1} 3.5\n" for u, i in pairs))
    return str(path)


@pytest.fixture
def data(tmp_path) -> RecsysDataModule:
    file = write_ratings(tmp_path / "ratings.txt")
    module = RecsysDataModule("filmtrust", path=file, batch_size=64, eval_batch_size=16)
    module.setup()
    return module


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_ratings(tmp_path / "ratings.txt")
    module = RecsysDataModule("filmtrust", path="~/ratings.txt")
    module.setup()
    assert module.num_users == 40
    assert module.state_dict()["file"] == str(tmp_path / "ratings.txt")


def test_a_user_with_every_item_is_named_as_in_the_file(tmp_path):
    (tmp_path / "t.csv").write_text("user,item\nzoe,a\nzoe,b\nann,a\n")
    module = RecsysDataModule("table", str(tmp_path / "t.csv"), ratios=(1, 0, 0))
    module.setup()
    with pytest.raises(ValueError, match="user zoe has all 2 items"):
        module.train_dataloader()


def test_what_is_not_read_yet_is_asked_for_in_words():
    module = RecsysDataModule(synthetic={"num_users": 60, "num_items": 40, "num_interactions": 900})
    for ask in (lambda: module.num_users, lambda: module.fingerprint, module.val_dataloader):
        with pytest.raises(AttributeError, match=r"Call prepare_data\(\) and setup\(\) first"):
            ask()
    with pytest.raises(AttributeError, match="no attribute 'num_movies'"):
        module.num_movies  # noqa: B018
    module.setup()
    assert (module.num_users, module.num_items, len(module.train)) == (60, 40, 630)


def test_a_trainer_overfits_as_many_pairs_as_it_is_asked_to():
    module = RecsysDataModule(synthetic={"num_users": 60, "num_items": 40, "num_interactions": 900})
    module.setup()
    model = BPRMF(60, 40)
    before = model.item_bias.weight.clone()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        overfit_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, module)
    liked = set(module.train.items[:2].tolist())
    assert {int(i) for i in (model.item_bias.weight > before).flatten().nonzero()} == liked


def items_of(users, rows, items) -> dict[int, set[int]]:
    result = {}
    for user, item in zip(users[rows].tolist(), items.tolist(), strict=True):
        result.setdefault(user, set()).add(item)
    return result


def rows_of(interactions) -> dict[int, set[int]]:
    users = torch.from_numpy(interactions.users)
    return items_of(users, torch.arange(len(users)), torch.from_numpy(interactions.items))


def test_setup_splits_the_file_and_a_second_call_changes_nothing(data):
    assert (data.num_users, data.num_items) == (40, 30)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [280, 40, 80]
    train = data.train
    data.setup("test")
    assert data.train is train


def test_validation_masks_train_items_and_test_masks_validation_items_too(data):
    train, validation, test = map(rows_of, (data.train, data.validation, data.test))
    for batch in data.val_dataloader():
        assert isinstance(batch, RankingBatch)
        seen = items_of(batch.users, batch.seen_rows, batch.seen_items)
        assert all(seen.get(u, set()) == train.get(u, set()) for u in batch.users.tolist())
        relevant = items_of(batch.users, batch.relevant_rows, batch.relevant_items)
        assert relevant == {u: validation[u] for u in batch.users.tolist()}
    for batch in data.test_dataloader():
        seen = items_of(batch.users, batch.seen_rows, batch.seen_items)
        for u in batch.users.tolist():
            assert seen.get(u, set()) == train.get(u, set()) | validation.get(u, set())
        relevant = items_of(batch.users, batch.relevant_rows, batch.relevant_items)
        assert relevant == {u: test[u] for u in batch.users.tolist()}


def test_the_papers_protocol_leaves_validation_items_in_the_test_ranking(data):
    data.mask_validation_at_test = False
    train = rows_of(data.train)
    for batch in data.test_dataloader():
        seen = items_of(batch.users, batch.seen_rows, batch.seen_items)
        assert all(seen.get(u, set()) == train.get(u, set()) for u in batch.users.tolist())


@pytest.mark.parametrize(
    ("protocol", "given", "masked"),
    [
        ("honest", None, True),
        ("paper", None, False),
        ("lambda_opt", None, True),
        ("honest", False, False),
        ("paper", True, True),
    ],
)
def test_the_protocol_decides_the_masking_unless_the_masking_is_given(
    data, protocol, given, masked
):
    module = RecsysDataModule(
        "filmtrust", path=data.path, protocol=protocol, mask_validation_at_test=given
    )
    module.setup()
    (batch,) = module.test_dataloader()
    seen = module.train.union(module.validation) if masked else module.train
    assert len(batch.seen_items) == np.isin(seen.users, batch.users).sum()
    assert batch.one_by_one is (protocol == "lambda_opt")


def test_the_batch_of_scores_stays_within_the_byte_budget(data):
    module = RecsysDataModule("filmtrust", path=data.path, score_bytes=4 * 30 * 7 + 3)
    module.setup()
    for loader in (module.val_dataloader(), module.test_dataloader()):
        assert 4 < max(len(batch.users) for batch in loader) <= 7
    module.score_bytes = 119
    with pytest.raises(ValueError, match="scores of one user, 120 bytes for 30 items; got 119"):
        module.val_dataloader()
    module.eval_batch_size = 3
    assert max(len(batch.users) for batch in module.val_dataloader()) == 3


def test_users_whom_the_evaluation_skips_are_counted(tmp_path):
    file = tmp_path / "ratings.txt"
    file.write_text(
        "".join(f"{u} {i} 1\n" for u in (1, 2) for i in range(1, 11)) + "3 1 1\n4 2 1\n"
    )
    module = RecsysDataModule("filmtrust", path=str(file), split="per_user")
    module.setup()
    assert module.skipped_users == {"validation": 2, "test": 2}


def test_generated_data_of_any_size_comes_from_one_nested_argument():
    sizes = {"num_users": 50, "num_items": 40, "num_interactions": 400, "popularity": 0.5}
    module = RecsysDataModule(synthetic=sizes, split="per_user")
    module.setup()
    assert (module.num_users, module.num_items) == (50, 40)
    whole = module.train.union(module.validation).union(module.test)
    assert whole == synthetic_interactions(**sizes)
    assert np.bincount(module.train.users).min() >= 1


def test_leaving_the_last_pair_out_needs_a_file_with_times(tmp_path):
    rows = [f"{u}::{i}::3" for u in (1, 2) for i in range(1, 6)]
    timed, untimed = tmp_path / "timed", tmp_path / "untimed"
    timed.write_text("".join(f"{row}::{900 - k}\n" for k, row in enumerate(rows)))
    untimed.write_text("\n".join(rows))
    module = RecsysDataModule("ml_1m", path=str(timed), split="leave_one_out")
    module.setup()
    assert [module.test.items.tolist(), module.validation.items.tolist()] == [[0, 0], [1, 1]]
    with pytest.raises(ValueError, match="needs the times"):
        RecsysDataModule("ml_1m", path=str(untimed), split="leave_one_out").setup()


def test_filters_come_before_the_split(tmp_path):
    file = tmp_path / "ratings.txt"
    rows = [f"{u} {i} {4 if (u + i) % 4 else 2}\n" for u in range(12) for i in range(8)]
    file.write_text("".join(rows) + "99 1 4\n1 99 4\n1 98 1\n")
    module = RecsysDataModule("filmtrust", path=str(file), rating_threshold=3, k_core=5)
    module.setup()
    assert (module.num_users, module.num_items) == (12, 8)
    assert sum(map(len, (module.train, module.validation, module.test))) == 72


@pytest.mark.parametrize("protocol", ["honest", "paper", "lambda_opt"])
def test_a_trainer_and_a_plain_evaluation_agree_under_every_protocol(data, protocol, tmp_path):
    module = RecsysDataModule("filmtrust", path=data.path, protocol=protocol, eval_batch_size=7)
    module.setup()
    model = BPRMF(module.num_users, module.num_items, top_k=[3, "map@5"])
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    (logged,) = trainer.test(model, datamodule=module, verbose=False)
    plain = evaluate(model.score_users, module.test_dataloader(), [3, "map@5"])
    assert logged == pytest.approx({f"test/{name}": value for name, value in plain.items()})


def test_training_and_validation_never_touch_the_test_set(data):
    data.test = None
    assert all(isinstance(batch, TrainBatch) for batch in data.train_dataloader())
    assert all(isinstance(batch, RankingBatch) for batch in data.val_dataloader())


def test_the_synthetic_data_set_needs_no_file_and_does_not_depend_on_the_split_seed():
    first, second = RecsysDataModule(), RecsysDataModule(split_seed=1)
    for module in (first, second):
        module.prepare_data()
        module.setup("fit")
    assert (first.num_users, first.num_items) == (1508, 2071)
    assert first.train != second.train
    union = [m.train.union(m.validation).union(m.test) for m in (first, second)]
    assert union[0] == union[1]


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_part_without_positives_is_refused_when_it_is_asked_for(data, part):
    module = RecsysDataModule(
        "filmtrust",
        path=data.path,
        ratios=[0.8, 0.0, 0.2] if part == "validation" else [0.8, 0.2, 0.0],
    )
    module.setup()
    loader = module.val_dataloader if part == "validation" else module.test_dataloader
    with pytest.raises(ValueError, match=f"the {part} set has no positives"):
        loader()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "netflix"}, "one of synthetic, .*ml_1m.*; got 'netflix'"),
        ({"path": "ratings.txt"}, "reads no file; got path='ratings.txt'"),
        ({"ratios": (0.5, 0.5)}, "three shares"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1"),
        ({"num_negatives": 0}, "num_negatives must be at least 1"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"score_bytes": 0}, "score_bytes must be at least 1"),
        ({"k_core": -1}, "k_core must be at least 0"),
        ({"split": "time"}, "split must be one of random, per_user, leave_one_out; got 'time'"),
        ({"protocol": "fair"}, "protocol must be one of honest, paper, lambda_opt; got 'fair'"),
        (
            {"protocol": "lambda_opt", "mask_validation_at_test": False},
            "validation items cannot compete",
        ),
        ({"dataset": "table"}, "Give data.path=FILE"),
        ({"time_column": "when"}, "describe a table; got dataset='synthetic'"),
        ({"dataset": "ml_1m", "synthetic": {"rank": 3}}, "describes generated data"),
        ({"synthetic": {"users": 3}}, "synthetic knows num_users, .*; got users"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        RecsysDataModule(**arguments)


class Recorder(L.LightningModule):
    """Remembers which users each epoch starts with."""

    def __init__(self, num_users: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(num_users, 1)
        self.first_users: list[list[int]] = []
        self.validated: list[int] = []

    def training_step(self, batch: TrainBatch, batch_idx: int) -> torch.Tensor:
        if batch_idx == 0:
            self.first_users.append(batch.users.tolist())
        return self.table(batch.users).square().mean()

    def validation_step(self, batch: RankingBatch, batch_idx: int) -> None:
        self.validated += batch.users.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_trainer_reshuffles_each_epoch_and_validates_each_user_once(data, tmp_path):
    model = Recorder(data.num_users)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, datamodule=data)
    assert model.first_users[0] != model.first_users[1]
    assert model.validated == 2 * np.unique(data.validation.users).tolist()
    assert isinstance(trainer.train_dataloader.sampler, DistributedSampler)


@pytest.mark.data
def test_filmtrust_splits_into_the_papers_shares(real_file):
    data = RecsysDataModule("filmtrust", path=str(real_file("filmtrust/ratings.txt")))
    data.setup()
    assert [len(p) for p in (data.train, data.validation, data.test)] == [24_846, 3_549, 7_099]
