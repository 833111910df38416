"""What records and trainings are made from, told so briefly that 100 songs are compared in a moment.

Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ace_lora.files import file_sha256

# A file system may keep times in steps of two seconds (FAT): a file changed that shortly before it was read may have
# changed once more without getting a new time.
_COARSE_TIME_NS = 2_000_000_000

_WEIGHT_FILES = ("*.json", "*.safetensors", "*.bin", "*.model")
_READ_WHOLE_BYTES = 16 * 2**20
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


def digest(value: object) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8")).hexdigest()


def audio_fingerprint(path: Path) -> dict[str, Any]:
    """Size, time and content of a file. Raises OSError when it cannot be read."""
    now = time.time_ns()
    status = path.stat()
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": file_sha256(path),
        "checked_ns": now,
    }


def is_same_audio(path: Path, recorded: dict[str, Any]) -> bool:
    """Whether a file still is what its fingerprint says. Size and time decide where they can, else the content.

    Copying a folder changes the times but not the songs, so another time alone is no change.
    Raises OSError when the file cannot be read.
    """
    status = path.stat()
    if status.st_size != recorded["size"]:
        return False
    if status.st_mtime_ns == recorded["mtime_ns"] and status.st_mtime_ns + _COARSE_TIME_NS < recorded["checked_ns"]:
        return True
    return file_sha256(path) == recorded["sha256"]


def weights_identity(path: Path) -> str:
    """A short name for the content of a file or folder of base weights, the same wherever it was downloaded.

    Configurations and tokenizers are read whole, large weight files at 16 places: any training changes all of them.
    """
    files = [path] if path.is_file() else sorted(found for pattern in _WEIGHT_FILES for found in path.glob(pattern))
    sha256 = hashlib.sha256()
    for file_path in files:
        size = file_path.stat().st_size
        sha256.update(f"{file_path.name if path.is_dir() else ''} {size}\n".encode())
        with file_path.open("rb") as file:
            if size <= _READ_WHOLE_BYTES:
                sha256.update(file.read())
                continue
            for number in range(_SAMPLES):
                file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                sha256.update(file.read(_SAMPLE_BYTES))
    return sha256.hexdigest()[:16]


def software_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    import importlib.metadata  # which takes a third of the time of a script's --help

    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
