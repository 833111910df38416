"""What makes the training fit a small card: a quantised base, recomputed blocks, blocks streamed from main memory.

Each is independent of the others and of LoRA. Order: `load_transformer` (maps the file), `quantise_base` (layer by
layer onto the device), LoRA injection, `offload_blocks`, `set_checkpointing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ace_lora.model import lean_autograd as lean
from ace_lora.v1.transformer import ACEStepTransformer, PointwiseConvolution, TransformerBlock, TransformerConfig

BasePrecision = Literal["bf16", "int8", "nf4"]
NF4_BLOCK = 64  # weights that share one scale

# --- Recomputation ----------------------------------------------------------------------------------------------------


def set_checkpointing(model: ACEStepTransformer, number_of_blocks: int, feed_forward_products: int = 0) -> None:
    """Recompute the first `number_of_blocks` blocks in the backward pass, and of the next `feed_forward_products` only
    the largest product.

    The first ones, because the backward pass reaches them last: what the others kept is free by then.
    """
    block: Any
    for index, block in enumerate(model.transformer_blocks):
        block.recomputed = index < number_of_blocks
        block.feed_forward_recomputed = number_of_blocks <= index < number_of_blocks + feed_forward_products


@dataclass(frozen=True)
class BlockMemory:
    """Bytes that one block keeps from its forward to its backward pass."""

    kept: int  # nothing large is recomputed
    without_product: int  # the largest feed-forward product is recomputed
    recomputed: int  # the whole block is recomputed


def block_memory(
    config: TransformerConfig, frames: int, context: int, item_bytes: int = 2, rank: int = 64
) -> BlockMemory:
    """For one item of `frames` latent frames and `context` tokens, with LoRA of `rank` on all attention projections.

    Counted in the tests against what autograd keeps.
    """
    width = config.inner_dim
    x = frames * width * item_bytes
    keys = context * width * item_bytes
    log_sum_exp = frames * config.num_attention_heads * 4
    narrow = (6 * frames + 2 * context) * rank * item_bytes
    modulation = 8 * width * item_bytes
    # x, q, k, v, x after self-attention, cross q and output, x after cross-attention; cross k and v.
    without_product = 8 * x + 2 * keys + log_sum_exp + narrow + modulation
    product = 2 * frames * config.feed_forward_dim * item_bytes
    return BlockMemory(kept=without_product + product, without_product=without_product, recomputed=x)


# --- Quantised base ---------------------------------------------------------------------------------------------------


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


def quantise_base(
    model: ACEStepTransformer, precision: BasePrecision, device: torch.device | str | None = None
) -> None:
    """Store the weights of all large frozen layers as int8 (one scale per row) or NF4 (one per 64), with bitsandbytes.

    Covers the blocks' projections and pointwise convolutions, the self-supervised heads and the lyric encoder; biases,
    modulation, embeddings and in- and output layers keep their dtype. "bf16" leaves the weights as they are. With
    `device` the model moves there layer by layer, so that the full weights are never there together.
    Works before and after LoRA injection. Raises ModuleNotFoundError without bitsandbytes.
    """
    device = None if device is None else torch.device(device)
    if precision != "bf16":
        for parent, name, layer in _large_layers(model):
            setattr(parent, name, QuantisedLinear(layer, precision, device))
    if device is not None:
        model.to(device)


def _large_layers(model: ACEStepTransformer) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, attribute, layer) of every layer that is quantised."""
    for tree in (model.transformer_blocks, model.projectors, model.lyric_encoder):
        if tree is None:
            continue
        for path, parent in list(tree.named_modules()):
            if "lora_" in path:
                continue
            for name, layer in list(parent.named_children()):
                if isinstance(layer, (nn.Linear, PointwiseConvolution)) and not isinstance(layer, QuantisedLinear):
                    yield parent, name, layer


# --- Blocks in main memory --------------------------------------------------------------------------------------------


def offload_blocks(model: ACEStepTransformer, number_of_blocks: int, device: torch.device | str) -> None:
    """Keep the large frozen weights of `number_of_blocks` blocks in main memory, streamed to `device` when needed.

    Two sets of buffers on the device take turns: while one block computes, the next one's weights arrive. On CUDA the
    copies come from pinned memory on a stream of their own. The offloaded blocks are spread evenly, which gives each
    copy the most time to hide behind. LoRA factors and small tensors stay where they are. Call it once, after
    quantising; the offloaded weights are no parameters any more, so `model.to(...)` leaves them where they are.
    """
    blocks: list[Any] = list(model.transformer_blocks)
    if not 0 <= number_of_blocks <= len(blocks):
        raise ValueError(f"Cannot offload {number_of_blocks} of {len(blocks)} blocks.")
    if number_of_blocks:
        spread = [index * len(blocks) // number_of_blocks for index in range(number_of_blocks)]
        BlockStream([blocks[index] for index in spread], torch.device(device))


@dataclass
class _Slot:
    """Device memory for one block's weights."""

    tensors: list[Tensor]
    block: int | None = None
    arrived: Any = None  # the copy into it is done
    left: Any = None  # the computation with it is done


class BlockStream:
    """Brings the weights of its blocks to the device in the order in which passes run through them.

    Hooks on the blocks call `enter`; nothing else has to.
    """

    def __init__(self, blocks: list[TransformerBlock], device: torch.device):
        self.device = device
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.layers = [_frozen_layers(block) for block in blocks]
        self.host = [[self._to_host(layer.weight) for layer in layers] for layers in self.layers]
        self.slots = [_Slot([torch.empty_like(w, device=device) for w in self.host[0]]) for _ in range(2)]
        self.current: _Slot | None = None
        for index, (block, layers) in enumerate(zip(blocks, self.layers, strict=True)):
            for layer in layers:
                del layer.weight  # the parameter; from here on a plain attribute
            self._bind(index, self.host[index])
            block.register_forward_pre_hook(lambda block, args, index=index: self._enter_forward(index))
            block.register_forward_hook(lambda block, args, output, index=index: self._watch(output, index))

    def enter(self, index: int, next_index: int) -> None:
        """Make the weights of block `index` usable on the current stream and start bringing those of `next_index`."""
        slot = self._slot_of(index)
        if slot is None:
            slot = self._bring(index)
        if slot is not self.current:
            if self.copies is not None:
                stream = torch.cuda.current_stream(self.device)
                if self.current is not None:
                    self.current.left = stream.record_event()
                stream.wait_event(slot.arrived)
            self.current = slot
        if 0 <= next_index < len(self.host) and self._slot_of(next_index) is None:
            self._bring(next_index)

    def _enter_forward(self, index: int) -> None:
        # A recomputation enters the block that the backward pass has just entered, and must not turn the direction.
        if self.current is None or self.current.block != index:
            self.enter(index, index + 1)

    def _watch(self, output: Tensor, index: int) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: self.enter(index, index - 1))

    def _slot_of(self, index: int) -> _Slot | None:
        return next((slot for slot in self.slots if slot.block == index), None)

    def _bring(self, index: int) -> _Slot:
        """Start copying a block into the slot that is not in use."""
        slot = next(slot for slot in self.slots if slot is not self.current)
        if slot.block is not None:
            self._bind(slot.block, self.host[slot.block])
        slot.block = index
        if self.copies is None:
            for target, source in zip(slot.tensors, self.host[index], strict=True):
                target.copy_(source)
        else:
            with torch.cuda.stream(self.copies):
                if slot.left is not None:
                    self.copies.wait_event(slot.left)
                for target, source in zip(slot.tensors, self.host[index], strict=True):
                    target.copy_(source, non_blocking=True)
                slot.arrived = self.copies.record_event()
        self._bind(index, slot.tensors)
        return slot

    def _bind(self, index: int, weights: list[Tensor]) -> None:
        for layer, weight in zip(self.layers[index], weights, strict=True):
            layer.weight = weight

    def _to_host(self, weight: Tensor) -> Tensor:
        weight = weight.detach().to("cpu")
        return weight.pin_memory(self.device) if self.device.type == "cuda" else weight


def _frozen_layers(block: TransformerBlock) -> list[Any]:
    """The layers whose weights make up nearly all of a block."""
    return [
        layer
        for path, layer in block.named_modules()
        if "lora_" not in path and isinstance(layer, (nn.Linear, PointwiseConvolution))
    ]
