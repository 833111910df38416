"""The self-supervised (REPA) loss between a transformer's projected frames and MERT or mHuBERT features.

Published form: the projection [T,S] is resampled to the features' rate [n,S] (half-pixel centres, linear), and the loss
is the mean of 1 − cosine over the n rows. n is about 7 T, so that form keeps hundreds of megabytes. Here nothing of the
features' length and width is kept or made: an interpolated row is w_a·e_a + w_b·e_b with neighbours a and b = a + 1, so

    |row|²        = w_a²|e_a|² + 2·w_a·w_b·(e_a·e_b) + w_b²|e_b|²     from T norms and T − 1 neighbour products
    row · z       = w_a (e_a·z) + w_b (e_b·z)                         products of frames with the rows between them

which is equal in exact arithmetic, not an approximation (spec: transformer, section 10).

T frames, n feature rows, S feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS_NORM = 1e-12
# Frames per product of frames with the feature rows that fall between them. Of that product only a band is needed, so
# larger pieces cost arithmetic, smaller ones kernel launches.
FRAMES_PER_PIECE = {"cpu": 32, "cuda": 512}


def ssl_loss(estimates: Tensor, targets: Sequence[Tensor], frames: Sequence[int] | None = None) -> Tensor:
    """Scalar: sum over the items of mean(1 − cosine), divided by their number.

    `estimates` [B,T,S]; `targets` one [n,S] per item, any n ≥ 1; `frames` how many frames of each item are its own
    (None: all T), the rest is padding and takes no part.
    """
    if len(targets) != len(estimates):
        raise ValueError(f"{len(targets)} feature tensors for a batch of {len(estimates)}")
    losses = [
        _CosineLoss.apply(estimate if frames is None else estimate[: frames[item]], target)
        for item, (estimate, target) in enumerate(zip(estimates, targets, strict=True))
    ]
    return torch.stack(losses).sum() / len(losses)


class _CosineLoss(torch.autograd.Function):
    """Mean over the rows of 1 − cosine, for one item. The gradient [T,S] is found together with the value."""

    @staticmethod
    def forward(ctx: Any, estimate: Tensor, target: Tensor) -> Tensor:
        loss, gradient = _loss_and_gradient(estimate, target.to(estimate.device), ctx.needs_input_grad[0])
        if gradient is not None and estimate.dtype == torch.bfloat16:
            gradient = gradient.to(torch.bfloat16)  # float16 would lose it: it is a mean over thousands of rows
        ctx.dtype = estimate.dtype
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(ctx.dtype), None


def _loss_and_gradient(e: Tensor, target: Tensor, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
    # float16 products of unnormalised features overflow.
    dtype = torch.float32 if e.dtype == torch.float16 else e.dtype
    e = e.to(dtype)
    frames, rows = len(e), len(target)
    left, weight_right = _neighbours(frames, rows, e.device)
    weight_left = 1 - weight_right
    right = (left + 1).clamp(max=frames - 1)

    squares = torch.linalg.vector_norm(e, dim=-1, dtype=torch.float32).square()  # [T]
    products = (e[:-1] * e[1:]).sum(-1, dtype=torch.float32)  # [T-1]
    products = torch.cat([products, products.new_zeros(1)])  # the last frame's right neighbour has weight 0
    row_square = (
        weight_left.square() * squares[left]
        + 2 * weight_left * weight_right * products[left]
        + weight_right.square() * squares[right]
    ).clamp(min=0)  # [n]
    row_inverse = 1 / row_square.sqrt().clamp(min=EPS_NORM)
    target_norm = torch.linalg.vector_norm(target, dim=-1, dtype=torch.float32)
    target_inverse = 1 / target_norm.clamp(min=EPS_NORM)
    # The cosine's own guard, on vectors that are already of length 1 (or 0).
    guard = ((target_norm * target_inverse).square() + EPS_NORM) * (row_square * row_inverse.square() + EPS_NORM)
    inverse = row_inverse * target_inverse * guard.rsqrt()  # [n]: cosine = row · target · inverse

    cosines = torch.empty_like(inverse)
    gradient = torch.zeros(e.shape, dtype=torch.float32, device=e.device) if wants_gradient else None
    piece = FRAMES_PER_PIECE.get(e.device.type, 512)
    for first in range(0, frames, piece):
        last = min(first + piece, frames)
        rows_here = slice(_first_row(first, frames, rows), _first_row(last, frames, rows) if last < frames else rows)
        if rows_here.start == rows_here.stop:
            continue
        near = e[first : last + 1]  # [f,S], with the right neighbour of the last frame
        z = target[rows_here].to(dtype)  # [m,S]
        here_left, here_right = left[rows_here] - first, right[rows_here] - first
        dots = near @ z.T  # [f,m], of which each row of features uses two
        dot = weight_left[rows_here] * dots.gather(0, here_left[None])[0]
        dot += weight_right[rows_here] * dots.gather(0, here_right[None])[0]
        cosines[rows_here] = dot * inverse[rows_here]
        if gradient is not None:
            band = torch.zeros(dots.shape, dtype=torch.float32, device=e.device)
            band.scatter_(0, here_left[None], (weight_left * inverse)[None, rows_here])
            band.scatter_add_(0, here_right[None], (weight_right * inverse)[None, rows_here])
            gradient[first : last + 1] += band.to(dtype) @ z
    loss = 1 - cosines.mean()
    if gradient is None:
        return loss, None

    # d cosine / d row = target·inverse − cosine·row/|row|²; the second term spread over both neighbours:
    pull = cosines * row_inverse.square()
    own = torch.zeros_like(squares)
    own.index_add_(0, left, pull * weight_left.square()).index_add_(0, right, pull * weight_right.square())
    across = torch.zeros_like(squares).index_add_(0, left, pull * weight_left * weight_right)[:-1, None]
    gradient.addcmul_(own[:, None], e, value=-1)
    gradient[:-1].addcmul_(across, e[1:], value=-1)
    gradient[1:].addcmul_(across, e[:-1], value=-1)
    return loss, gradient.mul_(-1 / rows)


def _neighbours(frames: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each row: the frame on its left (int64) and the weight of the frame on its right (float32), both [rows].

    The source coordinate max((i + ½)·frames/rows − ½, 0) is split in whole numbers, hence equal on every device.
    """
    numerator = ((2 * torch.arange(rows, device=device) + 1) * frames - rows).clamp(min=0)
    left = numerator // (2 * rows)
    weight_right = (numerator - left * (2 * rows)).float() / (2 * rows)
    return left, torch.where(left < frames - 1, weight_right, 0)


def _first_row(frame: int, frames: int, rows: int) -> int:
    """The first row whose left neighbour is `frame` or later."""
    return 0 if frame == 0 else max(0, -(-(rows * (2 * frame + 1) - frames) // (2 * frames)))
