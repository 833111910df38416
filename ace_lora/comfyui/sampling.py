"""Text to latents as ComfyUI samples ACE-Step v1 (spec: clients, sections 3.3 to 3.6).

Flow matching with 1000 noise levels; Euler steps on the clean song as predicted; guidance limited by a tone map, which
is Reinhard's of 2002 (photographs with too much light) on the length of the guidance's 8 channels.

B batch, T latent frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ace_lora.v1.sampling import draw_noise, latent_frames

if TYPE_CHECKING:
    from ace_lora.v1.transformer import ACEStepTransformer

LEVELS = 1000  # entries of the table of noise levels, and what a level is multiplied with for the transformer
SCHEDULERS = ("simple", "normal", "sgm_uniform", "ddim_uniform", "beta")


@dataclass(frozen=True)
class ComfyUISettings:
    """Defaults are those of ComfyUI's workflow for ACE-Step v1."""

    steps: int = 50
    scheduler: str = "simple"
    shift: float = 5.0
    guidance: float = 5.0  # its cfg; 1: none, and half the time
    tonemap: float | None = 1.0  # the node's multiplier; None: without the node
    lyrics_strength: float = 0.99

    @property
    def evaluations(self) -> int:
        """How often the transformer runs."""
        rounds = len(noise_levels(self.steps, self.scheduler, self.shift)) - 1
        return rounds * (1 if self.guidance == 1 else 2)


def noise_levels(steps: int, scheduler: str = "simple", shift: float = 5.0, denoise: float = 1.0) -> Tensor:
    """The levels, float32 [steps + 1], the last 0. Below a `denoise` of 1 the last of a longer row."""
    if denoise < 1:
        return noise_levels(int(steps / denoise), scheduler, shift)[-(steps + 1) :]
    fractions = torch.arange(1, LEVELS + 1, dtype=torch.float32) / LEVELS
    table = _shifted(fractions, shift)  # rising, [1000]
    lowest, highest = float(table[0]), float(table[-1])
    if scheduler == "simple":
        levels = table[[LEVELS - 1 - step * LEVELS // steps for step in range(steps)]]
    elif scheduler == "normal":
        levels = _shifted(torch.linspace(highest, lowest, steps), shift)
    elif scheduler == "sgm_uniform":
        levels = _shifted(torch.linspace(highest, lowest, steps + 1)[:-1], shift)
    elif scheduler == "ddim_uniform":
        levels = table[list(range(1, LEVELS, max(LEVELS // steps, 1)))].flip(0)
    elif scheduler == "beta":
        # Lee et al. 2024, "Beta sampling is all you need", with their 0.6 and 0.6.
        import numpy as np
        from scipy.stats import beta

        places = np.rint(beta.ppf(1 - np.arange(steps) / steps, 0.6, 0.6) * (LEVELS - 1)).astype(int)
        levels = table[list(dict.fromkeys(places.tolist()))]
    else:
        raise ValueError(f"Scheduler '{scheduler}' is not known; expected one of {', '.join(SCHEDULERS)}.")
    return torch.cat([levels, torch.zeros(1)])


def _shifted(times: Tensor, shift: float) -> Tensor:
    return shift * times / (1 + (shift - 1) * times)


def tonemap_reinhard(difference: Tensor, multiplier: float) -> Tensor:
    """[B, 8, 16, T] to the same shape: long vectors (over the 8 channels) are shortened, per song."""
    length = torch.linalg.vector_norm(difference, dim=1, keepdim=True) + 1e-10  # [B, 1, 16, T]
    deviation = length.std(dim=(1, 2, 3), keepdim=True)
    top = (5 * deviation + length.mean(dim=(1, 2, 3), keepdim=True)) * multiplier
    relative = length / top
    return difference / length * (relative / (relative + 1)) * top


def integrate(
    predict: Callable[[Tensor, Tensor, bool], Tensor],
    noise: Tensor,
    settings: ComfyUISettings,
    on_step: Callable[[int], None] = lambda step: None,
    *,
    source: Tensor | None = None,
    denoise: float = 1.0,
) -> Tensor:
    """From noise [B, 8, 16, T] to latents of the same shape, float32.

    `predict(latents, timestep [B], conditional)` returns the velocity; `on_step(number of steps done)`. Below a
    `denoise` of 1 the song begins as the latents `source` (zeros where it is None) under noise.
    """
    levels = noise_levels(settings.steps, settings.scheduler, settings.shift, denoise)
    first = levels[0].item()
    latents = first * noise.float() + (1 - first) * (torch.zeros_like(noise) if source is None else source.float())
    for step, (level, following) in enumerate(zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True)):
        timestep = torch.full((len(latents),), level, device=latents.device) * LEVELS
        clean = latents - level * predict(latents, timestep, True).float()
        if settings.guidance != 1:
            other = latents - level * predict(latents, timestep, False).float()
            difference = clean - other
            if settings.tonemap is not None:
                difference = tonemap_reinhard(difference, settings.tonemap)
            clean = other + settings.guidance * difference
        elif settings.tonemap is not None:
            clean = tonemap_reinhard(clean, settings.tonemap)
        latents = latents + (latents - clean) / level * (following - level)
        on_step(step + 1)
    return latents


def sample_latents(
    transformer: ACEStepTransformer,
    text_states: Tensor,
    lyric_token_ids: list[int],
    *,
    seconds: float,
    seed: int,
    settings: ComfyUISettings,
    lyric_branch: ACEStepTransformer | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """Latents float32 [8, 16, T] on the CPU, T = `latent_frames(seconds)`.

    text_states: [1, Lt, width] of the whole prompt. lyric_token_ids: as `ace_lora.comfyui.lyrics.token_ids` gives them.
    lyric_branch: of `load_lyric_branch`, where the transformer has given its own back.
    """
    device = transformer.final_layer.scale_shift_table.device
    branch = lyric_branch or transformer
    ids = torch.tensor([lyric_token_ids], dtype=torch.int64, device=branch.lyric_embs.weight.device)
    text_states = text_states.to(device)
    with torch.inference_mode():
        contexts = {
            conditional: transformer.encode_context(
                text_states if conditional else torch.zeros_like(text_states),
                None,
                # The strength multiplies behind the projection, on both sides.
                branch.encode_lyrics(ids if conditional else torch.zeros_like(ids)).to(device)
                * settings.lyrics_strength,
                None,
            )
            for conditional in (True, False)
        }

        def predict(latents: Tensor, timestep: Tensor, conditional: bool) -> Tensor:
            return transformer(latents, timestep, contexts[conditional]).velocity

        noise = draw_noise(latent_frames(seconds), seed).to(device)
        return integrate(predict, noise, settings, on_step)[0].cpu()


def limit_loudness(wave: Tensor) -> Tensor:
    """[2, N]: music louder than a deviation of 0.2, over both channels together, is turned down to it (section 3.8)."""
    return wave / max(1.0, 5 * float(wave.std()))
