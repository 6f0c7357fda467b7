"""Ranks the same users in one process and in two, and prints what each has found."""

import json
import multiprocessing
import sys

import torch
from torch import distributed

from recsys_models.data import random_split, synthetic_interactions
from recsys_models.data.loaders import ranking_loader
from recsys_models.metrics import evaluate


def scores(users):
    rows = [torch.randn(40, generator=torch.Generator().manual_seed(int(u))) for u in users]
    return torch.stack(rows).mul(2).round()  # with ties


def judge(rank, world, address, queue):
    torch.set_num_threads(1)
    if world > 1:
        distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    train, _, test = random_split(synthetic_interactions(61, 40, 700), (0.7, 0.1, 0.2), 0)
    found = []
    for one_by_one in (False, True):
        loader = ranking_loader(test, train, 9, one_by_one)
        found.append(evaluate(scores, loader, [5, "map@10", "mrr@10"]))
    queue.put((world, len(loader), found))


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")  # the imports above are paid once
    queue = context.SimpleQueue()
    for world in (1, 2):
        arguments = [(rank, world, sys.argv[1], queue) for rank in range(world)]
        processes = [context.Process(target=judge, args=one) for one in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
    print(json.dumps([queue.get() for _ in range(3)]))
