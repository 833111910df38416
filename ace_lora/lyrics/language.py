"""What a song's text says of its language, beside what the model will read it as: `language_remarks(…)`.

The model's own vote is taken line by line, as in its training, and stays what it is; the whole text tells better
(29 of 29 short texts against 25). Where the two differ, or neither can know, the user is told and can set it.
"""

from __future__ import annotations

import re
import unicodedata

from ace_lora.lyrics.cleaners import SUPPORTED_LANGUAGES
from ace_lora.lyrics.language_id import identify, language_name
from ace_lora.lyrics.sorting import script_of
from ace_lora.lyrics.text import sung_lines
from ace_lora.lyrics.tokenize import LyricTokens

# Fewer words or syllables are too few for the identifier and for people alike.
FEWEST_WORDS, FEWEST_CHARACTERS = 6, 8
_CERTAIN = 0.9
_LANGUAGES_OF_SCRIPTS = {"kana": "ja", "hangul": "ko", "han": "zh", "arabic": "ar", "devanagari": "hi"}
# Share of the words from which on a second script is more than a shout.
_SHARE_OF_SECOND = 0.15
# Characters of everyday Chinese that Japanese does not use, and of Cantonese that Mandarin does not.
_CHINESE_ONLY = re.compile("[你您们們她妳這这吗嗎呢吧么麼谁给給让讓爱说话为时见过还从对开关问听觉记忆边谢难欢乐]")
_CANTONESE = re.compile("[嘅咗喺冇唔哋嚟啲嘢佢咁乜睇嗰嘥咩喎啱攞揾瞓諗]")
_WORD = re.compile(r"[^\W\d_]+")
_HAN_CHARACTER = re.compile("[\u3400-\u9fff]")


def whole_language(lyrics: str) -> tuple[str, float]:
    """ISO 639-1 code and probability of the language of a whole text, structure tags aside; ("", 0.0) without words."""
    text = " ".join(" ".join(sung_lines(lyrics.split("\n"))).split())
    weights = _weights(text)
    if not weights:
        return "", 0.0
    script = max(weights, key=lambda name: weights[name])
    if script in _LANGUAGES_OF_SCRIPTS:
        return _LANGUAGES_OF_SCRIPTS[script], 1.0
    # Words of another script would only mislead the identifier (a Chinese and English text is Latin to it).
    words = [word for word in text.split() if script_of(word) in (script, "")]
    return identify(" ".join(words))


def _weights(text: str) -> dict[str, int]:
    """Words per script; a Chinese or Japanese character counts as one. Kanji belong to the kana beside them."""
    weights: dict[str, int] = {}
    for word in _WORD.findall(text):
        script = script_of(word)
        size = len(word) if script in ("han", "kana") else 1
        weights[script] = weights.get(script, 0) + size
    weights.pop("", None)
    if "kana" in weights and "han" in weights and not _CHINESE_ONLY.search(text):
        weights["kana"] += weights.pop("han")
    return weights


def language_remarks(lyrics: str, tokens: LyricTokens, chosen: str | None) -> list[str]:
    """Sentences on the language of `lyrics`, which were tokenised as `tokens`; `chosen`: what the user set it to."""
    sung = " ".join(sung_lines(lyrics.split("\n")))
    weights = _weights(sung)
    if not weights or lyrics.strip().lower() == "[instrumental]":
        return []
    remarks = []
    main = tokens.main_language
    if chosen is None:
        remarks += _doubts(lyrics, sung, weights, tokens)
    if _CANTONESE.search(sung) and main == "zh":
        remarks.append(
            "This is Cantonese; the model knows Chinese in Mandarin readings only, so it learns other syllables than "
            "are sung. Expect unclear words."
        )
    remarks += _switching(weights, tokens, main)
    return remarks


def _doubts(lyrics: str, sung: str, weights: dict[str, int], tokens: LyricTokens) -> list[str]:
    main = tokens.main_language
    whole, probability = whole_language(lyrics)
    said = any(warning.startswith("The language was detected as") for warning in tokens.warnings)
    set_it = "set the language of this song"
    too_short = (
        f"These lyrics are too short to tell their language; they are read as {language_name(main)}. If that is wrong, "
        f"{set_it}."
    )
    if whole != main and whole in SUPPORTED_LANGUAGES and probability >= _CERTAIN:
        return [
            f"The model will read these lyrics as {language_name(main)}, line by line; the whole text is "
            f"{language_name(whole)}. If that is right, {set_it} to {whole}."
        ]
    if whole != main and probability >= _CERTAIN and whole not in SUPPORTED_LANGUAGES and not said:
        return [
            f"The whole text looks like {language_name(whole)}, which the model does not know; it will be read as "
            f"{language_name(main)}. If that is wrong, {set_it}."
        ]
    latin = weights.get("latin", 0) + weights.get("cyrillic", 0)
    others = sum(weights.values()) - latin
    if (latin < FEWEST_WORDS or probability < _CERTAIN) and others == 0:
        return [too_short]
    if set(weights) <= {"han"} and not _CHINESE_ONLY.search(sung):
        return [
            f"These lyrics hold Chinese characters alone, which Japanese has as well; they are read as "
            f"{language_name(main)}. If that is wrong, {set_it}."
        ]
    if others and others < FEWEST_CHARACTERS and latin < FEWEST_WORDS and set(weights) & {"han", "kana"}:
        return [too_short]
    return []


def _switching(weights: dict[str, int], tokens: LyricTokens, main: str) -> list[str]:
    misread = [line for line in tokens.lines if line.misread]
    remarks = []
    if main == "ja" and misread:
        remarks.append(
            f"Characters of {_lines(len(misread))} have no Japanese reading and become '?' (first: "
            f"'{misread[0].text[:60]}'). Write them in kana, or set the language of this song."
        )
    if main != "ja" and (foreign := [line for line in tokens.lines if line.language == "ja"]):
        lost = " and characters become '?'" if misread else ""
        remarks.append(
            f"{_lines(len(foreign))} with Chinese characters will be read as Japanese (first: '{foreign[0].text[:60]}')"
            f"{lost}. If they are Chinese, set the language of this song to zh."
        )
    total = sum(weights.values())
    parts = sorted(weights.items(), key=lambda item: -item[1])
    if len(parts) > 1 and parts[1][1] >= _SHARE_OF_SECOND * total:
        names = [_LANGUAGES_OF_SCRIPTS.get(script, "") for script, _ in parts[:2]]
        shown = " and ".join(
            language_name(name) if name else f"words in {script} letters"
            for name, (script, _) in zip(names, parts, strict=False)
        )
        remarks.append(
            f"These lyrics mix {shown}; nearly all lines are read as {language_name(main)}, as the model was trained. "
            "If most of the song is in the other language, set the language of this song."
        )
    return remarks


def _lines(number: int) -> str:
    return "1 line" if number == 1 else f"{number} lines"


def is_decomposed(text: str) -> bool:
    """Whether letters and their marks are apart (NFD), as macOS writes names; the model would know none of them."""
    return not unicodedata.is_normalized("NFC", text)
