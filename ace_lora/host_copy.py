"""Results on their way from a GPU to main memory, so that the next song can be started before this one has arrived."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def begin_copy(tensor: Tensor) -> Callable[[], Tensor]:
    """Start copying a tensor to main memory; the function returned waits for it and returns the copy.

    Only CUDA can go on meanwhile: elsewhere the copy is made when it is asked for.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(tensor.device))

    def wait() -> Tensor:
        arrived.synchronize()
        return copy

    return wait
