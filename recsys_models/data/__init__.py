"""Interactions between users and items: reading, generating, splitting and batching them.

What needs torch is imported when it is first asked for: reading a file takes less time and memory
than importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from recsys_models.data.interactions import Interactions
from recsys_models.data.ratings import Ratings, at_least, k_core
from recsys_models.data.readers import read_ratings
from recsys_models.data.splits import leave_one_out_split, per_user_split, random_split
from recsys_models.data.statistics import Statistics, describe
from recsys_models.data.synthetic import synthetic_interactions
from recsys_models.data.table import Columns, read_table

if TYPE_CHECKING:
    from recsys_models.data.batches import RankingBatch, TrainBatch
    from recsys_models.data.datamodule import RecsysDataModule
    from recsys_models.data.negatives import NegativeSampler

_NEED_TORCH = {
    "NegativeSampler": "negatives",
    "RankingBatch": "batches",
    "RecsysDataModule": "datamodule",
    "TrainBatch": "batches",
}

__all__ = [
    "Columns",
    "Interactions",
    "NegativeSampler",
    "RankingBatch",
    "Ratings",
    "RecsysDataModule",
    "Statistics",
    "TrainBatch",
    "at_least",
    "describe",
    "k_core",
    "leave_one_out_split",
    "per_user_split",
    "random_split",
    "read_ratings",
    "read_table",
    "synthetic_interactions",
]


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        return getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
