"""Which build of PyTorch this computer needs, and where it is to be had. Standard library only."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TORCH_INDEX = "https://download.pytorch.org/whl/"
# Copies of it, tried before it where the packages come from a mirror too: it is slow or out of reach there.
TORCH_MIRRORS = ("https://mirrors.nju.edu.cn/pytorch/whl/", "https://mirror.sjtu.edu.cn/pytorch-wheels/")
# CUDA 13 needs this NVIDIA driver branch; older ones run the CUDA 12.6 build, which itself needs at least the second.
# https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/
CUDA_13_DRIVER, CUDA_12_DRIVER = 580, 525
# CUDA 13 has dropped the cards before Turing, and CUDA 12.6 does not know those since Blackwell.
CUDA_13_CAPABILITY, BLACKWELL = (7, 5), (10, 0)
# What the whole environment takes on the disk with such a build.
DISK_GB = {"cpu": 4, "cuda": 9}


@dataclass(frozen=True)
class Card:
    """The most able NVIDIA card, as its driver describes it; old drivers do not tell the compute capability."""

    driver: int  # major version
    capability: tuple[int, int] | None


@dataclass(frozen=True)
class Torch:
    """Which build of PyTorch to install: a name for people, the indexes to try in turn (none: pip's own), the disk."""

    name: str
    indexes: tuple[str, ...]
    disk_gb: int


def read_nvidia_card() -> Card | None:
    """The NVIDIA card of this computer, or None."""
    program = shutil.which("nvidia-smi")
    if program is None and os.name == "nt":
        # Old drivers put it where PATH does not lead.
        candidate = Path(os.environ.get("PROGRAMFILES", "C:/Program Files")) / "NVIDIA Corporation/NVSMI/nvidia-smi.exe"
        program = str(candidate) if candidate.exists() else None
    if program is None:
        return None
    versions = _ask(program, "driver_version")
    try:
        driver = int(versions[0].split(".")[0])
    except (IndexError, ValueError):
        # The program is there but no card answers it: as good as none.
        return None
    capabilities = [_capability(line) for line in _ask(program, "compute_cap")]
    return Card(driver, max((each for each in capabilities if each), default=None))


def _ask(program: str, field: str) -> list[str]:
    """One line per card, none when the question fails: older drivers do not know every field."""
    try:
        command = [program, f"--query-gpu={field}", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.split("\n") if answer.returncode == 0 else []


def _capability(text: str) -> tuple[int, int] | None:
    major, _, minor = text.strip().partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None


def why_no_card(card: Card | None) -> str | None:
    """What keeps the card from being used with any build, and what to do; None when nothing is known to."""
    if card is None:
        return None
    if card.driver < CUDA_12_DRIVER:
        return (
            f"The NVIDIA driver ({card.driver}) is too old for any CUDA build of PyTorch. "
            f"Update it to {CUDA_13_DRIVER} or newer."
        )
    if card.capability and card.capability >= BLACKWELL and card.driver < CUDA_13_DRIVER:
        return (
            f"This card (compute capability {_written(card.capability)}) needs the CUDA 13 build of PyTorch, and that "
            f"a driver of version {CUDA_13_DRIVER} or newer; this one is {card.driver}. Update the driver."
        )
    if card.capability and card.capability < (5, 0):
        return (
            f"This card (compute capability {_written(card.capability)}) is too old for every build of PyTorch; "
            "expected 5.0 or more. The steps run on the processor."
        )
    return None


def _written(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def choose_torch(
    request: str, card: Card | None, system: str, mirror: str | None = None, environment: Mapping[str, str] = os.environ
) -> Torch:
    """Which PyTorch to install for `--torch auto|cpu|cuda|INDEX-URL` on this `system` (platform.system()).

    `mirror` (`--torch_index`) is the address of a copy of PyTorch's own index, the folder that holds cpu, cu126, ….
    """

    def build(name: str, folder: str, size: str) -> Torch:
        copies = (mirror,) if mirror else TORCH_MIRRORS if _has_package_mirror(environment) else ()
        return Torch(name, tuple(f"{index.rstrip('/')}/{folder}" for index in (*copies, TORCH_INDEX)), DISK_GB[size])

    if "://" in request:
        return Torch(f"from {request}", (request,), DISK_GB["cuda"])
    too_old = card is not None and card.capability is not None and card.capability < (5, 0)
    if request == "cpu" or (request == "auto" and too_old):
        # macOS wheels of the package index are CPU and MPS builds already.
        return Torch("CPU build", (), DISK_GB["cpu"]) if system == "Darwin" else build("CPU build", "cpu", "cpu")
    if request == "cuda" or card is not None:
        capability = card.capability if card else None
        if capability and capability < CUDA_13_CAPABILITY:
            reason = f"the last for compute capability {_written(capability)}"
            return build(f"CUDA 12.6 build, {reason}", "cu126", "cuda")
        if card and card.driver < CUDA_13_DRIVER and not (capability and capability >= BLACKWELL):
            return build(f"CUDA 12.6 build, because of the NVIDIA driver {card.driver}", "cu126", "cuda")
        if system == "Windows" or mirror:
            return build("CUDA 13 build", "cu130", "cuda")
        # On Linux the package index itself has the CUDA 13 build, on Windows only a CPU build.
        return Torch("CUDA 13 build", (), DISK_GB["cuda"])
    return Torch("the package index's build", (), DISK_GB["cpu"])


def _has_package_mirror(environment: Mapping[str, str]) -> bool:
    """Whether pip was told to take packages from elsewhere than the official index."""
    index = environment.get("PIP_INDEX_URL", "")
    return "://" in index and not index.removeprefix("https://").startswith(("pypi.org/", "pypi.python.org/"))
