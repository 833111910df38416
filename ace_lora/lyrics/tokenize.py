"""Lyrics to the token ids that the model was trained with: `LyricTokenizer(vocabulary).tokenize(lyrics)`.

Where the published training code fails (it silently trains on another song, or drops lines), this goes on as the
spec says and tells the user. Spec: top level, encode, where upstream fails.
"""

from __future__ import annotations

import bisect
import itertools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ace_lora.commands import WrongInput
from ace_lora.lyrics.cleaners import SUPPORTED_LANGUAGES, prepare
from ace_lora.lyrics.japanese import require_japanese
from ace_lora.lyrics.language_id import language_name
from ace_lora.lyrics.packages import EXACT_VERSIONS, MissingLyricSupport, require_package
from ace_lora.lyrics.segment import segment
from ace_lora.lyrics.text import STRUCTURE_TAGS, heading_of, suggest_structure_tag

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENS = 4096  # what the published model was trained with; longer lists are cut
DEFAULT_LANGUAGE = "en"

_STOP, _UNKNOWN, _SPACE = 0, 1, 2  # _SPACE is the line break as well
_LANGUAGE_TAGS = {language: f"[{language}]" for language in SUPPORTED_LANGUAGES} | {"zh": "[zh-cn]"}
_LETTERS_MARKUP = re.compile(r"<(/?)([A-Za-z]+)>")


@dataclass(frozen=True)
class LineTokens:
    """What became of one line of the lyrics.

    `language` is the one it was encoded in, `tokens` the number of its ids. `unknown` holds the characters that the
    vocabulary does not know, `misread` those that became a question mark on the way to it. `cut`: none of it, or not
    all, is among the first MAX_TOKENS ids.
    """

    text: str
    language: str
    tokens: int
    unknown: str = ""
    misread: bool = False
    cut: bool = False


@dataclass(frozen=True)
class LyricTokens:
    """`ids` of one song, at most MAX_TOKENS; `[0]` where the lyrics are empty. Their mask is all ones.

    `main_language` is the one in which most lines were encoded ("" where there are no lyrics).
    `warnings` are sentences for the user, without the song's name. `unknown_lines` are the lines of the lyrics, each
    once, that hold something the vocabulary does not know (id 1); `warnings` say what and what to write instead.
    `ids_before_cut` is the number of ids before the cut at MAX_TOKENS. `lines`: the lines that are not empty, in order.
    """

    ids: list[int]
    main_language: str
    warnings: list[str] = field(default_factory=list)
    unknown_lines: list[str] = field(default_factory=list)
    ids_before_cut: int = 0
    lines: list[LineTokens] = field(default_factory=list)


class LyricTokenizer:
    """Tokenises songs one by one; nothing but the loaded libraries is kept between them."""

    def __init__(self, vocabulary: Tokenizer):
        """Raises MissingLyricSupport when a library that every language needs is missing.

        Checked here because a missing num2words or pypinyin would otherwise look like a line that cannot be said.
        """
        for package in EXACT_VERSIONS:
            # Another py3langid is unusable; other versions of the rest are warned of (packages.version_warnings).
            require_package(package, exactly=package == "py3langid")
        self._vocabulary = vocabulary
        start = vocabulary.token_to_id("[START]")
        if start is None:
            raise ValueError(
                "The lyric vocabulary has no token [START]; load it with load_vocabulary, which checks it."
            )
        self._start = start

    def tokenize(self, lyrics: str, language: str | None = None, song: str = "") -> LyricTokens:
        """Token ids of the lyrics of one song.

        `language`: what the user says is the language of the song, in place of the detected one; one of
        SUPPORTED_LANGUAGES. `song`: its name, for errors. Line ends should be `\\n` (ace_lora.files.read_text).
        Raises WrongInput for an unknown `language`, and MissingLyricSupport when the song needs the Japanese
        packages and they are not usable; tokenise all songs before writing anything.
        """
        language = language or None  # LyricTokens.main_language of empty lyrics is "", and may come back here
        if language is not None:
            check_language(language)
        if _is_captioner_prompt(lyrics):
            return LyricTokens(
                [_STOP],
                "",
                warnings=[
                    "The lyrics hold the sentence 'write a … song that genre is'; the model takes such lyrics as none "
                    "at all. Remove that line."
                ],
                ids_before_cut=1,
            )
        if not lyrics.strip():
            return LyricTokens([_STOP], "", ids_before_cut=1)

        segmentation = segment(lyrics)
        main, warnings = _choose_main_language(segmentation.counts, language)
        report = _Report(lyrics)
        encoded: dict[tuple[str, str], _Encoded] = {}  # choruses repeat

        def encode(line: str, line_language: str) -> _Encoded:
            key = (line, line_language)
            if key not in encoded:
                if line_language == "ja":
                    require_japanese(song)
                encoded[key] = self._encode(line, line_language)
            return encoded[key]

        ids = [self._start]
        for part in segmentation.segments:
            part_language = part.language if part.language in SUPPORTED_LANGUAGES else DEFAULT_LANGUAGE
            for line in part.text.split("\n"):
                if not line.strip():
                    ids.append(_SPACE)
                    continue
                typed = report.find_typed(line)
                try:
                    used = "en" if line[0] == "[" and "]" in line else main
                    made = encode(line, used)
                    if used == main and _UNKNOWN in made.ids and not (line[0] == "[" and "]" in line):
                        used = part_language
                        made = encode(line, used)
                except MissingLyricSupport as error:
                    if main == "ja":
                        raise
                    # Short Chinese lines are often taken for Japanese, so that a single one can ask for it.
                    raise MissingLyricSupport(
                        f"{error} (The line that needs it: '{_shorten(typed)}'. If it is not Japanese, set the "
                        "language of this song instead.)"
                    ) from error
                except Exception as error:
                    # The published code drops such a line too, so the ids must; but it is said.
                    report.dropped(typed, error)
                    continue
                if made.unknown:
                    report.unknown(typed, made.unknown)
                ids += made.ids
                ids.append(_SPACE)
                cut = len(ids) > MAX_TOKENS + 1  # a line break that is cut off loses no words
                if cut:
                    report.cut_from_here()
                report.encoded(made, used, main, cut)
        warnings += report.sentences(len(ids))
        if _has_letters_markup(lyrics):
            warnings.append(
                "The lyrics hold markup such as '<en>text</en>'. It is read as ordinary punctuation here, while the "
                "published training code may delete the text between. Remove the angle brackets."
            )
        return LyricTokens(ids[:MAX_TOKENS], main, warnings, report.unknown_lines(), len(ids), report.lines())

    def _encode(self, line: str, language: str) -> _Encoded:
        prepared = prepare(line, language)
        text = _LANGUAGE_TAGS[language] + prepared.replace(" ", "[SPACE]")
        encoding = self._vocabulary.encode(text)
        misread = prepared.count("?") > sum(line.count(sign) for sign in "?？⁇⁈⁉‽")
        if _UNKNOWN not in encoding.ids:
            return _Encoded(encoding.ids, "", misread)
        spans = (span for token, span in zip(encoding.ids, encoding.offsets, strict=True) if token == _UNKNOWN)
        return _Encoded(encoding.ids, "".join(text[start:stop] for start, stop in spans), misread)


@dataclass(frozen=True)
class _Encoded:
    """Ids of one line, the characters that the vocabulary does not know, and whether others became a `?`."""

    ids: list[int]
    unknown: str
    misread: bool


def check_language(language: str) -> None:
    """Raise WrongInput unless `language` is one of SUPPORTED_LANGUAGES."""
    if language not in SUPPORTED_LANGUAGES:
        raise WrongInput(
            f"The lyric language '{language}' is not one that the model knows. "
            f"Expected one of: {' '.join(SUPPORTED_LANGUAGES)}. Choose one of them, or leave it to be detected."
        )


def _is_captioner_prompt(lyrics: str) -> bool:
    """Whether the regular expression `write a .* song that genre is` is found, in linear time."""
    before, behind = "write a ", " song that genre is"
    for line in lyrics.split("\n"):
        start = line.find(before)
        if start >= 0 and line.find(behind, start + len(before)) >= 0:
            return True
    return False


def _choose_main_language(counts: list[tuple[str, int]], wanted: str | None) -> tuple[str, list[str]]:
    if wanted is not None:
        return wanted, []
    detected = counts[0][0] or DEFAULT_LANGUAGE
    if detected in SUPPORTED_LANGUAGES:
        return detected, []
    total = sum(count for _, count in counts)
    used = next(
        (language for language, count in counts if language in SUPPORTED_LANGUAGES and count * 10 >= total),
        DEFAULT_LANGUAGE,
    )
    return used, [
        f"The language was detected as {language_name(detected)}, which the model does not know; "
        f"{language_name(used)} is used. If that is wrong, set the language of this song."
    ]


def _has_letters_markup(lyrics: str) -> bool:
    opened = set()
    for match in _LETTERS_MARKUP.finditer(lyrics):
        closing, name = match.groups()
        if not closing:
            opened.add(name)
        elif name in opened:
            return True
    return False


def _name_characters(characters: Iterable[str]) -> str:
    """`🌙 U+FE0F`: what has no shape of its own is given by number."""
    return _shorten(
        " ".join(
            f"U+{ord(character):04X}" if unicodedata.category(character)[0] in "CMZ" else character
            for character in characters
        )
    )


def _shorten(line: str, length: int = 60) -> str:
    line = line.strip().encode("utf-8", "replace").decode()  # no lone surrogates in what will be printed
    return line if len(line) <= length else line[: length - 1] + "…"


# --- What the user is told ---

_LEADING_TAG = re.compile(r"\s*\[([^\]]*)\]")
_SPACES_AND_HYPHENS = re.compile(r"[\s-]+")


class _Report:
    """Collects, line by line, what the user should know about one song."""

    def __init__(self, lyrics: str):
        self._unknown_lines: dict[str, None] = {}
        self._dropped: dict[str, str] = {}
        self._unknown_tags: dict[str, int] = {}
        self._unknown_characters: dict[str, None] = {}
        self._lines_with_unknown_characters: dict[str, None] = {}
        self._lines_behind_tags: dict[str, None] = {}
        self._first_cut: int | None = None
        # Segments space out capitals and cut lines up, but keep every character but spaces and hyphens, in order:
        # counting those finds the line as the user typed it.
        self._typed_lines = [line.strip() for line in lyrics.split("\n") if line.strip()]
        self._ends = list(itertools.accumulate(map(_count_characters, self._typed_lines)))
        self._position = 0
        self._current = 0
        self._lines: dict[int, LineTokens] = {}

    def find_typed(self, line: str) -> str:
        """The user's line in which the next line of a segment begins; call it for every line, in order."""
        self._current = min(bisect.bisect_right(self._ends, self._position), len(self._typed_lines) - 1)
        self._position += _count_characters(line)
        return self._typed_lines[self._current]

    def encoded(self, made: _Encoded, language: str, main: str, cut: bool) -> None:
        """Note what became of the line that `find_typed` found; segments may bring a line in several pieces."""
        before = self._lines.get(self._current) or LineTokens(self._typed_lines[self._current], language, 0)
        unknown = "" if before.text.lower() == "[instrumental]" else before.unknown + made.unknown
        self._lines[self._current] = LineTokens(
            before.text,
            # A line in several pieces is told by the one that was not read as the rest of the song.
            language if before.language == main else before.language,
            before.tokens + len(made.ids),
            unknown,
            before.misread or made.misread,
            before.cut or cut,
        )

    def lines(self) -> list[LineTokens]:
        return [self._lines.get(index, LineTokens(line, "", 0)) for index, line in enumerate(self._typed_lines)]

    def dropped(self, line: str, error: Exception) -> None:
        self._dropped.setdefault(line, f"{type(error).__name__}: {error}")

    def cut_from_here(self) -> None:
        if self._first_cut is None:
            self._first_cut = self._current

    def unknown(self, line: str, characters: str) -> None:
        if line.lower() == "[instrumental]":
            return  # the convention for songs without vocals; the model was trained with its unknown brackets
        self._unknown_lines[line] = None
        tag = _LEADING_TAG.match(line)
        if tag and tag.group().strip().lower() not in STRUCTURE_TAGS:
            self._unknown_tags[tag.group().strip()] = self._unknown_tags.get(tag.group().strip(), 0) + 1
            if not line[tag.end() :].strip():
                return
        if tag and line[tag.end() :].strip():
            self._lines_behind_tags[line] = None
        else:
            self._unknown_characters |= dict.fromkeys(characters)
            self._lines_with_unknown_characters[line] = None

    def unknown_lines(self) -> list[str]:
        return list(self._unknown_lines)

    def sentences(self, ids_before_cut: int) -> list[str]:
        sentences = [
            f"This line cannot be encoded and is left out ({reason}): '{_shorten(line)}'. Write it differently."
            for line, reason in self._dropped.items()
        ]
        tags_by_advice: dict[str, list[str]] = {}
        for tag in self._unknown_tags:
            suggestion = suggest_structure_tag(tag[1:-1])
            advice = f"write {suggestion}" if suggestion else f"write one of {' '.join(STRUCTURE_TAGS)}, or remove it"
            tags_by_advice.setdefault(advice, []).append(tag)
        for advice, tags in tags_by_advice.items():
            number = sum(self._unknown_tags[tag] for tag in tags)
            quoted = _shorten(" ".join(f"'{tag}'" for tag in tags))
            kind = "tag" if len(tags) == 1 else "tags"
            sentences.append(f"The model does not know the structure {kind} {quoted} ({_lines(number)}); {advice}.")
        if self._lines_behind_tags:
            first = next(iter(self._lines_behind_tags))
            sentences.append(
                f"Text behind a structure tag is read as English, and the model does not know all of it "
                f"({_lines(len(self._lines_behind_tags))}, first: '{_shorten(first)}'). Put it on a line of its own."
            )
        if self._lines_with_unknown_characters:
            first = next(iter(self._lines_with_unknown_characters))
            sentences.append(
                f"The model does not know these characters: {_name_characters(self._unknown_characters)} "
                f"({_lines(len(self._lines_with_unknown_characters))}, first: '{_shorten(first)}'). "
                "Replace or remove them."
            )
        for line in dict.fromkeys(self._typed_lines):
            heading = None if line.startswith("[") else heading_of(line)
            if heading is not None:
                sentences.append(
                    f"The line '{_shorten(line)}' would be sung, because of its brackets; write {heading.tag}."
                    if line.startswith(("【", "［", "〔"))
                    else f"The line '{_shorten(line)}' would be sung; if it is a heading, write {heading.tag}."
                )
        if self._first_cut is not None:
            cut = self._typed_lines[self._first_cut :]
            sentences.append(
                f"The lyrics make {ids_before_cut} tokens and the model takes {MAX_TOKENS}: the last "
                f"{_lines(len(cut))}, from '{_shorten(cut[0])}', are left out, in whole or in part. "
                "Shorten the lyrics or split the song."
            )
        return sentences


def _count_characters(line: str) -> int:
    return len(_SPACES_AND_HYPHENS.sub("", line))


def _lines(number: int) -> str:
    return "1 line" if number == 1 else f"{number} lines"
