"""Ranking of all items for all users on a data set of ML-1M's shape, against plainer ways to do it.

Run from the root of the checkout, with as many threads as wanted::

    OMP_NUM_THREADS=1 python benchmarks/ranking.py
    OMP_NUM_THREADS=1 python benchmarks/ranking.py ml-1m/ratings.dat

Data are generated where no rating file is given. Writes benchmarks/results/ranking_<threads>t.json.
The ways take turns, round by round, so that other load on the machine meets all of them alike.
``cores_had`` in the results is processor time over wall time: where it is below the number of
threads, other processes held the cores and threads waited for one another. ``share_of_peak`` is the
time that the products of a way cannot do without, at the speed of a large product of two matrices
in the same run, over the time that it takes (see machine.py).

Five questions, each with the ways that answer it:

- ``bare`` is a product of the two embedding tables and ``torch.topk``, on the same batches of users
  and for the largest K; it masks nothing and measures nothing. ``ours`` is BPR-MF's scores, masked
  and turned into NDCG, Recall and HR at three K.
- ``torchmetrics_one`` is ``RetrievalNormalizedDCG`` at one K, ``torchmetrics_all`` NDCG, Recall and
  HR at the three K, as ours. Both see a few users only, because they are slow, and are compared
  per user. They are handed finished scores of unseen items, which are not part of their time.
- ``torchmetrics_ndcg`` and ``ours_ndcg`` are both handed the finished scores of all users and give
  NDCG at the three K.
- ``neumf_pairwise`` concatenates p and q of every pair and runs the network as the paper draws it,
  for a few users, in the fastest of several batch sizes. ``neumf`` is our ``score_users``.
- ``lrml`` is the whole ranking of all users.
"""

import argparse
import json
import os
import platform
import statistics
import time
from functools import partial
from pathlib import Path

import machine
import plain
import torch
import torchmetrics
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.retrieval import RetrievalHitRate, RetrievalNormalizedDCG, RetrievalRecall

from recsys_models.data import RankingBatch, RecsysDataModule
from recsys_models.metrics import RankingMetrics, evaluate
from recsys_models.models import BPRMF, LRML, NeuMF

ML_1M = {"num_users": 6040, "num_items": 3706, "num_interactions": 1_000_209}
TOP_K, WIDTH = (10, 20, 50), 64
FEW_USERS = 200  # for torchmetrics and NeuMF
PAIRWISE_USERS = (2, 8)  # users at a time of the pairwise NeuMF
WARM_UP, ROUNDS = 2, 9
RARE_ROUNDS = 3  # of what takes seconds
RESULTS = Path(__file__).parent / "results"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Time the ranking of all items for all users.")
    parser.add_argument("path", nargs="?", help="ratings.dat of ML-1M; generated data without it")
    path = parser.parse_args().path
    source = {"dataset": "ml_1m", "path": path} if path else {"synthetic": ML_1M}
    data = RecsysDataModule(**source)
    data.setup()
    batches = list(data.val_dataloader())
    data.eval_batch_size = FEW_USERS
    few = next(iter(data.val_dataloader()))

    torch.manual_seed(0)
    bpr_mf = BPRMF(data.num_users, data.num_items, dim=WIDTH, init_std=0.1)
    neumf = NeuMF(data.num_users, data.num_items, init_std=0.1)
    lrml = LRML(data.num_users, data.num_items)
    pairs = unseen_pairs(bpr_mf.score_users(few.users), few)
    check_torchmetrics(bpr_mf, few, pairs)
    check_pairwise(neumf, few.users)

    often = {
        "bare": partial(bare, bpr_mf, batches),
        "ours": partial(evaluate, bpr_mf.scorer(), batches, TOP_K),
        "torchmetrics_one": partial(torchmetrics_ndcg, *pairs),
        "neumf": partial(neumf.score_users, few.users),
    } | {
        f"neumf_pairwise_{count}": partial(plain.scores, neumf, few.users, count)
        for count in PAIRWISE_USERS
    }
    scored = [(bpr_mf.score_users(batch.users), batch) for batch in batches]
    all_pairs = join([unseen_pairs(*pair) for pair in scored])
    check_ndcg(scored, all_pairs)
    often["ours_ndcg"] = partial(ours_ndcg, scored)
    rarely = {
        "torchmetrics_ndcg": partial(torchmetrics_ndcg, *all_pairs, TOP_K),
        "torchmetrics_all": partial(torchmetrics_all, *pairs),
        "lrml": partial(evaluate, lrml.score_users, batches, TOP_K),
    }
    started, processor_started = time.perf_counter(), time.process_time()
    seconds = take_turns(often, WARM_UP, ROUNDS) | take_turns(rarely, 1, RARE_ROUNDS)
    cores = (time.process_time() - processor_started) / (time.perf_counter() - started)
    users = sum(len(batch.users) for batch in batches)
    facts = {**describe(data, users, len(batches), path), "cores_had": cores}
    flops = {
        "bare": users * product_flops(WIDTH, data.num_items),
        "ours": users * product_flops(WIDTH, data.num_items),
        "neumf": len(few.users) * neumf_flops(neumf),
        "lrml": users * lrml_flops(lrml),
    }
    report(seconds, flops, facts, users, len(few.users))


def product_flops(width: int, rows: int, columns: int = 1) -> int:
    return 2 * width * rows * columns


def neumf_flops(model: NeuMF) -> int:
    """Of a user's scores of all items, whose part of the first layer is there already."""
    layers = [*model.dense[1:], model.head]
    return sum(product_flops(x.in_features, model.num_items, x.out_features) for x in layers)


def lrml_flops(model: LRML) -> int:
    """Of a user's scores of all items: attention to the memories, and the relation's length."""
    count, width = model.memories.shape
    return product_flops(width + count, model.num_items, count)


def bare(model: BPRMF, batches: list[RankingBatch]) -> None:
    for batch in batches:
        scores = model.user_embedding.weight[batch.users] @ model.item_embedding.weight.T
        scores.topk(max(TOP_K), dim=1)


def unseen_pairs(scores: Tensor, batch: RankingBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Score, relevance and row of every unseen item, flat, as torchmetrics takes them."""
    unseen = torch.ones_like(scores, dtype=torch.bool)
    unseen[batch.seen_rows, batch.seen_items] = False
    relevant = torch.zeros_like(unseen)
    relevant[batch.relevant_rows, batch.relevant_items] = True
    rows = torch.arange(len(scores)).unsqueeze(1).expand_as(scores)
    return scores[unseen], relevant[unseen], rows[unseen]


def join(batches: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """All batches' pairs, with rows counted on from batch to batch."""
    scores, relevant, rows = (list(parts) for parts in zip(*batches, strict=True))
    for number in range(1, len(rows)):
        rows[number] = rows[number] + rows[number - 1].max() + 1
    return torch.cat(scores), torch.cat(relevant), torch.cat(rows)


def ours_ndcg(scored: list[tuple[Tensor, RankingBatch]]) -> list[float]:
    metrics = RankingMetrics([f"ndcg@{k}" for k in TOP_K])
    for scores, batch in scored:
        metrics.update(scores, batch)  # masks in place, a second time without effect
    return list(metrics.compute().values())


def torchmetrics_ndcg(
    scores: Tensor, relevant: Tensor, rows: Tensor, top_k: tuple[int, ...] = TOP_K[:1]
) -> list[float]:
    metrics = MetricCollection({str(k): RetrievalNormalizedDCG(top_k=k) for k in top_k})
    metrics.update(scores, relevant, indexes=rows)
    return [float(value) for value in metrics.compute().values()]


def torchmetrics_all(scores: Tensor, relevant: Tensor, rows: Tensor) -> dict[str, Tensor]:
    kinds = (RetrievalNormalizedDCG, RetrievalRecall, RetrievalHitRate)
    metrics = {f"{kind.__name__}@{k}": kind(top_k=k) for kind in kinds for k in TOP_K}
    metrics = MetricCollection(metrics)
    metrics.update(scores, relevant, indexes=rows)
    return metrics.compute()


def check_torchmetrics(model: BPRMF, batch: RankingBatch, pairs: tuple[Tensor, ...]) -> None:
    ours = evaluate(model.scorer(), [batch], TOP_K)[f"ndcg@{TOP_K[0]}"]
    torch.testing.assert_close(torchmetrics_ndcg(*pairs)[0], ours, rtol=1e-4, atol=1e-6)


def check_ndcg(scored: list[tuple[Tensor, RankingBatch]], pairs: tuple[Tensor, ...]) -> None:
    expected = torchmetrics_ndcg(*pairs, TOP_K)
    for ours, theirs in zip(sorted(ours_ndcg(scored)), sorted(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def check_pairwise(model: NeuMF, users: Tensor) -> None:
    expected = plain.scores(model, users, PAIRWISE_USERS[0])
    torch.testing.assert_close(model.score_users(users), expected, rtol=1e-4, atol=1e-5)


def take_turns(ways, warm_up: int, rounds: int) -> dict[str, list[float]]:
    seconds = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def describe(data: RecsysDataModule, users: int, batches: int, path: str | None) -> dict:
    return {
        "data": Path(path).name if path else "generated",
        "users": users,
        "items": data.num_items,
        "seen_pairs": len(data.train),
        "held_out_pairs": len(data.validation),
        "batches": batches,
        "width": WIDTH,
        "top_k": TOP_K,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": str(torch.__version__),
        "torchmetrics": torchmetrics.__version__,
        "python": platform.python_version(),
    }


def report(seconds, flops, result: dict, users: int, few_users: int) -> None:
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    pairwise = min((n for n in medians if n.startswith("neumf_pairwise")), key=medians.get)
    ours_per_user = medians["ours"] / users
    ratios = {
        "share_of_bare_throughput": medians["bare"] / medians["ours"],
        "speedup_over_torchmetrics_one": medians["torchmetrics_one"] / few_users / ours_per_user,
        "speedup_over_torchmetrics_all": medians["torchmetrics_all"] / few_users / ours_per_user,
        "ndcg_speedup_over_torchmetrics": medians["torchmetrics_ndcg"] / medians["ours_ndcg"],
        "neumf_speedup_over_pairwise": medians[pairwise] / medians["neumf"],
        "lrml_seconds_all_users": medians["lrml"],
    }
    few_names = {
        n for n in seconds if n.startswith(("torchmetrics_one", "torchmetrics_all", "neumf"))
    }
    result["seconds"] = {
        name: {
            "users": few_users if name in few_names else users,
            "rounds": len(times),
            "median": medians[name],
            "quartiles": statistics.quantiles(times, n=4)[::2],
        }
        for name, times in seconds.items()
    }
    peaks = machine.peaks(size=1e6)
    shares = {name: peaks.limit(flops=count) / medians[name] for name, count in flops.items()}
    result |= ratios | {"peaks": peaks.as_dict(), "share_of_peak": shares}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"ranking_{result['threads']}t.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{result['data']} data, {users} users x {result['items']} items, K {TOP_K}, "
        f"{result['threads']} threads on {result['cores_had']:.1f} cores, "
        f"load {result['load_average']:.1f}"
    )
    for name, numbers in result["seconds"].items():
        low, high = numbers["quartiles"]
        per_user = 1e6 * numbers["median"] / numbers["users"]
        print(
            f"{name:18} {numbers['users']:5} users {numbers['median']:8.3f} s "
            f"(quartiles {low:.3f} to {high:.3f}) {per_user:9.1f} us per user"
        )
    print(f"ours keeps {ratios['share_of_bare_throughput']:.0%} of the bare throughput")
    one, every = (ratios[f"speedup_over_torchmetrics_{part}"] for part in ("one", "all"))
    print(f"ours is {one:.0f}x as fast as torchmetrics' NDCG at one K")
    print(f"ours is {every:.0f}x as fast as torchmetrics' three metrics at three K")
    ndcg = ratios["ndcg_speedup_over_torchmetrics"]
    print(f"ours is {ndcg:.0f}x as fast as torchmetrics' NDCG at three K on the same scores")
    print(f"neumf is {ratios['neumf_speedup_over_pairwise']:.1f}x as fast as {pairwise}")
    print(f"lrml ranks all users in {ratios['lrml_seconds_all_users']:.1f} s")
    reached = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    print(f"of a large product's {peaks.gflops:.0f} GFLOP/s the rows reach: {reached}")


if __name__ == "__main__":
    main()
