"""Lyrics that somebody wrote already: a `.lrc` or `.txt` beside the song, or the tags embedded in the audio file.

Read, never written: `.lrc` and `.txt` in the encodings that people's files have, ID3 (USLT, SYLT), Vorbis comments
(FLAC, Ogg, Opus) and MP4 atoms. mutagen is imported when a file's tags are read.
"""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ace_lora.lyrics.text import NO_VOICE, clean_lines
from ace_lora.lyrics.timed import TimedLine, parse_timed
from ace_lora.songs import INSTRUMENTAL, Song

# Vorbis comments and ID3 TXXX frames have no fixed name for lyrics; these are what players and taggers write.
# The ones with times come first.
_COMMENT_NAMES = ("syncedlyrics", "synced lyrics", "lyrics", "unsyncedlyrics", "unsynced lyrics")

# Share of characters that are no text from which on a guessed encoding is wrong, or the file none at all. Some players
# leave a few of them.
MOST_STRANGE_CHARACTERS = 0.05
_NO_TEXT = ("Cc", "Cn", "Co", "Cs")

# What music services write above the first sung line ("作词 : …", "Composed by: …"); nobody sings it.
_CREDIT = re.compile(
    r"(?:作?[词詞曲]|填[词詞]|[谱譜]曲|[编編]曲|演唱|原唱|歌手|歌名|[专專][辑輯]|制作人?|製作人?|[监監][制製]|混音|[录錄]音|母[带帶]|和[声聲]|"
    r"吉他|[贝貝]斯|鼓|[键鍵][盘盤]|弦[乐樂]|出品|[发發]行|统筹|企[划劃]|OP|SP|ISRC|"
    r"lyrics?(?: by)?|lyricist|composers?|composed by|music by|written by|writers?|arrange[rd](?: by)?|arrangement|"
    r"producers?|produced by|vocals?(?: by)?|mix(?:ed|ing)?(?: by| engineer)?|master(?:ed|ing)(?: by| engineer)?)"
    r"\s*[:：].*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FoundLyrics:
    """Lyrics from `source` (words for the log). `lines` have a time where the source gives one.

    Music without a voice is the single line `[instrumental]`.
    """

    source: str
    lines: tuple[TimedLine, ...]

    @property
    def text(self) -> str:
        """The lines without their times; of several empty ones in a row one is left."""
        return "\n".join(clean_lines("\n".join(line.text for line in self.lines)))

    @property
    def timed(self) -> bool:
        """Whether any line has a time."""
        return any(line.seconds is not None for line in self.lines)


def lyrics_beside(song: Song) -> FoundLyrics | None:
    """Lyrics in `<stem>.lrc`, else `<stem>.txt`, upper or lower case; None when there are none or they are empty.

    A `<stem>_lyrics.lrc` that stands without its `<stem>_lyrics.txt` is somebody's own, and comes first.
    Raises UnknownEncoding, OSError.
    """
    candidates = [] if song.lyrics.exists() else [song.timed_lyrics.name]
    candidates += [f"{song.stem}.lrc", f"{song.stem}.txt"]
    present = {path.name.casefold(): path for path in song.audio.parent.iterdir()}
    for name in candidates:
        path = present.get(name.casefold())
        if path is not None and path.is_file():
            text, encoding = decode_lyrics(path.read_bytes(), path.name)
            found = _found(path.name if encoding.startswith("utf") else f"{path.name} (read as {encoding})", text)
            if found is not None:
                return found
    return None


def embedded_lyrics(audio: Path) -> FoundLyrics | None:
    """Lyrics in the tags of an audio file, ones with times first; None when it has none.

    Raises UnreadableTags when the file's tags are damaged, OSError.
    """
    audio.open("rb").close()  # mutagen would hide an OSError in one of its own
    try:
        found = [(name, lines) for name, lines in _embedded(_read_tags(audio)) if lines]
    except Exception as error:
        # Damaged files make mutagen raise IndexError and the like as well as its own errors.
        raise UnreadableTags(
            f"The tags embedded in '{audio.name}' cannot be read ({error}). Repair them with a tag editor, "
            "or put the lyrics beside the song as a .lrc or .txt file."
        ) from error
    for name, lines in found:
        if any(line.seconds is not None for line in lines):
            return FoundLyrics(f"embedded {name}", lines)
    return FoundLyrics(f"embedded {found[0][0]}", found[0][1]) if found else None


class UnreadableTags(Exception):
    """The tags of an audio file are damaged."""


class UnknownEncoding(Exception):
    """A text file is in none of the encodings that lyrics come in."""


# --- Text ---


def decode_lyrics(data: bytes, name: str) -> tuple[str, str]:
    """(text, encoding) of a lyrics file: UTF-8, UTF-16, else the code page that fits it.

    Raises UnknownEncoding.
    """
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return _strictly(data, encoding, name), encoding
    if b"\0" in data:
        # UTF-16 without a byte-order mark: in line ends and stamps every second byte is zero.
        encoding = "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
    else:
        try:
            return data.decode("utf-8"), "utf-8"
        except UnicodeDecodeError:
            encoding = legacy_encoding(data)
    text = _strictly(data, encoding, name)
    strange = [character for character in text if not _is_text(character)]
    if len(strange) > MOST_STRANGE_CHARACTERS * len(text):
        raise UnknownEncoding(
            f"'{name}' is no text, or in an encoding that is not known: read as {encoding}, {len(strange)} of "
            f"{len(text)} characters are none. Open it in an editor that shows the text correctly and save it as UTF-8."
        )
    return text, encoding


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
    high = len(re.findall(rb"[\x80-\xff]", data))
    lone = len(re.findall(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])", data))
    if lone > 0.5 * high:
        # Accented letters between plain ones: a Western language. Elsewhere high bytes stand together.
        return "cp1252"
    if _share(data, "cp932", lambda character, _: "\u3040" <= character <= "\u30ff") > 0.3:
        return "cp932"
    # Lower-case Cyrillic, which as East Asian text would be nothing but rare characters.
    if _share(data, "cp1251", lambda character, _: "\u0430" <= character <= "\u044f" or character == "ё") > 0.7:
        return "cp1251"
    simplified = _share(data, "gb18030", _common(0xA1, 0xD7))  # punctuation and the 3755 characters of level 1
    traditional = _share(data, "big5", _common(0xA1, 0xC6))  # punctuation and the 5401 characters of level 1
    hangul = _share(data, "cp949", _common(0xA1, 0xC8))  # punctuation and the 2350 syllables of KS X 1001
    if traditional > simplified + 0.1 and traditional > hangul:
        return "big5"
    # All Hangul lead bytes are also lead bytes of common Chinese characters, but not the other way round: ten
    # characters in a row without one that only Chinese has are hardly Chinese.
    if hangul == 1 and high >= 20:
        return "cp949"
    return "gb18030"


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


def _found(source: str, text: str) -> FoundLyrics | None:
    lines = _lines(text)
    return FoundLyrics(source, lines) if lines else None


def _lines(text: str) -> tuple[TimedLine, ...]:
    """Lines of lyrics with or without `[mm:ss.xx]`; empty when the text holds nothing but times and headers."""
    lines = [TimedLine(line.seconds, " ".join(line.text.split())) for line in parse_timed("\n".join(clean_lines(text)))]
    lines = _without_credits(lines)
    sung = [line.text for line in lines if line.text]
    if not sung:
        return ()
    if len(sung) == 1 and NO_VOICE.fullmatch(sung[0]):
        return (TimedLine(None, INSTRUMENTAL),)
    while not lines[-1].text:
        lines.pop()
    while not lines[0].text:
        lines.pop(0)
    return tuple(lines)


def _without_credits(lines: list[TimedLine]) -> list[TimedLine]:
    """`lines` from the first that is no credit; a title line goes too where credits follow it."""
    first_sung = 0
    for place, line in enumerate(lines):
        if _CREDIT.fullmatch(line.text):
            first_sung = place + 1
        elif line.text and (place > 0 or line.text.startswith("[")):
            break
    return lines[first_sung:]


# --- Embedded tags ---


def _read_tags(audio: Path) -> Any:
    """mutagen's tags of a file: the container's own, else an ID3 header, which .aac and others may carry."""
    import mutagen
    import mutagen.id3

    problem = None
    # By its name first, then without one: mutagen would take a FLAC file called .mp3 for damaged MPEG audio.
    for source in (audio, None):
        try:
            file = mutagen.File(source or io.BytesIO(audio.read_bytes()))
        except Exception as error:
            problem = problem or error
            continue
        if file is not None and file.tags:
            return file.tags
        if file is not None:
            problem = None
            break
    try:
        return mutagen.id3.ID3(audio)
    except mutagen.id3.ID3NoHeaderError:
        if problem is not None:
            raise problem from None
        return None


def _embedded(tags: Any) -> Iterator[tuple[str, tuple[TimedLine, ...]]]:
    """(name of the field, its lines) for every field of `tags` (None: there are none) that may hold lyrics."""
    from mutagen.id3 import ID3Tags
    from mutagen.mp4 import MP4Tags

    if tags is None:
        return
    if isinstance(tags, ID3Tags):
        yield from _id3_lyrics(tags)
    elif isinstance(tags, MP4Tags):
        for text in tags.get("\xa9lyr", []):
            yield "MP4 lyrics", _lines(str(text))
        for name, values in tags.items():
            if name.startswith("----:") and name.rsplit(":", 1)[-1].casefold() in _COMMENT_NAMES:
                for value in values:
                    yield name, _lines(decode_lyrics(bytes(value), name)[0])
    else:
        by_name = {str(name).casefold(): values for name, values in tags.items()}
        for name in _COMMENT_NAMES:
            values = by_name.get(name, [])
            for text in [values] if isinstance(values, str) else values:
                yield f"{name.upper()} comment", _lines(str(text))


def _id3_lyrics(tags: Any) -> Iterator[tuple[str, tuple[TimedLine, ...]]]:
    # Types 1 and 2 are lyrics and their transcription; others hold chords or events. Format 2 is milliseconds; format 1
    # counts MPEG frames, of whose length the tag says nothing, so that only its text can be used.
    synchronised = [frame for frame in tags.getall("SYLT") if frame.type in (1, 2)]
    for frame in synchronised:
        if frame.format == 2:
            yield "SYLT", _sylt_lines(frame.text)
    for frame in tags.getall("USLT"):
        yield "USLT", _lines(_repaired(frame.text, frame.encoding))
    for frame in tags.getall("TXXX"):
        if frame.desc.casefold() in _COMMENT_NAMES:
            yield f"TXXX:{frame.desc}", _lines(_repaired("\n".join(frame.text), frame.encoding))
    for frame in synchronised:
        if frame.format != 2:
            yield "SYLT", tuple(TimedLine(None, line.text) for line in _sylt_lines(frame.text))


def _sylt_lines(entries: Sequence[tuple[str, int]]) -> tuple[TimedLine, ...]:
    """(text, milliseconds) of SYLT as lines. Syllables are joined where line breaks say where a line begins."""
    by_syllable = any("\n" in text.strip("\n") or text.startswith("\n") for text, _ in entries[1:])
    lines: list[TimedLine] = []
    for text, milliseconds in entries:
        pieces = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for number, piece in enumerate(pieces):
            if by_syllable and number == 0 and lines:
                lines[-1] = TimedLine(lines[-1].seconds, lines[-1].text + piece)
            else:
                lines.append(TimedLine(milliseconds / 1000, piece))
    cleaned = [TimedLine(line.seconds, " ".join(line.text.split())) for line in lines]
    return tuple(line for line in cleaned if line.text)


def _repaired(text: str, encoding: int) -> str:
    """Text of an ID3 frame that says Latin-1 but holds another code page, as many Chinese files do."""
    if encoding != 0 or text.isascii():
        return text
    data = text.encode("latin-1", errors="ignore")
    encoding_name = legacy_encoding(data)
    try:
        return text if encoding_name == "cp1252" else data.decode(encoding_name)
    except UnicodeDecodeError:
        return text
