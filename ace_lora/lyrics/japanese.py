"""Japanese lines in Latin letters, by cutlet with the dictionary unidic-lite; an optional extra of about 250 MB.

Loaded only when a song needs it. Spec: transliteration of ja, libraries.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from pathlib import Path

from ace_lora.lyrics.packages import MissingLyricSupport, japanese_install_command


def require_japanese(song: str = "") -> None:
    """Raise MissingLyricSupport, naming the song, unless cutlet, fugashi and unidic-lite are usable."""
    whose = f"The lyrics of '{song}'" if song else "The lyrics"
    try:
        _load_cutlet()
    except ImportError as error:
        raise MissingLyricSupport(
            f"{whose} contain Japanese. "
            f"Install the Japanese support (about 250 MB on disk): {japanese_install_command()}"
        ) from error
    except RuntimeError as error:
        raise MissingLyricSupport(
            "Japanese dictionary not found: pip install unidic-lite==1.0.8, and uninstall unidic"
        ) from error


def romanise_japanese(line: str) -> str:
    """Hepburn, foreign words spelled as abroad, ASCII only (`?` for what has no reading).

    Raises MissingLyricSupport as `require_japanese` does, and what cutlet raises for a line that it cannot read.
    """
    require_japanese()
    return _load_cutlet().romaji(line)


@functools.lru_cache(maxsize=1)
def _load_cutlet():
    cutlet = _import_cutlet()
    import unidic_lite

    # fugashi prefers the full unidic where that is installed, which reads some words differently. Options given
    # later win, so this forces unidic-lite. Forward slashes, because fugashi splits the options as a shell would.
    dictionary = Path(unidic_lite.DICDIR).as_posix()
    return cutlet.Cutlet(mecab_args=f'-r "{dictionary}/mecabrc" -d "{dictionary}"')


def _import_cutlet() -> types.ModuleType:
    """Import cutlet, with a stand-in for mojimoji where that cannot be installed.

    mojimoji has no wheels for Windows with Python 3.13 and newer. cutlet uses two of its functions, behind an NFKC
    normalisation that has already done all of their work but three quotation marks.
    """
    if importlib.util.find_spec("mojimoji") is not None:
        import cutlet

        return cutlet
    stand_in = types.ModuleType("mojimoji")
    stand_in.zen_to_han = _quotation_marks_to_ascii  # type: ignore[attr-defined]
    stand_in.han_to_zen = lambda text, **options: text  # type: ignore[attr-defined]
    sys.modules["mojimoji"] = stand_in
    try:
        import cutlet
    finally:
        # cutlet keeps its own reference; nobody else should take the stand-in for the package.
        del sys.modules["mojimoji"]
    return cutlet


def _quotation_marks_to_ascii(text: str, **options: bool) -> str:
    return text.translate(_QUOTATION_MARKS)


_QUOTATION_MARKS = str.maketrans("‘’”", "`'\"")
