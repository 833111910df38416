"""Which answers of models become captions, by kind: `python -m pytest tests/captions/test_gate.py`."""

import json

import pytest

from ace_lora.captions.acestep import parse_description
from ace_lora.captions.ask import merge_captions
from ace_lora.captions.caption import Caption, UnusableAnswer, parse_caption
from tests.captions.gate_cases import CLEANED, DESCRIPTIONS, GOOD, REFUSED, TAGS


def parse(changes: dict) -> Caption:
    return parse_caption(json.dumps(GOOD | changes, ensure_ascii=False), tags=True, lyrics=True)


def test_the_good_answer():
    assert parse({}) == Caption(tuple(TAGS), True, tuple(GOOD["lyrics"]))


@pytest.mark.parametrize(("changes", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused(changes, reason):
    with pytest.raises(UnusableAnswer, match=reason):
        parse(changes)


@pytest.mark.parametrize(("changes", "expected"), [case[1:] for case in CLEANED], ids=[case[0] for case in CLEANED])
def test_cleaned(changes, expected):
    caption = parse(changes)
    for name, values in expected.items():
        assert list(getattr(caption, name)) == values


@pytest.mark.parametrize(("prose", "tags"), DESCRIPTIONS)
def test_what_a_description_denies_is_no_tag(prose, tags):
    assert set(parse_description(prose).tags) == tags


@pytest.mark.parametrize(
    ("parts", "tags"),
    [
        ([("slow tempo", "rock"), ("fast tempo", "rock"), ("fast tempo", "pop")], ("fast tempo", "pop", "rock")),
        ([("slow tempo", "rock"), ("fast tempo", "pop")], ("pop", "rock")),
        ([("instrumental", "rock"), ("male vocal", "rock")], ("male vocal", "rock")),
        ([("instrumental", "rock"), ("instrumental", "calm")], ("calm", "instrumental", "rock")),
    ],
)
def test_parts_never_unite_contradictions(parts, tags):
    assert merge_captions([Caption(part, True) for part in parts]).tags == tags
