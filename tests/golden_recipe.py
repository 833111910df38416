"""The recipe by which the transformer's golden files fill weights and inputs from names."""

from __future__ import annotations

import functools
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden" / "transformer"

_COMMON = {"lyric_hidden_size": 1024, "ssl_names": ["mert", "m-hubert"]}
C1 = _COMMON | {
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "mlp_ratio": 2.5,
    "max_position": 512,
    "rope_theta": 1e6,
    "speaker_embedding_dim": 20,
    "text_embedding_dim": 48,
    "ssl_encoder_depths": [1, 1],
    "ssl_latent_dims": [40, 24],
    "lyric_encoder_vocab_size": 97,
}
C2 = _COMMON | {
    "num_layers": 2,
    "num_attention_heads": 3,
    "attention_head_dim": 12,
    "mlp_ratio": 2.3,
    "max_position": 64,
    "rope_theta": 1e4,
    "speaker_embedding_dim": 7,
    "text_embedding_dim": 30,
    "ssl_encoder_depths": [0, 1],
    "ssl_latent_dims": [16, 10],
    "lyric_encoder_vocab_size": 53,
}


def rnd(name: str, shape: tuple[int, ...]) -> Tensor:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy(generator.standard_normal(math.prod(shape), dtype=np.float32).reshape(shape))


@functools.cache  # the lyric encoder is full size in every case: 83 million numbers
def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    values = rnd(name, shape)
    if len(shape) >= 2:
        return values * np.float32(1 / math.sqrt(math.prod(shape[1:])))
    return 1 + 0.1 * values if name.rsplit(".", 1)[-1] == "weight" else 0.1 * values


def float_input(key: str, shape: tuple[int, ...]) -> Tensor:
    return rnd("input:" + key, shape)


def integer_input(key: str, shape: tuple[int, ...], low: int, high: int) -> Tensor:
    values = float_input(key, shape).double().abs() * 1000
    return values.floor().long() % (high - low) + low


def check(x: Tensor, name: str) -> float:
    return float((x.double() * rnd("check:" + name, tuple(x.shape)).double()).sum())


def fill(module: nn.Module, prefix: str = "") -> nn.Module:
    """Fill every parameter by its full name; LoRA factors under the names that LoRA files use."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parts = [part for part in name.split(".") if part != "base_layer"]
            if len(parts) > 2 and parts[-3] in ("lora_A", "lora_B"):
                del parts[-2]  # the adapter's name
            parameter.copy_(weight(prefix + ".".join(parts), tuple(parameter.shape)))
    return module


def prefix_mask(lengths: list[int], size: int) -> Tensor:
    return (torch.arange(size)[None] < torch.tensor(lengths)[:, None]).float()


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))
