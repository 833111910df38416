"""Where the networks run and in which number format, chosen once per script; what moves to and from a card; how much
memory is free; and the project's only TF32 switch.

The caller prints `Device.reason`, so that a user who sees "CPU" in the log also sees why.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ace_lora.commands import WrongInput

if TYPE_CHECKING:
    import torch

DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Device:
    """`torch_device` to put the networks on, `dtype` of their weights, and one line that says why."""

    torch_device: torch.device
    dtype: torch.dtype
    reason: str


def parse_device_name(requested: str) -> tuple[str, int]:
    """`"cuda:1"` gives `("cuda", 1)`: the kind, and the number of the card. torch is not needed.

    Raises WrongInput for a name that `choose_device` does not know.
    """
    kind, colon, index = requested.strip().lower().partition(":")
    known = index.isdecimal() if colon else True
    if kind not in ("auto", "cuda", "mps", "cpu") or (colon and kind != "cuda") or not known:
        raise WrongInput(f"Device '{requested}' is not known. Expected auto, cuda, cuda:N, mps or cpu. Use auto.")
    return kind, int(index or 0)


def choose_device(requested: str = "auto", dtype: str = "auto") -> Device:
    """The first of CUDA, Apple MPS and CPU that works here, or the one that was asked for.

    requested: "auto", "cuda", "cuda:N", "mps" or "cpu"; "cuda" is the first card.
    dtype: "auto", "bf16", "fp16" or "fp32". Automatic is bf16 where the hardware computes it, else fp16, and fp32 on
        a CPU.

    Raises WrongInput when the named device is not there or the name is none of these.
    """
    import torch

    kind, card = parse_device_name(requested)
    if dtype != "auto" and dtype not in DTYPE_NAMES:
        raise WrongInput(f"Number format '{dtype}' is not known. Expected auto, {', '.join(DTYPE_NAMES)}. Use auto.")

    without_cuda = _why_no_cuda(card)
    if kind == "cuda" and without_cuda:
        raise WrongInput(
            f"Device '{requested}' cannot be used: {without_cuda}. Expected an NVIDIA card that PyTorch can use. "
            "Update the driver or install PyTorch for CUDA, or use the device 'cpu'."
        )
    if kind in ("auto", "cuda") and not without_cuda:
        return _cuda_device(card, dtype)

    without_mps = _why_no_mps()
    if kind == "mps" and without_mps:
        raise WrongInput(
            f"Device 'mps' cannot be used: {without_mps}. Expected a Mac with Apple silicon. Use the device 'cpu'."
        )
    if kind in ("auto", "mps") and not without_mps:
        # PyTorch's bf16 on Apple GPUs needs macOS 14.
        chosen, why = (
            ("bf16", "bf16 native")
            if torch.backends.mps.is_macos_or_newer(14, 0)
            else ("fp16", "fp16, because bf16 needs macOS 14")
        )
        return Device(torch.device("mps"), _torch_dtype(dtype, chosen), f"Apple MPS, {_format_note(dtype, why)}")

    why = "asked for" if kind == "cpu" else f"{without_cuda}; {without_mps}"
    return Device(torch.device("cpu"), _torch_dtype(dtype, "fp32"), f"CPU, {_format_note(dtype, 'fp32')} ({why})")


def has_native_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 matrices itself.

    PyTorch emulates bf16 on older NVIDIA cards (RTX 20, GTX) and calls it supported; that is slower than fp32.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return True


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`, which computes, without waiting until a card has done what it was given before.

    On CUDA a copy from ordinary memory has left it when the call returns, and PyTorch keeps page-locked memory until
    the copy is done, so nothing can change underneath. MPS promises neither.
    """
    return tensor.to(device, non_blocking=device.type != "mps")


def set_tf32() -> None:
    """Allow TF32 in float32 matrix products on NVIDIA cards. Call it once, before training, and only on CUDA.

    This is the only place of the project that touches a TF32 switch. PyTorch has an old and a new interface for it, and
    `torch.get_float32_matmul_precision()`, which Lightning calls when a training starts, raises "mix of the legacy and
    new APIs" where only the new one was set. The old one used here sets both, so it also puts right what another
    library or the user's own start-up file has left behind.
    """
    import torch

    torch.set_float32_matmul_precision("high")


class HostCopy:
    """Starts copying a tensor to main memory when it is made, so that the card can be given more work meanwhile.

    Only CUDA can go on meanwhile: elsewhere the copy is made when it is asked for.
    """

    def __init__(self, tensor: torch.Tensor):
        self._tensor = tensor.detach()
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            import torch

            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copy.copy_(self._tensor, non_blocking=True)
            self._tensor = copy
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def is_there(self) -> bool:
        """Whether `wait` would return at once."""
        return self._arrived is None or self._arrived.query()

    def wait(self) -> torch.Tensor:
        """The copy, when it has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor.cpu()


# What PyTorch says where a full memory is a plain RuntimeError: MPS and CUDA's own calls, Windows, Linux, cuBLAS.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a card or of the computer did not suffice; only CUDA's allocator has a class for it."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def free_device_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def free_device_bytes(device: torch.device) -> int | None:
    """Bytes that new tensors can take on `device`, None where it cannot be told."""
    if device.type == "cuda":
        import torch

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

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, psutil.virtual_memory().total


def _cuda_device(index: int, dtype: str) -> Device:
    import torch

    device = torch.device("cuda", index)
    properties = torch.cuda.get_device_properties(device)
    chosen, why = ("bf16", "bf16 native")
    if not has_native_bf16(device):
        chosen = "fp16"
        why = f"fp16, because compute capability {properties.major}.{properties.minor} has no bf16"
    memory = properties.total_memory / 2**30
    return Device(
        device, _torch_dtype(dtype, chosen), f"CUDA: {properties.name}, {memory:.1f} GB, {_format_note(dtype, why)}"
    )


def _why_no_cuda(index: int) -> str:
    """Empty when card `index` can be used."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return f"PyTorch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return "no NVIDIA card or no working driver was found"
    count = torch.cuda.device_count()
    if index >= count:
        return f"card {index} is not there, PyTorch sees {count} (numbered from 0)"
    # Wheels drop old cards: every kernel would fail with "no kernel image is available".
    built_for = [int(arch[3:].rstrip("af")) for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]
    major, minor = torch.cuda.get_device_capability(index)
    if torch.version.cuda is not None and built_for and major * 10 + minor < min(built_for):
        return (
            f"{torch.cuda.get_device_name(index)} has compute capability {major}.{minor} and PyTorch "
            f"{torch.__version__} starts at {min(built_for) // 10}.{min(built_for) % 10}"
        )
    return ""


def _why_no_mps() -> str:
    import torch

    if not torch.backends.mps.is_built():
        return "no Apple MPS in this PyTorch"
    return "" if torch.backends.mps.is_available() else "Apple MPS needs macOS 12.3 and Apple silicon"


def _torch_dtype(requested: str, automatic: str) -> torch.dtype:
    import torch

    return getattr(torch, DTYPE_NAMES[automatic if requested == "auto" else requested])


def _format_note(requested: str, automatic: str) -> str:
    return automatic if requested == "auto" else f"{requested} asked for"
