"""Frozen weights in 8 or 4 bits, for small cards. Independent of LoRA, recomputation and offloading.

Order where they are used together: load, `quantise_layers` (layer by layer onto the device), LoRA injection,
`ace_lora.model.offload`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ace_lora.model import lean_autograd as lean

NF4_BLOCK = 64  # weights that share one scale


class QuantisedLinear(nn.Linear):
    """A frozen linear layer or pointwise convolution whose weight is stored quantised and multiplied in full precision.

    It is an `nn.Linear` so that PEFT hangs LoRA on it. Activations are not quantised: on the sizes of this model
    dequantising costs a few per cent of the product, and the forward and backward passes use the same weight exactly.
    """

    def __init__(self, source: Any, precision: Literal["int8", "nf4"], device: torch.device | None = None):
        nn.Module.__init__(self)  # not Linear's: it would allocate a full weight
        weight = source.weight.detach().flatten(1)
        weight = weight if device is None else weight.to(device)
        self.out_features, self.in_features = weight.shape
        self.precision = precision
        quantised, scales = (_to_int8 if precision == "int8" else _to_nf4)(weight)
        self.weight = nn.Parameter(quantised, requires_grad=False)
        # float32 and no buffer that `.to(dtype)` would round.
        self.scales = nn.Parameter(scales.view(torch.int32), requires_grad=False)
        bias = source.bias
        self.bias: Any = None if bias is None else nn.Parameter(bias.detach().to(weight.device), requires_grad=False)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """[out, in]"""
        scales = self.scales.view(torch.float32)
        if self.precision == "int8":
            # Multiplied in float32 and rounded once, without a float32 copy of the weight.
            dequantised = torch.empty(self.weight.shape, dtype=dtype, device=self.weight.device)
            return torch.mul(self.weight, scales[:, None], out=dequantised)
        import bitsandbytes.functional as bitsandbytes

        state = bitsandbytes.QuantState(
            absmax=scales,
            shape=torch.Size((self.out_features, self.in_features)),
            blocksize=NF4_BLOCK,
            quant_type="nf4",
            dtype=dtype,
        )
        return bitsandbytes.dequantize_4bit(self.weight, state)

    def forward(self, x: Tensor) -> Tensor:
        return lean.linear(self, x)


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [out, in] and one scale per output row, [out]."""
    import bitsandbytes.functional as bitsandbytes

    # Its CUDA kernel takes float16 alone, which holds every bfloat16 weight of this model's size.
    quantised, row_maxima, _ = bitsandbytes.int8_vectorwise_quant(weight.half().contiguous())
    return quantised, row_maxima.float() / 127


def _to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    import bitsandbytes.functional as bitsandbytes

    quantised, state = bitsandbytes.quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
    return quantised, state.absmax


def quantise_layers(
    trees: Iterable[nn.Module], precision: Literal["int8", "nf4"], device: torch.device | str | None = None
) -> None:
    """Store the weights of all linear layers and pointwise convolutions in `trees` as int8 (one scale per row) or NF4
    (one per 64), with bitsandbytes; biases and everything else keep their dtype.

    With `device` what is quantised lands there layer by layer, so that the full weights are never there together; the
    caller moves the rest. Works before and after LoRA injection: LoRA factors are left alone.
    Raises ModuleNotFoundError without bitsandbytes.
    """
    device = None if device is None else torch.device(device)
    for parent, name, layer in _large_layers(trees):
        setattr(parent, name, QuantisedLinear(layer, precision, device))


def _large_layers(trees: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, attribute, layer) of every layer that is quantised."""
    for tree in trees:
        for path, parent in list(tree.named_modules()):
            if "lora_" in path:
                continue
            for name, layer in list(parent.named_children()):
                if isinstance(layer, (nn.Linear, lean.PointwiseConvolution)) and not isinstance(layer, QuantisedLinear):
                    yield parent, name, layer
