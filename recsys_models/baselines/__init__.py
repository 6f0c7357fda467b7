"""References without gradient training, judged by the same ranking evaluation as the models."""

from recsys_models.baselines.ease import EASE
from recsys_models.baselines.most_pop import MostPop

__all__ = ["EASE", "MostPop"]
