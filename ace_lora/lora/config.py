"""The configuration of a LoRA: rank, alpha, whether rsLoRA, and the layers that it adapts.

    y = W x + b + s · B (A x)        A [r, in], B [out, r], s = alpha / sqrt(r) with rsLoRA, else alpha / r

This module loads no torch, so that scripts can read a configuration without it (`peft_config_dict` does, inside).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ace_lora.commands import WrongInput
from ace_lora.files import read_text

CONFIG_NAME = "adapter_config.json"
PROGRAM = Path(__file__).parents[2]  # holds the folder config

_REQUIRED = ("r", "lora_alpha", "use_rslora", "target_modules")
# What PEFT writes into adapter_config.json beside the four above without changing the arithmetic of the adapter.
_DESCRIPTIVE = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
    "corda_config",
    "eva_config",
    "runtime_config",
    "ensure_weight_tying",
    "loftq_config",
}
_NEUTRAL: tuple[object, ...] = (None, False, 0, 0.0, "none", [], {}, "")


def read_lora_config(path: Path, *, need_targets: bool = True) -> dict[str, Any]:
    """The keys r, lora_alpha, use_rslora and target_modules of a LoRA configuration or a PEFT `adapter_config.json`.

    A relative path that leads to nothing from the current folder is looked for beside the program, where the shipped
    configurations are. `need_targets=False` is for tools that only need the strength; `target_modules` may then be
    missing. Raises WrongInput with every problem of the file.
    """
    path = Path(path)
    if not path.exists() and (PROGRAM / path).is_file():
        path = PROGRAM / path
    if not path.is_file():
        raise WrongInput(
            f"No LoRA configuration at '{path}'. Expected a JSON file with r, lora_alpha, use_rslora and "
            "target_modules. Choose one with --lora_config_path, for example "
            "config/lora_config_transformer_only.json."
        )
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and brackets without end
        raise WrongInput(
            f"'{path}' is not readable as JSON: {error}. Expected a LoRA configuration like "
            "config/lora_config_transformer_only.json. Correct the file or choose another with --lora_config_path."
        ) from error
    if not isinstance(content, dict):
        raise WrongInput(
            f"'{path}' holds {type(content).__name__}, expected a JSON object with r, lora_alpha, use_rslora and "
            "target_modules. Choose another file with --lora_config_path."
        )
    problems = config_problems(content, path, need_targets)
    if problems:
        raise WrongInput(problems)
    return needed_keys(content)


def needed_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that decide about the adapter, of all that a configuration holds."""
    return {key: content[key] for key in _REQUIRED if key in content}


def config_problems(content: Mapping[str, Any], path: Path, need_targets: bool) -> list[str]:
    """What is wrong in the content of the configuration file `path`; empty when it can be used."""
    problems = []
    fix = f"Correct '{path}' or choose another file with --lora_config_path."

    def wrong(key: str, expected: str) -> None:
        problems.append(f"'{key}' in '{path}' is {json.dumps(content[key])}, expected {expected}. {fix}")

    for key in _REQUIRED:
        if key not in content and (need_targets or key != "target_modules"):
            problems.append(f"'{key}' is missing in '{path}'; expected {', '.join(_REQUIRED)}. {fix}")
    # bool is an int in Python; true is no rank.
    rank = content.get("r", 1)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        wrong("r", "a whole number of 1 or more (64 is usual)")
    alpha = content.get("lora_alpha", 1)
    # Compared, not `isfinite`: that fails for whole numbers that are no float.
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha <= sys.float_info.max:
        wrong("lora_alpha", "a number above 0 (1 is usual)")
    if not isinstance(content.get("use_rslora", True), bool):
        wrong("use_rslora", "true or false")
    targets = content.get("target_modules", ["to_q"])
    if need_targets and not (
        isinstance(targets, list) and targets and all(isinstance(target, str) and target for target in targets)
    ):
        wrong("target_modules", 'a list of module names such as ["to_q", "to_k"]')
    for key, value in content.items():
        if key not in _REQUIRED and key not in _DESCRIPTIVE and need_targets and value not in _NEUTRAL:
            problems.append(
                f"'{key}' in '{path}' is {json.dumps(value)}, which this trainer cannot do; it trains plain LoRA with "
                f"{', '.join(_REQUIRED)}. Remove the entry."
            )
    return problems


def lora_scale(r: int, alpha: float, rslora: bool) -> float:
    """The factor s that training multiplies B A with."""
    return alpha / math.sqrt(r) if rslora else alpha / r


def comfy_alpha(r: int, alpha: float, rslora: bool) -> float:
    """The alpha with which a player that computes alpha / r arrives at the scale of the training."""
    return r * lora_scale(r, alpha, rslora)


def peft_config_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of PEFT's `adapter_config.json` for this adapter, in JSON types."""
    from peft import LoraConfig

    values = LoraConfig(
        r=config["r"],
        lora_alpha=config["lora_alpha"],
        use_rslora=config["use_rslora"],
        target_modules=sorted(config["target_modules"]),
    ).to_dict()
    values["target_modules"] = sorted(config["target_modules"])
    return {key: (value.value if hasattr(value, "value") else value) for key, value in values.items()}
