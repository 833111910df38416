"""Lyrics with times, as in `.lrc` files: read, written, put onto edited lyrics, cropped with the audio.

    [ti:Song]                 metadata is dropped
    [verse]                   structure tags have no time and belong to the line that follows
    [00:12.50]First line
    [00:30.00][01:30.00]Sung twice

Standard library only.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ace_lora.lyrics.text import STRUCTURE_TAG


@dataclass(frozen=True)
class TimedLine:
    """One line of lyrics; `seconds` from the start of the song, None where no time is known."""

    seconds: float | None
    text: str


# [mm:ss], [mm:ss.xx], [mm:ss.xxx], [hh:mm:ss.xx], and [mm:ss:xx] of old files. Digits only, so that no structure tag
# is ever taken for a time.
_CLOCK = r"\s*(\d{1,3})\s*[:：]\s*(\d{1,2})(?:\s*[:：]\s*(\d{1,2})(?=\s*[.,]))?(?:\s*[.,:：]\s*(\d{1,6}))?\s*"
_STAMP = re.compile(rf"\[{_CLOCK}\]", re.ASCII)
_LEADING_STAMPS = re.compile(rf"\s*(?:\[{_CLOCK}\]\s*)+", re.ASCII)
_WORD_STAMP = re.compile(rf"<{_CLOCK}>|\[{_CLOCK}\]", re.ASCII)
_OFFSET = re.compile(r"\s*\[\s*offset\s*[:：]\s*([+-]?\d{1,7})\s*\]\s*", re.ASCII | re.IGNORECASE)
# The keys that lyric files are seen with. Not any `[word:…]`: "[verse: Anna]" is a structure tag.
_METADATA = re.compile(
    r"\s*\[\s*(?:#|al|album|ar|artist|au|author|by|composer|creator|encoder|hash|id|kana|la|lang|language|length|lr|"
    r"lrc|lyricist|manualoffset|offset|qq|re|sign|t_time|ti|title|tool|total|ve|version)\s*[:：][^\]]*\]\s*",
    re.IGNORECASE,
)
_STRUCTURE_TAG = re.compile(r"\s*\[[^\[\]]*\]\s*")


def has_times(text: str) -> bool:
    """Whether any `[mm:ss]` stamp occurs."""
    return _STAMP.search(text) is not None


def parse_timed(text: str) -> list[TimedLine]:
    """The lines of an LRC text, or of lyrics with `[mm:ss]` stamps, in the order in which they are sung.

    A line with several stamps is repeated at each of them, with the structure tags in front of it. `[offset:+500]`
    makes every line 500 ms earlier, as in LRC players. Metadata, stamps of single words and the empty lines at both
    ends are dropped. Untimed text belongs to the timed line before it, untimed structure tags to the one behind.
    """
    offset = 0.0
    blocks: list[_Block] = []
    leading: list[str] = []  # untimed lines in front of the next timed line
    for raw in text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff").split("\n"):
        if match := _OFFSET.fullmatch(raw):
            offset = int(match.group(1)) / 1000
        elif not _METADATA.fullmatch(raw):
            times, line = _split_stamps(raw)
            if times:
                blocks.append(_Block(times, leading, [line]))
                leading = []
            elif blocks and line and not leading and not _is_structure_tag(line):
                blocks[-1].lines.append(line)  # the second half of a wrapped line, or its translation
            else:
                leading.append(line)
    occurrences = [(seconds, block) for block in blocks for seconds in block.times]
    occurrences.sort(key=lambda item: item[0])  # stable: lines of one time keep their order
    lines: list[TimedLine] = []
    seen: set[int] = set()
    for seconds, block in occurrences:
        repeated = id(block) in seen
        seen.add(id(block))
        # A repeated chorus brings its tag along, but neither the empty line nor untimed text in front of it.
        leading_lines = [line for line in block.leading if not repeated or _is_structure_tag(line)]
        lines += [TimedLine(None, line) for line in leading_lines]
        lines.append(TimedLine(max(0.0, round(seconds - offset, 3)), block.lines[0]))
        lines += [TimedLine(None, line) for line in block.lines[1:]]
    lines += [TimedLine(None, line) for line in leading]
    return _strip_empty(lines)


@dataclass
class _Block:
    """A timed line with the untimed ones that belong to it."""

    times: list[float]
    leading: list[str]
    lines: list[str]


def _split_stamps(raw: str) -> tuple[list[float], str]:
    """Seconds of the leading stamps, and the line without any stamp."""
    leading = _LEADING_STAMPS.match(raw)
    times = [_seconds(match) for match in _STAMP.finditer(leading.group())] if leading else []
    rest = raw[leading.end() :] if leading else raw
    if not times and (inner := _STAMP.search(rest)):
        times = [_seconds(inner)]  # some files put the time at the end of the line
    if _WORD_STAMP.search(rest):
        rest = re.sub(r"[ \t]{2,}", " ", _WORD_STAMP.sub("", rest))
    return times, rest.strip()


def _seconds(stamp: re.Match[str]) -> float:
    first, second, third, fraction = stamp.groups()
    seconds = int(first) * 60 + int(second)
    if third is not None:
        seconds = seconds * 60 + int(third)
    return seconds + (int(fraction) / 10 ** len(fraction) if fraction else 0.0)


def _is_structure_tag(line: str) -> bool:
    return _STRUCTURE_TAG.fullmatch(line) is not None and not has_times(line)


def _strip_empty(lines: list[TimedLine]) -> list[TimedLine]:
    start, stop = 0, len(lines)
    while start < stop and lines[start] == TimedLine(None, ""):
        start += 1
    while stop > start and lines[stop - 1] == TimedLine(None, ""):
        stop -= 1
    return lines[start:stop]


def strip_times(text: str) -> str:
    """Lyrics for the model: the lines as sung, without times and metadata; text without times is returned as it is.

    Lines of which only the time is left (the ends of phrases in some files) become one empty line at most.
    """
    return _join(line.text for line in parse_timed(text)) if has_times(text) else text


def _join(texts: Iterable[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(texts)).strip("\n")


def format_timed(lines: Iterable[TimedLine]) -> str:
    """LRC text, `[mm:ss.xx]line` (hundredths of a second), untimed lines as they are; `parse_timed` reads it back."""
    return "\n".join(line.text if line.seconds is None else _stamp(line.seconds) + line.text for line in lines)


def _stamp(seconds: float) -> str:
    hundredths = round(seconds * 100)
    return f"[{hundredths // 6000:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}]"


def attach_times(lyrics: str, timed_lyrics: str) -> list[TimedLine]:
    """The lines of (edited) `lyrics`, each with the time of the line of `timed_lyrics` that it came from.

    Lines are matched in order, equal ones first (letters and digits only, case ignored), then similar ones. New
    lines and structure tags get None. Lyrics that have times of their own keep those.
    """
    if has_times(lyrics):
        return parse_timed(lyrics)
    texts = [line.strip() for line in lyrics.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    sung = [line for line in parse_timed(timed_lyrics) if line.seconds is not None and _essence(line.text)]
    new = [(index, essence) for index, text in enumerate(texts) if (essence := _essence(text))]
    old = [_essence(line.text) for line in sung]
    times: list[float | None] = [None] * len(texts)
    matcher = difflib.SequenceMatcher(None, [essence for _, essence in new], old, autojunk=False)
    for operation, new_start, new_stop, old_start, old_stop in matcher.get_opcodes():
        if operation == "equal":
            pairs = list(zip(range(new_start, new_stop), range(old_start, old_stop), strict=True))
        elif operation == "replace":
            pairs = [
                (new_start + i, old_start + j)
                for i, j in _pair_similar([essence for _, essence in new[new_start:new_stop]], old[old_start:old_stop])
            ]
        else:
            continue
        for i, j in pairs:
            times[new[i][0]] = sung[j].seconds
    return [TimedLine(seconds, text) for seconds, text in zip(times, texts, strict=True)]


def _essence(text: str) -> str:
    """What stays the same when a line is tidied up; empty for structure tags and lines without letters."""
    return "" if _is_structure_tag(text) else re.sub(r"[\W_]+", "", text).casefold()


_SIMILAR = 0.5  # of the characters, as difflib counts them
_MAX_COMPARED = 1_000_000  # pairs of lines; a passage rewritten beyond that has nothing to be found
_REACH = 30  # lines that an edited line may have moved within a rewritten passage; bounds the work


def _pair_similar(new: Sequence[str], old: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (index in new, index in old), rising in both, with the greatest sum of similarities."""
    if len(new) * len(old) > _MAX_COMPARED:
        return []
    matcher = difflib.SequenceMatcher(autojunk=False)
    # best[i][j]: greatest sum with new[i:] and old[j:]
    best = [[0.0] * (len(old) + 1) for _ in range(len(new) + 1)]
    similarity: dict[tuple[int, int], float] = {}
    for j in range(len(old) - 1, -1, -1):
        matcher.set_seq2(old[j])
        for i in range(len(new)):
            if abs(i - j) <= _REACH:
                matcher.set_seq1(new[i])
                if matcher.real_quick_ratio() >= _SIMILAR and matcher.quick_ratio() >= _SIMILAR:
                    ratio = matcher.ratio()
                    if ratio >= _SIMILAR:
                        similarity[i, j] = ratio
    for i in range(len(new) - 1, -1, -1):
        for j in range(len(old) - 1, -1, -1):
            best[i][j] = max(best[i + 1][j], best[i][j + 1], similarity.get((i, j), 0.0) + best[i + 1][j + 1])
    pairs = []
    i = j = 0
    while i < len(new) and j < len(old):
        if (i, j) in similarity and best[i][j] == similarity[i, j] + best[i + 1][j + 1]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return pairs


def crop(lines: Sequence[TimedLine], start_seconds: float, end_seconds: float) -> str:
    """The lyrics sung in `start_seconds` <= time < `end_seconds`, without times, for audio cropped to that window.

    The structure tag that governs the first of them is kept or put in front. An untimed tag goes with the timed line
    behind it, untimed text with the timed line before it. Returns "" when nothing is sung in the window, and all
    lines when none has a time, because then nothing is known.
    """
    lines = list(lines)
    if all(line.seconds is None for line in lines):
        return _join(line.text for line in lines)
    owners = _owners(lines)
    kept = [start_seconds <= seconds < end_seconds for seconds in owners]
    if not any(
        keep and line.text and not (line.seconds is None and _is_structure_tag(line.text))
        for keep, line in zip(kept, lines, strict=True)
    ):
        return ""
    first = kept.index(True)
    texts = [line.text for keep, line in zip(kept, lines, strict=True) if keep]
    if not STRUCTURE_TAG.match(next(text for text in texts if text)):
        before = (match for line in reversed(lines[:first]) if (match := STRUCTURE_TAG.match(line.text)))
        if tag := next(before, None):
            texts.insert(0, tag.group().strip())
    return _join(texts)


def split(lines: Sequence[TimedLine], edges: Sequence[float]) -> list[list[TimedLine]] | None:
    """The lyrics of each piece of audio that is cut at `edges` (seconds, rising, the song's start and end among them).

    Piece i has the lines of edges[i] <= time < edges[i + 1] with times from its own start, and the structure tag that
    governs its first line in front. A piece in which nothing is sung has no lines. None when no line has a time: then
    nobody knows what is sung where, and no piece may get the lyrics of the whole.
    """
    lines = list(lines)
    if all(line.seconds is None for line in lines):
        return None
    owners = _owners(lines)
    pieces: list[list[TimedLine]] = []
    for start, end in itertools.pairwise(edges):
        kept = [index for index, seconds in enumerate(owners) if start <= seconds < end]
        piece = [
            TimedLine(None if lines[i].seconds is None else round(owners[i] - start, 3), lines[i].text) for i in kept
        ]
        if not any(line.text and not _is_structure_tag(line.text) for line in piece):
            pieces.append([])
            continue
        piece = _strip_empty(piece)
        if not STRUCTURE_TAG.match(next(line.text for line in piece if line.text)):
            before = (match for line in reversed(lines[: kept[0]]) if (match := STRUCTURE_TAG.match(line.text)))
            if tag := next(before, None):
                piece.insert(0, TimedLine(None, tag.group().strip()))
        pieces.append(piece)
    return pieces


def _owners(lines: Sequence[TimedLine]) -> list[float]:
    """For every line the time by which it is kept or left out: its own, or that of the timed line it belongs to.

    Untimed lines behind a timed one belong to the next from the first structure tag or empty line on.
    """
    owners: list[float] = []
    previous: float | None = None
    waiting = 0  # lines at the end of what has been seen that belong to the next timed line
    for line in lines:
        if line.seconds is not None:
            previous = line.seconds
            owners += [line.seconds] * (waiting + 1)
            waiting = 0
        elif waiting or previous is None or not line.text or _is_structure_tag(line.text):
            waiting += 1
        else:
            owners.append(previous)
    assert previous is not None  # the caller has seen a timed line
    return owners + [previous] * waiting
