"""Lines, headings and structure tags: `python -m pytest tests/lyrics/test_text.py`."""

import pytest

from ace_lora.lyrics.text import clean_lines, mark_structure


def test_clean_lines():
    assert clean_lines("\n\n  a\u3000b \r\n\r\n\r\nc\x00\u200b\td\rlast\n \n") == ["a b", "", "c d", "last"]


def test_repeated_lines_are_the_chorus():
    lyrics = "First we walk\nthen we run\nHey, oh!\nwe are free\nOn the hill\nthe sun\nhey oh\nWe are free"
    assert mark_structure(lyrics) == (
        "[verse]\nFirst we walk\nthen we run\n\n"
        "[chorus]\nHey, oh!\nwe are free\n\n"
        "[verse]\nOn the hill\nthe sun\n\n"
        "[chorus]\nhey oh\nWe are free"
    )


def test_stanzas_stay_apart():
    assert mark_structure("a b\nc d\n\n\ne f\ng h") == "[verse]\na b\nc d\n\n[verse]\ne f\ng h"


def test_double_spacing_is_no_stanza():
    assert mark_structure("a b\n\nc d\n\ne f\n\na b") == "[chorus]\na b\n\n[verse]\nc d\ne f\n\n[chorus]\na b"


@pytest.mark.parametrize(
    "lyrics",
    ["[Verse 1]\na\nb\na", "a\n[chorus] b\na", "Chorus:\na\na", "【副歌】\na\na", "(Verse 2)\na", "[instrumental]", ""],
)
def test_text_with_structure_is_left_alone(lyrics):
    assert mark_structure(lyrics) == lyrics


def test_chinese_repetitions():
    assert mark_structure("月亮代表我的心\n轻轻的一个吻\n月亮代表我的心") == (
        "[chorus]\n月亮代表我的心\n\n[verse]\n轻轻的一个吻\n\n[chorus]\n月亮代表我的心"
    )


@pytest.mark.parametrize(
    ("lyrics", "sections"),
    [
        ("a b\nc d\na b\nc d", ["[verse]", "[verse]"]),  # a verse sung twice is no chorus
        ("a b\nc d\n\ne f\ng h\n\na b\nc d\n\ne f\ng h\n\ne f\ng h", ["[verse]", "[chorus]"] * 2 + ["[chorus]"]),
        ("oh\na lantern burns\noh\nuntil the morning\noh\nthe river", ["[verse]"]),
        ("a b\nla la la\nc d\nla la la\ne f", ["[verse]"]),
        ("a b\na b\nc d\nc d\ne f", ["[verse]"]),  # sung twice in a row
        ("yeah\nwe are free\na b\nyeah\nwe are free\nc d", ["[chorus]", "[verse]"] * 2),
        ("oh\noh oh\nah", ["[verse]"]),
        ("灯火\n啊\n慢慢散开\n啊\n写进风里", ["[verse]"]),
    ],
)
def test_sections(lyrics, sections):
    marked = mark_structure(lyrics)
    assert [line for line in marked.split("\n") if line.startswith("[")] == sections
    assert [line for line in marked.split("\n") if line and not line.startswith("[")] == [
        line for line in lyrics.split("\n") if line
    ]
