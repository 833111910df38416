"""The LoRA: its configuration, its layers in the model (through PEFT), and its files.

    y = W x + b + s · B (A x)        A [r, in], B [out, r], s = alpha / sqrt(r) with rsLoRA, else alpha / r

A and B are float32 while they are trained, because an Adam step of 1e-5 is below the spacing of bfloat16 for most of
their values; files hold bfloat16, which is what players of ACE-Step v1 LoRAs expect. File keys are
`<module path>.lora_A.weight`, `<module path>.lora_B.weight` and, for ComfyUI, `<module path>.alpha`.

This module imports torch only inside functions, so that scripts can read a configuration without it.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import WrongInput
from ace_lora.files import read_text, replace_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
COMFYUI_NAME = "pytorch_lora_weights_comfyui.safetensors"
CONFIG_NAME = "adapter_config.json"
STATE_TENSORS = "training_state.safetensors"  # beside them: the adapter in float32 with the moments of the optimizer
ADAPTER = "lora"  # PEFT's name of the adapter inside the model; it appears in no file
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


# --- Configuration ---


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
    problems = _config_problems(content, path, need_targets)
    if problems:
        raise WrongInput(problems)
    return {key: content[key] for key in _REQUIRED if key in content}


def saved_config(lora: LoraFile) -> dict[str, Any] | None:
    """What the file says of its training, keys as `read_lora_config`: in its header, else beside it.

    None where neither says it; raises WrongInput when the file beside it cannot be used.
    """
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(lora.metadata.get("lora_adapter_metadata", "null"))
        # Other programs put other things there, which are no mistake of the user's.
        if isinstance(content, dict) and not _config_problems(content, lora.path, need_targets=False):
            return {key: content[key] for key in _REQUIRED if key in content}
    beside = lora.path.with_name(CONFIG_NAME)
    return read_lora_config(beside, need_targets=False) if beside.is_file() else None


def _config_problems(content: dict[str, Any], path: Path, need_targets: bool) -> list[str]:
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


def matches_target(module_name: str, targets: Iterable[str]) -> bool:
    """Whether PEFT adapts the module: its dotted name is an entry or ends with `.` and an entry."""
    return any(module_name == target or module_name.endswith("." + target) for target in targets)


def target_layers(model: nn.Module, config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Names of the layers that the configuration adapts, each with (in, out); works on the meta device too.

    Raises WrongInput naming every entry of target_modules that matches nothing, or something that is no Linear.
    """
    linear, other = _linear_shapes(model)
    problems = []
    for target in config["target_modules"]:
        if any(matches_target(name, [target]) for name in linear):
            continue
        what = (
            "matches modules that are no Linear layers"
            if any(matches_target(name, [target]) for name in other)
            else "matches no module of the model"
        )
        ends = sorted({name.rsplit(".", 1)[-1] for name in linear if not name.rsplit(".", 1)[-1].isdigit()})
        problems.append(
            f"The entry '{target}' of target_modules in the LoRA configuration {what}. Expected the end of a layer's "
            f"name, for example: {', '.join([*ends, 'to_out.0'])}. Correct the configuration file."
        )
    if problems:
        raise WrongInput(problems)
    return {name: shape for name, shape in linear.items() if matches_target(name, config["target_modules"])}


def _linear_shapes(model: nn.Module) -> tuple[dict[str, tuple[int, int]], set[str]]:
    from torch import nn

    linear, other = {}, set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            linear[name] = (module.in_features, module.out_features)
        elif name:
            other.add(name)
    return linear, other


def adapter_shapes(layers: Mapping[str, tuple[int, int]], rank: int) -> dict[str, tuple[int, int]]:
    """Keys and shapes of a LoRA file for the layers of `target_layers`."""
    shapes = {}
    for name, (inner, outer) in layers.items():
        shapes[f"{name}.lora_A.weight"] = (rank, inner)
        shapes[f"{name}.lora_B.weight"] = (outer, rank)
    return shapes


# --- Layers in the model ---


def inject_adapter(model: nn.Module, config: Mapping[str, Any], name: str = ADAPTER, *, seed: int = 0) -> nn.Module:
    """Freeze `model` and put a float32 LoRA into its target layers; afterwards only the LoRA requires gradients.

    A is uniform in ±1/sqrt(in) from a generator per tensor, so that it depends on nothing but `seed` and the tensor's
    name; B is zero: the model's output is unchanged at first. Returns `model`, changed in place.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from torch import nn

    target_layers(model, config)
    model.requires_grad_(False)
    peft_config = LoraConfig(
        r=config["r"],
        lora_alpha=config["lora_alpha"],
        use_rslora=config["use_rslora"],
        target_modules=list(config["target_modules"]),
        init_lora_weights=False,
    )
    inject_adapter_in_model(peft_config, model, name)
    for key, parameter in adapter_tensors(model).items():
        parameter.data = parameter.data.float()
        if parameter.is_meta:
            continue
        with torch.no_grad():
            if key.endswith(".lora_B.weight"):
                parameter.zero_()
            else:
                generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{key}".encode()))
                initial = torch.empty(parameter.shape)
                nn.init.kaiming_uniform_(initial, a=math.sqrt(5), generator=generator)
                parameter.copy_(initial)
    return model


def adapter_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The LoRA parameters of `model` under the names that the file has, in the model's order."""
    tensors = {}
    for name, parameter in model.named_parameters():
        module, dot, rest = name.rpartition(".lora_")
        if dot and rest.endswith(".weight"):
            tensors[f"{module}.lora_{rest[0]}.weight"] = parameter
    return tensors


def set_adapter_strength(model: nn.Module, strength: float) -> None:
    """Multiply the training's scale by `strength`; 0 gives the base model's output, bit for bit."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.scaling:
                scale = lora_scale(module.r[name], module.lora_alpha[name], module.use_rslora[name])
                module.scaling[name] = scale * strength


# --- Files ---


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


def load_lora(model: nn.Module, path: Path) -> list[str]:
    """Copy a LoRA file into the adapter of `model`; strict. Returns notes for the user.

    Raises WrongInput when keys, count, rank or shapes do not fit.
    """
    import torch

    lora = read_lora_file(path)
    parameters = adapter_tensors(model)
    problems = lora_mismatches(lora, {key: tuple(parameter.shape) for key, parameter in parameters.items()})
    if problems:
        raise WrongInput(problems)
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(lora.tensors[key])
    if lora.alphas:
        return [f"'{path}' holds {len(lora.alphas)} alpha values for ComfyUI; training does not need them."]
    return []


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
