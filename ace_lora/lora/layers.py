"""The LoRA's layers in the model, through PEFT: which they are, how they start, and a file copied into them.

A and B are float32 while they are trained, because an Adam step of 1e-5 is below the spacing of bfloat16 for most of
their values.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ace_lora.commands import WrongInput
from ace_lora.lora.config import lora_scale
from ace_lora.lora.file import lora_mismatches, read_lora_file

ADAPTER = "lora"  # PEFT's name of the adapter inside the model; it appears in no file


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


def inject_adapter(model: nn.Module, config: Mapping[str, Any], name: str = ADAPTER, *, seed: int = 0) -> nn.Module:
    """Freeze `model` and put a float32 LoRA into its target layers; afterwards only the LoRA requires gradients.

    A is uniform in ±1/sqrt(in) from a generator per tensor, so that it depends on nothing but `seed` and the tensor's
    name; B is zero: the model's output is unchanged at first. Returns `model`, changed in place.
    """
    from peft import LoraConfig, inject_adapter_in_model

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


def load_lora(model: nn.Module, path: Path) -> list[str]:
    """Copy a LoRA file into the adapter of `model`; strict. Returns notes for the user.

    Raises WrongInput when keys, count, rank or shapes do not fit.
    """
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
