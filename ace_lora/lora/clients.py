"""LoRA files for the programs that play them.

ComfyUI computes alpha / rank per layer from the alpha tensors (1 without), and reads no header. ACE-Step's own pages
read neither alpha nor header, and take the rank of the first layer for all. diffusers reads the header. PEFT wants a
folder with names of its own. One file for all has the scale in B, one rank, and alpha = rank: whoever reads one of
them, both or neither arrives at strength 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.files import replace_atomically, write_json
from ace_lora.lora.config import CONFIG_NAME
from ace_lora.lora.file import (
    HEADER_CONFIG,
    OWN_NAMES,
    PEFT_WEIGHTS_NAME,
    WEIGHTS_NAME,
    as_text,
    is_file_name,
    write_tensors,
)
from ace_lora.lora.scales import TRAINED_RANK

if TYPE_CHECKING:
    import torch

CLIENTS = ("all", "peft")  # whom a file can be written for, beside ComfyUI


def one_for_all(
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], scales: Mapping[str, float]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and configuration of the file that plays at strength 1 in every client.

    The scale lies in B, every layer has the largest rank (padded with zeros), and alpha is the rank, in tensors and in
    the configuration: whoever reads one of them, both or neither arrives at 1. Half precision becomes float32, because
    a folded float16 may be too small for its format; bfloat16 stays.
    """
    import torch

    from ace_lora.lora.factors import folded, padded

    rank = max(len(a) for a, _ in factors.values())
    tensors = {}
    for layer, pair in factors.items():
        a, b = (factor if factor.dtype == torch.bfloat16 else factor.float() for factor in pair)
        a, b = padded(a, folded(b, scales[layer]), rank)
        tensors[f"{layer}.lora_A.weight"] = a.contiguous()
        tensors[f"{layer}.lora_B.weight"] = b.contiguous()
        tensors[f"{layer}.alpha"] = torch.tensor(float(rank))
    # Few and old fields: an older PEFT refuses those that it does not know.
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "use_dora": False,
        "lora_bias": False,
        "bias": "none",
        "target_modules": sorted(factors),
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    return tensors, config


def write_for(
    client: str,
    output: Path,
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    scales: Mapping[str, float],
    metadata: Mapping[str, str],
) -> None:
    """Write the LoRA for `client`, one of CLIENTS, and read it back.

    "all": `output` is a file, or a folder that gets one of the name that ACE-Step's pages and diffusers look for.
    "peft": `output` is a folder that `PeftModel.from_pretrained` loads. `metadata`: what else the header tells.
    """
    tensors, config = one_for_all(factors, scales)
    # What described the strength before it was folded in.
    told = {key: value for key, value in metadata.items() if key not in ("rank", "alpha", "use_rslora", TRAINED_RANK)}
    header = {**told, "format": "pt", HEADER_CONFIG: as_text(config)}
    if client == "all" and is_file_name(output):
        write_tensors(output, tensors, header)
        return
    with replace_atomically(output, own=OWN_NAMES) as folder:
        if client == "all":
            write_tensors(folder / WEIGHTS_NAME, tensors, header)
        else:
            named = {f"base_model.model.{key}": tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}
            write_tensors(folder / PEFT_WEIGHTS_NAME, named, header)
            write_json(folder / CONFIG_NAME, config)
