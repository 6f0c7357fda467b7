"""DE-Opt for PyTorch Lightning: learn lr and weight decay, layer by layer, during one run."""

from deopt_lightning.callback import DEOptCallback
from deopt_lightning.differential_evolution import DifferentialEvolution
from deopt_lightning.layers import group_layers
from deopt_lightning.search_space import SearchSpace

__all__ = ["DEOptCallback", "DifferentialEvolution", "SearchSpace", "group_layers"]
