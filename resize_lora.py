"""Make a trained LoRA smaller: keep of each layer's product B·A the directions that carry most of it (SVD).

Reads a LoRA of any origin (a file or a `*_lora` folder), writes a new one; the strength at which it is played stays the
same. Where the file has alpha values for ComfyUI, they are adapted to the new ranks.

    python resize_lora.py --input_name checkpoints/epoch=0-step=2000_lora --output_name small_lora --new_rank 16
    python resize_lora.py --input_name out.safetensors --output_name small.safetensors --sv_fro 0.95 --for all

An output name that ends with .safetensors is a file; any other becomes a folder. What is kept is said in one unit
everywhere: the share of the layer's Frobenius norm.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import WrongInput, refuse_old_flags, run_script
from ace_lora.files import replace_atomically
from ace_lora.lora.clients import CLIENTS, write_for
from ace_lora.lora.config import layer_rank_alpha, peft_config_dict, read_lora_config
from ace_lora.lora.file import (
    HEADER_CONFIG,
    OWN_NAMES,
    WEIGHTS_NAME,
    LoraFile,
    describe,
    dora_problems,
    is_file_name,
    output_problems,
    read_lora_file,
    save_lora_config,
    write_tensors,
)
from ace_lora.lora.scales import TRAINED_RANK, lora_scales, saved_config

if TYPE_CHECKING:
    import torch


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prune a LoRA by singular values and print what each layer keeps.")
    parser.add_argument("--input_name", required=True, help="LoRA file, or the *_lora folder that holds one")
    parser.add_argument("--output_name", required=True, help="new .safetensors file, or new folder")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--new_rank", type=int, help="directions to keep in every layer, up to the rank that it has")
    how.add_argument("--sv_ratio", type=float, help="keep singular values above the layer's largest divided by this")
    how.add_argument("--sv_fro", type=float, help="keep at least this share (0 to 1) of each layer's Frobenius norm")
    parser.add_argument(
        "--lora_config_path",
        default=None,
        help="LoRA configuration of the training, for a file that does not say its strength (default: none is needed, "
        "the strength stays what it was)",
    )
    parser.add_argument(
        "--for",
        choices=CLIENTS,
        default=None,
        help="all: one file for ComfyUI, ACE-Step's own pages and diffusers, with the strength in the weights; peft: a "
        "folder for PEFT (default: what the file was for)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --output_name if it exists (never the input)")
    refuse_old_flags(
        parser,
        {
            **dict.fromkeys(("--lora_path", "--lora_name_or_path", "--model"), "--input_name"),
            **dict.fromkeys(("--save_to", "--output_path"), "--output_name"),
            **dict.fromkeys(("--rank", "--new_dim"), "--new_rank"),
            **dict.fromkeys(("--dynamic_method", "--dynamic_param"), "--sv_ratio or --sv_fro with its number"),
        },
    )
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> tuple[LoraFile, dict[str, Any] | None, dict[str, float] | None]:
    """The LoRA, its configuration and the scale of its layers, where known; WrongInput with every problem found."""
    problems = []
    client = vars(args)["for"]  # not args.for: a keyword
    lora, config, scales = None, None, None
    stated = Path(args.lora_config_path) if args.lora_config_path is not None else None
    output = Path(args.output_name)
    try:
        lora = read_lora_file(Path(args.input_name))
        problems += dora_problems(lora)
        if stated or client:
            scales, _ = lora_scales(lora, stated)
        saved = saved_config(lora)
        config = saved[0] if saved else None
        if stated and not lora.alphas and config is None:
            config = read_lora_config(stated, need_targets=False)
    except WrongInput as error:
        problems += error.problems
    problems += output_problems(output, [lora.path] if lora else [], overwrite=args.overwrite)
    if client == "peft" and is_file_name(output):
        problems.append(f"--output_name '{output}' is the name of a file, PEFT loads folders. Choose a folder's name.")
    if args.new_rank is not None and args.new_rank < 1:
        problems.append(f"--new_rank is {args.new_rank}, expected 1 or more. 16 is a good start.")
    elif args.new_rank is not None and lora and args.new_rank > max(lora.ranks):
        problems.append(
            f"--new_rank is {args.new_rank}, but '{lora.path}' has rank {max(lora.ranks)}: a higher one adds nothing. "
            f"Give a number below {max(lora.ranks)}."
        )
    if args.sv_ratio is not None and not (math.isfinite(args.sv_ratio) and args.sv_ratio >= 1):
        problems.append(f"--sv_ratio is {args.sv_ratio}, expected 1 or more. 10 is a good start.")
    if args.sv_fro is not None and not 0 < args.sv_fro <= 1:
        problems.append(f"--sv_fro is {args.sv_fro}, expected a share above 0 and up to 1. 0.95 is a good start.")
    if problems:
        raise WrongInput(problems)
    assert lora is not None
    return lora, config, scales


def rank_to_keep(values: torch.Tensor, args: argparse.Namespace) -> int:
    """How many of a layer's singular values (largest first) the flags ask for."""
    if args.new_rank is not None:
        return args.new_rank
    squares = values.square()
    total = float(squares.sum())
    if total == 0:
        return 1
    if args.sv_ratio is not None:
        return int((values > values[0] / args.sv_ratio).sum())
    # The smallest number of values whose share of the norm is enough.
    shares = squares.cumsum(0).div(total).sqrt()
    return int((shares < args.sv_fro - 1e-12).sum()) + 1


def main(args: argparse.Namespace) -> None:
    lora, config, scales = check(args)
    client = vars(args)["for"]  # not args.for: a keyword
    from ace_lora.lora.factors import best_factors

    print(f"input: {describe(lora)}")
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    shares = []
    before = lora.layer_ranks
    for layer, (a, b) in sorted(lora.factors.items()):
        *factors[layer], kept = best_factors(a, b, lambda values: rank_to_keep(values, args))  # type: ignore[misc]
        shares.append(kept)
        print(f"{layer} | rank {len(a)} to {len(factors[layer][0])} | kept {percent(kept)} of the norm")
    after = {layer: len(a) for layer, (a, _) in factors.items()}
    output = Path(args.output_name)
    if client:
        assert scales is not None
        write_for(client, output, factors, scales, lora.metadata)
    else:
        write_as_it_was(output, lora, factors, config)
    sizes = [sum(a.numel() + b.numel() for a, b in pairs.values()) for pairs in (lora.factors, factors)]
    print(
        f"done: {len(after)} layers, {sizes[0]:,} to {sizes[1]:,} values, kept {percent(min(shares))} of the norm at "
        f"the least, {percent(sum(shares) / len(shares))} on average: {output}"
    )
    if config is None and not lora.alphas and after != before:
        print(
            f"note: '{lora.path}' does not say its strength. What needs it, add_alpha_in_lora.py for one, wants the "
            "configuration of the training, with its own rank, in --lora_config_path."
        )


def percent(share: float) -> str:
    """Rounded down, so that nothing is said to be kept that is not."""
    return f"{math.floor(10000 * share + 1e-9) / 100:.2f} %"


def write_as_it_was(
    output: Path,
    lora: LoraFile,
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    config: Mapping[str, Any] | None,
) -> None:
    """Write the smaller factors with the scale where the file had it: in alpha values, in the header, or nowhere."""
    before = lora.layer_ranks
    content: dict[str, torch.Tensor] = {}
    for layer, (a, b) in factors.items():
        content |= {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
        if layer in lora.alphas:
            # Players multiply with alpha / rank; that has to stay.
            alpha = lora.alphas[layer]
            content[f"{layer}.alpha"] = (alpha.double() * len(a) / before[layer]).to(alpha.dtype)
    metadata = {key: value for key, value in lora.metadata.items() if key != HEADER_CONFIG}
    if config:
        ranks = {layer: (before[layer], len(a)) for layer, (a, _) in factors.items()}
        new_config = adapted_config(config, ranks)
        metadata[HEADER_CONFIG] = json.dumps(new_config, indent=2, sort_keys=True)
        if len({new for _, new in ranks.values()}) == 1:
            metadata |= {"rank": str(new_config["r"]), "alpha": str(new_config["lora_alpha"])}
    elif not lora.alphas and len(lora.ranks) == 1:
        # With rsLoRA the scale depends on the rank of the training, which cannot be seen in the file any more.
        metadata.setdefault(TRAINED_RANK, str(max(lora.ranks)))
    if is_file_name(output):
        write_tensors(output, content, metadata)
    else:
        with replace_atomically(output, own=OWN_NAMES) as folder:
            write_tensors(folder / WEIGHTS_NAME, content, metadata)
            if config and len({len(a) for a, _ in factors.values()}) == 1:
                save_lora_config(folder, new_config)


def adapted_config(config: Mapping[str, Any], ranks: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """PEFT's configuration for the new ranks (old, new by layer) with the scale of the training in every layer."""

    def alpha_for(layer: str) -> float:
        rank, alpha = layer_rank_alpha(config, layer)
        share = ranks[layer][1] / rank
        return _whole(alpha * (math.sqrt(share) if config["use_rslora"] else share))

    most = max(new for _, new in ranks.values())
    targets = config.get("target_modules")
    if not isinstance(targets, list):  # PEFT also takes a pattern
        targets = list(ranks)
    usual = alpha_for(next(layer for layer, (_, new) in ranks.items() if new == most))
    values = peft_config_dict({**config, "target_modules": targets, "r": most, "lora_alpha": usual})
    values["rank_pattern"] = {layer: new for layer, (_, new) in ranks.items() if new != most}
    values["alpha_pattern"] = {
        layer: alpha_for(layer)
        for layer, (_, new) in ranks.items()
        if new != most or not math.isclose(alpha_for(layer), usual)
    }
    return values


def _whole(value: float) -> float:
    """8 rather than 8.0, as configurations have it."""
    return int(value) if value == int(value) else value


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
