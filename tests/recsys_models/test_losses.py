import math

import pytest
import torch

from recsys_models.losses import bpr_loss


def test_bpr_loss_equals_the_formula_worked_by_hand():
    positive = torch.tensor([[2.0], [0.5]])
    negative = torch.tensor([[1.0, 3.0], [0.5, -0.5]])
    differences = [1.0, -1.0, 0.0, 1.0]
    by_hand = sum(-math.log(1 / (1 + math.exp(-d))) for d in differences) / 4
    assert bpr_loss(positive, negative).item() == pytest.approx(by_hand, rel=1e-6)


def test_bpr_loss_stays_finite_for_extreme_scores():
    loss = bpr_loss(torch.tensor([[-1e4]]), torch.tensor([[1e4]]))
    assert loss.item() == pytest.approx(2e4)


def test_bpr_loss_pulls_the_positive_up_and_pushes_the_negative_down():
    positive = torch.zeros(1, 1, requires_grad=True)
    negative = torch.zeros(1, 1, requires_grad=True)
    bpr_loss(positive, negative).backward()
    assert positive.grad.item() == pytest.approx(-0.5)
    assert negative.grad.item() == pytest.approx(0.5)
