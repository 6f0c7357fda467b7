"""The Lightning data module: reads or generates interactions, splits them and serves batches."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from recsys_models.data.batches import RankingBatch, TrainBatch
from recsys_models.data.download import SOURCES, download_ratings, ratings_path
from recsys_models.data.interactions import IntArray, Interactions
from recsys_models.data.loaders import ranking_loader, train_loader
from recsys_models.data.readers import read_ratings
from recsys_models.data.splits import check_ratios, random_split
from recsys_models.data.synthetic import synthetic_interactions

DATASETS = ("synthetic", *SOURCES)


class RecsysDataModule(L.LightningDataModule):
    """Implicit feedback, split at random, for training on pairs and for ranking all items.

    Attributes, all there after `setup`:
        train, validation, test: disjoint `Interactions` over the same users and items.
        num_users, num_items: sizes of the whole data set.
        user_ids, item_ids: id in the rating file of each user and item; 0, 1, 2, ... if generated.

    Args:
        dataset: "synthetic" (generated, no file needed), "filmtrust" or "ml_1m".
        path: the rating file. When None it is looked up in `data_dir`.
        data_dir: folder that holds filmtrust/ratings.txt or ml-1m/ratings.dat. When None, the
            environment variable RECSYS_DATA names it, else it is ~/.cache/recsys_models.
        download: fetch the file from its publisher when it is not in the folder.
        ratios: shares of train, validation and test pairs.
        split_seed: of the split; the generated data set does not depend on it.
        batch_size: training pairs per batch and process.
        eval_batch_size: users per ranking batch.
        num_negatives: negatives drawn for each training pair, anew in each epoch.
        mask_validation_at_test: leave validation items out of the ranking at test time. The
            paper keeps them in, where they take the places of test items.
        num_workers: worker processes that draw training batches. One batch takes a fraction of
            a millisecond, so 0 is usually fastest.
    """

    train: Interactions
    validation: Interactions
    test: Interactions
    num_users: int
    num_items: int
    user_ids: IntArray
    item_ids: IntArray

    def __init__(
        self,
        dataset: str = "synthetic",
        path: str | None = None,
        data_dir: str | None = None,
        download: bool = False,
        ratios: tuple[float, float, float] = (0.7, 0.1, 0.2),
        split_seed: int = 0,
        batch_size: int = 1024,
        eval_batch_size: int = 1024,
        num_negatives: int = 1,
        mask_validation_at_test: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if dataset not in DATASETS:
            raise ValueError(f"dataset must be one of {', '.join(DATASETS)}; got {dataset!r}.")
        if path is not None and dataset == "synthetic":
            raise ValueError(
                f"the synthetic data set is generated and reads no file; got path={path!r}. "
                f"Name the format of the file with dataset, one of {', '.join(SOURCES)}."
            )
        _check_at_least("batch_size", batch_size, 1)
        _check_at_least("eval_batch_size", eval_batch_size, 1)
        _check_at_least("num_negatives", num_negatives, 1)
        _check_at_least("num_workers", num_workers, 0)
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
        self._is_set_up = False

    def prepare_data(self) -> None:
        """Download the rating file if asked to and if it is not there yet."""
        if self.download and self.path is None and self.dataset in SOURCES:
            download_ratings(self.dataset, self._file())

    def setup(self, stage: str | None = None) -> None:
        """Read or generate the interactions and split them; a second call does nothing."""
        if self._is_set_up:
            return
        if self.dataset == "synthetic":
            interactions = synthetic_interactions()
            self.user_ids = np.arange(interactions.num_users)
            self.item_ids = np.arange(interactions.num_items)
        else:
            ratings = read_ratings(self._file(), self.dataset)
            interactions = ratings.interactions
            self.user_ids, self.item_ids = ratings.user_ids, ratings.item_ids
        self.num_users, self.num_items = interactions.num_users, interactions.num_items
        self.train, self.validation, self.test = random_split(
            interactions, self.ratios, self.split_seed
        )
        self._is_set_up = True

    def train_dataloader(self) -> DataLoader[TrainBatch]:
        """Every training pair once per epoch, in random order, with fresh negatives."""
        return train_loader(self.train, self.batch_size, self.num_negatives, self.num_workers)

    def val_dataloader(self) -> DataLoader[RankingBatch]:
        """Users with validation positives; their training items are to be masked."""
        self._check_positives("validation", self.validation)
        return ranking_loader(self.validation, self.train, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[RankingBatch]:
        """Users with test positives; their training (and validation) items are to be masked."""
        self._check_positives("test", self.test)
        seen = self.train.union(self.validation) if self.mask_validation_at_test else self.train
        return ranking_loader(self.test, seen, self.eval_batch_size)

    def _file(self) -> Path:
        return Path(self.path) if self.path else ratings_path(self.dataset, self.data_dir)

    def _check_positives(self, part: str, interactions: Interactions) -> None:
        if not len(interactions):
            raise ValueError(
                f"the {part} set has no positives, so there is nothing to rank; ratios are "
                f"{list(self.ratios)} of {len(self.train) + len(self.validation) + len(self.test)} "
                f"pairs. Give {part} a larger share."
            )


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}.")
