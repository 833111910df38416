"""One process at a time: a lock that ends with the process that holds it, however that ends. Needs filelock."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ace_lora.commands import WrongInput


@contextlib.contextmanager
def locked(path: Path, taken: str, *, remove: bool = False) -> Iterator[None]:
    """Hold the lock file `path`. Raises WrongInput with the sentence `taken` where another process holds it.

    With `remove` the file goes at the end, where the system removes one that is open; Windows does so itself.
    """
    from filelock import FileLock, Timeout  # here, because scripts import this module for their --help too

    lock = FileLock(path)
    try:
        # Not given up at once: a run that starts looks at the locks of others for a moment.
        lock.acquire(timeout=1, poll_interval=0.05)
    except Timeout:
        raise WrongInput(taken) from None
    except NotImplementedError:
        pass  # some network disks know no locks
    try:
        yield
    finally:
        if remove and os.name == "posix" and lock.is_locked:
            # While it is held, so that nobody can have locked this file meanwhile.
            path.unlink(missing_ok=True)
        lock.release()
