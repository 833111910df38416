"""Lyrics as ComfyUI reads them, and lyrics written so that it reads what the model was trained with.

ComfyUI keeps Chinese characters and guesses no language, so the words of a song as they are give it other token ids
than training had. `write_lyrics` spells the ids of the training out: pinyin, numbers in words, a language code per
line. `token_ids` is ComfyUI's reading of any text (spec: clients, section 3.2). Little is known of its number speller:
texts with digits in English may get other ids there than here; those of `write_lyrics` have none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ace_lora.lyrics.cleaners import SUPPORTED_LANGUAGES, expand_abbreviations

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPACE, _UNKNOWN = 2, 1
# In no vocabulary of lyrics, and no letter: it stands for a character that training did not know either.
UNKNOWN_SIGN = "■"
_CODES = {language: f"[{language}]" for language in SUPPORTED_LANGUAGES} | {"zh": "[zh-cn]"}
_WHITE_SPACE = re.compile(r"\s+")


# --- Prompt weights ---


def escape(text: str) -> str:
    """`text` with its parentheses marked as plain characters; unmarked ones would weigh what they hold, and vanish."""
    return re.sub(r"([()])", r"\\\1", text)


def weighted_pieces(text: str) -> list[str]:
    """The pieces into which the weights of a prompt cut it: `(ooh:1.5) baby` gives `["ooh", " baby"]`."""
    hidden = text.replace("\\(", "\0").replace("\\)", "\1")
    pieces = [part for piece in _without_parentheses(hidden) for part in _at_embeddings(piece)]
    return [piece.replace("\0", "(").replace("\1", ")") for piece in pieces if piece]


def _without_parentheses(text: str) -> list[str]:
    pieces, start, position = [], 0, 0
    while (opened := text.find("(", position)) >= 0:
        closed = _closing(text, opened)
        if closed is None:  # unbalanced: a plain character, and so is all behind it
            break
        pieces.append(text[start:opened])
        inner, colon, weight = text[opened + 1 : closed].rpartition(":")
        pieces += _without_parentheses(inner if colon and _is_number(weight) else text[opened + 1 : closed])
        start = position = closed + 1
    return [*pieces, text[start:]]


def _closing(text: str, opened: int) -> int | None:
    depth = 0
    for position in range(opened, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _at_embeddings(piece: str) -> list[str]:
    first, *rest = piece.split(" embedding:")
    return [first, *(f"embedding:{part}" for part in rest)]


# --- Reading ---


def token_ids(lyrics: str, vocabulary: Tokenizer) -> list[int]:
    """Ids of a text in the lyrics field of ComfyUI, the start id first."""
    start = vocabulary.token_to_id("[START]")
    assert start is not None  # load_vocabulary has looked
    ids = [start]
    for piece in weighted_pieces(lyrics):
        for line in piece.split("\n"):
            line = line.replace("\r", "").strip()
            if line:
                ids += vocabulary.encode(_tagged(line)).ids
            ids.append(_SPACE)
    return ids


def _tagged(line: str) -> str:
    """A line as the vocabulary gets it: language code, cleaned text, spaces as tokens."""
    language, text = "en", line
    code = line[1:3].lower()
    if line[0] == "[" and line[3:4] == "]" and code in SUPPORTED_LANGUAGES:
        language, text = code, line[4:]
    else:
        romanised = kana_to_romaji(line)
        if romanised != line:
            language, text = "ja", romanised
    if text.startswith("[") and "]" in text:
        language = "en"
    return _CODES[language] + _cleaned(text, language).replace(" ", "[SPACE]")


_TURKISH_CAPITALS = str.maketrans("İÖÜ", "iöü")
_ENGLISH_SIGNS = str.maketrans(
    {
        sign: f" {word} "
        for sign, word in zip("&@%#$£°", ("and", "at", "percent", "hash", "dollar", "pound", "degree"), strict=True)
    }
)


def _cleaned(text: str, language: str) -> str:
    text = text.replace('"', "")
    if language == "tr":
        text = text.translate(_TURKISH_CAPITALS)
    text = text.lower()
    if language == "en":
        text = expand_abbreviations(_spell_english_numbers(text), "en").translate(_ENGLISH_SIGNS).strip()
    return _WHITE_SPACE.sub(" ", text)


_AMOUNT = re.compile(r"[$£€]([0-9][0-9,]*(?:\.[0-9]+)?)|([0-9][0-9,]*(?:\.[0-9]+)?)[$£€]")
_ORDINAL = re.compile(r"([0-9]+)(?:st|nd|rd|th)")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def _spell_english_numbers(text: str) -> str:
    from num2words import num2words

    def words(value: int | float, **options: object) -> str:
        # No hyphens and no "and", unlike training: "one hundred twenty one".
        return num2words(value, **options).replace("-", " ").replace(" and ", " ").replace(",", "")

    def decimal(digits: str) -> str:
        # An amount loses its sign, and is a decimal number even where it is whole: "$5" is "five point zero".
        whole, fraction = str(float(digits)).split(".")
        return f"{words(int(whole))} point {' '.join(words(int(digit)) for digit in fraction)}"

    def spelled(convert: Callable[[re.Match[str]], str]) -> Callable[[re.Match[str]], str]:
        def spell(match: re.Match[str]) -> str:
            try:
                return convert(match)
            except (OverflowError, ValueError):  # beyond the words there are
                return match[0]

        return spell

    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}\b)", "", text)
    text = _AMOUNT.sub(spelled(lambda match: decimal(match[1] or match[2])), text)
    text = _ORDINAL.sub(spelled(lambda match: words(int(match[1]), ordinal=True)), text)
    return _NUMBER.sub(spelled(lambda match: decimal(match[0]) if "." in match[0] else words(int(match[0]))), text)


# --- Kana ---

_VOWEL_ROWS = {
    "": "あいうえお",
    "k": "かきくけこ",
    "s": "さしすせそ",
    "t": "たちつてと",
    "n": "なにぬねの",
    "h": "はひふへほ",
    "m": "まみむめも",
    "r": "らりるれろ",
    "g": "がぎぐげご",
    "z": "ざじずぜぞ",
    "d": "だぢづでど",
    "b": "ばびぶべぼ",
    "p": "ぱぴぷぺぽ",
}
_HEPBURN = {"si": "shi", "ti": "chi", "tu": "tsu", "hu": "fu", "zi": "ji", "di": "ji", "du": "zu"}
_KANA = {
    kana: _HEPBURN.get(consonant + vowel, consonant + vowel)
    for consonant, row in _VOWEL_ROWS.items()
    for vowel, kana in zip("aiueo", row, strict=True)
} | {"や": "ya", "ゆ": "yu", "よ": "yo", "わ": "wa", "ゐ": "i", "ゑ": "e", "を": "o", "ん": "n", "ゔ": "vu"}
_SMALL = {"ゃ": "ya", "ゅ": "yu", "ょ": "yo", "ぁ": "a", "ぃ": "i", "ぅ": "u", "ぇ": "e", "ぉ": "o", "ゎ": "wa"}


def kana_to_romaji(line: str) -> str:
    """Hepburn letter by letter (は is always `ha`); what is no kana stays."""
    text = "".join(chr(ord(letter) - 0x60) if "ァ" <= letter <= "ヴ" else letter for letter in line)
    result: list[str] = []
    double = False
    for index, letter in enumerate(text):
        if letter == "っ":
            double = True
            continue
        if letter == "ー" and result and result[-1][-1:] in "aiueo" and index:
            result.append(result[-1][-1:])
            continue
        if letter in _SMALL and result and text[index - 1] in _KANA and result[-1].endswith(("i", "u", "e", "o")):
            stem, small = result[-1][:-1], _SMALL[letter]
            # き + ゃ is kya, but し, ち and じ have the sound in their consonant already.
            result[-1] = stem + (small[1:] if small[0] == "y" and stem in ("sh", "ch", "j") else small)
            continue
        sound = _KANA.get(letter) or _SMALL.get(letter) or letter
        if double:
            result.append(("t" if sound.startswith("ch") else sound[:1]) if letter in _KANA else "")
            double = False
        result.append(sound)
    return "".join(result)


# --- Writing ---


def write_lyrics(ids: list[int], vocabulary: Tokenizer) -> str:
    """A text whose reading by ComfyUI is `ids`, as far as there is one (compare with `token_ids`).

    `ids` are those of a training, [0] where it had no lyrics: ComfyUI can only be given an empty text for that. The
    last line of lyrics that were cut at the longest length gets a line end more.
    """
    if ids == [0]:
        return ""
    codes = {vocabulary.token_to_id(tag): language for language, tag in _CODES.items()}
    lines: list[str] = []
    text: str | None = None  # of the line that is being read; None between lines
    for position, token in enumerate(ids[1:], start=1):
        following = ids[position + 1] if position + 1 < len(ids) else None
        if token == _SPACE and (text is None or following is None or following == _SPACE or following in codes):
            lines.append(text or "")
            text = None
        elif text is None:
            text = f"[{codes[token]}]" if token in codes else _spelled(token, vocabulary)
        else:
            text += _spelled(token, vocabulary)
    if text is not None:
        lines.append(text)
    return escape("\n".join(_plain_heading(line) for line in lines))


def _spelled(token: int, vocabulary: Tokenizer) -> str:
    if token == _SPACE:
        return " "
    return UNKNOWN_SIGN if token == _UNKNOWN else vocabulary.id_to_token(token) or UNKNOWN_SIGN


def _plain_heading(line: str) -> str:
    """`[verse]` for `[en][verse]`: a line that begins with a bracket is English anyway."""
    text = line.removeprefix("[en]")
    if text == f"{UNKNOWN_SIGN}instrumental{UNKNOWN_SIGN}":
        return "[instrumental]"
    return text if line != text and text.startswith("[") and "]" in text else line
