from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn

from deopt_lightning.member_state import from_plain, to_plain, with_learned
from deopt_lightning.random_state import rng_state, seed_generator, set_rng_state
from deopt_lightning.snapshot import Snapshot, same_values
from tests.deopt_lightning.wrapping_optimizers import Lookahead, Sharp, Sums


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.metric = torchmetrics.MeanMetric()
        self.count = 0
        self.queue: deque[float] = deque(maxlen=3)
        self.seen: dict[str, list[torch.Tensor]] = {"x": [torch.zeros(1)]}
        self.alias = self.seen["x"][0]
        self.cache: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x))


def disturb(net: Net, optimizer: torch.optim.Optimizer) -> None:
    """What steps and validation may do to a model, and more."""
    for _ in range(3):
        net.train()
        loss = net(torch.randn(8, 4)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net.metric.update(loss.detach())
    net.metric.compute()
    net.scratch = torch.ones(5)
    net.count += 7
    net.queue.append(random.random() + np.random.rand())
    net.seen["x"][0].add_(1)
    net.seen["y"] = []
    net.cache = torch.ones(3)
    net.new_attribute = "leftover"
    net.eval()
    for group in optimizer.param_groups:
        group["lr"] *= 3
        group["extra"] = 1


def picture(net: Net, optimizer: torch.optim.Optimizer) -> list[Any]:
    """Everything that must come back, in comparable form."""
    return [
        {name: p.detach().tolist() for name, p in net.named_parameters()},
        {name: b.tolist() for name, b in net.named_buffers()},
        [[v.tolist() for v in state.values()] for state in optimizer.state.values()],
        [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
        [module.training for module in net.modules()],
        (net.count, list(net.queue), str(net.seen), net.cache, hasattr(net, "new_attribute")),
        (net.metric._update_count, str(net.metric._computed), net.metric.mean_value.tolist()),
        (torch.rand(2).tolist(), np.random.rand(), random.random()),
    ]


@pytest.mark.parametrize("stepped_before", [False, True])
@pytest.mark.parametrize("optimizer_name", ["SGD", "Adam", "Adagrad"])
def test_restore_brings_everything_back(optimizer_name: str, stepped_before: bool) -> None:
    net = Net()
    optimizer = getattr(torch.optim, optimizer_name)(net.parameters(), lr=0.1)
    if stepped_before:
        net(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    snapshot = Snapshot.take(net, [optimizer])
    expected = picture(net, optimizer)
    for _ in range(2):  # any number of times
        disturb(net, optimizer)
        snapshot.restore()
        assert all(p.grad is None for p in net.parameters())
        assert picture(net, optimizer) == expected
        snapshot.restore()


def test_restore_keeps_the_objects_themselves() -> None:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters())
    weight, pointer, queue = net.linear.weight, net.linear.weight.data_ptr(), net.queue
    with Snapshot.take(net, [optimizer]).restored_on_exit():
        disturb(net, optimizer)
    assert net.linear.weight is weight
    assert weight.data_ptr() == pointer
    assert net.queue is queue
    assert net.alias is net.seen["x"][0]


def test_restores_after_an_exception() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net.linear.weight.detach().clone()

    def fail() -> None:
        with Snapshot.take(net, [optimizer]).restored_on_exit():
            disturb(net, optimizer)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.equal(net.linear.weight, before)


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: torch.Generator().manual_seed(1), lambda g: torch.randn(3, generator=g).tolist()),
        (lambda: np.random.default_rng(1), lambda g: g.normal(size=3).tolist()),
        (lambda: np.random.Generator(np.random.MT19937(1)), lambda g: g.normal(size=3).tolist()),
        (lambda: np.random.RandomState(1), lambda g: g.standard_normal(3).tolist()),
        (lambda: random.Random(1), lambda g: [g.gauss(0, 1) for _ in range(3)]),
    ],
)
def test_random_generators_of_all_kinds_come_back(make: Any, draw: Any) -> None:
    net, own, loaders = nn.Linear(1, 1), make(), make()
    net.held, net.own = [own], make()
    snapshot = Snapshot.take(net, [], generators=[loaders])
    expected = [draw(generator) for generator in (own, net.own, loaders)]
    for generator in (own, net.own, loaders):
        draw(generator)
        seed_generator(generator, 5)
    assert draw(own) == draw(loaders) != expected[0]
    snapshot.restore()
    assert net.held[0] is own
    assert [draw(generator) for generator in (own, net.own, loaders)] == expected


def test_a_loaders_own_generator_and_a_scaler_come_back() -> None:
    net = nn.Linear(1, 1)
    generator = torch.Generator().manual_seed(1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    snapshot = Snapshot.take(net, [], stateful=[scaler], generators=[generator])
    drawn = torch.rand(3, generator=generator)
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0})
    snapshot.restore()
    assert torch.equal(torch.rand(3, generator=generator), drawn)
    assert scaler.state_dict()["scale"] == 8.0


def test_weights_can_be_restored_alone() -> None:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    snapshot = Snapshot.take(net, [optimizer])
    expected = picture(net, optimizer)
    snapshot.restore()
    disturb(net, optimizer)
    net.train()
    rng, count = torch.get_rng_state(), net.metric._update_count
    snapshot.restore_weights()
    assert torch.equal(torch.get_rng_state(), rng)
    assert (net.count, net.metric._update_count) == (7, count)
    *tensors, options = picture(net, optimizer)[:4]
    assert tensors == expected[:3]
    for group, before in zip(options, expected[3], strict=True):
        assert group.pop("lr") != before.pop("lr")  # an LR scheduler may have moved on
        assert group == before


def test_expanded_tensors_come_back() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("ones", torch.ones(1).expand(6))
    net.rows = torch.arange(3.0)[:, None].expand(2, 3, 4)
    snapshot = Snapshot.take(net, [])
    rows, base = net.rows, net.rows[0, :, 0]
    net.ones = torch.zeros(6)
    base[1] = float("nan")
    snapshot.restore()
    assert net.ones.tolist() == [1.0] * 6
    assert net.rows is rows
    assert torch.equal(rows, torch.arange(3.0)[:, None].expand(2, 3, 4))
    assert base.tolist() == [0.0, 1.0, 2.0]


def test_modules_that_only_containers_hold_come_back() -> None:
    inner = nn.Linear(2, 2)
    inner.metric, inner.parents = {"mean": torchmetrics.MeanMetric()}, []
    net = nn.Sequential(nn.Linear(2, 2))
    net.held = [{"inner": inner}, net[0]]
    inner.parents.append(net)
    mean = inner.metric["mean"]
    mean.update(1.0)
    snapshot = Snapshot.take(net, [])
    assert len(snapshot.tensors) == 4
    expected = [p.tolist() for p in (*net.parameters(), *inner.parameters())]
    mean.update(5.0)
    with torch.no_grad():
        inner.weight.zero_()
    net.eval()
    inner.eval()
    net.held.append(torchmetrics.MeanMetric())
    snapshot.restore()
    assert [p.tolist() for p in (*net.parameters(), *inner.parameters())] == expected
    assert mean.compute() == 1.0
    assert net.training
    assert inner.training
    assert net.held[0]["inner"] is inner
    assert net.held[1:] == [net[0]]


def steps_of(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 7) -> Any:
    """The weights after some more steps."""

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(torch.ones(1, 2)) - 3).square().sum()
        loss.backward()
        return loss

    for _ in range(count):
        optimizer.step(closure)
    return [p.tolist() for p in model.parameters()]


@pytest.mark.parametrize("kind", [Sharp, Lookahead])
@pytest.mark.parametrize("stepped_before", [0, 7])
def test_an_optimizer_that_holds_another_comes_back(kind: Any, stepped_before: int) -> None:
    model = nn.Linear(2, 2)
    optimizer = kind(model.parameters())
    inner = next(v for v in vars(optimizer).values() if isinstance(v, torch.optim.Optimizer))
    steps_of(model, optimizer, stepped_before)
    snapshot = Snapshot.take(model, [optimizer])
    hooks = optimizer.register_step_pre_hook(lambda *_: None)
    expected = steps_of(model, optimizer)
    for restore in (snapshot.restore, snapshot.restore_weights):
        restore()
        assert optimizer.param_groups is inner.param_groups
        assert steps_of(model, optimizer) == expected
    later = Snapshot.take(model, [optimizer])
    with_learned(later, snapshot).restore()
    assert steps_of(model, optimizer) == expected
    assert hooks.id in hooks.hooks_dict_ref()


@pytest.mark.parametrize("stepped_before", [0, 7])
def test_sums_in_groups_and_counts_of_all_parameters_come_back(stepped_before: int) -> None:
    model = nn.Linear(2, 2)
    optimizer = Sums(model.parameters())
    steps_of(model, optimizer, stepped_before)
    snapshot = Snapshot.take(model, [optimizer])
    expected = steps_of(model, optimizer)
    assert snapshot.nbytes == 6 * 4 + 4
    for restore in (snapshot.restore, snapshot.restore_weights):
        restore()
        assert steps_of(model, optimizer) == expected
    with_learned(Snapshot.take(model, [optimizer]), snapshot).restore()
    assert steps_of(model, optimizer) == expected


@pytest.mark.parametrize("kind", [Sharp, Sums])
def test_the_plain_form_has_the_optimizers_whole_state(kind: Any) -> None:
    model = nn.Linear(2, 2)
    optimizer = kind(model.parameters())
    steps_of(model, optimizer)
    plain = to_plain(Snapshot.take(model, [optimizer]))
    expected = steps_of(model, optimizer)
    from_plain(plain, Snapshot.take(model, [optimizer])).restore()
    assert steps_of(model, optimizer) == expected


def test_rng_state_survives_a_safe_checkpoint(tmp_path: Any) -> None:
    np.random.standard_normal(3)  # leaves a cached gauss value
    torch.save(rng_state(), tmp_path / "rng.pt")
    expected = (torch.rand(2).tolist(), np.random.standard_normal(3).tolist(), random.gauss(0, 1))
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    again = (torch.rand(2).tolist(), np.random.standard_normal(3).tolist(), random.gauss(0, 1))
    assert again == expected


def test_large_tensors_go_to_the_device_and_step_counts_stay() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    snapshot = Snapshot.take(model, [optimizer], device="meta")
    assert [copy.device.type for _, copy in snapshot.tensors] == ["meta", "meta"]
    ((_, state, _),) = snapshot.optimizers
    for entries in state.values():
        kinds = {name: value.device.type for name, value in entries.items()}
        assert kinds == {"step": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}
    assert snapshot.nbytes == 4 * (3 * 8 + 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fused", [False, True])
def test_a_gpus_state_comes_back_from_the_cpu(fused: bool) -> None:
    model = nn.Linear(3, 2).cuda()
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)

    def step() -> None:
        model(torch.ones(1, 3, device="cuda")).sum().backward()
        optimizer.step()

    step()
    there = Snapshot.take(model, [optimizer])
    here = Snapshot.take(model, [optimizer], device="cpu")
    ends = []
    for snapshot in (there, here):
        optimizer.state.clear()
        snapshot.restore()
        step()
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *ends))


def test_tensors_are_compared_with_nan_and_shape() -> None:
    nan = torch.tensor([1.0, float("nan")])
    assert same_values(nan, nan.clone())
    assert not same_values(nan, torch.tensor([1.0, 2.0]))
    assert not same_values(torch.ones(1), torch.ones(2))
    assert not same_values(torch.tensor([1]), torch.tensor([2]))
