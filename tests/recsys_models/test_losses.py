import math

import pytest
import torch

from recsys_models.losses import bce_loss, bpr_loss, hinge_loss


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


def test_bce_loss_equals_the_formula_worked_by_hand():
    positive = torch.tensor([[2.0], [-0.5]])
    negative = torch.tensor([[1.0, -3.0], [0.5, 0.0]])

    def sigmoid(y):
        return 1 / (1 + math.exp(-y))

    by_hand = -sum(math.log(sigmoid(y)) for y in (2.0, -0.5))
    by_hand -= sum(math.log(1 - sigmoid(y)) for y in (1.0, -3.0, 0.5, 0.0))
    assert bce_loss(positive, negative).item() == pytest.approx(by_hand / 6, rel=1e-6)


def test_bce_loss_equals_the_library_with_labels():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(4, 6)
    labels[:, 0] = 1.0
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(bce_loss(logits[:, :1], logits[:, 1:]), expected)


def test_bce_loss_stays_finite_for_extreme_logits():
    loss = bce_loss(torch.tensor([[-1e4]]), torch.tensor([[1e4]]))
    assert loss.item() == pytest.approx(1e4)


def test_hinge_loss_equals_the_formula_worked_by_hand():
    positive = torch.tensor([[2.0], [0.5]])
    negative = torch.tensor([[1.0, 2.25], [0.5, 3.0]])  # terms 1.5, 0.25, 0.5, 0
    assert hinge_loss(positive, negative, margin=0.5).item() == pytest.approx(2.25 / 4)


def test_hinge_loss_asks_nothing_of_pairs_beyond_the_margin():
    positive = torch.tensor([[1.0]], requires_grad=True)
    negative = torch.tensor([[1.2, 1.6]], requires_grad=True)
    hinge_loss(positive, negative, margin=0.5).backward()
    assert positive.grad.item() == pytest.approx(0.5)
    assert negative.grad.tolist() == [[-0.5, 0.0]]
