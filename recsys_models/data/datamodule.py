"""The Lightning data module: reads or generates interactions, splits them and serves batches."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from recsys_models.data.batches import RankingBatch, TrainBatch
from recsys_models.data.download import SOURCES, download_ratings, ratings_path
from recsys_models.data.interactions import Interactions
from recsys_models.data.loaders import ranking_loader, train_loader, users_within
from recsys_models.data.ratings import IdArray, Ratings, at_least, k_core
from recsys_models.data.readers import read_ratings
from recsys_models.data.splits import (
    SPLITS,
    Split,
    check_ratios,
    leave_one_out_split,
    per_user_split,
    random_split,
)
from recsys_models.data.synthetic import synthetic_interactions
from recsys_models.data.table import Columns, read_table

DATASETS = ("synthetic", "table", *SOURCES)
PROTOCOLS = ("honest", "paper", "lambda_opt")


class RecsysDataModule(L.LightningDataModule):
    """Implicit feedback, split in three, for training on pairs and for ranking all items.

    A checkpoint keeps the arguments, for ``load_from_checkpoint``, and which pairs were trained on:
    nothing goes on from it, nor is tested, with others.

    Attributes, all there after `setup`:
        train, validation, test: disjoint `Interactions` over the same users and items.
        num_users, num_items: sizes of the whole data set.
        user_ids, item_ids: id in the rating file of each user and item; 0, 1, 2, ... if generated.

    Args:
        dataset: "synthetic" (generated, no file needed), "table" (your own data), "filmtrust",
            "ml_100k", "ml_1m", "ml_10m" or "eachmovie".
        path: the rating file or table, also packed as .gz, .bz2, .xz or in a .zip file. When None,
            a published file is looked up in `data_dir`.
        data_dir: folder that holds filmtrust/ratings.txt, ml-100k/u.data, ml-1m/ratings.dat,
            ml-10m/ratings.dat or eachmovie/Vote.txt. When None, the environment variable
            RECSYS_DATA names it, else it is ~/.cache/recsys_models.
        download: fetch the file from its publisher when it is not in the folder.
        ratios: shares of train, validation and test pairs; not used by "leave_one_out".
        split_seed: of the split; the generated data set does not depend on it.
        batch_size: training pairs per batch and process.
        eval_batch_size: users per ranking batch. None takes as many as `score_bytes` allows.
        num_negatives: negatives drawn for each training pair, anew in each epoch.
        mask_validation_at_test: leave validation items out of the ranking at test time. The
            paper keeps them in, where they take the places of test items. None follows
            `protocol`; a value overrules it.
        num_workers: worker processes that draw training batches. One batch takes a fraction of
            a millisecond, so 0 is usually fastest.
        split: "random" deals all pairs together, "per_user" each user's, and "leave_one_out" holds
            out each user's last pair for test and the one before it for validation.
        protocol: who competes for the places of a ranking. "honest": at test all items but the
            user's training and validation items. "paper": validation items compete too.
            "lambda_opt": each held-out item alone against the items the user never had, ties in
            its favour, and means over held-out items instead of users; during validation, test
            items count as never had.
        score_bytes: bound on the bytes of one batch of scores, of float32, one per user and item.
            The default fits into a CPU's cache, which halves the time that ranking takes. Where
            many scores tie, ranking takes up to twice as much beside it.
        rating_threshold: keep only ratings of at least this value.
        k_core: keep the largest part in which every user and item has at least so many pairs.
        user_column: of a table: name of the column of user ids.
        item_column: of a table: name of the column of item ids.
        rating_column: of a table: name of the column of ratings, if it has one.
        time_column: of a table: name of the column of times, if it has one.
        separator: of a text table: character between the fields. None goes by the file's name.
        synthetic: arguments of `synthetic_interactions`, for example `{"num_users": 500}`.
    """

    train: Interactions
    validation: Interactions
    test: Interactions
    num_users: int
    num_items: int
    user_ids: IdArray
    item_ids: IdArray

    def __init__(
        self,
        dataset: str = "synthetic",
        path: str | None = None,
        data_dir: str | None = None,
        download: bool = False,
        ratios: tuple[float, float, float] = (0.7, 0.1, 0.2),
        split_seed: int = 0,
        batch_size: int = 1024,
        eval_batch_size: int | None = None,
        num_negatives: int = 1,
        mask_validation_at_test: bool | None = None,
        num_workers: int = 0,
        split: Literal["random", "per_user", "leave_one_out"] = "random",
        protocol: Literal["honest", "paper", "lambda_opt"] = "honest",
        score_bytes: int = 8 * 2**20,
        rating_threshold: float | None = None,
        k_core: int = 0,
        user_column: str = "user",
        item_column: str = "item",
        rating_column: str | None = None,
        time_column: str | None = None,
        separator: str | None = None,
        synthetic: Mapping[str, int | float] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        _check_one_of("dataset", dataset, DATASETS)
        _check_one_of("split", split, SPLITS)
        _check_one_of("protocol", protocol, PROTOCOLS)
        if path is not None and dataset == "synthetic":
            raise ValueError(
                f"the synthetic data set is generated and reads no file; got path={path!r}. "
                f"Name the format of the file with dataset, one of table, {', '.join(SOURCES)}."
            )
        if path is None and dataset == "table":
            raise ValueError("a table is read from a file; got path=None. Give data.path=FILE.")
        if dataset != "table" and (rating_column or time_column or separator):
            raise ValueError(
                "rating_column, time_column and separator describe a table; got "
                f"dataset={dataset!r}. Use dataset='table', or leave them out."
            )
        if protocol == "lambda_opt" and mask_validation_at_test is False:
            raise ValueError(
                "protocol='lambda_opt' ranks among items the user never had, so validation items "
                "cannot compete at test; got mask_validation_at_test=False. Leave it out."
            )
        _check_at_least("batch_size", batch_size, 1)
        _check_at_least("eval_batch_size", 1 if eval_batch_size is None else eval_batch_size, 1)
        _check_at_least("num_negatives", num_negatives, 1)
        _check_at_least("num_workers", num_workers, 0)
        _check_at_least("score_bytes", score_bytes, 1)
        _check_at_least("k_core", k_core, 0)
        if mask_validation_at_test is None:
            mask_validation_at_test = protocol != "paper"
        self.dataset = dataset
        self.path = path
        self.data_dir = data_dir
        self.download = download
        self.ratios = check_ratios(ratios)
        self.split_seed = split_seed
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_negatives = num_negatives
        self.mask_validation_at_test = mask_validation_at_test
        self.num_workers = num_workers
        self.split = split
        self.protocol = protocol
        self.score_bytes = score_bytes
        self.rating_threshold = rating_threshold
        self.k_core = k_core
        self.columns = Columns(user_column, item_column, rating_column, time_column)
        self.separator = separator
        self.synthetic = _check_synthetic(dataset, dict(synthetic or {}))
        self._is_set_up = False
        self._pairs_of_checkpoint: str | None = None

    def __getattr__(self, name: str) -> Any:
        """Asked for what is not there: of the data, nothing is before `setup`."""
        read = (*RecsysDataModule.__annotations__, "fingerprint", "skipped_users", "_counts")
        if name in read:
            raise AttributeError(
                f"{name.strip('_')} of the data are known when it has been read. Call "
                "prepare_data() and setup() first; a Trainer does so itself."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def prepare_data(self) -> None:
        """Download the rating file if asked to and if it is not there yet."""
        if self.download and self.path is None and self.dataset in SOURCES:
            download_ratings(self.dataset, self._file())

    def setup(self, stage: str | None = None) -> None:
        """Read or generate the interactions and split them; a second call does nothing."""
        if self._is_set_up:
            return
        ratings = self.load()
        self.user_ids, self.item_ids = ratings.user_ids, ratings.item_ids
        self.num_users = ratings.interactions.num_users
        self.num_items = ratings.interactions.num_items
        parts = self.divide(ratings)
        self.train, self.validation, self.test = parts
        self._counts = dict(zip(("train", "validation", "test"), map(len, parts), strict=True))
        self._is_set_up = True
        self._check_pairs()

    def load(self) -> Ratings:
        """Read or generate the whole data set and filter it."""
        if self.dataset == "synthetic":
            interactions = synthetic_interactions(**self.synthetic)  # type: ignore[arg-type]
            users, items = np.arange(interactions.num_users), np.arange(interactions.num_items)
            ratings = Ratings(interactions, None, users, items)
        elif self.dataset == "table":
            ratings = read_table(self._file(), self.columns, self.separator)
        else:
            ratings = read_ratings(self._file(), self.dataset)
        if self.rating_threshold is not None:
            ratings = at_least(ratings, self.rating_threshold)
        return k_core(ratings, self.k_core) if self.k_core else ratings

    def divide(self, ratings: Ratings) -> Split:
        """Split a data set as the arguments say."""
        if self.split == "leave_one_out":
            return leave_one_out_split(ratings.interactions, ratings.times)
        divide = per_user_split if self.split == "per_user" else random_split
        return divide(ratings.interactions, self.ratios, self.split_seed)

    def check_held_out(self) -> None:
        """Raise where validation or test have nothing to rank; the test set itself is not read."""
        self._check_positives("validation")
        self._check_positives("test")

    @cached_property
    def fingerprint(self) -> str:
        """Tells training pairs from others, and their users and items; there after `setup`."""
        digest = sha256()
        for part in (self.user_ids, self.item_ids, self.train.users, self.train.items):
            digest.update(part.tobytes())
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of the data: where the file lies, and which pairs were trained."""
        file = None if self.dataset == "synthetic" else str(self._file().absolute())
        return {"file": file, "pairs": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of other pairs, now or as soon as this data is read."""
        self._pairs_of_checkpoint = state_dict["pairs"]
        if self._is_set_up:
            self._check_pairs()

    @property
    def skipped_users(self) -> dict[str, int]:
        """Users that validation and test leave out, for want of a held-out pair."""
        return {
            "validation": self.num_users - len(np.unique(self.validation.users)),
            "test": self.num_users - len(np.unique(self.test.users)),
        }

    def train_dataloader(self) -> DataLoader[TrainBatch]:
        """Every training pair once per epoch, in random order, with fresh negatives."""
        options = self.batch_size, self.num_negatives, self.num_workers
        return train_loader(self.train, *options, self.user_ids)

    def val_dataloader(self) -> DataLoader[RankingBatch]:
        """Users with validation positives; their training items are to be masked."""
        self._check_positives("validation")
        return self._ranking_loader(self.validation, self.train)

    def test_dataloader(self) -> DataLoader[RankingBatch]:
        """Users with test positives; their training (and validation) items are to be masked."""
        self._check_positives("test")
        seen = self.train.union(self.validation) if self.mask_validation_at_test else self.train
        return self._ranking_loader(self.test, seen)

    def _ranking_loader(
        self, relevant: Interactions, seen: Interactions
    ) -> DataLoader[RankingBatch]:
        users = self.eval_batch_size or users_within(self.score_bytes, self.num_items)
        return ranking_loader(relevant, seen, users, one_by_one=self.protocol == "lambda_opt")

    def _file(self) -> Path:
        if self.path:
            return Path(self.path).expanduser()
        return ratings_path(self.dataset, self.data_dir)

    def _check_pairs(self) -> None:
        saved = self._pairs_of_checkpoint
        if saved is not None and saved != self.fingerprint:
            raise ValueError(
                f"the checkpoint was trained on other pairs than the {len(self.train)} training "
                f"pairs of {self.num_users} users and {self.num_items} items here, among which may "
                "be its validation and test pairs. Use the file, filters, split, ratios and "
                "split_seed that it was trained with, or train anew."
            )

    def _check_positives(self, part: str) -> None:
        if not self._counts[part]:
            rule, remedy = (
                ("split is leave_one_out", "It needs users with three pairs or more.")
                if self.split == "leave_one_out"
                else (f"ratios are {list(self.ratios)}", f"Give {part} a larger share.")
            )
            raise ValueError(
                f"the {part} set has no positives, so there is nothing to rank; {rule} "
                f"of {sum(self._counts.values())} pairs. {remedy}"
            )


def _check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}.")


def _check_synthetic(dataset: str, given: dict[str, int | float]) -> dict[str, int | float]:
    if given and dataset != "synthetic":
        raise ValueError(
            f"synthetic describes generated data; got it with dataset={dataset!r}. Leave it out."
        )
    known = inspect.signature(synthetic_interactions).parameters
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"synthetic knows {', '.join(known)}; got {', '.join(unknown)}.")
    return given


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}.")
