"""Projected guidance against the golden data; which steps are guided; queries weakened and restored."""

from __future__ import annotations

import pytest
import torch

from ace_lora.lora.layers import inject_adapter
from ace_lora.model.lean_autograd import linear
from ace_lora.v1.guidance import (
    ProjectedGuidance,
    decayed,
    guided_steps,
    lyric_queries,
    text_queries,
    transformer_queries,
    weakened_queries,
)
from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig
from tests.golden_audio import assert_close, assert_digest, golden_json, golden_tensors, normal

GOLDEN = golden_json("sampling")


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


def test_thirty_of_sixty_steps_are_guided():
    assert guided_steps(60, 15.0, 0.5) == range(15, 45)
    assert guided_steps(60, 1.0, 0.5) == guided_steps(60, 0.0, 0.5) == range(0)
    assert guided_steps(60, 15.0, 1.0) == range(60)


def test_guidance_falls_evenly_to_the_smallest():
    guided = range(2, 5)
    assert [decayed(15.0, 3.0, 1.0, step, guided) for step in guided] == [15.0, 9.0, 3.0]
    assert [decayed(15.0, 3.0, 0.5, step, guided) for step in guided] == [15.0, 12.0, 9.0]
    assert decayed(15.0, 3.0, 1.0, 2, range(2, 3)) == decayed(15.0, 3.0, 0.0, 4, guided) == 15.0


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
            lyric_encoder_layers=6,
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
        with weakened_queries(transformer_queries(adapted)):
            inside = outputs()
        with weakened_queries(()):
            assert all(torch.equal(a, b) for a, b in zip(outputs(), before, strict=True))
        for (_, _, scale), a, b in zip(layers, inside, before, strict=True):
            torch.testing.assert_close(a, b * scale, rtol=1e-5, atol=1e-7)
        assert all(torch.equal(a, b) for a, b in zip(outputs(), before, strict=True))


def test_queries_are_restored_after_a_failure(adapted):
    layer = adapted.transformer_blocks[15].attn.to_q.base_layer
    before = layer.weight.clone()
    with pytest.raises(KeyboardInterrupt), weakened_queries(transformer_queries(adapted)):
        assert not torch.equal(layer.weight, before)
        raise KeyboardInterrupt
    assert torch.equal(layer.weight, before)


def test_the_layers_are_those_of_the_published_pipeline(adapted):
    assert transformer_queries(adapted) == [
        adapted.transformer_blocks[15].attn.to_q,
        adapted.transformer_blocks[15].cross_attn.to_q,
    ]
    assert lyric_queries(adapted) == [adapted.lyric_encoder.encoders[index].self_attn.linear_q for index in (4, 5)]


def test_a_text_encoder_reads_less_sharply_meanwhile():
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    config = UMT5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=10, num_heads=2)
    encoder = UMT5EncoderModel(config).eval()
    queries = text_queries(encoder)
    assert queries == [encoder.encoder.block[index].layer[0].SelfAttention.q for index in (8, 9)]
    ids = torch.tensor([[3, 4, 5, 1]])
    with torch.no_grad():
        before = encoder(input_ids=ids).last_hidden_state
        with weakened_queries(queries):
            inside = encoder(input_ids=ids).last_hidden_state
        after = encoder(input_ids=ids).last_hidden_state
    assert torch.equal(before, after) and not torch.equal(before, inside)
