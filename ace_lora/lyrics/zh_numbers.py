"""Numbers of a Chinese line written in Chinese, and its punctuation turned into commas.

Spec: numbers and punctuation for zh. Every rule collects its matches first and then replaces, for each, the first
occurrence of the matched string anywhere in the line, which may be another place than the match: that is how the
model's training data was made.
"""

from __future__ import annotations

import re
import string

_NAMES = "零一二三四五六七八九"
_UNITS = (
    *((1, "十"), (2, "百"), (3, "千"), (4, "万"), (8, "亿"), (12, "兆"), (16, "京"), (20, "垓")),
    *((24, "秭"), (28, "穰"), (32, "沟"), (36, "涧"), (40, "正"), (44, "载")),
)
_LARGE_UNITS = {symbol for power, symbol in _UNITS if power > 1}

# Single characters that count things, behind the words of two characters.
_MEASURE_WORDS = (
    "千克|微克|千米|微米|["
    + (
        "匹张座回场尾条个首阙阵网炮顶丘棵只支袭辆挑担颗壳窠曲墙群腔砣客贯扎捆刀令打手罗坡山岭江溪钟队单双对出口头脚板跳枝件贴针线管名位身堂课本页家户层丝毫厘分钱"
        "两斤铢石钧锱忽寸尺丈里寻常铺程撮勺合升斗盘碗碟叠桶笼盆盒杯斛锅簋篮罐瓶壶卮盏箩箱煲啖袋钵年月日季刻时周天秒旬纪岁世更夜春夏秋冬代伏辈丸泡粒幢堆根道面片块"
    )
    + "]"
)
_MONEY_UNITS = "(?:亿|千万|百万|万|千|百|元|块|角|毛|分)"

# The look-behinds change no match; they keep the search linear in a long row of digits or letters.
_NUMBER = re.compile(r"(?<!\d)\d+(?:\.\d+)?")
_MONTH_AND_DAY = r"\d{1,2}月(?:\d{1,2}[日号])?"
_DATE = re.compile(rf"\D((?:[089]\d|(?:19|20)\d{{2}})年(?:{_MONTH_AND_DAY})?|{_MONTH_AND_DAY})")
_MONEY = re.compile(rf"\D(\d+(?:\.\d+)?[多余几]?{_MONEY_UNITS}(?:\d{_MONEY_UNITS}?)?)")
_MOBILE_PHONE = re.compile(r"\D((?:\+?86 ?)?1(?:[38]\d|5[0-35-9]|7[678]|9[89])\d{8})\D")
_LANDLINE = re.compile(r"\D((?:0(?:10|2[1-3]|[3-9]\d{2})-?)?[1-9]\d{6,7})\D")
_FRACTION = re.compile(r"(?<!\d)\d+/\d+")
_PERCENTAGE = re.compile(r"(?<!\d)\d+(?:\.\d+)?%")
_COUNTED = re.compile(rf"(?<!\d)(\d+(?:\.\d+)?)[多余几]?(?:{_MEASURE_WORDS})")
_LONG_NUMBER = re.compile(r"\d{4,32}")
_LETTERS_TWO_LETTERS = re.compile("(?<![a-zA-Z])[a-zA-Z]+二[a-zA-Z]+")

_FULL_WIDTH_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃《》「」『』【】"
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏·〈〉"
)
_TO_COMMA = str.maketrans(dict.fromkeys(string.punctuation + _FULL_WIDTH_PUNCTUATION, ","))


def read_digits(digits: str) -> str:
    """Each digit by itself: `"2024"` gives `"二零二四"`."""
    return "".join(_NAMES[int(digit)] for digit in digits)


def read_cardinal(number: str) -> str:
    """A number with or without a fraction: `"200.5"` gives `"两百点五"`. An integer of several zeros gives nothing.

    Raises RecursionError for an integer part of tens of thousands of digits.
    """
    integer, point, fraction = number.partition(".")
    symbols = [_NAMES[int(integer)]] if len(integer) == 1 else _read_integer(integer)
    if point:
        symbols += ["点", *read_digits(fraction)]
    words = "".join(_read_two(symbols))
    if words.startswith("点"):
        words = "零" + words
    return words.removeprefix("一") if words.startswith("一十") else words


def _read_integer(digits: str) -> list[str]:
    significant = digits.lstrip("0")  # ASCII zeros only: "１０" is read as 十零
    if not significant:
        return []
    if len(significant) == 1:
        zero = ["零"] if significant != digits else []
        return [*zero, _NAMES[int(significant)]]
    power, unit = next(entry for entry in reversed(_UNITS) if entry[0] < len(significant))
    return [*_read_integer(digits[:-power]), unit, *_read_integer(significant[-power:])]


def _read_two(symbols: list[str]) -> list[str]:
    """两 for 二 before 百 千 万 …, at the start or behind another such unit."""
    return [
        "两"
        if symbol == "二"
        and index + 1 < len(symbols)
        and symbols[index + 1] in _LARGE_UNITS
        and (index == 0 or symbols[index - 1] in _LARGE_UNITS)
        else symbol
        for index, symbol in enumerate(symbols)
    ]


def normalize_zh(text: str) -> str:
    """Numbers of the line read out, punctuation as commas (`£ € ° ￥ ♪` and emoji stay)."""
    text = f"^{text}$"  # so that a number at either end has a neighbour that is no digit
    text = _replace(text, _DATE.findall(text), _read_date)
    text = _replace(text, _MONEY.findall(text), _read_money)
    text = _replace(
        text, _MOBILE_PHONE.findall(text), lambda phone: "".join(map(read_digits, phone.strip("+").split()))
    )
    text = _replace(text, _LANDLINE.findall(text), lambda phone: "".join(map(read_digits, phone.split("-"))))
    text = _replace(text, _FRACTION.findall(text), _read_fraction)
    text = text.replace("％", "%")
    text = _replace(text, _PERCENTAGE.findall(text), lambda percentage: "百分之" + read_cardinal(percentage[:-1]))
    text = _replace(text, _COUNTED.findall(text), read_cardinal)
    text = _replace(text, _LONG_NUMBER.findall(text), read_digits)
    text = _replace(text, _NUMBER.findall(text), read_cardinal)
    text = _replace(text, _LETTERS_TWO_LETTERS.findall(text), lambda word: word.replace("二", "2"))
    return text.lstrip("^").rstrip("$").translate(_TO_COMMA)


def _replace(text: str, matches: list[str], read) -> str:
    for match in matches:
        text = text.replace(match, read(match), 1)
    return text


def _read_date(date: str) -> str:
    year, sign, rest = date.rpartition("年")
    return read_digits(year) + sign + re.sub(r"\d+", lambda number: read_cardinal(number[0]), rest)


def _read_money(money: str) -> str:
    for number in _NUMBER.findall(money):
        money = money.replace(number, read_cardinal(number))
    return money


def _read_fraction(fraction: str) -> str:
    numerator, denominator = fraction.split("/")
    return f"{read_cardinal(denominator)}分之{read_cardinal(numerator)}"
