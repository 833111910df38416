"""Which process this is, when Lightning trains in several: only the first one prints and writes.

Standard library only.
"""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes, when Lightning has started several."""
    return all(os.environ.get(name, "0") in ("", "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def outside_launcher() -> str | None:
    """The program that has started several processes of this training at once; None where Lightning starts them."""
    if os.environ.get("TORCHELASTIC_RUN_ID") and os.environ.get("WORLD_SIZE", "1") != "1":
        return "torchrun"
    # As Lightning sees it: a shell on a cluster's machine is no launch.
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM" if os.environ.get("SLURM_NTASKS", "1") not in ("", "1") and not interactive else None


def say(text: str) -> None:
    if is_first_process():
        print(text)


def process_number() -> int:
    """This process among those that train together, from 0."""
    if os.environ.get("RANK"):
        return int(os.environ["RANK"])
    return int(os.environ.get("LOCAL_RANK") or 0)
