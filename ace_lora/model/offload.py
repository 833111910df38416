"""Blocks whose frozen weights stay in main memory and are streamed to the device when they are needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ace_lora.model.lean_autograd import PointwiseConvolution


def offload_blocks(blocks: Iterable[nn.Module], number_of_blocks: int, device: torch.device | str) -> None:
    """Keep the large frozen weights of `number_of_blocks` of `blocks`, which are alike, in main memory and stream them
    to `device` when they are needed.

    Two sets of buffers on the device take turns: while one block computes, the next one's weights arrive. On CUDA the
    copies come from pinned memory on a stream of their own. The offloaded blocks are spread evenly, which gives each
    copy the most time to hide behind. LoRA factors and small tensors stay where they are. Call it once, after
    quantising; the offloaded weights are no parameters any more, so `.to(...)` of the model leaves them where they are.
    """
    blocks = list(blocks)
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

    def __init__(self, blocks: list[nn.Module], device: torch.device):
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


def _frozen_layers(block: nn.Module) -> list[Any]:
    """The layers whose weights make up nearly all of a block."""
    return [
        layer
        for path, layer in block.named_modules()
        if "lora_" not in path and isinstance(layer, (nn.Linear, PointwiseConvolution))
    ]
