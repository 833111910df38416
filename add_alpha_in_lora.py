"""Write a copy of a LoRA that plays at strength 1 as it was trained: in ComfyUI, in every client, or in PEFT.

Reads a LoRA of any origin (a file, or the folder of a checkpoint). The scale s of its training, alpha / sqrt(r) with
rsLoRA, else alpha / r, is found in its header, in its alpha values, in a configuration beside it, or given.
Writes
    by itself      a .safetensors file for ComfyUI: the same weights and, for each layer, `<module path>.alpha` = r · s
    --for all      a file, or a folder with pytorch_lora_weights.safetensors: the scale lies in the weights, so that
                   ComfyUI, ACE-Step's own pages and diffusers play it alike
    --for peft     a folder that PEFT loads: PeftModel.from_pretrained(transformer, folder)

    python add_alpha_in_lora.py --input_name checkpoints/epoch=0-step=100_lora/pytorch_lora_weights.safetensors \
        --output_name out.safetensors --lora_config_path config/lora_config_transformer_only.json

    python add_alpha_in_lora.py --input_name checkpoints/epoch=0-step=100_lora --output_name mine.safetensors --for all
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ace_lora.commands import WrongInput, refuse_old_flags, run_script
from ace_lora.lora.clients import CLIENTS, write_for
from ace_lora.lora.config import CONFIG_NAME, read_lora_config
from ace_lora.lora.file import (
    WEIGHTS_NAME,
    LoraFile,
    add_alpha,
    describe,
    dora_problems,
    is_file_name,
    output_problems,
    read_lora_file,
    write_tensors,
)
from ace_lora.lora.scales import lora_scales


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write a copy of a LoRA that ComfyUI (or, with --for, every client) plays at strength 1 as it was "
        "trained."
    )
    parser.add_argument(
        "--input_name", required=True, help=f"LoRA file, or the *_lora folder that holds {WEIGHTS_NAME}"
    )
    parser.add_argument(
        "--output_name", required=True, help="the .safetensors file to write; with --for also the name of a folder"
    )
    parser.add_argument(
        "--lora_config_path",
        default=None,
        help="LoRA configuration of the training, for a file that does not say its strength (default: what the file's "
        f"header says, its alpha values, or a {CONFIG_NAME} beside it)",
    )
    parser.add_argument(
        "--for",
        choices=("comfyui", *CLIENTS),
        default="comfyui",
        help="comfyui: the same weights and their alpha (default); all: one file for ComfyUI, ACE-Step's own pages and "
        "diffusers, with the strength in the weights; peft: a folder for PEFT",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace --output_name if it exists (never the input file)"
    )
    refuse_old_flags(
        parser,
        {
            **dict.fromkeys(("--lora_path", "--lora_name_or_path", "--model"), "--input_name"),
            **dict.fromkeys(("--save_to", "--output_path"), "--output_name"),
            **dict.fromkeys(("--config_path", "--alpha", "--rank"), "--lora_config_path"),
        },
    )
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> tuple[LoraFile, dict[str, float], str]:
    """The LoRA, the scale of each layer and where that is written; raises WrongInput with every problem found."""
    problems: list[str] = []
    client = vars(args)["for"]  # not args.for: a keyword
    output = Path(args.output_name)
    stated = Path(args.lora_config_path) if args.lora_config_path is not None else None
    lora, scales, source = None, None, ""
    try:
        lora = read_lora_file(Path(args.input_name))
        problems += dora_problems(lora)
    except WrongInput as error:
        problems += error.problems
    if lora and lora.alphas and client == "comfyui":
        # The published tool would multiply the alpha a second time and spoil the strength.
        problems.append(
            f"'{lora.path}' already has alpha in {len(lora.alphas)} layers: nothing to do, and nothing was written. "
            "Use the file as it is, or choose the file that the training saved."
        )
    try:
        if lora and not (lora.alphas and client == "comfyui"):
            scales, source = lora_scales(lora, stated)
        elif stated:
            read_lora_config(stated, need_targets=False)
    except WrongInput as error:
        problems += error.problems
    if client == "comfyui" and not is_file_name(output):
        problems.append(f"--output_name '{output}' is no .safetensors file name. Choose one, such as out.safetensors.")
    elif client == "peft" and is_file_name(output):
        problems.append(
            f"--output_name '{output}' is the name of a file, PEFT loads folders. Choose one, such as "
            f"{output.with_suffix('').name}."
        )
    else:
        problems += output_problems(output, [lora.path] if lora else [], overwrite=args.overwrite)
    if problems:
        raise WrongInput(problems)
    assert lora is not None and scales is not None
    return lora, scales, source


def main(args: argparse.Namespace) -> None:
    lora, scales, source = check(args)
    client = vars(args)["for"]  # not args.for: a keyword
    output = Path(args.output_name)
    if client != "comfyui":
        print(f"input: {describe(lora)}; scale {shown(scales.values())} from {source}")
        write_for(client, output, lora.factors, scales, lora.metadata)
        where = {"all": "in every client", "peft": "in PEFT"}[client]
        print(f"output: {output} ({len(scales)} layers, plays at strength 1 {where}), checked by reading it back")
        return
    content = add_alpha(lora.tensors, scales)
    print(f"comfy_alpha {max(len(a) * scales[layer] for layer, (a, _) in lora.factors.items())}")
    # The published tool drops the header too; ComfyUI does not read it.
    write_tensors(output, content, None)
    alphas = [float(tensor) for key, tensor in content.items() if key.endswith(".alpha")]  # as the format holds them
    print(f"input: {describe(lora)}; scale {shown(scales.values())} from {source}")
    print(f"output: {output} ({len(alphas)} layers with alpha {shown(alphas)}), checked by reading it back")


def shown(values: object) -> str:
    """The different numbers of many, in words: `8.0`, or `1.0, 2.0`; of many, the smallest and the largest."""
    different = sorted(set(values))  # type: ignore[call-overload]
    return ", ".join(map(str, different)) if len(different) <= 4 else f"{different[0]} to {different[-1]}"


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
