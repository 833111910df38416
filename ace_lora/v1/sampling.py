"""Text to latents: the Euler sampler of ACE-Step v1 with adaptive projected guidance (APG, Sadat et al. 2024).

The latents and everything done to them are float32; only the transformer runs in its own dtype.

B batch, T latent frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ace_lora.records.format import LATENT_SAMPLE_RATE, SAMPLES_PER_LATENT_FRAME

if TYPE_CHECKING:
    from ace_lora.v1.transformer import ACEStepTransformer

SHIFT = 3.0
_LATENT_SHAPE = (8, 16)
# Blocks whose queries the unconditional pass weakens, and by how much ("entropy rectifying guidance").
_WEAKENED_BLOCKS = range(15, 20)
_QUERY_SCALE = 0.01


@dataclass(frozen=True)
class SamplingSettings:
    """Defaults are those of ACE-Step v1's demo, where they have an effect."""

    steps: int = 60
    guidance: float = 15.0  # 0 or 1: none, and half the time
    guidance_type: Literal["apg", "cfg"] = "apg"
    interval: float = 0.5  # the middle share of the steps that is guided
    decay: float = 0.0  # 1: guidance falls to `min_guidance` within the interval
    min_guidance: float = 3.0
    omega: float = 10.0  # contrast of a step; 0: none
    weakened_queries: bool = True


def latent_frames(seconds: float) -> int:
    """Whole latent frames in `seconds`; the song is at most 0.09 s shorter than asked for."""
    return int(seconds * LATENT_SAMPLE_RATE / SAMPLES_PER_LATENT_FRAME)


def draw_noise(frames: int, seed: int) -> Tensor:
    """Float32 [1, 8, 16, T] from a CPU generator, so that a seed means the same song on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *_LATENT_SHAPE, frames, generator=generator)


def sampling_schedule(steps: int) -> tuple[Tensor, Tensor]:
    """Timesteps [steps] and noise levels [steps + 1] (the last is 0), float32.

    At the lower end the shift is applied twice, as published: the last level of 60 steps is 0.0089.
    """
    lowest = float(torch.tensor(SHIFT * 0.001 / (1 + (SHIFT - 1) * 0.001), dtype=torch.float32))
    times = torch.linspace(1000.0, 1000.0 * lowest, steps, dtype=torch.float64) / 1000
    sigmas = (SHIFT * times / (1 + (SHIFT - 1) * times)).float()
    return sigmas * 1000, torch.cat([sigmas, torch.zeros(1)])


class ProjectedGuidance:
    """Away from the unconditional prediction, but only across the conditional one; keeps momentum between steps."""

    MOMENTUM = -0.75
    LARGEST_NORM = 2.5

    def __init__(self) -> None:
        self._running: Tensor | float = 0.0

    def __call__(self, conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
        """[B, 8, 16, T] each; norms and products are per item and channel."""
        axes = (-2, -1)
        self._running = conditional - unconditional + self.MOMENTUM * self._running
        difference = self._running
        norm = torch.linalg.vector_norm(difference, dim=axes, keepdim=True)
        # A norm of zero gives a factor of one.
        difference = difference * (self.LARGEST_NORM / norm).clamp(max=1)
        # float64 where the device has it: the projection is a difference of nearly equal numbers.
        wide = torch.float32 if difference.device.type == "mps" else torch.float64
        direction = torch.nn.functional.normalize(conditional.to(wide).flatten(-2), dim=-1).view_as(conditional)
        across = difference.to(wide)
        across = across - (across * direction).sum(axes, keepdim=True) * direction
        return conditional + (guidance - 1) * across.to(conditional.dtype)


def guided_steps(settings: SamplingSettings) -> range:
    """Indices of the steps that are guided: the middle share `interval` of all."""
    if settings.guidance in (0, 1):
        return range(0)
    low = int(settings.steps * ((1 - settings.interval) / 2))
    return range(low, int(settings.steps * (settings.interval / 2 + 0.5)))


def integrate(
    predict: Callable[[Tensor, Tensor, bool], Tensor],
    noise: Tensor,
    settings: SamplingSettings,
    on_step: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """From noise [B, 8, 16, T] to latents of the same shape, float32.

    `predict(latents, timestep [B], conditional)` returns the velocity; `on_step(number of steps done)`.
    """
    timesteps, sigmas = sampling_schedule(settings.steps)
    guided = guided_steps(settings)
    combine = ProjectedGuidance()
    contrast = 0.9 + 0.2 / (1 + math.exp(-0.1 * settings.omega))
    latents = noise.float()
    for step in range(settings.steps):
        timestep = timesteps[step].expand(len(latents)).to(latents.device)
        velocity = predict(latents, timestep, True).float()
        if step in guided:
            unconditional = predict(latents, timestep, False).float()
            guidance = settings.guidance
            if settings.decay > 0 and len(guided) > 1:
                progress = (step - guided.start) / (len(guided) - 1)
                guidance -= (settings.guidance - settings.min_guidance) * progress * settings.decay
            if settings.guidance_type == "cfg":
                velocity = unconditional + guidance * (velocity - unconditional)
            else:
                velocity = combine(velocity, unconditional, guidance)
        change = (sigmas[step + 1] - sigmas[step]).item() * velocity
        mean = change.mean()
        latents = latents + (change - mean) * contrast + mean
        on_step(step + 1)
    return latents


def sample_latents(
    transformer: ACEStepTransformer,
    text_states: Tensor,
    lyric_token_ids: list[int],
    *,
    seconds: float,
    seed: int,
    settings: SamplingSettings | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """Latents float32 [8, 16, T] on the CPU, T = `latent_frames(seconds)`.

    text_states: [1, Lt, width], the text encoder's last hidden states of the prompt.
    lyric_token_ids: [0] for a song without lyrics.
    """
    settings = settings or SamplingSettings()
    device = next(transformer.parameters()).device
    ids = torch.tensor([lyric_token_ids], dtype=torch.int64, device=device)
    # As the published pipeline has it: no lyrics are one masked token.
    lyric_mask = torch.ones(1, len(lyric_token_ids)) if lyric_token_ids != [0] else torch.zeros(1, 1)
    text_states = text_states.to(device)
    with torch.inference_mode():
        # The unconditional pass sees contents of zero, with the lengths and masks of the conditional one.
        contexts = {
            conditional: transformer.encode_context(
                text_states if conditional else torch.zeros_like(text_states),
                None,
                transformer.encode_lyrics(ids if conditional else torch.zeros_like(ids), lyric_mask),
                lyric_mask,
            )
            for conditional in (True, False)
        }

        def predict(latents: Tensor, timestep: Tensor, conditional: bool) -> Tensor:
            with weakened_queries(transformer, settings.weakened_queries and not conditional):
                return transformer(latents, timestep, contexts[conditional]).velocity

        noise = draw_noise(latent_frames(seconds), seed).to(device)
        return integrate(predict, noise, settings, on_step)[0].cpu()


@contextmanager
def weakened_queries(transformer: Any, active: bool = True) -> Iterator[None]:
    """While active, the query projections of the middle blocks return a hundredth, LoRA and bias included.

    The layers' numbers are exchanged, because the transformer's lean functions read them without calling the layer.
    """
    changed: list[tuple[nn.Module, str, Tensor]] = []
    scalings: list[tuple[dict[str, float], dict[str, float]]] = []
    blocks = list(transformer.transformer_blocks) if active else []
    try:
        for index in _WEAKENED_BLOCKS:
            for attention in (blocks[index].attn, blocks[index].cross_attn) if index < len(blocks) else ():
                layer = attention.to_q
                base = getattr(layer, "base_layer", layer)
                for name in ("weight", "bias"):
                    parameter = getattr(base, name)
                    changed.append((base, name, parameter.data))
                    parameter.data = parameter.data * _QUERY_SCALE
                if hasattr(layer, "scaling"):
                    scalings.append((layer.scaling, dict(layer.scaling)))
                    for adapter in layer.scaling:
                        layer.scaling[adapter] *= _QUERY_SCALE
        yield
    finally:
        for base, name, data in changed:
            getattr(base, name).data = data
        for scaling, values in scalings:
            scaling.update(values)
