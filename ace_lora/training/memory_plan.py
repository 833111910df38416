"""How many blocks to recompute in the backward pass, from the memory that is free (`--checkpointing auto`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
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


def free_device_bytes(device: torch.device) -> int | None:
    """Bytes that new tensors can take, None where it cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_main_memory()


def free_main_memory() -> int | None:
    """Bytes of main memory that are free, None where that cannot be told."""
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def peak_process_bytes() -> tuple[int, int]:
    """Most main memory that this process took so far, and what the machine has."""
    import psutil

    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        peak = info.peak_wset
    else:
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, psutil.virtual_memory().total
