"""Time and memory of renderings before anything is loaded: from the shapes in the weight files and one timed product.

Products and convolutions are counted, two operations per weight and place. What a device reaches with them is measured
on one product of the transformer's size; the rest of a step (norms, rotations, copies) is in REACHED. Memory is that of
the weights and of the largest activations. A rough guide: it was compared with no card yet.

T latent frames, L context tokens.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from ace_lora.preview.render import Networks, Rendering, Settings, is_comfyui
from ace_lora.v1.dcae import WEIGHTS_NAME
from ace_lora.v1.lyric_encoder import ROWS_AT_ONCE
from ace_lora.v1.sampling import latent_frames
from ace_lora.v1.transformer import TransformerConfig, is_unused

if TYPE_CHECKING:
    from ace_lora.device import Device

REACHED = 0.5  # share of the timed product's speed that a whole evaluation reaches
RESERVE_BYTES = 600_000_000  # the card's own context, kernels' workspaces, fragmentation
# Of the decoder in pieces of time, in float32 at the published sizes: per second of song, and fixed.
DECODING_BYTES_PER_SECOND, DECODING_BYTES = 5_000_000, 400_000_000
CONTEXT_TOKENS = 1_000  # of lyrics and tags, usual


@dataclass(frozen=True)
class Estimate:
    seconds: float
    sampling_bytes: int  # on the device while the transformer works, its weights included
    decoding_bytes: int  # while decoder and vocoder work
    text_bytes: int  # while the text encoder works
    free_bytes: int | None  # on the device now; None where it cannot be told

    @property
    def together(self) -> bool:
        """Whether transformer and decoder can stay on the device at once."""
        return self.free_bytes is None or self.sampling_bytes + self.decoding_bytes <= self.free_bytes

    @property
    def fits(self) -> bool:
        largest = max(self.sampling_bytes, self.decoding_bytes, self.text_bytes)
        return self.free_bytes is None or largest <= self.free_bytes

    def sentence(self, count: int) -> str:
        minutes = self.seconds / 60
        long = f"{self.seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min"
        free = "" if self.free_bytes is None else f" of {self.free_bytes / 1e9:.1f} GB free"
        turns = "" if self.together else "; transformer and decoder take turns on the card"
        short = "" if self.fits else ". This may be too little memory: choose shorter songs, or --device cpu"
        return (
            f"estimate: {count} songs in about {long}; memory {self.sampling_bytes / 1e9:.1f} GB while sampling, "
            f"{self.decoding_bytes / 1e9:.1f} GB while decoding{free}{turns}{short}"
        )


def estimate(renderings: list[Rendering], settings: Settings, networks: Networks, free: int | None) -> Estimate:
    """For what is left to render; `free`: bytes that new tensors can take on the device."""
    config = TransformerConfig.from_json(networks.weights["transformer"] / "config.json")
    transformer = _shapes(networks.weights["transformer"] / WEIGHTS_NAME, lambda name: not is_unused(name))
    decoder = _shapes(networks.weights["dcae"] / WEIGHTS_NAME, lambda name: name.startswith("decoder."))
    vocoder = _shapes(networks.weights["vocoder"] / WEIGHTS_NAME, lambda name: not name.endswith("_g"))
    text = _shapes(networks.weights["text_encoder"] / "model.safetensors", lambda name: "embed_tokens" not in name)
    size = torch.tensor([], dtype=networks.device.dtype).element_size()
    longest = max((rendering.seconds for rendering in renderings), default=0.0)
    operations = 0.0
    for rendering in renderings:
        frames = latent_frames(rendering.seconds)
        operations += settings.evaluations * _evaluation(transformer, config, frames) / REACHED
        operations += _decoding(decoder, vocoder, frames) / REACHED
    speed = _speed(networks.device, config, max(latent_frames(longest), 1))
    return Estimate(
        seconds=operations / speed,
        sampling_bytes=size * _count(transformer)
        + _sampling_bytes(config, latent_frames(longest), size)
        + RESERVE_BYTES,
        decoding_bytes=size * (_count(decoder) + _count(vocoder))
        + int((DECODING_BYTES + DECODING_BYTES_PER_SECOND * longest) * size / 4),
        text_bytes=(4 if is_comfyui(settings) else size) * _count(text) + RESERVE_BYTES,
        free_bytes=free,
    )


def _shapes(path: Path, wanted: Callable[[str], bool]) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys() if wanted(name)}  # noqa: SIM118


def _count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _evaluation(shapes: dict[str, tuple[int, ...]], config: TransformerConfig, frames: int) -> float:
    """Operations of one pass of the transformer."""
    operations = 0.0
    for name, shape in shapes.items():
        if name.startswith("transformer_blocks.") and len(shape) >= 2:
            of_context = "cross_attn.to_k" in name or "cross_attn.to_v" in name
            operations += 2.0 * math.prod(shape) * (CONTEXT_TOKENS if of_context else frames)
    return operations + 4.0 * config.num_layers * frames * CONTEXT_TOKENS * config.inner_dim


def _decoding(decoder: dict[str, tuple[int, ...]], vocoder: dict[str, tuple[int, ...]], frames: int) -> float:
    """Operations of decoder and vocoder for both channels."""
    operations = 0.0
    for name, shape in decoder.items():
        if len(shape) >= 2:
            found = re.search(r"up_blocks\.(\d+)\.", name)
            stage = int(found[1]) if found else 0  # of 0 to 3, the last of which has 16 rows and one column a frame
            operations += 2.0 * math.prod(shape) * (128 >> stage) * max(8 * frames >> stage, 1)
    stages = 1 + max((int(found[1]) for name in vocoder if (found := re.match(r"head\.ups\.(\d+)\.", name))), default=0)
    blocks = 1 + max(
        (int(found[1]) for name in vocoder if (found := re.match(r"head\.resblocks\.(\d+)\.", name))), default=0
    )
    for name, shape in vocoder.items():
        if len(shape) < 2:
            continue
        up, block = re.match(r"head\.ups\.(\d+)\.", name), re.match(r"head\.resblocks\.(\d+)\.", name)
        done = int(up[1]) if up else int(block[1]) * stages // blocks + 1 if block else 0
        # 512 samples a mel frame, reached in `stages` steps.
        operations += 2.0 * 2 * math.prod(shape) * 8 * frames * 512 ** (done / stages)
    return operations


def _sampling_bytes(config: TransformerConfig, frames: int, size: int) -> int:
    """The largest activations of a pass: of a block, or of the lyric encoder's scores."""
    block = size * frames * (12 * config.inner_dim + 5 * config.feed_forward_dim)
    context = size * CONTEXT_TOKENS * 4 * config.inner_dim
    scores = 3 * 4 * config.lyric_encoder_heads * min(ROWS_AT_ONCE, CONTEXT_TOKENS) * 2 * CONTEXT_TOKENS
    return max(block + context, scores)


def _speed(device: Device, config: TransformerConfig, frames: int) -> float:
    """Operations per second of one product of the transformer's size."""
    x = torch.zeros(frames, config.inner_dim, device=device.torch_device, dtype=device.dtype)
    weight = torch.zeros(config.inner_dim, 2 * config.feed_forward_dim, device=device.torch_device, dtype=device.dtype)

    def wait() -> None:
        if device.torch_device.type == "cuda":
            torch.cuda.synchronize(device.torch_device)
        elif device.torch_device.type == "mps":
            torch.mps.synchronize()

    x @ weight
    wait()
    rounds, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.05:
        for _ in range(3):
            x @ weight
        wait()
        rounds += 3
    return 2.0 * x.numel() * weight.shape[1] * rounds / (time.perf_counter() - start)
