from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ace_lora.v1 import ssl_loss as module
from ace_lora.v1.ssl_loss import ssl_loss
from tests.golden_recipe import relative_error


def published(estimates: Tensor, targets: list[Tensor]) -> Tensor:
    """The published loss, which resamples the estimate to the features' rate."""
    loss = 0
    for estimate, target in zip(estimates, targets, strict=True):
        rows = F.interpolate(estimate.T[None], size=len(target), mode="linear", align_corners=False)[0].T
        loss = loss + (1 - F.cosine_similarity(F.normalize(rows, dim=-1), F.normalize(target, dim=-1))).mean()
    return loss / len(estimates)


@pytest.mark.parametrize("frames, rows", [(37, 260), (100, 697), (37, 37), (37, 12), (5, 1), (1, 7), (1, 1), (64, 65)])
def test_equals_the_published_loss_and_gradient(frames: int, rows: int) -> None:
    torch.manual_seed(frames * rows)
    estimates = torch.randn(2, frames, 10, requires_grad=True)
    targets = [torch.randn(rows, 10), torch.randn(max(1, rows - 1), 10)]
    # In float64: float32 coordinates alone move the published gradient by 5e-6.
    expected = published(estimates.double(), [target.double() for target in targets])
    (expected_gradient,) = torch.autograd.grad(expected, estimates)
    found = ssl_loss(estimates, targets)
    (gradient,) = torch.autograd.grad(3 * found, estimates)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=2e-6)
    assert relative_error(gradient, 3 * expected_gradient) < 2e-6


def test_only_an_items_own_frames_take_part() -> None:
    torch.manual_seed(0)
    estimates = torch.randn(2, 20, 6, requires_grad=True)
    targets = [torch.randn(50, 6), torch.randn(31, 6)]
    found = ssl_loss(estimates, targets, frames=[20, 11])
    singles = [ssl_loss(estimates[:1], targets[:1]), ssl_loss(estimates[1:, :11], targets[1:])]
    assert float(found.detach()) == pytest.approx(float(sum(singles).detach()) / 2)
    (gradient,) = torch.autograd.grad(found, estimates)
    assert bool((gradient[1, 11:] == 0).all()) and bool((gradient[1, :11] != 0).any())


def test_zero_vectors_are_harmless() -> None:
    estimates = torch.zeros(1, 9, 4, requires_grad=True)
    loss = ssl_loss(estimates, [torch.zeros(30, 4)])
    loss.backward()
    assert float(loss.detach()) == 1
    assert bool(estimates.grad.isfinite().all())


def test_nothing_of_the_features_length_is_kept() -> None:
    estimates = torch.randn(1, 40, 16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        ssl_loss(estimates, [torch.randn(700, 16)])
    assert max(kept) == 40 * 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision(dtype: torch.dtype) -> None:
    """Float16 features and projections of a size whose products would overflow."""
    torch.manual_seed(0)
    size = 1 if dtype == torch.bfloat16 else 300
    estimates = (size * torch.randn(1, 50, 64)).to(dtype).requires_grad_()
    targets = [(size * torch.randn(350, 64)).to(dtype)]
    wide = estimates.detach().float().requires_grad_()
    expected = published(wide, [targets[0].float()])
    (expected_gradient,) = torch.autograd.grad(expected, wide)
    found = ssl_loss(estimates, targets)
    scale = 2.0**20  # as loss scaling does for float16
    (gradient,) = torch.autograd.grad(scale * found, estimates)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=2e-4)
    assert relative_error(gradient.float() / scale, expected_gradient) < 6e-3


def test_pieces_join_seamlessly(monkeypatch: pytest.MonkeyPatch) -> None:
    estimates, targets = torch.randn(1, 100, 8), [torch.randn(523, 8)]
    whole = ssl_loss(estimates, targets)
    for size in (1, 7, 1000):
        monkeypatch.setitem(module.FRAMES_PER_PIECE, "cpu", size)
        assert float(ssl_loss(estimates, targets)) == pytest.approx(float(whole), rel=1e-6)


def test_wrong_number_of_targets() -> None:
    with pytest.raises(ValueError, match="2 feature tensors for a batch of 1"):
        ssl_loss(torch.randn(1, 4, 3), [torch.randn(5, 3)] * 2)
