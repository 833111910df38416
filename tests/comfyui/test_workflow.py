"""Workflow files against ones that ComfyUI's own check took; texts that it reads as training did."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ace_lora.comfyui.lyrics import token_ids, weighted_pieces
from ace_lora.comfyui.workflow import Workflow, api_form, nodes_of, window_form, written_lyrics, written_tags

GOLDEN = Path(__file__).parents[1] / "golden"
PLACEHOLDERS = Workflow("my_song_lora.safetensors", "TAGS", "LYRICS")


def golden(name):
    return json.loads((GOLDEN / "clients" / f"{name}.json").read_text(encoding="utf-8"))


def test_both_forms_equal_the_golden():
    assert api_form(PLACEHOLDERS) == golden("workflow_api")
    assert window_form(PLACEHOLDERS, golden("workflow_ui")["id"]) == golden("workflow_ui")


def test_the_window_form_says_the_same_as_the_other():
    """Turned back with nothing but the names of the widgets, as ComfyUI's window does it."""
    workflow = Workflow("a.safetensors", r"rock \(live\)", "[verse]\n[zh]wo3", 60.5, 7, 0.8)
    window, back = window_form(workflow), {}
    names = {number: list(node.widgets) for number, node in nodes_of(workflow).items()}
    links = {row[0]: row for row in window["links"]}
    for node in window["nodes"]:
        values = [value for value in node["widgets_values"] if value != "fixed"]
        inputs = dict(zip(names[node["id"]], values, strict=True))
        for slot in node["inputs"]:
            _, source, place, target, _, kind = links[slot["link"]]
            assert target == node["id"] and kind == slot["type"]
            inputs[slot["name"]] = [str(source), place]
        back[str(node["id"])] = inputs
    assert back == {number: node["inputs"] for number, node in api_form(workflow).items()}
    assert window["id"] != window_form(workflow)["id"]


def test_tags_keep_their_parentheses_and_lose_what_the_window_would_change():
    tags, notes = written_tags("rock (live), {a|b} // x")
    assert tags == r"rock \(live\),  a|b  / / x" and len(notes) == 1
    assert written_tags("rock (live)") == (r"rock \(live\)", [])
    assert weighted_pieces(written_tags("rock (live)")[0]) == ["rock (live)"]


def test_lyrics_of_a_record_are_read_as_in_training():
    if not os.environ.get("ACE_LYRIC_VOCAB"):
        pytest.skip("set ACE_LYRIC_VOCAB to the published lyric vocabulary (vocab.json) to run this test")
    vocabulary = Tokenizer.from_file(os.environ["ACE_LYRIC_VOCAB"])
    songs = json.loads((GOLDEN / "lyrics" / "lyrics.json").read_text(encoding="utf-8"))["songs"]
    told = {}
    for song in songs:
        ids = song["ids"] or song["fallback_ids"]
        text, notes = written_lyrics(ids, vocabulary)
        if notes:
            told[song["name"]] = notes[0]
        else:
            assert token_ids(text, vocabulary)[: len(ids)] == ids
        assert "{" not in text and "//" not in text
    assert "a little differently" in told.pop("ja_en_numbers")
    assert all("one empty token" in note for note in told.values())
    assert set(told) == {"empty", "whitespace_only", "en_filter_prompt"}
