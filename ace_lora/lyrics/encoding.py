"""Texts in the encodings that people's files have: Unicode is known, anything else is a guess, and told as one.

Standard library; the language identifier is asked where Western code pages have to be told apart.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from ace_lora.files import MAX_TEXT_BYTES, read_bytes
from ace_lora.lyrics.language_id import identify, squash
from ace_lora.lyrics.packages import MissingLyricSupport

# Share of characters that are no text from which on a guessed encoding is wrong, or the file none at all. Some players
# leave a few of them.
MOST_STRANGE_CHARACTERS = 0.05
_NO_TEXT = ("Cc", "Cn", "Co", "Cs")
# Broken bytes among so many whole characters are damage in a UTF-8 file, not another encoding.
_WHOLE_PER_BROKEN = 10
DAMAGED_UTF8 = "utf-8 with broken bytes"
_HIGH_RUN = re.compile(rb"[\x80-\xff]+")
# Code pages that share most bytes with cp1252; the language that their text is in tells them apart.
_LATIN_PAGES = {"cp1250": ("pl", "cs", "hu", "sk", "sl", "hr", "ro"), "cp1254": ("tr",)}


class UnknownEncoding(Exception):
    """A text file is in none of the encodings that lyrics come in."""


def decode_lyrics(data: bytes, name: str, encoding: str | None = None) -> tuple[str, str]:
    """(text, encoding) of a text file: UTF-8, UTF-16, else the code page that fits it. `encoding`: the user's word.

    `is_guess(encoding)` tells whether the answer needs to be asked about. Raises UnknownEncoding.
    """
    if encoding is not None:
        return _strictly(data, encoding, name), encoding
    for mark, marked in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return _strictly(data, marked, name), marked
    if b"\0" in data:
        # UTF-16 without a byte-order mark: in line ends and stamps every second byte is zero.
        encoding = "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
    else:
        try:
            return data.decode("utf-8"), "utf-8"
        except UnicodeDecodeError:
            text = data.decode("utf-8", errors="replace")
            broken = text.count("\ufffd")
            if sum(ord(character) >= 0x80 for character in text) - broken >= _WHOLE_PER_BROKEN * broken:
                return text.replace("\ufffd", ""), DAMAGED_UTF8
            encoding = legacy_encoding(data)
    text = _strictly(data, encoding, name)
    strange = [character for character in text if not _is_text(character)]
    if len(strange) > MOST_STRANGE_CHARACTERS * len(text):
        raise UnknownEncoding(
            f"'{name}' is no text, or in an encoding that is not known: read as {encoding}, {len(strange)} of "
            f"{len(text)} characters are none. Open it in an editor that shows the text correctly and save it as UTF-8."
        )
    return text, encoding


def read_any_text(path: Path, encoding: str | None = None) -> tuple[str, str]:
    """(text, encoding) of a prompt or lyrics file, its line ends as `\\n`, stripped at both ends.

    `encoding`: of files that are not in Unicode, in place of a guess. Raises UnknownEncoding, UnusableFile (a folder,
    too large), OSError.
    """
    data = read_bytes(path, MAX_TEXT_BYTES)
    text, found = decode_lyrics(data, path.name)
    if encoding is not None and is_guess(found):
        text, found = decode_lyrics(data, path.name, encoding)
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").strip(), found


def is_guess(encoding: str) -> bool:
    """Whether an answer of `decode_lyrics` was guessed from the bytes."""
    return not encoding.startswith(("utf-8", "utf-16")) or encoding == DAMAGED_UTF8


def _is_text(character: str) -> bool:
    """Whether lyrics may hold the character: no control, surrogate, private or unassigned one, no byte-order mark."""
    return character.isspace() or (unicodedata.category(character) not in _NO_TEXT and character != "\ufeff")


def _strictly(data: bytes, encoding: str, name: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnknownEncoding(
            f"'{name}' is neither UTF-8 nor {encoding}: byte 0x{data[error.start]:02x} at {error.start} fits neither. "
            "Open it in an editor that shows the text correctly and save it as UTF-8."
        ) from error


def legacy_encoding(data: bytes) -> str:
    """The code page of lyrics that are not UTF-8: GB18030 unless another fits clearly better.

    charset-normalizer takes a few words of GB18030 for Korean and Shift JIS for Korean as well, so the choice is made
    by what lyrics consist of: each East Asian code page keeps its common characters in a range of lead bytes.
    """
    if _is_western(data):
        return _latin_page(data)
    if _share(data, "cp932", lambda character, _: "\u3040" <= character <= "\u30ff") > 0.3:
        return "cp932"
    # Lower-case Cyrillic, which as East Asian text would be nothing but rare characters.
    for page in ("cp1251", "koi8-r"):
        if _share(data, page, lambda character, _: "\u0430" <= character <= "\u044f" or character == "ё") > 0.7 and (
            # Common Chinese characters are small letters in KOI8-R, without being words.
            page == "cp1251" or _is_in(data, page, ("ru",))
        ):
            return page
    simplified = _share(data, "gb18030", _common(0xA1, 0xD7))  # punctuation and the 3755 characters of level 1
    traditional = _share(data, "big5", _common(0xA1, 0xC6))  # punctuation and the 5401 characters of level 1
    hangul = _share(data, "cp949", _common(0xA1, 0xC8))  # punctuation and the 2350 syllables of KS X 1001
    if traditional > simplified + 0.1 and traditional > hangul:
        return "big5"
    # All Hangul lead bytes are also lead bytes of common Chinese characters, but not the other way round: ten
    # characters in a row without one that only Chinese has are hardly Chinese.
    if hangul == 1 and sum(byte >= 0x80 for byte in data) >= 20:
        return "cp949"
    return "gb18030"


def _is_western(data: bytes) -> bool:
    """Whether high bytes are what accented letters are: alone or in pairs, and inside words of plain letters.

    Elsewhere they stand together. Pairs alone could be a Chinese character each; then most must be small letters.
    """
    runs = list(_HIGH_RUN.finditer(data))
    high = sum(len(run.group()) for run in runs)
    alone = sum(len(run.group()) == 1 for run in runs)
    if alone > 0.5 * high:
        return True
    inside = sum(
        data[run.start() - 1 : run.start()].isalpha() or data[run.end() : run.end() + 1].isalpha() for run in runs
    )
    if max(len(run.group()) for run in runs) > 3 or high > 0.5 * len(data) or inside < 0.8 * len(runs):
        return False
    small = sum(byte >= 0xDF and byte != 0xF7 for run in runs for byte in run.group())
    return alone > 0 or small > 0.8 * high


def _latin_page(data: bytes) -> str:
    return next((page for page, languages in _LATIN_PAGES.items() if _is_in(data, page, languages)), "cp1252")


def _is_in(data: bytes, page: str, languages: tuple[str, ...]) -> bool:
    """Whether `data`, read in `page`, is certainly in one of `languages`."""
    try:
        language, probability = identify(squash(data.decode(page)))
    except (UnicodeDecodeError, MissingLyricSupport):
        return False
    return language in languages and probability > 0.9


def _common(first: int, last: int) -> Callable[[str, bytes], bool]:
    """Whether a character is two bytes with a lead byte in `first`..`last` and a high second byte (or any in Big5)."""
    lowest_second = 0x40 if last == 0xC6 else 0xA1
    return lambda _, pair: len(pair) == 2 and first <= pair[0] <= last and pair[1] >= lowest_second


def _share(data: bytes, encoding: str, expected: Callable[[str, bytes], bool]) -> float:
    """The share of non-ASCII characters of `data`, read in `encoding`, that are `expected`; 0 if it cannot be read."""
    try:
        text = data.decode(encoding)
        foreign = [character for character in text if ord(character) >= 0x80]
        return sum(expected(character, character.encode(encoding)) for character in foreign) / max(1, len(foreign))
    except UnicodeError:
        return 0.0


def mend_latin1(text: str) -> str:
    """Text that a tag says is Latin-1 but that holds UTF-8 or another code page, as many Chinese files do."""
    if text.isascii() or any(ord(character) > 0xFF for character in text):
        return text
    data = text.encode("latin-1")
    try:
        mended, encoding = decode_lyrics(data, "tag")
    except UnknownEncoding:
        return text
    # Western pages are what Latin-1 is; the C1 controls of true Latin-1 are quotation marks in cp1252.
    return mended if encoding != "cp1252" or re.search(r"[\x80-\x9f]", text) else text
