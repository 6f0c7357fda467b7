"""Training losses; the formula named is the formula computed."""

from torch import Tensor
from torch.nn.functional import relu, softplus


def bce_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross-entropy of logits: the label is 1 for observed items and 0 for sampled ones.

    That is ``-log sigmoid(y_ui)`` per observed item i and ``-log(1 - sigmoid(y_uj))`` per sampled
    item j, both written as softplus. The mean runs over all items, observed and sampled alike, so
    more negatives weigh more.

    Args:
        positive: logits y_ui of the observed items, any shape.
        negative: logits y_uj of the sampled items, any shape.

    Returns:
        The loss, a scalar.
    """
    total = softplus(-positive).sum() + softplus(negative).sum()
    return total / (positive.numel() + negative.numel())


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


def hinge_loss(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Pairwise hinge on distances: mean of ``max(0, margin + d_ui - d_uj)``.

    The mean runs over all pairs of a positive item i with a negative item j, also over those that
    are far enough apart and add nothing.

    Args:
        positive: distances d_ui to the observed items, shape (B, 1).
        negative: distances d_uj to the sampled items, shape (B, num_negatives).
        margin: how much farther than the positive a negative should be.

    Returns:
        The loss, a scalar.
    """
    return relu(margin + positive - negative).mean()
