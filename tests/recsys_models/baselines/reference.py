"""Small data, and lambda's gradient the long way: by autograd through loss, step and loss again."""

from functools import partial

import lightning as L
import torch
from pytorch_optimizer import AdaMod

from recsys_models.baselines.optimizer_steps import ADAM, ADAMOD, AMSGRAD, SGD, Hyper
from recsys_models.data import RecsysDataModule
from recsys_models.losses import bpr_loss
from recsys_models.models import BPRMF

BETAS = (0.9, 0.999, 0.999)
RULES = {"sgd": SGD, "adam": ADAM, "amsgrad": AMSGRAD, "adamod": ADAMOD}
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.5),
    "adam": partial(torch.optim.Adam, lr=0.01, fused=True),
    "amsgrad": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "adamod": partial(AdaMod, lr=0.01, betas=BETAS, weight_decouple=False),
}
HYPERS = {
    "sgd": Hyper(0.5),
    "adam": Hyper(0.01, BETAS[:2], 1e-8),
    "amsgrad": Hyper(0.01, BETAS[:2], 1e-8),
    "adamod": Hyper(0.01, BETAS, 1e-8),
}


def tiny_data(**options):
    synthetic = {"num_users": 20, "num_items": 15, "num_interactions": 130}
    given = {"synthetic": synthetic, "batch_size": 32, "num_negatives": 2} | options
    data = RecsysDataModule(**given)
    data.setup()
    return data


def tiny_model(data, optimizer, dim=3, **options):
    torch.manual_seed(5)
    sizes = data.num_users, data.num_items
    given = {"init_std": 0.5} | options
    return BPRMF(*sizes, dim=dim, optimizer=OPTIMIZERS[optimizer], **given).double()


def fit(model, data, callbacks, *, ckpt_path=None, max_epochs=2, **options):
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        **{
            "max_epochs": max_epochs,
            "accelerator": "cpu",
            "callbacks": callbacks,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        | options
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def batch_penalty(weights, tables, batch):
    """Mean over the batch's pairs of lambda theta^2, pair by pair.

    Args:
        weights: of each table lambda, to be broadcast to the table.
        tables: by name.
    """
    dense = {name: weights[name].expand_as(table) for name, table in tables.items()}
    total, pairs = 0.0, 0
    for user, item, negatives in zip(*(ids.tolist() for ids in batch), strict=True):
        for negative in negatives:
            for name, table in tables.items():
                for row in (user,) if name.startswith("user") else (item, negative):
                    total = total + (dense[name][row] * table[row] ** 2).sum()
            pairs += 1
    return total / pairs


def loss_at(tables, batch):
    """The BPR loss of a batch, written anew."""
    users, items = tables["user_embedding.weight"], tables["item_embedding.weight"]
    both = torch.cat([batch.items[:, None], batch.negatives], dim=1)
    scores = torch.einsum("bd,bnd->bn", users[batch.users], items[both])
    if "item_bias.weight" in tables:
        scores = scores + tables["item_bias.weight"][both, 0]
    return bpr_loss(scores[:, :1], scores[:, 1:])


def optimizer_state(optimizer, table):
    """An optimizer's state of one table as our steps take it."""
    state = {k: v.clone() for k, v in optimizer.state[table].items() if torch.is_tensor(v)}
    if "step" in optimizer.param_groups[0]:
        state["step"] = torch.tensor(optimizer.param_groups[0]["step"])
    return state


def validation_loss_ahead(name, model, optimizer, weights, train_batch, validation_batch):
    """L_V(theta'), theta' the weights after a step on loss and penalty of a batch.

    Every table is stepped whole, and autograd can follow lambda through all of it.

    Args:
        name: of the optimizer.
        weights: of each table its lambda.
    """
    tables = dict(model.named_parameters())
    loss = loss_at(tables, train_batch) + batch_penalty(weights, tables, train_batch)
    grads = torch.autograd.grad(loss, list(tables.values()), create_graph=True)
    ahead = {}
    for (key, table), grad in zip(tables.items(), grads, strict=True):
        state = optimizer_state(optimizer, table)
        ahead[key], _ = RULES[name].step(table.detach(), grad, state, HYPERS[name])
    return loss_at(ahead, validation_batch)
