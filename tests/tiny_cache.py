"""A part of the tiny base where a download cache would have it."""

import shutil
from pathlib import Path

from ace_lora.base_weights.parts import PARTS

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def as_cache(tiny: Path, root: Path, part: str, commit: str = COMMIT, main: bool = True) -> Path:
    """Put a part of the tiny base where a download cache would have it; returns its folder."""
    source = PARTS[part]
    cache = root / source.cache_folder
    target = cache / "snapshots" / commit / source.folder
    shutil.copytree(tiny / source.plain_folder, target, dirs_exist_ok=True)
    if main:
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / "main").write_text(commit, encoding="utf-8")
    return target
