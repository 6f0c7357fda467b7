"""What the models and DE-Opt are compared with: references and tuners from the literature.

The references have no gradient training and are judged by the same ranking evaluation as the
models. The tuners are callbacks that learn an L2 penalty while BPR-MF trains.
"""

from recsys_models.baselines.ease import EASE, MOST_ITEMS
from recsys_models.baselines.lambda_opt import LambdaOpt
from recsys_models.baselines.most_pop import MostPop
from recsys_models.baselines.sgda import SGDA

__all__ = ["EASE", "MOST_ITEMS", "SGDA", "LambdaOpt", "MostPop"]
