"""`generate_prompts_lyrics.py` with the captions of a running llama.cpp server.

    llama-server -m MODEL.gguf --mmproj MMPROJ.gguf -c 16384 --port 8080
    python generate_prompts_lyrics_llamacpp.py --data_dir Taudio/xxx [--lyrics] [--host 127.0.0.1 --port 8080]

Every other flag of `generate_prompts_lyrics.py` works here as well.
"""

from __future__ import annotations

import argparse

from ace_lora.commands import run_script
from generate_prompts_lyrics import main
from generate_prompts_lyrics import parse_args as parse_caption_args


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line of `generate_prompts_lyrics.py`, with `--backend llamacpp` as the default."""
    return parse_caption_args(argv, backend="llamacpp")


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
