"""Tuners that need no knowledge of the model: sweeps over lr and weight decay, and their space."""

from recsys_models.tuning.optuna_search import OptunaSearch
from recsys_models.tuning.population import PopulationTraining
from recsys_models.tuning.schedule_free import ScheduleFreeMode
from recsys_models.tuning.settings import Outcome, Setting, Space, Sweep, bounds_around, choose
from recsys_models.tuning.sweeps import GridSearch, RandomSearch

__all__ = [
    "GridSearch",
    "OptunaSearch",
    "Outcome",
    "PopulationTraining",
    "RandomSearch",
    "ScheduleFreeMode",
    "Setting",
    "Space",
    "Sweep",
    "bounds_around",
    "choose",
]
