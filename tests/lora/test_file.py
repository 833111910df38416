"""Run with: pytest tests/lora/test_file.py"""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ace_lora.commands import WrongInput
from ace_lora.lora.file import read_lora_file, save_lora

CONFIG = {"r": 2, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q", "to_out.0"]}


def test_saved_file(tmp_path):
    tensors = {
        f"blocks.{block}.{layer}.lora_{which}.weight": torch.randn((2, 6) if which == "A" else (6, 2))
        for block in range(2)
        for layer in ("to_q", "to_out.0")
        for which in "AB"
    }
    save_lora(tmp_path / "l.safetensors", tensors, CONFIG, {"steps": "7"})
    written = load_file(tmp_path / "l.safetensors")
    assert set(written) == set(tensors)
    for key, tensor in tensors.items():
        assert written[key].dtype == torch.bfloat16 and torch.equal(written[key], tensor.bfloat16())
    with safe_open(tmp_path / "l.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and metadata["steps"] == "7"
    lora_config = json.loads(metadata["lora_adapter_metadata"])
    assert {key: lora_config[key] for key in ("r", "lora_alpha", "use_rslora")} == {
        "r": 2,
        "lora_alpha": 1,
        "use_rslora": True,
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l.safetensors"]


def test_damaged_and_missing_files(tmp_path):
    (tmp_path / "l.safetensors").write_bytes(b"12345")
    for path in (tmp_path / "l.safetensors", tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(WrongInput):
            read_lora_file(path)
