"""Which build of PyTorch this computer needs. Standard library only."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

TORCH_INDEX = "https://download.pytorch.org/whl/"
# CUDA 13 needs this NVIDIA driver branch; older ones run the CUDA 12.6 build, which itself needs at least the second.
# https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/
CUDA_13_DRIVER, CUDA_12_DRIVER = 580, 525
# What the whole environment takes on the disk with such a build.
DISK_GB = {"cpu": 4, "cuda": 9}


@dataclass(frozen=True)
class Torch:
    """Which build of PyTorch to install: a name for people, the index to take it from (None: pip's own), the disk."""

    name: str
    index: str | None
    disk_gb: int


def read_nvidia_driver() -> int | None:
    """The driver's major version number when an NVIDIA card is present, else None."""
    program = shutil.which("nvidia-smi")
    if program is None and os.name == "nt":
        # Old drivers put it where PATH does not lead.
        candidate = Path(os.environ.get("PROGRAMFILES", "C:/Program Files")) / "NVIDIA Corporation/NVSMI/nvidia-smi.exe"
        program = str(candidate) if candidate.exists() else None
    if program is None:
        return None
    try:
        answer = subprocess.run(
            [program, "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return int(answer.stdout.strip().splitlines()[0].split(".")[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        # The program is there but no card answers it: as good as none.
        return None


def choose_torch(request: str, driver: int | None, system: str) -> Torch:
    """Which PyTorch to install for `--torch auto|cpu|cuda|INDEX-URL` on this `system` (platform.system())."""
    if "://" in request:
        return Torch(f"from {request}", request, DISK_GB["cuda"])
    if request == "cpu":
        # macOS wheels of the package index are CPU and MPS builds already.
        return Torch("CPU build", None if system == "Darwin" else TORCH_INDEX + "cpu", DISK_GB["cpu"])
    if request == "cuda" or driver is not None:
        if driver is not None and driver < CUDA_13_DRIVER:
            return Torch("CUDA 12.6 build", TORCH_INDEX + "cu126", DISK_GB["cuda"])
        # On Linux the package index itself has the CUDA 13 build, on Windows only a CPU build.
        index = TORCH_INDEX + "cu130" if system == "Windows" else None
        return Torch("CUDA 13 build", index, DISK_GB["cuda"])
    return Torch("the package index's build", None, DISK_GB["cpu"])
