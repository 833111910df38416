"""Lines of lyrics that are not timed: which are sung, which are headings, and the structure tags of the model.

Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# --- Structure tags ---

# What the lyric vocabulary has a token for, in the order of its added tokens.
STRUCTURE_TAGS = (
    *("[start]", "[intro]", "[verse]", "[chorus]", "[bridge]", "[outro]", "[end]"),
    *("[inst]", "[solo]", "[hook]", "[pre-chorus]", "[break]"),
)
# Words that people and captioners write in structure tags, by the tag that the model knows. Longer words first where
# one contains another: "pre-chorus" is no chorus.
_TAG_WORDS = {
    "[pre-chorus]": "pre chorus|pre-chorus|prechorus|pre-refrain|导歌|導歌|预副歌|預副歌|主歌过渡|bメロ|프리코러스",
    "[inst]": "instrumental|interlude|inst|drop|间奏|間奏|伴奏|器乐|器樂|過門|过门|간주",
    "[solo]": "solo|独奏|獨奏|ソロ|솔로",
    "[intro]": "intro|opening|前奏|开头|開頭|引子|イントロ|인트로|вступление",
    "[outro]": "outro|ending|coda|尾奏|尾声|尾聲|结尾|結尾|アウトロ|아웃트로|концовка",
    "[bridge]": "bridge|桥段|橋段|过渡|過渡|过桥|cメロ|ブリッジ|브릿지|бридж|puente|ponte|pont",
    "[chorus]": "post-chorus|chorus|refrain|refrão|ritornello|estribillo|coro|副歌|サビ|후렴|코러스|припев|refrén",
    "[hook]": "hook|记忆点|記憶點|훅",
    "[break]": "breakdown|break|停顿|停頓",
    "[verse]": "verse|rap|主歌|说唱|說唱|aメロ|벌스|куплет|verso|estrofa|strophe|couplet|zwrotka|sloka",
    "[end]": "end|fin|结束|結束|完",
    "[start]": "start|begin|开始|開始",
}


def suggest_structure_tag(name: str) -> str | None:
    """The tag that the model knows for what stands between the brackets: `"Verse 2"` gives `"[verse]"`."""
    name = name.strip().lower()
    for tag, words in _TAG_WORDS.items():
        for word in words.split("|"):
            # Short Latin words count only as whole words: "weekend" is no [end].
            pattern = rf"(?<![a-z]){re.escape(word)}(?![a-z])" if word.isascii() else re.escape(word)
            if re.search(pattern, name):
                return tag
    return None


# What transcribers call them otherwise.
_OTHER_NAMES = {
    "refrain": "chorus",
    "prechorus": "pre-chorus",
    "instrumental": "inst",
    "interlude": "inst",
    "guitar solo": "solo",
}


def known_structure(line: str) -> str:
    """`[Verse 1]` and `[Verse - soft]` as `[verse]`; other lines as they are."""
    match = re.fullmatch(r"\[([^\[\]]+)\]\s*", line)
    if match is None:
        return line
    name = re.split(r"\s*(?:[-–,]\s|[(:]|\s\d)", match.group(1).strip().lower())[0].strip()
    tag = f"[{_OTHER_NAMES.get(name, name)}]"
    return tag if tag in STRUCTURE_TAGS else line


# --- Lines ---

STRUCTURE_TAG = re.compile(r"^\s*\[[^\[\]]+\]")
# Headings of other kinds, alone on their line: "Chorus:", "(Verse 2)", "【副歌】".
_HEADING = re.compile(
    r"^\W*(?:intro|verse|(?:pre-?|post-?)?chorus|refrain|bridge|outro|hook|interlude|solo"
    r"|主歌|副歌|前奏|间奏|間奏|尾奏|桥段|橋段)\s*[\dA-Da-d一二三]?\W*$",
    re.IGNORECASE,
)


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


def is_heading(line: str) -> bool:
    """Whether a line is nothing but a structure tag, or a heading of another kind such as `Chorus:`."""
    match = STRUCTURE_TAG.match(line)
    return bool(match and not line[match.end() :].strip(" :：")) or bool(_HEADING.match(line))


# What players, download sites and models write in the place of lyrics for music without a voice.
NO_VOICE = re.compile(
    r"\W*(?:instrumental(?: music)?|no (?:lyrics|vocals)"
    r"|(?:[此本该]歌曲为|这是一首)?(?:没有填词的)?纯音乐\W*(?:请您?欣赏|无歌词)?)\W*",
    re.IGNORECASE,
)
# What models write for a voice of which they understand nothing.
_NOT_UNDERSTOOD = re.compile(
    r"\W*(?:none|n/?a|null|unknown|music|singing|inaudible|unintelligible"
    r"|(?:lyrics )?(?:not available|unavailable))\W*",
    re.IGNORECASE,
)


def stands_for_no_lyrics(line: str) -> bool:
    """Whether a model's line, such as `(instrumental)` or `N/A`, is no lyrics but a remark that there are none."""
    return bool(NO_VOICE.fullmatch(line) or _NOT_UNDERSTOOD.fullmatch(line))


def comparable(line: str) -> str:
    """`line` without case and punctuation, for telling whether two lines are the same."""
    return " ".join("".join(c if c.isalnum() else " " for c in line.casefold()).split())


# --- Marking ---


def mark_structure(lyrics: str) -> str:
    """`lyrics` with `[chorus]` before lines that occur more than once and `[verse]` before the others.

    Text that already has structure tags or headings, or no sung line, is returned as it is. Empty lines keep apart
    what they kept apart, unless they stand between nearly all lines.
    """
    lines = lyrics.split("\n")
    if has_structure(lyrics) or not any(line.strip() for line in lines):
        return lyrics
    keys = [comparable(line) or line.strip() for line in lines]
    occurrences = {key: keys.count(key) for key in set(keys)}
    stanzas = re.split(r"\n\s*\n", lyrics.strip())
    double_spaced = len(stanzas) > 1 and sum(bool(line.strip()) for line in lines) < 1.5 * len(stanzas)

    sections: list[list[str]] = []
    previous: str | None = None
    gap = False
    for line, key in zip(lines, keys, strict=True):
        if not line.strip():
            gap = not double_spaced
            continue
        kind = "[chorus]" if occurrences[key] > 1 else "[verse]"
        if kind != previous or gap:
            sections.append([kind])
        sections[-1].append(line)
        previous, gap = kind, False
    return "\n\n".join("\n".join(section) for section in sections)


def has_structure(lyrics: str) -> bool:
    """Whether a line of `lyrics` begins with a tag such as `[verse]`, or is a heading such as `Chorus:`."""
    return any(STRUCTURE_TAG.match(line) or _HEADING.match(line) for line in lyrics.split("\n"))
