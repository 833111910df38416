"""How strong a LoRA is: the factor s of each layer (W x + s B A x), wherever it is written."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ace_lora.commands import WrongInput
from ace_lora.files import UnusableFile, parse_json
from ace_lora.lora.config import (
    CONFIG_NAME,
    TRAINING_CONFIG_NAME,
    config_problems,
    layer_rank_alpha,
    lora_scale,
    needed_keys,
    read_lora_config,
)
from ace_lora.lora.file import HEADER_CONFIG, LoraFile

TRAINED_RANK = "trained_rank"  # in the header of a smaller LoRA whose scale is not known: the rank that it depends on


def saved_config(lora: LoraFile) -> tuple[dict[str, Any], str] | None:
    """What the file says of its training, keys as `read_lora_config`, and where: in its header, else beside it.

    None where neither says it, or says it of other ranks; raises WrongInput when the file beside it cannot be used.
    """
    with contextlib.suppress(UnusableFile):
        content = parse_json(lora.metadata.get(HEADER_CONFIG, "null"), "the header")
        # Other programs put other things there, which are no mistake of the user's.
        if isinstance(content, dict):
            if "r" not in content:  # a pipeline of diffusers puts the model's name in front
                content = {key.removeprefix("transformer."): value for key, value in content.items()}
            if not config_problems(content, lora.path, need_targets=False):
                config = needed_keys(content, patterns=True)
                if not rank_misfits(lora, config):
                    return config, "its header"
    for name in (CONFIG_NAME, TRAINING_CONFIG_NAME):
        beside = lora.path.with_name(name)
        if beside.exists():
            notes: list[str] = []
            config = read_lora_config(beside, need_targets=False, notes=notes)
            if not rank_misfits(lora, config):
                return config, " ".join((f"'{name}' beside it", *(f"({note})" for note in notes)))
    return None


def rank_misfits(lora: LoraFile, config: Mapping[str, Any]) -> bool:
    """Whether a layer has another rank than the configuration gives it."""
    return any(layer_rank_alpha(config, layer)[0] != rank for layer, rank in lora.layer_ranks.items())


class UnknownStrength(WrongInput):
    """A LoRA that can be read and does not say its scale."""


def lora_scales(lora: LoraFile, stated: Path | None = None) -> tuple[dict[str, float], str]:
    """The factor s of each layer (W x + s B A x), and where it is written, in words.

    In this order: the configuration in the header, alpha tensors for all layers, a configuration beside the file,
    `stated`, the configuration that the user names. Raises UnknownStrength when none of them says it, WrongInput when
    `stated` says otherwise than the file.
    """
    saved = saved_config(lora)
    ranks = lora.layer_ranks
    by_alpha = {layer: float(lora.alphas[layer]) / rank for layer, rank in ranks.items() if layer in lora.alphas}
    has_alphas = by_alpha.keys() == ranks.keys()
    if saved and (saved[1] == "its header" or not has_alphas):
        config, source = saved
        scales = {layer: lora_scale(*layer_rank_alpha(config, layer), config["use_rslora"]) for layer in ranks}
        # Two descriptions of one thing, never to be multiplied. bfloat16 rounds an alpha by up to 0.4 per cent.
        other = [layer for layer, scale in by_alpha.items() if not math.isclose(scale, scales[layer], rel_tol=0.01)]
        if other:
            source += f" (its alpha values say otherwise, for '{other[0]}' {by_alpha[other[0]]:.4g})"
    elif has_alphas:
        scales, source = by_alpha, "its alpha values"
    elif stated is None:
        raise UnknownStrength(
            f"'{lora.path}' has no configuration in its header that fits, no alpha in every layer and no {CONFIG_NAME} "
            "beside it, so the strength of the training is not known. Give the LoRA configuration of the training with "
            "--lora_config_path."
        )
    else:
        notes: list[str] = []
        config = read_lora_config(stated, need_targets=False, notes=notes)
        return _stated_scales(lora, config, stated), " ".join((f"'{stated}'", *(f"({note})" for note in notes)))
    if stated is not None:
        _compare(lora, saved, scales, read_lora_config(stated, need_targets=False), stated)
    return scales, source


def _stated_scales(lora: LoraFile, config: Mapping[str, Any], stated: Path) -> dict[str, float]:
    """The scale by a configuration that the user names, for a file that says nothing itself."""
    trained = lora.metadata.get(TRAINED_RANK, "")
    if trained.isdecimal():
        if int(trained) != config["r"]:
            raise WrongInput(
                f"'{lora.path}' was made smaller from rank {int(trained)}, and its strength is that of its training; "
                f"'{stated}' has r = {config['r']}. Give the LoRA configuration of the training, which has r = "
                f"{int(trained)}, with --lora_config_path."
            )
        return dict.fromkeys(lora.layer_ranks, lora_scale(config["r"], config["lora_alpha"], config["use_rslora"]))
    if rank_misfits(lora, config):
        raise WrongInput(
            f"'{lora.path}' has rank {', '.join(map(str, sorted(lora.ranks)))}, the LoRA configuration has r = "
            f"{config['r']}. Give the configuration of that training with --lora_config_path."
        )
    return {layer: lora_scale(*layer_rank_alpha(config, layer), config["use_rslora"]) for layer in lora.layer_ranks}


def _compare(
    lora: LoraFile,
    saved: tuple[dict[str, Any], str] | None,
    scales: Mapping[str, float],
    config: Mapping[str, Any],
    stated: Path,
) -> None:
    """Raise WrongInput when the configuration that the user names says otherwise than the file."""
    for key in ("r", "lora_alpha", "use_rslora"):
        if saved and config[key] != saved[0][key]:
            raise WrongInput(
                f"'{stated}' has {key} = {config[key]}, but the training of '{lora.path}' was saved with {key} = "
                f"{saved[0][key]}. Leave --lora_config_path out to use the saved one."
            )
    for layer, scale in scales.items():
        other = lora_scale(*layer_rank_alpha(config, layer), config["use_rslora"])
        if not saved and not math.isclose(scale, other, rel_tol=0.01):
            raise WrongInput(
                f"'{stated}' gives '{layer}' the scale {other:.4g}, the alpha values of '{lora.path}' say {scale:.4g}. "
                "Leave --lora_config_path out to use those of the file."
            )
