"""ComfyUI's sampling against the golden numbers, which its own nodes gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ace_lora.comfyui.sampling import (
    ComfyUISettings,
    integrate,
    limit_loudness,
    noise_levels,
    sample_latents,
    tonemap_reinhard,
)
from ace_lora.v1.sampling import draw_noise, latent_frames
from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig
from tests.golden_audio import assert_close, normal

FOLDER = Path(__file__).parents[1] / "golden" / "clients"
GOLDEN = json.loads((FOLDER / "sampling.json").read_text(encoding="utf-8"))
STORED = load_file(FOLDER / "sampling.safetensors")


@pytest.mark.parametrize("name", list(GOLDEN["sigmas"]))
def test_noise_levels_equal_the_golden(name):
    shift, scheduler, steps = name.removeprefix("shift").split(".")
    levels = noise_levels(int(steps), scheduler, float(shift))
    torch.testing.assert_close(levels, torch.tensor(GOLDEN["sigmas"][name]), rtol=0, atol=1e-6)


def test_frames_and_noise_equal_the_golden():
    assert {seconds: latent_frames(float(seconds)) for seconds in GOLDEN["frames"]} == GOLDEN["frames"]
    for seed, first in GOLDEN["noise_first8"].items():
        assert draw_noise(10, int(seed)).flatten()[:8].tolist() == first
    assert torch.equal(draw_noise(10, 42), STORED["noise.seed42"])


def test_tone_map_equals_the_golden():
    for multiplier, name in ((1.0, "m1"), (0.5, "m0.5")):
        assert_close(tonemap_reinhard(STORED["reinhard.in"], multiplier), STORED[f"reinhard.out.{name}"], 2e-6)
    both = torch.cat([STORED["reinhard.in"], 3 * STORED["reinhard.in"]])
    assert_close(tonemap_reinhard(both, 1.0)[:1], STORED["reinhard.out.m1"], 2e-6)


def stand_in(text, ids, strength):
    """The velocity that the golden's cases were made with."""
    channel = torch.arange(8.0)[:, None, None]
    frame = torch.arange(10.0)

    def velocity(x, timestep, conditional):
        mean_text, mean_ids = (text.mean(), ids.float().mean()) if conditional else (0.0, 0.0)
        t = timestep[:, None, None, None]
        lyric = mean_ids / 1000 * strength * torch.sin(frame / 5)
        return (0.7 + mean_text) * x + 0.3 * torch.cos(0.002 * t + channel) + lyric

    return velocity


@pytest.mark.parametrize("name", list(GOLDEN["cases"]))
def test_trajectories_equal_the_golden(name):
    case = GOLDEN["cases"][name]
    settings = ComfyUISettings(
        steps=case["steps"],
        scheduler=case["scheduler"],
        shift=case["shift"],
        guidance=case["cfg"],
        tonemap=case["mult"],
        lyrics_strength=GOLDEN["cond"]["lyrics_strength"],
    )
    predict = stand_in(STORED["cond.text"], STORED["cond.lyrics"], settings.lyrics_strength)
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return predict(*arguments)

    denoise = case.get("denoise", 1.0)
    source = STORED["latent.source"] if denoise < 1 else None
    result = integrate(counted, draw_noise(10, case["seed"]), settings, source=source, denoise=denoise)
    assert_close(result, STORED[f"final.{name}"], 2e-6)
    assert float(result.norm()) == pytest.approx(case["norm"], rel=2e-6)
    assert len(calls) == settings.evaluations
    if name == "official10":
        assert_close(calls[2][0], STORED["official10.step1"], 2e-6)  # what the second step begins with


def test_loudness_is_limited_not_raised():
    quiet, loud = 0.01 * torch.randn(2, 4000), torch.randn(2, 4000)
    assert torch.equal(limit_loudness(quiet), quiet)
    assert float(limit_loudness(loud).std()) == pytest.approx(0.2, rel=1e-5)


def test_lyrics_strength_multiplies_behind_the_projection_on_both_sides():
    torch.manual_seed(0)
    model = ACEStepTransformer(
        TransformerConfig(
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            text_embedding_dim=12,
            lyric_encoder_vocab_size=300,
            lyric_hidden_size=16,
            lyric_encoder_layers=1,
            lyric_encoder_heads=2,
            lyric_encoder_feed_forward=16,
            ssl_encoder_depths=(),
            ssl_names=(),
            ssl_latent_dims=(),
        )
    )
    seen = []
    model.encode_context = lambda text, mask, lyrics, lyric_mask: (
        seen.append((text, mask, lyrics, lyric_mask)) or ACEStepTransformer.encode_context(model, *seen[-1])
    )
    text = torch.from_numpy(normal("text", (1, 3, 12)))
    settings = ComfyUISettings(steps=1, lyrics_strength=0.5)
    latents = sample_latents(model, text, [261, 5, 2], seconds=1.0, seed=1, settings=settings)
    assert latents.shape == (8, 16, 10) and latents.isfinite().all()
    (positive, _, lyrics, mask), (negative, _, zeroed, _) = seen
    assert torch.equal(positive, text) and not negative.any() and mask is None
    torch.testing.assert_close(lyrics, 0.5 * model.encode_lyrics(torch.tensor([[261, 5, 2]])))
    torch.testing.assert_close(zeroed, 0.5 * model.encode_lyrics(torch.zeros(1, 3, dtype=torch.int64)))
