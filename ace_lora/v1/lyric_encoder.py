"""The lyric encoder of ACE-Step v1: a pre-norm conformer without convolution and without the half feed-forward steps.

Full, bidirectional attention with relative positions (spec: transformer, section 6). The published weights are always
used in eval mode, so there is no dropout here.

B batch, L lyric tokens, E width (1024 as published), H heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ace_lora.device import send
from ace_lora.model.lean_autograd import linear

LAYER_NORM_EPS = 1e-5
# Query rows whose scores [B,H,rows,L] exist at once. At 4096 tokens all rows together would take gigabytes per layer.
ROWS_AT_ONCE = 512


class LyricEncoder(nn.Module):
    """[B,L,E] embedded lyric tokens to [B,L,E]; parameter names are those of the published weights."""

    embed: Any

    def __init__(self, width: int = 1024, layers: int = 6, heads: int = 16, feed_forward: int = 4096):
        super().__init__()
        self.embed = nn.Module()
        self.embed.out = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width, eps=LAYER_NORM_EPS))
        self.encoders = nn.ModuleList(LyricEncoderLayer(width, heads, feed_forward) for _ in range(layers))
        self.after_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.width = width

    def forward(self, xs: Tensor, mask: Tensor | None) -> Tensor:
        """`xs` [B,L,E]; `mask` [B,L], zero where a token is padding, None when none is. Returns the dtype of `xs`.

        Padded positions are computed like any other; they are only never attended to. With every token masked the
        attention contributes zero.
        """
        dtype = xs.dtype
        norm = self.embed.out[1]
        # The residual stream stays in float32 as under the published training's autocast; the products do not.
        x = _layer_norm(norm, linear(self.embed.out[0], xs)) * math.sqrt(self.width)
        positions = relative_positions(xs.shape[1], self.width, xs.device, dtype)
        allowed = None if mask is None else send(mask > 0, xs.device)[:, None, None, :]  # [B,1,1,L]
        for layer in self.encoders:
            if x.requires_grad or any(parameter.requires_grad for parameter in layer.parameters()):
                # Adapted lyric encoder: scores are large and cheap, so each layer is computed again.
                x = checkpoint(layer, x, positions, allowed, dtype, use_reentrant=False)
            else:
                x = layer(x, positions, allowed, dtype)
        return _layer_norm(self.after_norm, x).to(dtype)


class LyricEncoderLayer(nn.Module):
    feed_forward: Any

    def __init__(self, width: int, heads: int, feed_forward: int):
        super().__init__()
        self.self_attn = RelativeAttention(width, heads)
        self.feed_forward = nn.Module()
        self.feed_forward.w_1 = nn.Linear(width, feed_forward)
        self.feed_forward.w_2 = nn.Linear(feed_forward, width)
        self.norm_mha = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.norm_ff = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor | None, dtype: torch.dtype) -> Tensor:
        """x [B,L,E] float32; products are computed in `dtype`."""
        x = x + self.self_attn(_layer_norm(self.norm_mha, x).to(dtype), positions, allowed)
        hidden = F.silu(linear(self.feed_forward.w_1, _layer_norm(self.norm_ff, x).to(dtype)))
        return x + linear(self.feed_forward.w_2, hidden)


class RelativeAttention(nn.Module):
    """score[i,j] = ((q_i + u)·k_j + (q_i + w)·P_{i−j}) / sqrt(head width), P = linear_pos(position encoding)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, a: Tensor, positions: Tensor, allowed: Tensor | None) -> Tensor:
        """a [B,L,E]; `positions` [2L−1,E], distances L−1 … −(L−1); `allowed` [B,1,1,L] bool or None."""
        length = a.shape[1]
        q = self._split(linear(self.linear_q, a)).transpose(1, 2)  # [B,H,L,d]
        k = self._split(linear(self.linear_k, a)).permute(0, 2, 3, 1)  # [B,H,d,L]
        v = self._split(linear(self.linear_v, a)).transpose(1, 2)  # [B,H,L,d]
        p = self._split(linear(self.linear_pos, positions)).permute(1, 2, 0)  # [H,d,2L-1]
        content = q + self.pos_bias_u.to(q.dtype)[:, None]
        position = q + self.pos_bias_v.to(q.dtype)[:, None]
        pieces = []
        for first in range(0, length, ROWS_AT_ONCE):
            rows = slice(first, min(first + ROWS_AT_ONCE, length))
            # The last row of the piece minus the first key is the largest distance, and so on down.
            distances = slice(length - 1 - (rows.stop - 1), 2 * length - 1 - rows.start)
            shifted = _skew(position[:, :, rows] @ p[:, :, distances], length)
            scores = (content[:, :, rows] @ k + shifted).float() / math.sqrt(q.shape[-1])  # [B,H,rows,L]
            if allowed is not None:
                scores = scores.masked_fill(~allowed, -torch.inf)
            weights = scores.softmax(-1)
            if allowed is not None:
                weights = weights.masked_fill(~allowed, 0)  # also the NaN of a row without any key
            pieces.append(weights.to(v.dtype) @ v)
        return linear(self.linear_out, torch.cat(pieces, 2).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[..., E] → [..., H, d]"""
        return x.unflatten(-1, (self.heads, -1))


def relative_positions(length: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sinusoids [2·length−1, width] of the distances query − key from length−1 down to −(length−1).

    Sines in the even, cosines in the odd channels; computed in float32, rounded to `dtype`.
    """
    distances = torch.arange(length - 1, -length, -1, device=device, dtype=torch.float32)
    frequencies = torch.exp(
        torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / width)
    )
    angles = distances[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(dtype)


def _skew(x: Tensor, length: int) -> Tensor:
    """[..., n, n+length−1] → [..., n, length]: row i takes the columns from n−1−i on."""
    n, columns = x.shape[-2:]
    if n == 1:
        return x
    flat = x.flatten(-2)[..., n - 1 : n - 1 + n * (columns - 1)]
    return flat.unflatten(-1, (n, columns - 1))[..., :length]


def _layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Float32 whatever the dtype of the weights."""
    return F.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
