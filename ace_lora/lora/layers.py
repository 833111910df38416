"""The LoRA's layers in the model, through PEFT: which they are, how they start, and a file copied into them.

A and B are float32 while they are trained, because an Adam step of 1e-5 is below the spacing of bfloat16 for most of
their values.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ace_lora.commands import WrongInput
from ace_lora.lora.config import lora_scale, matches_target
from ace_lora.lora.factors import best_factors
from ace_lora.lora.file import LoraFile, read_lora_file
from ace_lora.lora.scales import TRAINED_RANK, UnknownStrength, lora_scales

ADAPTER = "lora"  # PEFT's name of the adapter inside the model; it appears in no file


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


# --- A file as the start of a training ---


def lora_mismatches(lora: LoraFile, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Why a training cannot start from the file, `expected` being keys and shapes of its adapter; empty when it can.

    Another rank, scale or choice of layers is no hindrance (`load_lora`); other widths are, and no layer in common.
    """
    common = [key for key in lora.tensors if key in expected]
    if not common:
        return [
            f"'{lora.path}' has no layer in common with this training (found '{next(iter(lora.layer_ranks))}', wanted "
            f"'{next(iter(expected)).rsplit('.lora_', 1)[0]}'). Expected a LoRA of ACE-Step v1 with layers of the LoRA "
            "configuration. Choose another file, or another configuration with --lora_config_path."
        ]
    for key in common:
        # The rank is the first of A's two numbers and the last of B's.
        kept, name = (1, "inputs") if key.endswith(".lora_A.weight") else (0, "outputs")
        if lora.tensors[key].shape[kept] != expected[key][kept]:
            return [
                f"'{key}' in '{lora.path}' has shape {list(lora.tensors[key].shape)}, expected {expected[key][kept]} "
                f"{name}. The file belongs to another base model; choose another file."
            ]
    return []


def load_lora(model: nn.Module, path: Path) -> list[str]:
    """Start the adapter of `model` from a LoRA file of any rank, scale and layers. Returns what was done, in words.

    The product s · B A of each layer is what it was in the file: B is rescaled to the adapter's scale, a lower rank is
    grown with zeros in B (its new rows of A stay random), a higher one becomes the nearest of the adapter's rank.
    Layers that the file lacks start from zero. Raises WrongInput as `lora_mismatches`.
    """
    lora = read_lora_file(path)
    parameters = adapter_tensors(model)
    problems = lora_mismatches(lora, {key: tuple(parameter.shape) for key, parameter in parameters.items()})
    if problems:
        raise WrongInput(problems)
    scales, notes = _scales_to_start_from(lora, model)
    shares, changes = [], Counter[str]()
    layers = [key.removesuffix(".lora_A.weight") for key in parameters if key.endswith(".lora_A.weight")]
    with torch.no_grad():
        for layer, (a, b) in lora.factors.items():
            if layer not in layers:
                continue
            to_a, to_b = (parameters[f"{layer}.lora_{which}.weight"] for which in "AB")
            factor = scales[layer] / _adapter_scale(model, layer)
            if not math.isclose(factor, 1, rel_tol=1e-6):
                changes[f"scaled by {factor:.4g}, so that the strength stays"] += 1
                b = b.float() * factor
            if len(a) > len(to_a):
                a, b, kept = best_factors(a.float(), b.float(), len(to_a))
                shares.append(kept)
            elif len(a) < len(to_a):
                changes[f"grown from rank {len(a)} to {len(to_a)}"] += 1
            to_a[: len(a)] = a
            to_b.zero_()
            to_b[:, : b.shape[1]] = b
    notes += [f"{count} layers {what}" for what, count in changes.items()]
    if shares:
        notes.append(
            f"{len(shares)} layers made smaller to the rank of this training; kept {100 * min(shares):.2f} % of the "
            f"norm at the least, {100 * sum(shares) / len(shares):.2f} % on average"
        )
    for names, what in (
        ([layer for layer in layers if layer not in scales], "are not in the file and start from zero"),
        ([layer for layer in scales if layer not in layers], "of the file are not in this training and are left out"),
        (lora.other_keys, "belong to no plain LoRA (such as DoRA's magnitudes) and are left out"),
    ):
        if names:
            kind = "tensors" if names is lora.other_keys else "layers"
            notes.append(f"{len(names)} {kind} {what}, for example '{names[0]}'")
    return [f"'{path}': {note}." for note in notes]


def _scales_to_start_from(lora: LoraFile, model: nn.Module) -> tuple[dict[str, float], list[str]]:
    """The scale of each layer of the file; where it says none, that of the training's alpha and rsLoRA at its rank."""
    try:
        return lora_scales(lora)[0], []
    except UnknownStrength:
        parameters = adapter_tensors(model)
        module: Any = model.get_submodule(next(iter(parameters)).rsplit(".lora_", 1)[0])
        name = next(iter(module.scaling))
        alpha, rslora = module.lora_alpha[name], module.use_rslora[name]
        trained = lora.metadata.get(TRAINED_RANK, "")
        scales = {
            layer: lora_scale(int(trained) if trained.isdecimal() else rank, alpha, rslora)
            for layer, rank in lora.layer_ranks.items()
        }
        return scales, [f"it does not say its alpha; taken as in this training (alpha {alpha}, rsLoRA {rslora})"]


def _adapter_scale(model: nn.Module, layer: str) -> float:
    """The factor that PEFT multiplies the layer's product with."""
    module: Any = model.get_submodule(layer)
    return next(iter(module.scaling.values()))
