"""Random weights of a part, the same bytes each time. Needs numpy and safetensors, not PyTorch."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ace_lora.tiny_base.configs import TRANSFORMER_CONFIG, UMT5_CONFIG
from ace_lora.tiny_base.shapes import Shapes
from ace_lora.v1.mel_filters import mel_filter_bank


def write_weights(path: Path, part: str, shapes: Shapes) -> None:
    tensors = {name: _weight(part, name, shape) for name, shape in shapes.items()}
    # transformers refuses a file that does not say which framework its tensors are for. Not save_file: what it writes
    # only its owner may read.
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def _weight(part: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 numbers that keep the size of what passes through them, so that a training on top is stable.

    The transformer's first and last layer mirror each other, and what lies between adds little: its velocity is near
    the noised latents that it is given. So it removes some noise, as a trained model does, and a LoRA has songs to
    learn. On a base that puts out noise of its own, the loss would mostly fall because the LoRA silences it.
    """
    if name == "mel_transform.spectrogram.window":
        return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(shape[0]) / shape[0])).astype(np.float32)
    if name == "mel_transform.mel_scale.fb":
        bank = mel_filter_bank().astype(np.float32)
        assert bank.shape == shape, shape
        return bank
    channels, rows = TRANSFORMER_CONFIG["in_channels"], TRANSFORMER_CONFIG["patch_size"][0]
    if name == "proj_in.early_conv_layers.2.weight":
        # Many random directions, read and written back: near the identity, times hidden channels per number.
        width, hidden = shape[:2]
        first = _weight(part, "proj_in.early_conv_layers.0.weight", (hidden, channels, rows, 1))
        return np.ascontiguousarray(first.reshape(hidden, width).T).reshape(shape) * np.float32(width / hidden)
    if name == "final_layer.linear.weight":
        # The embedding counts a patch channel by channel, the output row by row.
        identity = np.eye(*shape, dtype=np.float32).reshape(channels, rows, shape[1])
        return np.ascontiguousarray(identity.transpose(1, 0, 2)).reshape(shape)

    generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"{part}/{name}".encode())))
    values = generator.standard_normal(math.prod(shape), dtype=np.float32).reshape(shape)
    last = name.rsplit(".", 1)[-1]
    if last in ("weight_g", "original0") or (len(shape) == 1 and last == "weight"):
        # Gains: of a norm, or of a weight-normed kernel, whose length 1 is what the division below gives the others.
        return 1 + np.float32(0.1) * values
    if name in ("shared.weight", "lyric_embs.weight"):
        return values
    if last == "scale_shift_table":
        return np.float32(0.1) * values
    if len(shape) == 1:
        return np.float32(0.02) * values
    scale = 1 / math.sqrt(math.prod(shape[1:]))
    if name.endswith("SelfAttention.q.weight"):
        scale /= math.sqrt(UMT5_CONFIG["d_kv"])  # T5 does not scale its attention scores
    if name in ("timestep_embedder.linear_2.weight", "t_block.1.weight"):
        scale *= 0.3
    if name.startswith("transformer_blocks.") and name.endswith((".to_out.0.weight", ".point_conv.conv.weight")):
        scale *= 0.5
    return np.float32(scale) * values
