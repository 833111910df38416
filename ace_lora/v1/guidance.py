"""What pulls a song of ACE-Step v1 away from the unconditional prediction: how far, at which steps, against what.

APG is adaptive projected guidance (Sadat et al. 2024), CFG classifier-free guidance (Ho and Salimans 2022). With ERG,
"entropy rectifying guidance", the unconditional pass looks around less sharply: the queries of some layers are a
hundredth of what they are (spec: decode, section 4.2).

B batch, T latent frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

QUERY_SCALE = 0.01
WEAKENED_BLOCKS = range(15, 20)  # of the transformer
WEAKENED_LYRIC_LAYERS = range(4, 6)  # of the lyric encoder
WEAKENED_TEXT_BLOCKS = range(8, 10)  # of the text encoder


class ProjectedGuidance:
    """Away from the unconditional prediction, but only across the conditional one; keeps momentum between steps."""

    MOMENTUM = -0.75
    LARGEST_NORM = 2.5

    def __init__(self) -> None:
        self._running: Tensor | float = 0.0

    def __call__(self, conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
        """[B, 8, 16, T] each; norms and products are per item and channel."""
        axes = (-2, -1)
        self._running = conditional - unconditional + self.MOMENTUM * self._running
        difference = self._running
        norm = torch.linalg.vector_norm(difference, dim=axes, keepdim=True)
        # A norm of zero gives a factor of one.
        difference = difference * (self.LARGEST_NORM / norm).clamp(max=1)
        # float64 where the device has it: the projection is a difference of nearly equal numbers.
        wide = torch.float32 if difference.device.type == "mps" else torch.float64
        direction = torch.nn.functional.normalize(conditional.to(wide).flatten(-2), dim=-1).view_as(conditional)
        across = difference.to(wide)
        across = across - (across * direction).sum(axes, keepdim=True) * direction
        return conditional + (guidance - 1) * across.to(conditional.dtype)


def classifier_free(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    return unconditional + guidance * (conditional - unconditional)


def guided_steps(steps: int, guidance: float, interval: float) -> range:
    """Indices of the steps that are guided: the middle share `interval` of all; none at a guidance of 0 or 1."""
    if guidance in (0, 1):
        return range(0)
    return range(int(steps * ((1 - interval) / 2)), int(steps * (interval / 2 + 0.5)))


def decayed(guidance: float, smallest: float, decay: float, step: int, guided: range) -> float:
    """The guidance of one step: at `decay` 1 it falls evenly from `guidance` to `smallest` over the guided steps."""
    if decay <= 0 or len(guided) <= 1:
        return guidance
    return guidance - (guidance - smallest) * ((step - guided.start) / (len(guided) - 1)) * decay


# --- Weakened queries ---


def transformer_queries(transformer: Any) -> list[nn.Module]:
    blocks = list(transformer.transformer_blocks)
    found = [blocks[index] for index in WEAKENED_BLOCKS if index < len(blocks)]
    return [attention.to_q for block in found for attention in (block.attn, block.cross_attn)]


def lyric_queries(transformer: Any) -> list[nn.Module]:
    layers = list(transformer.lyric_encoder.encoders)
    return [layers[index].self_attn.linear_q for index in WEAKENED_LYRIC_LAYERS if index < len(layers)]


def text_queries(text_encoder: Any) -> list[nn.Module]:
    """Of transformers' UMT5EncoderModel."""
    blocks = list(text_encoder.encoder.block)
    return [blocks[index].layer[0].SelfAttention.q for index in WEAKENED_TEXT_BLOCKS if index < len(blocks)]


@contextmanager
def weakened_queries(layers: Sequence[nn.Module]) -> Iterator[None]:
    """While active, these linear layers return a hundredth, LoRA and bias included.

    Their numbers are exchanged, because the transformer's lean functions read them without calling the layer.
    """
    changed: list[tuple[nn.Module, str, Tensor]] = []
    scalings: list[tuple[dict[str, float], dict[str, float]]] = []
    try:
        for layer in layers:
            base: Any = getattr(layer, "base_layer", layer)
            for name in ("weight", "bias"):
                parameter = getattr(base, name)
                if parameter is not None:
                    changed.append((base, name, parameter.data))
                    parameter.data = parameter.data * QUERY_SCALE
            scaling: Any = getattr(layer, "scaling", None)
            if scaling is not None:
                scalings.append((scaling, dict(scaling)))
                for adapter in scaling:
                    scaling[adapter] *= QUERY_SCALE
        yield
    finally:
        for base, name, data in changed:
            getattr(base, name).data = data
        for scaling, values in scalings:
            scaling.update(values)
