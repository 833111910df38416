"""Lyrics in the formats that players, sites and models write them in, as lines: `read_entries(text)`.

LRC and its relatives (LRCX, word by word as YRC, QRC, KRC), SRT, WebVTT, ASS, TTML, JSON (NetEase, LRCLIB, Spotify,
Whisper, LyricsGenius), captions with a <LYRICS> part, plain text. What the lines are is told in `sorting.py`; here
only a format that says so itself makes a line a translation. Standard library only.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from ace_lora.lyrics.text import clean_lines
from ace_lora.lyrics.timed import TimedLine, has_times, parse_timed

TRANSLATION = "translation"
ROMANISATION = "romanisation"


@dataclass(frozen=True)
class Entry:
    """One line of a lyrics text; `kind` where the format itself says that it is a translation or a romanisation."""

    seconds: float | None
    text: str
    kind: str = ""


@dataclass
class Entries:
    """The lines of a text in their order, and what it says of the song (title, artist, language).

    `instrumental`: the format has a field for music without a voice, and it is set.
    """

    lines: list[Entry]
    facts: dict[str, str] = field(default_factory=dict)
    instrumental: bool = False


def read_entries(text: str) -> Entries:
    """The lines of a lyrics text in any of the formats above. Texts of unknown formats are plain lines."""
    text = unicodedata.normalize("NFC", text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))
    start = text.lstrip()[:200].lower()
    if start[:1] in ("{", "["):
        found = _read_json(text)
        if found is not None:
            return found
    if "<lyrics>" in text.lower():
        part = re.search(r"<lyrics>(.*?)(?:</lyrics>|\Z)", text, re.IGNORECASE | re.DOTALL)
        return read_entries(part.group(1)) if part else Entries([])
    if start.startswith("<") and "lyriccontent=" in text.lower():
        content = re.search(r'LyricContent="(.*?)"\s*/?>', text, re.IGNORECASE | re.DOTALL)
        return read_entries(html.unescape(content.group(1))) if content else Entries([])
    if start.startswith("<") and re.search(r"<tt[\s>]", text):
        return Entries(_ttml(text))
    # Two spaces for a tab: what stands behind one may be another language.
    text = re.sub(" {3,}", "  ", "\n".join(clean_lines(without_markup(text).replace("\t", "  "))))
    if table := _table(text):
        return Entries(table)
    if _ULTRASTAR.search(text):
        return Entries(_ultrastar(text))
    if re.search(r"^dialogue:", text, re.IGNORECASE | re.MULTILINE):
        return Entries(_ass(text))
    ranges = sum(_RANGE_LINE.match(line) is not None for line in text.split("\n"))
    loose = any(_LOOSE_STAMP.match(line) for line in text.split("\n"))
    # Of a subtitle every line belongs to a range; a model writes one range among other times.
    if 5 * ranges >= sum(bool(line.strip()) for line in text.split("\n")) and (ranges > 1 or (ranges and not loose)):
        return Entries(_subtitles(text))
    return _lrc("\n".join(_RANGE_LINE.sub("", line) for line in text.split("\n")) if ranges else text)


# --- Markup ---

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_BREAK = re.compile(r"<\s*(?:br|/p|/div)\s*/?\s*>|\\N|\[br\]", re.IGNORECASE)
_ELEMENT = re.compile(
    r"</?(?:a|b|i|u|em|strong|font|span|p|div|small|big|center|h\d|li|ul|ol|c|v|lang|ruby|rt|rp)(?:[\s.][^<>]*)?/?>"
    r"|\{\\[^{}]*\}|\{/?[ibu]\}",
    re.IGNORECASE,
)


def without_markup(text: str) -> str:
    """`text` with HTML entities decoded, `<br>` as a line end and the other elements of HTML and subtitles gone."""
    if "&" in text:
        for _ in range(2):  # entities of entities: sites encode what was encoded
            text = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
    text = _BREAK.sub("\n", re.sub(r"<r[tp]>.*?</r[tp]>", "", text, flags=re.IGNORECASE))
    return _ELEMENT.sub("", text).replace("\u00a0", " ").replace("\u200b", "").replace("\u2028", "\n")


# --- Subtitles ---

_TIME = r"(?:(\d{1,2}):)?(\d{1,3}):(\d{1,2})(?:[.,:](\d{1,6}))?"
_RANGE_LINE = re.compile(
    rf"^\s*[\[(]?\s*{_TIME}\s*(?:-->|->|→|,(?=\d+:\d\d:\d\d\.))\s*{_TIME}(?:[^\S\n]*[\])])?(?:[^\S\n]+(?:[a-zA-Z]+:\S+[^\S\n]*)+$)?",
    re.MULTILINE,
)


def _to_seconds(hours: str | None, minutes: str, seconds: str, fraction: str | None) -> float:
    part = int(fraction) / 10 ** len(fraction) if fraction else 0.0
    return round(int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + part, 3)


def _subtitles(text: str) -> list[Entry]:
    """SRT and WebVTT, and `[00:01.00 --> 00:02.00] text` as Whisper prints it."""
    entries: list[Entry] = []
    lines = text.split("\n")
    seconds: float | None = None
    skipping = False
    for index, line in enumerate(lines):
        match = _RANGE_LINE.match(line)
        following = next((later for later in lines[index + 1 :] if later.strip()), "")
        if match:
            seconds, skipping = _to_seconds(*match.groups()[:4]), False
            if rest := line[match.end() :].strip():
                entries.append(Entry(seconds, rest))
                seconds = None
        elif re.match(r"(?:WEBVTT|NOTE|STYLE|REGION|Kind:|Language:)(?:\s|$)", line):
            skipping = line.startswith(("NOTE", "STYLE", "REGION"))
        elif not line.strip():
            skipping = False
        elif not skipping and not (line.strip().isdigit() and _RANGE_LINE.match(following)):
            cue = re.fullmatch(r"[\w-]{1,40}", line.strip()) and _RANGE_LINE.match(following)
            if not cue:
                entries.append(Entry(seconds, line.strip()))
                seconds = None  # further lines of one subtitle follow the first
    return entries


# Labels of an audio editor, or a table: start, end, text.
_ROW = re.compile(r"\s*(\d+(?:\.\d+)?)(?: {2,}|\s*[,;]\s*)\d+(?:\.\d+)?(?: {2,}|\s*[,;]\s*)(.*\S)\s*")
_ULTRASTAR = re.compile(r"^[:*F] -?\d+ \d+ -?\d+ ", re.MULTILINE)


def _table(text: str) -> list[Entry]:
    lines = [line for line in text.split("\n") if line.strip()]
    rows = [match for line in lines if (match := _ROW.fullmatch(line))]
    if len(rows) < 2 or len(rows) < len(lines) - 1:
        return []
    return [Entry(float(row.group(1)), row.group(2).strip(' "')) for row in rows]


def _ultrastar(text: str) -> list[Entry]:
    """The lines of a karaoke file in syllables; its beats are not turned into times."""
    lines: list[str] = [""]
    for line in text.split("\n"):
        if match := re.match(r"[:*FRG] -?\d+ \d+ -?\d+ (.*)", line):
            lines[-1] += match.group(1) if match.group(1).startswith("~") is False else ""
        elif re.match(r"- ?-?\d+", line):
            lines.append("")
    return [Entry(None, line.strip()) for line in lines if line.strip()]


def _ass(text: str) -> list[Entry]:
    entries = []
    for match in re.finditer(r"^Dialogue:\s*(.*)$", text, re.IGNORECASE | re.MULTILINE):
        fields = match.group(1).split(",", 9)
        clock = re.fullmatch(_TIME, fields[1].strip()) if len(fields) == 10 else None
        if clock:
            entries.append(Entry(_to_seconds(*clock.groups()), fields[9].strip()))
    return sorted(entries, key=lambda entry: entry.seconds or 0.0)


def _ttml(text: str) -> list[Entry]:
    entries = []
    for match in re.finditer(r"<p\b([^>]*)>(.*?)</p>", text, re.DOTALL):
        begin = re.search(r'begin="([^"]+)"', match.group(1))
        words = re.sub(r"<span[^>]*x-(?:translation|roman)[^>]*>.*?</span>", "", match.group(2), flags=re.DOTALL)
        line = " ".join(html.unescape(re.sub(r"<[^>]+>", "", words)).split())
        entries.append(Entry(_clock_seconds(begin.group(1)) if begin else None, line))
    return [entry for entry in entries if entry.text]


def _clock_seconds(text: str) -> float | None:
    """Seconds of `12.5s`, `12.5`, `1:02.5` or `0:01:02.5`; None for anything else."""
    text = text.strip()
    if re.fullmatch(r"\d+(?:\.\d+)?s?", text):
        return float(text.rstrip("s"))
    match = re.fullmatch(_TIME, text)
    return _to_seconds(*match.groups()) if match else None


# --- LRC ---

# Starts of lines in milliseconds with the length behind: YRC, QRC and KRC, whose words have such times as well.
_MILLISECONDS = re.compile(r"^\[(\d{1,8}),(\d{1,8})\]", re.MULTILINE)
_WORD_MILLISECONDS = re.compile(r"\(\d{1,8},\d{1,8}(?:,-?\d+)?\)|<-?\d{1,8},-?\d{1,8}(?:,-?\d+)?>")
# `[tr:zh-Hans]…` and `[tt]…` of LRCX; the stamp is in front of it.
_ATTACHMENT = re.compile(r"\[(tr|tt|rm|romaji|roma|pinyin|kana|furigana)(?::[^\]]*)?\](.*)", re.IGNORECASE)
# Times in other brackets, or in none; `0:20 until the morning`.
_LOOSE_STAMP = re.compile(
    r"^\s*(?:[(（<【]\s*(\d{1,2}[:：]\d{2}(?:[.,:：]\d{1,6})?)\s*[)）>】]|(\d{1,2}:\d{2}(?:[.,]\d{1,6})?)(?=[\s|\t\-–—]))\s*[-–—|]?\s*(?=\S)"
)
_FACT = re.compile(r"\[\s*(ti|ar|al|la|lang|language|title|artist|by|length)\s*[:：]\s*([^\]]*)\]", re.IGNORECASE)
_FACT_NAMES = {"ti": "title", "ar": "artist", "al": "album", "la": "language", "lang": "language"}


def _lrc(text: str) -> Entries:
    facts: dict[str, str] = {}
    for name, value in _FACT.findall(text):
        facts.setdefault(_FACT_NAMES.get(name.lower(), name.lower()), value.strip())
    lines = [_plain_stamp(_json_line(line)) for line in text.split("\n")]
    if any(_MILLISECONDS.match(line) for line in lines):
        lines = [_WORD_MILLISECONDS.sub("", _MILLISECONDS.sub(_milliseconds_stamp, line)) for line in lines]
    loose = [_LOOSE_STAMP.match(line) for line in lines]
    # A single one in a text without other times could be sung ("4:20 in the morning").
    if sum(match is not None for match in loose) >= (1 if has_times(text) else 2):
        lines = [
            f"[{(match.group(1) or match.group(2))}]{line[match.end() :]}" if match else line
            for line, match in zip(lines, loose, strict=True)
        ]
    return Entries([_attached(line) for line in parse_timed("\n".join(lines))], facts)


def _plain_stamp(line: str) -> str:
    """`［００：１２．００］` and `【00:12.00】` as `[00:12.00]`."""
    match = re.match(r"\s*[\[［【]\s*[\d０-９]{1,3}[:：][\d０-９]{1,2}(?:[.．:：][\d０-９]{1,3})?\s*[\]］】]", line)
    if match is None or match.group().isascii():
        return line
    clock = unicodedata.normalize("NFKC", match.group()).strip("[]【】 ")
    return f"[{clock}]{line[match.end() :]}"


def _milliseconds_stamp(match: re.Match[str]) -> str:
    milliseconds = int(match.group(1))
    return f"[{milliseconds // 60000:02d}:{milliseconds // 1000 % 60:02d}.{milliseconds % 1000:03d}]"


def _json_line(line: str) -> str:
    """A credit of NetEase, `{"t":0,"c":[{"tx":"作词: "},{"tx":"某人"}]}`, with a stamp; others as they are."""
    if not line.lstrip().startswith('{"t":'):
        return line
    try:
        said = json.loads(line)
        return f"[{int(said['t']) // 60000:02d}:{int(said['t']) / 1000 % 60:05.2f}]" + "".join(
            str(part["tx"]) for part in said["c"]
        )
    except (ValueError, KeyError, TypeError):
        return line


def _attached(line: TimedLine) -> Entry:
    match = _ATTACHMENT.fullmatch(line.text)
    if match is None:
        return Entry(line.seconds, line.text)
    name = match.group(1).lower()
    kind = TRANSLATION if name == "tr" else "junk" if name == "tt" else ROMANISATION
    return Entry(line.seconds, match.group(2).strip(), kind)


# --- JSON ---

_TEXT_KEYS = ("words", "text", "line", "lyric", "lyrics", "content", "lineLyric", "sentence")
_MILLISECOND_KEYS = ("startTimeMs", "startMs", "start_ms", "milliseconds", "begin_ms")
_SECOND_KEYS = ("start", "time", "seconds", "begin", "startTime", "timestamp")
_LONGEST_JSON_DEPTH = 8


def _read_json(text: str) -> Entries | None:
    """The lyrics in a JSON text; None where it is none (a text that begins with `[verse]`) or holds no lyrics."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _from_json(said, 0)


def _from_json(said: Any, depth: int) -> Entries | None:
    if depth > _LONGEST_JSON_DEPTH:
        return None
    if isinstance(said, list):
        lines = [_json_entry(item) for item in said]
        if lines and all(line is not None for line in lines):
            return Entries([line for line in lines if line is not None])
        return next((found for item in said[:50] if (found := _from_json(item, depth + 1))), None)
    if not isinstance(said, dict):
        return None
    if _is_true(said, "instrumental", "pureMusic"):
        return Entries([], instrumental=True)
    if _is_true(said, "nolyric", "uncollected") and "lrc" not in said:
        return Entries([])
    if isinstance(said.get("lrc"), dict):
        return _netease(said)
    facts = {
        name: str(said[key]) for name, keys in _JSON_FACTS.items() for key in keys if isinstance(said.get(key), str)
    }
    for key in ("syncedLyrics", "plainLyrics", "subtitle_body", "lyrics_body", "lyrics", "lyric", "lines", "segments"):
        value = said.get(key)
        if isinstance(value, str) and value.strip():
            found = read_entries(value)
            return Entries(found.lines, facts | found.facts, found.instrumental)
        if isinstance(value, (list, dict)) and (nested := _from_json(value, depth + 1)):
            return Entries(nested.lines, facts | nested.facts, nested.instrumental)
    return next((found for value in said.values() if (found := _from_json(value, depth + 1))), None)


_JSON_FACTS = {"title": ("title", "trackName", "name"), "artist": ("artistName", "artist"), "language": ("language",)}


def _is_true(said: dict[str, Any], *names: str) -> bool:
    return any(said.get(name) is True for name in names)


def _netease(said: dict[str, Any]) -> Entries:
    """`lrc` with its translation and romanisation, which are lines of the same stamps."""
    parts = [(said["lrc"], ""), (said.get("tlyric"), TRANSLATION), (said.get("romalrc"), ROMANISATION)]
    entries: list[Entry] = []
    facts: dict[str, str] = {}
    for part, kind in parts:
        text = part.get("lyric") if isinstance(part, dict) else None
        if isinstance(text, str):
            found = _lrc(without_markup(text))
            facts |= found.facts if not kind else {}
            entries += [Entry(line.seconds, line.text, kind or line.kind) for line in found.lines]
    if any(entry.seconds is not None for entry in entries):
        entries.sort(key=lambda entry: entry.seconds if entry.seconds is not None else -1.0)
    return Entries(entries, facts, _is_true(said, "pureMusic"))


def _json_entry(item: Any) -> Entry | None:
    if isinstance(item, str):
        return Entry(None, item)
    if not isinstance(item, dict):
        return None
    text = next((item[key] for key in _TEXT_KEYS if isinstance(item.get(key), str)), None)
    if text is None:
        return None
    text = " ".join(without_markup(text).split())
    for keys, unit in ((_MILLISECOND_KEYS, 1000.0), (_SECOND_KEYS, 1.0)):
        for key in keys:
            value = item.get(key)
            if isinstance(value, dict):
                value = value.get("total")
            try:
                return Entry(round(float(value) / unit, 3), text)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                seconds = _clock_seconds(value) if isinstance(value, str) else None
                if seconds is not None:
                    return Entry(seconds, text)
    # Without a time it is a line only where nothing else is in it, or a list of whole songs would be taken for one.
    return Entry(None, text) if "\n" not in text and len(item) <= 3 else None
