"""Arithmetic on the two factors of a layer: what B A is best approximated by, sums, another rank, a scale folded in.

A [r, in], B [out, r]. Products are decomposed in float64 through the factors, never as a full matrix [out, in].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def best_factors(
    a: Tensor, b: Tensor, rank: int | Callable[[Tensor], int], dtypes: tuple[torch.dtype, torch.dtype] | None = None
) -> tuple[Tensor, Tensor, float]:
    """A' [k, in] and B' [out, k] whose product is the nearest to B A of that rank, and the share of its norm they keep.

    The norm is Frobenius'. `rank` may be a function of the singular values, largest first; where it is not below
    that of A and B, the very same factors come back. `dtypes` of A' and B' (default: as A and B).
    """
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, values, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    kept_rank = max(1, rank if isinstance(rank, int) else rank(values))
    if kept_rank >= len(a):
        return a, b, 1.0
    root = values[:kept_rank].sqrt()
    new_a = (root[:, None] * v[:kept_rank]) @ q_a.T
    new_b = q_b @ (u[:, :kept_rank] * root)
    total = float(values.square().sum())
    kept = (float(values[:kept_rank].square().sum()) / total) ** 0.5 if total else 1.0
    to_a, to_b = dtypes or (a.dtype, b.dtype)
    return new_a.to(to_a).contiguous(), new_b.to(to_b).contiguous(), kept


def folded(b: Tensor, scale: float) -> Tensor:
    """scale · B in B's dtype, computed in float32 before it is rounded; exact for powers of two."""
    return b if scale == 1 else (b.float() * scale).to(b.dtype)


def padded(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same product with `rank` rows and columns, the further ones zero."""
    missing = rank - len(a)
    if missing == 0:
        return a, b
    more_a, more_b = a.new_zeros(missing, a.shape[1]), b.new_zeros(b.shape[0], missing)
    return torch.cat([a, more_a]), torch.cat([b, more_b], 1)


def weighted_sum(parts: Iterable[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor]:
    """A and B with B A = Σ weight · B_i A_i, ranks added up; B float32, so that no weight is rounded."""
    parts = list(parts)
    dtype = parts[0][0].dtype if len({a.dtype for a, _, _ in parts}) == 1 else torch.float32
    return torch.cat([a.to(dtype) for a, _, _ in parts]), torch.cat([b.float() * weight for _, b, weight in parts], 1)
