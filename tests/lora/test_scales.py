"""Run with: pytest tests/lora/test_scales.py"""

import json

import pytest
import torch
from safetensors.torch import save_file

from ace_lora.commands import WrongInput
from ace_lora.lora.config import CONFIG_NAME, TRAINING_CONFIG_NAME, lora_scale
from ace_lora.lora.file import read_lora_file, save_lora
from ace_lora.lora.scales import TRAINED_RANK, UnknownStrength, lora_scales

CONFIG = {"r": 2, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q", "to_out.0"]}
LAYERS = [f"transformer_blocks.{block}.attn.{layer}" for block in range(2) for layer in ("to_out.0", "to_q")]


def make(rank=2):
    shapes = {"A": (rank, 6), "B": (6, rank)}
    return {f"{layer}.lora_{which}.weight": torch.ones(shape) for layer in LAYERS for which, shape in shapes.items()}


def test_where_the_scale_is_written(tmp_path):
    """In the header, else in alpha values, else beside the file, else in what the user names."""
    path = tmp_path / "x.safetensors"
    stated = tmp_path / "stated.json"
    save_lora(path, make(), {**CONFIG, "lora_alpha": 2}, with_alpha=True)
    scales, source = lora_scales(read_lora_file(path))
    assert set(scales) == set(LAYERS) and set(scales.values()) == {lora_scale(2, 2, True)} and source == "its header"
    save_file({**make(), **{f"{layer}.alpha": torch.tensor(4.0) for layer in LAYERS}}, path)
    assert lora_scales(read_lora_file(path)) == (dict.fromkeys(scales, 2.0), "its alpha values")
    save_file(make(), path)
    with pytest.raises(UnknownStrength, match="so the strength of the training is not known"):
        lora_scales(read_lora_file(path))
    stated.write_text(json.dumps({"r": 2, "lora_alpha": 6}), encoding="utf-8")
    scales, source = lora_scales(read_lora_file(path), stated)
    assert set(scales.values()) == {3.0} and source.startswith(f"'{stated}' (")
    assert "has no use_rslora: false, as in PEFT" in source
    for name in (TRAINING_CONFIG_NAME, CONFIG_NAME):
        (tmp_path / name).write_text(json.dumps({**CONFIG, "use_rslora": False}), encoding="utf-8")
        assert lora_scales(read_lora_file(path)) == (dict.fromkeys(scales, 0.5), f"'{name}' beside it")
    with pytest.raises(WrongInput, match="Leave --lora_config_path out"):
        lora_scales(read_lora_file(path), stated)


def header_of(config):
    return {"lora_adapter_metadata": json.dumps(config)}


def test_patterns_and_prefixes_of_a_header(tmp_path):
    path = tmp_path / "l.safetensors"
    tensors = make() | {key: t for key, t in make(4).items() if LAYERS[0] in key}
    patterns = {"rank_pattern": {LAYERS[0]: 4}, "alpha_pattern": {LAYERS[0]: 6}}
    save_file(tensors, path, metadata=header_of({"r": 2, "lora_alpha": 1, "use_rslora": False, **patterns}))
    expected = {**dict.fromkeys(LAYERS, 0.5), LAYERS[0]: 1.5}
    assert lora_scales(read_lora_file(path)) == (expected, "its header")
    save_file(make(), path, metadata=header_of({"transformer.r": 2, "transformer.lora_alpha": 3}))
    assert lora_scales(read_lora_file(path)) == (dict.fromkeys(LAYERS, 1.5), "its header")


def test_a_header_of_other_ranks_is_not_believed(tmp_path):
    """What a tool leaves that changes the rank and copies the header."""
    path = tmp_path / "l.safetensors"
    save_file(make(), path, metadata=header_of({"r": 64, "lora_alpha": 1, "use_rslora": True}))
    with pytest.raises(UnknownStrength):
        lora_scales(read_lora_file(path))
    alphas = {f"{layer}.alpha": torch.tensor(1.0) for layer in LAYERS}
    save_file(make() | alphas, path, metadata=header_of({"r": 64, "lora_alpha": 1, "use_rslora": True}))
    assert lora_scales(read_lora_file(path))[1] == "its alpha values"


def test_alpha_values_that_contradict_the_header_are_said(tmp_path):
    alphas = {f"{layer}.alpha": torch.tensor(2.0) for layer in LAYERS}
    save_file(make() | alphas, tmp_path / "l.safetensors", metadata=header_of({"r": 2, "lora_alpha": 1}))
    scales, source = lora_scales(read_lora_file(tmp_path / "l.safetensors"))
    assert set(scales.values()) == {0.5} and "its alpha values say otherwise" in source and LAYERS[0] in source


def test_a_smaller_lora_keeps_the_strength_of_its_training(tmp_path):
    """Rank 64 pruned to 2: with rsLoRA the scale is that of rank 64."""
    save_file(make(), tmp_path / "l.safetensors", metadata={TRAINED_RANK: "64"})
    lora = read_lora_file(tmp_path / "l.safetensors")
    for rank in (2, 64):
        (tmp_path / f"{rank}.json").write_text(json.dumps({**CONFIG, "r": rank}), encoding="utf-8")
    assert lora_scales(lora, tmp_path / "64.json")[0] == dict.fromkeys(LAYERS, 0.125)
    with pytest.raises(WrongInput, match="which has r = 64, with --lora_config_path"):
        lora_scales(lora, tmp_path / "2.json")
