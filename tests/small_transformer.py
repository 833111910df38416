"""A transformer of five narrow layers with LoRA in it, and one fixed step of it, for the tests of `ace_lora.model`."""

from __future__ import annotations

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig
from tests.golden_recipe import C1, fill, float_input

CONFIG = TransformerConfig.from_dict(
    C1
    | {
        "num_layers": 5,
        "attention_head_dim": 32,
        "lyric_hidden_size": 32,
        "lyric_encoder_layers": 1,
        "lyric_encoder_heads": 4,
        "lyric_encoder_feed_forward": 64,
    }
)


def small_transformer() -> ACEStepTransformer:
    return fill(ACEStepTransformer(CONFIG))


def adapt(model: ACEStepTransformer, rank: int = 4) -> ACEStepTransformer:
    targets = ["to_q", "to_k", "to_v", "to_out.0", "projectors.0.0", "linear_q"]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=1, use_rslora=True, target_modules=targets), model, "ace")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(float_input(name, tuple(parameter.shape)) / parameter.shape[1] ** 0.5)
    return model


def step(model: ACEStepTransformer) -> tuple[Tensor, Tensor]:
    """Loss and all LoRA gradients of one fixed step."""
    device = model.proj_in.early_conv_layers[0].weight.device
    factors = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    for factor in factors:
        factor.grad = None
    lyrics = model.encode_lyrics(torch.arange(1, 8, device=device)[None])
    context = model.encode_context(float_input("text", (1, 4, 48)).to(device), None, lyrics, None)
    latents = float_input("latents", (1, 8, 16, 37)).to(device)
    output = model(latents, torch.tensor([500.0], device=device), context, None, ssl_taps=True)
    features = {"mert": [float_input("mert", (99, 40)).to(device)]}
    loss = (output.velocity - latents).square().mean() + model.ssl_losses(output.ssl_taps, features)["mert"]
    loss.backward()
    return loss.detach().cpu(), torch.cat([factor.grad.flatten() for factor in factors]).cpu()
