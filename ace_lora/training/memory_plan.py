"""How many blocks to recompute in the backward pass, from the memory that is free (`--checkpointing auto`)."""

from __future__ import annotations

from typing import NamedTuple

from ace_lora.model.recompute import BlockMemory

# Left for what is not counted: kernels' workspaces, the SSL loss, fragmentation.
RESERVE_BYTES = 700_000_000
RESERVE_SHARE = 0.08


class Recomputation(NamedTuple):
    """The first `blocks` blocks are recomputed; of the next `products` only the largest product."""

    blocks: int
    products: int


def choose_recomputation(layers: int, memory: BlockMemory, free_bytes: int) -> Recomputation:
    """The least recomputation with which `layers` blocks fit into `free_bytes`; everything when nothing fits.

    A product costs a third of a block's forward pass and saves a third of its memory, so products come first; a whole
    block saves nearly all.
    """
    budget = free_bytes * (1 - RESERVE_SHARE) - RESERVE_BYTES
    for products in range(layers + 1):
        if (layers - products) * memory.kept + products * memory.without_product <= budget:
            return Recomputation(0, products)
    for blocks in range(1, layers + 1):
        # While one recomputed block runs backward, all that it keeps is there once.
        needed = blocks * memory.recomputed + (layers - blocks) * memory.without_product + memory.kept
        if needed <= budget:
            return Recomputation(blocks, layers - blocks)
    return Recomputation(layers, 0)
