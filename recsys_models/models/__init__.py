"""Recommenders, one file each."""

from recsys_models.models.base import RecommenderModule
from recsys_models.models.bpr_mf import BPRMF
from recsys_models.models.lightgcn import LightGCN
from recsys_models.models.lrml import LRML
from recsys_models.models.neumf import NeuMF
from recsys_models.models.ngcf import NGCF

__all__ = ["BPRMF", "LRML", "NGCF", "LightGCN", "NeuMF", "RecommenderModule"]
