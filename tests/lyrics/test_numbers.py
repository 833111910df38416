"""Numbers in words: the cases that the spec singles out, and its patterns in their literal form."""

import decimal
import random
import re

import pytest

from ace_lora.lyrics import numbers
from ace_lora.lyrics.numbers import spell_numbers


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        ("en", "1,234", "one thousand, two hundred and thirty-four"),
        ("en", "x2", "xtwo"),
        ("en", "$1.50 1.5$", "one dollar, fifty cents one dollar, fifty cents"),
        ("en", "£5", "five pounds sterling"),
        ("en", "22nd", "twenty-second"),
        ("en", "１２", "１２"),
        ("es", "3os", "terceros"),
        ("nl", "3de", "derde"),
        ("de", "1. tag", "erste tag"),
        ("de", "1.500", "eintausendfünfhundert"),
        ("de", "20€", "zwanzig Euro"),
        ("fr", "71 fois", "soixante et onze fois"),
        ("pt", "1 234.500", spell_numbers("1 234500", "pt")),
        ("tr", "12,5", "oniki,beş"),
        ("ru", "5-й", "пятый"),
        ("ko", "3번", "세 번째"),
        ("pl", "20€ $7", "dwadzieścia euro siedem dolarów amerykańskich"),
        ("pl", "20€ £5 $7", "dwadzieścia€ £pięć $siedem"),  # no pounds in Polish, and they come first
    ],
)
def test_words(language, text, words):
    assert spell_numbers(text, language) == words


@pytest.mark.parametrize("text", ["5", "1.", "12.5"])
def test_czech_numbers_cannot_be_said(text):
    with pytest.raises(NotImplementedError):
        spell_numbers(text, "cs")


def test_an_amount_with_two_dots_ends_the_currencies_but_not_the_rest():
    assert spell_numbers("£5 $1.2.3 7€", "en") == "five pounds sterling $one point two.three seven€"


def test_a_number_beyond_every_name_raises():
    with pytest.raises(OverflowError):
        spell_numbers("9" * 400, "en")


def test_arabic_does_not_depend_on_what_was_said_before_and_leaves_the_precision_alone():
    text = "5 و 25 ر و 12.5"
    before = spell_numbers(text, "ar")
    spell_numbers("$20.75 £3", "ar")
    spell_numbers("1" * 45 + ".5", "ar")
    assert spell_numbers(text, "ar") == before
    assert decimal.getcontext().prec == 28


def test_linear_patterns_find_what_the_literal_ones_find():
    source = random.Random(3)
    literal = [re.compile(rf"{sign}[0-9.,]*[0-9]+|[0-9.,]*[0-9]+{sign}") for sign in ("£", r"\$", "€")]
    literal_decimal = re.compile(r"[0-9]+[.,][0-9]+")
    for _ in range(3000):
        text = "".join(source.choice("0123456789..,,££$€ a١") for _ in range(source.randrange(16)))
        for pattern, (ours, _) in zip(literal, numbers._AMOUNTS, strict=True):
            assert ours.findall(text) == pattern.findall(text), text
        assert numbers._DECIMAL.findall(text) == literal_decimal.findall(text), text
