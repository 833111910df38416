"""Numbers on their way from a card to main memory, so that the card can be given more work before they have arrived."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """Starts copying a tensor to main memory when it is made.

    Only CUDA can go on meanwhile: elsewhere the copy is made when it is asked for.
    """

    def __init__(self, tensor: Tensor):
        self._tensor = tensor.detach()
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copy.copy_(self._tensor, non_blocking=True)
            self._tensor = copy
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def is_there(self) -> bool:
        """Whether `wait` would return at once."""
        return self._arrived is None or self._arrived.query()

    def wait(self) -> Tensor:
        """The copy, when it has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor.cpu()
