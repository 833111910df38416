#!/usr/bin/env python3
"""Set everything up and start: the one command for a fresh machine that has only Python.

    python start.py                     set up, then open the window
    python start.py demo                set up, then run the seven steps on a synthesised song (no model download)
    python start.py test                set up with what the tests need, then run the tests
    python start.py install GROUP       add an optional group: captioning, japanese, prodigy, small_cards, wandb
    python start.py setup               set up only

Standard library only. This file is read by every Python since 2.7, so that an old one can say that it is too old; what
is done is in ace_lora/set_up/.
"""

import struct
import sys

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 14)
# The optional groups: requirements/GROUP.txt, and what each is for. The window reads this table too.
GROUPS = {
    "captioning": "prompts and lyrics from Qwen2.5-Omni on an NVIDIA card",
    "japanese": "Japanese lyrics (about 250 MB on disk)",
    "prodigy": "the schedule-free Prodigy optimizer",
    "small_cards": "a base model in 8 or 4 bits, 8-bit AdamW",
    "wandb": "logging to Weights & Biases",
}


def check_python(version, pointer_bits):
    """Why a Python of this (major, minor) version and pointer size cannot be used, or None."""
    found = ".".join(str(number) for number in version)
    wanted = "%d.%d to %d.%d" % (OLDEST_PYTHON + NEWEST_PYTHON)  # noqa: UP031 - f-strings came with 3.6
    if pointer_bits < 64:
        return (
            "This Python (" + found + ") is a " + str(pointer_bits) + "-bit build; PyTorch exists for 64 bits only. "
            "Install a 64-bit Python "
            + wanted
            + " from https://www.python.org/downloads/, then run this again with it."
        )
    if version < OLDEST_PYTHON or version > NEWEST_PYTHON:
        age = "old" if version < OLDEST_PYTHON else "new"
        return (
            "Python " + found + " is too " + age + "; the pinned packages exist for Python " + wanted + ". "
            "Install one of these from https://www.python.org/downloads/, then run this again with it "
            "(on Windows: py -3.12 start.py, elsewhere: python3.12 start.py)."
        )
    return None


if __name__ == "__main__":
    problem = check_python(tuple(sys.version_info[:2]), struct.calcsize("P") * 8)
    if problem:
        sys.stderr.write("error: " + problem + "\n")
        raise SystemExit(2)

    from ace_lora.set_up.environment import main

    raise SystemExit(main(GROUPS))
