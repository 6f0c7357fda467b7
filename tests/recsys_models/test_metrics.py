import math

import numpy as np
import pytest
import pytrec_eval
import torch

from recsys_models.data.batches import RankingBatch
from recsys_models.metrics import RankingMetrics, evaluate
from recsys_models.metrics.functional import hit_rate, hits_from_top_k, masked_top_k, ndcg, recall

NONE = torch.empty(0, dtype=torch.int64)
TOP_K = (1, 5, 10)


def make_batch(num_users=60, num_items=40, seed=0, with_empty_users=False):
    """Disjoint random seen and relevant items; by default every user has a relevant one."""
    generator = np.random.default_rng(seed)
    kind = generator.choice(3, p=[0.6, 0.25, 0.15], size=(num_users, num_items))
    kind[:, 7] = 2
    if with_empty_users:
        kind[::5][kind[::5] == 2] = 0
    (seen_rows, seen_items), (rows, items) = (np.nonzero(kind == k) for k in (1, 2))
    arrays = (np.arange(num_users), seen_rows, seen_items, rows, items)
    return RankingBatch(*(torch.from_numpy(a) for a in arrays))


def random_scores(num_users=60, num_items=40, seed=0, levels=None):
    """Positive and negative scores; with ``levels``, only so many different ones: many ties."""
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.randn(num_users, num_items, generator=generator)
    return torch.randint(-levels, levels, (num_users, num_items), generator=generator).float()


def per_user_by_loops(scores, batch, k):
    """NDCG, Recall, HR of each user by sorting (-score, id): the slow reference."""
    rows = []
    for row, user_scores in enumerate(scores.tolist()):
        seen = set(batch.seen_items[batch.seen_rows == row].tolist())
        relevant = set(batch.relevant_items[batch.relevant_rows == row].tolist())
        if not relevant:
            continue
        candidates = [i for i in range(len(user_scores)) if i not in seen]
        ranked = sorted(candidates, key=lambda i, s=user_scores: (-s[i], i))[:k]
        gains = [1 / math.log2(rank + 2) for rank, i in enumerate(ranked) if i in relevant]
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(relevant))))
        rows.append((sum(gains) / ideal, len(gains) / len(relevant), float(bool(gains))))
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
            ),
        )
        start = stop


# Pure functions, by hand.


def test_ndcg_recall_and_hit_rate_worked_by_hand():
    hits = torch.tensor([[True, False, True], [False, False, False]])
    relevant = torch.tensor([5, 1])
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert ndcg(hits, relevant, 3).tolist() == pytest.approx([1.5 / ideal, 0.0])
    assert recall(hits, relevant, 3).tolist() == pytest.approx([2 / 5, 0.0])
    assert hit_rate(hits, 3).tolist() == [1.0, 0.0]
    assert recall(hits, relevant, 1).tolist() == pytest.approx([1 / 5, 0.0])


def test_perfect_ranking_has_ndcg_one_even_with_fewer_relevant_items_than_places():
    hits = torch.tensor([[True, True, False, False]])
    assert ndcg(hits, torch.tensor([2]), 4).tolist() == [1.0]
    assert recall(hits, torch.tensor([2]), 4).tolist() == [1.0]


def test_a_catalogue_smaller_than_k_still_has_an_ideal_list():
    hits = torch.tensor([[True, True]])
    assert ndcg(hits, torch.tensor([2]), 10).tolist() == [1.0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [None, 1, 3, 10])
def test_top_k_equals_sorting_by_score_then_id(levels, seed):
    batch, scores = make_batch(seed=seed), random_scores(seed=seed, levels=levels)
    top = masked_top_k(scores.clone(), batch.seen_rows, batch.seen_items, 10)
    for row in range(len(scores)):
        seen = set(batch.seen_items[batch.seen_rows == row].tolist())
        candidates = [i for i in range(scores.shape[1]) if i not in seen]
        ranked = sorted(candidates, key=lambda i, s=scores[row]: (-s[i].item(), i))
        assert top[row].tolist() == ranked[:10]


def test_constant_scores_rank_unseen_items_by_id():
    top = masked_top_k(torch.zeros(2, 500), torch.tensor([0, 0]), torch.tensor([1, 2]), 3)
    assert top.tolist() == [[0, 3, 4], [0, 1, 2]]


def test_places_without_a_candidate_are_empty_and_never_hit():
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    top = masked_top_k(scores, torch.tensor([0, 0]), torch.tensor([0, 2]), 3)
    assert top.tolist() == [[1, -1, -1]]
    hits = hits_from_top_k(top, torch.tensor([0, 0]), torch.tensor([0, 1]), 3)
    assert hits.tolist() == [[True, False, False]]


def test_an_empty_place_does_not_hit_the_last_item_of_the_row_before():
    top = torch.tensor([[0, 1], [0, -1]])
    hits = hits_from_top_k(top, torch.tensor([0]), torch.tensor([2]), 3)
    assert not hits.any()


def test_k_beyond_the_catalogue_ranks_all_items():
    assert masked_top_k(torch.tensor([[1.0, 2.0]]), NONE, NONE, 10).tolist() == [[1, 0]]


def test_nan_score_raises():
    scores = random_scores()
    scores[3, 4] = torch.nan
    with pytest.raises(FloatingPointError, match="got NaN"):
        masked_top_k(scores, NONE, NONE, 10)


# The metric, against independent references.


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_trec_eval_for_every_user(seed):
    batch, scores = make_batch(seed=seed), random_scores(seed=seed) - 1.0
    relevant = {
        str(u): {str(int(i)): 1 for i in batch.relevant_items[batch.relevant_rows == u]}
        for u in range(60)
    }
    masked = scores.clone()
    masked[batch.seen_rows, batch.seen_items] = -torch.inf
    run = {
        str(u): {str(i): s for i, s in enumerate(masked[u].tolist()) if s > -math.inf}
        for u in range(60)
    }
    cuts = ",".join(map(str, TOP_K))
    judge = pytrec_eval.RelevanceEvaluator(
        relevant, {f"ndcg_cut.{cuts}", f"recall.{cuts}", f"success.{cuts}"}
    )
    theirs = judge.evaluate(run)
    for u, (user_scores, user_batch) in enumerate(split_batch(batch, scores, [1] * 60)):
        ours = evaluate(lambda _, s=user_scores: s, [user_batch], TOP_K)
        for k in TOP_K:
            for our_name, their_name in (("ndcg", "ndcg_cut"), ("recall",) * 2, ("hr", "success")):
                expected = theirs[str(u)][f"{their_name}_{k}"]
                assert ours[f"{our_name}@{k}"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("k", TOP_K)
def test_metrics_equal_loops_with_negatives_ties_and_users_without_items(levels, k):
    batch = make_batch(with_empty_users=True)
    scores = random_scores(levels=levels)
    expected = per_user_by_loops(scores, batch, k)
    metrics = RankingMetrics([k])
    metrics.update(scores.clone(), batch)
    values = metrics.compute()
    assert list(values) == [f"ndcg@{k}", f"recall@{k}", f"hr@{k}"]
    assert list(values.values()) == pytest.approx(expected.mean(axis=0), abs=1e-12)
    assert int(metrics.users) == len(expected) == 48
    assert int(metrics.skipped) == 12


@pytest.mark.parametrize("sizes", [[60], [1] * 60, [7, 50, 3]])
def test_batching_changes_nothing(sizes):
    batch, scores = make_batch(), random_scores(levels=3)
    whole = evaluate(lambda _: scores.clone(), [batch], TOP_K)
    metrics = RankingMetrics(TOP_K)
    for part_scores, part in reversed(list(split_batch(batch, scores, sizes))):
        metrics.update(part_scores, part)
    assert metrics.compute() == pytest.approx(whole, abs=1e-12)


def test_states_of_two_processes_add_up():
    batch, scores = make_batch(), random_scores()
    parts = list(split_batch(batch, scores, [25, 35]))
    apart = [RankingMetrics(TOP_K) for _ in parts]
    for metrics, (part_scores, part) in zip(apart, parts, strict=True):
        metrics.update(part_scores, part)
    for state in ("sums", "users", "skipped"):
        setattr(apart[0], state, getattr(apart[0], state) + getattr(apart[1], state))
    assert apart[0].compute() == pytest.approx(evaluate(lambda _: scores, [batch], TOP_K))


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


@pytest.mark.parametrize("top_k", [[], [0], [10, -1]])
def test_impossible_k_is_refused(top_k):
    with pytest.raises(ValueError, match="top_k"):
        RankingMetrics(top_k)
