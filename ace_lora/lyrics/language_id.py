"""The language of a piece of text, guessed exactly as the published model's training did.

The boundaries between guessed languages are visible in the token ids, so no other identifier and no other version
will do. Spec: language identifier, `squash`.
"""

from __future__ import annotations

import functools
import re

from ace_lora.lyrics.packages import MissingLyricSupport, require_package

_NON_WORD_RUN = re.compile(r"\W+")
_REPEATED_CHARACTER = re.compile(r"(.)\1+", re.DOTALL)


def squash(text: str) -> str:
    """The only form of text that the identifier ever sees: `"Hello,  aaa!"` gives `"Helo a"`.

    Runs of non-word characters become one space, then runs of one character become that character.
    """
    return _REPEATED_CHARACTER.sub(r"\1", _NON_WORD_RUN.sub(" ", text)).strip()


@functools.lru_cache(maxsize=16384)
def identify(squashed: str) -> tuple[str, float]:
    """ISO 639-1 code and probability (rounded to 3 decimals, as every threshold expects) of squashed text.

    About 0.2 ms; remembered by string, because choruses repeat. The empty string gives `("en", 0.169)`.
    Raises MissingLyricSupport when py3langid is missing or not the version whose model the ids depend on.
    """
    identifier = _load_identifier()
    try:
        language, probability = identifier.classify(squashed)
    except OverflowError:
        # Feature counts are uint16 by default; only a line of several hundred kilobytes goes beyond.
        language, probability = identifier.classify(squashed, datatype="uint32")
    return str(language), round(float(probability), 3)


@functools.lru_cache(maxsize=1)
def _load_identifier():
    require_package("py3langid", exactly=True)
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise MissingLyricSupport(
            f"The language identifier of the lyrics cannot be loaded ({error}). "
            "It needs py3langid 0.3.0 and numpy 2 or newer. Run: pip install py3langid==0.3.0 numpy"
        ) from error
    return LanguageIdentifier.from_pickled_model(MODEL_FILE, norm_probs=True)


def language_name(code: str) -> str:
    """`"ms"` gives `"Malay (ms)"`; a code without a known name is returned as it is."""
    name = _LANGUAGE_NAMES.get(code)
    return f"{name} ({code})" if name else code


_LANGUAGE_NAMES: dict[str, str] = dict(
    re.findall(
        r"(\w+) ([^;]+)",
        "af Afrikaans;am Amharic;an Aragonese;ar Arabic;as Assamese;az Azerbaijani;be Belarusian;bg Bulgarian;"
        "bn Bengali;br Breton;bs Bosnian;ca Catalan;cs Czech;cy Welsh;da Danish;de German;dz Dzongkha;el Greek;"
        "en English;eo Esperanto;es Spanish;et Estonian;eu Basque;fa Persian;fi Finnish;fo Faroese;fr French;"
        "ga Irish;gl Galician;gu Gujarati;he Hebrew;hi Hindi;hr Croatian;ht Haitian Creole;hu Hungarian;"
        "hy Armenian;id Indonesian;is Icelandic;it Italian;ja Japanese;jv Javanese;ka Georgian;kk Kazakh;km Khmer;"
        "kn Kannada;ko Korean;ku Kurdish;ky Kyrgyz;la Latin;lb Luxembourgish;lo Lao;lt Lithuanian;lv Latvian;"
        "mg Malagasy;mk Macedonian;ml Malayalam;mn Mongolian;mr Marathi;ms Malay;mt Maltese;nb Norwegian Bokmål;"
        "ne Nepali;nl Dutch;nn Norwegian Nynorsk;no Norwegian;oc Occitan;or Odia;pa Punjabi;pl Polish;ps Pashto;"
        "pt Portuguese;qu Quechua;ro Romanian;ru Russian;rw Kinyarwanda;se Northern Sami;si Sinhala;sk Slovak;"
        "sl Slovenian;sq Albanian;sr Serbian;sv Swedish;sw Swahili;ta Tamil;te Telugu;th Thai;tl Tagalog;tr Turkish;"
        "ug Uyghur;uk Ukrainian;ur Urdu;vi Vietnamese;vo Volapük;wa Walloon;xh Xhosa;zh Chinese;zu Zulu",
    )
)
