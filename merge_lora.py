"""Make one LoRA of several: it plays as all of them together, each at its own strength.

Reads LoRAs of any origin (files, or folders of checkpoints), of any rank, alpha and layers. Writes one that plays at
strength 1 in ComfyUI, ACE-Step's own pages and diffusers (with --for peft: in PEFT). The ranks add up, and the result
is exact; --new_rank keeps the nearest LoRA of that rank and says how much that is.

    python merge_lora.py voice_lora drums.safetensors --weights 1 0.5 --output_name both.safetensors
    python merge_lora.py voice_lora drums.safetensors --output_name both.safetensors --new_rank 64

One LoRA alone gets its weight: `merge_lora.py a.safetensors --weights 0.7 --output_name softer.safetensors`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from ace_lora.commands import WrongInput, refuse_old_flags, run_script
from ace_lora.lora.clients import CLIENTS, write_for
from ace_lora.lora.config import MAX_RANK
from ace_lora.lora.file import LoraFile, describe, dora_problems, is_file_name, output_problems, read_lora_file
from ace_lora.lora.scales import UnknownStrength, lora_scales

if TYPE_CHECKING:
    import torch


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make one LoRA of several, which plays as all of them together.")
    parser.add_argument("input_names", nargs="+", metavar="LORA", help="LoRA files, or *_lora folders that hold one")
    parser.add_argument(
        "--weights",
        nargs="+",
        type=float,
        default=None,
        metavar="W",
        help="strength of each LoRA, in their order; negative ones take it away (default: 1 for each)",
    )
    parser.add_argument("--output_name", required=True, help="new .safetensors file, or new folder")
    parser.add_argument(
        "--new_rank", type=int, default=None, help="rank of the result (default: the sum of all ranks, exact)"
    )
    parser.add_argument(
        "--lora_config_path",
        default=None,
        help="LoRA configuration of the training, for those that do not say their strength",
    )
    parser.add_argument(
        "--for",
        choices=CLIENTS,
        default="all",
        help="all: one file for ComfyUI, ACE-Step's own pages and diffusers (default); peft: a folder for PEFT",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --output_name if it exists (never an input)")
    refuse_old_flags(
        parser,
        {
            **dict.fromkeys(("--models", "--loras", "--lora_path", "--input_name"), "the names themselves, in front"),
            **dict.fromkeys(("--ratios", "--strengths", "--lora_weight"), "--weights"),
            **dict.fromkeys(("--save_to", "--output_path"), "--output_name"),
        },
    )
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> list[tuple[LoraFile, dict[str, float]]]:
    """The LoRAs and the scale of each of their layers, weights included; WrongInput with every problem found."""
    problems: list[str] = []
    weights = args.weights or [1.0] * len(args.input_names)
    if len(weights) != len(args.input_names):
        problems.append(f"--weights has {len(weights)} numbers for {len(args.input_names)} LoRAs. Give one for each.")
    problems += [f"--weights has {weight}. Expected numbers such as 0.5." for weight in weights if not usable(weight)]
    read: list[tuple[LoraFile, dict[str, float]]] = []
    for name in args.input_names:
        try:
            lora = read_lora_file(Path(name))
            problems += dora_problems(lora)
            scales, source = lora_scales(lora, stated_for(lora, args.lora_config_path))
        except WrongInput as error:
            problems += error.problems
        else:
            read.append((lora, scales))
            print(f"input: {describe(lora)}; its strength from {source}")
    problems += width_problems([lora for lora, _ in read])
    output = Path(args.output_name)
    problems += output_problems(output, [lora.path for lora, _ in read], overwrite=args.overwrite)
    if vars(args)["for"] == "peft" and is_file_name(output):
        problems.append(f"--output_name '{output}' is the name of a file, PEFT loads folders. Choose a folder's name.")
    total = sum(max(lora.ranks) for lora, _ in read)
    if args.new_rank is not None and not 1 <= args.new_rank <= MAX_RANK:
        problems.append(f"--new_rank is {args.new_rank}, expected 1 to {MAX_RANK}. 64 is usual.")
    elif args.new_rank is not None and read and not problems and args.new_rank > total:
        problems.append(
            f"--new_rank is {args.new_rank}, but the ranks add up to {total}: a higher one adds nothing. Give a lower "
            "number, or leave it out."
        )
    elif args.new_rank is None and total > MAX_RANK:
        problems.append(f"The ranks add up to {total}, more than {MAX_RANK}. Give a lower one with --new_rank.")
    if problems:
        raise WrongInput(problems)
    return [
        (lora, {layer: scale * weight for layer, scale in scales.items()})
        for (lora, scales), weight in zip(read, weights, strict=True)
    ]


def usable(weight: float) -> bool:
    return math.isfinite(weight) and abs(weight) <= 1000


def stated_for(lora: LoraFile, flag: str | None) -> Path | None:
    """The configuration that the user names, for a LoRA that does not say its strength; the others need none."""
    if flag is None:
        return None
    try:
        lora_scales(lora)
    except UnknownStrength:
        return Path(flag)
    return None


def width_problems(loras: list[LoraFile]) -> list[str]:
    """LoRAs that cannot belong to one model, because a layer of theirs has other widths."""
    first: dict[str, tuple[LoraFile, tuple[int, int]]] = {}
    problems = []
    for lora in loras:
        for layer, (a, b) in lora.factors.items():
            other, widths = first.setdefault(layer, (lora, (a.shape[1], len(b))))
            if widths != (a.shape[1], len(b)):
                problems.append(
                    f"'{layer}' has the widths {list(widths)} in '{other.path}' and {[a.shape[1], len(b)]} in "
                    f"'{lora.path}': they belong to different base models. Choose LoRAs of one model."
                )
                break
    return problems


def main(args: argparse.Namespace) -> None:
    loras = check(args)
    import torch

    from ace_lora.lora.factors import best_factors, weighted_sum

    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    shares = []
    pairs = [(lora.factors, scales) for lora, scales in loras]
    for layer in sorted({layer for factors_of, _ in pairs for layer in factors_of}):
        a, b = weighted_sum((*factors_of[layer], scales[layer]) for factors_of, scales in pairs if layer in factors_of)
        if args.new_rank is not None:
            halves = (torch.bfloat16, torch.bfloat16)
            a, b, kept = best_factors(a, b, args.new_rank, halves)
            shares.append(kept)
        factors[layer] = (a, b)
    weights = args.weights or [1.0] * len(loras)
    origin = [{"file": lora.path.name, "weight": weight} for (lora, _), weight in zip(loras, weights, strict=True)]
    output = Path(args.output_name)
    ones = dict.fromkeys(factors, 1.0)
    write_for(vars(args)["for"], output, factors, ones, {"merged_from": json.dumps(origin, ensure_ascii=False)})
    rank = max(len(a) for a, _ in factors.values())
    kept = f", kept {100 * min(shares):.2f} % of the norm of every layer at the least" if shares else ", exact"
    print(f"done: {len(factors)} layers of rank {rank}{kept}; plays at strength 1: {output}")


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
