"""Asking a model again, and in parts: `python -m pytest tests/captions/test_ask.py`."""

import itertools

import pytest

from ace_lora.captions.ask import (
    ATTEMPTS,
    SongFailed,
    ask_until_usable,
    check_language,
    merge_captions,
    part_bounds,
)
from ace_lora.captions.caption import Caption, UnusableAnswer


@pytest.mark.parametrize(
    "lyrics",
    [
        ("Hello darkness my old friend", "I've come to talk with you again"),
        ("你问我爱你有多深", "我爱你有几分"),
        ("Auf der Straße nach Berlin", "fährt ein kleiner roter Zug"),
        ("Hello darkness my old friend", "la la la la la"),  # which the tokenizer takes for Welsh
        ("la la la la la", "la la la"),
        (),
        ("[verse]",),
    ],
)
def test_known_languages(lyrics):
    check_language(lyrics)


@pytest.mark.parametrize(
    ("lyrics", "name"),
    [
        (("Em ơi Hà Nội phố, ta còn em mùi hoàng lan", "ta còn em mùi hoa sữa"), "Vietnamese"),
        (("[verse]", "ฉันรักเธอมากกว่าใคร", "และจะรักตลอดไป"), "Thai"),
        (("Jag vill ha dig här hos mig i natt", "och aldrig mer vara ensam"), "Swedish"),
    ],
)
def test_unknown_languages(lyrics, name):
    with pytest.raises(UnusableAnswer, match=name):
        check_language(lyrics)


def test_parts_are_equal_and_never_longer_than_allowed():
    assert part_bounds(300, 300) == [(0, 300)]
    assert part_bounds(301, 300) == [(0, 150), (150, 301)]
    assert part_bounds(900, 300) == [(0, 300), (300, 600), (600, 900)]
    for length in (1, 299, 301, 601, 1234):
        bounds = part_bounds(length, 300)
        assert bounds[0][0] == 0
        assert bounds[-1][1] == length
        assert all(left[1] == right[0] for left, right in itertools.pairwise(bounds))
        assert all(0 < end - start <= 300 for start, end in bounds)


def test_merging():
    merged = merge_captions(
        [Caption(("pop", "rock"), False), Caption(("drums", "rock"), True, ("a", "b")), Caption((), True, ("c",))]
    )
    assert merged == Caption(("drums", "pop", "rock"), True, ("a", "b", "c"))
    assert merge_captions([Caption(("a", "b"), False)] * 2).has_vocal is False
    assert merge_captions([Caption(("a", "b"))]).has_vocal is None


def test_asking_again():
    attempts, said = [], []

    def ask(attempt: int) -> Caption:
        attempts.append(attempt)
        if attempt < 2:
            raise UnusableAnswer(f"reason {attempt}")
        return Caption(("a", "b"))

    assert ask_until_usable(ask, said.append) == Caption(("a", "b"))
    assert attempts == [0, 1, 2]
    assert ["reason 0" in said[0], "reason 1" in said[1]] == [True, True]


def test_giving_up():
    said = []

    def ask(attempt: int) -> Caption:
        raise UnusableAnswer(f"reason {attempt}")

    with pytest.raises(SongFailed, match=f"in {ATTEMPTS} attempts; the last one: reason {ATTEMPTS - 1}"):
        ask_until_usable(ask, said.append)
    assert len(said) == ATTEMPTS - 1
