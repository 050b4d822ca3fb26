"""Losses: values worked out by hand, and joints that must not count."""

import math

import pytest
import torch

from training.losses import counted, heatmap_loss


def test_cross_entropy_of_a_flat_guess_is_the_logarithm_of_the_pixels() -> None:
    targets = torch.zeros(1, 1, 4, 5)
    targets[0, 0, 2, 3] = 1
    assert heatmap_loss(torch.zeros(1, 1, 4, 5), targets, torch.ones(1, 1), "cross_entropy").item() == pytest.approx(
        math.log(20)
    )


def test_squared_error_is_half_the_mean_square() -> None:
    targets, raw = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    raw[0, 0, 0, 0] = 4
    assert heatmap_loss(raw, targets, torch.ones(1, 1), "mse").item() == pytest.approx(0.5 * 16 / 4)


@pytest.mark.parametrize("kind", ["cross_entropy", "mse"])
def test_joints_of_weight_zero_do_not_count(kind: str) -> None:
    torch.manual_seed(0)
    raw, targets = torch.randn(2, 3, 4, 4, requires_grad=True), torch.rand(2, 3, 4, 4)
    weights = torch.tensor([[1.0, 0, 1], [0, 0.5, 0]])
    loss = heatmap_loss(raw, targets, weights, kind)  # type: ignore[arg-type]
    (grad,) = torch.autograd.grad(loss, raw)
    assert (grad[weights == 0] == 0).all()
    assert (grad[weights > 0] != 0).any()


@pytest.mark.parametrize("kind", ["cross_entropy", "mse"])
def test_nobody_labelled_is_a_loss_of_zero_not_a_division_by_zero(kind: str) -> None:
    weights = torch.zeros(1, 2)
    loss = heatmap_loss(torch.randn(1, 2, 4, 4), torch.rand(1, 2, 4, 4), weights, kind)  # type: ignore[arg-type]
    assert (loss / counted(weights)).item() == 0


def test_cross_entropy_is_least_at_the_target_itself() -> None:
    targets = torch.rand(1, 1, 4, 4) + 0.1
    best = heatmap_loss(targets.log(), targets, torch.ones(1, 1), "cross_entropy")
    for seed in range(5):
        other = targets.log() + 0.3 * torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
        assert heatmap_loss(other, targets, torch.ones(1, 1), "cross_entropy") > best


def test_hard_joints_are_those_with_the_largest_loss() -> None:
    raw, targets = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    raw[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0])  # half mean squares: 1/8, 4/8, 9/8
    raw[1, :, 0, 0] = torch.tensor([4.0, 0.0, 0.0])  # 16/8, of a joint that does not count
    weights = torch.tensor([[1.0, 1, 1], [0, 1, 0]])
    assert heatmap_loss(raw, targets, weights, "mse", 2).item() == pytest.approx(4 / 8 + 9 / 8)
    assert counted(weights, 2).item() == 3
    assert heatmap_loss(raw, targets, weights, "mse").item() == pytest.approx(14 / 8)
    assert counted(weights).item() == 4
