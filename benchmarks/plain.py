"""Scores and NDCG as one writes them at first, to compare the package with."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from recsys_models.data import RankingBatch
from recsys_models.models import BPRMF, LRML, NeuMF

USERS_AT_A_TIME = 8  # of networks that look at every pair of a user and an item


def scores(model: BPRMF | NeuMF | LRML, users: Tensor, at_a_time: int = USERS_AT_A_TIME) -> Tensor:
    """All items' scores, shape (B, I), with nothing factorised."""
    if isinstance(model, BPRMF):
        return (
            model.user_embedding(users) @ model.item_embedding.weight.T + model.item_bias.weight.T
        )
    one_by_one = _neumf if isinstance(model, NeuMF) else _lrml
    return torch.cat([one_by_one(model, chunk) for chunk in users.split(at_a_time)])


def _neumf(model: NeuMF, users: Tensor) -> Tensor:
    items = torch.arange(model.num_items).repeat(len(users))
    users = users.repeat_interleave(model.num_items)
    g = model.gmf.users(users) * model.gmf.items(items)
    z = torch.cat([model.mlp.users(users), model.mlp.items(items)], dim=1)
    for layer in model.dense:
        z = layer(z).relu()
    logits = linear(torch.cat([g, z], dim=1), model.head.weight, model.head.bias)
    return logits.view(-1, model.num_items)


def _lrml(model: LRML, users: Tensor) -> Tensor:
    p, q = model.user_embedding(users).unsqueeze(1), model.item_embedding.weight
    relation = linear(p * q, model.keys).softmax(-1) @ model.memories
    return -(p + relation - q).square().sum(-1)


def ndcg(model: BPRMF | NeuMF | LRML, batches: list[RankingBatch], k: int = 10) -> float:
    """Mean NDCG@K over users: mask, topk, gather."""
    total, users = 0.0, 0
    gains = 1 / torch.log2(torch.arange(k) + 2.0)
    for batch in batches:
        found = scores(model, batch.users)
        found[batch.seen_rows, batch.seen_items] = -torch.inf
        relevant = torch.zeros_like(found)
        relevant[batch.relevant_rows, batch.relevant_items] = 1.0
        dcg = relevant.gather(1, found.topk(k, dim=1).indices) @ gains
        ideal = gains.cumsum(0)[relevant.sum(1).long().clamp(max=k) - 1]
        total += float((dcg / ideal).sum())
        users += len(batch.users)
    return total / users
