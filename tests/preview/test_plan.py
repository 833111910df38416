"""Plans of several songs and columns: what is taken from them, and every problem at once."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from ace_lora.commands import WrongInput
from ace_lora.preview.plan import SongText, file_name, read_plan
from ace_lora.records.format import Record
from ace_lora.records.record import write_record


def write(folder, plan):
    path = folder / "plan.json"
    path.write_text(plan if isinstance(plan, str) else json.dumps(plan, ensure_ascii=False), encoding="utf-8")
    return path


def problems_of(path):
    with pytest.raises(WrongInput) as caught:
        read_plan(path)
    return caught.value.problems


def test_songs_come_from_texts_files_and_records_and_paths_start_at_the_plan(tmp_path):
    folder = tmp_path / "我的 计划"
    folder.mkdir()
    (folder / "s_prompt.txt").write_text("rock, drums", encoding="utf-8")
    (folder / "s_lyrics.txt").write_text("[verse]\nla", encoding="utf-8")
    record = Record("r", torch.zeros(8, 16, 4), torch.tensor([5, 1]), torch.tensor([0]), metadata={"prompt": "folk"})
    write_record(folder / "r.safetensors", record)
    save_file({"a.lora_A.weight": torch.zeros(1, 2), "a.lora_B.weight": torch.zeros(2, 1)}, folder / "l.safetensors")
    plan = read_plan(
        write(
            folder,
            {
                "songs": [
                    {"prompt": "pop", "lyrics": "la", "language": "zh"},
                    {"name": "files", "prompt_file": "s_prompt.txt", "lyrics_file": "s_lyrics.txt", "seconds": 60},
                    {"name": "record", "record": "r.safetensors", "seed": 3},
                ],
                "columns": [{}, {"name": "x", "lora": "l.safetensors", "strength": 0.5, "lora_scale": 0.125}],
                "settings": {"steps": 8, "sampler": "heun"},
                "format": "mp3",
            },
        )
    )
    assert [song.name for song in plan.songs] == ["song 1", "files", "record"]
    assert plan.songs[0].text == SongText("pop", "la", "zh") and plan.songs[0].seconds == 30
    assert plan.songs[1].text == SongText("rock, drums", "[verse]\nla") and plan.songs[1].seconds == 60
    assert plan.songs[2].text.text_ids == (5, 1) and plan.songs[2].text.lyric_ids == (0,) and plan.songs[2].seed == 3
    assert [(column.name, column.strength, column.lora_scale) for column in plan.columns] == [
        ("base", 1.0, None),
        ("x", 0.5, 0.125),
    ]
    assert plan.columns[0].lora is None and plan.columns[1].lora.path == folder / "l.safetensors"
    assert (plan.way, plan.format, plan.settings) == ("ace-step", "mp3", {"steps": 8, "sampler": "heun"})


def test_names_become_parts_of_file_names():
    assert file_name("夜 / rock: no. 1?") == "夜_rock_no._1"
    assert file_name("..") == file_name("\x00\u202e") == "song"
    assert len(file_name("歌" * 100).encode()) <= 80


def test_every_problem_is_reported_at_once(tmp_path):
    plan = {
        "as": "loud",
        "format": "ogg",
        "extra": 1,
        "training": "nowhere",
        "settings": {"steps": 0, "omega": True, "speed": 2, "tonemap": 1},
        "songs": [
            {"name": "a", "prompt": 3, "seconds": "long"},
            {"name": "a", "prompt": "x", "seconds": 1e9, "seed": 1.5},
            {"record": "none.safetensors", "prompt": "x"},
            {"prompt": "x", "prompt_file": "none.txt", "language": "xx"},
            {},
            [],
        ],
        "columns": [{"lora": "none.safetensors", "strength": "much"}, {"name": "b"}, {"name": "b"}],
    }
    problems = problems_of(write(tmp_path, plan))
    for part in (
        "\"as\" of the plan is 'loud'",
        "\"format\" of the plan is 'ogg'",
        'has "extra"',
        '"training" of the plan is',
        "steps is 0",
        "omega is True",
        "speed is not known",
        "tonemap does not exist",
        'Song 1 of the plan: "prompt" is 3',
        'Song 1 of the plan: "seconds" is',
        "Song 2 of the plan: seconds is 1000000000.0",
        "Song 2 of the plan: seed is 1.5",
        'Song 3 of the plan has "record"',
        "none.safetensors' cannot be read",
        'Song 4 of the plan has both "prompt"',
        "none.txt' cannot be read",
        "The lyric language 'xx'",
        'Song 5 of the plan has no "prompt"',
        "Song 6 of the plan is []",
        "Column 1 of the plan: No LoRA file",
        'Column 1 of the plan: "strength" is',
        'Two songs of the plan have the name "a"',
        'Two columns of the plan have the name "b"',
    ):
        assert any(part in problem for problem in problems), (part, problems)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"songs": NaN}', '{"songs": [], "columns": 1}'])
def test_what_is_no_plan_is_refused(tmp_path, content):
    assert problems_of(write(tmp_path, content))


def test_a_plan_that_is_not_there_is_said(tmp_path):
    assert "cannot be read" in problems_of(tmp_path / "none.json")[0]
    assert "cannot be read" in problems_of(tmp_path)[0]
