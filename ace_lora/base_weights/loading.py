"""Loading weight files strictly: every tensor is named, has the expected shape and is used, or loading fails.

Files are mapped into memory, not read: on the CPU a tensor is the file's own pages, on another device each tensor
is copied once, so no second copy of a model ever exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ace_lora.commands import WrongInput

# How many tensor names an error lists before it only counts: a wholly foreign file has thousands.
NAMES_SHOWN = 8


class WrongWeights(WrongInput):
    """A weight file that does not hold exactly the tensors that a model needs."""


def check_tensors(
    source: Path | str, found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]
) -> None:
    """Raise WrongWeights unless `found` and `expected` (name to shape) are equal; the message names every fault.

    `source` is the file (or folder) quoted in the message.
    """
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    misshapen = [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in found and list(found[name]) != list(shape)
    ]
    faults = [
        f"{kind}: {_listed(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen))
        if names
    ]
    if faults:
        raise WrongWeights(
            f"'{source}' does not hold the weights of this model: {'; '.join(faults)}. "
            f"Expected exactly {len(expected)} tensors. "
            "Check that the file belongs to the config.json beside it, or download it again."
        )


def read_safetensors_strict(
    path: Path,
    expected: Mapping[str, Sequence[int]],
    *,
    ignored: Callable[[str], bool] = lambda name: False,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name; its names and shapes must be exactly `expected`.

    `ignored(name)` marks tensors that may be present and are neither checked nor read. Floating tensors are cast to
    `dtype` (None keeps the file's); a tensor that needs no cast and stays on the CPU is a view of the mapped file.
    Raises WrongWeights (not a safetensors file, cut short, names or shapes differ) and FileNotFoundError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(2, "No such weight file", str(path))
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = [name for name in file.keys() if not ignored(name)]  # noqa: SIM118 (not a mapping)
            check_tensors(path, {name: file.get_slice(name).get_shape() for name in names}, expected)
            tensors = {}
            for name in names:
                tensor = file.get_tensor(name)
                target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
                # Sent as stored and cast there: half the bytes over the bus when the file is the smaller of the two.
                tensors[name] = tensor.to(device).to(target)
            return tensors
    except SafetensorError as error:
        raise WrongWeights(
            f"'{path}' is not a readable safetensors file ({error}). It is probably cut short or damaged; "
            "delete it and download it again."
        ) from error


def load_safetensors_strict(
    module: nn.Module,
    path: Path,
    *,
    ignored: Callable[[str], bool] = lambda name: False,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Give `module` (usually made on the meta device) the weights of a safetensors file; see `read_safetensors_strict`.

    Parameters keep their `requires_grad`.
    """
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    tensors = read_safetensors_strict(path, expected, ignored=ignored, dtype=dtype, device=device)
    module.load_state_dict(tensors, strict=True, assign=True)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"
