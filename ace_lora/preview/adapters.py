"""LoRAs put into the transformer for a while, in the two ways of ACE-Step and ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import WrongInput
from ace_lora.lora.config import CONFIG_NAME, lora_scale
from ace_lora.lora.file import WEIGHTS_NAME, LoraFile, lora_mismatches, read_lora_file, saved_config

if TYPE_CHECKING:
    import torch
    from torch import nn


def read_lora(path: Path) -> LoraFile:
    """The LoRA at `path`, or in that folder of a training."""
    return read_lora_file(path / WEIGHTS_NAME if path.is_dir() else path)


def lora_scales(lora: LoraFile, stated: float | None) -> tuple[dict[str, float], str]:
    """The scale s of each adapted module (W x + s B A x) and where it comes from, for the user.

    In this order: alpha tensors in the file, the configuration in its header, `adapter_config.json` beside it,
    `stated`. Raises WrongInput when none of them says it.
    """
    ranks = {
        key.removesuffix(".lora_A.weight"): tensor.shape[0]
        for key, tensor in lora.tensors.items()
        if key.endswith(".lora_A.weight")
    }
    if ranks.keys() <= lora.alphas.keys():
        return {name: float(lora.alphas[name]) / rank for name, rank in ranks.items()}, "the alpha values in the file"
    if saved := saved_config(lora):
        config, source = saved
        return dict.fromkeys(ranks, lora_scale(config["r"], config["lora_alpha"], config["use_rslora"])), source
    if stated is not None:
        return dict.fromkeys(ranks, stated), "--lora_scale"
    raise WrongInput(
        f"'{lora.path}' does not say with which scale it was trained: it has no alpha values, no configuration in its "
        f"header and no {CONFIG_NAME} beside it. Give it with --lora_scale (0.125 for rank 64, alpha 1 and rsLoRA)."
    )


def without_ssl_heads(lora: LoraFile) -> LoraFile:
    """The LoRA without its tensors for the SSL heads, which only training uses."""
    from dataclasses import replace

    kept = {key: tensor for key, tensor in lora.tensors.items() if not key.startswith("projectors.")}
    return replace(lora, tensors=kept)


def apply_lora(model: nn.Module, lora: LoraFile, strength: float, stated_scale: float | None = None) -> str:
    """Put the LoRA into `model` through PEFT, at any rank per layer; returns a sentence for the user.

    Raises WrongInput when a tensor has no place in the model or no partner.
    """
    from peft import LoraConfig, inject_adapter_in_model

    from ace_lora.lora.layers import ADAPTER, adapter_tensors

    scales, source = _checked_scales(model, lora, stated_scale)
    ranks = {name: lora.tensors[f"{name}.lora_A.weight"].shape[0] for name in scales}
    inject_adapter_in_model(
        LoraConfig(target_modules=list(ranks), rank_pattern=ranks, r=1, init_lora_weights=False), model, ADAPTER
    )
    for key, parameter in adapter_tensors(model).items():
        parameter.data = lora.tensors[key].float().to(parameter.device)
        parameter.requires_grad_(False)
    for name, scale in scales.items():
        layer: Any = model.get_submodule(name)
        layer.scaling[ADAPTER] = scale * strength
    return _sentence(lora, scales, source, strength)


def _checked_scales(model: nn.Module, lora: LoraFile, stated_scale: float | None) -> tuple[dict[str, float], str]:
    """Scales by layer of `model` and their source. Raises WrongInput when the file does not fit."""
    import torch

    scales, source = lora_scales(lora, stated_scale)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    foreign = sorted(name for name in scales if name not in layers)
    if foreign:
        raise WrongInput(
            f"'{lora.path}' adapts {len(foreign)} layers that this base model does not have, for example "
            f"'{foreign[0]}'. Expected a LoRA of ACE-Step v1, trained on this base model. Choose another file."
        )
    expected = {}
    for name in scales:
        rank = lora.tensors[f"{name}.lora_A.weight"].shape[0]
        expected[f"{name}.lora_A.weight"] = (rank, layers[name].in_features)
        expected[f"{name}.lora_B.weight"] = (layers[name].out_features, rank)
    # Ranks may differ from layer to layer, which training's own check does not expect; compare them here.
    problems = [
        f"'{key}' in '{lora.path}' has shape {list(tensor.shape)}, expected {list(expected[key])}. "
        "The file belongs to another base model; choose another file."
        for key, tensor in lora.tensors.items()
        if key in expected and tuple(tensor.shape) != expected[key]
    ]
    if not problems and len(lora.ranks) == 1:
        problems = lora_mismatches(lora, expected)
    if not problems and lora.tensors.keys() != expected.keys():
        odd = sorted(lora.tensors.keys() ^ expected.keys())
        problems = [f"'{lora.path}' lacks a partner of '{odd[0]}'. The file is damaged; choose another file."]
    if problems:
        raise WrongInput(problems[0])
    return scales, source


def _sentence(lora: LoraFile, scales: dict[str, float], source: str, strength: float) -> str:
    shown = ", ".join(sorted({f"{scale:.4g}" for scale in scales.values()})[:3])
    return f"LoRA '{lora.path}': {len(scales)} layers, scale {shown} from {source}, strength {strength:g}"


@contextmanager
def adapted(
    model: nn.Module, lora: LoraFile | None, strength: float, stated_scale: float | None = None, *, merge: bool = False
) -> Iterator[str]:
    """`model` with the LoRA (None: the base model) inside the block, exactly the base model again behind it.

    Yields a sentence for the user. `merge` adds the LoRA to the weights and rounds the sum to their dtype, as ComfyUI
    does, instead of computing it beside them. Raises WrongInput as `apply_lora`.
    """
    if lora is None:
        yield "the base model"
        return
    lora = without_ssl_heads(lora)
    if merge:
        with _merged(model, lora, strength, stated_scale) as sentence:
            yield sentence
        return
    try:
        yield apply_lora(model, lora, strength, stated_scale)
    finally:
        _remove_adapters(model)


def _remove_adapters(model: nn.Module) -> None:
    """Put the layers that PEFT wrapped back into their places."""
    from peft.tuners.lora import LoraLayer

    wrapped = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name in wrapped:
        parent, _, child = name.rpartition(".")
        layer: Any = model.get_submodule(name)
        setattr(model.get_submodule(parent), child, layer.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config


@contextmanager
def _merged(model: nn.Module, lora: LoraFile, strength: float, stated_scale: float | None) -> Iterator[str]:
    import torch

    scales, source = _checked_scales(model, lora, stated_scale)
    originals: dict[str, torch.Tensor] = {}
    try:
        for name, scale in scales.items():
            layer: Any = model.get_submodule(name)
            weight = layer.weight
            # Beside the model: on a card there may be no room for both.
            originals[name] = weight.data.cpu()
            a, b = (lora.tensors[f"{name}.lora_{side}.weight"].to(weight.device).float() for side in "AB")
            with torch.no_grad():
                weight.data = (weight.data.float() + strength * scale * (b @ a)).to(weight.dtype)
        yield _sentence(lora, scales, source, strength) + ", added to the weights as ComfyUI does"
    finally:
        for name, original in originals.items():
            layer = model.get_submodule(name)
            layer.weight.data = original.to(layer.weight.device)
