"""Schedule and the sampling loop against the golden data; Heun and ping-pong against songs that are known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ace_lora.v1.guidance import lyric_queries, weakened_queries
from ace_lora.v1.sampling import (
    SamplingSettings,
    draw_noise,
    integrate,
    latent_frames,
    sample_latents,
    sampling_schedule,
)
from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig
from tests.golden_audio import assert_close, assert_digest, golden_json, golden_tensors, normal

GOLDEN = golden_json("sampling")
TOYS = [name for name in GOLDEN if name.startswith("toy.")]


@pytest.mark.parametrize("steps", list(GOLDEN["schedules"]))
def test_schedule_equals_the_golden(steps):
    timesteps, sigmas = sampling_schedule(int(steps))
    expected = GOLDEN["schedules"][steps]
    torch.testing.assert_close(timesteps, torch.tensor(expected["timesteps"]), rtol=2e-7, atol=0)
    torch.testing.assert_close(sigmas, torch.tensor(expected["sigmas"]), rtol=2e-7, atol=0)


def toy(x, timestep, conditional):
    position = torch.arange(x.shape[-1], dtype=torch.float32)
    t = (timestep / 1000).view(-1, 1, 1, 1)
    strength = 1.2 if conditional else 0.0
    return torch.sin(1.3 * x + 0.7 * t) * (0.5 + t) - 0.4 * x + strength * torch.cos(0.05 * position + 0.3 * x)


@pytest.mark.parametrize("name", TOYS)
def test_loop_equals_the_golden(name):
    case = GOLDEN[name]
    given = case["params"]
    settings = SamplingSettings(
        steps=given["infer_steps"],
        guidance=given["guidance_scale"],
        guidance_type=given.get("cfg_type", "apg"),
        interval=given["guidance_interval"],
        decay=given["guidance_interval_decay"],
        min_guidance=given["min_guidance_scale"],
        omega=given["omega_scale"],
    )
    frames = case["frames"]
    assert latent_frames(case["duration"]) == frames
    steps = []
    noise = torch.from_numpy(normal("input:g.noise", (1, 8, 16, frames)))
    result = integrate(toy, noise, settings, steps.append)
    assert steps == [1, 2, 3, 4, 5]
    stored = golden_tensors("sampling")[name]
    assert_close(result[0] if len(stored) == 8 else result[0, :2], stored, 1e-5)
    assert_digest(result, case["digest"], name, 1e-5)


@pytest.mark.parametrize(("omega", "contrast"), list(GOLDEN["omega"].items()))
def test_contrast_of_a_step_equals_the_golden(omega, contrast):
    noise = torch.randn(1, 8, 16, 4)
    velocity = torch.randn(1, 8, 16, 4)
    settings = SamplingSettings(steps=1, guidance=1, omega=float(omega))
    result = integrate(lambda x, timestep, conditional: velocity, noise, settings)
    mean = velocity.mean()
    torch.testing.assert_close(result, noise - ((velocity - mean) * contrast + mean))


def test_decay_over_a_single_guided_step_is_no_division_by_zero():
    settings = SamplingSettings(steps=2, interval=0.5, decay=1.0)
    assert settings.evaluations == 3
    result = integrate(lambda x, timestep, conditional: x * (1 + conditional), torch.ones(1, 8, 16, 2), settings)
    assert result.isfinite().all()


def test_frames_are_rounded_down():
    assert latent_frames(4096 / 44_100 * 30 + 1e-6) == 30
    assert latent_frames(60) == math.floor(60 * 44_100 / 4096) == 645


def test_noise_depends_on_the_seed_alone():
    assert torch.equal(draw_noise(5, 7), draw_noise(5, 7))
    assert not torch.equal(draw_noise(5, 7), draw_noise(5, 8))
    assert draw_noise(5, 7).shape == (1, 8, 16, 5)


def toy_error(sampler, steps, guidance=1.0):
    """Distance from the exact end of the toy's path, with steps of no contrast."""
    noise = torch.from_numpy(normal("input:g.noise", (1, 8, 16, 20)))
    settings = SamplingSettings(guidance=guidance, guidance_type="cfg", interval=1.0, omega=0.0)
    exact = integrate(toy, noise, replace(settings, steps=2000))
    return float((integrate(toy, noise, replace(settings, steps=steps, sampler=sampler)) - exact).norm())


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_heun_is_of_second_order(guidance):
    # The last step is an Euler step, but a short one: twice the steps, about a quarter of the error.
    errors = {steps: toy_error("heun", steps, guidance) for steps in (20, 40)}
    assert errors[20] < 0.15 * toy_error("euler", 40, guidance)
    assert errors[40] < 0.45 * errors[20]


def test_heun_takes_the_mean_of_two_slopes_with_the_contrast():
    noise = torch.from_numpy(normal("input:g.noise", (1, 8, 16, 4)))
    settings = SamplingSettings(steps=2, sampler="heun", guidance=1.0, omega=5.0)
    times, sigmas = sampling_schedule(2)
    contrast = 0.9 + 0.2 / (1 + math.exp(-0.5))

    def moved(x, v, step):
        change = (sigmas[step + 1] - sigmas[step]) * v
        return x + (change - change.mean()) * contrast + change.mean()

    first = toy(noise, times[0], True)
    second = toy(moved(noise, first, 0), times[1], True)
    halfway = moved(noise, (first + second) / 2, 0)
    expected = moved(halfway, toy(halfway, times[1], True), 1)
    torch.testing.assert_close(integrate(toy, noise, settings), expected)


def test_ping_pong_goes_to_the_clean_song_and_back_to_fresh_noise():
    noise = [torch.from_numpy(normal(f"noise {number}", (1, 8, 16, 4))) for number in range(3)]
    settings = SamplingSettings(steps=3, sampler="pingpong", guidance=1.0)
    _, sigmas = sampling_schedule(3)
    fresh = iter(noise[1:])
    result = integrate(toy, noise[0], settings, draw=lambda: next(fresh))
    x = noise[0]
    for step in range(3):
        clean = x - sigmas[step] * toy(x, sigmas[step : step + 1] * 1000, True)
        x = clean if step == 2 else (1 - sigmas[step + 1]) * clean + sigmas[step + 1] * noise[step + 1]
    torch.testing.assert_close(result, x)


def test_shift_bends_the_schedule():
    _, plain = sampling_schedule(4, 1.0)
    torch.testing.assert_close(plain, torch.tensor([1.0, 0.667, 0.334, 0.001, 0.0]))
    assert (sampling_schedule(30, 6.0)[1][1:-1] > sampling_schedule(30)[1][1:-1]).all()


@pytest.mark.parametrize(("sampler", "guidance"), [("euler", 15), ("heun", 15), ("heun", 1), ("pingpong", 15)])
@pytest.mark.parametrize("interval", [0.5, 1.0])
def test_evaluations_are_counted_before(sampler, guidance, interval):
    settings = SamplingSettings(steps=7, sampler=sampler, guidance=guidance, interval=interval)
    calls = []

    def predict(x, timestep, conditional):
        calls.append(conditional)
        return 0.1 * x + conditional

    integrate(predict, torch.ones(1, 8, 16, 2), settings, draw=lambda: torch.zeros(1, 8, 16, 2))
    assert len(calls) == settings.evaluations


# --- With a small transformer ---


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    config = TransformerConfig(
        num_layers=17,
        num_attention_heads=2,
        attention_head_dim=8,
        text_embedding_dim=12,
        lyric_encoder_vocab_size=50,
        lyric_hidden_size=16,
        lyric_encoder_layers=5,
        lyric_encoder_heads=2,
        lyric_encoder_feed_forward=16,
        ssl_encoder_depths=(1, 1),
        ssl_latent_dims=(8, 8),
    )
    return ACEStepTransformer(config)


def sample(transformer, lyrics=(7, 8, 9), text=None, seed=5, **settings):
    text = torch.from_numpy(normal("text", (1, 3, 12))) if text is None else text
    given = replace(SamplingSettings(steps=2), **settings)
    return sample_latents(transformer, text, list(lyrics), seconds=1.0, seed=seed, settings=given)


def test_latents_follow_prompt_lyrics_seed_and_settings(transformer):
    reference = sample(transformer)
    assert reference.shape == (8, 16, 10) and reference.dtype == torch.float32 and reference.isfinite().all()
    assert torch.equal(sample(transformer), reference)
    for other in (
        sample(transformer, seed=6),
        sample(transformer, lyrics=(7, 8)),
        sample(transformer, lyrics=(0,)),
        sample(transformer, text=torch.zeros(1, 3, 12)),
        sample(transformer, guidance=1.0),
        sample(transformer, guidance_type="cfg"),
        sample(transformer, erg_diffusion=False),
        sample(transformer, erg_lyrics=True),
        sample(transformer, shift=5.0),
        sample(transformer, sampler="heun"),
        sample(transformer, sampler="pingpong"),
    ):
        assert not torch.equal(other, reference)


def test_without_guidance_the_transformer_is_asked_once_a_step(transformer):
    calls = []
    handle = transformer.register_forward_hook(lambda *_: calls.append(1))
    sample(transformer, guidance=1.0)
    assert len(calls) == 2
    sample(transformer, steps=8)
    handle.remove()
    assert len(calls) == 2 + 8 + 4


def test_half_precision_is_for_the_network_only(transformer):
    import copy

    reference = sample(transformer, steps=3)
    latents = sample(copy.deepcopy(transformer).to(torch.bfloat16), steps=3)
    assert latents.dtype == torch.float32
    assert_close(latents, reference, 0.1)


def test_with_erg_the_other_side_sees_lyrics_and_tags_through_weakened_queries(transformer):
    seen = []
    transformer.encode_context = lambda text, mask, lyrics, lyric_mask: (
        seen.append((text, lyrics)) or ACEStepTransformer.encode_context(transformer, text, mask, lyrics, lyric_mask)
    )
    text, weak = torch.ones(1, 3, 12), torch.full((1, 3, 12), 0.5)
    ids = torch.tensor([[7, 8, 9]])
    plain = transformer.encode_lyrics(ids)
    with weakened_queries(lyric_queries(transformer)):
        weakened = transformer.encode_lyrics(ids)
    # Only a lyric encoder with more than four layers has queries to weaken.
    assert len(lyric_queries(transformer)) == 1 and not torch.equal(plain, weakened)
    for tags in (False, True):
        settings = SamplingSettings(steps=1, erg_lyrics=True, erg_tags=tags)
        sample_latents(transformer, text, [7, 8, 9], seconds=1.0, seed=1, settings=settings, weakened_text_states=weak)
    del transformer.encode_context
    assert [torch.equal(lyrics, expected) for (_, lyrics), expected in zip(seen, [plain, weakened] * 2, strict=True)]
    assert torch.equal(seen[0][0], text) and not seen[1][0].any()
    assert torch.equal(seen[3][0], weak)
