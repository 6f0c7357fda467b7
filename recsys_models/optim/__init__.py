"""Optimizers that visit only the rows of a table that a batch looks up."""

from recsys_models.optim.adam import RowSparseAdam
from recsys_models.optim.row_sparse import RowSparseOptimizer
from recsys_models.optim.sgd import RowSparseSGD

__all__ = ["RowSparseAdam", "RowSparseOptimizer", "RowSparseSGD"]
