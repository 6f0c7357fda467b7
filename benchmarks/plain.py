"""Losses, scores and NDCG as one writes them at first, to compare the package with."""

import random

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    dropout,
    leaky_relu,
    linear,
    logsigmoid,
    relu,
)
from torch.utils.data import Dataset

from recsys_models.data import Interactions, RankingBatch, TrainBatch
from recsys_models.models import BPRMF, LRML, NGCF, NeuMF

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
    return _neumf_of_pairs(model, users, items).view(-1, model.num_items)


def _neumf_of_pairs(model: NeuMF, users: Tensor, items: Tensor) -> Tensor:
    g = model.gmf.users(users) * model.gmf.items(items)
    z = torch.cat([model.mlp.users(users), model.mlp.items(items)], dim=1)
    for layer in model.dense:
        z = layer(z).relu()
    return linear(torch.cat([g, z], dim=1), model.head.weight, model.head.bias).squeeze(1)


def _lrml(model: LRML, users: Tensor) -> Tensor:
    return -_lrml_distances(
        model, model.user_embedding(users).unsqueeze(1), model.item_embedding.weight
    )


def _lrml_distances(model: LRML, p: Tensor, q: Tensor) -> Tensor:
    relation = linear(p * q, model.keys).softmax(-1) @ model.memories
    return (p + relation - q).square().sum(-1)


def loss(model: BPRMF | NeuMF | LRML, batch: TrainBatch) -> Tensor:
    """The model's training loss, by look-ups of embeddings."""
    if isinstance(model, NeuMF):
        items = torch.cat([batch.items.unsqueeze(1), batch.negatives], dim=1)
        users = batch.users.unsqueeze(1).expand_as(items)
        labels = torch.zeros(items.shape)
        labels[:, 0] = 1
        logits = _neumf_of_pairs(model, users.flatten(), items.flatten())
        return binary_cross_entropy_with_logits(logits, labels.flatten())
    p = model.user_embedding(batch.users)
    q, other = model.item_embedding(batch.items), model.item_embedding(batch.negatives)
    if isinstance(model, LRML):
        nearer = _lrml_distances(model, p, q).unsqueeze(1)
        return relu(model.margin + nearer - _lrml_distances(model, p.unsqueeze(1), other)).mean()
    y = (p * q).sum(1) + model.item_bias(batch.items).squeeze(1)
    rivals = (p.unsqueeze(1) * other).sum(2) + model.item_bias(batch.negatives).squeeze(2)
    return -logsigmoid(y.unsqueeze(1) - rivals).mean()


def ngcf_loss(model: NGCF, coo: Tensor, batch: TrainBatch) -> Tensor:
    """NGCF's training loss by torch's sparse product; coo is its matrix."""
    layer = torch.cat([model.user_embedding.weight, model.item_embedding.weight])
    layers = [layer]
    for weights in model.layers:
        side = torch.sparse.mm(coo, layer)
        layer = leaky_relu(weights.w1(side + layer) + weights.w2(side * layer), 0.2)
        layer = dropout(layer, model.message_dropout, model.training)
        layers.append(layer)
    users, items = torch.cat(layers, dim=1).split([model.num_users, model.num_items])
    p, q, other = users[batch.users], items[batch.items], items[batch.negatives]
    return -logsigmoid((p * q).sum(1, keepdim=True) - (p.unsqueeze(1) * other).sum(2)).mean()


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


class Pairs(Dataset):
    """Training pairs one by one, each with negatives that are drawn until the user has none."""

    def __init__(self, train: Interactions, num_negatives: int) -> None:
        self._pairs = list(zip(train.users.tolist(), train.items.tolist(), strict=True))
        self._known = set(self._pairs)
        self._num_items, self._num_negatives = train.num_items, num_negatives

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self._pairs)

    def __getitem__(self, index: int) -> TrainBatch:
        """A batch's row, to be collated by torch."""
        user, item = self._pairs[index]
        return TrainBatch(
            user, item, torch.tensor([self._draw(user) for _ in range(self._num_negatives)])
        )

    def _draw(self, user: int) -> int:
        while (user, item := random.randrange(self._num_items)) in self._known:
            pass
        return item
