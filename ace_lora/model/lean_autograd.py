"""The pieces of a transformer block as functions that keep little for the backward pass (spec: transformer, 10 and 13).

All base weights are frozen; only LoRA factors are trained. So a product with a frozen weight has to keep nothing, and
the input of a LoRA factor is rebuilt from what is kept anyway. At full size (T = 2584, L = 1057, bfloat16, rank 64) a
block of PyTorch's own operations keeps 627 MB, this one 185 MB:

    modulated_projections   x                      the norm and the LoRA products' input are rebuilt
    linear_attention        q, k, v                rotation, ReLU, both small products are rebuilt
    rotate                  nothing                linear in x
    linear                  x, if it has LoRA
    feed_forward            x, pre-activation      SiLU, depthwise convolution and gate are rebuilt;
                                                   without the pre-activation, its product is repeated

B batch, T latent frames, D width, H heads, d head width, F feed-forward width (half of the gated one), r LoRA rank.
Mixed precision is explicit here: `x` is in the compute type, LoRA factors may be float32 and are cast where they are
multiplied, norms, key sums and gradients of factors are float32. So autocast has to be off around these functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ace_lora.model import elementwise

# Bytes of one temporary tensor of the feed-forward branch; about six exist at once.
PIECE_BYTES = 2**24

# --- LoRA layers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapted:
    """A frozen layer and the LoRA factors that PEFT hung on it: y = W x + b + Σ strength·B(A x)."""

    base: nn.Module
    strengths: tuple[float, ...]
    factors: tuple[Tensor, ...]  # A [r,in], B [out,r], alternating, one pair per strength


def adapted(layer: Any) -> Adapted:
    """Take a layer apart into what PEFT made of it; a layer without LoRA has no factors.

    Raises NotImplementedError for LoRA variants that are not a plain product of two factors.
    """
    if not hasattr(layer, "base_layer"):
        _check_frozen(layer)
        return Adapted(layer, (), ())
    base = layer.base_layer
    _check_frozen(base)
    if layer.disable_adapters or layer.merged:
        return Adapted(base, (), ())
    strengths, factors = [], []
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        dropout = layer.lora_dropout[name]
        if layer.use_dora[name] or layer.lora_bias[name] or (layer.training and getattr(dropout, "p", 0) > 0):
            raise NotImplementedError(
                "LoRA with dropout, bias or DoRA is not supported; use a plain LoRA configuration."
            )
        strength = float(layer.scaling[name])
        if strength != 0:
            strengths.append(strength)
            factors += [layer.lora_A[name].weight, layer.lora_B[name].weight]
    return Adapted(base, tuple(strengths), tuple(factors))


def _check_frozen(layer: Any) -> None:
    if layer.weight.requires_grad:
        raise RuntimeError("Base weights are frozen here and get no gradient: call requires_grad_(False) on them.")


def frozen_weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """The weight of a linear layer or of a pointwise convolution as [out, in] in `dtype`."""
    if hasattr(layer, "dequantised"):
        return layer.dequantised(dtype)
    return layer.weight.flatten(1).to(dtype)


def frozen_bias(layer: Any, dtype: torch.dtype) -> Tensor | None:
    bias = getattr(layer, "bias", None)
    return None if bias is None else bias.to(dtype)


class PointwiseConvolution(nn.Module):
    """A convolution of width 1 stored as one ([out, in, 1]) and computed as a linear layer, which keeps nothing."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None


def _product(layer: Adapted, x: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """y [n,out] of x [n,in], and A x [n,r] per LoRA pair."""
    y = F.linear(x, frozen_weight(layer.base, x.dtype), frozen_bias(layer.base, x.dtype))
    low_rank = []
    for strength, a, b in zip(layer.strengths, factors[0::2], factors[1::2], strict=True):
        low_rank.append(x @ a.to(x.dtype).T)  # [n,r]
        y.addmm_(low_rank[-1], b.to(x.dtype).T, alpha=strength)
    return y, low_rank


def _product_backward(
    layer: Adapted, dy: Tensor, x: Any, factors: Sequence[Tensor], low_rank: Sequence[Tensor], wants_dx: bool
) -> tuple[Any, list[Tensor]]:
    """Gradients of `_product`: dx [n,in] and those of the factors in their own dtype. `x` is used by LoRA only."""
    dx = dy @ frozen_weight(layer.base, dy.dtype) if wants_dx else None
    gradients = []
    for strength, a, b, h in zip(layer.strengths, factors[0::2], factors[1::2], low_rank, strict=True):
        dh = (dy @ b.to(dy.dtype)).mul_(strength)  # [n,r]
        if dx is not None:
            dx.addmm_(dh, a.to(dy.dtype))
        gradients += [(dh.T @ x).to(a.dtype), (dy.T @ h).to(b.dtype).mul_(strength)]
    return dx, gradients


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: Adapted, x: Tensor, *factors: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y, low_rank = _product(layer, flat, factors)
        ctx.layer, ctx.shape = layer, x.shape
        ctx.save_for_backward(x if factors else None, *factors, *low_rank)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple:
        x, *rest = ctx.saved_tensors
        count = 2 * len(ctx.layer.strengths)
        flat = None if x is None else x.reshape(-1, x.shape[-1])
        dx, gradients = _product_backward(
            ctx.layer, dy.reshape(-1, dy.shape[-1]), flat, rest[:count], rest[count:], ctx.needs_input_grad[1]
        )
        return None, None if dx is None else dx.view(ctx.shape), *gradients


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)` for a frozen, possibly quantised linear layer, with LoRA or without; x [..., in], compute dtype."""
    taken = adapted(layer)
    return _Linear.apply(taken, x, *taken.factors)


# --- Norm and the projections that follow it (spec: transformer, 8.1) -------------------------------------------------


class _ModulatedProjections(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layers: Sequence[Adapted], eps: float, x: Tensor, shift: Tensor, scale: Tensor, *factors: Tensor
    ) -> tuple[Tensor, ...]:
        a = elementwise.modulated_norm(x, shift, scale, eps)
        flat = a.view(-1, a.shape[-1])
        outputs, all_low_rank, used = [], [], 0
        for layer in layers:
            own = factors[used : used + len(layer.factors)]
            y, low_rank = _product(layer, flat, own)
            used += len(own)
            outputs.append(y.view(*x.shape[:-1], -1))
            all_low_rank += low_rank
        ctx.layers, ctx.eps = layers, eps
        ctx.save_for_backward(x, shift, scale, *factors, *all_low_rank)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dys: Tensor) -> tuple:
        x, shift, scale, *rest = ctx.saved_tensors
        pairs = sum(len(layer.strengths) for layer in ctx.layers)
        factors, low_rank = rest[: 2 * pairs], rest[2 * pairs :]
        wants_dx = ctx.needs_input_grad[2]
        a = elementwise.modulated_norm(x, shift, scale, ctx.eps).view(-1, x.shape[-1]) if pairs else None
        da: Any = None
        gradients: list[Tensor] = []
        used = 0
        for layer, dy in zip(ctx.layers, dys, strict=True):
            count = len(layer.strengths)
            dx, own = _product_backward(
                layer,
                dy.reshape(-1, dy.shape[-1]),
                a,
                factors[2 * used : 2 * (used + count)],
                low_rank[used : used + count],
                wants_dx,
            )
            used += count
            gradients += own
            da = dx if da is None or dx is None else da.add_(dx)
        del a
        dx = elementwise.modulated_norm_backward(da.view_as(x), x, scale, ctx.eps) if wants_dx else None
        return None, None, dx, None, None, *gradients


def modulated_projections(
    layers: Sequence[nn.Module], x: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, ...]:
    """layer(RMS(x)·scale + shift) for each layer; x [B,T,D], shift and scale [B,1,D] (scale includes the 1)."""
    taken = tuple(adapted(layer) for layer in layers)
    factors = [factor for layer in taken for factor in layer.factors]
    return _ModulatedProjections.apply(taken, eps, x, shift, scale, *factors)


# --- Rotary position embedding (spec: transformer, 3) -----------------------------------------------------------------


def rotation_table(positions: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and signed sin [..., n, 1, width] for integer `positions` [..., n]: float32, rounded to what `dtype` holds.

    Channels c and c + width/2 have the same frequency, yet neighbours (2j, 2j+1) are rotated together, so a pair has
    two frequencies and the rotation is not orthogonal. The published weights were trained with it. The sine of even
    channels is negated: y = x·cos + swap(x)·sin, where swap exchanges neighbours.
    """
    channels = torch.arange(width, device=positions.device)
    # As a quotient of powers, like the published tables: at position 30000 another rounding turns the angle by 1e-3.
    frequencies = 1.0 / theta ** (2.0 * (channels % (width // 2)).float() / width)
    angles = positions.float()[..., None, None] * frequencies  # [..., n, 1, width]
    signs = 1.0 - 2.0 * (channels % 2 == 0)
    return angles.cos().to(dtype).float(), (angles.sin() * signs).to(dtype).float()


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return elementwise.rotate(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple:
        cos, sin = ctx.saved_tensors
        return elementwise.rotate_backward(dy, cos, sin), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B,n,H,d] turned by the tables of `rotation_table`; computed in float32, rounded once to the dtype of x."""
    return _Rotate.apply(x, cos, sin)


# --- ReLU linear attention (spec: transformer, 8.2) -------------------------------------------------------------------


class _LinearAttention(torch.autograd.Function):
    """residual + gate·to_out(attention(q, k, v))

    With q and k after rotation and ReLU: S = Σ_t v_t k_tᵀ, z = Σ_t k_t, o_t = S q_t / (z·q_t + eps).
    """

    @staticmethod
    def forward(
        ctx: Any,
        layer: Adapted,
        heads: int,
        eps: float,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        gate: Tensor,
        residual: Tensor,
        *factors: Tensor,
    ) -> Tensor:
        ctx.layer, ctx.heads, ctx.eps = layer, heads, eps
        features = _features(q, k, v, cos, sin, mask, heads)
        o = _attended(*features, *_sums(*features[1:]), eps)[0]
        y, low_rank = _product(layer, _joined(o, q.dtype).view(-1, q.shape[-1]), factors)
        ctx.save_for_backward(q, k, v, cos, sin, mask, gate, *factors, *low_rank)
        return elementwise.add_gated(residual, y.view_as(residual), gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple:
        q, k, v, cos, sin, mask, gate, *rest = ctx.saved_tensors
        count = 2 * len(ctx.layer.strengths)
        fq, fk, fv = _features(q, k, v, cos, sin, mask, ctx.heads)
        s, z = _sums(fk, fv)
        o, w, denominator = _attended(fq, fk, fv, s, z, ctx.eps)
        dy = (dout * gate).view(-1, dout.shape[-1])
        do, gradients = _product_backward(
            ctx.layer, dy, _joined(o, q.dtype).view(-1, q.shape[-1]), rest[:count], rest[count:], wants_dx=True
        )
        do = do.view(*q.shape[:2], ctx.heads, -1).transpose(1, 2).to(fq.dtype)  # [B,H,T,d]
        # o = S w with w = q / (z·q + eps), so the quotient's derivative is that of w along q:
        along = (do * o).sum(-1, keepdim=True, dtype=torch.float32)  # [B,H,T,1]
        dq = (do @ s).addcmul_(along, z, value=-1).div_(denominator)
        ds = do.transpose(2, 3) @ w  # [B,H,d of v,d of k]
        dz = -(along * w).sum(2, keepdim=True, dtype=torch.float32)  # [B,H,1,d]
        dk = (fv @ ds).add_(dz)
        dv = fk @ ds.transpose(2, 3)
        dq, dk = (
            elementwise.feature_backward(dx.transpose(1, 2), x.transpose(1, 2), cos, sin).to(q.dtype).reshape(q.shape)
            for dx, x in ((dq, fq), (dk, fk))
        )
        dv = _joined(dv, q.dtype)
        if mask is not None:
            dv = dv * mask[:, :, 0]
        return None, None, None, dq, dk, dv, None, None, None, None, dout, *gradients


def _features(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q and k after rotation and ReLU, and v; [B,H,T,d].

    In float32 where the model computes in float16: sums over all frames would leave its range.
    """
    if q.dtype == torch.float16:
        q, k, v = q.float(), k.float(), v.float()
    q, k, v = (x.view(*x.shape[:2], heads, -1) for x in (q, k, v))
    if mask is not None:
        v = v * mask
    q, k = elementwise.feature(q, cos, sin, mask), elementwise.feature(k, cos, sin, mask)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _sums(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """S [B,H,d of v,d of k] and z [B,H,1,d], the latter float32."""
    return v.transpose(2, 3) @ k, k.sum(2, keepdim=True, dtype=torch.float32)


def _attended(q: Tensor, k: Tensor, v: Tensor, s: Tensor, z: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """o = S w, w = q / (z·q + eps), and that denominator (float32 [B,H,T,1])."""
    denominator = (q * z).sum(-1, keepdim=True).add_(eps)
    w = torch.div(q, denominator, out=torch.empty_like(q))
    return w @ s.transpose(2, 3), w, denominator


def _joined(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B,H,T,d] → [B,T,H·d]"""
    return x.transpose(1, 2).flatten(2).to(dtype)


def linear_attention(
    to_out: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotation: tuple[Tensor, Tensor],
    mask: Tensor | None,
    gate: Tensor,
    residual: Tensor,
    heads: int,
    eps: float,
) -> Tensor:
    """residual + gate·to_out(ReLU linear attention of q, k, v); all [B,T,D], mask [B,T] or None, gate [B,1,D]."""
    taken = adapted(to_out)
    if mask is not None:
        mask = mask.to(q.dtype)[:, :, None, None]
    return _LinearAttention.apply(taken, heads, eps, q, k, v, *rotation, mask, gate, residual, *taken.factors)


# --- Gated feed-forward with depthwise convolution (spec: transformer, 8.4) -------------------------------------------


class _FeedForward(torch.autograd.Function):
    """x + gate·W_point(c[:F]·SiLU(c[F:])), c = depthwise(SiLU(W_inv h + b_inv)), h = RMS(x)·scale + shift"""

    @staticmethod
    def forward(
        ctx: Any,
        layers: tuple[nn.Module, nn.Module, nn.Module],
        eps: float,
        keeps_product: bool,
        x: Tensor,
        shift: Tensor,
        scale: Tensor,
        gate: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        inverted, depthwise, point = layers
        ctx.layers, ctx.eps, ctx.keeps_product = layers, eps, keeps_product
        p = _inverted(inverted, x, shift, scale, eps)  # [B,T,2F]
        taps, hidden = _taps(depthwise, x.dtype), p.shape[-1] // 2
        m = p.new_empty(*p.shape[:-1], hidden)  # [B,T,F]
        for own, gating in _pieces(p):
            elementwise.gated_convolution(p[..., own], p[..., gating], taps[:, own], taps[:, gating], mask, m[..., own])
        y = F.linear(m, frozen_weight(point, x.dtype))
        ctx.save_for_backward(x, shift, scale, gate, mask, p if keeps_product else None)
        return elementwise.add_gated(x, y, gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple:
        x, shift, scale, gate, mask, p = ctx.saved_tensors
        inverted, depthwise, point = ctx.layers
        if not ctx.keeps_product:
            p = _inverted(inverted, x, shift, scale, ctx.eps)
        dm = (dout * gate) @ frozen_weight(point, x.dtype)  # [B,T,F]
        taps = _taps(depthwise, x.dtype)
        for own, gating in _pieces(p):
            # Nothing needs p after this: its gradient takes its place.
            elementwise.gated_convolution_backward(
                dm[..., own], p[..., own], p[..., gating], taps[:, own], taps[:, gating], mask
            )
        del dm
        dh = p @ frozen_weight(inverted, x.dtype)
        dx = elementwise.modulated_norm_backward(dh, x, scale, ctx.eps).add_(dout)
        return None, None, None, dx, None, None, None, None


def _inverted(inverted: nn.Module, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    h = elementwise.modulated_norm(x, shift, scale, eps)
    return F.linear(h, frozen_weight(inverted, x.dtype), frozen_bias(inverted, x.dtype))


def _taps(depthwise: Any, dtype: torch.dtype) -> elementwise.Taps:
    return torch.cat([depthwise.weight[:, 0].T, depthwise.bias[None]]).to(dtype)


def _pieces(p: Tensor) -> Iterator[tuple[slice, slice]]:
    """Ranges of channels and of the channels that gate them, so many that temporary tensors stay small."""
    hidden = p.shape[-1] // 2
    count = max(1, -(-p.numel() // 2 * p.element_size() // PIECE_BYTES))
    size = -(-hidden // count)
    for first in range(0, hidden, size):
        last = min(first + size, hidden)
        yield slice(first, last), slice(hidden + first, hidden + last)


def feed_forward(
    layers: tuple[nn.Module, nn.Module, nn.Module],
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
    mask: Tensor | None,
    eps: float,
    keeps_product: bool,
) -> Tensor:
    """The whole feed-forward branch with its residual; x [B,T,D], shift, scale (with its 1), gate [B,1,D].

    `layers` are the inverted pointwise, the depthwise and the second pointwise convolution. `mask` [B,T] silences
    padded frames, so that they do not leak through the convolution. `keeps_product` keeps the pre-activation
    [B,T,2F], the largest tensor of a block; without it the backward pass repeats one product.
    """
    if mask is not None:
        mask = mask.to(x.dtype)[:, :, None]
    return _FeedForward.apply(layers, eps, keeps_product, x, shift, scale, gate, mask)
