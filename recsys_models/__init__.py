"""Recommender systems for PyTorch Lightning, with full-ranking evaluation."""
