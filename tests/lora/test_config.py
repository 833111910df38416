"""Run with: pytest tests/lora/test_config.py"""

import json
from pathlib import Path

import pytest

from ace_lora.commands import WrongInput
from ace_lora.lora.config import layer_rank_alpha, peft_config_dict, read_lora_config

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
        ({"r": 100_000}, "'r'"),
        ({"lora_alpha": 1e300}, "'lora_alpha'"),
        ({"rank_pattern": {"to_q": 4}}, "'rank_pattern'"),
        ({"modules_to_save": ["proj_in"]}, "'modules_to_save'"),
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
    assert len(caught.value.problems) == 3  # use_rslora may be missing


@pytest.mark.parametrize("content", ["", "[1]", "{", "3", "[" * 100_000, '{"r": 1' + "0" * 5000])
def test_no_json_object(tmp_path, content):
    (tmp_path / "c.json").write_text(content, encoding="utf-8")
    with pytest.raises(WrongInput):
        read_lora_config(tmp_path / "c.json")


def test_the_saved_peft_config_is_a_configuration_too(tmp_path):
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(peft_config_dict(SMALL)), encoding="utf-8")
    assert read_lora_config(path) == {**SMALL, "target_modules": sorted(SMALL["target_modules"])}


def test_what_is_missing_or_not_used_is_said(tmp_path):
    """As PEFT has it, and as published instructions leave it out."""
    path = write_config(tmp_path, lora_dropout=0.1, use_dora=True)
    notes = []
    assert read_lora_config(path, notes=notes) == SMALL
    assert len(notes) == 2
    assert "'lora_dropout'" in notes[0] and "is 0.1" in notes[0] and "'use_dora'" in notes[1] and "true" in notes[1]
    path.write_text(json.dumps({"r": 8, "lora_alpha": 4, "target_modules": ["to_q"]}), encoding="utf-8")
    notes = []
    assert read_lora_config(path, notes=notes)["use_rslora"] is False
    assert len(notes) == 1 and "has no use_rslora: false" in notes[0]
    notes = []
    assert (
        read_lora_config(write_config(tmp_path, lora_dropout=0.0, use_dora=False), notes=notes) == SMALL and not notes
    )


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('{\n "r": 2,\n "target_modules": ["to_q", ]\n}', 'line 3 ("target_modules": ["to_q", ])', "a comma too many"),
        ('{\n "r": 2,\n}', "line 3", "a comma too many"),
        ('{\n "r": 2\n "lora_alpha": 1\n}', "line 3", "a comma or a closing bracket is missing"),
        ('{\n // rank\n "r": 2\n}', "line 2", "a comment"),
        ("{\n 'r': 2\n}", "line 2", "single quotation marks"),
        ('{\n "r": 2, "use_rslora": True\n}', "line 2", "true, false and null"),
        ('{\n "r": 2,\n "lora_alpha": 1', "line 3", "missing"),
        ("", "it is empty", ""),
    ],
)
def test_mistakes_in_the_text_are_shown_where_they_are(tmp_path, text, line, what):
    (tmp_path / "c.json").write_text(text, encoding="utf-8")
    with pytest.raises(WrongInput, match="is not readable as JSON") as caught:
        read_lora_config(tmp_path / "c.json")
    assert len(caught.value.problems) == 1
    assert line in str(caught.value) and what in str(caught.value)


def test_patterns_are_matched_as_peft_matches_names():
    config = {"r": 8, "lora_alpha": 4, "rank_pattern": {"to_q": 2, "^b.to_k": 3}, "alpha_pattern": {"a.to_q": 9}}
    assert layer_rank_alpha(config, "a.to_q") == (2, 9)
    assert layer_rank_alpha(config, "b.to_q") == (2, 4)
    assert layer_rank_alpha(config, "b.to_k") == (3, 4)
    assert layer_rank_alpha(config, "b.into_q") == (8, 4)
