from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ace_lora.base_weights.loading import NAMES_SHOWN, WrongWeights, load_safetensors_strict, read_safetensors_strict

SHAPES = {"weight": [2, 3], "bias": [2]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path as users have them."""
    file = tmp_path / "模型 folder" / "weights.safetensors"
    file.parent.mkdir()
    save_file({"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}, file)
    return file


def test_reads_what_is_expected(path: Path) -> None:
    tensors = read_safetensors_strict(path, SHAPES, dtype=torch.bfloat16)
    assert tensors.keys() == SHAPES.keys()
    assert tensors["weight"].dtype == torch.bfloat16
    assert tensors["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_integer_tensors_keep_their_type(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"steps": torch.tensor(3)}, path)
    assert read_safetensors_strict(path, {"steps": []}, dtype=torch.bfloat16)["steps"].dtype == torch.int64


def test_loads_into_a_module_without_memory_of_its_own(path: Path) -> None:
    with torch.device("meta"):
        module = nn.Linear(3, 2).requires_grad_(False)
    load_safetensors_strict(module, path)
    assert module(torch.ones(3)).tolist() == [4, 13]
    assert not module.weight.requires_grad


def test_every_fault_is_named_at_once(path: Path) -> None:
    with pytest.raises(WrongWeights) as caught:
        read_safetensors_strict(path, {"weight": [3, 2], "scale": [1]})
    message = str(caught.value)
    assert f"'{path}'" in message
    assert "missing: scale;" in message
    assert "unexpected: bias;" in message
    assert "wrong shape: weight is [2, 3], expected [3, 2]." in message


def test_a_foreign_file_does_not_fill_the_screen(path: Path) -> None:
    with pytest.raises(WrongWeights, match=f"and {50 - NAMES_SHOWN} more"):
        read_safetensors_strict(path, {f"layer{number:02}": [1] for number in range(50)})


def test_ignored_tensors_are_neither_checked_nor_read(path: Path) -> None:
    tensors = read_safetensors_strict(path, {"weight": [2, 3]}, ignored=lambda name: name == "bias")
    assert list(tensors) == ["weight"]


def test_damaged_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WrongWeights, match="not a readable safetensors file") as caught:
        read_safetensors_strict(path, SHAPES)
    assert f"'{path}'" in str(caught.value)
    path.write_bytes(b"")
    with pytest.raises(WrongWeights):
        read_safetensors_strict(path, SHAPES)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        read_safetensors_strict(tmp_path / "absent.safetensors", SHAPES)
