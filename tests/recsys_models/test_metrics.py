import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
import torch

from recsys_models.data.batches import RankingBatch
from recsys_models.metrics import RankingMetrics, evaluate
from recsys_models.metrics.functional import (
    METRICS,
    average_precision,
    hit_rate,
    ndcg,
    precision,
    recall,
    reciprocal_rank,
)
from recsys_models.metrics.ranks import hits, ranks_of_relevant
from recsys_models.native import library

NONE = torch.empty(0, dtype=torch.int64)
ZERO = torch.zeros(1, dtype=torch.int64)
TOP_K = (1, 5, 10)
ALL = tuple(f"{name}@{k}" for k in TOP_K for name in METRICS)


@pytest.fixture(params=["C", "torch"], autouse=True)
def way(request, monkeypatch):
    """Every test of this file, by either way to count ranks."""
    if request.param == "torch":
        monkeypatch.setattr(library, "_library", lambda: None)
    elif shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    else:
        assert library._library() is not None
    return request.param


def make_batch(num_users=60, num_items=40, seed=0, with_empty_users=False, one_by_one=False):
    """Disjoint random seen and relevant items; by default every user has a relevant one."""
    generator = np.random.default_rng(seed)
    kind = generator.choice(3, p=[0.6, 0.25, 0.15], size=(num_users, num_items))
    kind[:, 7] = 2
    if with_empty_users:
        kind[::5][kind[::5] == 2] = 0
    (seen_rows, seen_items), (rows, items) = (np.nonzero(kind == k) for k in (1, 2))
    arrays = (np.arange(num_users), seen_rows, seen_items, rows, items)
    return RankingBatch(*(torch.from_numpy(a) for a in arrays), one_by_one=one_by_one)


def random_scores(num_users=60, num_items=40, seed=0, levels=None):
    """Positive and negative scores; with ``levels``, only so many different ones: many ties."""
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.randn(num_users, num_items, generator=generator)
    return torch.randint(-levels, levels, (num_users, num_items), generator=generator).float()


def values_by_loops(ranked, relevant, k):
    """All metrics of one list at K, in the order of ``METRICS``: the slow reference."""
    found = [rank for rank, i in enumerate(ranked[:k], start=1) if i in relevant]
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(relevant)) + 1))
    precisions = [sum(other <= rank for other in found) / rank for rank in found]
    return (
        sum(1 / math.log2(rank + 1) for rank in found) / ideal,
        len(found) / len(relevant),
        float(bool(found)),
        1 / found[0] if found else 0.0,
        len(found) / k,
        sum(precisions) / len(relevant),
    )


def by_loops(scores, batch, k):
    """All metrics of every list, shape (lists, len(METRICS)), by sorting (-score, id)."""
    rows = []
    for row, user_scores in enumerate(scores.tolist()):
        seen = set(batch.seen_items[batch.seen_rows == row].tolist())
        relevant = set(batch.relevant_items[batch.relevant_rows == row].tolist())
        candidates = [i for i in range(len(user_scores)) if i not in seen]
        if batch.one_by_one:
            for p in relevant:
                rivals = [i for i in candidates if i == p or i not in relevant]
                ranked = sorted(rivals, key=lambda i, s=user_scores, p=p: (-s[i], i != p))
                rows.append(values_by_loops(ranked, {p}, k))
        elif relevant:
            ranked = sorted(candidates, key=lambda i, s=user_scores: (-s[i], i))
            rows.append(values_by_loops(ranked, relevant, k))
    return np.array(rows)


def split_batch(batch, scores, sizes):
    """The same users in several batches."""
    start = 0
    for size in sizes:
        stop = start + size
        seen = (batch.seen_rows >= start) & (batch.seen_rows < stop)
        relevant = (batch.relevant_rows >= start) & (batch.relevant_rows < stop)
        yield (
            scores[start:stop].clone(),
            RankingBatch(
                batch.users[start:stop],
                batch.seen_rows[seen] - start,
                batch.seen_items[seen],
                batch.relevant_rows[relevant] - start,
                batch.relevant_items[relevant],
                batch.one_by_one,
            ),
        )
        start = stop


def hits_of(scores, pairs, k, one_by_one=False):
    """Hits from the rows and items that are left out, and those that are relevant."""
    batch = RankingBatch(torch.arange(len(scores)), *pairs, one_by_one)
    return hits(ranks_of_relevant(scores, batch, k), batch, k)


# Pure functions, by hand.


def test_ndcg_recall_and_hit_rate_worked_by_hand():
    hits = torch.tensor([[True, False, True], [False, False, False]])
    relevant = torch.tensor([5, 1])
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert ndcg(hits, relevant, 3).tolist() == pytest.approx([1.5 / ideal, 0.0])
    assert recall(hits, relevant, 3).tolist() == pytest.approx([2 / 5, 0.0])
    assert hit_rate(hits, 3).tolist() == [1.0, 0.0]
    assert recall(hits, relevant, 1).tolist() == pytest.approx([1 / 5, 0.0])


def test_mrr_precision_and_map_worked_by_hand():
    hits = torch.tensor([[False, True, True], [False, False, False]])
    relevant = torch.tensor([5, 1])
    assert reciprocal_rank(hits, 3).tolist() == [0.5, 0.0]
    assert reciprocal_rank(hits, 1).tolist() == [0.0, 0.0]
    assert precision(hits, 3).tolist() == pytest.approx([2 / 3, 0.0])
    assert precision(hits, 10).tolist() == pytest.approx([2 / 10, 0.0])
    assert average_precision(hits, relevant, 3).tolist() == pytest.approx(
        [(1 / 2 + 2 / 3) / 5, 0.0]
    )
    assert average_precision(hits, relevant, 2).tolist() == pytest.approx([1 / 2 / 5, 0.0])


def test_a_relevant_item_alone_ranks_before_equals_and_is_no_rival_of_others():
    scores = torch.tensor([[4.0, 3.0, 3.0, 2.0, 9.0, 3.0]])
    seen, relevant = torch.tensor([4]), torch.tensor([1, 3])
    row = torch.zeros(2, dtype=torch.int64)
    found = hits_of(scores, (row[:1], seen, row, relevant), 4, one_by_one=True)
    # Item 1 stands behind item 0 only; item 3 behind items 0, 2 and 5, but not behind item 1.
    assert found.tolist() == [[False, True, False, False], [False, False, False, True]]


def test_perfect_ranking_has_ndcg_one_even_with_fewer_relevant_items_than_places():
    hits = torch.tensor([[True, True, False, False]])
    assert ndcg(hits, torch.tensor([2]), 4).tolist() == [1.0]
    assert recall(hits, torch.tensor([2]), 4).tolist() == [1.0]


def test_a_catalogue_smaller_than_k_still_has_an_ideal_list():
    hits = torch.tensor([[True, True]])
    assert ndcg(hits, torch.tensor([2]), 10).tolist() == [1.0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [None, 1, 3, 10])
def test_hits_equal_sorting_by_score_then_id(levels, seed):
    batch, scores = make_batch(seed=seed), random_scores(seed=seed, levels=levels)
    found = hits_of(scores.clone(), batch[1:5], 10)
    for row in range(len(scores)):
        seen = set(batch.seen_items[batch.seen_rows == row].tolist())
        relevant = set(batch.relevant_items[batch.relevant_rows == row].tolist())
        candidates = [i for i in range(scores.shape[1]) if i not in seen]
        ranked = sorted(candidates, key=lambda i, s=scores[row]: (-s[i].item(), i))
        assert found[row].tolist() == [item in relevant for item in ranked[:10]]


def test_constant_scores_rank_unseen_items_by_id():
    every_pair = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([3, 499, 0, 2, 3])
    left_out = torch.tensor([0, 0]), torch.tensor([1, 2])
    found = hits_of(torch.zeros(2, 500), (*left_out, *every_pair), 3)
    # Their lists are 0, 3, 4 and 0, 1, 2.
    assert found.tolist() == [[False, True, False], [True, False, True]]


def test_more_ties_than_are_compared_at_a_time():
    users, one = torch.arange(600), torch.ones(600, dtype=torch.int64)
    found = hits_of(torch.zeros(600, 40), (NONE, NONE, users, one), 3)
    assert found.tolist() == [[False, True, False]] * 600


def test_places_without_a_candidate_and_items_left_out_are_never_hits():
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    row = torch.zeros(3, dtype=torch.int64)
    seen, relevant = torch.tensor([0, 2]), torch.tensor([0, 1])
    found = hits_of(scores, (row[:2], seen, row[:2], relevant), 3)
    assert found.tolist() == [[True, False, False]]


def test_k_beyond_the_catalogue_ranks_all_items():
    found = hits_of(torch.tensor([[1.0, 2.0]]), (NONE, NONE, ZERO, ZERO), 4)
    assert found.tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("which", range(4))
def test_an_id_out_of_bounds_raises(which, one_by_one):
    pairs = [ZERO, ZERO, ZERO, ZERO + 1]
    pairs[which] = ZERO + 5
    with pytest.raises(IndexError):
        hits_of(torch.zeros(2, 3), pairs, 2, one_by_one)


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("relevant", [False, True])
def test_nan_score_raises(one_by_one, relevant):
    batch, scores = make_batch(one_by_one=one_by_one), random_scores()
    free = [i for i in range(40) if i not in batch.seen_items[batch.seen_rows == 3]]
    scores[3, 7 if relevant else min(set(free) - {7})] = torch.nan
    with pytest.raises(FloatingPointError, match="got NaN"):
        RankingMetrics().update(scores, batch)


# The metric, against independent references.


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_trec_eval_for_every_user(seed, levels):
    batch, scores = make_batch(seed=seed), random_scores(seed=seed, levels=levels) - 1.0
    names = [f"{99 - i}" for i in range(40)]  # of equal scores it puts the greater name first
    relevant = {
        str(u): {names[i]: 1 for i in batch.relevant_items[batch.relevant_rows == u].tolist()}
        for u in range(60)
    }
    masked = scores.clone()
    masked[batch.seen_rows, batch.seen_items] = -torch.inf
    run = {
        str(u): {names[i]: s for i, s in enumerate(masked[u].tolist()) if s > -math.inf}
        for u in range(60)
    }
    theirs = {
        "ndcg": "ndcg_cut",
        "recall": "recall",
        "hr": "success",
        "precision": "P",
        "map": "map_cut",
    }
    cuts = ",".join(map(str, TOP_K))
    judge = pytrec_eval.RelevanceEvaluator(
        relevant, {*(f"{measure}.{cuts}" for measure in theirs.values()), "recip_rank"}
    )
    judged = judge.evaluate(run)
    for u, (user_scores, user_batch) in enumerate(split_batch(batch, scores, [1] * 60)):
        ours = evaluate(lambda _, s=user_scores: s, [user_batch], ALL)
        for k in TOP_K:
            reciprocal = judged[str(u)]["recip_rank"]  # not cut: 0 beyond the first K ranks
            expected = {
                f"{our}@{k}": judged[str(u)][f"{their}_{k}"] for our, their in theirs.items()
            }
            expected[f"mrr@{k}"] = reciprocal if reciprocal > 1 / (k + 0.5) else 0.0
            assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("k", [*TOP_K, 50])
def test_metrics_equal_loops_with_negatives_ties_and_users_without_items(levels, k, one_by_one):
    batch = make_batch(with_empty_users=True, one_by_one=one_by_one)
    scores = random_scores(levels=levels)
    expected = by_loops(scores, batch, k)
    metrics = RankingMetrics([f"{name}@{k}" for name in METRICS])
    metrics.update(scores.clone(), batch)
    values = metrics.compute()
    assert list(values) == [f"{name}@{k}" for name in METRICS]
    assert list(values.values()) == pytest.approx(expected.mean(axis=0), abs=1e-12)
    assert int(metrics.lists) == len(expected) == (len(batch.relevant_rows) if one_by_one else 48)
    assert int(metrics.users) == 48
    assert int(metrics.skipped) == 12


def test_the_lambda_opt_formulas_hold():
    batch = make_batch(one_by_one=True)
    scores = random_scores(levels=3)
    ranks = []
    for u, p in zip(batch.relevant_rows.tolist(), batch.relevant_items.tolist(), strict=True):
        had = torch.cat(
            [batch.seen_items[batch.seen_rows == u], batch.relevant_items[batch.relevant_rows == u]]
        )
        never = [i for i in range(40) if i not in had]
        ranks.append(1 + int((scores[u, never] > scores[u, p]).sum()))
    ranks = np.array(ranks)
    found = evaluate(lambda _: scores.clone(), [batch], ["hr@5", "ndcg@5"])
    assert found["hr@5"] == pytest.approx((ranks <= 5).mean())
    assert found["ndcg@5"] == pytest.approx(np.mean((ranks <= 5) / np.log2(1 + ranks)))


@pytest.mark.parametrize(
    ("top_k", "names"),
    [
        ([10], ["ndcg@10", "recall@10", "hr@10"]),
        ([5, 10], [f"{name}@{k}" for k in (5, 10) for name in ("ndcg", "recall", "hr")]),
        ([2, "map@7"], ["ndcg@2", "recall@2", "hr@2", "map@7"]),
        (["hr@3", 3], ["hr@3", "ndcg@3", "recall@3"]),
    ],
)
def test_a_number_asks_for_the_usual_three_and_a_name_for_one(top_k, names):
    metrics = RankingMetrics(top_k)
    metrics.update(random_scores(), make_batch())
    assert metrics.names == list(metrics.compute()) == names


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("sizes", [[60], [1] * 60, [7, 50, 3]])
def test_batching_changes_nothing(sizes, one_by_one):
    batch, scores = make_batch(one_by_one=one_by_one), random_scores(levels=3)
    whole = evaluate(lambda _: scores.clone(), [batch], ALL)
    metrics = RankingMetrics(ALL)
    for part_scores, part in reversed(list(split_batch(batch, scores, sizes))):
        metrics.update(part_scores, part)
    assert metrics.compute() == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("in_order", [True, False])
def test_scores_may_be_asked_for_a_few_users_at_a_time(in_order, one_by_one):
    batch, scores = make_batch(300, one_by_one=one_by_one), random_scores(300, levels=3)
    whole, asked = RankingMetrics(ALL), []
    whole.update(scores.clone(), batch)
    if not in_order:
        backwards = {name: getattr(batch, name).flip(0) for name in ("seen_rows", "seen_items")}
        batch = batch._replace(**backwards)

    def score_users(users):
        asked.append(len(users))
        return scores[users]

    metrics = RankingMetrics(ALL)
    metrics.update(score_users, batch)
    assert metrics.compute() == pytest.approx(whole.compute(), abs=1e-12)
    assert asked == ([128, 128, 44] if in_order else [300])


def test_states_of_two_processes_add_up():
    batch, scores = make_batch(), random_scores()
    parts = list(split_batch(batch, scores, [25, 35]))
    apart = [RankingMetrics(TOP_K) for _ in parts]
    for metrics, (part_scores, part) in zip(apart, parts, strict=True):
        metrics.update(part_scores, part)
    for state in ("sums", "lists", "users", "skipped"):
        setattr(apart[0], state, getattr(apart[0], state) + getattr(apart[1], state))
    assert apart[0].compute() == pytest.approx(evaluate(lambda _: scores, [batch], TOP_K))


def test_two_real_processes_get_what_one_gets(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.recsys_models.judges", f"file://{tmp_path}/meet"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone, *together = json.loads(done.stdout.splitlines()[-1])
    assert (alone[0], [world for world, _, _ in together]) == (1, [2, 2])
    assert sum(batches for _, batches, _ in together) >= alone[1] > 2
    for _, _, found in together:
        for ours, expected in zip(found, alone[2], strict=True):
            assert ours == pytest.approx(expected, abs=1e-12)


def test_reset_forgets_earlier_users():
    batch = make_batch()
    metrics = RankingMetrics()
    metrics.update(random_scores(seed=1), batch)
    metrics.reset()
    metrics.update(random_scores(seed=2), batch)
    assert metrics.compute() == evaluate(lambda _: random_scores(seed=2), [batch])


def test_no_user_with_positives_is_an_error():
    metrics = RankingMetrics()
    metrics.update(torch.zeros(2, 5), RankingBatch(torch.arange(2), NONE, NONE, NONE, NONE))
    with pytest.raises(ValueError, match="at least one user with a held-out item"):
        metrics.compute()


@pytest.mark.parametrize("top_k", [[], [0], [10, -1], ["auc@5"], ["map"], ["map@0"], ["@5x"]])
def test_impossible_k_is_refused(top_k):
    with pytest.raises(ValueError, match="top_k"):
        RankingMetrics(top_k)
