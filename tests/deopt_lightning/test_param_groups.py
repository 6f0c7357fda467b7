from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from deopt_lightning import DEOptCallback
from deopt_lightning.checkpoint_layout import optimizer_to_split_layout, optimizer_to_user_layout
from deopt_lightning.layers import group_layers
from deopt_lightning.lr_schedule import effective_lr
from deopt_lightning.param_groups import split_param_groups, write_hyperparameters
from tests.tiny import SilentDryRun, TinyModel, fit, same_state


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def split(net: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    return split_param_groups(optimizer, net, group_layers(net))


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    net(x).square().sum().backward()
    optimizer.step()


def by_name(net: nn.Module, *wanted: str) -> list[nn.Parameter]:
    return [p for name, p in net.named_parameters() if any(w in name for w in wanted)]


def test_every_parameter_lands_in_one_group_of_its_layer() -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    groups = split(net, optimizer)
    assert [group["name"] for group in optimizer.param_groups] == ["0", "2"]
    assert groups.layer_names == ("0", "2")
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert held == [id(p) for p in net.parameters()]
    assert all(group["momentum"] == 0.9 and group["nesterov"] for group in optimizer.param_groups)


def test_users_decay_and_no_decay_groups_are_split_further_and_kept_apart() -> None:
    net = make_net()
    optimizer = torch.optim.AdamW(
        [
            {"params": by_name(net, "weight"), "weight_decay": 0.1, "name": "decay"},
            {"params": by_name(net, "bias"), "weight_decay": 0.0, "lr": 2e-3},
        ],
        lr=1e-3,
    )
    groups = split(net, optimizer)
    assert [g["name"] for g in optimizer.param_groups] == ["decay/0", "decay/2", "0/1", "2/1"]
    write_hyperparameters(optimizer, groups, np.array([0.01, 0.03]), np.array([0.5, 0.7]))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0.7, 0.0, 0.0]
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.01, 0.03, 0.02, 0.06])


def test_users_names_of_groups_stay() -> None:
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)])
    net[4].requires_grad_(False)
    user_groups = [
        {"params": net[:1].parameters(), "name": "body"},
        {"params": net[1:2].parameters()},
        {"params": net[2:].parameters(), "name": "head"},
    ]
    optimizer = torch.optim.SGD(user_groups, lr=0.1)
    split(net, optimizer)
    names = [group["name"] for group in optimizer.param_groups]
    assert names == ["body", "1", "head/2", "head/3", "head/frozen"]


def test_names_of_groups_are_unique_also_where_the_users_are_not() -> None:
    net = make_net()
    user_groups = [
        {"params": net[0].parameters(), "name": "2"},  # that of the other layer
        {"params": net[2].parameters()},
    ]
    optimizer = torch.optim.SGD(user_groups, lr=0.1)
    split(net, optimizer)
    assert [group["name"] for group in optimizer.param_groups] == ["2/0", "2/1"]


@pytest.mark.parametrize("no_decay_first", [True, False])
def test_own_weight_decay_is_that_of_the_weights_in_any_order_of_groups(
    no_decay_first: bool,
) -> None:
    net = make_net()
    user_groups = [
        {"params": by_name(net, "bias"), "weight_decay": 0.0},
        {"params": by_name(net, "weight"), "weight_decay": 0.1},
    ]
    optimizer = torch.optim.AdamW(user_groups if no_decay_first else user_groups[::-1], lr=1e-3)
    groups = split(net, optimizer)
    assert groups.base_weight_decay.tolist() == [0.1, 0.1]
    write_hyperparameters(optimizer, groups, groups.base_lr, groups.base_weight_decay)
    decays = {len(g["params"][0].shape): g["weight_decay"] for g in optimizer.param_groups}
    assert decays == {1: 0.0, 2: 0.1}


@pytest.mark.parametrize("scheduled", [True, False])
@pytest.mark.parametrize("biases_first", [True, False])
def test_groups_of_one_layer_keep_the_ratio_of_their_lrs(
    biases_first: bool, scheduled: bool
) -> None:
    net = make_net()
    user_groups = [
        {"params": by_name(net, "bias"), "lr": 0.2},
        {"params": by_name(net, "weight")},
    ]
    optimizer = torch.optim.SGD(user_groups if biases_first else user_groups[::-1], lr=0.1)
    groups = split_param_groups(optimizer, net, group_layers(net), scheduled=scheduled)
    own = groups.base_lr
    assert own.tolist() == [0.2 if biases_first else 0.1] * 2
    write_hyperparameters(optimizer, groups, own * [1, 3], np.zeros(2))
    rates = [effective_lr(group) for group in optimizer.param_groups]
    expected = [0.2, 0.6, 0.1, 0.3] if biases_first else [0.1, 0.3, 0.2, 0.6]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("biases_first", [True, False])
def test_groups_of_one_layer_keep_the_ratio_of_their_weight_decays(biases_first: bool) -> None:
    net = make_net()
    user_groups = [
        {"params": by_name(net, "bias"), "weight_decay": 0.01},
        {"params": by_name(net, "weight"), "weight_decay": 0.1},
    ]
    optimizer = torch.optim.AdamW(user_groups if biases_first else user_groups[::-1])
    groups = split(net, optimizer)
    own = groups.base_weight_decay
    for factors in ([1, 1], [0.5, 3], [0, 1]):
        write_hyperparameters(optimizer, groups, groups.base_lr, own * factors)
        biases, weights = ([0.01 * f for f in factors], [0.1 * f for f in factors])
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        expected = [*biases, *weights] if biases_first else [*weights, *biases]
        assert decays == pytest.approx(expected)


def test_a_group_with_an_lr_of_zero_may_come_first() -> None:
    net = make_net()
    user_groups = [{"params": by_name(net, "bias"), "lr": 0.0}, {"params": by_name(net, "weight")}]
    optimizer = torch.optim.SGD(user_groups, lr=0.1)
    groups = split(net, optimizer)
    assert groups.base_lr.tolist() == [0.1, 0.1]
    write_hyperparameters(optimizer, groups, np.array([0.2, 0.3]), np.zeros(2))
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0, 0, 0.2, 0.3])


def test_a_layer_called_frozen_and_frozen_parameters_have_different_names() -> None:
    net = nn.ModuleDict({"frozen": nn.Linear(2, 2)})
    net["frozen"].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    split(net, optimizer)
    assert [group["name"] for group in optimizer.param_groups] == ["frozen", "frozen_"]


def test_frozen_parameters_keep_the_users_values() -> None:
    net = make_net()
    net[0].requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.2)
    groups = split(net, optimizer)
    assert groups.layer_names == ("2",)
    write_hyperparameters(optimizer, groups, np.array([0.5]), np.array([0.0]))
    values = {g["name"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert values == {"2": (0.5, 0.0), "frozen": (0.1, 0.2)}


def test_parameters_of_the_optimizer_may_begin_to_train_during_the_fit(tmp_path: Path) -> None:
    class Unfreezes(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.first.requires_grad_(False)

        def on_train_epoch_start(self) -> None:
            self.first.requires_grad_(self.current_epoch > 0)

    plain, _ = fit(tmp_path / "plain", model=Unfreezes)
    searched, _ = fit(tmp_path / "searched", [SilentDryRun()], model=Unfreezes)
    assert same_state(plain.state_dict(), searched.state_dict())


def test_step_is_the_papers_update_written_by_hand() -> None:
    """Eq. 4 and 5: W <- W - eta (gradient + lambda W), bias alike, per layer."""
    net = make_net().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    groups = split(net, optimizer)
    eta, decay = np.array([0.02, 0.3]), np.array([0.05, 0.004])
    write_hyperparameters(optimizer, groups, eta, decay)
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.ones(2, 3, dtype=torch.float64)).square().sum().backward()
    layer = [0, 0, 1, 1]
    expected = [
        w - eta[n] * (p.grad + decay[n] * w)
        for n, w, p in zip(layer, before, net.parameters(), strict=True)
    ]
    optimizer.step()
    for parameter, wanted in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=0, atol=1e-15)


OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "Nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.01),
    "AMSGrad": lambda p: torch.optim.Adam(p, 0.05, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.05),
    "fused AdamW": lambda p: torch.optim.AdamW(p, 0.05, fused=True),
    "foreach AdamW": lambda p: torch.optim.AdamW(p, 0.05, foreach=True),
    "fused SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.05, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.05, lr_decay=0.01),
    "AdaMod": lambda p: pytest.importorskip("pytorch_optimizer").AdaMod(p, 0.05),
    "tensor lr": lambda p: torch.optim.AdamW(p, torch.tensor(0.05)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_splitting_alone_changes_no_step(name: str) -> None:
    nets = [make_net(), make_net()]
    optimizers = [OPTIMIZERS[name](net.parameters()) for net in nets]
    step(nets[0], optimizers[0], 1)
    step(nets[1], optimizers[1], 1)
    split(nets[1], optimizers[1])  # state made before the split must survive it
    for seed in (2, 3):
        step(nets[0], optimizers[0], seed)
        step(nets[1], optimizers[1], seed)
    for left, right in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_with_any_optimizer_learns_and_resumes_exactly(name: str, tmp_path: Path) -> None:
    def search() -> DEOptCallback:
        return DEOptCallback("val_loss", population_size=4, probe_steps=2, local_search=None)

    build = partial(TinyModel, OPTIMIZERS[name])
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    first = search()
    unbroken, trainer = fit(tmp_path / "a", [first, checkpoint], model=build, max_epochs=2)
    groups = trainer.optimizers[0].param_groups
    lr, decay = ([float(group[key]) for group in groups] for key in ("lr", "weight_decay"))
    assert lr + decay == pytest.approx(first._values)
    path = str(tmp_path / "epoch=0.ckpt")
    resumed, _ = fit(tmp_path / "b", [search()], model=build, max_epochs=2, ckpt_path=path)
    assert same_state(unbroken.state_dict(), resumed.state_dict())


def test_tensor_lr_keeps_its_storage_and_layers_do_not_share_one() -> None:
    net = make_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=torch.tensor(0.1))
    groups = split(net, optimizer)
    pointers = [group["lr"].data_ptr() for group in optimizer.param_groups]
    write_hyperparameters(optimizer, groups, np.array([0.25, 0.5]), np.zeros(2))
    assert [group["lr"].data_ptr() for group in optimizer.param_groups] == pointers
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.25, 0.5]


def test_optimizer_state_round_trips_between_the_two_layouts() -> None:
    net = make_net()
    optimizer = torch.optim.Adam(
        [
            {"params": by_name(net, "bias"), "betas": (0.8, 0.9)},
            {"params": by_name(net, "weight"), "weight_decay": 0.1},
        ],
        lr=0.01,
    )
    step(net, optimizer, 1)
    original = optimizer.state_dict()
    groups = split(net, optimizer)
    write_hyperparameters(optimizer, groups, np.array([0.5, 0.6]), np.array([0.7, 0.8]))
    user = optimizer_to_user_layout(optimizer.state_dict(), groups)
    assert user["param_groups"] == original["param_groups"]
    assert user["state"].keys() == original["state"].keys()
    for index, entries in original["state"].items():
        assert all(torch.equal(entries[key], user["state"][index][key]) for key in entries)
    back = optimizer_to_split_layout(user, groups, optimizer)
    here = optimizer.state_dict()
    assert back["state"].keys() == here["state"].keys()
    for index, entries in here["state"].items():
        assert all(entries[key] is back["state"][index][key] for key in entries)
    optimizer.load_state_dict(back)


def test_checkpoint_of_other_groups_is_refused_with_both_sizes() -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    groups = split(net, optimizer)
    other = torch.optim.SGD(by_name(net, "weight"), lr=0.1).state_dict()
    with pytest.raises(ValueError, match=r"groups of \(2,\) parameters, this run's has \(4,\)"):
        optimizer_to_split_layout(other, groups, optimizer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: torch.optim.LBFGS(net.parameters()), "has no weight_decay option"),
        (lambda net: torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), "holds none of the"),
        (lambda net: torch.optim.SGD(net.parameters(), lr=0.0), "lr of layer '0' is 0"),
    ],
)
def test_optimizers_that_cannot_be_controlled_are_refused(make: Any, message: str) -> None:
    net = make_net()
    with pytest.raises(ValueError, match=message):
        split(net, make(net))


class SparseTable(TinyModel):
    """Looks a row up in a table whose gradients are sparse, which torch cannot decay."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.table = nn.Embedding(5, 6, sparse=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.table((x[:, 0] > 0).long()))


@pytest.mark.parametrize("carry", ["population", "weights"])
def test_no_weight_decay_is_searched_for_a_table_with_sparse_gradients(
    carry: Any, tmp_path: Path
) -> None:
    callback = DEOptCallback("val_loss", population_size=4, carry=carry)
    build = partial(SparseTable, partial(torch.optim.SGD, lr=0.01))
    fit(tmp_path, [callback], model=build)
    assert [row["weight_decay"]["table"] for row in callback.schedule] == [0, 0, 0]
    decays = np.array(callback.history[0].get("members") or callback.history[0]["targets"])[:, 4:]
    assert (decays > 0).any(axis=0).tolist() == [True, True, True, False]


class Decays(TinyModel):
    """Writes a weight decay by hand as an epoch begins."""

    def on_train_epoch_start(self) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            group["weight_decay"] = 0.1 * (self.current_epoch + 1)


def test_a_weight_decay_that_a_program_writes_is_remarked_on_once(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(tmp_path, [DEOptCallback("val_loss")], model=Decays)
        fit(tmp_path, [DEOptCallback("val_loss")])
    texts = [str(w.message) for w in said if "writes the weight decay of Adam" in str(w.message)]
    assert len(texts) == 1
