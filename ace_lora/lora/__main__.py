"""Say what a LoRA file is, where it seems to come from and how strong it is, after checking all of it.

python -m ace_lora.lora checkpoints/epoch=0-step=100_lora
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ace_lora.commands import WrongInput, run_script
from ace_lora.lora.file import describe, dora_problems, read_lora_file
from ace_lora.lora.scales import UnknownStrength, lora_scales


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ace_lora.lora", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lora", help="LoRA file, or the folder that holds one")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    lora = read_lora_file(Path(args.lora))
    try:
        scales, source = lora_scales(lora)
        low, high = min(scales.values()), max(scales.values())
        strength = f"scale {low:.4g}" + (f" to {high:.4g}" if high > low else "") + f" from {source}"
    except UnknownStrength:
        strength = "it does not say its scale"
    print(f"{describe(lora)}; {strength}")
    if problems := dora_problems(lora):
        raise WrongInput(problems)


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
