"""Schedule, guidance and the sampling loop against the golden data; queries weakened and restored."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ace_lora.lora.layers import inject_adapter
from ace_lora.model.lean_autograd import linear
from ace_lora.v1.sampling import (
    ProjectedGuidance,
    SamplingSettings,
    draw_noise,
    guided_steps,
    integrate,
    latent_frames,
    sample_latents,
    sampling_schedule,
    weakened_queries,
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


def test_guidance_equals_the_golden_over_three_calls_with_one_momentum():
    combine, stored = ProjectedGuidance(), golden_tensors("sampling")
    shape = (2, 8, 16, GOLDEN["toy.apg"]["frames"])
    for call in range(3):
        conditional = torch.from_numpy(normal(f"input:g.apg.cond.{call}", shape))
        other = torch.from_numpy(normal(f"input:g.apg.uncond.{call}", shape))
        unconditional = conditional + 0.15 * other if call == 1 else other
        result = combine(conditional, unconditional, 15.0)
        assert_close(result[0, :2], stored[f"apg.{call}"], 1e-5)
        assert_digest(result, GOLDEN[f"apg.{call}"], f"apg.{call}", 1e-5)


def test_guidance_without_a_difference_changes_nothing():
    conditional = torch.randn(1, 8, 16, 3)
    assert torch.equal(ProjectedGuidance()(conditional, conditional.clone(), 15.0), conditional)
    assert ProjectedGuidance()(torch.zeros(1, 8, 16, 3), torch.zeros(1, 8, 16, 3), 15.0).abs().max() == 0


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
    position = torch.arange(frames, dtype=torch.float32)

    def predict(x, timestep, conditional):
        t = (timestep / 1000).view(-1, 1, 1, 1)
        strength = 1.2 if conditional else 0.0
        return torch.sin(1.3 * x + 0.7 * t) * (0.5 + t) - 0.4 * x + strength * torch.cos(0.05 * position + 0.3 * x)

    steps = []
    noise = torch.from_numpy(normal("input:g.noise", (1, 8, 16, frames)))
    result = integrate(predict, noise, settings, steps.append)
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


def test_thirty_of_sixty_steps_are_guided():
    assert guided_steps(SamplingSettings()) == range(15, 45)
    assert guided_steps(SamplingSettings(guidance=1.0)) == range(0)
    assert guided_steps(SamplingSettings(guidance=0.0)) == range(0)


def test_decay_over_a_single_guided_step_is_no_division_by_zero():
    settings = SamplingSettings(steps=2, interval=0.5, decay=1.0)
    assert len(guided_steps(settings)) == 1
    result = integrate(lambda x, timestep, conditional: x * (1 + conditional), torch.ones(1, 8, 16, 2), settings)
    assert result.isfinite().all()


def test_frames_are_rounded_down():
    assert latent_frames(4096 / 44_100 * 30 + 1e-6) == 30
    assert latent_frames(60) == math.floor(60 * 44_100 / 4096) == 645


def test_noise_depends_on_the_seed_alone():
    assert torch.equal(draw_noise(5, 7), draw_noise(5, 7))
    assert not torch.equal(draw_noise(5, 7), draw_noise(5, 8))
    assert draw_noise(5, 7).shape == (1, 8, 16, 5)


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
        lyric_encoder_layers=1,
        lyric_encoder_heads=2,
        lyric_encoder_feed_forward=16,
        ssl_encoder_depths=(1, 1),
        ssl_latent_dims=(8, 8),
    )
    return ACEStepTransformer(config)


@pytest.fixture
def adapted():
    """A layer of each kind with LoRA, in a transformer of its own."""
    torch.manual_seed(1)
    model = ACEStepTransformer(
        TransformerConfig(
            num_layers=16,
            num_attention_heads=2,
            attention_head_dim=8,
            text_embedding_dim=12,
            lyric_encoder_vocab_size=50,
            lyric_hidden_size=16,
            lyric_encoder_layers=1,
            lyric_encoder_heads=2,
            lyric_encoder_feed_forward=16,
            ssl_latent_dims=(8, 8),
        )
    )
    config = {"r": 4, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q"]}
    inject_adapter(model, config, seed=3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


def test_queries_are_weakened_with_bias_and_lora_and_restored(adapted):
    x = torch.randn(1, 5, 16)
    layers = [(15, "attn", 0.01), (15, "cross_attn", 0.01), (14, "attn", 1.0), (0, "cross_attn", 1.0)]

    def outputs():
        return [linear(getattr(adapted.transformer_blocks[block], name).to_q, x) for block, name, _ in layers]

    with torch.no_grad():
        before = outputs()
        with weakened_queries(adapted):
            inside = outputs()
        with weakened_queries(adapted, active=False):
            assert all(torch.equal(a, b) for a, b in zip(outputs(), before, strict=True))
        for (_, _, scale), a, b in zip(layers, inside, before, strict=True):
            torch.testing.assert_close(a, b * scale, rtol=1e-5, atol=1e-7)
        assert all(torch.equal(a, b) for a, b in zip(outputs(), before, strict=True))


def test_queries_are_restored_after_a_failure(transformer):
    layer = transformer.transformer_blocks[15].attn.to_q
    before = layer.weight.clone()
    with pytest.raises(KeyboardInterrupt), weakened_queries(transformer):
        assert not torch.equal(layer.weight, before)
        raise KeyboardInterrupt
    assert torch.equal(layer.weight, before)


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
        sample(transformer, weakened_queries=False),
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
