"""Say which base weights are there and download the rest.

python -m ace_lora.base_weights                       says what is there and downloads the rest, about 10 GB
python -m ace_lora.base_weights --list                only says what is there
python -m ace_lora.base_weights --checkpoint_dir DIR  looks in DIR, and downloads there
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ace_lora.base_weights.find import DEFAULT_CHECKPOINT_DIR, find_base_weights, missing, missing_sentences
from ace_lora.base_weights.parts import ALL_PARTS, format_bytes
from ace_lora.commands import StepFailed, run_script


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ace_lora.base_weights", description="Say which base weights are there and download the rest."
    )
    parser.add_argument(
        "--checkpoint_dir", type=Path, help=f"folder of the base weights (default: {DEFAULT_CHECKPOINT_DIR})"
    )
    parser.add_argument("--parts", nargs="+", choices=ALL_PARTS, default=list(ALL_PARTS), help="which (default: all)")
    parser.add_argument("--list", action="store_true", help="only say what is there; status 1 when a part is missing")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if not args.list:
        from ace_lora.base_weights.download import ensure_base_weights  # loads what speaks to servers

        ensure_base_weights(args.checkpoint_dir, args.parts)
    for part, path in find_base_weights(args.checkpoint_dir, args.parts).items():
        print(f"{part}: '{path}'")
    absent = missing(args.checkpoint_dir, args.parts)
    if absent:
        for sentence in missing_sentences(absent):
            print(sentence, file=sys.stderr)
        size = format_bytes(sum(part.size for part in absent))
        raise StepFailed(f"{len(absent)} of {len(args.parts)} parts are missing, about {size}.")


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
