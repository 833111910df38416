"""The elementwise operations of a transformer block: what lies between its matrix products, forward and backward.

On a GPU these move more bytes than the products do, so each run of them is one function of plain tensors that
`compile_elementwise` can turn into one kernel. Without a compiler they run as PyTorch operations, written for few
passes over memory. No autograd here: `ace_lora.model.lean_autograd` calls both directions.

B batch, T latent frames, D width, H heads, d head width, F feed-forward width (half of the gated one).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_functions: dict[str, Callable] = {}
_compiled: dict[str, Callable] = {}


def _compilable(function: Callable) -> Callable:
    """Let a function be replaced by its compiled form while `compile_elementwise` is in force."""
    name = function.__name__
    _functions[name] = function

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return _compiled.get(name, function)(*args)

    return call


def compile_elementwise(device: torch.device | str) -> str | None:
    """Compile these functions with `torch.compile` (Triton on a GPU, a C++ compiler on the CPU), tried on `device`.

    Returns None when that worked; else nothing is changed and the reason comes back as one line for the user.
    """
    compiled = {name: torch.compile(function, dynamic=True) for name, function in _functions.items()}
    x = torch.ones(1, 4, 8, device=device)
    try:
        compiled["modulated_norm"](x, x[:, :1], x[:, :1], 1e-6)
    except Exception as error:  # the compiler stack raises whatever it likes: missing Triton, no C++ compiler, ...
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return f"torch.compile does not work here ({reason[0]}); going on without it."
    torch._dynamo.config.suppress_errors = True  # one that fails later, at other shapes, runs uncompiled
    _compiled.update(compiled)
    return None


# --- RMS norm with modulation (spec: transformer, 8.1) ----------------------------------------------------------------


@_compilable
def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """RMS(x)·scale + shift; x [B,T,D], shift and scale [B,1,D]. The norm is computed in float32, rounded once."""
    return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], eps=eps), scale)


@_compilable
def modulated_norm_backward(da: Tensor, x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """With dn = da·scale and r = 1/rms: dx = r·dn − x·r³·mean(dn·x)."""
    r = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    r = r.square().div(x.shape[-1]).add(eps).rsqrt()  # [B,T,1]
    dn = da * scale
    product = dn * x.float() if x.dtype == torch.float16 else dn * x  # float16 would overflow
    along = product.mean(-1, keepdim=True, dtype=torch.float32) * r.pow(3)
    return torch.addcmul(dn * r, x, along, value=-1, out=dn)


@_compilable
def add_gated(residual: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return torch.addcmul(residual, y, gate)


# --- Rotary position embedding (spec: transformer, 3) and the ReLU feature of linear attention (8.2) ------------------


def _swap(x: Tensor) -> Tensor:
    """Exchange the members of each pair (2j, 2j+1) of the last dimension."""
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x·cos + swap(x)·sin with float32 tables, multiplied and added in float32, rounded once."""
    return torch.addcmul(x * cos, _swap(x), sin, out=torch.empty_like(x))


@_compilable
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B,n,H,d] turned by the tables [·,n,1,d] of `rotation_table`."""
    return _rotate(x, cos, sin)


@_compilable
def rotate_backward(dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The transposed rotation: dy·cos + swap(dy·sin)."""
    return _rotate(dy, cos, _swap(sin))


@_compilable
def feature(x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    """relu(rope(x)·mask); mask [B,T,1,1] of ones and zeros."""
    y = _rotate(x, cos, sin).relu_()
    return y if mask is None else y * mask


@_compilable
def feature_backward(dy: Tensor, y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`y` is the feature: positive exactly where neither the ReLU nor the mask cut it off."""
    return _rotate(torch.ops.aten.threshold_backward(dy, y, 0), cos, _swap(sin))


# --- Gated depthwise convolution (spec: transformer, 8.4) -------------------------------------------------------------

# The weights of the frames before, at and after, and the bias, one row each.
Taps = Tensor  # [4,C]


def _convolved(p: Tensor, taps: Taps, mask: Tensor | None) -> Tensor:
    """depthwise(SiLU(p)·mask)"""
    before, at, after, bias = taps.unbind()
    u = F.silu(p)
    if mask is not None:
        u = u * mask
    c = torch.addcmul(bias, u, at)
    c[:, 1:].addcmul_(u[:, :-1], before)
    c[:, :-1].addcmul_(u[:, 1:], after)
    return c


def _convolved_backward(dc: Tensor, p: Tensor, taps: Taps, mask: Tensor | None) -> None:
    before, at, after, _ = taps.unbind()
    du = dc * at
    du[:, :-1].addcmul_(dc[:, 1:], before)
    du[:, 1:].addcmul_(dc[:, :-1], after)
    if mask is not None:
        du = du * mask
    torch.ops.aten.silu_backward(du, p, grad_input=p)


@_compilable
def gated_convolution(p: Tensor, p_gate: Tensor, taps: Taps, taps_gate: Taps, mask: Tensor | None, out: Tensor) -> None:
    """Write c·SiLU(c_gate), with c = depthwise(SiLU(p)·mask), to `out`, for C channels and the C that gate them.

    p, p_gate and out [B,T,C], taps [4,C], mask [B,T,1].
    """
    torch.mul(_convolved(p, taps, mask), F.silu(_convolved(p_gate, taps_gate, mask)), out=out)


@_compilable
def gated_convolution_backward(
    dm: Tensor, p: Tensor, p_gate: Tensor, taps: Taps, taps_gate: Taps, mask: Tensor | None
) -> None:
    """Overwrite p and p_gate by their gradients, given dm [B,T,C]; everything between is computed again."""
    gate = _convolved(p_gate, taps_gate, mask)
    dgate = torch.ops.aten.silu_backward(_convolved(p, taps, mask).mul_(dm), gate)
    _convolved_backward(dm * F.silu(gate), p, taps, mask)
    _convolved_backward(dgate, p_gate, taps_gate, mask)
