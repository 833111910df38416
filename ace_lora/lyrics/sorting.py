"""Every line of a lyrics text told apart: sung, or a translation, a credit, a heading, a speaker's label, junk …

    read_entries(text) -> sort_lines(entries) -> the lines that are sung, with the model's tags, and all others with why

Nothing is thrown away here: `sort_lines` gives every line back with its kind. A line that only looks like a credit or
a label stays sung; what decides is where it stands and what it stands beside. Standard library, and the language
identifier for two lines of one script on one stamp.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ace_lora.lyrics.credit_words import CERTAIN_LABEL, CJK_LABEL, CONNECTING_WORDS, CREDIT_WITH_BY, LABEL_WORDS
from ace_lora.lyrics.credit_words import SPEAKER as SPEAKER_WORDS
from ace_lora.lyrics.formats import ROMANISATION, TRANSLATION, Entries
from ace_lora.lyrics.language_id import identify, squash
from ace_lora.lyrics.packages import MissingLyricSupport
from ace_lora.lyrics.phrases import JUNK as NEVER_SUNG
from ace_lora.lyrics.phrases import NO_VOICE, NO_VOICE_ALONE, PLACEHOLDER_ALONE
from ace_lora.lyrics.text import Heading, comparable, heading_of, is_interjection, repeats_of

SUNG, HEADING, CREDIT, SPEAKER, JUNK, EMPTY = "sung", "heading", "credit", "speaker", "junk", "empty"
KINDS = (SUNG, HEADING, TRANSLATION, ROMANISATION, CREDIT, SPEAKER, JUNK, EMPTY)
# Lines of one stamp, and of one some milliseconds later as some converters write the translation.
SAME_TIME = 0.05


@dataclass(frozen=True)
class SortedLine:
    """One line of the source: `text` as it came, `sung` what the model sings of it (a structure tag for a heading).

    `sung` is "" for every kind that is left out; `why` says in words for people why it is what it is.
    """

    seconds: float | None
    text: str
    kind: str
    sung: str = ""
    why: str = ""


@dataclass(frozen=True)
class SortedLyrics:
    """All lines of a source in their order. `instrumental`: it says that there is no voice. `warnings`: sentences."""

    lines: tuple[SortedLine, ...]
    instrumental: bool = False
    warnings: tuple[str, ...] = field(default=())

    @property
    def left_out(self) -> list[SortedLine]:
        """The lines of which nothing is sung; empty lines are not among them."""
        return [line for line in self.lines if not line.sung and line.kind != EMPTY]


def sort_lines(entries: Entries, title: str = "", artist: str = "") -> SortedLyrics:
    """The lines of a text told apart. `title` and `artist` of the song, where known, show which line names them."""
    names = {comparable(name) for name in (title, artist, *_names(entries)) if comparable(name)}
    lines = [
        SortedLine(entry.seconds, entry.text, *((entry.kind or SUNG), "", "the file marks it so" if entry.kind else ""))
        if 0 < len(entry.text.strip()) <= _LONGEST_TOLD
        else SortedLine(entry.seconds, entry.text, _LONG)
        if entry.text.strip()
        else SortedLine(entry.seconds, "", EMPTY)
        for entry in entries.lines
    ]
    lines = _without_site_frame(lines)
    lines = _alone(_unadorned(lines))
    lines = [_junk(line) for line in lines]
    instrumental = entries.instrumental or any(line.why == _SAYS_NO_VOICE for line in lines)
    lines = _told_by_stamps(lines)
    lines = _credits(lines, names)
    lines = _headings(lines)
    lines = _speakers(lines)
    lines = _sung_after_all(lines)
    lines, warnings = _two_in_one_line(lines)
    lines, expanded = _repeated(lines)
    sung = [line for line in lines if line.kind in (SUNG, _LONG)]
    warnings += expanded + _alternating(sung)
    return SortedLyrics(tuple(_with_sung(lines)), instrumental and not sung, tuple(warnings))


def _names(entries: Entries) -> list[str]:
    return [entries.facts.get(name, "") for name in ("title", "artist")]


def _with_sung(lines: Sequence[SortedLine]) -> list[SortedLine]:
    return [
        replace(line, kind=SUNG, sung=line.sung or line.text) if line.kind in (SUNG, _LONG) else line for line in lines
    ]


# --- Junk ---

_SAYS_NO_VOICE = "says that there is no voice"
# What is longer, in characters, is sung: none of the rules is about such lines, and they need not be tried.
_LONGEST_TOLD, _LONG = 400, "long"


def _junk(line: SortedLine) -> SortedLine:
    if line.kind != SUNG:
        return line
    text = line.text.strip()
    if NO_VOICE.fullmatch(text):
        return replace(line, kind=JUNK, why=_SAYS_NO_VOICE)
    why = next((why for why, pattern in NEVER_SUNG if pattern.fullmatch(text)), "")
    return replace(line, kind=JUNK, why=why) if why else line


def _alone(lines: list[SortedLine]) -> list[SortedLine]:
    """The only line of a text may be a placeholder in words that are sung elsewhere."""
    words = [line for line in lines if line.kind == SUNG and not _credit_strength(line.text)]
    if len(words) != 1:
        return lines
    why = ""
    if NO_VOICE_ALONE.fullmatch(words[0].text):
        why = _SAYS_NO_VOICE
    elif PLACEHOLDER_ALONE.fullmatch(words[0].text):
        why = "stands where there are no lyrics"
    return [replace(line, kind=JUNK, why=why) if why and line is words[0] else line for line in lines]


_FURIGANA = re.compile("([\u3400-\u9fff々]+)[(（]([\u3041-\u3096ー]+)[)）]")
_CHORD = r"[A-G][#b♯♭]?(?:maj|min|dim|aug|sus|add|m|M)?\d{0,2}(?:sus\d|add\d|b5|#5)?(?:/[A-G][#b♯♭]?)?"
_CHORD_LINE = re.compile(rf"\W*(?:(?:{_CHORD}|N\.?C\.?|[|/%-])(?:\s+|$))+\W*")
_CHORD_INSIDE = re.compile(rf"\[{_CHORD}\]")
_BULLET = re.compile(r"\s*(?:[•·▪►●‣-]|–|—|\*(?!\*))\s+(?=\S)")
_NUMBERED = re.compile(r"\s*(\d{1,3})\s*[.)、：:]\s*(?=\S)")


def _unadorned(lines: list[SortedLine]) -> list[SortedLine]:
    """Lines without notes around them, readings in brackets, chords inside, bullets or numbers in front."""
    words = [line.text for line in lines if line.kind == SUNG]
    bullets = len(words) > 1 and sum(bool(_BULLET.match(text)) for text in words) >= 0.8 * len(words)
    numbers = [int(match.group(1)) for text in words if (match := _NUMBERED.match(text))]
    numbered = len(numbers) >= 3 and len(numbers) == len(words) and numbers == list(range(numbers[0], numbers[-1] + 1))
    readings = sum(len(_FURIGANA.findall(text)) for text in words) >= 2
    chords = any(len(_CHORD_INSIDE.findall(text)) > 1 or _CHORD_LINE.fullmatch(text) for text in words)
    result = []
    for line in lines:
        if line.kind != SUNG:
            result.append(line)
            continue
        text = line.text.strip(" ♪♫♬♩") or line.text
        text = _BULLET.sub("", text, count=1) if bullets else _NUMBERED.sub("", text, count=1) if numbered else text
        text = _FURIGANA.sub(r"\1", text) if readings else text
        text = _CHORD_INSIDE.sub("", text).strip() if chords else text
        # "A B C" is sung; a line of chords has one that is no letter of the alphabet alone.
        if chords and (not text or (_CHORD_LINE.fullmatch(text) and any(len(word) > 1 for word in text.split()))):
            result.append(replace(line, kind=JUNK, why="chords"))
        else:
            result.append(replace(line, text=text))
    return result


def _sung_after_all(lines: list[SortedLine]) -> list[SortedLine]:
    """`No voice` between lines that are sung is sung as well."""
    if not any(line.kind == SUNG for line in lines):
        return lines
    never = re.compile("[纯純]音[乐樂]|歌[词詞]|lyrics", re.IGNORECASE)
    return [
        replace(line, kind=SUNG, why="") if line.why == _SAYS_NO_VOICE and not never.search(line.text) else line
        for line in lines
    ]


# --- The frame of a copied page ---

_GENIUS_HEAD = re.compile(
    r"^\s*(?:\d[\d,.]*\s*)?(?:contributors?|contributeurs?|mitwirkende).{0,300}?lyrics\s*", re.IGNORECASE
)
_GENIUS_TITLE = re.compile(r"^[^\[\]]{1,100}\blyrics\s*(?=\[|$)", re.IGNORECASE)
# What a page says about the song, cut off by its button.
_ABOUT = re.compile(r"^.{0,600}?(?:…|\.{3})\s*Read More\s*", re.IGNORECASE)
_EMBED = re.compile(r"(?:^|(?<=\S))\d{0,6}K?Embed\s*$")
_TICKETS = re.compile(
    r"See [^\n]{1,60}? LiveGet tickets as low as \$?\d+(?:You might also like)?"
    r"|You might also like(?=$|\[|[A-Z\u3040-\uffff])"
)


def _without_site_frame(lines: list[SortedLine]) -> list[SortedLine]:
    """Head, advertisement and end of a page of Genius, which copying glues to the lines beside them."""
    first = next((index for index, line in enumerate(lines) if line.kind != EMPTY), None)
    result = []
    for index, line in enumerate(lines):
        text = line.text
        if index == first or (index and index <= (first or 0) + 2):
            text = _ABOUT.sub("", text, count=1)
            text = _GENIUS_HEAD.sub("", text, count=1)
            text = _GENIUS_TITLE.sub("", text, count=1)
        text = _TICKETS.sub("", text)
        if index >= len(lines) - 2:
            text = _EMBED.sub("", text)
        if text == line.text:
            result.append(line)
            continue
        left = line.text.replace(text, "", 1) if text else line.text
        result.append(SortedLine(line.seconds, left.strip(), JUNK, why="a site's or player's own line"))
        if text.strip():
            result.append(SortedLine(line.seconds, text.strip(), SUNG))
    return result


# --- Several lines on one stamp ---

_SCRIPTS = (
    ("kana", re.compile("[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]")),
    ("hangul", re.compile("[\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e]")),
    ("han", re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")),
    ("cyrillic", re.compile("[\u0400-\u04ff]")),
    ("arabic", re.compile("[\u0600-\u06ff]")),
    ("greek", re.compile("[\u0370-\u03ff]")),
    ("devanagari", re.compile("[\u0900-\u097f]")),
    ("thai", re.compile("[\u0e00-\u0e7f]")),
    ("hebrew", re.compile("[\u0590-\u05ff]")),
    ("latin", re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")),
)


def script_of(text: str) -> str:
    """The script of a line: `kana` where any is, else the one with most letters (a word of Latin weighs one letter).

    "" without letters.
    """
    counts = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS}
    if counts["kana"] and counts["kana"] + counts["han"] >= len(re.findall("[A-Za-z]+", text)):
        return "kana"
    counts["latin"] = len(re.findall("[A-Za-z\u00c0-\u024f\u1e00-\u1eff']+", text))
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else ""


# One syllable each; a word is taken apart from its start, once.
_ROMAJI = re.compile(
    r"(?:ch|sh|ts|[kgnhbpmr]y|[kgsztdnhbpmrfjvwy])?[aiueoāīūēōâîûêô]|n|[kstpgc](?=[kstpgc])|['-]", re.IGNORECASE
)
_PINYIN = re.compile(
    r"(?:zh|ch|sh|[bpmfdtnlgkhjqxrzcsyw])?[iuüv]?[aoeiuüāáǎàēéěèōóǒòīíǐìūúǔùǖǘǚǜ]{1,2}"
    r"(?:ng|n(?![aoeiuü])|r(?![aoeiuü]))?[1-5]?",
    re.IGNORECASE,
)
_PINYIN_TONE = re.compile(r"[āáǎàēéěèōóǒòīíǐìūúǔùǖǘǚǜ]|[a-z][1-5]\b", re.IGNORECASE)
_PINYIN_ONLY = re.compile(
    r"\b(?:zh|q(?!u)|x)[a-zü]|\bqu\w|(?:iang|uang|iong|uai|ui|iu|ie|üe|uo|ian|iao)\b|\b(?:zai|kai|lai|deng|feng|zi|ci|cai|ceng)\b",
    re.IGNORECASE,
)
_KOREAN_READING = re.compile(r"(?:eo|eu|ae|yeo|wo|ui|kk|tt|pp|ss|jj)", re.IGNORECASE)


def is_romanised(line: str, script: str) -> bool:
    """Whether a line of Latin letters is a reading of `script` (`kana`, `han`, `hangul`) rather than a translation."""
    words = re.findall(r"[A-Za-z\u00c0-\u01ff']+[1-5]?", line)
    if not words:
        return False
    if script == "kana":
        return sum(not _ROMAJI.sub("", word) for word in words) >= 0.85 * len(words)
    if script == "han":
        return sum(not _PINYIN.sub("", word) for word in words) >= 0.9 * len(words)
    if script == "hangul":
        return len(_KOREAN_READING.findall(line)) >= 0.25 * len(words)
    return False


def is_pinyin(lines: Sequence[str]) -> bool:
    """Whether lines of Latin letters are Chinese in pinyin: nearly all words are, and many could be nothing else."""
    words = re.findall(r"[A-Za-z\u00c0-\u01ff']+[1-5]?", " ".join(lines))
    if len(words) < 6 or sum(not _PINYIN.sub("", word) for word in words) < 0.9 * len(words):
        return False
    certain = sum(bool(_PINYIN_TONE.search(word) or _PINYIN_ONLY.search(word)) for word in words)
    return certain >= 0.25 * len(words)


def _told_by_stamps(lines: list[SortedLine]) -> list[SortedLine]:
    """Of several lines on one stamp the ones in the song's main script stay."""
    groups = _groups(lines)
    several = [group for group in groups if len(group) > 1]
    if not several:
        return lines
    alone = [script_of(lines[group[0]].text) for group in groups if len(group) == 1]
    main = _main_script(lines, several, alone)
    places = [
        scripts.index(main) for group in several if main in (scripts := [script_of(lines[i].text) for i in group])
    ]
    position = max(set(places), key=places.count, default=0)
    result = list(lines)
    if ends := _displaced(lines, groups):
        # Every translation one line late: the first line has none on its stamp, and the last stamp nothing else.
        main, position = ends, 0
        why = "a translation on the stamp of the next line"
        result[groups[-1][0]] = replace(lines[groups[-1][0]], kind=TRANSLATION, why=why)
    for group in several:
        scripts = [script_of(lines[index].text) for index in group]
        if main == "kana" and "kana" not in scripts and scripts.count("han") > 1:
            # Kanji alone beside their Chinese: the song's line stands where it stands on other stamps.
            scripts[min(position, len(scripts) - 1)] = "kana"
        if main not in scripts:
            continue
        kept: set[str] = set()
        for index, script in zip(group, scripts, strict=True):
            key = comparable(lines[index].text)
            if script not in (main, ""):
                romanised = script == "latin" and is_romanised(lines[index].text, main)
                kind, what = (ROMANISATION, "a romanisation") if romanised else (TRANSLATION, "a translation")
                result[index] = replace(lines[index], kind=kind, why=f"{what} on the stamp of another line")
            elif key in kept:
                result[index] = replace(lines[index], kind=JUNK, why="the same line on the same stamp")
            kept.add(key)
    return _told_by_language(result, several)


def _displaced(lines: Sequence[SortedLine], groups: list[list[int]]) -> str:
    """The song's script where each translation stands on the stamp of the next line, else ""."""
    scripts = [[script_of(lines[index].text) for index in group] for group in groups]
    if len(scripts) < 3 or len(scripts[0]) != 1 or len(scripts[-1]) != 1 or scripts[0] == scripts[-1]:
        return ""
    song, other = scripts[0][0], scripts[-1][0]
    return song if other and all(pair == [other, song] for pair in scripts[1:-1]) else ""


def _groups(lines: Sequence[SortedLine]) -> list[list[int]]:
    """Indices of the sung lines by stamp; untimed lines behind a timed one belong to it."""
    groups: list[list[int]] = []
    start: float | None = None
    for index, line in enumerate(lines):
        if line.kind == EMPTY:
            start = None if line.seconds is None else start
        if line.kind != SUNG:
            continue
        same = line.seconds is not None and start is not None and abs(line.seconds - start) <= SAME_TIME
        follows = line.seconds is None and start is not None and heading_of(line.text) is None
        if groups and (same or follows) and heading_of(lines[groups[-1][0]].text) is None:
            groups[-1].append(index)
        else:
            groups.append([index])
            start = line.seconds
    return groups


def _main_script(lines: Sequence[SortedLine], several: list[list[int]], alone: list[str]) -> str:
    """The script of lines that stand alone counts most; where there are none, of the line that comes first."""
    votes: dict[str, float] = {}
    in_groups = {script for group in several for index in group if (script := script_of(lines[index].text))}
    for script in alone:
        if script in in_groups:
            votes[script] = votes.get(script, 0) + 1
    for group in several:
        scripts = [script_of(lines[index].text) for index in group]
        # A reading stands beside what it reads: then the other script is the song's.
        first = next((script for script in scripts if script), "")
        others = [script for script in scripts if script in ("kana", "hangul", "han")]
        if first == "latin" and others and is_romanised(lines[group[0]].text, others[0]):
            first = others[0]
        if first:
            votes[first] = votes.get(first, 0) + 1
    if "kana" in votes and "han" in in_groups:
        # Lines of kanji alone belong to the Japanese ones.
        both = votes.get("han", 0)
        if both and both <= votes["kana"]:
            votes["kana"] += both
    return max(votes, key=lambda name: votes[name], default="")


def _told_by_language(lines: list[SortedLine], several: list[list[int]]) -> list[SortedLine]:
    """Where nearly every stamp has two lines of one script in two languages, the second ones are a translation."""
    pairs = [[index for index in group if lines[index].kind == SUNG] for group in several]
    pairs = [pair for pair in pairs if len(pair) == 2]
    if len(pairs) < 3 or len(pairs) < 0.8 * len(several):
        return lines
    guesses = []
    for position in (0, 1):
        try:
            guesses.append(identify(squash(" ".join(lines[pair[position]].text for pair in pairs))))
        except MissingLyricSupport:
            return lines
    if guesses[0][0] == guesses[1][0] or min(guesses[0][1], guesses[1][1]) < 0.9:
        return lines
    result = list(lines)
    for pair in pairs:
        why = "a translation on the stamp of another line"
        result[pair[1]] = replace(lines[pair[1]], kind=TRANSLATION, why=why)
    return result


# --- Two languages in one line, and in turn ---

_INLINE = (
    re.compile(r"^(?P<a>.+?)\s*[/／|｜]\s*(?P<b>.+)$"),
    re.compile(r"^(?P<a>[^()（）]+?)\s*[(（](?P<b>[^()（）]+)[)）]\s*$"),
    re.compile(r"^(?P<a>.+?)\s[-–—]\s(?P<b>.+)$"),
    re.compile(r"^(?P<a>.+?)(?:\s{2,}|\t|\u3000{1,})(?P<b>.+)$"),
)


def _two_in_one_line(lines: list[SortedLine]) -> tuple[list[SortedLine], list[str]]:
    """Lines that bring their translation along (`愛してる / 我爱你`), where nearly all of a text do so."""
    sung = [index for index, line in enumerate(lines) if line.kind == SUNG]
    for pattern in _INLINE:
        found = {index: match for index in sung if (match := pattern.match(lines[index].text))}
        scripts = {(script_of(match["a"]), script_of(match["b"])) for match in found.values()}
        if len(found) < 3 or len(found) < 0.8 * len(sung) or len(scripts) != 1:
            continue
        first, second = scripts.pop()
        if first == second or "" in (first, second):
            continue
        result: list[SortedLine] = []
        for index, line in enumerate(lines):
            if match := found.get(index):
                result.append(replace(line, text=match["a"].strip()))
                why = "a translation behind the line"
                result.append(SortedLine(line.seconds, match["b"].strip(), TRANSLATION, why=why))
            else:
                result.append(line)
        return result, []
    return lines, []


def _alternating(sung: Sequence[SortedLine]) -> list[str]:
    """A warning where every second line is of another script: a translation, or a song in two languages."""
    scripts = [script for line in sung if (script := script_of(line.text))]
    if len(scripts) < 6:
        return []
    half = len(scripts) // 2
    first_half, second_half = set(scripts[:half]), set(scripts[half:])
    if len(scripts) % 2 == 0 and len(first_half) == len(second_half) == 1 and first_half != second_half:
        return [
            f"The second half is of another language (from '{sung[half].text[:40]}' on): if it is the translation of "
            "the first, remove it, or it is trained as sung."
        ]
    even, odd = scripts[::2], scripts[1::2]
    (first, often), (second, also) = ((max(set(part), key=part.count), part) for part in (even, odd))
    if first == second or often.count(first) < 0.85 * len(often) or also.count(second) < 0.85 * len(also):
        return []
    return [
        f"Every second line is of another language ('{sung[0].text[:40]}', '{sung[1].text[:40]}'): if these are "
        "translations, remove them, or they are trained as sung."
    ]


# --- Credits ---

_LABELLED = re.compile(r"^\W*(?P<label>[^:：]{1,48}?)\s*[:：]\s*(?P<name>.*)$")
_DASHED = re.compile(r"^\W*(?P<label>[^-–—/|：:]{1,40}?)\s*(?:\s[-–—|]\s|／)\s*(?P<name>.+)$")
_SENTENCE_END = re.compile(r"[。！？!?…~～]\s*$")


def _label_parts(label: str) -> list[str]:
    """`混音工程师 Mixing Engineer` as its Chinese and its English part, each without the spaces that only space out."""
    label = label.replace("(s)", "s")
    label = re.sub(r"[\[\](){}（）【】「」《》<>*#\"'“”]", " ", label)
    label = re.sub("(?<=[\u3040-\u30ff\u3400-\u9fff])\\s+(?=[\u3040-\u30ff\u3400-\u9fff])", "", label)
    spaced = re.sub(
        "(?<=[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3])(?=[A-Za-z])|(?<=[A-Za-z.])(?=[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3])",
        " ",
        label,
    )
    return [part for part in re.split(r"[/／、，,&＆+·・|]|\s(?:and|与|和|及)\s", spaced) if part.strip()]


def _is_label(label: str) -> bool:
    """Whether all of a label says who did what."""
    parts = _label_parts(label)
    return bool(parts) and all(_is_label_part(part.strip()) for part in parts)


def _is_label_part(part: str) -> bool:
    words = part.split()
    known = 0
    for word in words:
        if (
            CJK_LABEL.fullmatch(word)
            or word.casefold().strip(".()") in LABEL_WORDS
            or word
            in (
                "OP",
                "SP",
                "VO",
                "MV",
                "PV",
                "Vo.",
                "Gt.",
                "Ba.",
                "Dr.",
                "Key.",
            )
        ):
            known += 1
        elif word.casefold().strip(".") not in CONNECTING_WORDS and not word.isdigit():
            return False
    return known > 0


def _credit_strength(text: str) -> int:
    """3: a credit whatever it stands beside; 2: one beside another; 1: a label and a colon, but unknown; 0: none."""
    if match := CREDIT_WITH_BY.match(text.strip(" *-~【】[]()（）")):
        name = match["name"].strip(" .")
        capitals = all(
            word[:1].isupper() or not word[:1].isalpha() or word in ("and", "of", "the", "de") for word in name.split()
        )
        with_colon = bool(re.search(r"by\s*[:：]", text, re.IGNORECASE))
        return 3 if with_colon else 2 if capitals and len(name.split()) <= 10 else 0
    match = _LABELLED.match(text)
    if match and match["name"].strip("-—/ ") == "" and not _is_label(match["label"]):
        return 0
    if match is None:
        words = text.strip().split(maxsplit=1)
        bracketed = re.match(r"\s*[【\[](?P<label>[^】\]]{1,24})[】\]]\s*(?P<name>\S.*)", text)
        if bracketed and _is_label(bracketed["label"]) and heading_of(text) is None:
            return 2
        # "作詞　某人", as Japanese and Korean pages have it.
        if len(words) == 2 and not words[0].isascii() and CERTAIN_LABEL.fullmatch(words[0]) and len(words[1]) <= 24:
            return 2
        dashed = _DASHED.match(text)
        return 2 if dashed and _is_label(dashed["label"]) and not _SENTENCE_END.search(text) else 0
    if heading_of(text) is not None or _SPEAKER_LINE.fullmatch(text):
        return 0
    label = match["label"]
    name = match["name"].strip()
    if _is_label(label):
        if name[:1].islower() and not any(CERTAIN_LABEL.fullmatch(part.strip()) for part in _label_parts(label)):
            return 1  # "Drums: boom boom"
        if _SENTENCE_END.search(match["name"]) and not any(
            CERTAIN_LABEL.fullmatch(part.strip()) for part in _label_parts(label)
        ):
            return 1
        compact = "".join(re.sub(r"\s+", " ", part).strip() for part in _label_parts(label)[:1])
        certain = any(
            CERTAIN_LABEL.fullmatch(word) for part in _label_parts(label) for word in (part.strip(), *part.split())
        )
        return 3 if certain or (len(_label_parts(label)) > 1 and len(compact) > 1) else 2
    return 1


_BARE_LABELS = ("作词", "作詞", "作曲", "编曲", "編曲", "填词", "填詞", "作词作曲", "作詞作曲", "작사", "작곡", "편곡")


def _credits(lines: list[SortedLine], names: set[str]) -> list[SortedLine]:
    """Credits above the first sung line and below the last, each as a block, with the title line above them."""
    lines = _names_at_head(lines, names)
    lines = _credit_block(lines, range(len(lines)), names, head=True)
    return _credit_block(lines, range(len(lines) - 1, -1, -1), names, head=False)


def _credit_block(lines: list[SortedLine], order: Iterable[int], names: set[str], *, head: bool) -> list[SortedLine]:
    found: list[tuple[int, int]] = []  # (index, strength) from the edge on
    titles: list[int] = []
    for index in order:
        line = lines[index]
        if line.kind != SUNG:
            continue
        strength = _credit_strength(line.text)
        label_above = head and found and lines[found[-1][0]].text.strip() in _BARE_LABELS
        if strength:
            found.append((index, strength))
        elif head and (line.text.strip() in _BARE_LABELS or (label_above and _is_short_name(line.text))):
            found.append((index, 2))  # a label and, on the next line, the name
        elif (
            head and len(titles) < 2 and not any(strength > 1 for _, strength in found) and _may_be_title(line.text)
        ) or (head and _is_title(line.text, names)):
            titles.append(index)
        else:
            break
    # Behind the last known credit an unknown label may be a singer's.
    while found and found[-1][1] == 1:
        found.pop()
    known = [strength for _, strength in found if strength > 1]
    if not (3 in known or len(known) > 1):
        found = []
    taken = {*titles, *(index for index, _ in found)}
    if head and not any(line.kind == SUNG and index not in taken for index, line in enumerate(lines)):
        titles = []  # nothing would be left: these are sung, and the credits stand at the end
    credits = {index for index, _ in found}
    credits |= {
        index
        for index in titles
        if _is_title(lines[index].text, names)
        or (
            found
            and index < found[0][0]
            and (len(titles) == 1 or index == titles[0] or _is_short_name(lines[index].text))
        )
    }
    why = f"a credit at the {'head' if head else 'end'}"
    return [replace(line, kind=CREDIT, why=why) if index in credits else line for index, line in enumerate(lines)]


def _names_at_head(lines: list[SortedLine], names: set[str]) -> list[SortedLine]:
    """Title and artist on the first two lines, as they stand above the lyrics on a page."""
    first = [index for index, line in enumerate(lines) if line.kind == SUNG][:2]
    texts = [comparable(lines[index].text) for index in first]
    if len(first) < 2 or texts[0] == texts[1] or not all(text in names for text in texts):
        return lines
    return [
        replace(line, kind=CREDIT, why="title and artist") if index in first else line
        for index, line in enumerate(lines)
    ]


def _may_be_title(text: str) -> bool:
    return heading_of(text) is None and not text.startswith("[")


def _is_short_name(text: str) -> bool:
    return len(text) <= 40 and not _SENTENCE_END.search(text)


def _is_title(text: str, names: set[str]) -> bool:
    """Whether a line names the song or its artist and nothing else: `晴天 - 周杰伦`."""
    parts = [
        comparable(part)
        for part in re.split(r"\s[-–—/|]\s|[-–—]{1,2}(?=\S)|[《》「」『』]|\bby\b", text)
        if comparable(part)
    ]
    named = [part in names or comparable(re.sub(r"[(（].*?[)）]", "", part)) in names for part in parts]
    return bool(parts) and len(parts) > 1 and all(named)


# --- Headings ---


def _headings(lines: list[SortedLine]) -> list[SortedLine]:
    """Headings as the model's tags, and what is sung behind one on a line of its own."""
    result: list[SortedLine] = []
    others = any(line.kind == SUNG and heading_of(line.text) for line in lines)
    numbers = [line.text for line in lines if line.kind == SUNG and re.fullmatch(r"\W*\d{1,2}\s*[.)、]", line.text)]
    for index, line in enumerate(lines):
        heading = heading_of(line.text) if line.kind == SUNG or line.why == _SAYS_NO_VOICE else None
        begins = index == 0 or lines[index - 1].kind == EMPTY or (bool(result) and result[-1].kind == HEADING)
        if heading is None and line.kind == SUNG and others and begins and len(line.text) <= 20:
            heading = heading_of(f"{line.text}:")  # "Hook" among "Verse" and "Chorus"
            heading = heading if heading and not heading.rest else None
        if heading is None and len(numbers) > 1 and line.text in numbers:
            heading = Heading("[verse]")
        if heading is None:
            if line.kind == SUNG and re.fullmatch(r"\[[^\[\]]{1,60}\]", line.text.strip()):
                line = replace(line, kind=SPEAKER, why="a note in square brackets, which nobody sings")
            result.append(line)
            continue
        result.append(SortedLine(line.seconds, line.text, HEADING, heading.tag, "a heading"))
        if heading.rest:
            result.append(SortedLine(line.seconds, heading.rest, SUNG))
    return result


# --- Speakers ---

_SPEAKER_LINE = re.compile(rf"\s*[(（\[【<]?\s*(?:{SPEAKER_WORDS})\s*[)）\]】>]?\s*[:：]\s*(?P<rest>.*)", re.IGNORECASE)
_SPEAKER_ALONE = re.compile(rf"\s*[(（\[【<]\s*(?:{SPEAKER_WORDS})\s*[)）\]】>]\s*(?P<rest>.*)", re.IGNORECASE)
_NAMED = re.compile(r"\s*[(（\[【]?(?P<name>[^:：()（）\[\]【】，。,.!?！？…]{1,24}?)[)）\]】]?\s*[:：]\s*(?P<rest>.*)")
_SAYING = re.compile(
    r"(?:[说說道问問喊唱想叫答是有写寫听聽见見云曰]|告诉我?|whisper\w*|s[ai]\w*d?|says?|tell\w*|told|asks?|asked|know|was|is|like|this|that|be|to|me|you)$",
    re.IGNORECASE,
)


def _speakers(lines: list[SortedLine]) -> list[SortedLine]:
    """Labels of who sings taken off their lines: known ones, and names of which at least two sing in turn."""
    names = _speaker_names(lines)
    labelled = [line for line in lines if line.kind == SUNG and _SPEAKER_LINE.fullmatch(line.text)]
    result: list[SortedLine] = []
    for line in lines:
        match = None
        if line.kind == SUNG:
            match = _SPEAKER_LINE.fullmatch(line.text)
            if match and line.text.isascii() and len(labelled) < 2:
                match = None  # "Everybody: clap your hands" may be sung; singers take turns
            match = match or _SPEAKER_ALONE.fullmatch(line.text)
            for pattern in (_NAMED, _NAME_IN_FRONT) if match is None else ():
                if (named := pattern.fullmatch(line.text)) and named["name"].strip().casefold() in names:
                    match = named
                    break
        if match is None:
            result.append(line)
            continue
        rest = match["rest"].strip()
        label = line.text[: match.start("rest")].strip()
        result.append(SortedLine(line.seconds, label if rest else line.text, SPEAKER, why="says who sings"))
        if rest:
            result.append(SortedLine(line.seconds, rest, SUNG))
    return result


_NAME_IN_FRONT = re.compile(r"\s*[(（](?P<name>[^()（）]{1,20})[)）]\s*(?P<rest>\S.*)")


def _speaker_names(lines: Sequence[SortedLine]) -> set[str]:
    return _names_with_colon(lines) | _names_in_brackets(lines)


def _names_in_brackets(lines: Sequence[SortedLine]) -> set[str]:
    """`(Ann) hold the light`: two to four names, of which one comes again; more are what is sung behind."""
    said = [
        match["name"].strip()
        for line in lines
        if line.kind == SUNG and (match := _NAME_IN_FRONT.fullmatch(line.text)) and not is_interjection(match["name"])
    ]
    names = {name.casefold() for name in said if all(word[:1].isupper() or not word.isascii() for word in name.split())}
    return names if 2 <= len(names) <= 4 and len(said) > len(names) and len(said) >= 3 else set()


def _names_with_colon(lines: Sequence[SortedLine]) -> set[str]:
    said: dict[str, set[str]] = {}
    for line in lines:
        if line.kind == SUNG and (match := _NAMED.fullmatch(line.text)):
            name = match["name"].strip()
            words = name.split()
            latin = script_of(name) == "latin"
            like_a_name = len(words) <= 3 and all(word[:1].isupper() for word in words) if latin else len(name) <= 5
            if words and like_a_name and not _SAYING.search(name):
                said.setdefault(name.casefold(), set()).add(match["rest"].strip())
    known = any(line.kind == SUNG and _SPEAKER_LINE.fullmatch(line.text) for line in lines)
    # Names that come once each are a list ("Monday: …, Tuesday: …"); singers take turns.
    if sum(map(len, said.values())) >= 3 and (known or (len(said) >= 2 and max(map(len, said.values())) >= 2)):
        return set(said)
    return set()


# --- Repeats ---


def _repeated(lines: list[SortedLine]) -> tuple[list[SortedLine], list[str]]:
    """Marks such as `(x2)` and `Repeat chorus` replaced by what they stand for, as far as it can be known."""
    result: list[SortedLine] = []
    sections: dict[str, list[SortedLine]] = {}
    current: list[SortedLine] = []
    unknown: list[str] = []
    times = 1

    def close() -> None:
        nonlocal times
        if times > 1 and current:
            result.extend(replace(line, seconds=None) for _ in range(times - 1) for line in current)
        times = 1

    pending = [*lines]
    for number, line in enumerate(pending):
        if line.kind == HEADING:
            close()
            current = []
            heading = heading_of(line.text)
            again = heading is not None and (heading.again or _is_abbreviated(pending, number, sections))
            result.append(line)
            if heading is not None and again:
                known = sections.get(heading.tag)
                if known:
                    result.extend(replace(copy, seconds=None) for _ in range(heading.times) for copy in known)
                elif heading.again:
                    unknown.append(line.text)
                current = []
                continue
            times = heading.times if heading is not None else 1
            if heading is not None:
                sections.setdefault(heading.tag, current)
                if sections[heading.tag] is not current and not sections[heading.tag]:
                    sections[heading.tag] = current
            continue
        if line.kind == SUNG:
            text, count = repeats_of(line.text)
            if count > 1:
                line = replace(line, sung=text)
                result += [line, *(SortedLine(None, line.text, SUNG, text) for _ in range(count - 1))]
                current += [SortedLine(None, text, SUNG, text) for _ in range(count)]
                continue
            current.append(replace(line, seconds=None))
        result.append(line)
    close()
    warnings = [f"'{text}' repeats something that stands nowhere above it: write the lines out." for text in unknown]
    return result, warnings


def _is_abbreviated(lines: Sequence[SortedLine], index: int, sections: dict[str, list[SortedLine]]) -> bool:
    """Whether a heading has no line of its own, though a section of its name had: "Chorus" for the whole chorus."""
    heading = heading_of(lines[index].text)
    if heading is None or heading.tag not in ("[chorus]", "[pre-chorus]", "[hook]") or not sections.get(heading.tag):
        return False
    following = next((line for line in lines[index + 1 :] if line.kind not in (EMPTY, JUNK, TRANSLATION)), None)
    return following is None or following.kind == HEADING


def counted_kinds(lines: Iterable[SortedLine]) -> dict[str, int]:
    """How many lines there are of each kind, for a sentence; kinds without a line are left out."""
    counts = {kind: 0 for kind in KINDS}
    for kind, group in itertools.groupby(sorted(line.kind for line in lines)):
        counts[kind] = len(list(group))
    return {kind: count for kind, count in counts.items() if count}
