"""Ranking metrics over the full item catalogue."""

from recsys_models.metrics.products import Products
from recsys_models.metrics.ranking import RankingMetrics, evaluate
from recsys_models.metrics.ranks import Scorer

__all__ = ["Products", "RankingMetrics", "Scorer", "evaluate"]
