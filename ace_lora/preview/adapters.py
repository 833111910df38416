"""LoRAs put into the transformer for a while, in the two ways of ACE-Step and ComfyUI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import WrongInput
from ace_lora.lora.file import LoraFile, describe, dora_problems, read_lora_file
from ace_lora.lora.scales import UnknownStrength, lora_scales

if TYPE_CHECKING:
    import torch
    from torch import nn


def read_lora(path: Path) -> LoraFile:
    """The LoRA at `path`, or in that folder. Raises WrongInput when it cannot be played."""
    lora = read_lora_file(path)
    if problems := dora_problems(lora):
        raise WrongInput(problems)
    return lora


def scales_to_play(lora: LoraFile, stated: float | None) -> tuple[dict[str, float], str]:
    """The scale s of each adapted module (W x + s B A x) and where it comes from; `stated` where the file is silent.

    Raises WrongInput when neither says it.
    """
    try:
        return lora_scales(lora)
    except UnknownStrength as error:
        if stated is None:
            raise WrongInput(
                f"'{lora.path}' does not say with which scale it was trained: no configuration in its header or beside "
                "it, no alpha values. Give it with --lora_scale (0.125 for rank 64, alpha 1 and rsLoRA)."
            ) from error
        return dict.fromkeys(lora.layer_ranks, stated), "--lora_scale"


def without_ssl_heads(lora: LoraFile) -> LoraFile:
    """The LoRA without its tensors for the SSL heads, which only training uses."""
    from dataclasses import replace

    kept = {key: tensor for key, tensor in lora.tensors.items() if not key.startswith("projectors.")}
    return replace(lora, tensors=kept)


def apply_lora(model: nn.Module, lora: LoraFile, strength: float, stated_scale: float | None = None) -> str:
    """Put the LoRA into `model` through PEFT, at any rank per layer; returns a sentence for the user.

    Raises WrongInput when a layer has no place in the model, or does not fit it.
    """
    from peft import LoraConfig, inject_adapter_in_model

    from ace_lora.lora.layers import ADAPTER, adapter_tensors

    scales, source = _checked_scales(model, lora, stated_scale)
    ranks = lora.layer_ranks
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

    from ace_lora.lora.layers import lora_mismatches

    scales, source = scales_to_play(lora, stated_scale)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    foreign = sorted(name for name in scales if name not in layers)
    if foreign:
        raise WrongInput(
            f"'{lora.path}' adapts {len(foreign)} layers that this base model does not have, for example "
            f"'{foreign[0]}'. Expected a LoRA of ACE-Step v1, trained on this base model. Choose another file."
        )
    expected = {}
    for name, rank in lora.layer_ranks.items():
        expected[f"{name}.lora_A.weight"] = (rank, layers[name].in_features)
        expected[f"{name}.lora_B.weight"] = (layers[name].out_features, rank)
    if problems := lora_mismatches(lora, expected):
        raise WrongInput(problems)
    return scales, source


def check_loras(folder: Path, loras: Iterable[tuple[LoraFile, float | None]]) -> None:
    """Raise WrongInput with every LoRA (and its stated scale) that does not fit the transformer in `folder`.

    Nothing is loaded but the configuration.
    """
    import torch

    from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig

    with torch.device("meta"):
        model = ACEStepTransformer(TransformerConfig.from_json(folder / "config.json"))
    problems = []
    for lora, stated_scale in loras:
        try:
            _checked_scales(model, without_ssl_heads(lora), stated_scale)
        except WrongInput as error:
            problems += error.problems
    if problems:
        raise WrongInput(problems)


def _sentence(lora: LoraFile, scales: dict[str, float], source: str, strength: float) -> str:
    shown = ", ".join(sorted({f"{scale:.4g}" for scale in scales.values()})[:3])
    return f"{describe(lora)}; scale {shown} from {source}, strength {strength:g}"


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


def _as_read(lora: LoraFile, scales: dict[str, float]) -> str:
    """What ComfyUI itself would make of this file, where that is another strength: it reads alpha values only."""
    own = {
        name: float(lora.alphas[name]) / len(lora.tensors[f"{name}.lora_A.weight"]) if name in lora.alphas else 1.0
        for name in scales
    }
    ratios = {own[name] / scale for name, scale in scales.items() if scale}
    if not ratios or max(abs(ratio - 1) for ratio in ratios) < 0.01:
        return ""
    return (
        f"\nwarning: given this very file, ComfyUI plays it {max(ratios):.3g} times as strong. It is heard here as it "
        "was trained; give ComfyUI the file of add_alpha_in_lora.py."
    )


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
        yield (
            _sentence(lora, scales, source, strength)
            + ", added to the weights as ComfyUI does"
            + _as_read(lora, scales)
        )
    finally:
        for name, original in originals.items():
            layer = model.get_submodule(name)
            layer.weight.data = original.to(layer.weight.device)
