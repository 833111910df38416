"""Text to latents as ACE-Step v1's own pipeline does it: schedule, Euler, Heun and ping-pong steps, guidance.

The latents and everything done to them are float32; only the transformer runs in its own dtype.

B batch, T latent frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ace_lora.records.format import LATENT_SAMPLE_RATE, SAMPLES_PER_LATENT_FRAME
from ace_lora.v1.guidance import (
    ProjectedGuidance,
    classifier_free,
    decayed,
    guided_steps,
    lyric_queries,
    transformer_queries,
    weakened_queries,
)

if TYPE_CHECKING:
    from ace_lora.v1.transformer import ACEStepTransformer

_LATENT_SHAPE = (8, 16)


@dataclass(frozen=True)
class SamplingSettings:
    """Defaults are those of ACE-Step v1's demo, where they have an effect."""

    steps: int = 60
    sampler: Literal["euler", "heun", "pingpong"] = "euler"
    shift: float = 3.0  # above 1: more of the steps where there is much noise
    guidance: float = 15.0  # 0 or 1: none, and half the time
    guidance_type: Literal["apg", "cfg"] = "apg"
    interval: float = 0.5  # the middle share of the steps that is guided
    decay: float = 0.0  # 1: guidance falls to `min_guidance` within the interval
    min_guidance: float = 3.0
    omega: float = 10.0  # contrast of a step; 0: none
    erg_diffusion: bool = True  # weakened queries in the unconditional pass: of the transformer,
    erg_lyrics: bool = False  # of the lyric encoder, which then reads the lyrics there too,
    erg_tags: bool = False  # of the text encoder; without `erg_lyrics` this changes nothing, as published

    @property
    def evaluations(self) -> int:
        """How often the transformer runs."""
        per_step = 2 if self.sampler == "heun" else 1
        guided = guided_steps(self.steps, self.guidance, self.interval)
        # The last step of Heun ends where there is no slope to look at.
        last = per_step - 1
        return per_step * (self.steps + len(guided)) - last * (1 + (self.steps - 1 in guided))


def latent_frames(seconds: float) -> int:
    """Whole latent frames in `seconds`; the song is at most 0.09 s shorter than asked for."""
    return int(seconds * LATENT_SAMPLE_RATE / SAMPLES_PER_LATENT_FRAME)


def draw_noise(frames: int, seed: int | torch.Generator) -> Tensor:
    """Float32 [1, 8, 16, T] from a CPU generator, so that a seed means the same song on every machine."""
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    return torch.randn(1, *_LATENT_SHAPE, frames, generator=generator)


def sampling_schedule(steps: int, shift: float = 3.0) -> tuple[Tensor, Tensor]:
    """Timesteps [steps] and noise levels [steps + 1] (the last is 0), float32.

    At the lower end the shift is applied twice, as published: at 3 the last level of 60 steps is 0.0089.
    """
    lowest = float(torch.tensor(shift * 0.001 / (1 + (shift - 1) * 0.001), dtype=torch.float32))
    times = torch.linspace(1000.0, 1000.0 * lowest, steps, dtype=torch.float64) / 1000
    sigmas = (shift * times / (1 + (shift - 1) * times)).float()
    return sigmas * 1000, torch.cat([sigmas, torch.zeros(1)])


def integrate(
    predict: Callable[[Tensor, Tensor, bool], Tensor],
    noise: Tensor,
    settings: SamplingSettings,
    on_step: Callable[[int], None] = lambda step: None,
    draw: Callable[[], Tensor] | None = None,
) -> Tensor:
    """From noise [B, 8, 16, T] to latents of the same shape, float32.

    `predict(latents, timestep [B], conditional)` returns the velocity; `on_step(number of steps done)`; `draw` gives
    the fresh noise of each ping-pong step.

    Heun (Heun 1900; Karras et al. 2022, algorithm 1 without churn) follows the mean of the slopes at both ends of a
    step, Euler in the last one. Ping-pong (Novack et al. 2025) goes all the way to the clean song at every step and
    mixes fresh noise into it; `omega` does not apply to it.
    """
    timesteps, sigmas = sampling_schedule(settings.steps, settings.shift)
    guided = guided_steps(settings.steps, settings.guidance, settings.interval)
    combine = ProjectedGuidance() if settings.guidance_type == "apg" else classifier_free
    contrast = 0.9 + 0.2 / (1 + math.exp(-0.1 * settings.omega))
    latents = noise.float()

    def velocity_at(latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        timestep = timestep.expand(len(latents)).to(latents.device)
        velocity = predict(latents, timestep, True).float()
        if step not in guided:
            return velocity
        guidance = decayed(settings.guidance, settings.min_guidance, settings.decay, step, guided)
        return combine(velocity, predict(latents, timestep, False).float(), guidance)

    def moved(latents: Tensor, velocity: Tensor, step: int) -> Tensor:
        change = (sigmas[step + 1] - sigmas[step]).item() * velocity
        mean = change.mean()
        return latents + (change - mean) * contrast + mean

    for step in range(settings.steps):
        velocity = velocity_at(latents, timesteps[step], step)
        if settings.sampler == "pingpong":
            clean = latents - sigmas[step].item() * velocity
            following = sigmas[step + 1].item()
            latents = clean
            if following > 0:
                assert draw is not None
                latents = (1 - following) * clean + following * draw().to(clean.device)
        else:
            if settings.sampler == "heun" and step + 1 < settings.steps:
                ahead = velocity_at(moved(latents, velocity, step), timesteps[step + 1], step)
                velocity = (velocity + ahead) / 2
            latents = moved(latents, velocity, step)
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
    weakened_text_states: Tensor | None = None,
    lyric_branch: ACEStepTransformer | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """Latents float32 [8, 16, T] on the CPU, T = `latent_frames(seconds)`.

    text_states: [1, Lt, width], the text encoder's last hidden states of the prompt.
    weakened_text_states: the same from weakened queries, for `erg_tags`.
    lyric_token_ids: [0] for a song without lyrics.
    lyric_branch: of `load_lyric_branch`, where the transformer has given its own back.
    """
    settings = settings or SamplingSettings()
    device = transformer.final_layer.scale_shift_table.device
    branch = lyric_branch or transformer
    ids = torch.tensor([lyric_token_ids], dtype=torch.int64, device=branch.lyric_embs.weight.device)
    # As the published pipeline has it: no lyrics are one masked token.
    lyric_mask = torch.ones(1, len(lyric_token_ids)) if lyric_token_ids != [0] else torch.zeros(1, 1)
    text_states = text_states.to(device)
    # The unconditional pass sees contents of zero, with the lengths and masks of the conditional one; with
    # `erg_lyrics` it sees the lyrics, and with `erg_tags` the tags too, through weakened queries.
    other_text, other_ids = torch.zeros_like(text_states), torch.zeros_like(ids)
    if settings.erg_lyrics:
        other_ids = ids
        if settings.erg_tags:
            if weakened_text_states is None:
                raise ValueError("erg_tags needs weakened_text_states")
            other_text = weakened_text_states.to(device)
    with torch.inference_mode():
        lyrics = branch.encode_lyrics(ids, lyric_mask).to(device)
        with weakened_queries(lyric_queries(branch) if settings.erg_lyrics else ()):
            other_lyrics = branch.encode_lyrics(other_ids, lyric_mask).to(device)
        contexts = {
            True: transformer.encode_context(text_states, None, lyrics, lyric_mask),
            False: transformer.encode_context(other_text, None, other_lyrics, lyric_mask),
        }
        weakened = transformer_queries(transformer) if settings.erg_diffusion else []

        def predict(latents: Tensor, timestep: Tensor, conditional: bool) -> Tensor:
            with weakened_queries(() if conditional else weakened):
                return transformer(latents, timestep, contexts[conditional]).velocity

        generator = torch.Generator().manual_seed(seed)
        frames = latent_frames(seconds)
        noise = draw_noise(frames, generator).to(device)
        return integrate(predict, noise, settings, on_step, lambda: draw_noise(frames, generator))[0].cpu()
