"""Run with: pytest tests/lora/test_config.py"""

import json
from pathlib import Path

import pytest

from ace_lora.commands import WrongInput
from ace_lora.lora.config import peft_config_dict, read_lora_config

CONFIGS = Path(__file__).parents[2] / "config"
SMALL = {"r": 2, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q", "to_out.0"]}


def write_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**SMALL, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "rank", "targets"),
    [
        ("lora_config.json", 64, 7),
        ("lora_config_transformer_only.json", 64, 4),
        ("lora_config_with_projectors.json", 64, 13),
    ],
)
def test_shipped_configurations(name, rank, targets):
    config = read_lora_config(CONFIGS / name)
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (rank, 1, True)
    assert len(config["target_modules"]) == targets


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"r": 0}, "'r'"),
        ({"r": True}, "'r'"),
        ({"r": 2.5}, "'r'"),
        ({"r": "64"}, "'r'"),
        ({"lora_alpha": 0}, "'lora_alpha'"),
        ({"lora_alpha": "1"}, "'lora_alpha'"),
        ({"lora_alpha": 10**400}, "'lora_alpha'"),
        ({"use_rslora": 1}, "'use_rslora'"),
        ({"target_modules": []}, "'target_modules'"),
        ({"target_modules": "to_q"}, "'target_modules'"),
        ({"use_dora": True}, "'use_dora'"),
        ({"lora_dropout": 0.1}, "'lora_dropout'"),
    ],
)
def test_wrong_configuration_values_are_named(tmp_path, changes, part):
    with pytest.raises(WrongInput) as caught:
        read_lora_config(write_config(tmp_path, **changes))
    assert len(caught.value.problems) == 1
    assert part in caught.value.problems[0]


def test_all_problems_of_a_configuration_at_once(tmp_path):
    (tmp_path / "c.json").write_text('{"r": -1, "lora_alpha": 0}', encoding="utf-8")
    with pytest.raises(WrongInput) as caught:
        read_lora_config(tmp_path / "c.json")
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize("content", ["", "[1]", "{", "3", "[" * 100_000, '{"r": 1' + "0" * 5000])
def test_no_json_object(tmp_path, content):
    (tmp_path / "c.json").write_text(content, encoding="utf-8")
    with pytest.raises(WrongInput):
        read_lora_config(tmp_path / "c.json")


def test_the_saved_peft_config_is_a_configuration_too(tmp_path):
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(peft_config_dict(SMALL)), encoding="utf-8")
    assert read_lora_config(path) == {**SMALL, "target_modules": sorted(SMALL["target_modules"])}
