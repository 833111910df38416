"""ComfyUI's reading of lyrics against its own ids, and lyrics written so that it reads the training's ids."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ace_lora.comfyui.lyrics import escape, kana_to_romaji, token_ids, weighted_pieces, write_lyrics
from ace_lora.tiny_base.make import make_tiny_base

GOLDEN = Path(__file__).parents[1] / "golden"
LYRICS = json.loads((GOLDEN / "clients" / "lyrics_tokens.json").read_text(encoding="utf-8"))
SONGS = json.loads((GOLDEN / "lyrics" / "lyrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def published():
    if not os.environ.get("ACE_LYRIC_VOCAB"):
        pytest.skip("set ACE_LYRIC_VOCAB to the published lyric vocabulary (vocab.json) to run this test")
    return Tokenizer.from_file(os.environ["ACE_LYRIC_VOCAB"])


@pytest.mark.parametrize("name", list(LYRICS))
def test_ids_equal_those_of_comfyui(name, published):
    assert token_ids(LYRICS[name]["lyrics"], published) == LYRICS[name]["ids"]


def test_weights_cut_a_text_into_pieces():
    assert weighted_pieces("(ooh:1.5) baby") == ["ooh", " baby"]
    assert weighted_pieces("a ((b) c:0.5) d") == ["a ", "b", " c", " d"]
    assert weighted_pieces("(a:b) (c") == ["a:b", " (c"]
    assert weighted_pieces("x) y") == ["x) y"]
    assert weighted_pieces("") == []
    for text in ("(ooh) baby", "a (b:2) (c", "x) y", "plain"):
        assert weighted_pieces(escape(text)) == [text]


def test_kana_become_latin_letters():
    words = {
        "こんにちは": "konnichiha",
        "きょう": "kyou",
        "しゃしん": "shashin",
        "がっこう": "gakkou",
        "マッチ": "matchi",
        "コーヒー": "koohii",
        "君の名は": "君no名ha",
        "ティー": "tii",
        "hello": "hello",
    }
    assert {kana: kana_to_romaji(kana) for kana in words} == words


# Two songs cannot be written: lyrics that training reads as none, and a Japanese line with quotation marks.
def test_written_lyrics_give_the_ids_of_the_training(published):
    others = []
    songs = [song for song in SONGS["songs"] if song["text"].strip()]
    assert len(songs) == 61
    for song in songs:
        ids = song["ids"] or song["fallback_ids"]
        written = write_lyrics(ids, published)
        if token_ids(written, published) != ids:
            others.append(song["name"])
            # The end of lyrics that were cut in the middle of a line is a line end there.
            if len(ids) == 4096:
                assert token_ids(written, published) == [*ids, 2]
                others.pop()
    assert others == ["en_filter_prompt", "ja_en_numbers"]


def test_written_lyrics_of_a_tiny_vocabulary(tmp_path):
    make_tiny_base(tmp_path / "base")
    vocabulary = Tokenizer.from_file(str(tmp_path / "base" / "vocab.json"))
    text = "[verse]\n[zh]wo3 (ni3)\n\n[en]love you"
    ids = token_ids(escape(text), vocabulary)
    assert write_lyrics(ids, vocabulary) == text.replace("(", r"\(").replace(")", r"\)")
    assert token_ids(write_lyrics(ids, vocabulary), vocabulary) == ids
    assert write_lyrics([0], vocabulary) == ""
