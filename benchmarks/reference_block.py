"""The yardstick of the benchmarks: the transformer written straightforwardly, as the published training runs it.

Masks are always built and expanded, norms and linear attention work on float32 copies, features are compared at their
own rate, PyTorch's autograd keeps what it keeps, and mixed precision is left to autocast. Same parameters and state
dict as `ACEStepTransformer`, tested against the same goldens.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ace_lora.v1.transformer import (
    LINEAR_ATTENTION_EPS,
    RMS_EPS,
    ACEStepTransformer,
    Context,
    TransformerBlock,
    TransformerOutput,
)


class ReferenceTransformer(ACEStepTransformer):
    """Runs under the caller's autocast; `recomputed` of each block says whether it is checkpointed."""

    def forward(  # type: ignore[override]
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Context,
        frame_mask: Tensor | None = None,
        ssl_taps: bool = False,
        padding: str = "reference",
    ) -> TransformerOutput:
        assert padding == "reference"
        batch, _, rows, frames = latents.shape
        length = context.states.shape[1]
        mask = latents.new_ones(batch, frames) if frame_mask is None else frame_mask.to(latents)
        key_mask = latents.new_ones(batch, length) if context.mask is None else context.mask.to(latents)
        with torch.autocast(latents.device.type, enabled=False):
            dtype = self.timestep_embedder.linear_1.weight.dtype
            embedded = self.timestep_embedder(timestep, dtype)
        modulation = self.t_block(embedded)
        # Not through Conv2d: with this kernel PyTorch 2.13 computes it wrongly in bfloat16 on CPUs with AMX.
        x = self.proj_in(latents.to(dtype), None)
        tables = [
            rotation_tables(count, self.config.attention_head_dim, self.config.rope_theta, x)
            for count in (frames, length)
        ]
        taps = []
        for index, block in enumerate(self.transformer_blocks):
            inputs = (x, context.states, mask, key_mask, modulation, *tables)
            if block.recomputed and torch.is_grad_enabled():
                x = checkpoint(reference_block, block, *inputs, use_reentrant=False)
            else:
                x = reference_block(block, *inputs)
            if ssl_taps:
                taps += [x for depth in self.config.ssl_encoder_depths if depth == index]
        final = self.final_layer
        shift, scale = (final.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
        y = final.linear(rms_norm(x) * (1 + scale) + shift)
        velocity = y.reshape(batch, frames, 1, rows, 1, -1).permute(0, 5, 2, 3, 1, 4).reshape(batch, -1, rows, frames)
        return TransformerOutput(velocity, taps)

    def ssl_losses(  # type: ignore[override]
        self, taps: Sequence[Tensor], targets: Mapping[str, Sequence[Tensor]], frame_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        losses = {}
        for name, tap, head in zip(self.config.ssl_names, taps, self.projectors, strict=True):
            estimates = head(tap)
            loss = 0
            for estimate, target in zip(estimates, targets[name], strict=True):
                resampled = F.interpolate(
                    estimate.T[None].float(), size=len(target), mode="linear", align_corners=False
                )[0].T
                resampled, target = F.normalize(resampled, dim=-1), F.normalize(target.float(), dim=-1)
                squares = (target.square().sum(-1) + 1e-12) * (resampled.square().sum(-1) + 1e-12)
                loss = loss + (1 - (target * resampled).sum(-1) / squares.sqrt()).mean()
            losses[name] = loss / len(estimates)
        return losses


def reference_block(
    block: TransformerBlock,
    x: Tensor,
    context: Tensor,
    mask: Tensor,
    key_mask: Tensor,
    modulation: Tensor,
    frame_tables: tuple[Tensor, Tensor],
    context_tables: tuple[Tensor, Tensor],
) -> Tensor:
    batch, _, width = x.shape
    rows = block.scale_shift_table[None] + modulation.reshape(batch, 6, width)
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = rows.chunk(6, dim=1)
    x = x + gate_a * self_attention(block.attn, rms_norm(x) * (1 + scale_a) + shift_a, mask, frame_tables)
    x = x + cross_attention(block.cross_attn, x, context, mask, key_mask, frame_tables, context_tables)
    return x + gate_f * feed_forward(block.ff, rms_norm(x) * (1 + scale_f) + shift_f)


def rms_norm(x: Tensor) -> Tensor:
    wide = x.float()
    return (wide * (wide.square().mean(-1, keepdim=True) + RMS_EPS).rsqrt()).to(x.dtype)


def rotation_tables(count: int, width: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2, device=like.device).float() / width)
    angles = torch.outer(torch.arange(count, device=like.device).float(), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """[B,H,n,d]"""
    cos, sin = tables
    even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(3)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def heads_first(x: Tensor, heads: int) -> Tensor:
    """[B,n,D] → [B,H,n,d]"""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def self_attention(attention: nn.Module, a: Tensor, mask: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    q, k, v = (heads_first(layer(a), attention.heads) for layer in (attention.to_q, attention.to_k, attention.to_v))
    dtype = q.dtype
    q, k = rotate(q, tables), rotate(k, tables)
    q, k, v = (x * mask[:, None, :, None].to(dtype) for x in (q, k, v))
    q, k = q.relu().float(), k.relu().float()
    v = F.pad(v.float(), (0, 1), value=1.0)  # a row of ones collects the key sums
    numerator = (q @ (k.transpose(-1, -2) @ v)).float()  # [B,H,T,d+1]
    o = (numerator[..., :-1] / (numerator[..., -1:] + LINEAR_ATTENTION_EPS)).to(dtype)
    return attention.to_out[0](o.transpose(1, 2).flatten(2))


def cross_attention(
    attention: nn.Module,
    x: Tensor,
    context: Tensor,
    mask: Tensor,
    key_mask: Tensor,
    frame_tables: tuple[Tensor, Tensor],
    context_tables: tuple[Tensor, Tensor],
) -> Tensor:
    q = rotate(heads_first(attention.to_q(x), attention.heads), frame_tables)
    k = rotate(heads_first(attention.to_k(context), attention.heads), context_tables)
    v = heads_first(attention.to_v(context), attention.heads)
    allowed = mask[:, :, None] * key_mask[:, None, :]  # [B,T,L]
    bias = torch.where(allowed == 1, 0.0, -torch.inf)[:, None].expand(-1, attention.heads, -1, -1).to(q.dtype)
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.contiguous())
    # Some attention kernels give NaN for a row without any key; it is defined as 0.
    o = torch.where(mask[:, None, :, None] == 1, o, 0)
    return attention.to_out[0](o.transpose(1, 2).flatten(2))


def feed_forward(ff: nn.Module, h: Tensor) -> Tensor:
    inverted, depthwise, point = ff.inverted_conv.conv, ff.depth_conv.conv, ff.point_conv.conv
    u = F.silu(F.conv1d(h.transpose(1, 2), inverted.weight, inverted.bias))  # [B,2F,T]
    value, gate = depthwise(u).chunk(2, dim=1)
    return F.conv1d(value * F.silu(gate), point.weight, point.bias).transpose(1, 2)
