import copy

import lightning as L
import pytest
import torch

from recsys_models import train
from recsys_models.baselines import SGDA
from recsys_models.baselines.penalty_tuner import ValidationPairs
from tests.recsys_models.baselines.reference import fit, tiny_data, tiny_model

RATE = 0.5


class Recorder(L.Callback):
    def __init__(self):
        self.batches = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch))


def case_gradients(tables, case):
    """Of one BPR case by table and row, in closed form; a row can stand in it once only."""
    users, items, biases = tables.values()
    (u,), (i,), ((j,),) = (ids.tolist() for ids in case)
    difference = users[u] @ (items[i] - items[j]) + biases[i] - biases[j]
    e = -torch.sigmoid(-difference)
    return {
        ("user_embedding.weight", u): e * (items[i] - items[j]),
        ("item_embedding.weight", i): e * users[u],
        ("item_embedding.weight", j): -e * users[u],
        ("item_bias.weight", i): e,
        ("item_bias.weight", j): -e,
    }


def rendle(tables, cases, validation_cases):
    """SGDA as in the paper, a case at a time: returns lambda by table; changes the tables."""
    lambdas = {name: torch.zeros(table.shape[1]).double() for name, table in tables.items()}
    stored = {}
    for epoch, case in cases:
        gradients = case_gradients(tables, case)
        stored |= gradients
        for (name, row), gradient in gradients.items():
            tables[name][row] -= RATE * (gradient + 2 * lambdas[name] * tables[name][row])
        if epoch == 0:
            continue
        case = next(validation_cases)
        ahead = {name: table.clone() for name, table in tables.items()}
        for name, row in stored:
            penalty = 2 * lambdas[name] * tables[name][row]
            ahead[name][row] -= RATE * (stored[name, row] + penalty)
        moves = {name: torch.zeros_like(weights) for name, weights in lambdas.items()}
        for (name, row), by_theta in case_gradients(ahead, case).items():
            if (name, row) in stored:
                moves[name] += by_theta * -2 * RATE * tables[name][row]
        for name, move in moves.items():
            lambdas[name] = (lambdas[name] - RATE * move).clamp(min=0)
    return lambdas


def test_batches_of_one_pair_are_the_algorithm_of_the_paper():
    data = tiny_data(batch_size=1, num_negatives=1)
    model = tiny_model(data, "sgd")
    tables = {name: table.detach().clone() for name, table in model.named_parameters()}
    tuner, recorder = SGDA(batch_size=1, seed=4), Recorder()
    fit(model, data, [tuner, recorder], max_epochs=3)

    pairs = ValidationPairs(data, batch_size=1, seed=4)
    lambdas = rendle(tables, recorder.batches, iter(pairs.draw, None))
    for name, table in model.named_parameters():
        torch.testing.assert_close(table.detach(), tables[name], rtol=1e-9, atol=1e-11)
    found = tuner.penalty.lambdas
    for key, name in {
        "user[1x3]": "user_embedding.weight",
        "item[1x3]": "item_embedding.weight",
        "item[1x1]": "item_bias.weight",
    }.items():
        torch.testing.assert_close(found[key][0], lambdas[name], rtol=1e-9, atol=1e-11)
    assert any(weights.any() for weights in found.values())
    assert tuner.probe_steps_taken == 2 * len(data.train)


def test_first_epoch_equals_plain_training_bit_for_bit_and_later_ones_do_not():
    data = tiny_data()
    weights = {}
    for epochs in (1, 3):
        for tuners in ([], [SGDA()]):
            model = tiny_model(data, "sgd").float()
            fit(model, data, tuners, max_epochs=epochs)
            weights[epochs, len(tuners)] = copy.deepcopy(model.state_dict())
    (plain, tuned), (plain_later, tuned_later) = (
        [weights[epochs, n]["user_embedding.weight"] for n in (0, 1)] for epochs in (1, 3)
    )
    assert torch.equal(plain, tuned)
    assert not torch.equal(plain_later, tuned_later)


def test_lambdas_stay_at_least_zero_and_some_at_zero():
    class Lowest(L.Callback):
        seen = []

        def on_train_batch_end(self, *_):
            self.seen.append(min(float(w.min()) for w in tuner.penalty.lambdas.values()))

    data, tuner = tiny_data(), SGDA()
    fit(tiny_model(data, "sgd"), data, [tuner, Lowest()], max_epochs=6)
    assert min(Lowest.seen) == 0.0
    assert max(float(w.max()) for w in tuner.penalty.lambdas.values()) > 0


def test_configuration_brings_sgd_and_another_optimizer_is_refused(compose_train):
    assert compose_train("tuner=sgda").optimizer._target_ == "torch.optim.SGD"
    small = "+data.synthetic={num_users: 60, num_items: 40, num_interactions: 900}"
    with pytest.raises(Exception, match="SGDA steps by SGD; got Adam"):
        train.run(compose_train("tuner=sgda", "optimizer=adam", small))
