"""Numbers, amounts and ordinals written out in words, for all languages but Chinese, Japanese and Hindi.

The words come from num2words; what is recognised, and what is left alone, is what the published model was trained
with. Spec: numbers. Czech is asked for under a code that num2words does not know (`cz`), so Czech ordinals, decimals
and integers always raise here and stay digits; that is how the model knows them.
"""

from __future__ import annotations

import decimal
import functools
import re

# ASCII digits are written [0-9] and every Unicode decimal digit \d; the two are not interchangeable here.
# The look-behinds change no match; they keep the search linear in a long row of digits.
_GROUPED_WITH_COMMAS = re.compile(r"\b\d{1,3}(?:,\d{3})*(?:\.\d+)?\b")
# Any character may stand between the groups: "12345.678" becomes "12345678", "1 234.500" is one number.
_GROUPED_WITH_DOTS = re.compile(r"\b\d{1,3}(?:.\d{3})*(?:,\d+)?\b")
_DECIMAL = re.compile(r"(?<![0-9])[0-9]+[.,][0-9]+")
_INTEGER = re.compile(r"[0-9]+")

# In the order of the conversion.
_CURRENCIES = (("£", "GBP"), ("$", "USD"), ("€", "EUR"))
_AMOUNTS = tuple(
    (re.compile(rf"{re.escape(sign)}[0-9.,]*[0-9]|(?<![0-9.,])[0-9.,]*[0-9]{re.escape(sign)}"), code)
    for sign, code in _CURRENCIES
)
_CENTS_JOINER = {"es": " con ", "fr": " et ", "de": " und ", "pt": " e ", "it": " e "}

# The order of the alternatives matters: Spanish "3os" loses "3o" and keeps "s".
_ORDINAL = {
    language: re.compile(rf"(?<![0-9])([0-9]+)(?:{suffixes})")
    for language, suffixes in {
        "en": "st|nd|rd|th",
        "es": "º|ª|er|o|a|os|as",
        "fr": "º|ª|er|re|e|ème",
        "de": r"st|nd|rd|th|º|ª|\.(?=\s|$)",
        "pt": "º|ª|o|a|os|as",
        "it": "º|°|ª|o|a|i|e",
        "pl": "º|ª|st|nd|rd|th",
        "ar": "ون|ين|ث|ر|ى",
        "cs": r"\.(?=\s|$)",
        "ru": "-й|-я|-е|-ое|-ье|-го",
        "nl": "de|ste|e",
        "tr": r"\.|inci|nci|uncu|üncü",
        "hu": r"\.|adik|edik|odik|ödik|ödike|ik",
        "ko": "번째|번|차|째",
    }.items()
}


def spell_numbers(text: str, language: str) -> str:
    """Write the numbers of lower-case `text` in words of `language` (a key of the ordinals table above).

    Raises whatever num2words raises for what it cannot say (a number beyond its range, Czech); the text then stays
    as it was, which is the caller's part.
    """
    # num2words' Arabic changes the precision of the process-wide decimal context for long numbers.
    with decimal.localcontext():
        text = _drop_thousands_separators(text, language)
        text = _spell_amounts(text, language)
        if language != "tr":
            text = _DECIMAL.sub(lambda match: _words(float(match[0].replace(",", ".")), language), text)
        text = _ORDINAL[language].sub(lambda match: _words(int(match[1]), language, ordinal=True), text)
        return _INTEGER.sub(lambda match: _words(int(match[0]), language), text)


def _drop_thousands_separators(text: str, language: str) -> str:
    if language in ("en", "ru"):
        return _GROUPED_WITH_COMMAS.sub(lambda match: match[0].replace(",", ""), text)
    return _GROUPED_WITH_DOTS.sub(lambda match: match[0].replace(".", ""), text)


def _spell_amounts(text: str, language: str) -> str:
    try:
        for pattern, code in _AMOUNTS:
            text = pattern.sub(functools.partial(_amount_words, code=code, language=language), text)
    except Exception:
        # A currency that num2words cannot say in this language, or two dots in one amount. The reference stops here
        # as well: currencies done before stay done, the rest of the signs become words with the symbols later.
        return text
    return text


def _amount_words(amount: re.Match[str], code: str, language: str) -> str:
    value = float(re.sub(r"[^0-9.]", "", amount[0].replace(",", ".")))
    words = _words(value, language, to="currency", currency=code)
    if value.is_integer():
        words = words.rpartition(_CENTS_JOINER.get(language, ", "))[0] or words
    return words


def _words(value: float | int, language: str, **options) -> str:
    from num2words import num2words

    return num2words(value, lang="cz" if language == "cs" else language, **options)
