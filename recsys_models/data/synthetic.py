"""A generated data set of FilmTrust's size: the default, so that everything runs without a file."""

from __future__ import annotations

import numpy as np

from recsys_models.data.interactions import IntArray, Interactions

_MIN_PER_USER = 5
_USERS_PER_CHUNK = 1024  # these two bound the memory of the dense scores
_SCORES_PER_CHUNK = 1 << 22


def synthetic_interactions(
    num_users: int = 1508,
    num_items: int = 2071,
    num_interactions: int = 35_000,
    rank: int = 8,
    popularity: float = 1.2,
    preference: float = 2.25,
    seed: int = 0,
    noise: float = 1.0,
) -> Interactions:
    """Generate long-tailed interactions in which popularity helps and personal taste helps more.

    User u takes the top n_u items by
        -popularity * log(r_i) + preference * <p_u, q_i> / sqrt(rank) + noise * Gumbel,
    where r_i is a random rank 1..num_items and p_u, q_i are standard normal. With noise
    1 that is n_u draws without replacement from the softmax of the first two terms: a Zipf law,
    tilted by taste. The n_u sum to num_interactions and follow a log-normal, within
    5..num_items/2; from fewer than ten items each user takes num_items/2. Time grows with
    num_users * num_items, memory with num_interactions.

    Args:
        num_users: number of users.
        num_items: number of items; the least popular may stay without a pair.
        num_interactions: number of distinct pairs.
        rank: dimension of the tastes.
        popularity: exponent of the Zipf law; 0 makes all items equally popular.
        preference: weight of the tastes; 0 makes popularity the best recommender.
        seed: of this data set's own generator.
        noise: weight of chance; 0 gives every user exactly the items of greatest appeal.
    """
    for name, size in (("num_users", num_users), ("num_items", num_items), ("rank", rank)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}. Leave it out if unsure.")
    weights = {"popularity": popularity, "preference": preference, "noise": noise}
    for name, weight in weights.items():
        if not 0 <= weight < np.inf:
            raise ValueError(
                f"{name} must be at least 0 and finite; got {weight}. Leave it out if unsure."
            )
    rng = np.random.default_rng(seed)
    counts = _user_counts(rng, num_users, num_items, num_interactions)
    appeal = -popularity * np.log(1.0 + rng.permutation(num_items))
    tastes = rng.standard_normal((num_users, rank))
    traits = rng.standard_normal((num_items, rank)) * (preference / np.sqrt(rank))
    chosen = []
    step = max(1, min(_USERS_PER_CHUNK, _SCORES_PER_CHUNK // num_items))
    for start in range(0, num_users, step):
        chunk = slice(start, start + step)
        scores = appeal + tastes[chunk] @ traits.T
        scores += noise * rng.gumbel(size=scores.shape)
        best_first = np.argsort(-scores, axis=1)
        chosen.append(best_first[np.arange(num_items) < counts[chunk, None]])
    users = np.repeat(np.arange(num_users), counts)
    return Interactions.from_pairs(users, np.concatenate(chosen), num_users, num_items)


def _user_counts(
    rng: np.random.Generator, num_users: int, num_items: int, num_interactions: int
) -> IntArray:
    """Number of items of each user, shape (num_users,), with sum num_interactions."""
    most = num_items // 2
    least = min(_MIN_PER_USER, most)
    if not max(1, num_users * least) <= num_interactions <= num_users * most:
        raise ValueError(
            f"num_interactions must lie between {least} and num_items / 2 for every user, "
            f"that is {num_users * least} to {num_users * most} for {num_users} users and "
            f"{num_items} items; got {num_interactions}."
        )
    activity = rng.lognormal(size=num_users)
    counts = np.full(num_users, least, dtype=np.int64)
    while (missing := num_interactions - int(counts.sum())) > 0:
        # In proportion to activity among those below the bound; what exceeds it goes round again.
        shares = np.where(counts < most, activity, 0.0)
        ends = np.rint(np.cumsum(shares) / shares.sum() * missing).astype(np.int64)
        counts = np.minimum(counts + np.diff(ends, prepend=0), most)
    return counts
