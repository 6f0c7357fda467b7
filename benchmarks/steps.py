"""What one training step costs: loss, gradient and update, beside torch written plainly.

Run from the root of the checkout; ratings are generated where no files are given::

    python benchmarks/steps.py [filmtrust=ratings.txt] [ml_1m=ratings.dat]

``plain`` has the loss as one writes it at first (see plain.py) and torch's optimizer as it comes,
with two threads, and with one. ``ours`` is the package's loss and conf/'s optimizer in the same
eager steps, with one thread, as the package's programs run; ``compiled`` a compiled step, one
thread as well, without the time to compile it. The ways take turns on the same batches, round by
round. Figures are medians over all steps. Writes benchmarks/results/steps.json.
"""

import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import plain
import torch

from deopt_lightning.compiled_steps import CompiledStep
from recsys_models.data import RecsysDataModule
from recsys_models.models import BPRMF, NGCF

RESULTS = Path(__file__).parent / "results"
SHAPES = {"filmtrust": (1_508, 2_071, 35_494), "ml_1m": (6_040, 3_706, 1_000_209)}
BATCH_SIZES = {"filmtrust": 1024, "ml_1m": 2048}
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, weight_decay=1e-6),
    "adam": partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-6),
}
CASES = [
    *((data, model, name) for data in SHAPES for model, name in ((BPRMF, "sgd"), (BPRMF, "adam"))),
    *((data, NGCF, "adam") for data in SHAPES),
]
STEPS, WARM_UP, ROUNDS = 10, 2, 8


def main() -> None:
    warnings.filterwarnings("ignore")
    paths = dict(argument.split("=", 1) for argument in sys.argv[1:])
    rows = {}
    for data_name, model, optimizer in CASES:
        data = make_data(data_name, paths.get(data_name))
        name = f"{data_name} {model.__name__} {optimizer}"
        rows[name] = times(data, model, OPTIMIZERS[optimizer])
        base = rows[name]["plain"]
        for way, seconds in rows[name].items():
            print(f"{name:24} {way:18} {1e3 * seconds:8.2f} ms {base / seconds:6.2f}x")
        sys.stdout.flush()
    facts = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg(),
        "real_data": sorted(paths),
        "seconds": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "steps.json").write_text(json.dumps(facts, indent=2) + "\n")


def make_data(name: str, path: str | None) -> RecsysDataModule:
    users, items, pairs = SHAPES[name]
    sizes = {"num_users": users, "num_items": items, "num_interactions": pairs}
    source = {"dataset": name, "path": path} if path else {"synthetic": sizes}
    data = RecsysDataModule(**source, batch_size=BATCH_SIZES[name])
    data.setup()
    return data


def times(data: RecsysDataModule, model: type, make_optimizer) -> dict[str, float]:
    batches = list(islice(data.train_dataloader(), STEPS))
    plainly = plain_step(build(data, model), make_optimizer, data)
    ways = {
        "plain": (2, plainly),
        "plain, one thread": (1, plainly),
        "ours": (1, our_step(build(data, model), make_optimizer)),
        "compiled": (1, compiled_step(build(data, model), make_optimizer, batches[0])),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(WARM_UP + ROUNDS):
        for way, (threads, step) in ways.items():
            torch.set_num_threads(threads)
            for batch in batches:
                began = time.perf_counter()
                step(batch)
                if number >= WARM_UP:
                    taken[way].append(time.perf_counter() - began)
    return {way: statistics.median(seconds) for way, seconds in taken.items()}


def build(data: RecsysDataModule, model: type) -> torch.nn.Module:
    torch.manual_seed(0)
    module = model(data.num_users, data.num_items)
    if isinstance(module, NGCF):
        module.set_interactions(data.train)
    return module


def plain_step(module, make_optimizer, data: RecsysDataModule) -> Callable[[object], None]:
    loss = partial(plain.loss, module)
    if isinstance(module, NGCF):
        module.eval()  # so that both losses are of the same entries
        coo = module._adjacency.csr().to_sparse_coo().coalesce()
        loss = partial(plain.ngcf_loss, module, coo)
    batch = next(iter(data.train_dataloader()))
    torch.testing.assert_close(loss(batch), module.training_loss(batch))
    module.train()
    return partial(eager_step, loss, make_optimizer(module.parameters()))


def our_step(module, make_optimizer) -> Callable[[object], None]:
    return partial(
        eager_step, module.training_loss, make_optimizer(module.parameters(), fused=True)
    )


def eager_step(loss, optimizer, batch) -> None:
    optimizer.zero_grad()
    loss(batch).backward()
    optimizer.step()


def compiled_step(module, make_optimizer, batch) -> Callable[[object], None]:
    optimizer = make_optimizer(module.parameters(), fused=True)
    eager_step(module.training_loss, optimizer, batch)  # the optimizer makes its state
    step = CompiledStep(module, optimizer, batch)

    def taken(batch) -> None:
        if step(batch) is None:
            raise RuntimeError("the compiled step was not taken")

    return taken


if __name__ == "__main__":
    main()
