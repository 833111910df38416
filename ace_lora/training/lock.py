"""One training at a time fills an output folder."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ace_lora import lock

LOCK_NAME = ".training.lock"


def locked(output_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of `output_dir`, which is made. Raises WrongInput where another process holds it."""
    output_dir.mkdir(parents=True, exist_ok=True)
    taken = (
        f"Another training is saving its checkpoints in '{output_dir}'. Expected one at a time. Wait for it to end, "
        "stop it, or choose another --output_dir."
    )
    return lock.locked(output_dir / LOCK_NAME, taken, remove=True)
