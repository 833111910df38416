"""Flow matching as ACE-Step v1 trains it: the noise schedule, the draw of a time, the noised latents and their loss.

Everything is float32 whatever the model computes in: published training rounds the timestep to bfloat16, which moves
the LoRA gradient by up to 40 % and trains for other times than inference uses (spec: trainer, section 10).

B batch, T latent frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ace_lora.device import send

TRAINING_TIMES = 1000
Padding = Literal["exact", "reference"]


@dataclass(frozen=True)
class Schedule:
    """The 1000 noise levels; index 0 is pure noise (spec: trainer, section 3)."""

    timesteps: Tensor  # [1000] float32, 1000·sigma, what the transformer is told
    sigmas: Tensor  # [1000] float32, share of noise


def build_schedule(shift: float = 3.0) -> Schedule:
    """sigma = shift·s / (1 + (shift − 1)·s) for s = 1, 0.999, … 0.001; the shift is applied once."""
    fractions = torch.arange(TRAINING_TIMES, 0, -1, dtype=torch.float32) / TRAINING_TIMES
    sigmas = shift * fractions / (1 + (shift - 1) * fractions)
    return Schedule(timesteps=sigmas * TRAINING_TIMES, sigmas=sigmas)


def timestep_indices(normals: Tensor) -> Tensor:
    """Standard normals of any shape to schedule indices (int64): trunc(1000·sigmoid(z)), at most 999.

    A large z means little noise.
    """
    return (normals.float().sigmoid() * TRAINING_TIMES).long().clamp(0, TRAINING_TIMES - 1)


def sample_timestep_indices(batch: int, generator: torch.Generator | None = None) -> Tensor:
    """[batch] schedule indices, logit-normal (mean 0, deviation 1), drawn from a CPU generator."""
    return timestep_indices(torch.normal(0.0, 1.0, (batch,), generator=generator))


def add_noise(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_t = sigma·noise + (1 − sigma)·latents; [B,8,16,T] and sigma [B], result float32."""
    sigma = sigma.float().view(-1, 1, 1, 1)
    return sigma * noise.float() + (1 - sigma) * latents.float()


def denoising_loss(
    velocity: Tensor,
    noise: Tensor,
    latents: Tensor,
    sigma: Tensor,
    frame_mask: Tensor | None = None,
    padding: Padding = "exact",
) -> Tensor:
    """Scalar loss of the predicted velocity [B,8,16,T] against the clean latents.

    The published form compares x_t − sigma·v with the latents; that difference is sigma·((noise − latents) − v), and in
    this form nothing cancels. `frame_mask` [B,T] is 1 on the song and 0 on padding, None when nothing is padded.
    "exact": each item counts with the mean square over its own frames, as it would alone. "reference": the published
    mean over all frames times the valid fraction, so that a padded item counts with the square of that fraction.
    """
    sigma = sigma.float().view(-1, 1, 1, 1)
    error = sigma * ((noise.float() - latents.float()) - velocity.float())  # [B,8,16,T]
    if frame_mask is None:
        return error.square().mean()
    mask = send(frame_mask.float(), error.device)
    # Chosen, not multiplied: what a padded frame holds may be anything, and 0·inf is not 0.
    squares = torch.where(mask[:, None, None] > 0, error, 0).square()
    if padding == "reference":
        return (squares.mean((1, 2, 3)) * mask.mean(1)).mean()
    frames = mask.sum(1).clamp(min=1)
    return (squares.mean((1, 2)).sum(1) / frames).mean()
