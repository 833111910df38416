"""Run with: pytest tests/lora/test_keys.py"""

import re

import pytest
import torch
from torch import nn

from ace_lora.lora.keys import LINEAR_LAYERS, Key, is_dora, is_v1_layer, read_key, spelling
from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig

Q, OUT = "transformer_blocks.3.attn.to_q", "transformer_blocks.12.cross_attn.to_out.0"


@pytest.fixture(scope="module")
def linear_names():
    with torch.device("meta"):
        model = ACEStepTransformer(TransformerConfig())
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def test_the_layers_are_those_of_the_transformer(linear_names):
    numbered = {re.sub(r"(?<=\.)[0-9]+(?=\.|$)", "N", name) for name in linear_names}
    assert numbered == set(LINEAR_LAYERS)
    assert all(map(is_v1_layer, linear_names)) and not is_v1_layer("transformer_blocks.0.ff.net.0")


def test_every_layer_comes_back_from_underscores(linear_names):
    for prefix in ("lora_unet_", "lora_transformer_", "lora_", ""):
        names = [prefix + name.replace(".", "_") for name in linear_names]
        found = [read_key(f"{name}.lora_down.weight") for name in names]
        # A name of one word without a prefix is spelt alike in both.
        assert [key.layer for key in found] == linear_names, prefix


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{Q}.lora_A.weight", (Q, "A", "", "lora_A", "")),
        (f"transformer.{Q}.lora_B.weight", (Q, "B", "transformer.", "lora_A", "")),
        (f"diffusion_model.{OUT}.lora_A.weight", (OUT, "A", "diffusion_model.", "lora_A", "")),
        (f"base_model.model.{Q}.lora_A.weight", (Q, "A", "base_model.model.", "lora_A", "")),
        (f"base_model.model.{Q}.lora_B.default.weight", (Q, "B", "base_model.model.", "lora_A", "default")),
        (f"{Q}.lora_A.my_lora.weight", (Q, "A", "", "lora_A", "my_lora")),
        (f"module.transformers.{Q}.lora_A.weight", (Q, "A", "module.transformers.", "lora_A", "")),
        (f"{Q}.lora_down.weight", (Q, "A", "", "lora_down", "")),
        (f"diffusion_model.{Q}.lora_up.weight", (Q, "B", "diffusion_model.", "lora_down", "")),
        (f"{Q}.lora.up.weight", (Q, "B", "", "lora_down", "")),
        (f"{Q}.lora_linear_layer.down.weight", (Q, "A", "", "lora_down", "")),
        (f"{Q}.lora_B", (Q, "B", "", "lora_A", "")),
        (f"transformer.{Q}.alpha", (Q, "alpha", "transformer.", "alpha", "")),
        ("lora_unet_transformer_blocks_3_attn_to_q.alpha", (Q, "alpha", "lora_unet_", "alpha", "")),
        (
            "lora_unet_transformer_blocks_12_cross_attn_to_out_0.lora_up.weight",
            (OUT, "B", "lora_unet_", "lora_down", ""),
        ),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", None),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", None),
        ("blocks.0.to_q.lora_A.weight", ("blocks.0.to_q", "A", "", "lora_A", "")),
        ("transformer.blocks.0.to_q.lora_A.weight", ("blocks.0.to_q", "A", "transformer.", "lora_A", "")),
        (f"{Q}.dora_scale", None),
        (f"{Q}.lora_magnitude_vector.default.weight", None),
        (f"{Q}.weight", None),
        ("x" * 600 + ".lora_A.weight", None),
    ],
)
def test_spellings(name, expected):
    assert read_key(name) == (None if expected is None else Key(*expected))


def test_magnitudes_of_dora_are_known():
    assert is_dora(f"{Q}.dora_scale") and is_dora(f"{Q}.lora_magnitude_vector.default.weight")
    assert not is_dora(f"{Q}.alpha")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{Q}.lora_A.weight", "names as ACE-Step's trainers"),
        (f"transformer.{Q}.lora_A.weight", "names of a diffusers pipeline ('transformer.' in front)"),
        (f"diffusion_model.{Q}.lora_down.weight", "ComfyUI's names"),
        (f"diffusion_model.{Q}.lora_down.weight", "lora_down and lora_up as kohya's"),
        (f"base_model.model.{Q}.lora_A.weight", "PEFT's names"),
        (f"{Q}.lora_A.default.weight", "PEFT's names"),
        ("lora_unet_transformer_blocks_3_attn_to_q.lora_down.weight", "names of kohya's scripts"),
        (f"music.{Q}.lora_A.weight", "names of another program ('music.' in front)"),
    ],
)
def test_whose_names_they_are(name, words):
    assert words in spelling([read_key(name)])
