"""Make a checkpoint folder of tiny random weights, for tests and for trying the workflow on a CPU.

python -m ace_lora.tiny_base DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ace_lora.commands import run_script


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ace_lora.tiny_base",
        description="Make a checkpoint folder of tiny random weights, for tests and for trying the workflow on a CPU.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder to make; new, empty or from an earlier run")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from ace_lora.tiny_base.make import make_tiny_base  # loads numpy

    files = make_tiny_base(args.folder)
    for path in files:
        print(f"{path.relative_to(args.folder).as_posix():60} {path.stat().st_size:>9,} bytes")
    size = sum(path.stat().st_size for path in files) / 1e6
    print(f"Made '{args.folder}': {len(files)} files, {size:.1f} MB of random weights. Use it with --checkpoint_dir.")


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
