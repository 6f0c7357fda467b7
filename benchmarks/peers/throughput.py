"""Training throughput of BPR-MF, NeuMF and NGCF on ML-1M, beside RecBole's.

Run from the root of the checkout, with as many threads as wanted::

    OMP_NUM_THREADS=1 python benchmarks/peers/throughput.py ml-1m/ratings.dat

The first run makes an environment for RecBole in the cache folder. Writes
benchmarks/results/peers_<threads>t.json. README.md beside this file says what is equal on both
sides and what is not. ``ours`` is as shipped, ``ours_unfused`` the same with the optimizer's
``fused`` off, as RecBole has it. All train in turns, in the same run.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from recbole_room import make_environment, write_atomic_files

from recsys_models.data import RecsysDataModule

BATCH_SIZE = 2048  # positives per step
ROUNDS = 3  # turns that count, after one that does not
MODELS = {  # RecBole's name, its settings, negatives per positive, turns that make up an epoch
    "bpr_mf": ("BPR", {"embedding_size": 64}, 1, 1),
    "neumf": (
        "NeuMF",
        {
            "mf_embedding_size": 8,
            "mlp_embedding_size": 32,
            "mlp_hidden_size": [32, 16, 8],
            "dropout_prob": 0.0,
            "train_batch_size": 5 * BATCH_SIZE,  # counts a positive and its negatives as 5
        },
        4,
        1,
    ),
    "ngcf": (
        "NGCF",
        {
            "embedding_size": 64,
            "hidden_size_list": [64, 64, 64],
            "message_dropout": 0.1,
            "node_dropout": 0.0,
            "reg_weight": 0.0,
        },
        1,
        6,
    ),
}
EQUAL = ("positives", "steps", "negatives", "users", "items", "threads")  # on both sides
HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"


class Worker:
    """A process that trains one epoch, or a part of one, whenever it is told to."""

    def __init__(self, python: Path, script: str, settings: dict, folder: Path | None) -> None:
        self._name = script
        self._process = subprocess.Popen(
            [python, HERE / script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        self._say(json.dumps(settings))
        self.facts = self.turn()  # warms up

    def turn(self) -> dict:
        """Let it work, and get its answer."""
        self._say("")
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._name} ended before its turn; its error stands above.")
        return json.loads(answer)

    def close(self) -> None:
        """End it while it waits for a turn that does not come."""
        self._process.kill()
        self._process.wait()

    def _say(self, line: str) -> None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Training throughput beside RecBole's.")
    parser.add_argument("path", type=Path, help="ratings.dat of ML-1M")
    parser.add_argument("--cache", type=Path, default=Path(".peers"), help="default: .peers")
    parser.add_argument("--steps", type=int, help="fewer steps a turn, and nothing written")
    args = parser.parse_args()
    cache = args.cache.resolve()
    python = make_environment(cache)
    data = RecsysDataModule("ml_1m", str(args.path))
    data.setup()
    write_atomic_files(data, cache)
    steps = -(-len(data.train) // BATCH_SIZE)
    load = os.getloadavg()[0]
    models, versions = {}, {}
    for name in MODELS:
        per_turn = min(args.steps or steps, -(-steps // MODELS[name][-1]))
        workers = start(name, python, args.path.resolve(), cache, per_turn)
        facts = {way: worker.facts for way, worker in workers.items()}
        check(facts)
        turns = {way: [] for way in workers}
        for _ in range(ROUNDS):
            for way, worker in workers.items():
                turns[way].append(worker.turn())
        for worker in workers.values():
            worker.close()
        models[name] = summary(facts, turns, per_turn)
        versions = {way: facts[way]["versions"] for way in ("ours", "recbole")}
        print_model(name, models[name])
    if not args.steps:
        write_results(data, models, versions, load)


def start(name: str, python: Path, path: Path, cache: Path, steps: int) -> dict[str, Worker]:
    """Each way's process after its first turn, one started after the other."""
    peer, peer_settings, negatives, _ = MODELS[name]
    epochs = 2 + ROUNDS  # never all: a process that ends its work disturbs the next one's turn
    common = {"steps": steps, "epochs": epochs}
    ours = {"path": str(path), "folder": str(cache / "ours"), "batch_size": BATCH_SIZE}
    unfused = [f"model={name}", "optimizer.fused=false"]
    peer_config = {
        "data_path": str(cache),
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id"]},
        "checkpoint_dir": str(cache / "saved"),
        "use_gpu": False,
        "epochs": epochs,
        "show_progress": False,
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": negatives},
        "train_batch_size": BATCH_SIZE,
        "learner": "adam",
        "learning_rate": 1e-3,
        **peer_settings,
    }
    recbole = {"model": peer, "dataset": "ratings", "config": peer_config}
    own = Path(sys.executable)
    return {
        "ours": Worker(own, "ours.py", common | ours | {"overrides": unfused[:1]}, None),
        "ours_unfused": Worker(own, "ours.py", common | ours | {"overrides": unfused}, None),
        "recbole": Worker(python, "recbole_side.py", common | recbole, cache),  # writes logs there
    }


def check(facts: dict[str, dict]) -> None:
    """Both sides must train on as much, in as many steps, with as many threads."""
    for way, known in facts.items():
        for key in EQUAL:
            if known[key] != facts["ours"][key]:
                raise RuntimeError(
                    f"{key} must be equal on both sides; got {facts['ours'][key]} in ours and "
                    f"{known[key]} in {way}. Compare MODELS with conf/model."
                )


def summary(facts: dict[str, dict], turns: dict[str, list[dict]], steps: int) -> dict:
    known = facts["ours"]
    positives = min(steps * BATCH_SIZE, known["positives"])
    ways = {}
    for way, answers in turns.items():
        wall, processor = (
            [answer[clock] for answer in answers] for clock in ("seconds", "processor_seconds")
        )
        ways[way] = {
            "seconds": wall,
            "processor_seconds": processor,
            "positives_per_second": positives / statistics.median(wall),
            "positives_per_processor_second": positives / statistics.median(processor),
            "cores_had": sum(processor) / sum(wall),
            "parameters": facts[way]["parameters"],
            "loss_of_turns": [answer["loss"] for answer in (facts[way], *answers)],
        }
    return {
        "negatives_per_positive": known["negatives"],
        "steps_per_turn": steps,
        "share_of_epoch_per_turn": positives / known["positives"],
        "ways": ways,
        **speedups(ways),
    }


def speedups(ways: dict[str, dict]) -> dict[str, float]:
    """Ours over RecBole's, by the clock on the wall and by that of the processor."""
    ratios = {}
    for clock in ("", "processor_"):
        speed = {way: ways[way][f"positives_per_{clock}second"] for way in ways}
        ratios[f"{clock}speedup"] = speed["ours"] / speed["recbole"]
        ratios[f"{clock}speedup_unfused"] = speed["ours_unfused"] / speed["recbole"]
    return ratios


def print_model(name: str, model: dict) -> None:
    print(
        f"{name}: {model['negatives_per_positive']} negatives per positive, "
        f"{model['share_of_epoch_per_turn']:.2f} of an epoch a turn"
    )
    for way, numbers in model["ways"].items():
        times = ", ".join(f"{seconds:.2f}" for seconds in numbers["seconds"])
        print(
            f"  {way:12} {numbers['positives_per_second']:7.0f} positives/s, "
            f"{numbers['positives_per_processor_second']:7.0f} per processor second; "
            f"turns {times} s on {numbers['cores_had']:.2f} cores, "
            f"last loss {numbers['loss_of_turns'][-1]:.4f}"
        )
    print(
        f"  {model['speedup']:.2f}x as fast as RecBole, {model['speedup_unfused']:.2f}x without "
        f"fused Adam; by processor time {model['processor_speedup']:.2f}x and "
        f"{model['processor_speedup_unfused']:.2f}x",
        flush=True,
    )


def write_results(data: RecsysDataModule, models: dict, versions: dict, load: float) -> None:
    result = {
        "data": "ml-1m",
        "users": data.num_users,
        "items": data.num_items,
        "training_positives": len(data.train),
        "positives_per_step": BATCH_SIZE,
        "threads": torch.get_num_threads(),
        "load_average_before": load,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
        "rounds": ROUNDS,
        "models": models,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"peers_{result['threads']}t.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{result['threads']} threads, load {load:.1f} before, {result['load_average']:.1f} after"
    )


if __name__ == "__main__":
    main()
