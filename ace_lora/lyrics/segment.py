"""Lyrics cut into stretches of one guessed language each: `segment(text)`.

Why it matters even when every line is finally encoded in one language: each boundary that falls on a line break adds
a token. The rules look arbitrary in places; they are those with which the published model was trained, and every one
of them is visible in the ids of some song. Spec: segmentation.

    text -> chunks (a line and the newlines behind it)
         -> plain stretches and marks (runs of one script, numbers, quotations)   _mark_chunk
         -> pieces (language, text)                                                _Segmenter.walk, .cut_plain
         -> records, neighbours of one language joined                             _Segmenter.piece, .record
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ace_lora.lyrics.language_id import identify, squash

_CHUNK = re.compile(r"[^\n]+\n*")
_HAN = re.compile("[\u4e00-\u9fff]")
_ONLY_HAN = re.compile("[\u4e00-\u9fff]*")
_KANA = re.compile("[\u3040-\u30ff]")
_DIGITS = re.compile(r"\d+")
# Neither word nor space characters; emoji and combining marks belong here.
_PUNCTUATION_RUN = re.compile(r"([^\w\s]+)")
_CAPITAL_BEHIND_WORD_CHARACTER = re.compile(r"(?<=\w)([A-Z])")
# The second alternative keeps the search linear where no sentence end follows.
_SENTENCE = re.compile(r"[^。.?？!！]*[。.?？!！]+\n?|[^。.?？!！]+")

_OPENERS = "【《（(“‘\"'"
# Lower case only, and no ß ł ş ı ő ű č ě ř: a word with one of the missing letters breaks into pieces, and so it must.
_LATIN_LETTERS = "a-zA-Zàáâãäåæçèéêëìíîïðñòóôõöùúûüýþÿđơưăảạắằẳẵặấầẩẫậẻẽẹếềểễệỉĩịỏọốồổỗộớờởỡợủũụứừửữựỷỹ"
_SCRIPT_RUNS = tuple(
    # A class letter, then letters and non-word characters across spaces and newlines. The openers in front are added
    # by `_script_run_spans`: matched here, they would make the search quadratic in a row of brackets.
    (kind, re.compile(rf"[{letters}][{letters}\W]*"))
    for kind, letters in (("ko", "\uac00-\ud7a3"), ("th", "\u0e00-\u0e7f"), ("ru", "А-яЁё"))
)
_LATIN_RUN = re.compile(rf"[{_LATIN_LETTERS}][{_LATIN_LETTERS}\W]*")
# Digits glued to a following letter, or at the very end of the stretch, are no number. The non-word characters in
# front belong to it too; `_number_spans` adds them.
_NUMBER = re.compile(r"(?<!\d)\d+\W+\d*\W*\d*")
_NON_WORD = re.compile(r"\W")
_QUOTE = re.compile(r""""(?P<double>[^"\n]*)"|'(?P<single>[^'\n]*)'""")
_BRACKETED = re.compile("[【《（(“‘](?P<inner>[^【《（(“‘’”)）》】]{3,})[’”)）》】]\\W*")

_ZH_FIRST = ("zh", "ja")
_JA_FIRST = ("ja", "zh")


@dataclass(frozen=True)
class Segment:
    """Neighbouring text of one guessed language; `text` keeps its newlines."""

    language: str
    text: str


@dataclass(frozen=True)
class Segmentation:
    """`counts`: characters per language (zh doubled), most first; the first is the main language of the song."""

    segments: list[Segment]
    counts: list[tuple[str, int]]


def segment(text: str) -> Segmentation:
    """Cut `text` by language. Nothing is remembered from one call to the next."""
    segmenter = _Segmenter()
    segments: list[Segment] = []
    for chunk in _CHUNK.findall(text):
        if chunk.strip():
            segmenter.walk(_mark_chunk(chunk))
            segments.extend(segmenter.take_records())
    segmenter.settle_at_end()
    segments.extend(segmenter.take_records())
    counts = sorted(segmenter.counts.items(), key=lambda item: -item[1])  # stable: ties keep the order of counting
    return Segmentation(_join_neighbours(segments), counts or [("zh", 0)])


def _join_neighbours(segments: Iterable[Segment]) -> list[Segment]:
    groups: list[tuple[str, list[str]]] = []
    for item in segments:
        if groups and groups[-1][0] == item.language:
            groups[-1][1].append(item.text)
        else:
            groups.append((item.language, [item.text]))
    return [Segment(language, "".join(texts)) for language, texts in groups]


# --- Marks ---


@dataclass(frozen=True)
class _Mark:
    """A run that is treated as a whole: `kind` is a script (`ko th ru latin`), `number` or `quotation`.

    A quotation has `parts` (its whole content, delimiters included) when marks lie inside it, and `inner` (the text
    between the delimiters) otherwise.
    """

    kind: str
    text: str = ""
    inner: str = ""
    parts: tuple[str | _Mark, ...] = ()


_Parts = list["str | _Mark"]
_Span = tuple[int, int]


def _mark_chunk(chunk: str) -> _Parts:
    """Plain stretches and marks of a chunk in order; empty stretches are left out."""
    parts: _Parts = [chunk]
    for kind, pattern in _SCRIPT_RUNS:
        parts = _mark_plain(parts, kind, lambda text, pattern=pattern: _script_run_spans(pattern, text))
    if list(_number_spans(chunk)) != [(0, len(chunk))]:
        parts = _mark_plain(parts, "number", _number_spans)
    parts = _mark_plain(parts, "latin", lambda text: _script_run_spans(_LATIN_RUN, text))
    parts = _mark_quotations(parts, _QUOTE)
    return _mark_quotations(parts, _BRACKETED)


def _script_run_spans(pattern: re.Pattern[str], text: str) -> Iterator[_Span]:
    previous_end = 0
    for match in pattern.finditer(text):
        start = match.start()
        while start > previous_end and text[start - 1] in _OPENERS:
            start -= 1
        previous_end = match.end()
        yield start, previous_end


def _number_spans(text: str) -> Iterator[_Span]:
    previous_end = 0
    for match in _NUMBER.finditer(text):
        start = match.start()
        while start > previous_end and _NON_WORD.match(text[start - 1]):
            start -= 1
        previous_end = match.end()
        yield start, previous_end


def _mark_plain(parts: _Parts, kind: str, find_spans) -> _Parts:
    """Mark the spans that `find_spans` finds in each plain stretch."""
    result: _Parts = []
    for part in parts:
        if isinstance(part, _Mark):
            result.append(part)
            continue
        end = 0
        for start, stop in find_spans(part):
            result += [part[end:start], _Mark(kind, text=part[start:stop])]
            end = stop
        result.append(part[end:])
    return [part for part in result if part]


def _mark_quotations(parts: _Parts, pattern: re.Pattern[str]) -> _Parts:
    """Mark quotations, which may hold earlier marks; a single one that covers the whole chunk is none."""
    # Three word characters of no class stand for a mark: it counts as content, and three satisfy `_BRACKETED`.
    # They are told from the user's own characters by position, never by value.
    masked = "".join("\U00012000" * 3 if isinstance(part, _Mark) else part for part in parts)
    matches = list(pattern.finditer(masked))
    if not matches or (len(matches) == 1 and matches[0].span() == (0, len(masked))):
        return parts
    result: _Parts = []
    cursor = _PartCursor(parts)
    for match in matches:
        result += cursor.take_until(match.start())
        content = cursor.take_until(match.end())
        if any(isinstance(part, _Mark) for part in content):
            result.append(_Mark("quotation", parts=tuple(content)))
        else:
            result.append(_Mark("quotation", text=match.group(), inner=match.group(match.lastgroup or 0)))
    return result + cursor.take_until(len(masked))


class _PartCursor:
    """Takes parts in order, by position in the masked text of `_mark_quotations` (no position is inside a mark)."""

    def __init__(self, parts: _Parts):
        self._parts = parts
        self._index = 0  # of the part that is taken next
        self._offset = 0  # in that part
        self._position = 0  # in the masked text

    def take_until(self, position: int) -> _Parts:
        taken: _Parts = []
        while self._position < position:
            part = self._parts[self._index]
            if isinstance(part, _Mark):
                taken.append(part)
                self._position += 3
                self._index += 1
                continue
            stop = min(len(part), self._offset + position - self._position)
            taken.append(part[self._offset : stop])
            self._position += stop - self._offset
            self._offset = stop
            if stop == len(part):
                self._index, self._offset = self._index + 1, 0
        return taken


# --- Pieces and records ---


@dataclass
class _Record:
    language: str
    texts: list[str]

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass
class _Segmenter:
    """The state of one song: characters counted, records of the current chunk, a piece whose language is open."""

    counts: dict[str, int] = field(default_factory=dict)
    records: list[_Record] = field(default_factory=list)
    # zh or ja, to be settled by what follows, which may come in a later chunk.
    held: tuple[tuple[str, str], str] | None = None

    def take_records(self) -> list[Segment]:
        records, self.records = self.records, []
        return [Segment(record.language, record.text) for record in records]

    def walk(self, parts: Iterable[str | _Mark], inside_quotation: bool = False) -> None:
        """Cut the parts of a chunk into pieces, in order."""
        parts = list(parts)
        for number, part in enumerate(parts):
            if isinstance(part, str):
                self.cut_plain(part, tail=number == len(parts) - 1 and not inside_quotation)
            elif part.kind == "number":
                self.piece(self.records[0].language if self.records else "zh", part.text)
            elif part.kind == "latin":
                for sentence in _SENTENCE.findall(part.text):
                    # A sentence of white space is lost with its newline, which joins two lines; the ids show it.
                    if sentence.strip():
                        self.piece(identify(squash(sentence))[0], sentence)
            elif part.kind != "quotation":
                self.piece(part.kind, part.text)
            elif part.parts:
                self.walk(part.parts, inside_quotation=True)
            else:
                squashed = squash(part.inner)
                if len(squashed) <= 5:
                    self.cut_plain(part.text, tail=False)
                else:
                    self.piece(identify(squashed)[0], part.text)

    def cut_plain(self, text: str, tail: bool) -> None:
        """Cut a plain stretch behind punctuation once more than two effective characters have been collected.

        `tail`: the stretch is the last of its chunk.
        """
        items = _PUNCTUATION_RUN.split(text)  # text, punctuation, text, …, text
        blanks = [number % 2 == 1 or not item.strip() for number, item in enumerate(items)]
        last = len(items) - 1
        buffer: list[str] = []
        buffer_blank = True
        for number, item in enumerate(items):
            buffer.append(item)
            buffer_blank = buffer_blank and blanks[number]
            # Tested before joining: a long row of blank items must not be joined again for each of them.
            if number < last and (buffer_blank or blanks[number + 1]):
                continue
            current = "".join(buffer)
            if not current:
                continue
            squashed = squash(_DIGITS.sub("", current))
            if number < last and len(squashed) <= 2:
                buffer = [current]
                continue
            self.piece(self._language_of_plain(current, squashed, last_of_tail=tail and number == last), current)
            buffer, buffer_blank = [], True

    def _language_of_plain(self, text: str, squashed: str, last_of_tail: bool) -> str | tuple[str, str]:
        """A language, or an undecided pair whose first is the default."""
        language, probability = identify(squashed)
        if language != "zh" and _ONLY_HAN.fullmatch(squashed.replace(" ", "")):
            language, probability = "zh", 1.0
        if len(squashed) > 5 or not _HAN.search(squashed):
            return language
        # Short Chinese lines do turn Japanese here.
        if probability < 0.89:
            language = "ja"
        latest = self.records[-1].language if self.records else None
        if _KANA.search(squashed):
            return "ja"
        if len(squashed) >= 3 and probability > 0.90:
            return language
        if last_of_tail:
            return "zh" if len(squashed) <= 1 else language
        if text.rstrip().endswith(("。", ".")):
            return latest if latest in _ZH_FIRST else language
        if language == "zh" or (len(squashed) <= 2 and latest == "zh"):
            return _ZH_FIRST
        return _JA_FIRST

    def piece(self, language: str | tuple[str, str], text: str) -> None:
        """Record a piece, or hold it back while its language is undecided."""
        if not text.strip() and text != "\n":
            return
        if language == "en":
            text = _CAPITAL_BEHIND_WORD_CHARACTER.sub(r" \1", text).strip("-") + " "
        if self.held is not None:
            pair, held_text = self.held
            self.held = None
            if language == pair:
                language = pair[0]
            self.record(language if isinstance(language, str) and language in pair else pair[0], held_text)
        if isinstance(language, str):
            self.record(language, text)
        else:
            self.held = (language, text)

    def settle_at_end(self) -> None:
        """Record a piece that is still held back behind the last chunk."""
        if self.held is not None:
            pair, text = self.held
            self.held = None
            self.record(pair[0], text)

    def record(self, language: str, text: str) -> None:
        """Append to the records of the chunk; numbers and punctuation take the language of their neighbour."""
        if self.records:
            previous = self.records[-1]
            if _is_numeric(text):
                language = previous.language
            if language == previous.language:
                previous.texts.append(text)
                self._count(language, text)
                return
            if _is_numeric(previous.text):
                text = previous.text + text
                self.records.pop()  # what was counted for it stays counted
        self.records.append(_Record(language, [text]))
        self._count(language, text)

    def _count(self, language: str, text: str) -> None:
        self.counts[language] = self.counts.get(language, 0) + len(text) * (2 if language == "zh" else 1)


def _is_numeric(text: str) -> bool:
    """Nothing but digits and punctuation; `"1 2"` is not, because of the space inside."""
    if text == "\n":
        return False
    return not _DIGITS.sub("", _PUNCTUATION_RUN.sub("", text.replace("\n", "")).strip())
