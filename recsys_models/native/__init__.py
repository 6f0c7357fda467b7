"""Functions in C for what torch does slowly on a CPU, compiled when first needed.

Each has torch operations beside its use that take its place where there is no C compiler, on other
devices and for other types, and that tests compare it with.
"""

from recsys_models.native.library import column_parts, fits
from recsys_models.native.ranks import LaidItems, laid_items, product_ranks, ranks
from recsys_models.native.relations import squared_distances
from recsys_models.native.row_steps import adam_rows, caught_up_rows, momentum_rows
from recsys_models.native.rows import (
    add_rows,
    can_multiply_pairs,
    pair_gradients,
    pair_products,
)
from recsys_models.native.sparse import PART_WIDTH, sparse_product
from recsys_models.native.towers import add_towers

__all__ = [
    "PART_WIDTH",
    "LaidItems",
    "adam_rows",
    "add_rows",
    "add_towers",
    "can_multiply_pairs",
    "caught_up_rows",
    "column_parts",
    "fits",
    "momentum_rows",
    "pair_gradients",
    "pair_products",
    "laid_items",
    "product_ranks",
    "ranks",
    "sparse_product",
    "squared_distances",
]
