"""Functions in C for what torch does slowly on a CPU, compiled when first needed.

Each has torch operations beside its use that take its place where there is no C compiler, on other
devices and for other types, and that tests compare it with.
"""

from recsys_models.native.library import column_parts, fits
from recsys_models.native.ranks import product_ranks, ranks
from recsys_models.native.relations import squared_distances
from recsys_models.native.rows import (
    can_multiply_pairs,
    pair_gradients,
    pair_products,
    row_gradients,
)
from recsys_models.native.sparse import PART_WIDTH, sparse_product
from recsys_models.native.towers import add_towers

__all__ = [
    "PART_WIDTH",
    "add_towers",
    "can_multiply_pairs",
    "column_parts",
    "fits",
    "pair_gradients",
    "pair_products",
    "product_ranks",
    "ranks",
    "row_gradients",
    "sparse_product",
    "squared_distances",
]
