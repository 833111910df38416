"""Lines of lyrics that are not timed: the structure tags of the model, headings as people write them, marking.

Standard library only.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

# --- Structure tags ---

# What the lyric vocabulary has a token for, in the order of its added tokens.
STRUCTURE_TAGS = (
    *("[start]", "[intro]", "[verse]", "[chorus]", "[bridge]", "[outro]", "[end]"),
    *("[inst]", "[solo]", "[hook]", "[pre-chorus]", "[break]"),
)
STRUCTURE_TAG = re.compile(r"^\s*\[[^\[\]]+\]")
# Words that people and captioners write in structure tags, by the tag that the model knows. Longer words first where
# one contains another: "pre-chorus" is no chorus.
_TAG_WORDS = {
    "[pre-chorus]": "pre chorus|pre-chorus|prechorus|pre-refrain|pré-refrain|pre-coro|pré-refrão|pre-hook|导歌|導歌|"
    "预副歌|預副歌|主歌过渡|主歌過渡|bメロ|프리코러스",
    "[inst]": "instrumental|interlude|inst|drop|间奏|間奏|伴奏|器乐|器樂|過門|过门|간주|interludio|interlúdio|проигрыш",
    "[solo]": "guitar solo|solo|独奏|獨奏|ソロ|솔로",
    "[intro]": "introduction|intro|opening|前奏|开头|開頭|引子|イントロ|인트로|вступление|introducción",
    "[outro]": "outro|ending|coda|尾奏|尾声|尾聲|结尾|結尾|アウトロ|아웃트로|концовка",
    "[bridge]": "middle eight|middle 8|bridge|桥段|橋段|过渡|過渡|过桥|過橋|cメロ|大サビ前|ブリッジ|브릿지|бридж|"
    "puente|ponte|pont|brücke",
    "[chorus]": "post-chorus|post chorus|postchorus|chorus|refrain|refrein|refren|refrén|refrän|refrão|reff|ritornello|"
    "estribillo|coro|nakarat|kehrvers|副歌|大サビ|サビ|후렴|코러스|припев|приспів",
    "[hook]": "hook|记忆点|記憶點|훅",
    "[break]": "breakdown|break|停顿|停頓|ブレイク",
    "[verse]": "verse|rap|主歌|说唱|說唱|第一段|第二段|第三段|aメロ|ヴァース|벌스|куплет|verso|vers|estrofa|strophe|"
    "strofa|stanza|couplet|zwrotka|sloka",
    "[end]": "end|fin|结束|結束|完",
    "[start]": "start|begin|开始|開始",
}


def suggest_structure_tag(name: str) -> str | None:
    """The tag that the model knows for what stands between the brackets: `"Verse 2"` gives `"[verse]"`."""
    name = name.strip().lower()
    for tag, words in _TAG_WORDS.items():
        for word in words.split("|"):
            # Short Latin words count only as whole words: "weekend" is no [end].
            pattern = (
                rf"(?<!\w){re.escape(word)}(?!\w)" if word[0].isalpha() and word[0] < "\u2000" else re.escape(word)
            )
            if re.search(pattern, name):
                return tag
    return None


# --- Headings ---


@dataclass(frozen=True)
class Heading:
    """What a heading says: the model's tag, what is sung behind it on the same line, how often the section is sung.

    `again`: it asks for the section of that name once more ("Repeat chorus").
    """

    tag: str
    rest: str = ""
    times: int = 1
    again: bool = False


_BY_WORD = {word: tag for tag, words in _TAG_WORDS.items() for word in words.split("|")}
_ALTERNATIVES = "|".join(map(re.escape, sorted(_BY_WORD, key=len, reverse=True)))
_ORDINAL = r"(?:\d{1,2}|[ivx]{1,4}|[a-d]|one|two|three|four|[一二三四五①②③④⑤])"
_LEADING_WORDS = (
    r"(?:first|second|third|fourth|last|final|\d(?:st|nd|rd|th)|\d|guitar|piano|sax|saxophone|drum|violin|musical)"
)
# A heading and nothing else: "Verse 2", "second verse", "副歌 Chorus", "1番".
_NAME = re.compile(
    rf"(?:{_LEADING_WORDS}\s+)*(?P<word>{_ALTERNATIVES})(?:\s*[/|\s]\s*(?:{_ALTERNATIVES}))?(?:[\s.#_-]*(?P<number>{_ORDINAL}))?"
    rf"|(?P<count>第?[\d一二三四]\s?[番绝節节절])"
)
# Words that are sung as well; they need brackets or a colon.
_ALSO_SUNG = frozenset(
    [
        "solo",
        "hook",
        "break",
        "breakdown",
        "drop",
        "end",
        "fin",
        "start",
        "begin",
        "rap",
        "coda",
        "opening",
        "ending",
        "pont",
        "ponte",
        "puente",
        "coro",
        "verso",
        "vers",
        "完",
        "结束",
        "結束",
        "开始",
        "開始",
        "过渡",
        "過渡",
        "停顿",
        "停頓",
        "inst",
        "stanza",
        "说唱",
        "說唱",
        "introduction",
        "第一段",
        "第二段",
        "第三段",
        "reff",
        "独奏",
        "獨奏",
        "伴奏",
    ]
)
# Words that stand in round brackets for what is sung behind the singer, rather than for a section.
_ECHOED = frozenset(
    [
        "end",
        "fin",
        "start",
        "begin",
        "break",
        "drop",
        "完",
        "结束",
        "結束",
        "开始",
        "開始",
        "停顿",
        "停頓",
        "过渡",
        "過渡",
    ]
)
# Sections whose text may follow the colon on the same line.
_WITH_TEXT = ("[verse]", "[chorus]", "[pre-chorus]", "[bridge]", "[hook]", "[intro]", "[outro]")
_OPENING, _CLOSING = "(（<＜《〈{｛「『", ")）>＞》〉}｝」』"
_DECORATION = "*~～-–—=_#♪♫·•. "
# Characters with what may be sung behind it; what is longer is sung.
_LONGEST_HEADING = 400
_TIMES = re.compile(
    r"\s*[(（\[]?\s*(?:[x×✕*]\s*(\d{1,2})|(\d{1,2})\s*(?:[x×✕]|times\b|遍|次|回))\s*[)）\]]?\s*$", re.IGNORECASE
)
_AGAIN = re.compile(
    r"\b(?:repeat(?:ed|s)?|again|twice|reprise|bis)\b|重[复複]|反复|くり返し|繰り返し|반복|повтор", re.IGNORECASE
)


def heading_of(line: str) -> Heading | None:
    """The heading that a line is: `[Verse 1: Anna]`, `(verse)`, `Chorus:`, `副歌：`, `【主歌】`, `Repeat chorus x2`.

    None for any other line, also for one in square brackets that names no section.
    """
    text = line.strip()
    if len(text) > _LONGEST_HEADING:
        return None
    if match := re.fullmatch(r"\[\s*([^\[\]]{1,60}?)\s*\](.*)|[【［〔]\s*([^【】］〕]{1,40}?)\s*[】］〕]()", text):
        inner, rest = match.group(1) or match.group(3), (match.group(2) or "").strip()
        return _bracketed(inner, rest)
    core, times = _without_times(text)
    again = bool(_AGAIN.search(core))
    core = " ".join(_AGAIN.sub(" ", core).split())
    bare = core.strip(_DECORATION + _OPENING + _CLOSING)
    in_brackets = core.strip(_DECORATION)[:1] in _OPENING if core.strip(_DECORATION) else False
    decorated = core.strip() != bare
    colon = bare.endswith((":", "："))
    name = bare.rstrip(":： ").strip(_DECORATION + _OPENING + _CLOSING).lower()
    if match := _NAME.fullmatch(name):
        word = match.group("word")
        if word is None:
            return Heading("[verse]", times=times, again=again) if decorated or colon else None
        certain = colon or again or match.group("number") or decorated or word not in _ALSO_SUNG
        if certain and not (in_brackets and word in _ECHOED):
            return Heading(_BY_WORD[word], times=times, again=again)
        return None
    head, sign, rest = _at_colon(text)
    if sign and (match := _NAME.fullmatch(head.strip(_DECORATION + _OPENING + _CLOSING).lower())):
        tag = _BY_WORD.get(match.group("word") or "", "[verse]")
        if tag in _WITH_TEXT and match.group("word") not in _ALSO_SUNG:
            return Heading(tag, rest=rest.strip())
    return None


def _bracketed(inner: str, rest: str) -> Heading | None:
    name, times = _without_times(inner)
    again = bool(_AGAIN.search(name))
    if rest and (only_times := _TIMES.fullmatch(rest)):
        times, rest = int(only_times.group(1) or only_times.group(2)), ""
    # "[Verse 1: Anna]", "[Chorus - loud]"; in "[Guitar solo & outro]" the first name counts.
    tag = suggest_structure_tag(re.split(r"[:：]|\s[-–—]\s", name)[0] or name)
    return Heading(tag, rest=rest.strip(":： "), times=times, again=again) if tag else None


def _at_colon(text: str) -> tuple[str, str, str]:
    match = re.match(r"([^:：]{1,30})([:：])(.*)", text)
    return match.groups() if match else (text, "", "")  # type: ignore[return-value]


def _without_times(text: str) -> tuple[str, int]:
    """`("Chorus", 2)` for `Chorus (x2)`."""
    match = _TIMES.search(text)
    number = int(match.group(1) or match.group(2)) if match else 1
    return (text[: match.start()].strip(), number) if match and 1 < number <= 16 else (text, 1)


_IN_WORDS = re.compile(
    r"\s*[(（\[]\s*(?:bis|ter|twice|repeat(?:ed)?|(?:重[复複]|反复|再唱|×|x)\s*(?:([一二两兩三四\d])\s*[遍次回]?)?|ripetere|repetir|wdh\.?)\s*[)）\]]\s*$",
    re.IGNORECASE,
)


def repeats_of(line: str) -> tuple[str, int]:
    """A sung line and how often a mark at its end says that it is sung: `("la la", 3)` for `la la (x3)`."""
    # A bare number behind a word ("route 66 x 2") is rare enough; a line of nothing but the mark stays.
    text, times = _without_times(line)
    if times == 1 and (match := _IN_WORDS.search(line)):
        said = {"一": 2, "二": 2, "两": 2, "兩": 2, "三": 3, "四": 4}.get(match.group(1) or "", 2)
        text, times = (
            line[: match.start()].strip(),
            max(2, int(match.group(1)) if (match.group(1) or "").isdigit() else said),
        )
    return (text, times) if text and times > 1 else (line, 1)


def is_heading(line: str) -> bool:
    """Whether a line is nothing but a structure tag, or a heading of another kind such as `Chorus:`."""
    match = STRUCTURE_TAG.match(line)
    if match and not line[match.end() :].strip(" :："):
        return True
    heading = heading_of(line)
    return heading is not None and not heading.rest


# --- Lines ---


def clean_lines(text: str) -> list[str]:
    """Lines of `text`, stripped, no control characters; runs of empty lines become one, none at the ends."""
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        spaced = "".join(" " if character.isspace() else character for character in line)
        line = "".join(character for character in spaced if character.isprintable()).strip()
        if line or (lines and lines[-1]):
            lines.append(line)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def sung_lines(lines: Sequence[str]) -> list[str]:
    """The lines that are neither empty nor a structure tag such as `[verse]`."""
    return [line for line in lines if line.strip() and not is_heading(line)]


def comparable(line: str) -> str:
    """`line` without case and punctuation, for telling whether two lines are the same."""
    return " ".join("".join(c if c.isalnum() else " " for c in line.casefold()).split())


# --- Marking ---

# What is called out between lines; a line of nothing else is no section.
_INTERJECTION = re.compile(
    r"(?:o+h*|a+h*|u+h+|e+h+|h?mm+|m+|ye+a*h*|ya+h*|hey+|he+y|ho+|wo+a*h*|whoa+|na+h*|la+|da+|ba+|ooh+|hu+h|uh-huh|woo+|yo+|"
    r"come on|baby|[啊哦喔噢呜嗚嘿呀哎唉欸耶哈啦嗯吼呼]+|(?:ああ|おお|うう|ラ|らら?|ヘイ|イェイ|오|아|예|우|라)+)",
    re.IGNORECASE,
)


def is_interjection(line: str) -> bool:
    """Whether nothing but `oh`, `yeah`, `la la`, `啊` and the like is sung in a line."""
    words = comparable(line).split()
    return bool(words) and all(_INTERJECTION.fullmatch(word) for word in words)


def mark_structure(lyrics: str) -> str:
    """`lyrics` with `[chorus]` before lines that come back between other lines and `[verse]` before the others.

    Text that already has structure tags or headings, or no sung line, is returned as it is. Empty lines keep apart
    what they kept apart, unless they stand between nearly all lines. Interjections belong to what they stand beside;
    a line that is only sung twice in a row does not come back. Where everything comes back, what comes back most often
    is the chorus, and where all comes back equally often each round is a verse: that it is the chorus cannot be known.
    """
    lines = lyrics.split("\n")
    if has_structure(lyrics) or not any(line.strip() for line in lines):
        return lyrics
    keys = [comparable(line) or line.strip() for line in lines]
    chorus = _chorus_lines([key for line, key in zip(lines, keys, strict=True) if line.strip()])
    # Where all comes back equally often a round begins where its first line does.
    first = next((key for line, key in zip(lines, keys, strict=True) if line.strip() and not is_interjection(line)), "")
    rounds = not chorus and keys.count(first) > 1
    stanzas = re.split(r"\n\s*\n", lyrics.strip())
    double_spaced = len(stanzas) > 1 and sum(bool(line.strip()) for line in lines) < 1.5 * len(stanzas)

    sections: list[list[str]] = []
    previous: str | None = None
    gap = False
    for index, (line, key) in enumerate(zip(lines, keys, strict=True)):
        if not line.strip():
            gap = not double_spaced
            continue
        kind = "[chorus]" if key in chorus else "[verse]"
        if is_interjection(line):
            # With the section that it ends, unless it begins every chorus.
            following = _next_kind(keys[index + 1 :], lines[index + 1 :], chorus)
            kind = following if previous is None or (keys.count(key) >= 2 and following == "[chorus]") else previous
            gap = gap and _sings_more(lines[index + 1 :])
        restarts = rounds and key == first and sections and keys[index - 1] != first
        if kind != previous or gap or restarts:
            sections.append([kind])
        sections[-1].append(line)
        previous, gap = kind, False
    return "\n\n".join("\n".join(section) for section in sections)


def _chorus_lines(keys: list[str]) -> set[str]:
    """The lines that come back, as `mark_structure` tells them from verses that are sung twice."""
    runs = [key for key, _ in itertools.groupby(keys) if not is_interjection(key)]
    counts = {key: runs.count(key) for key in runs}
    returning = {key for key, count in counts.items() if count > 1}
    if len(returning) < len(counts):
        return returning
    most = max(counts.values(), default=0)
    often = {key for key, count in counts.items() if count == most}
    return often if len(often) < len(counts) else set()


def _next_kind(keys: Sequence[str], lines: Sequence[str], chorus: set[str]) -> str:
    following = (key for key, line in zip(keys, lines, strict=True) if line.strip() and not is_interjection(line))
    return "[chorus]" if next(following, None) in chorus else "[verse]"


def _sings_more(lines: Sequence[str]) -> bool:
    """Whether the stanza that begins with an interjection holds more than interjections."""
    stanza = itertools.takewhile(str.strip, lines)
    return any(not is_interjection(line) for line in stanza)


def has_structure(lyrics: str) -> bool:
    """Whether a line of `lyrics` begins with a tag such as `[verse]`, or is a heading such as `Chorus:`."""
    return any(STRUCTURE_TAG.match(line) or heading_of(line) for line in lyrics.split("\n"))
