"""Ranking metrics over the full item catalogue."""

from recsys_models.metrics.products import Products
from recsys_models.metrics.ranking import RankingMetrics, evaluate
from recsys_models.metrics.ranks import Scorer, best_items

__all__ = ["Products", "RankingMetrics", "Scorer", "best_items", "evaluate"]
