"""Make a trained LoRA smaller: keep of each layer's product B·A the directions that carry most of it (SVD).

Reads a LoRA file or a `*_lora` folder, writes a new one; the strength at which it is played stays the same. Where the
file has alpha values for ComfyUI, they are adapted to the new ranks.

    python resize_lora.py --input_name checkpoints/epoch=0-step=2000_lora --output_name small_lora --new_rank 16
    python resize_lora.py --input_name out.safetensors --output_name small.safetensors --sv_fro 0.95

An output name that ends with .safetensors is a file; any other becomes a folder with the file and the
adapter_config.json that `add_alpha_in_lora.py` needs.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from ace_lora.commands import WrongInput, run_script
from ace_lora.files import replace_atomically, write_json
from ace_lora.lora.config import CONFIG_NAME, peft_config_dict
from ace_lora.lora.file import WEIGHTS_NAME, LoraFile, read_lora_file, saved_config

if TYPE_CHECKING:
    import torch


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prune a LoRA by singular values and print what each layer keeps.")
    parser.add_argument("--input_name", required=True, help="LoRA file, or the *_lora folder that holds one")
    parser.add_argument("--output_name", required=True, help="new .safetensors file, or new folder")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--new_rank", type=int, help="directions to keep in every layer")
    how.add_argument("--sv_ratio", type=float, help="keep singular values above the layer's largest divided by this")
    how.add_argument("--sv_fro", type=float, help="keep this share (0 to 1) of the layer's Frobenius norm")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> tuple[LoraFile, dict | None]:
    """The LoRA and its configuration, where it has one; raises WrongInput with every problem found."""
    problems = []
    lora, config = None, None
    source = Path(args.input_name)
    if source.is_dir():
        source = source / WEIGHTS_NAME
    try:
        lora = read_lora_file(source)
        problems += layer_problems(lora)
        saved = saved_config(lora)
        config = saved[0] if saved else None
    except WrongInput as error:
        problems += error.problems
    if Path(args.output_name).exists():
        problems.append(f"'{args.output_name}' exists already. Choose another --output_name; nothing was written.")
    if args.new_rank is not None and args.new_rank < 1:
        problems.append(f"--new_rank is {args.new_rank}, expected 1 or more. 16 is a good start.")
    if args.sv_ratio is not None and not (math.isfinite(args.sv_ratio) and args.sv_ratio >= 1):
        problems.append(f"--sv_ratio is {args.sv_ratio}, expected 1 or more. 10 is a good start.")
    if args.sv_fro is not None and not 0 < args.sv_fro <= 1:
        problems.append(f"--sv_fro is {args.sv_fro}, expected a share above 0 and up to 1. 0.95 is a good start.")
    if problems:
        raise WrongInput(problems)
    assert lora is not None
    return lora, config


def layer_problems(lora: LoraFile) -> list[str]:
    """Layers that lack one of their two factors, or whose factors do not fit together."""
    problems = []
    for layer in sorted({key.rsplit(".lora_", 1)[0] for key in lora.tensors}):
        factors = [lora.tensors.get(f"{layer}.lora_{which}.weight") for which in "AB"]
        if any(factor is None or factor.ndim != 2 for factor in factors) or len(factors[0]) != factors[1].shape[1]:  # type: ignore[index,union-attr,arg-type]
            problems.append(f"'{lora.path}' has no fitting pair of factors for '{layer}'. Choose another file.")
        elif not all(factor.isfinite().all() for factor in factors):  # type: ignore[union-attr]
            problems.append(f"'{lora.path}' holds values that are not finite in '{layer}'. Choose another file.")
    return problems


def prune(a: torch.Tensor, b: torch.Tensor, args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A [r,in] and B [out,r] to A' [k,in], B' [out,k] in the same dtype, and the share of |B A|² that B' A' keeps."""
    import torch

    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, values, v = torch.linalg.svd(r_b @ r_a.T)
    squares = values.square()
    total = float(squares.sum())
    if args.new_rank is not None:
        rank = args.new_rank
    elif total == 0:
        rank = 1
    elif args.sv_ratio is not None:
        rank = int((values > values[0] / args.sv_ratio).sum())
    else:
        # The smallest number of values whose share of the norm is enough.
        shares = squares.cumsum(0).div(total).sqrt()
        rank = int((shares < args.sv_fro - 1e-12).sum()) + 1
    rank = max(1, rank)
    if rank >= len(a):
        return a, b, 1.0  # nothing to leave out: the very same factors
    root = values[:rank].sqrt()
    new_a = (root[:, None] * v[:rank]) @ q_a.T
    new_b = q_b @ (u[:, :rank] * root)
    kept = float(squares[:rank].sum()) / total if total else 1.0
    return new_a.to(a.dtype).contiguous(), new_b.to(b.dtype).contiguous(), kept


def main(args: argparse.Namespace) -> None:
    lora, config = check(args)
    from safetensors.torch import save_file

    content: dict[str, torch.Tensor] = {}
    ranks: dict[str, tuple[int, int]] = {}
    energies = []
    for layer in sorted({key.rsplit(".lora_", 1)[0] for key in lora.tensors}):
        names = [f"{layer}.lora_{which}.weight" for which in "AB"]
        a, b, kept = prune(*(lora.tensors[name] for name in names), args)
        content |= dict(zip(names, (a, b), strict=True))
        ranks[layer] = (len(lora.tensors[names[0]]), len(a))
        if layer in lora.alphas:
            # Players multiply with alpha / rank; that has to stay.
            alpha = lora.alphas[layer]
            content[f"{layer}.alpha"] = (alpha.double() * len(a) / ranks[layer][0]).to(alpha.dtype)
        energies.append(kept)
        print(f"{layer} | rank {ranks[layer][0]} to {len(a)} | kept {100 * kept:.2f} %")

    new_config = adapted_config(config, ranks) if config else None
    metadata = {key: value for key, value in lora.metadata.items() if key != "lora_adapter_metadata"}
    if new_config:
        metadata["lora_adapter_metadata"] = json.dumps(new_config, indent=2, sort_keys=True)
        if len({new for _, new in ranks.values()}) == 1:
            metadata |= {"rank": str(new_config["r"]), "alpha": str(new_config["lora_alpha"])}
    output = Path(args.output_name)
    if output.suffix.lower() == ".safetensors":
        with replace_atomically(output) as temporary:
            save_file(content, temporary, metadata=metadata)
    else:
        with replace_atomically(output, own=(WEIGHTS_NAME, CONFIG_NAME)) as folder:
            with replace_atomically(folder / WEIGHTS_NAME) as temporary:
                save_file(content, temporary, metadata=metadata)
            if new_config:
                write_json(folder / CONFIG_NAME, new_config)
    sizes = [sum(tensor.numel() for tensor in tensors.values()) for tensors in (lora.tensors, content)]
    print(
        f"done: {len(ranks)} layers, {sizes[0]:,} to {sizes[1]:,} values, kept {100 * min(energies):.2f} % at the "
        f"least, {100 * sum(energies) / len(energies):.2f} % on average: {output}"
    )


def adapted_config(config: dict, ranks: dict[str, tuple[int, int]]) -> dict:
    """PEFT's configuration for the new ranks with the scale of the training in every layer."""

    def alpha_for(rank: int) -> float:
        share = rank / config["r"]
        return config["lora_alpha"] * (math.sqrt(share) if config["use_rslora"] else share)

    most = max(new for _, new in ranks.values())
    targets = config.get("target_modules")
    if not isinstance(targets, list):  # PEFT also takes a pattern
        targets = list(ranks)
    values = peft_config_dict({**config, "target_modules": targets, "r": most, "lora_alpha": _whole(alpha_for(most))})
    others = {layer: new for layer, (_, new) in ranks.items() if new != most}
    values["rank_pattern"] = others
    values["alpha_pattern"] = {layer: _whole(alpha_for(new)) for layer, new in others.items()}
    return values


def _whole(value: float) -> float:
    """8 rather than 8.0, as configurations have it."""
    return int(value) if value == int(value) else value


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
