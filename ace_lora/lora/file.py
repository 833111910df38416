"""LoRA files: one reader and one writer for every tool.

Keys are `<module path>.lora_A.weight`, `<module path>.lora_B.weight` and, for ComfyUI, `<module path>.alpha`; values
are bfloat16, which is what players of ACE-Step v1 LoRAs expect. The header holds the configuration for diffusers.

This module imports torch only inside functions, so that `--help` of the scripts answers at once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import WrongInput
from ace_lora.files import replace_atomically
from ace_lora.lora.config import (
    CONFIG_NAME,
    comfy_alpha,
    config_problems,
    needed_keys,
    peft_config_dict,
    read_lora_config,
)

if TYPE_CHECKING:
    import torch

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
COMFYUI_NAME = "pytorch_lora_weights_comfyui.safetensors"
STATE_TENSORS = "training_state.safetensors"  # beside them: the adapter in float32 with the moments of the optimizer


@dataclass
class LoraFile:
    """What a LoRA file holds: A and B tensors by key, alpha tensors by module path, the header's metadata."""

    path: Path
    tensors: dict[str, torch.Tensor]
    alphas: dict[str, torch.Tensor]
    other_keys: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def ranks(self) -> set[int]:
        """The ranks of its layers; one in every file that training writes, several after pruning by energy."""
        return {tensor.shape[0] for key, tensor in self.tensors.items() if key.endswith(".lora_A.weight")}


def read_lora_file(path: Path) -> LoraFile:
    """Read a safetensors LoRA of any origin. Raises WrongInput when the file is missing, damaged or no LoRA."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise WrongInput(
            f"No LoRA file at '{path}'. Expected a .safetensors file such as "
            f"checkpoints/epoch=0-step=100_lora/{WEIGHTS_NAME}. Check the path."
        )
    lora = LoraFile(path, {}, {})
    try:
        with safe_open(path, framework="pt") as file:
            lora.metadata = dict(file.metadata() or {})
            for key in file.keys():  # noqa: SIM118  safe_open is no dict
                if key.endswith((".lora_A.weight", ".lora_B.weight")):
                    lora.tensors[key] = file.get_tensor(key)
                elif key.endswith(".alpha"):
                    lora.alphas[key.removesuffix(".alpha")] = file.get_tensor(key)
                else:
                    lora.other_keys.append(key)
    except (SafetensorError, OSError) as error:
        raise WrongInput(
            f"'{path}' cannot be read as a safetensors file: {error}. Expected a LoRA that a training saved. "
            "The file is damaged or of another kind; choose another one."
        ) from error
    if path.name == STATE_TENSORS:
        raise WrongInput(
            f"'{path}' is the state of a training, which goes on from it with trainer_new.py --resume. "
            f"The LoRA is the file beside it; choose '{path.with_name(WEIGHTS_NAME)}'."
        )
    if not lora.tensors:
        found = ", ".join(lora.other_keys[:3]) or "nothing"
        raise WrongInput(
            f"'{path}' holds no LoRA: no key ends with '.lora_A.weight' (found: {found}). "
            f"Choose the {WEIGHTS_NAME} of a training."
        )
    return lora


def lora_mismatches(lora: LoraFile, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Why the file does not fit an adapter with the `expected` keys and shapes; empty when it does."""
    missing = [key for key in expected if key not in lora.tensors]
    unexpected = [key for key in lora.tensors if key not in expected] + lora.other_keys
    if missing and len(missing) == len(expected):
        prefix = _common_prefix(lora.tensors, expected)
        if prefix:
            return [
                f"The keys of '{lora.path}' begin with '{prefix}', which files of this trainer do not have (found "
                f"'{next(iter(lora.tensors))}'). Remove the prefix from the keys, or choose another file."
            ]
    problems = []
    fix = "Choose the LoRA configuration (--lora_config_path) that the file was trained with, or another file."
    if missing:
        problems.append(
            f"'{lora.path}' lacks {len(missing)} of the {len(expected)} tensors of this adapter, for example "
            f"'{missing[0]}'. {fix}"
        )
    if unexpected:
        problems.append(
            f"'{lora.path}' has {len(unexpected)} tensors that this adapter does not have, for example "
            f"'{unexpected[0]}'. {fix}"
        )
    ranks = {expected[key][0] for key in expected if key.endswith(".lora_A.weight")}
    if not problems and lora.ranks != ranks:
        problems.append(
            f"'{lora.path}' has rank {', '.join(map(str, sorted(lora.ranks)))}, the LoRA configuration has r = "
            f"{', '.join(map(str, sorted(ranks)))}. {fix}"
        )
    elif not problems:
        for key, tensor in lora.tensors.items():
            if tuple(tensor.shape) != tuple(expected[key]):
                problems.append(
                    f"'{key}' in '{lora.path}' has shape {list(tensor.shape)}, expected {list(expected[key])}. "
                    "The file belongs to another base model; choose another file."
                )
                break
    if not problems:
        for key, tensor in lora.tensors.items():
            if not tensor.isfinite().all():
                problems.append(
                    f"'{key}' in '{lora.path}' holds values that are not finite. The training that wrote it had "
                    "failed; choose an earlier checkpoint."
                )
                break
    return problems


def _common_prefix(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """The text in front of every found key when the rest of it is an expected key."""
    first = next(iter(found))
    for key in expected:
        if first.endswith("." + key):
            prefix = first.removesuffix(key)
            if all(name.startswith(prefix) and name.removeprefix(prefix) in expected for name in found):
                return prefix
    return None


def saved_config(lora: LoraFile) -> tuple[dict[str, Any], str] | None:
    """What the file says of its training, keys as `read_lora_config`, and where: in its header, else beside it.

    None where neither says it; raises WrongInput when the file beside it cannot be used.
    """
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(lora.metadata.get("lora_adapter_metadata", "null"))
        # Other programs put other things there, which are no mistake of the user's.
        if isinstance(content, dict) and not config_problems(content, lora.path, need_targets=False):
            return needed_keys(content), "its header"
    beside = lora.path.with_name(CONFIG_NAME)
    return (read_lora_config(beside, need_targets=False), f"'{CONFIG_NAME}' beside it") if beside.is_file() else None


def save_lora(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    *,
    with_alpha: bool = False,
) -> None:
    """Write `tensors` (named as by `adapter_tensors`) in bfloat16, atomically.

    The header's metadata hold `format`, the adapter's configuration for diffusers (`lora_adapter_metadata`) and
    `metadata`. `with_alpha` adds what ComfyUI needs to play the file at strength 1.
    """
    import torch
    from safetensors.torch import save_file

    content = {key: tensor.detach().to("cpu", torch.bfloat16).contiguous() for key, tensor in tensors.items()}
    if with_alpha:
        content = add_alpha(content, comfy_alpha(config["r"], config["lora_alpha"], config["use_rslora"]), config["r"])
    header = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps(peft_config_dict(config), indent=2, sort_keys=True),
        **(metadata or {}),
    }
    with replace_atomically(path) as temporary:
        save_file(content, temporary, metadata=header)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Put the header's metadata in order, so that equal LoRAs are equal files; safetensors writes it in any order.

    The file is 8 bytes little-endian length, a JSON header of that length, the tensors.
    """
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        if len(ordered) <= length:
            file.seek(8)
            file.write(ordered.ljust(length))


def add_alpha(tensors: Mapping[str, torch.Tensor], alpha: float, rank: int) -> dict[str, torch.Tensor]:
    """`tensors` and, for each `<module path>.lora_A.weight`, a 0-dim `<module path>.alpha` in its dtype.

    `alpha` is that of layers with `rank` rows; layers pruned to fewer get less, so that all play at the same scale.
    """
    import torch

    result = dict(tensors)
    for key, tensor in tensors.items():
        if key.endswith(".lora_A.weight"):
            value = torch.tensor(alpha * len(tensor) / rank, dtype=tensor.dtype)
            result[key.removesuffix(".lora_A.weight") + ".alpha"] = value
    return result
