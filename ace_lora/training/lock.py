"""One training at a time fills an output folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ace_lora.commands import WrongInput

LOCK_NAME = ".training.lock"


@contextlib.contextmanager
def locked(output_dir: Path) -> Iterator[None]:
    """Hold the lock of `output_dir`, which is made. Raises WrongInput where another process holds it.

    The lock is the system's: it ends with the process, however that ends.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / LOCK_NAME
    lock = FileLock(path)
    try:
        # Not given up at once: a run that starts looks at this lock for a moment.
        lock.acquire(timeout=1, poll_interval=0.05)
    except Timeout:
        raise WrongInput(
            f"Another training is saving its checkpoints in '{output_dir}'. Expected one at a time. Wait for it to "
            "end, stop it, or choose another --output_dir."
        ) from None
    except NotImplementedError:
        pass  # some network disks know no locks
    try:
        yield
    finally:
        if os.name == "posix" and lock.is_locked:
            # While it is held, so that nobody can have locked this file meanwhile; Windows does so when it lets go.
            path.unlink(missing_ok=True)
        lock.release()
