"""The configuration of a LoRA: rank, alpha, whether rsLoRA, and the layers that it adapts.

    y = W x + b + s · B (A x)        A [r, in], B [out, r], s = alpha / sqrt(r) with rsLoRA, else alpha / r

This module loads no torch, so that scripts can read a configuration without it (`peft_config_dict` does, inside).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ace_lora.commands import WrongInput
from ace_lora.files import UnusableFile, parse_json, read_bytes

CONFIG_NAME = "adapter_config.json"  # of PEFT, beside its adapter_model.safetensors
TRAINING_CONFIG_NAME = "lora_config.json"  # beside a LoRA of ours; not PEFT's name: PEFT cannot load such a folder
PROGRAM = Path(__file__).parents[2]  # holds the folder config
MAX_RANK = 4096  # the widest layers have 2560: a higher rank adds nothing
MAX_ALPHA = 1e6
MAX_CONFIG_BYTES = 1_000_000

_REQUIRED = ("r", "lora_alpha", "target_modules")
_NEEDED = ("r", "lora_alpha", "use_rslora", "target_modules")
_PATTERNS = ("rank_pattern", "alpha_pattern")
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
# What a training can go on without, and what that means.
_WITHOUT = {
    "lora_dropout": "nothing of the LoRA is dropped at random",
    "use_dora": "a plain LoRA is trained",
}


def read_lora_config(path: Path, *, need_targets: bool = True, notes: list[str] | None = None) -> dict[str, Any]:
    """The keys r, lora_alpha, use_rslora and target_modules of a LoRA configuration or a PEFT `adapter_config.json`.

    A relative path that leads to nothing from the current folder is looked for beside the program, where the shipped
    configurations are. `need_targets=False` is for tools that only need the strength: `target_modules` may then be
    missing, and `rank_pattern` and `alpha_pattern` are returned too. A missing `use_rslora` is false, as in PEFT; that,
    and what is not used, is added to `notes`. Raises WrongInput with every problem of the file.
    """
    path = Path(path)
    if not path.exists() and (PROGRAM / path).is_file():
        path = PROGRAM / path
    if not path.exists():
        raise WrongInput(
            f"No LoRA configuration at '{path}'. Expected a JSON file with r, lora_alpha, use_rslora and "
            "target_modules. Choose one with --lora_config_path, for example "
            "config/lora_config_transformer_only.json."
        )
    content = _read_object(path)
    problems = config_problems(content, path, need_targets)
    if problems:
        raise WrongInput(problems)
    if notes is not None:
        if "use_rslora" not in content:
            notes.append(f"'{path}' has no use_rslora: false, as in PEFT, so the scale is lora_alpha / r.")
        notes += [
            f"'{key}' in '{path}' is {json.dumps(content[key])}, which is not used: {meaning}."
            for key, meaning in _WITHOUT.items()
            if need_targets and content.get(key) not in _NEUTRAL
        ]
    return needed_keys(content, patterns=not need_targets)


def _read_object(path: Path) -> dict[str, Any]:
    text = ""
    try:
        text = read_bytes(path, MAX_CONFIG_BYTES).decode("utf-8-sig")
        content = parse_json(text, f"'{path}'")
    except (UnusableFile, UnicodeDecodeError) as error:
        mistake = _json_mistake(text)
        what = (
            f"'{path}' is not readable as JSON: {mistake}." if mistake else str(error).removesuffix(" Expected JSON.")
        )
        raise WrongInput(
            f"{what} Expected a LoRA configuration like config/lora_config_transformer_only.json. Correct the file or "
            "choose another with --lora_config_path."
        ) from error
    if not isinstance(content, dict):
        raise WrongInput(
            f"'{path}' holds {type(content).__name__}, expected a JSON object with r, lora_alpha, use_rslora and "
            "target_modules. Choose another file with --lora_config_path."
        )
    return content


def _json_mistake(text: str) -> str:
    """The line of the first mistake and what is wrong in it, in words; "" where the text is JSON, or no text."""
    try:
        json.loads(text)
        return ""
    except json.JSONDecodeError as error:
        if not text.strip():
            return "it is empty"
        before, rest = text[: error.pos].rstrip(), text[error.pos :].lstrip()
        number = error.lineno
        if "trailing comma" in error.msg or (before.endswith(",") and rest[:1] in ("]", "}")):
            what = "a comma too many in front of a closing bracket"
        elif error.msg.startswith("Expecting ','"):
            what = "a comma or a closing bracket is missing in front of this, or at the end of the line before"
        elif rest.startswith(("//", "/*", "#")):
            what = "a comment, which JSON does not have"
        elif rest.startswith("'"):
            what = "single quotation marks, where JSON has double ones"
        elif rest.startswith(("True", "False", "None")):
            what = "true, false and null are written like this in JSON"
        elif not rest:
            what = "the file ends too early"
        else:
            what = error.msg
        lines = text.splitlines()
        shown = lines[number - 1].strip()[:80] if number <= len(lines) else ""
        return f"line {number} ({shown}): {what}"
    except (ValueError, RecursionError):  # numbers of thousands of digits, brackets without end: said by the reader
        return ""


def needed_keys(content: Mapping[str, Any], *, patterns: bool = False) -> dict[str, Any]:
    """The keys that decide about the adapter, of all that a configuration holds."""
    found = {key: content[key] for key in _NEEDED if key in content}
    found.setdefault("use_rslora", False)
    return found | {key: content[key] for key in _PATTERNS if patterns and content.get(key)}


def config_problems(content: Mapping[str, Any], path: Path, need_targets: bool) -> list[str]:
    """What is wrong in the content of the configuration file `path`; empty when it can be used."""
    problems = []
    fix = f"Correct '{path}' or choose another file with --lora_config_path."

    def wrong(key: str, expected: str) -> None:
        shown = json.dumps(content[key])
        shown = shown if len(shown) <= 100 else shown[:100] + "…"
        problems.append(f"'{key}' in '{path}' is {shown}, expected {expected}. {fix}")

    for key in _REQUIRED:
        if key not in content and (need_targets or key != "target_modules"):
            problems.append(f"'{key}' is missing in '{path}'; expected {', '.join(_NEEDED)}. {fix}")
    if not _is_rank(content.get("r", 1)):
        wrong("r", f"a whole number from 1 to {MAX_RANK} (64 is usual)")
    if not _is_alpha(content.get("lora_alpha", 1)):
        wrong("lora_alpha", f"a number above 0, at most {MAX_ALPHA:,.0f} (1 is usual)")
    if not isinstance(content.get("use_rslora", True), bool):
        wrong("use_rslora", "true or false")
    targets = content.get("target_modules", ["to_q"])
    if need_targets and not (
        isinstance(targets, list) and targets and all(isinstance(target, str) and target for target in targets)
    ):
        wrong("target_modules", 'a list of module names such as ["to_q", "to_k"]')
    if not need_targets:
        for key, is_good in zip(_PATTERNS, (_is_rank, _is_alpha), strict=True):
            pattern = content.get(key) or {}
            if not isinstance(pattern, dict) or not all(map(is_good, pattern.values())):
                wrong(key, "an object of layers and numbers")
    for key, value in content.items():
        known = key in _NEEDED or key in _DESCRIPTIVE or key in _WITHOUT
        if need_targets and not known and value not in _NEUTRAL:
            problems.append(
                f"'{key}' in '{path}' is {json.dumps(value)[:100]}, which this trainer cannot do; it trains plain LoRA "
                f"with {', '.join(_NEEDED)}. Remove the entry."
            )
    return problems


def _is_rank(value: object) -> bool:
    # bool is an int in Python; true is no rank.
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK


def _is_alpha(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= MAX_ALPHA


def lora_scale(r: int, alpha: float, rslora: bool) -> float:
    """The factor s that training multiplies B A with."""
    return alpha / math.sqrt(r) if rslora else alpha / r


def layer_rank_alpha(config: Mapping[str, Any], layer: str) -> tuple[int, float]:
    """Rank and alpha of one layer, after `rank_pattern` and `alpha_pattern` where the configuration has them."""

    def of(pattern: str, default: float) -> Any:
        entries = config.get(pattern) or {}
        # PEFT takes regular expressions; what it writes itself are names, newer with ^ for "from the beginning".
        return next((value for name, value in entries.items() if matches_target(layer, [name.lstrip("^")])), default)

    return of("rank_pattern", config["r"]), of("alpha_pattern", config["lora_alpha"])


def matches_target(module_name: str, targets: Iterable[str]) -> bool:
    """Whether PEFT adapts the module: its dotted name is an entry or ends with `.` and an entry."""
    return any(module_name == target or module_name.endswith("." + target) for target in targets)


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
