"""Write a copy of a LoRA that ComfyUI plays at strength 1 as it was trained: with an alpha beside each layer.

Reads a LoRA file that `trainer_new.py` or `resize_lora.py` wrote (or its folder) and the LoRA configuration of that
training, which such files hold in their header and have beside them.
Writes one .safetensors file: the same weights and, for each layer, `<module path>.alpha` = r · s, where s is the
scale of the training: alpha / sqrt(r) with rsLoRA, else alpha / r.

    python add_alpha_in_lora.py --input_name checkpoints/epoch=0-step=100_lora/pytorch_lora_weights.safetensors \
        --output_name out.safetensors --lora_config_path config/lora_config_transformer_only.json

    python add_alpha_in_lora.py --input_name checkpoints/epoch=0-step=100_lora --output_name out.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ace_lora.commands import StepFailed, WrongInput, run_script
from ace_lora.files import replace_atomically
from ace_lora.lora.config import CONFIG_NAME, comfy_alpha, read_lora_config
from ace_lora.lora.file import WEIGHTS_NAME, LoraFile, add_alpha, read_lora_file, saved_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Add the alpha to a LoRA, so that ComfyUI plays it at strength 1 as it was trained."
    )
    parser.add_argument(
        "--input_name", required=True, help=f"LoRA file, or the *_lora folder that holds {WEIGHTS_NAME}"
    )
    parser.add_argument("--output_name", required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--lora_config_path",
        default=None,
        help=f"LoRA configuration of the training (default: the {CONFIG_NAME} that the training saved beside the file)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace --output_name if it exists (never the input file)"
    )
    return parser.parse_args(argv)


def find_input(name: str) -> Path:
    """The LoRA file meant by --input_name, which may be the folder that holds it."""
    path = Path(name)
    if path.is_dir():
        if not (path / WEIGHTS_NAME).is_file():
            raise WrongInput(
                f"The folder '{path}' holds no {WEIGHTS_NAME}. Expected a folder like "
                "checkpoints/epoch=0-step=100_lora. Choose the folder or the file of a saved step."
            )
        return path / WEIGHTS_NAME
    return path


def find_config(flag: str | None, lora: LoraFile) -> dict:
    """The configuration given by --lora_config_path, else the one that the training saved; they must agree."""
    saved = saved_config(lora)
    if flag is None:
        if saved is None:
            raise WrongInput(
                f"'{lora.path}' has no configuration in its header and no {CONFIG_NAME} beside it, so the strength of "
                "the training is not known. Give the LoRA configuration of the training with --lora_config_path."
            )
        return saved[0]
    config = read_lora_config(Path(flag), need_targets=False)
    for key in ("r", "lora_alpha", "use_rslora"):
        if saved and config[key] != saved[0][key]:
            raise WrongInput(
                f"'{flag}' has {key} = {config[key]}, but the training of '{lora.path}' was saved with {key} = "
                f"{saved[0][key]}. Leave --lora_config_path out to use the saved one."
            )
    return config


def check(args: argparse.Namespace) -> tuple[Path, Path, float, dict]:
    """Input file, output file, alpha and what to write; raises WrongInput with every problem found."""
    problems: list[str] = []
    output = Path(args.output_name)
    source, config, lora = None, None, None
    try:
        source = find_input(args.input_name)
        lora = read_lora_file(source)
    except WrongInput as error:
        problems += error.problems
    if lora and lora.alphas:
        # The published tool would multiply the alpha a second time and spoil the strength.
        problems.append(
            f"'{source}' already has alpha in {len(lora.alphas)} layers: nothing to do, and nothing was written. "
            "Use the file as it is, or choose the file that the training saved."
        )
    try:
        if lora and not lora.alphas:
            config = find_config(args.lora_config_path, lora)
        elif args.lora_config_path:
            read_lora_config(Path(args.lora_config_path), need_targets=False)
    except WrongInput as error:
        problems += error.problems
    # Layers that resize_lora.py pruned to different ranks go with the configuration that it saved.
    ranks = lora.ranks if lora else set()
    if config and ranks != {config["r"]} and (args.lora_config_path or max(ranks) != config["r"]):
        problems.append(
            f"'{source}' has rank {', '.join(map(str, sorted(ranks)))}, the LoRA configuration has r = "
            f"{config['r']}. Give the configuration of that training with --lora_config_path."
        )
    if output.suffix.lower() != ".safetensors" or output.is_dir():
        problems.append(f"--output_name '{output}' is no .safetensors file name. Choose one, such as out.safetensors.")
    elif source and output.exists() and source.exists() and output.samefile(source):
        problems.append(f"--output_name '{output}' is the input file itself. Choose another name; the input is kept.")
    elif output.exists() and not args.overwrite:
        problems.append(f"'{output}' exists already. Choose another --output_name, or add --overwrite to replace it.")
    if problems:
        raise WrongInput(problems)
    assert source is not None and config is not None and lora is not None
    alpha = comfy_alpha(config["r"], config["lora_alpha"], config["use_rslora"])
    return source, output, alpha, add_alpha(lora.tensors, alpha, config["r"])


def main(args: argparse.Namespace) -> None:
    source, output, alpha, content = check(args)

    import torch
    from safetensors.torch import load, save

    print(f"comfy_alpha {alpha}")
    with replace_atomically(output) as temporary:
        # The published tool drops the header too; ComfyUI does not read it. Not save_file: a full disk would be an
        # error of its own kind.
        temporary.write_bytes(save(content))
        # From bytes: on Windows a mapped file cannot be renamed.
        written = load(temporary.read_bytes())
        if written.keys() != content.keys() or not all(torch.equal(written[key], content[key]) for key in content):
            raise StepFailed(
                f"What was written for '{output}' differs from what was meant. Check the disk; nothing was kept."
            )
    alphas = [float(tensor) for key, tensor in content.items() if key.endswith(".alpha")]  # as the format holds them
    values = ", ".join(str(value) for value in sorted(set(alphas)))
    print(f"input: {source}")
    print(f"output: {output} ({len(alphas)} layers with alpha {values}), checked by reading it back")


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
