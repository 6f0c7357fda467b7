"""Training losses; the formula named is the formula computed."""

from torch import Tensor
from torch.nn.functional import softplus


def bpr_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Bayesian personalised ranking: mean of ``-log sigmoid(y_ui - y_uj)``.

    Written as softplus, which neither overflows nor loses digits for large differences. The mean
    runs over all pairs of a positive item i with a negative item j; a regulariser is not part of
    it, weight decay belongs to the optimizer.

    Args:
        positive: scores y_ui of the observed items, shape (B, 1).
        negative: scores y_uj of the sampled items, shape (B, num_negatives).

    Returns:
        The loss, a scalar.
    """
    return softplus(negative - positive).mean()
