"""What a caption of a song is, and which answers of a captioning model may become one.

A model is asked for JSON of `caption_schema`; `parse_caption` turns its answer into a `Caption` or raises
`UnusableAnswer` with the reason. What a model says badly must not become training data silently.

Standard library only (json-repair is imported when an answer does not parse).
"""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ace_lora.captions.refusals import REFUSAL, REFUSED_LINE, UNSAID
from ace_lora.captions.tags import canonical, contradictions, foreign
from ace_lora.lyrics.formats import read_entries
from ace_lora.lyrics.phrases import SUBTITLES_OF_MODELS, stands_for_no_lyrics
from ace_lora.lyrics.sorting import is_pinyin, sort_lines
from ace_lora.lyrics.text import clean_lines, comparable, sung_lines

# The tags of the schema at one letter per token come to 650; real ones to about 100.
MAX_TAG_TOKENS = 1024
# A long rap is about 2000 tokens; an answer that is cut there is not used.
MAX_LYRIC_TOKENS = 4096

# Order of the fields in the question, in the schema and so in the answer: the model settles what it hears
# before it writes the lyrics.
TAG_FIELDS = ("genre", "subgenre", "instrument", "tempo", "mood")
MAX_LINES = 120
MAX_LINE_CHARACTERS = 100

# Lower-case words without commas: a prompt is split at its commas. Digits are needed for "80s" and "808 bass".
_TAG_PATTERN = "^[a-z0-9][a-z0-9 &'/-]{1,29}$"
# No digit: the model's beats per minute are guesses; the tempo is measured where a number is wanted.
_TEMPO_PATTERN = "^[a-z][a-z '-]{1,29}$"
# No quote, backslash or control character, so that a line holds no escape sequence of JSON.
_LINE_PATTERN = r'^[^"\\\x00-\x1F]{1,' + str(MAX_LINE_CHARACTERS) + "}$"

_NUMBER = r"\d+(?:\.\d+)?(?:\s*(?:-|–|to)\s*\d+(?:\.\d+)?)?"
_PER_MINUTE = r"(?:bpm\b|b\.\s?p\.\s?m\b\.?|beats?\s*(?:per|a|/)\s*min(?:ute)?s?\b)"
_BPM = re.compile(
    r"\(?\b(?:at|around|about|approximately|approx\.?|circa|ca\.?|~)?\s*"
    rf"(?:{_NUMBER}\s*-?\s*{_PER_MINUTE}|{_PER_MINUTE}\s*[:=]?\s*(?:of\s*)?(?:{_NUMBER})?"
    rf"|(?<=tempo)(?:[\s:=(~]|of|at|around|about)*{_NUMBER}(?!\w))\)?",
    re.IGNORECASE,
)
# Words that lead to a number.
_ABOUT = frozenset(("at", "around", "about", "approximately", "approx", "approx.", "circa", "ca.", "of"))
# What models write into a field that they have nothing for.
_NO_TAG = frozenset(
    (
        *("", "none", "n/a", "na", "null", "nil", "unknown", "other", "various", "-", "not applicable"),
        *("tempo", "genre", "subgenre", "instrument", "instruments", "mood", "moods"),
    )
)
_LONGEST_TAG = 40
# A tag with more words is a sentence.
_MOST_WORDS = 5
_MOST_REPEATS_IN_TAG = 4

# A line sung this often without another between is a loop of the model rather than a song; so is a block of lines.
MOST_EQUAL_LINES = 10
MOST_EQUAL_BLOCKS = 8
# The same for a phrase inside one line.
MOST_EQUAL_PHRASES = 12


class UnusableAnswer(Exception):
    """An answer that must not be written; the text says why. Asking again with other sampling may help."""


@dataclass(frozen=True)
class Caption:
    """What was said of one song or of one part of it.

    `tags` are clean (`clean_tags`) and empty when none were asked for; `has_vocal` is None when nothing was said
    about it; `lyrics` are the sung lines, empty when none were asked for or nobody sings.
    """

    tags: tuple[str, ...] = ()
    has_vocal: bool | None = None
    lyrics: tuple[str, ...] = field(default=())


# --- The question ---


def caption_schema(*, tags: bool, lyrics: bool) -> dict[str, Any]:
    """JSON schema of the answer; every string and list is bounded, or a model may never close one."""
    # First of all, so that what follows need not be made up: every list may be empty then.
    properties: dict[str, Any] = {"cannot_tell": {"type": "boolean"}}
    if tags:
        properties |= {
            "genre": _tag_list(3),
            "subgenre": _tag_list(3),
            "instrument": _tag_list(6),
            "tempo": _tag_list(1, _TEMPO_PATTERN),
            "mood": _tag_list(4),
        }
    properties["has_vocal"] = {"type": "boolean"}
    if tags:
        properties["vocal"] = _tag_list(4)
    if lyrics:
        # A list of lines: llama.cpp fails on one long bounded string, and a line cannot swallow the line ends.
        properties["lyrics"] = {
            "type": "array",
            "minItems": 0,
            "maxItems": MAX_LINES,
            "items": {"type": "string", "pattern": _LINE_PATTERN},
        }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _tag_list(most: int, pattern: str = _TAG_PATTERN) -> dict[str, Any]:
    return {"type": "array", "minItems": 0, "maxItems": most, "items": {"type": "string", "pattern": pattern}}


def caption_question(*, tags: bool, lyrics: bool, language: str | None = None) -> str:
    """The instruction that goes with the audio. `language` is the ISO 639-1 code of the lyrics where it is known."""
    parts = [
        "Listen to this music and answer with one JSON object with these fields.",
        "cannot_tell: true if you cannot hear or cannot describe it; then leave the lists empty. Else false.",
    ]
    if tags:
        parts += [
            "genre: list of 1 to 3 music genres.",
            "subgenre: list of up to 3 more exact genres, may be empty.",
            "instrument: list of 1 to 6 instruments that are heard.",
            "tempo: list of one word for the tempo such as slow, medium or fast; no numbers.",
            "mood: list of 1 to 4 moods.",
        ]
    parts.append("has_vocal: true if somebody sings, raps or speaks, else false.")
    if tags:
        parts.append(
            "vocal: list of up to 4 descriptions of the voice such as male, female, rap or breathy; "
            "empty without a voice."
        )
    if lyrics:
        sung_in = f" The language is '{language}'." if language else ""
        parts.append(
            "lyrics: list of the sung lines in their order and in the language and script in which they are sung, "
            f"one line of the song each, not translated; empty without a voice.{sung_in}"
        )
    if tags:
        parts.append("Tags are short, in English and in lower case.")
    return "\n".join(parts)


def answer_tokens(*, tags: bool, lyrics: bool) -> int:
    """How long an answer may become."""
    return (MAX_TAG_TOKENS if tags else 64) + (MAX_LYRIC_TOKENS if lyrics else 0)


# --- The answer ---


def parse_caption(answer: str, *, tags: bool, lyrics: bool) -> Caption:
    """The caption in `answer`, JSON of `caption_schema` with the same arguments.

    Fences, single quotes and trailing commas are mended, because not every server can be constrained. Raises
    UnusableAnswer when the answer is cut short, is not such an object, says that it cannot tell or refuses, holds
    fewer than two tags or too many, contradicts itself, sings without lyrics or repeats itself without end.
    """
    said = _read_object(answer)
    if said.get("cannot_tell") is True:
        raise UnusableAnswer("the model says that it cannot tell")
    missing = [name for name in _required(tags, lyrics) if name not in said]
    if missing:
        raise UnusableAnswer(f"the answer lacks {', '.join(missing)}")
    has_vocal = said["has_vocal"]
    if not isinstance(has_vocal, bool):
        raise UnusableAnswer(f"has_vocal is {json.dumps(has_vocal, ensure_ascii=False)[:60]}, not true or false")

    found: tuple[str, ...] = ()
    if tags:
        words = [word for name in TAG_FIELDS if name != "tempo" for word in _strings(said, name)]
        words += [_without_numbers(word) for word in _strings(said, "tempo")]
        words += [vocal_tag(word) for word in _strings(said, "vocal")]
        found = gated_tags(words, has_vocal)
    lines: tuple[str, ...] = ()
    if lyrics:
        heard = "\n".join(_strings(said, "lyrics")) if has_vocal or said.get("lyrics") else ""
        lines = gated_lyrics(heard, has_vocal)
    return Caption(found, has_vocal, lines)


def _required(tags: bool, lyrics: bool) -> list[str]:
    return [
        name for name in caption_schema(tags=tags, lyrics=lyrics)["required"] if name not in ("vocal", "cannot_tell")
    ]


def _read_object(answer: str) -> dict[str, Any]:
    # Some models think aloud first, and a server that does not know it sends that too.
    text = re.sub(r"^.*</think>", "", answer, flags=re.DOTALL).strip().removeprefix("\ufeff")
    if not text:
        raise UnusableAnswer("the answer is empty")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = _mend(text)
    if not isinstance(said, dict):
        raise UnusableAnswer(f"the answer is not a JSON object: {_excerpt(text)}")
    return said


def _mend(text: str) -> Any:
    body = text.rstrip("`").rstrip()
    start = body.find("{")
    if start < 0:
        raise UnusableAnswer(f"the answer holds no JSON: {_excerpt(text)}")
    end = body.rfind("}")
    decoder = json.JSONDecoder()
    for opening in re.finditer(r"\{", body):
        # The caption between words that may hold braces of their own.
        with contextlib.suppress(ValueError, RecursionError):
            said, _ = decoder.raw_decode(body, opening.start())
            if "has_vocal" in said:
                return said
    if end < start:
        # json-repair would close the open strings and lists and hide that the rest is missing.
        raise UnusableAnswer(f"the answer is cut short: …{text[-60:]}")
    try:
        import json_repair
    except ImportError:
        raise UnusableAnswer(
            "the answer is not valid JSON, and the package json-repair, which might mend it, is not installed "
            "(python start.py install captioning)"
        ) from None
    return json_repair.loads(body[start : end + 1])


def _strings(said: dict[str, Any], name: str) -> list[str]:
    value = said.get(name)
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise UnusableAnswer(f"{name} is {_excerpt(json.dumps(value, ensure_ascii=False))}, not a list of texts")


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return f"'{text}'" if len(text) <= 80 else f"'{text[:80]}…'"


# --- Tags ---


def clean_tags(words: Sequence[str]) -> list[str]:
    """Lower-case tags without duplicates, sorted; commas split, numbers of beats per minute and fillers go."""
    tags = set()
    for word in words:
        for part in re.split(r"[,、;\n]", unicodedata.normalize("NFKC", word)):
            part = re.sub(r"^\s*([\w'-]+) \(([a-zA-Z' -]+)\)\s*$", r"\2 \1", part)  # guitar (electric)
            part = "".join(character for character in part if _is_of_a_tag(character))
            tag = " ".join(_BPM.sub(" ", part.lower()).split()).strip(" .:!?\"'`()[]{}*_#-/&")
            tag = " ".join(tag.split())
            if tag in _NO_TAG or not any(character.isalpha() for character in tag):
                continue
            if _repeats(tag.split(), _MOST_REPEATS_IN_TAG) or _repeats(tag, _MOST_REPEATS_IN_TAG):
                raise UnusableAnswer(f"a tag repeats itself without end: {_excerpt(tag)}")
            if len(tag) <= _LONGEST_TAG and len(tag.split()) <= _MOST_WORDS:
                tags.add(canonical(tag))
    return sorted(tag for tag in tags if not _is_said_by_another(tag, tags))


def _is_said_by_another(tag: str, tags: set[str]) -> bool:
    """Whether a tag is another one in the plural, or with `music` behind it."""
    shorter = (tag.removesuffix(" music"), tag.removesuffix(" song"), tag.removesuffix("s"), tag.replace("-", " "))
    return any(other != tag and other in tags for other in shorter)


def _is_of_a_tag(character: str) -> bool:
    """No control character, half of a surrogate pair or emoji; the mark of a broken character stays, to be found."""
    if character.isspace() or character == "\ufffd":
        return True
    return character.isprintable() and unicodedata.category(character) != "So"


def _without_numbers(tempo: str) -> str:
    """A word for the tempo without a number of beats that stands beside it: `fast (around 140)` gives `fast`."""
    if not any(character.isdigit() for character in tempo):
        return tempo
    words = re.split(r"[\s()~:=]+", tempo)
    return " ".join(
        word for word in words if word.lower() not in _ABOUT and not any(character.isdigit() for character in word)
    )


def vocal_tag(word: str) -> str:
    """`female` gives `female vocal`; what already speaks of vocals stays (`female vocals` gives `female vocal`)."""
    parts = []
    for part in re.split(r"[,，、;；\n]", word.lower()):
        part = re.sub(r"\bvocals\b\s*$", "vocal", part.strip(" .:!?\"'`()[]{}*_#-"))
        if (
            part
            and part not in _NO_TAG
            and canonical(part) == part
            and not re.search(r"\bvocals?\b|[^\x00-\u024f]", part)
        ):
            part = f"{part} vocal"
        parts.append(part)
    return ", ".join(parts)


def gated_tags(words: Sequence[str], has_vocal: bool | None) -> tuple[str, ...]:
    """The tags in a model's `words`, clean and of one vocabulary. Raises UnusableAnswer where they are none."""
    for word in words:
        if REFUSAL.search(word):
            raise UnusableAnswer(f"the model refuses instead of naming tags: {_excerpt(word)}")
    tags = tuple(tag for tag in clean_tags(words) if not UNSAID.fullmatch(tag))
    if has_vocal is False:
        # What says that there is no voice is said by the lyrics; as a tag it is good only without one.
        tags = tuple(tag for tag in tags if tag not in ("no vocal", "no vocals", "none vocal"))
    check_tags(tags)
    if wrong := foreign(tags):
        raise UnusableAnswer(f"tags are not in English: {', '.join(wrong[:5])}")
    if wrong := contradictions(tags, has_vocal):
        raise UnusableAnswer("; ".join(wrong))
    return tags


def gated_lyrics(text: str, has_vocal: bool) -> tuple[str, ...]:
    """The sung lines in a model's lyrics, its times, labels and thanks for watching left out.

    Raises UnusableAnswer where that leaves nothing of a song with a voice, or where it refuses, loops, or writes a
    Chinese song in pinyin.
    """
    if refused := next((line for line in text.split("\n") if REFUSAL.search(line) or REFUSED_LINE.search(line)), None):
        raise UnusableAnswer(f"the model refuses instead of writing the lyrics down: {_excerpt(refused)}")
    lines = tuple(heard_lines(text))
    words = [line for line in sung_lines(lines) if not stands_for_no_lyrics(line)]
    if not has_vocal:
        if words:
            raise UnusableAnswer("the answer hears no voice and writes lyrics down")
        return ()
    if words and all(SUBTITLES_OF_MODELS.fullmatch(line) for line in words):
        raise UnusableAnswer(f"the lyrics are what models write for silence: {_excerpt(words[0])}")
    if not words and (
        written := [line for line in text.split("\n") if line.strip() and not stands_for_no_lyrics(line)]
    ):
        raise UnusableAnswer(f"somebody sings but the lyrics are empty of what is sung: {_excerpt(written[0])}")
    check_lyrics(lines)
    if is_pinyin(words):
        raise UnusableAnswer(f"the lyrics are in pinyin, not in Chinese characters: {_excerpt(words[0])}")
    return lines


MOST_TAGS = 40


def check_tags(tags: Sequence[str]) -> None:
    """Raise UnusableAnswer unless `tags` describe a song: at least two, and not without end."""
    if len(tags) > MOST_TAGS:
        raise UnusableAnswer(f"the answer holds {len(tags)} tags; a song has about ten")
    if not tags:
        raise UnusableAnswer("the answer holds no tag")
    if len(tags) < 2:
        raise UnusableAnswer(f"the answer holds one tag only: '{tags[0]}'")
    if any("\ufffd" in tag for tag in tags):
        raise UnusableAnswer("the tags hold broken characters")


# --- Lyrics ---


def heard_lines(text: str) -> list[str]:
    """The sung lines that a model heard, with the model's structure tags; its times go, because they are guesses."""
    lines = sort_lines(read_entries(text)).lines
    return clean_lines("\n".join(line.sung for line in lines if line.sung or not line.text))


def check_lyrics(lines: Sequence[str]) -> None:
    """Raise UnusableAnswer when a song with a voice has no lines, or lines that only loop or are broken."""
    sung = [comparable(line) for line in sung_lines(lines) if not stands_for_no_lyrics(line)]
    sung = [line for line in sung if line]
    if not sung:
        raise UnusableAnswer("somebody sings but the lyrics are empty")
    if any("\ufffd" in line for line in lines):
        raise UnusableAnswer("the lyrics hold broken characters")
    if _longest_run(sung, 1) > MOST_EQUAL_LINES or any(
        _longest_run(sung, size) > MOST_EQUAL_BLOCKS for size in range(2, 9)
    ):
        raise UnusableAnswer("the lyrics repeat themselves without end")
    for line in sung_lines(lines):
        words = comparable(line).split()
        if _repeats(words, MOST_EQUAL_PHRASES) or _repeats(list("".join(words)), 2 * MOST_EQUAL_PHRASES):
            raise UnusableAnswer(f"a line of the lyrics repeats itself without end: {_excerpt(line)}")


def _longest_run(items: Sequence[str], size: int) -> int:
    """How often a block of `size` items directly follows itself at most, counting the first."""
    longest = equal = 0
    for index in range(size, len(items)):
        equal = equal + 1 if items[index] == items[index - size] else 0
        longest = max(longest, equal)
    return longest // size + 1


def _repeats(items: Sequence[str], most: int) -> bool:
    return any(_longest_run(items, size) > most for size in range(1, 9))
