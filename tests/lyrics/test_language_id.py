"""The language identifier against the reference's own answers (golden)."""

import json
from pathlib import Path

import pytest

from ace_lora.lyrics import language_id
from ace_lora.lyrics.language_id import identify, language_name, squash
from ace_lora.lyrics.packages import MissingLyricSupport

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lyrics" / "lyrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("text", "language", "probability"), GOLDEN["lid"])
def test_every_golden_answer(text, language, probability):
    assert identify(text) == (language, probability)


def test_squash_joins_runs_of_non_word_characters_and_of_one_character():
    assert squash("hello  aaa") == "helo a"
    assert squash("123 455") == "123 45"
    assert squash("  Hello,\n…world!! ") == "Helo world"
    assert squash("ＡＡ①①²🎵") == "Ａ①²"
    assert squash("♪ !") == ""


def test_a_line_beyond_the_feature_counts_of_the_default_type_is_still_identified():
    assert identify("ab " * 70_000)[0] in language_id._LANGUAGE_NAMES


def test_every_language_of_the_model_has_a_name():
    classes = language_id._load_identifier().nb_classes
    assert len(classes) == 97
    assert sorted(language_id._LANGUAGE_NAMES) == sorted(classes)
    assert language_name("ms") == "Malay (ms)"
    assert language_name("??") == "??"


def test_another_version_of_the_identifier_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda package: "0.4.0")
    language_id._load_identifier.cache_clear()
    try:
        with pytest.raises(MissingLyricSupport, match=r"py3langid 0\.4\.0 .* pip install py3langid==0\.3\.0"):
            identify("a text that was not identified before")
    finally:
        language_id._load_identifier.cache_clear()
