"""The distillation losses against loops written the plain way, and what each is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from liteframe.training.losses import (
    LOSSES,
    TargetScale,
    channel_scale,
    clipped_mse,
    cosine,
    explained_variance,
    mse,
    smooth_l1,
)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(60, 5, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 8.0, 0.1]) + 3
    return target + torch.randn(60, 5, generator=generator), target


def test_mse_and_smooth_l1_are_the_mean_over_every_number(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    squares, huber = [], []
    for s, t in zip(*(side.flatten().tolist() for side in pair), strict=True):
        squares.append((s - t) ** 2)
        huber.append(0.5 * (s - t) ** 2 if abs(s - t) < 1 else abs(s - t) - 0.5)
    assert float(mse(*pair)) == pytest.approx(sum(squares) / 300, rel=1e-5)
    assert float(smooth_l1(*pair)) == pytest.approx(sum(huber) / 300, rel=1e-5)


def test_clipped_mse_clips_residuals_at_three_sigma(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, target = pair
    student = student.clone()
    student[7, 2] += 100
    student.requires_grad_(True)
    residuals = (student.detach() - target).double().flatten().numpy()
    low, high = (residuals.mean() + sign * 3 * residuals.std() for sign in (-1, 1))
    expected = np.mean(np.clip(residuals, low, high) ** 2)
    loss = clipped_mse(student, target)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    # The outlier counts but does not pull; every other number does.
    assert student.grad is not None and student.grad[7, 2] == 0
    assert int((student.grad == 0).sum()) == 1


def test_without_outliers_clipping_changes_nothing() -> None:
    target = torch.zeros(10, 4)
    student = torch.linspace(-1, 1, 40).reshape(10, 4)  # its largest is 1.7 sigma
    assert float(clipped_mse(student, target)) == pytest.approx(float(mse(student, target)), rel=1e-6)


def test_cosine_is_blind_to_length(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, target = pair
    angles = [
        1 - float(np.dot(s, t) / math.sqrt(np.dot(s, s) * np.dot(t, t)))
        for s, t in zip(student.numpy(), target.numpy(), strict=True)
    ]
    assert float(cosine(student, target)) == pytest.approx(np.mean(angles), rel=1e-4)
    assert float(cosine(7 * target, target)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_is_zero_at_the_target_and_pulls_towards_it(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(20, 6, generator=generator)
    student = torch.nn.Parameter(target + 0.3 * torch.randn(20, 6, generator=generator))
    assert float(LOSSES[name](target, target)) == pytest.approx(0, abs=1e-6)
    loss = LOSSES[name](student, target)
    loss.backward()
    assert student.grad is not None
    closer = student.detach() - 1e-2 * student.grad / student.grad.norm()
    assert float(LOSSES[name](closer, target)) < loss.item()


def test_channel_scaling_gives_every_channel_the_same_voice(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, target = pair
    scaled_student, scaled = channel_scale(target)(student, target)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(5))
    # One affine map for both sides: equal where they were equal.
    torch.testing.assert_close(channel_scale(target)(target, target)[0], scaled)
    torch.testing.assert_close(scaled_student * target.std(0, correction=0) + target.mean(0), student)


def test_layer_norm_scaling_normalises_the_target_and_moves_the_student_alike(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    student, target = pair
    scaled_student, scaled = TargetScale("layer_norm")(student, target)
    torch.testing.assert_close(scaled, torch.nn.functional.layer_norm(target, (5,), eps=0), rtol=1e-4, atol=1e-5)
    for row in range(3):
        mean, std = float(target[row].mean()), float(target[row].std(correction=0))
        torch.testing.assert_close(scaled_student[row], (student[row] - mean) / std)


def test_a_constant_channel_or_token_stays_finite() -> None:
    target = torch.ones(4, 3)
    for scale in (channel_scale(target), TargetScale("layer_norm")):
        assert all(torch.isfinite(side).all() for side in scale(target + 0.1, target))


def test_explained_variance_by_hand() -> None:
    target = torch.tensor([[0.0, 10.0], [2.0, 10.0], [4.0, 10.0]])  # its mean is (2, 10); squared distance 8
    assert float(explained_variance(target, target)) == 1
    assert float(explained_variance(target.mean(0).expand(3, 2), target)) == 0
    assert float(explained_variance(target + 1, target)) == pytest.approx(1 - 6 / 8)
    assert float(explained_variance(target + 1, target, mean=torch.zeros(2))) == pytest.approx(1 - 6 / 320)
