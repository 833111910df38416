"""Lyrics that somebody wrote already: a file beside the song, or the tags embedded in the audio file.

Read, never written. Beside the song: `.lrc`, `.lrcx`, `.srt`, `.txt`, JSON and the other formats of `formats.py`, under
the song's name or as "title - artist" in either order. Embedded: ID3 (USLT, SYLT, TXXX), APEv2, Vorbis comments (FLAC,
Ogg, Opus) and MP4 atoms. mutagen is imported when a file's tags are read.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ace_lora.files import MAX_TEXT_BYTES, read_bytes
from ace_lora.lyrics.encoding import UnknownEncoding, decode_lyrics, is_guess, mend_latin1, read_any_text
from ace_lora.lyrics.formats import Entries, Entry, read_entries
from ace_lora.lyrics.sorting import SortedLyrics, is_romanised, script_of, sort_lines
from ace_lora.lyrics.text import clean_lines, comparable
from ace_lora.lyrics.timed import TimedLine
from ace_lora.songs import INSTRUMENTAL, SongFiles, split_tags

__all__ = ["FoundLyrics", "UnknownEncoding", "UnreadableTags", "embedded_lyrics", "lyrics_beside", "song_names"]

# In the order in which they are looked for; formats with times first.
EXTENSIONS = (".lrc", ".lrcx", ".yrc", ".qrc", ".ttml", ".srt", ".vtt", ".ass", ".json", ".txt")


@dataclass(frozen=True)
class FoundLyrics:
    """Lyrics from `source` (words for the log). `lines` are what is sung, with a time where the source gives one.

    Music without a voice is the single line `[instrumental]`. `details` holds every line of the source with its kind.
    `questions`: what was guessed and only the user can know. `warnings`: sentences on the lines.
    """

    source: str
    lines: tuple[TimedLine, ...]
    details: SortedLyrics = field(default_factory=lambda: SortedLyrics(()), compare=False)
    questions: tuple[str, ...] = field(default=(), compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def text(self) -> str:
        """The lines without their times; of several empty ones in a row one is left."""
        return "\n".join(clean_lines("\n".join(line.text for line in self.lines)))

    @property
    def timed(self) -> bool:
        """Whether any line has a time."""
        return any(line.seconds is not None for line in self.lines)

    @property
    def last_seconds(self) -> float:
        """The latest time of a line, 0 without times."""
        return max((line.seconds or 0.0 for line in self.lines), default=0.0)


def found_lyrics(source: str, entries: Entries, names: SongNames | None = None) -> FoundLyrics | None:
    """The sung lines of a text; None where nothing is sung and nothing says that there is no voice."""
    names = names or SongNames()
    details = sort_lines(entries, names.title, names.artist)
    lines = [
        TimedLine(line.seconds, " ".join(line.sung.split())) for line in details.lines if line.sung or not line.text
    ]
    if details.instrumental:
        return FoundLyrics(source, (TimedLine(None, INSTRUMENTAL),), details)
    if not any(line.kind == "sung" for line in details.lines):
        return None
    while not lines[-1].text:
        lines.pop()
    while not lines[0].text:
        lines.pop(0)
    return FoundLyrics(source, tuple(lines), details, warnings=details.warnings)


def warn_of_other_version(found: FoundLyrics, song_seconds: float) -> list[str]:
    """A sentence where lines lie behind the end of the song: its lyrics are of another version, or its times are."""
    behind = [line for line in found.lines if line.seconds is not None and line.seconds > song_seconds and line.text]
    if not behind:
        return []
    return [
        f"{len(behind)} of {sum(line.seconds is not None for line in found.lines)} lines have times behind the end of "
        f"the song ({song_seconds:.0f} s; the last line is at {found.last_seconds:.0f} s): the lyrics in "
        f"{found.source} are of another version of it. Use lyrics of this recording, or remove the lines that are not "
        "sung in it"
    ]


# --- Beside the song ---


def lyrics_beside(
    song: SongFiles, names: SongNames | None = None, encoding: str | None = None, remarks: list[str] | None = None
) -> FoundLyrics | None:
    """Lyrics in a file beside the song; None when there are none or they are empty.

    First `<stem>.lrc`, then the other formats, upper or lower case, then files that name title and artist. A
    `<stem>_lyrics.lrc` that stands without its `<stem>_lyrics.txt` is somebody's own, and comes before all.
    `encoding`: of files that are not Unicode. `remarks` takes sentences on files that were passed over.
    Raises UnknownEncoding, UnusableFile, OSError.
    """
    names = names or SongNames()
    present = {path.name.casefold(): path for path in song.audio.parent.iterdir() if path.suffix.lower() in EXTENSIONS}
    own = [] if song.lyrics.exists() else [song.timed_lyrics.name]
    candidates = [present.get(name.casefold()) for name in (*own, *(song.stem + extension for extension in EXTENSIONS))]
    candidates += _named_after(song, names, present)
    for path in candidates:
        if path is None or not path.is_file():
            continue
        data = read_bytes(path, MAX_TEXT_BYTES)
        text, used = decode_lyrics(data, path.name)
        if encoding is not None and is_guess(used):
            text, used = decode_lyrics(data, path.name, encoding)
        if path.suffix.lower() == ".txt" and looks_like_tags(text):
            if remarks is not None:
                remarks.append(f"'{path.name}' looks like tags and not like lyrics, so it is passed over")
            continue
        found = found_lyrics(path.name, _song_of_collection(text, names), names)
        if found is not None:
            return _with_encoding(found, path.name, used, asked=encoding is None)
    return None


def caption_beside(song: SongFiles) -> list[str]:
    """The tags in the `<CAPTION>` of a `<stem>.txt`, as another trainer writes it; empty where there is none."""
    path = song.audio.with_suffix(".txt")
    try:
        text = read_any_text(path)[0] if path.exists() else ""
    except (UnknownEncoding, ValueError, OSError):
        return []  # said where it is read for lyrics
    match = re.search(r"<caption>(.*?)</caption>", text, re.IGNORECASE | re.DOTALL)
    return split_tags(" ".join(match.group(1).split())) if match else []


def _with_encoding(found: FoundLyrics, name: str, encoding: str, *, asked: bool) -> FoundLyrics:
    if not is_guess(encoding):
        return found
    shown = next((line.text for line in found.lines if not line.text.isascii()), found.lines[0].text)[:40]
    question = (
        f"'{name}' is not Unicode. Read as {encoding}, which is a guess, it says '{shown}'. If that is wrong, name its "
        "encoding with --lyric_encoding, or save it as UTF-8"
    )
    return FoundLyrics(
        f"{name} (read as {encoding})",
        found.lines,
        found.details,
        (*found.questions, question) if asked else found.questions,
        found.warnings,
    )


def looks_like_tags(text: str) -> bool:
    """Whether a text is one line of tags between commas, as other trainers keep a caption beside a file."""
    lines = [line for line in text.strip().split("\n") if line.strip()]
    if len(lines) != 1 or re.search(r"[.!?。！？]", lines[0]):
        return False
    tags = split_tags(lines[0])
    return len(tags) >= 4 and all(len(tag.split()) <= 4 and len(tag) <= 30 for tag in tags)


def _named_after(song: SongFiles, names: SongNames, present: dict[str, Path]) -> list[Path]:
    """Files that name title and artist, in either order, as other programs save them."""
    wanted = {_joined(title, artist) for title, artist in names.pairs(song.stem) if title and artist}
    wanted |= {_joined(artist, title) for title, artist in names.pairs(song.stem) if title and artist}
    if not wanted:
        return []
    songs = {path.stem.casefold() for path in song.audio.parent.iterdir() if path.suffix.lower() not in EXTENSIONS}
    found = []
    for extension in EXTENSIONS:
        for path in present.values():
            # LyricsGenius: lyrics_artist_title.json
            stem = re.sub(r"^lyrics_", "", path.stem, flags=re.IGNORECASE)
            if path.suffix.lower() == extension and _joined(stem) in wanted and path.stem.casefold() not in songs:
                found.append(path)
    return found


def _joined(*parts: str) -> str:
    return comparable(" ".join(parts)).replace(" ", "")


def _song_of_collection(text: str, names: SongNames) -> Entries:
    """The lines of a text; of a LyricsGenius file with all songs of an artist, those of the song of that title."""
    if names.title and text.lstrip()[:1] == "{" and '"songs"' in text:
        import json

        try:
            songs = json.loads(text).get("songs")
        except (ValueError, AttributeError):
            songs = None
        for item in songs if isinstance(songs, list) else []:
            if isinstance(item, dict) and _joined(str(item.get("title", ""))) == _joined(names.title):
                return read_entries(json.dumps(item))
        if isinstance(songs, list):
            return Entries([])
    return read_entries(text)


# --- Names of the song ---


@dataclass(frozen=True)
class SongNames:
    """Title, artist and album as the tags have them, "" where they have none; `language` as a code of ISO 639."""

    title: str = ""
    artist: str = ""
    album: str = ""
    language: str = ""

    def pairs(self, stem: str) -> list[tuple[str, str]]:
        """(title, artist) of the tags, else both orders of a file name such as `artist - title`."""
        if self.title and self.artist:
            return [(self.title, self.artist)]
        name = re.sub(r"^\d{1,3}[\s._-]+", "", stem)
        parts = [part.strip() for part in re.split(r"\s[-–—]\s|\s-|-\s|_-_", name, maxsplit=1) if part.strip()]
        if len(parts) == 2:
            return [(parts[1], parts[0]), (parts[0], parts[1])]
        return [(self.title or name, self.artist)]


_NAME_KEYS = {
    "title": ("TIT2", "title", "\xa9nam", "TITLE"),
    "artist": ("TPE1", "artist", "\xa9ART", "ARTIST"),
    "album": ("TALB", "album", "\xa9alb", "ALBUM"),
    "language": ("TLAN", "language", "LANGUAGE"),
}


def song_names(audio: Path) -> SongNames:
    """Title, artist, album and language from the tags of a file; empty where there are none or they are damaged."""
    try:
        tags = _read_tags(audio)
    except Exception:
        return SongNames()
    values = {}
    for name, keys in _NAME_KEYS.items():
        for key in keys:
            try:
                value = tags[key] if tags is not None and key in tags else None
            except (KeyError, ValueError):
                continue
            if value:
                text = getattr(value, "text", value)
                text = text[0] if isinstance(text, (list, tuple)) and text else text
                values[name] = mend_latin1(str(text)).strip()
                break
    return SongNames(**values)


# --- Embedded tags ---

# Vorbis comments, APEv2 items and ID3 TXXX frames have no fixed name for lyrics; these are what players and taggers
# write, alone or with a language behind ("LYRICS-ENG", "lyrics:jpn"). The ones with times come first.
_COMMENT_NAME = re.compile(
    r"(?:synced[ _]?lyrics|lyrics[ _]?synced|syncedlyrics|lyrics?|unsynced[ _]?lyrics|lyrics[ _]?unsynced|uslt|sylt|"
    r"wm/lyrics(?:_synchronised)?|songtext|"
    r"歌词|歌詞)(?:[\s:_/-]+(?P<language>[a-z]{2,3})(?:-[a-z]+)?)?(?:[\s:_/-].*)?",
    re.IGNORECASE,
)
_TRANSLATED = re.compile(r"translat|翻[译譯]|[译譯]文|訳|번역|перевод|roma|pinyin|拼音|ローマ", re.IGNORECASE)


@dataclass(frozen=True)
class _Candidate:
    name: str
    entries: Entries
    language: str = ""  # as the tag says, a code of ISO 639


def embedded_lyrics(audio: Path, names: SongNames | None = None) -> FoundLyrics | None:
    """Lyrics in the tags of an audio file, in the song's own language and with times if they can be had; None without.

    Raises UnreadableTags when the file's tags are damaged, OSError.
    """
    audio.open("rb").close()  # mutagen would hide an OSError in one of its own
    try:
        names = names or song_names(audio)
        found = [
            (candidate, lyrics)
            for candidate in _embedded(audio)
            if (lyrics := found_lyrics(f"embedded {candidate.name}", candidate.entries, names))
        ]
    except Exception as error:
        # Damaged files make mutagen raise IndexError and the like as well as its own errors.
        raise UnreadableTags(
            f"The tags embedded in '{audio.name}' cannot be read ({error}). Repair them with a tag editor, "
            "or put the lyrics beside the song as a .lrc or .txt file."
        ) from error
    return _choose(found, names)


class UnreadableTags(Exception):
    """The tags of an audio file are damaged."""


def _choose(found: list[tuple[_Candidate, FoundLyrics]], names: SongNames) -> FoundLyrics | None:
    """The original among several lyrics; of those in its script the ones with times."""
    if not found:
        return None
    scripts = [script_of(lyrics.text) for _, lyrics in found]
    title_script = script_of(names.title)

    def merit(index: int) -> tuple[int, ...]:
        candidate, lyrics = found[index]
        others = [script for script in scripts if script not in ("", "latin")]
        reading = scripts[index] == "latin" and any(is_romanised(lyrics.text, script) for script in others)
        return (
            -bool(_TRANSLATED.search(candidate.name)),
            bool(names.language) and candidate.language[:2].lower() == names.language[:2].lower(),
            -reading,
            title_script not in ("", "latin", "han") and scripts[index] == title_script,
            title_script == scripts[index],
            scripts[index] == "kana",  # with a Chinese one beside it, which is its translation
        )

    best = max(range(len(found)), key=lambda index: (merit(index), -index))
    same = [
        index for index in range(len(found)) if scripts[index] == scripts[best] and merit(index)[0] == merit(best)[0]
    ]
    same = [index for index in same if found[index][0].language in ("", found[best][0].language)] or [best]
    chosen = next((index for index in same if found[index][1].timed), best)
    lyrics = found[chosen][1]
    others = [candidate.name for index, (candidate, _) in enumerate(found) if scripts[index] != scripts[chosen]]
    if not others:
        return lyrics
    question = (
        f"the tags hold lyrics in several languages; {lyrics.source} is taken for the song's own, and not "
        f"{', '.join(others)}. If that is wrong, put the right ones beside the song as a .lrc or .txt file"
    )
    return FoundLyrics(lyrics.source, lyrics.lines, lyrics.details, (*lyrics.questions, question), lyrics.warnings)


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


def _embedded(audio: Path) -> Iterator[_Candidate]:
    """Every field of the tags that may hold lyrics."""
    from mutagen.apev2 import APENoHeaderError, APEv2
    from mutagen.id3 import ID3Tags
    from mutagen.mp4 import MP4Tags

    tags = _read_tags(audio)
    if isinstance(tags, ID3Tags):
        yield from _id3_lyrics(tags)
    elif isinstance(tags, MP4Tags):
        for text in tags.get("\xa9lyr", []):
            yield _Candidate("MP4 lyrics", read_entries(str(text)))
        for name, values in tags.items():
            match = _COMMENT_NAME.fullmatch(name.rsplit(":", 1)[-1]) if name.startswith("----:") else None
            for value in values if match else []:
                yield _Candidate(name, read_entries(decode_lyrics(bytes(value), name)[0]), _language(match))
    elif tags is not None:
        yield from _comments(tags, "comment")
    if tags is None or isinstance(tags, ID3Tags):
        # At the end of MP3 files, with ID3 tags or without; mutagen reads one kind.
        with contextlib.suppress(APENoHeaderError):
            yield from _comments(APEv2(audio), "item")


def _comments(tags: Any, kind: str) -> Iterator[_Candidate]:
    named = {str(name): values for name, values in tags.items() if _COMMENT_NAME.fullmatch(str(name))}
    for name in sorted(named, key=lambda name: (not name.casefold().startswith("synced"), name.casefold() != "lyrics")):
        values = named[name]
        for text in values if isinstance(values, list) else [values]:
            yield _Candidate(
                f"{name.upper()} {kind}", read_entries(str(text)), _language(_COMMENT_NAME.fullmatch(name))
            )


def _language(match: re.Match[str] | None) -> str:
    return (match.group("language") or "").lower() if match else ""


def _id3_lyrics(tags: Any) -> Iterator[_Candidate]:
    # Types 1 and 2 are lyrics and their transcription; others hold chords or events. Format 2 is milliseconds; format 1
    # counts MPEG frames, of whose length the tag says nothing, so that only its text can be used.
    synchronised = [frame for frame in tags.getall("SYLT") if frame.type in (1, 2)]
    for frame in synchronised:
        if frame.format == 2:
            yield _Candidate(_frame_name("SYLT", frame), Entries(_sylt_entries(frame)), _frame_language(frame))
    for frame in tags.getall("USLT"):
        text = mend_latin1(frame.text) if frame.encoding == 0 else frame.text
        yield _Candidate(_frame_name("USLT", frame), read_entries(text), _frame_language(frame))
    for frame in tags.getall("TXXX"):
        if match := _COMMENT_NAME.fullmatch(frame.desc):
            text = "\n".join(frame.text)
            text = mend_latin1(text) if frame.encoding == 0 else text
            yield _Candidate(f"TXXX:{frame.desc}", read_entries(text), _language(match))
    for frame in synchronised:
        if frame.format != 2:
            lines = [Entry(None, entry.text) for entry in _sylt_entries(frame)]
            yield _Candidate(_frame_name("SYLT", frame), Entries(lines), _frame_language(frame))


def _frame_name(kind: str, frame: Any) -> str:
    return f"{kind}:{frame.desc}" if frame.desc else kind


def _frame_language(frame: Any) -> str:
    language = str(getattr(frame, "lang", "")).lower()
    language = {
        "chi": "zh",
        "zho": "zh",
        "cmn": "zh",
        "jpn": "ja",
        "ger": "de",
        "deu": "de",
        "fre": "fr",
        "fra": "fr",
    }.get(language, language[:2])
    return "" if language in ("xx", "un", "\0\0") else language


def _sylt_entries(frame: Any) -> list[Entry]:
    """(text, milliseconds) of SYLT as lines. Syllables are joined where line breaks say where a line begins."""
    entries: Sequence[tuple[str, int]] = [
        (mend_latin1(text) if frame.encoding == 0 else text, milliseconds) for text, milliseconds in frame.text
    ]
    by_syllable = any("\n" in text.strip("\n") or text.startswith("\n") for text, _ in entries[1:])
    lines: list[Entry] = []
    for text, milliseconds in entries:
        pieces = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for number, piece in enumerate(pieces):
            if by_syllable and number == 0 and lines:
                lines[-1] = Entry(lines[-1].seconds, lines[-1].text + piece)
            else:
                lines.append(Entry(milliseconds / 1000, piece))
    cleaned = [Entry(line.seconds, " ".join(line.text.split())) for line in lines]
    return [line for line in cleaned if line.text]
