"""Which blocks are computed again in the backward pass, and what that saves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn


def set_checkpointing(blocks: Iterable[nn.Module], number_of_blocks: int, feed_forward_products: int = 0) -> None:
    """Recompute the first `number_of_blocks` blocks in the backward pass, and of the next `feed_forward_products` only
    the largest product.

    The first ones, because the backward pass reaches them last: what the others kept is free by then.
    """
    block: Any
    for index, block in enumerate(blocks):
        block.recomputed = index < number_of_blocks
        block.feed_forward_recomputed = number_of_blocks <= index < number_of_blocks + feed_forward_products


@dataclass(frozen=True)
class BlockMemory:
    """Bytes that one block keeps from its forward to its backward pass."""

    kept: int  # nothing large is recomputed
    without_product: int  # the largest feed-forward product is recomputed
    recomputed: int  # the whole block is recomputed


def block_memory(
    width: int, feed_forward_width: int, heads: int, frames: int, context: int, item_bytes: int = 2, rank: int = 64
) -> BlockMemory:
    """For one item of `frames` latent frames and `context` tokens, with LoRA of `rank` on all attention projections.

    The block is one of `ace_lora.model.lean_autograd`: linear self-attention, cross-attention, gated feed-forward of
    `feed_forward_width` (half of the gated one). Counted in the tests against what autograd keeps.
    """
    x = frames * width * item_bytes
    keys = context * width * item_bytes
    log_sum_exp = frames * heads * 4
    low_rank = (6 * frames + 2 * context) * rank * item_bytes
    modulation = 8 * width * item_bytes
    # x, q, k, v, x after self-attention, cross q and output, x after cross-attention; cross k and v.
    without_product = 8 * x + 2 * keys + log_sum_exp + low_rank + modulation
    product = 2 * frames * feed_forward_width * item_bytes
    return BlockMemory(kept=without_product + product, without_product=without_product, recomputed=x)
