"""Row-sparse optimizers against the dense updates they stand for, outside a Trainer."""

import copy
from functools import partial

import pytest
import torch

from deopt_lightning.snapshot import Snapshot
from recsys_models.data.batches import TrainBatch
from recsys_models.models import BPRMF, LightGCN, NeuMF
from recsys_models.optim import RowSparseAdam, RowSparseSGD, deferred
from recsys_models.optim.row_sparse import RowSparseOptimizer

USERS, ITEMS, BATCH = 300, 200, 8
MOMENTA = [pytest.param(0.0, id="plain"), pytest.param(0.9, id="momentum")]


def batches(count, seed=1, size=BATCH):
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randint, generator=generator)
    return [
        TrainBatch(draw(0, USERS, (size,)), draw(0, ITEMS, (size,)), draw(0, ITEMS, (size, 2)))
        for _ in range(count)
    ]


def build(optimizer, dtype=torch.float32, model=BPRMF, **options):
    torch.manual_seed(0)
    module = model(USERS, ITEMS, init_std=0.1, optimizer=optimizer, **options).to(dtype)
    return module, module.configure_optimizers()


def train(module, optimizer, steps, change=None):
    for number, batch in enumerate(steps):
        if change is not None:
            change(number, optimizer.param_groups[0])
        optimizer.zero_grad()
        module.training_loss(batch).backward()
        optimizer.step()


def weights(module):
    """All weights as evaluation sees them."""
    module.eval()
    module.train()
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def trained(optimizer, steps, dtype=torch.float32, change=None, **options):
    module, made = build(optimizer, dtype, **options)
    train(module, made, steps, change)
    return weights(module)


def vary(number, group):
    """Another lr at every step, another weight decay now and then."""
    group["lr"] = 0.5 + (7 * number % 100) / 50
    group["weight_decay"] = 1e-4 * (1 + number // 200)


@pytest.mark.parametrize("momentum", MOMENTA)
def test_a_thousand_steps_are_as_near_to_float64_as_dense_steps_are(momentum):
    steps = batches(1000)
    dense = partial(torch.optim.SGD, momentum=momentum)
    exact = trained(dense, steps, torch.float64, vary, dim=8)
    error = (trained(dense, steps, change=vary, dim=8) - exact).abs()
    rows = partial(RowSparseSGD, momentum=momentum)
    ours = (trained(rows, steps, change=vary, dim=8) - exact).abs()
    assert ours.max() <= 2 * error.max()
    assert ours.norm() <= 2 * error.norm()


@pytest.mark.parametrize("momentum", MOMENTA)
def test_float64_agrees_far_beyond_the_longest_deferral(momentum, monkeypatch):
    monkeypatch.setattr(deferred, "LONGEST", 40)
    steps = batches(300)
    dense = trained(partial(torch.optim.SGD, momentum=momentum), steps, torch.float64, vary, dim=4)
    rows = partial(RowSparseSGD, momentum=momentum)
    ours = trained(rows, steps, torch.float64, vary, dim=4)
    torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("decay", [0.3, 0.9, 1.0, 1.7])
def test_strong_decay_is_exact_too(momentum, decay):
    steps = batches(60)
    options = {"lr": 1.0, "momentum": momentum, "weight_decay": decay}
    dense = trained(partial(torch.optim.SGD, **options), steps, torch.float64, dim=4)
    ours = trained(partial(RowSparseSGD, **options), steps, torch.float64, dim=4)
    torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-11)


def test_momentum_may_come_and_go():
    def change(number, group):
        group["momentum"] = 0.9 if 20 <= number < 40 else 0.0

    options = {"lr": 0.5, "weight_decay": 0.01}
    dense = trained(partial(torch.optim.SGD, **options), batches(40), torch.float64, change, dim=4)
    ours = trained(partial(RowSparseSGD, **options), batches(40), torch.float64, change, dim=4)
    torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-11)
    module, optimizer = build(partial(RowSparseSGD, **options), torch.float64, dim=4)
    train(module, optimizer, batches(60), change)
    assert module.user_embedding.weight.isfinite().all()


def test_rows_outside_the_batch_are_not_visited():
    options = {"lr": 0.5, "weight_decay": 0.01}
    module, optimizer = build(partial(RowSparseSGD, **options), dim=4)
    before = module.user_embedding.weight.detach().clone()
    (batch,) = batches(1)
    train(module, optimizer, [batch])
    others = torch.ones(USERS, dtype=torch.bool)
    others[batch.users] = False
    table = module.user_embedding.weight
    assert torch.equal(table[others], before[others])
    module.eval()
    torch.testing.assert_close(table[others], before[others] * (1 - 0.5 * 0.01))


@pytest.mark.parametrize("momentum", MOMENTA)
def test_a_table_read_whole_now_and_then_is_exact(momentum):
    # NeuMF reads its items' table as a whole where a batch has more ids than there are items.
    steps = [
        b for pair in zip(batches(15), batches(15, seed=2, size=90), strict=True) for b in pair
    ]
    options = {"lr": 0.3, "weight_decay": 0.01, "momentum": momentum}
    network = {"model": NeuMF, "gmf_dim": 4, "mlp_dims": (8, 4)}
    dense = trained(partial(torch.optim.SGD, **options), steps, torch.float64, **network)
    ours = trained(partial(RowSparseSGD, **options), steps, torch.float64, **network)
    torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rows", [RowSparseSGD, RowSparseAdam])
def test_without_lookups_it_is_torchs_own_update(rows):
    dense = {RowSparseSGD: torch.optim.SGD, RowSparseAdam: torch.optim.Adam}[rows]
    results = []
    for kind in (partial(dense, fused=True), rows):
        torch.manual_seed(0)
        linear = torch.nn.Linear(5, 3)
        optimizer = kind(linear.parameters(), lr=0.1, weight_decay=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            linear(torch.ones(2, 5)).square().sum().backward()
            optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in linear.parameters()]))
    assert torch.equal(*results)


def test_a_dense_gradient_of_outdated_rows_is_refused():
    module, optimizer = build(partial(RowSparseSGD, lr=0.1, weight_decay=0.1), dim=4)
    train(module, optimizer, batches(2))
    module.user_embedding.weight.sum().backward()
    with pytest.raises(RuntimeError, match="lookup.*or whole"):
        optimizer.step()


def test_a_table_looked_up_and_read_whole_in_one_loss_gets_both_gradients():
    results = []
    for kind in (torch.optim.SGD, RowSparseSGD):
        module, optimizer = build(partial(kind, lr=0.1, weight_decay=0.1), torch.float64, dim=4)
        for batch in batches(4):
            optimizer.zero_grad()
            penalty = module.whole(module.user_embedding.weight).square().sum()
            (module.training_loss(batch) + penalty).backward()
            optimizer.step()
        results.append(weights(module))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rows", [RowSparseSGD, RowSparseAdam])
def test_gradients_accumulate_over_lookups(rows):
    results = []
    first, second = batches(2)
    both = TrainBatch(*map(torch.cat, zip(first, second, strict=True)))
    for parts in ((first, second), (both,)):
        module, optimizer = build(partial(rows, lr=0.1), torch.float64, dim=4)
        for batch in parts:
            (module.training_loss(batch) / len(parts)).backward()
        optimizer.step()
        results.append(weights(module))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("limit", "algorithm"), [(1e-2, "norm"), (100.0, "norm"), (1e-4, "value")])
def test_clipping_equals_clipping_of_dense_gradients(limit, algorithm):
    results = []
    for kind in (torch.optim.SGD, RowSparseSGD):
        module, optimizer = build(partial(kind, lr=0.5, momentum=0.9), torch.float64, dim=4)
        for batch in batches(5):
            optimizer.zero_grad()
            module.training_loss(batch).backward()
            if isinstance(optimizer, RowSparseOptimizer):
                optimizer.clip_gradients(limit, algorithm)
            elif algorithm == "norm":
                torch.nn.utils.clip_grad_norm_(module.parameters(), limit)
            else:
                torch.nn.utils.clip_grad_value_(module.parameters(), limit)
            optimizer.step()
        results.append(weights(module))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


def test_lazy_adam_moves_named_rows_as_adam_does_and_no_others():
    (batch,) = batches(1)
    options = {"lr": 0.1, "weight_decay": 0.01}
    results = []
    for kind in (partial(torch.optim.Adam, fused=True), RowSparseAdam):
        module, optimizer = build(partial(kind, **options), dim=4)
        start = module.user_embedding.weight.detach().clone()
        train(module, optimizer, [batch, batch, batch])
        results.append(module.user_embedding.weight.detach())
    named = torch.zeros(USERS, dtype=torch.bool)
    named[batch.users] = True
    dense, lazy = results
    torch.testing.assert_close(lazy[named], dense[named])
    assert torch.equal(lazy[~named], start[~named])
    assert not torch.equal(dense[~named], start[~named])


def test_adam_is_dense_where_a_batch_names_a_good_part_of_the_table():
    steps = batches(5, size=90)
    options = {"lr": 0.1, "weight_decay": 0.01}
    dense = trained(partial(torch.optim.Adam, fused=True, **options), steps, dim=4)
    assert torch.equal(trained(partial(RowSparseAdam, **options), steps, dim=4), dense)


@pytest.mark.parametrize("momentum", MOMENTA)
def test_a_state_dict_holds_what_torchs_sgd_goes_on_from(momentum):
    options = {"lr": 0.3, "weight_decay": 0.01, "momentum": momentum}
    dense = trained(partial(torch.optim.SGD, **options), batches(40), torch.float64, dim=4)
    module, optimizer = build(partial(RowSparseSGD, **options), torch.float64, dim=4)
    train(module, optimizer, batches(40)[:20])
    plain, successor = build(partial(torch.optim.SGD, **options), torch.float64, dim=4)
    plain.load_state_dict(module.state_dict())
    saved = optimizer.state_dict()
    assert {key for entries in saved["state"].values() for key in entries} <= {"momentum_buffer"}
    successor.load_state_dict({**successor.state_dict(), "state": saved["state"]})
    train(plain, successor, batches(40)[20:])
    torch.testing.assert_close(weights(plain), dense, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rows", [RowSparseSGD, partial(RowSparseSGD, momentum=0.9), RowSparseAdam])
def test_what_was_saved_in_the_middle_goes_on_bit_for_bit(rows):
    options = {"lr": 0.3, "weight_decay": 0.01}
    module, optimizer = build(partial(rows, **options), dim=4)
    train(module, optimizer, batches(20))
    saved = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    train(module, optimizer, batches(20, seed=3))
    resumed, successor = build(partial(rows, **options), dim=4)
    for part, state in zip((resumed, successor), saved, strict=True):
        part.load_state_dict(state)
    train(resumed, successor, batches(20, seed=3))
    assert torch.equal(weights(resumed), weights(module))


@pytest.mark.parametrize("momentum", MOMENTA)
def test_copies_in_the_middle_go_on_like_the_original(momentum):
    options = {"lr": 0.3, "weight_decay": 0.01, "momentum": momentum}
    module, optimizer = build(partial(RowSparseSGD, **options), dim=4)
    train(module, optimizer, batches(20))
    twin = copy.deepcopy(module)
    assert optimizer.state[module.user_embedding.weight].keys() & {"scale", "deferred_steps"}
    for each in (module, twin):
        train(each, optimizer if each is module else twin._row_optimizer, batches(20, seed=3))
    assert torch.equal(weights(module), weights(twin))


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("between", ["nothing", "flush", "steps"])
def test_a_snapshot_of_deferred_rows_is_restored_as_it_was(momentum, between):
    options = {"lr": 0.3, "weight_decay": 0.01, "momentum": momentum}
    module, optimizer = build(partial(RowSparseSGD, **options), dim=4)
    train(module, optimizer, batches(20))
    snapshot = Snapshot.take(module, [optimizer])
    train(module, optimizer, batches(20, seed=3))
    expected = weights(module)
    if between == "flush":
        optimizer.flush()
    elif between == "steps":
        train(module, optimizer, batches(5, seed=4))
    snapshot.restore()
    train(module, optimizer, batches(20, seed=3))
    assert torch.equal(weights(module), expected)


def test_weights_loaded_in_the_middle_are_taken_as_they_are():
    module, optimizer = build(partial(RowSparseSGD, lr=1.0, weight_decay=0.1), dim=4)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    train(module, optimizer, batches(5))
    module.load_state_dict(start)
    assert torch.equal(module.eval().user_embedding.weight, start["user_embedding.weight"])


def test_graph_models_are_updated_densely():
    from recsys_models.data import synthetic_interactions

    pairs = synthetic_interactions(num_users=60, num_items=40, num_interactions=900)
    results = []
    for kind in (partial(torch.optim.SGD, fused=True), RowSparseSGD):
        torch.manual_seed(0)
        module = LightGCN(60, 40, dim=4, optimizer=partial(kind, lr=0.5, weight_decay=0.01))
        module.set_interactions(pairs)
        optimizer = module.configure_optimizers()
        ids = torch.arange(4)
        train(module, optimizer, 5 * [TrainBatch(ids, ids, ids.unsqueeze(1) + 5)])
        results.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(RowSparseSGD, lr=-1.0), "lr must be at least 0; got -1"),
        (partial(RowSparseSGD, momentum=-0.1), "momentum must be at least 0"),
        (partial(RowSparseAdam, weight_decay=float("nan")), "weight_decay must be at least 0"),
        (partial(RowSparseAdam, betas=(0.9, 1.0)), "betas must be .* below 1"),
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make([torch.nn.Parameter(torch.zeros(2, 2))])
