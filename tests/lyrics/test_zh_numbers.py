"""Chinese numbers: the examples and traps of the spec, and its patterns in their literal form."""

import random
import re

import pytest

from ace_lora.lyrics import zh_numbers
from ace_lora.lyrics.zh_numbers import normalize_zh, read_cardinal, read_digits


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("0", "零"),
        ("2", "二"),
        ("10", "十"),
        ("12", "十二"),
        ("22", "二十二"),
        ("200", "两百"),
        ("222", "两百二十二"),
        ("2000", "两千"),
        ("12000", "一万两千"),
        ("20000", "两万"),
        ("200000", "二十万"),
        ("20200", "两万零二百"),
        ("10005", "一万零五"),
        ("10050", "一万零五十"),
        ("100000000", "一亿"),
        ("007", "零七"),
        ("00", ""),
        ("00.5", "零点五"),
        ("37.50", "三十七点五零"),
        ("１０", "十零"),
        ("1" + "0" * 44, "一载"),
    ],
)
def test_cardinals(number, words):
    assert read_cardinal(number) == words


def test_digits_one_by_one():
    assert read_digits("2０4") == "二零四"


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("2024年3月5日", "二零二四年三月五日"),
        ("98年的夏天", "九八年的夏天"),
        ("24年", "二十四年"),
        ("5日", "五日"),
        ("5块5", "五块五"),
        ("花了20.5元", "花了二十点五元"),
        ("电话13812345678。", "电话一三八一二三四五六七八,"),
        ("拨+86 13812345678吧", "拨八六一三八一二三四五六七八吧"),
        ("拨010-12345678吧", "拨零一零一二三四五六七八吧"),
        ("1/3", "三分之一"),
        ("30%", "百分之三十"),
        ("30％", "百分之三十"),
        ("12345天", "一万两千三百四十五天"),
        ("10000步", "一零零零零步"),
        ("2多个", "二多个"),
        ("a二b", "a2b"),
        ("^^高$$", "高"),
        ("[]%&'-.?!$#@_", ",,,,,,,,,,,,,"),
        ("「好」……·", ",好,,,,"),
        ("£ € ° ￥ ♪ 😀", "£ € ° ￥ ♪ 😀"),
        # Every match replaces the first occurrence of its text, which here is the 2 of 12.
        ("12 2个", "一二 二个"),
    ],
)
def test_rules(text, normalized):
    assert normalize_zh(text) == normalized


def test_an_integer_too_long_to_read_raises():
    with pytest.raises(RecursionError):
        read_cardinal("1" * 60_000)


def test_linear_patterns_find_what_the_literal_ones_find():
    month = r"(?:\d{1,2}月(?:\d{1,2}[日号])?)?"
    date = re.compile(rf"\D+((?:(?:[089]\d|(?:19|20)\d{{2}})年)?{month})")
    units = zh_numbers._MONEY_UNITS
    literal = [
        (zh_numbers._MONEY, re.compile(rf"\D+(\d+(?:\.\d+)?[多余几]?{units}(?:\d{units}?)?)")),
        (zh_numbers._FRACTION, re.compile(r"\d+/\d+")),
        (zh_numbers._PERCENTAGE, re.compile(r"\d+(?:\.\d+)?%")),
        (zh_numbers._COUNTED, re.compile(rf"(\d+(?:\.\d+)?)[多余几]?(?:{zh_numbers._MEASURE_WORDS})")),
        (zh_numbers._NUMBER, re.compile(r"\d+(?:\.\d+)?")),
        (zh_numbers._LETTERS_TWO_LETTERS, re.compile("[a-zA-Z]+二[a-zA-Z]+")),
    ]
    source = random.Random(4)
    for _ in range(3000):
        text = "^" + "".join(
            source.choice("0011223899..//%%年月日号元块万多个a二b我１-") for _ in range(source.randrange(18))
        )
        assert zh_numbers._DATE.findall(text) == [match for match in date.findall(text) if match], text
        for ours, pattern in literal:
            assert ours.findall(text) == pattern.findall(text), text
