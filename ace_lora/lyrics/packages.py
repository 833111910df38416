"""Which versions of which libraries the lyric ids were checked with, and what to say when they are not there.

Standard library only.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys

# A different version gives different ids (py3langid: another model; pypinyin: other polyphones in about one text of
# a hundred; num2words: other words), so these are exact.
EXACT_VERSIONS = {"py3langid": "0.3.0", "num2words": "0.5.14", "pypinyin": "0.53.0"}
# cutlet 0.5.0 and 0.5.2 agree; unidic-lite is the dictionary, hence the readings.
JAPANESE_EXACT_VERSIONS = {"unidic-lite": "1.0.8"}
JAPANESE_RANGES = {"cutlet": ((0, 5), (0, 6)), "fugashi": ((1, 3), (2,))}


class MissingLyricSupport(Exception):
    """A library that the lyrics need is not installed, or is not the version that the ids depend on.

    Never handled like a line that cannot be encoded: dropping all Japanese lines would train on half a song.
    """


def require_package(package: str, *, exactly: bool = False) -> None:
    """Raise MissingLyricSupport unless `package` of `EXACT_VERSIONS` is installed (`exactly`: in that version)."""
    pin = EXACT_VERSIONS[package]
    installed = _installed_version(package)
    if installed is None:
        raise MissingLyricSupport(
            f"Lyrics cannot be tokenised: the package {package} is not installed. Run: pip install {package}=={pin}"
        )
    if exactly and installed != pin:
        raise MissingLyricSupport(
            f"Lyrics cannot be tokenised: {package} {installed} is installed, but the token ids depend on {pin}. "
            f"Run: pip install {package}=={pin}"
        )


def version_warnings() -> list[str]:
    """One sentence per installed package whose version the ids were not checked with; for a script's start."""
    warnings = []
    for package, pin in (EXACT_VERSIONS | JAPANESE_EXACT_VERSIONS).items():
        installed = _installed_version(package)
        if installed is None and package in EXACT_VERSIONS:
            warnings.append(f"{package} is not installed; lyrics need it. Run: pip install {package}=={pin}")
        elif installed not in (None, pin):
            warnings.append(
                f"{package} {installed} is installed; lyric ids were checked with {pin} and may differ. "
                f"Run: pip install {package}=={pin}"
            )
    for package, (lowest, below) in JAPANESE_RANGES.items():
        installed = _installed_version(package)
        if installed is not None and not lowest <= _numbers(installed) < below:
            wanted = f"{package}>={_dotted(lowest)},<{_dotted(below)}"
            warnings.append(
                f"{package} {installed} is installed; Japanese lyric ids were checked with {wanted} and may differ. "
                f'Run: pip install "{wanted}"'
            )
    return warnings


def japanese_install_command() -> str:
    """The command that installs what Japanese lyrics need: ours, and plain pip for scripts copied elsewhere."""
    if sys.platform == "win32" and sys.version_info >= (3, 13):
        # cutlet asks for mojimoji, which has no wheels here and would need a C++ compiler; japanese.py does without.
        by_hand = "pip install --no-deps cutlet==0.5.2 fugashi jaconv unidic-lite==1.0.8"
    else:
        by_hand = "pip install cutlet==0.5.2 fugashi unidic-lite==1.0.8"
    return f"python start.py install japanese (or: {by_hand})"


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
