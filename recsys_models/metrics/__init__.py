"""Ranking metrics over the full item catalogue."""

from recsys_models.metrics.ranking import RankingMetrics, evaluate

__all__ = ["RankingMetrics", "evaluate"]
