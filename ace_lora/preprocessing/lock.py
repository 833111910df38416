"""Two runs of preprocessing never make the same records. Standard library and filelock.

Every run holds a lock file of its own in the folder of waiting pieces, named after its share of the songs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ace_lora import lock

LOCK_PREFIX = ".lock-"


def lock_name(shard: str) -> str:
    """The lock file of a share: `.lock-1-of-2` for "1/2"."""
    return f"{LOCK_PREFIX}{shard.replace('/', '-of-')}"


@contextlib.contextmanager
def alone(partial: Path, shard: str) -> Iterator[None]:
    """Hold off runs that would do the same songs: two may only work at once on different shares of one division.

    Others would write, use up and clear each other's pieces in `partial`. Raises WrongInput where one runs.
    """
    own = partial / lock_name(shard)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        # Its own lock first, then a look at the others': of two runs that start at once, at most one goes on.
        with _locked(own):
            try:
                division = shard.partition("/")[2]
                for other in sorted(partial.glob(f"{LOCK_PREFIX}*")):
                    if not other.name.endswith(f"-of-{division}"):
                        with _locked(other):
                            pass
                yield
            finally:
                if os.name != "nt":
                    # Before it is unlocked, so that nobody can have taken it over.
                    own.unlink(missing_ok=True)
    finally:
        # Windows deletes no file that is open; what another run has opened meanwhile stays.
        with contextlib.suppress(OSError):
            if os.name == "nt":
                own.unlink(missing_ok=True)
            partial.rmdir()


def _locked(path: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of one share, which `alone` removes. Raises WrongInput where another process holds it."""
    share = path.name.removeprefix(LOCK_PREFIX).replace("-of-", "/")
    which = "" if share == "1/1" else f" (with --shard {share})"
    taken = (
        f"Another run of this step{which} is making records beside '{path.parent}'. Expected one at a time, or "
        "different shares of the same number. Wait for it to end, or stop it; to divide the work use --shard."
    )
    return lock.locked(path, taken)
