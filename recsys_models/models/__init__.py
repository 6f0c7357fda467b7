"""Recommenders, one file each."""

from recsys_models.models.base import RecommenderModule
from recsys_models.models.bpr_mf import BPRMF

__all__ = ["BPRMF", "RecommenderModule"]
