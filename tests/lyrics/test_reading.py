"""What the model will read, and what is said of it: `python -m pytest tests/lyrics/test_reading.py`."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
import soundfile

from ace_lora.commands import WrongInput, run_script
from ace_lora.lyrics.__main__ import main, parse_args
from ace_lora.lyrics.japanese import require_japanese
from ace_lora.lyrics.packages import MissingLyricSupport
from ace_lora.lyrics.reading import mended, read_lyrics, song_language
from ace_lora.lyrics.tokenize import LyricTokenizer
from ace_lora.lyrics.vocabulary import load_vocabulary
from ace_lora.preprocessing.texts import tokenize_lyrics
from tests.lyrics.language_cases import QUIET, SET, TOLD


@pytest.fixture(scope="module")
def tokenizer(tiny) -> LyricTokenizer:
    """With the published vocabulary where it is there: the tiny one knows little of Chinese."""
    path = os.environ.get("ACE_LYRIC_VOCAB")
    return LyricTokenizer(load_vocabulary(Path(path) if path else tiny / "vocab.json", None))


def reading(tokenizer, text: str, language: str | None = None):
    try:
        return read_lyrics(tokenizer, text, language=language)
    except MissingLyricSupport:
        pytest.skip("the optional Japanese support is not installed")


@pytest.mark.parametrize(("text", "language", "said"), TOLD)
def test_doubts_about_the_language_are_said(tokenizer, text, language, said):
    read = reading(tokenizer, text, language)
    assert any(said in warning for warning in read.warnings), read.warnings


@pytest.mark.parametrize("text", QUIET)
def test_lyrics_that_need_no_word(tokenizer, text):
    assert reading(tokenizer, text).warnings == []


@pytest.mark.parametrize(("text", "language"), SET)
def test_a_language_that_is_set_settles_it(tokenizer, text, language):
    read = reading(tokenizer, text, language)
    assert (read.tokens.main_language, read.warnings) == (language, [])


def test_decomposed_letters_give_the_ids_of_composed_ones(tokenizer):
    text = "조용한 밤에 배가 떠나네"
    read = read_lyrics(tokenizer, unicodedata.normalize("NFD", text))
    assert read.tokens.ids == tokenizer.tokenize(text).ids


PLAIN = ("Hello morning", "we are free")


def test_every_line_with_its_tokens(tokenizer):
    text = "[verse]\nHello morning 🌙\n\n(chorus)\nwe are free"
    read = read_lyrics(tokenizer, text, "[00:01.00]Hello morning\n[00:09.00]we are free", cropped_at=5.0)
    assert [line.text for line in read.tokens.lines] == ["[verse]", "Hello morning 🌙"]
    assert read.cropped == ["we are free"]
    whole = read_lyrics(tokenizer, text)
    assert [(line.text, line.unknown) for line in whole.tokens.lines if line.unknown] == [("Hello morning 🌙", "🌙")]
    # What is in no line: [START], and the line ends, of which segments bring some of their own.
    plain = read_lyrics(tokenizer, "[verse]\nHello morning\nwe are free").tokens
    assert [line.tokens for line in plain.lines] == [2, *(len(tokenizer.tokenize(x).ids) - 2 for x in PLAIN)]
    assert any("'(chorus)' would be sung" in warning for warning in whole.warnings)
    assert (
        mended(text, [line.unknown for line in whole.tokens.lines]) == "[verse]\nHello morning\n\n[chorus]\nwe are free"
    )


def test_preprocessing_says_the_same(tokenizer, tmp_path, capsys):
    from ace_lora.preprocessing.dataset import DatasetSong
    from ace_lora.preprocessing.work import SongWork

    text = "(verse)\nTe amo 🌙\nNo puedo dormir\nEsperé toda la noche\nPara oír tu voz"
    work = SongWork(DatasetSong("a", tmp_path / "a.wav", "pop", text, ""), str(tmp_path / "a.wav"))
    tokenize_lyrics(work, tokenizer, "")
    said = [line.removeprefix("warning: a.wav: ") for line in capsys.readouterr().out.splitlines()]
    assert said == read_lyrics(tokenizer, text).warnings
    assert len(said) >= 3


# --- The song's own language ---


def test_song_language(tmp_path):
    about = tmp_path / "a_lyrics.json"
    assert song_language(about) is None
    about.write_text('{"format": 1, "lines": []}', "utf-8")
    assert song_language(about) is None
    about.write_text('{"language": "es"}', "utf-8")
    assert song_language(about) == "es"
    for text in ('{"language": "sv"}', "{", '{"language": ["es"]}'):
        about.write_text(text, "utf-8")
        with pytest.raises(WrongInput, match=r"a_lyrics\.json"):
            song_language(about)


def test_the_songs_own_language_comes_before_that_for_all(two_songs):
    about = two_songs.songs / "夜曲_lyrics.json"

    def language() -> str:
        assert two_songs.preprocess("--lyric_language", "en", "--ssl", "none")[0] == 0
        return two_songs.records()["夜曲"]["metadata"]["lyric_language"]

    assert language() == "en"
    about.write_text('{"language": "de"}', "utf-8")
    assert language() == "de"
    about.write_text('{"language": "sv"}', "utf-8")
    status, _, errors = two_songs.preprocess("--lyric_language", "en", "--ssl", "none")
    assert status == 2 and "夜曲_lyrics.json" in errors and "'sv'" in errors


# --- The command ---


@pytest.fixture
def song(tmp_path) -> Path:
    import numpy as np

    folder = tmp_path / "my songs 歌"
    folder.mkdir()
    soundfile.write(folder / "夜曲.wav", np.zeros(44100), 44100)
    (folder / "夜曲_prompt.txt").write_text("rock，guitar\nslow", "utf-8")
    (folder / "夜曲_lyrics.txt").write_bytes("(verse)\r\nHello morning 🌙\r\nwe are free".encode("utf-16"))
    return folder / "夜曲.wav"


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = run_script(main, parse_args(["read", *map(str, arguments)]))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_read_for_programs(song, tiny, capsys):
    status, out, _ = run(capsys, song, "--json", "--checkpoint_dir", tiny)
    said = json.loads(out)
    assert status == 0
    assert said["prompt"]["tags"] == ["rock", "guitar", "slow"]
    assert 0 < said["prompt"]["tokens"] <= said["prompt"]["limit"] == 256
    lyrics = said["lyrics"]
    assert [line["text"] for line in lyrics["lines"]] == ["(verse)", "Hello morning 🌙", "we are free"]
    assert lyrics["lines"][0]["mended"] == "[verse]"
    assert lyrics["lines"][1]["unknown"] == "🌙"
    assert lyrics["mended"] == "[verse]\nHello morning\nwe are free"
    assert lyrics["limit"] == 4096 and lyrics["tokens"] == lyrics["tokens_before_cut"] > 10
    assert any("🌙" in warning for warning in lyrics["warnings"])


def test_read_for_people_by_any_of_the_songs_files(song, tiny, capsys):
    for path in (song, song.with_name("夜曲_lyrics.txt"), song.with_name("夜曲_prompt.txt")):
        status, out, _ = run(capsys, path, "--checkpoint_dir", tiny)
        assert status == 0
        assert "rock, guitar, slow" in out
        assert "Hello morning 🌙   <- unknown: 🌙" in out
        assert "(verse)   <- write [verse]" in out


def test_read_what_an_editor_holds(song, tiny, capsys, monkeypatch):
    import io
    import sys

    class Input:
        buffer = io.BytesIO(b"[verse]\nin the editor")

    monkeypatch.setattr(sys, "stdin", Input)
    status, out, _ = run(capsys, song, "--json", "--edited", "lyrics", "--checkpoint_dir", tiny)
    assert status == 0
    assert [line["text"] for line in json.loads(out)["lyrics"]["lines"]] == ["[verse]", "in the editor"]


def test_what_is_too_long_is_marked(song, tiny, capsys):
    song.with_name("夜曲_lyrics.txt").write_text("[verse]\n" + "the river carries every word\n" * 200, "utf-8")
    song.with_name("夜曲_prompt.txt").write_text(", ".join(f"tag {number}" for number in range(400)), "utf-8")
    said = json.loads(run(capsys, song, "--json", "--checkpoint_dir", tiny)[1])
    assert said["lyrics"]["tokens"] == 4096 < said["lyrics"]["tokens_before_cut"]
    assert said["lyrics"]["lines"][-1]["cut"] and not said["lyrics"]["lines"][1]["cut"]
    assert any("are left out" in warning for warning in said["lyrics"]["warnings"])
    assert said["prompt"]["tokens"] == 256
    assert any("longer than the 256 tokens" in warning for warning in said["prompt"]["warnings"])


@pytest.mark.parametrize("name", ["gone.wav", "notes.txt"])
def test_no_song(song, tiny, capsys, name):
    (song.parent / "notes.txt").write_text("x", "utf-8")
    status, out, err = run(capsys, song.parent / name, "--checkpoint_dir", tiny)
    assert (status, out) == (2, "")
    assert err.startswith("error: There is no song") and name in err


def test_without_the_vocabulary(song, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    status, _, err = run(capsys, song, "--checkpoint_dir", tmp_path / "empty")
    assert status == 2
    assert "The lyric vocabulary is not among the base weights" in err


def test_japanese_support_is_asked_for(tokenizer):
    try:
        require_japanese()
    except MissingLyricSupport as error:
        assert "install" in str(error)
