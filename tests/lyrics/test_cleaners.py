"""Prepared lines against the reference (golden), and the rules that the golden lines do not reach."""

import json
from pathlib import Path

import pytest

from ace_lora.lyrics.cleaners import _FINALS, _HYPHENATED, _INITIALS, SUPPORTED_LANGUAGES, prepare, romanise_korean
from ace_lora.lyrics.japanese import require_japanese
from ace_lora.lyrics.packages import MissingLyricSupport

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lyrics" / "lyrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", SUPPORTED_LANGUAGES)
def test_every_golden_line(language):
    if language == "ja":
        try:
            require_japanese()
        except MissingLyricSupport as error:
            pytest.skip(str(error))
    lines = [line for line in GOLDEN["lines"] if line["lang"] == language]
    assert lines
    for line in lines:
        assert prepare(line["line"], language) == line["prepared"], line["line"]


def test_the_golden_file_is_whole():
    assert (len(GOLDEN["lid"]), len(GOLDEN["lines"]), len(GOLDEN["songs"])) == (34, 171, 63)


@pytest.mark.parametrize(
    ("language", "line", "prepared"),
    [
        ("en", '"ST." St.Co. & Fr.', "saint saintco. and fr."),
        ("en", "9" * 400 + " dr. x", "9" * 400 + " doctor x"),  # what cannot be said changes nothing else
        ("zh", "1" * 60_000 + "个", "1" * 60_000 + "ge4"),
        ("zh", "旅行", "lv3xing2"),
        ("zh", "我\u3000\t爱", "wo3 ai4"),
        ("cs", "1 500.000 50%", "1 500.000 50 procento"),
        ("hi", ' "दिल\u3000 5', ' "दिल 5'),
        ("tr", "ÖZÜR İ I 5%", "özür i i beş yüzde"),
        ("ru", "Г-н", "господин"),
    ],
)
def test_rules(language, line, prepared):
    assert prepare(line, language) == prepared


def test_korean_syllables_are_separated_where_letters_would_be_ambiguous():
    assert romanise_korean("옷이 강아지 바까 각각 국가") == "os-i gang-aji ba-kka gaggag gugga"
    assert romanise_korean("한 글a한") == "han geulahan"


def test_the_korean_hyphen_rule_gives_the_list_of_the_spec():
    listed = {("", initial) for initial in ("kk", "tt", "pp", "ss", "jj")}
    listed |= {("l", initial) for initial in ("tt", "pp", "ss")} | {("s", "s"), ("s", "ss"), ("k", "k"), ("k", "kk")}
    listed |= {("g", "ss"), ("gs", "s"), ("n", "jj"), ("nj", "j"), ("ls", "s"), ("lt", "t"), ("lp", "p"), ("b", "ss")}
    listed |= {("bs", "s"), ("ss", "s"), ("j", "j"), ("kk", "k"), ("t", "t"), ("p", "p")}
    assert listed | {(final, "") for final in _FINALS} == _HYPHENATED
    assert (len(_INITIALS), len(_FINALS)) == (19, 28)
