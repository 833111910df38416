"""One line of lyrics as the vocabulary spells it: lower case, numbers and signs in words, Chinese in pinyin, Korean and
Japanese in Latin letters.

    "Mr. Wong pays $5"  (en)  ->  "mister wong pays five dollars"
    "重庆的长江"         (zh)  ->  "chong2qing4de5chang2jiang1"

Spec: prepare, abbreviations and symbols, transliteration.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable

from ace_lora.lyrics.japanese import romanise_japanese
from ace_lora.lyrics.numbers import spell_numbers
from ace_lora.lyrics.zh_numbers import normalize_zh

SUPPORTED_LANGUAGES = (
    "en",
    "de",
    "fr",
    "es",
    "it",
    "pt",
    "pl",
    "tr",
    "ru",
    "cs",
    "nl",
    "ar",
    "zh",
    "ja",
    "hu",
    "ko",
    "hi",
)

_WHITE_SPACE_RUN = re.compile(r"\s+")


def prepare(line: str, language: str) -> str:
    """The text of `line` that is handed to the vocabulary, for one of SUPPORTED_LANGUAGES.

    Raises MissingLyricSupport for "ja" when the Japanese packages are not installed.
    """
    if language == "ja":
        return romanise_japanese(line).lower()
    if language == "hi":
        return _WHITE_SPACE_RUN.sub(" ", line.lower())
    text = line.replace('"', "")
    if language == "tr":
        text = text.translate(_TURKISH_CAPITALS)
    text = text.lower()
    # Numbers before symbols ("50%", "$5"), lower case before abbreviations.
    text = _unless_it_fails(normalize_zh if language == "zh" else lambda line: spell_numbers(line, language), text)
    text = _unless_it_fails(lambda line: expand_abbreviations(line, language), text)
    text = text.translate(_SYMBOLS[language])
    text = _WHITE_SPACE_RUN.sub(" ", text.strip())
    if language == "zh":
        return to_pinyin(text)
    if language == "ko":
        return romanise_korean(text)
    return text


def _unless_it_fails(step: Callable[[str], str], text: str) -> str:
    try:
        return step(text)
    except Exception:
        # The published rule: a step that cannot be done (a number that num2words cannot say) changes nothing. What
        # could fail for a reason of ours, a missing package, is checked before the first line (LyricTokenizer).
        return text


_TURKISH_CAPITALS = str.maketrans("İÖÜ", "iöü")  # lower() would make two characters of İ

# In the order in which they are applied, one after the other.
_ABBREVIATION_TABLE = {
    "en": "mrs→misess, mr→mister, dr→doctor, st→saint, co→company, jr→junior, maj→major, gen→general, drs→doctors, "
    "rev→reverend, lt→lieutenant, hon→honorable, sgt→sergeant, capt→captain, esq→esquire, ltd→limited, col→colonel, "
    "ft→fort",
    "es": "sra→señora, sr→señor, dr→doctor, dra→doctora, st→santo, co→compañía, jr→junior, ltd→limitada",
    "fr": "mme→madame, mr→monsieur, dr→docteur, st→saint, co→compagnie, jr→junior, ltd→limitée",
    "de": "fr→frau, dr→doktor, st→sankt, co→firma, jr→junior",
    "pt": "sra→senhora, sr→senhor, dr→doutor, dra→doutora, st→santo, co→companhia, jr→júnior, ltd→limitada",
    "it": "sig→signore, dr→dottore, st→santo, co→compagnia, jr→junior, ltd→limitata",
    "pl": "p→pani, m→pan, dr→doktor, sw→święty, jr→junior",
    "cs": "dr→doktor, ing→inženýr, p→pan",
    "ru": "г-жа→госпожа, г-н→господин, д-р→доктор",
    "nl": "dhr→de heer, mevr→mevrouw, dr→dokter, jhr→jonkheer",
    "tr": "b→bay, byk→büyük, dr→doktor",
    "hu": "dr→doktor, b→bácsi, nőv→nővér",
}
_ABBREVIATIONS = {
    language: [
        # Russian ones have a hyphen of their own and no dot behind.
        (re.compile(rf"\b{re.escape(short)}" + (r"\b" if language == "ru" else r"\."), re.IGNORECASE), long)
        for short, long in (entry.split("→") for entry in table.split(", "))
    ]
    for language, table in _ABBREVIATION_TABLE.items()
}

_SYMBOL_WORDS = {
    "en": "and|at|percent|hash|dollar|pound|degree",
    "es": "y|arroba|por ciento|numeral|dolar|libra|grados",
    "fr": "et|arobase|pour cent|dièse|dollar|livre|degrés",
    "de": "und|at|prozent|raute|dollar|pfund|grad",
    "pt": "e|arroba|por cento|cardinal|dólar|libra|graus",
    "it": "e|chiocciola|per cento|cancelletto|dollaro|sterlina|gradi",
    "pl": "i|małpa|procent|krzyżyk|dolar|funt|stopnie",
    "ar": "و|على|في المئة|رقم|دولار|جنيه|درجة",
    "zh": "和|在|百分之|号|美元|英镑|度",
    "cs": "a|na|procento|křížek|dolar|libra|stupně",
    "ru": "и|собака|процентов|номер|доллар|фунт|градус",
    "nl": "en|bij|procent|hekje|dollar|pond|graden",
    "tr": "ve|at|yüzde|diyez|dolar|sterlin|derece",
    "hu": "és|kukac|százalék|kettőskereszt|dollár|font|fok",
    "ko": "그리고|에|퍼센트|번호|달러|파운드|도",
}
_SYMBOLS = {
    language: str.maketrans({sign: f" {word} " for sign, word in zip("&@%#$£°", words.split("|"), strict=True)})
    for language, words in _SYMBOL_WORDS.items()
}


def expand_abbreviations(text: str, language: str) -> str:
    """`"dr. who"` gives `"doctor who"` in English; languages without abbreviations are left alone."""
    for pattern, long in _ABBREVIATIONS.get(language, ()):
        text = pattern.sub(long, text)
    return text


def to_pinyin(text: str) -> str:
    """Pinyin with tone digits and no separators; ü is `v`, what is not Chinese passes through.

    The whole line at once: the phrase dictionary needs the neighbours to choose between readings.
    """
    import pypinyin

    syllables = pypinyin.pinyin(text, style=pypinyin.Style.TONE3, heteronym=False, neutral_tone_with_five=True)
    return "".join(readings[0] for readings in syllables)


# --- Korean ---

_HANGUL_SYLLABLE = re.compile("[\uac00-\ud7a3]")
_INITIALS = ("g", "kk", "n", "d", "tt", "l", "m", "b", "pp", "s", "ss", "", "j", "jj", "ch", "k", "t", "p", "h")
_VOWELS = (
    *("a", "ae", "ya", "yae", "eo", "e", "yeo", "ye", "o", "wa", "wae", "oe", "yo", "u", "wo", "we", "wi", "yu", "eu"),
    *("ui", "i"),
)
_FINALS = (
    *(
        "",
        "g",
        "kk",
        "gs",
        "n",
        "nj",
        "nh",
        "d",
        "l",
        "lg",
        "lm",
        "lb",
        "ls",
        "lt",
        "lp",
        "lh",
        "m",
        "b",
        "bs",
        "s",
        "ss",
    ),
    *("ng", "j", "ch", "k", "t", "p", "h"),
)


# A hyphen separates two syllables whose letters could be cut into final and initial in more than one way: "gg" (각각)
# has one reading, "kk" (바까) has two.
_READINGS = collections.Counter(final + initial for final in _FINALS for initial in _INITIALS if initial)
_HYPHENATED = {
    (final, initial) for final in _FINALS for initial in _INITIALS if not initial or _READINGS[final + initial] > 1
}


def romanise_korean(text: str) -> str:
    """Hangul letter by letter, without sound changes: `"값이 없어"` gives `"gabs-i eobs-eo"`."""
    romanised: list[str] = []
    previous_final = None  # of the syllable directly in front
    for character in text:
        if not _HANGUL_SYLLABLE.match(character):
            romanised.append(character)
            previous_final = None
            continue
        index = ord(character) - 0xAC00
        initial, vowel, final = _INITIALS[index // 588], _VOWELS[index // 28 % 21], _FINALS[index % 28]
        if (previous_final, initial) in _HYPHENATED:
            romanised.append("-")
        romanised.append(initial + vowel + final)
        previous_final = final
    return "".join(romanised)
