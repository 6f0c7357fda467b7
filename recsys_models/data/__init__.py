"""Interactions between users and items: reading, generating, splitting and batching them."""

from recsys_models.data.batches import RankingBatch, TrainBatch
from recsys_models.data.datamodule import RecsysDataModule
from recsys_models.data.interactions import Interactions
from recsys_models.data.negatives import NegativeSampler
from recsys_models.data.readers import Ratings, read_ratings
from recsys_models.data.splits import random_split
from recsys_models.data.synthetic import synthetic_interactions

__all__ = [
    "Interactions",
    "NegativeSampler",
    "RankingBatch",
    "Ratings",
    "RecsysDataModule",
    "TrainBatch",
    "random_split",
    "read_ratings",
    "synthetic_interactions",
]
