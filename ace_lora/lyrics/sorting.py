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

from ace_lora.lyrics.formats import ROMANISATION, TRANSLATION, Entries
from ace_lora.lyrics.language_id import identify, squash
from ace_lora.lyrics.packages import MissingLyricSupport
from ace_lora.lyrics.phrases import JUNK as NEVER_SUNG
from ace_lora.lyrics.phrases import NO_VOICE, PLACEHOLDER_ALONE
from ace_lora.lyrics.text import comparable, heading_of, repeats_of

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
        if entry.text.strip()
        else SortedLine(entry.seconds, "", EMPTY)
        for entry in entries.lines
    ]
    lines = _without_site_frame(lines)
    if len(words := [line.text for line in lines if line.kind == SUNG]) == 1 and PLACEHOLDER_ALONE.fullmatch(words[0]):
        lines = [
            replace(line, kind=JUNK, why="stands where there are no lyrics") if line.text else line for line in lines
        ]
    lines = [_junk(line) for line in lines]
    instrumental = entries.instrumental or any(line.why == _SAYS_NO_VOICE for line in lines)
    lines = _told_by_stamps(lines)
    lines = _credits(lines, names)
    lines = _headings(lines)
    lines = _speakers(lines)
    lines = _sung_after_all(lines)
    lines, warnings = _two_in_one_line(lines)
    lines, expanded = _repeated(lines)
    sung = [line for line in lines if line.kind == SUNG]
    warnings += expanded + _alternating(sung)
    return SortedLyrics(tuple(_with_sung(lines)), instrumental and not sung, tuple(warnings))


def _names(entries: Entries) -> list[str]:
    return [entries.facts.get(name, "") for name in ("title", "artist")]


def _with_sung(lines: Sequence[SortedLine]) -> list[SortedLine]:
    return [replace(line, sung=line.sung or line.text) if line.kind == SUNG else line for line in lines]


# --- Junk ---

_SAYS_NO_VOICE = "says that there is no voice"
_LONGEST_JUNK = 400  # characters; what is longer is no such line, and the patterns need not be tried


def _junk(line: SortedLine) -> SortedLine:
    if line.kind != SUNG:
        return line
    text = line.text.strip()
    if len(text) > _LONGEST_JUNK:
        return line
    if NO_VOICE.fullmatch(text):
        return replace(line, kind=JUNK, why=_SAYS_NO_VOICE)
    why = next((why for why, pattern in NEVER_SUNG if pattern.fullmatch(text)), "")
    return replace(line, kind=JUNK, why=why) if why else line


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
_EMBED = re.compile(r"(?:^|(?<=\S))\d{0,6}K?Embed\s*$")
_TICKETS = re.compile(
    r"See [^\n]{1,60}? LiveGet tickets as low as \$?\d+(?:You might also like)?|You might also like(?=$|\[|[A-Z\u3040-\uffff])"
)


def _without_site_frame(lines: list[SortedLine]) -> list[SortedLine]:
    """Head, advertisement and end of a page of Genius, which copying glues to the lines beside them."""
    first = next((index for index, line in enumerate(lines) if line.kind != EMPTY), None)
    result = []
    for index, line in enumerate(lines):
        text = line.text
        if index == first or (index and index <= (first or 0) + 2):
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


_ROMAJI = re.compile(
    r"(?:(?:[kgsztdnhbpmrfjv]|[kgsztdnhbpmr]y|ch|sh|ts|w|y)?[aiueoāīūēōâîûêô]+|n|[kstpgc](?=[kstpgc])|'|-)+",
    re.IGNORECASE,
)
_PINYIN = re.compile(
    r"(?:(?:zh|ch|sh|[bpmfdtnlgkhjqxrzcsyw])?(?:[iuüv]?[aoeiuüvāáǎàēéěèōóǒòīíǐìūúǔùǖǘǚǜ]{1,2}(?:ng|n|r)?)[1-5]?)+",
    re.IGNORECASE,
)
_PINYIN_TONE = re.compile(r"[āáǎàēéěèōóǒòīíǐìūúǔùǖǘǚǜ]|[a-z][1-5]\b", re.IGNORECASE)
_PINYIN_ONLY = re.compile(r"\b(?:zh|q(?!u)|x)[a-zü]|\bqu\w|(?:iang|uang|iong|uai|ui|iu|ie|üe)\b", re.IGNORECASE)
_KOREAN_ROMAN = re.compile(r"(?:eo|eu|ae|yeo|wo|ui|kk|tt|pp|ss|jj)", re.IGNORECASE)


def is_romanised(line: str, script: str) -> bool:
    """Whether a line of Latin letters is a reading of `script` (`kana`, `han`, `hangul`) rather than a translation."""
    words = re.findall(r"[A-Za-z\u00c0-\u01ff']+[1-5]?", line)
    if not words:
        return False
    if script == "kana":
        return sum(_ROMAJI.fullmatch(word) is not None for word in words) >= 0.85 * len(words)
    if script == "han":
        return sum(_PINYIN.fullmatch(word) is not None for word in words) >= 0.9 * len(words)
    if script == "hangul":
        return len(_KOREAN_ROMAN.findall(line)) >= 0.25 * len(words)
    return False


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
    even, odd = scripts[::2], scripts[1::2]
    (first, often), (second, also) = ((max(set(part), key=part.count), part) for part in (even, odd))
    if first == second or often.count(first) < 0.85 * len(often) or also.count(second) < 0.85 * len(also):
        return []
    return [
        f"Every second line is of another language ('{sung[0].text[:40]}', '{sung[1].text[:40]}'): if these are "
        "translations, remove them, or they are trained as sung."
    ]


# --- Credits ---

# What a Chinese or Japanese label is made of: "录音棚", "混音/母带", "音乐制作人", "作詞・作曲".
_CJK_PART = (
    r"作?[词詞曲]|填[词詞]|[词詞]曲|[谱譜]曲|[编編][曲写寫程]|改[编編]|演唱|原唱|主唱|[领領]唱|翻唱|独唱|獨唱|合唱|重唱|[对對]唱|伴唱|歌手|[歌曲]名|歌曲|歌[词詞]?|唄|うた|[专專][辑輯]|"
    r"[制製]作|[监監][制製]|出品|[发發]行|混音|[缩縮]混|[录錄]音|錄音|録音|[录錄][制製]|收[录錄]|母[带帶]|后期|後期|[和合][声聲音]|和聲|吉他|[贝貝]斯|[低高中][音]|[架爵电電木打军軍手大小]?鼓|[键鍵][盘盤]|[钢鋼]琴|"
    r"[弦管铜銅木拨撥][乐樂管]?|[小中大低]提琴|提琴|二胡|琵琶|古[筝箏琴]|[竹长長短横]?[笛箫簫]|笛子|萨克斯|薩克斯|[小长長圆圓]?[号號]|打[击擊][乐樂]?|口琴|手[风風]琴|合成器|[电電]子|采样|[编編]配|扬琴|阮|唢呐|笙|马头琴|"
    r"[统統][筹籌]|[企策][划劃畫]|[宣推][传傳广廣]|[营營][销銷]|版[权權]|封面|[设設][计計]|[视視][频頻觉覺]|[导導]演|摄影|剪辑|[总總](?:监|監)?|[监監][督制製]?|[艺藝][人术術][人]?|[经經][纪紀]|[特别別]*[鸣鳴][谢謝]|[感致][谢謝]|"
    r"配[唱乐樂器]|[声聲][乐樂]|指[导導揮挥]|文案|海[报報]|美[术術工]|[调調][音教校]|曲[绘繪師师]|映像|[动動][画畫]|插[画畫]|[题題]字|[书書]法|[出]版|[词詞]作|曲作|[顾顧][问問]|[项項]目|[推]荐|[联聯]合|协[力助]|[執执]行|[总總]|副|助理|主|"
    r"[音][乐樂响響]|[人][声聲]|[技]术|[工]程|[乐樂][队隊器手团團]|[交]响|[团團][队隊]?|公司|工作室|棚|室|[单單]位|平台|[中文]?文?[翻译譯]+|[字]幕|[时時][间間][轴軸]?|[制]谱|[首]席|"
    r"作詞|作曲|編曲|訳詞|補作詞|調声|演奏|歌唱|絵|動画|編集|企画|制作|ボーカル|ヴォーカル|コーラス|ギター|ベース|ドラムス?|キーボード|ピアノ|バイオリン|ストリングス|ミックス|ミキシング|マスタリング|レコーディング|プロデュー(?:ス|サー)|イラスト|アレンジ|ディレクター|エンジニア|アーティスト|アルバム|タイトル|"
    r"작사|작곡|편곡|노래|보컬|가수|프로듀서|앨범|기타|베이스|드럼|피아노|믹싱|마스터링|코러스"
)
_CJK_LABEL = re.compile(rf"(?:{_CJK_PART})+[人师師手者员員家方]?[们們]?")
_ENGLISH_PARTS = frozenset(
    "lyrics lyric lyricist lyricists words music composer composers composed composition writer writers written songwriter "
    "songwriters songwriting songwriting arranger arrangers arranged arrangement arrangements arr producer producers produced production prod executive "
    "co vocal vocals vocalist vocalists backing background harmony harmonies lead singer singers artist artists performed performer "
    "performers featuring feat guitar guitars guitarist electric acoustic bass bassist drum drums drummer percussion keyboard keyboards keys "
    "piano pianist synth synthesizer synthesizers strings violin violins viola cello cellos saxophone sax trumpet brass flute harp "
    "programming programmer mix mixed mixing mixer master mastered mastering engineer engineers engineered assistant "
    "recorded recording recordist studio studios label labels publisher publishers published publishing op sp isrc iswc "
    "copyright album title song track distributed distributor distribution director directed art artwork cover design designer a&r "
    "project manager supervisor supervision supervised special thanks translated translation translator editing editor edited released release "
    "year genre original production coordinator coordination management company adapted adaptation orchestra "
    "conductor orchestration orchestrated digital session musician musicians sound soundtrack mv chorus "
    # Spanish, Portuguese, French, Italian, German, Russian, Polish, Turkish, Indonesian
    "letra letras música musica compositor compositores compuesta autor autores intérprete interpretada productor produtor arreglos arranjo composição "
    "paroles musique auteur auteurs compositeur compositeurs interprète réalisé réalisation arrangements testo testi autori compositore "
    "musik text texter komponist produzent gesang arrangeur слова музыка автор исполнитель композитор продюсер текст аранжировка słowa muzyka wykonawca "
    "söz müzik beste düzenleme söz-müzik lirik lagu pencipta penyanyi".split()
)
_CONNECTING = frozenset(["by", "and", "&", "of", "at", "in", "the", "de", "del", "da", "do", "par", "von", "und", "y", "e", "et", "for", "in-house", "与", "和", "及"])
# Labels that are credits wherever a colon follows; the others need another credit beside them.
_CERTAIN_LABEL = re.compile(
    r"(?:作|填|译|譯|訳)[词詞]|[作谱譜]曲|[编編]曲|[制製]作人?|出品人?|[监監][制製]|混音.*|[录錄録]音.*|母[带帶].*|[和]声|原唱|演唱|[词詞]曲|发行|發行|OP|SP|ISRC|ISWC|작사|작곡|편곡|"
    r"(?:lyrics?|music|words|written|composed|produced|arranged|mixed|mastered|recorded|performed|engineered|translated)(?: (?:and|&) \w+)* by|lyricists?|composers?|songwriters?|(?:executive )?producers?|"
    r"arrangers?|arrangement|arranged|mix(?:ed|ing)? engineer|mastering(?: engineer)?|publishers?|copyright|compositor(?:es)?|paroles|komponist|композитор|söz|music director|writers?|produced",
    re.IGNORECASE,
)
_BY = re.compile(
    r"(?P<label>(?:(?:lyrics?|music|words|songs?|written|composed|arranged|produced|mixed|mastered|recorded|performed|engineered|vocals?|"
    r"directed|published|distributed|original|all|instruments?|tracks?|guitars?|bass|drums|keyboards?|programmed|translated|adapted|prod\.?|&|and|,|/|\+)\s*)+\s*by)\b"
    r"\s*[:：]?\s*(?P<name>\S.{0,80})",
    re.IGNORECASE,
)
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
        if _CJK_LABEL.fullmatch(word) or word.casefold().strip(".()") in _ENGLISH_PARTS or word in (
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
        ):
            known += 1
        elif word.casefold().strip(".") not in _CONNECTING and not word.isdigit():
            return False
    return known > 0


def _credit_strength(text: str) -> int:
    """3: a credit whatever it stands beside; 2: one beside another; 1: a label and a colon, but unknown; 0: none."""
    if match := _BY.match(text.strip(" *-~【】[]()（）")):
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
        dashed = _DASHED.match(text)
        return 2 if dashed and _is_label(dashed["label"]) and not _SENTENCE_END.search(text) else 0
    if heading_of(text) is not None:
        return 0
    label = match["label"]
    if _is_label(label):
        if _SENTENCE_END.search(match["name"]) and not any(
            _CERTAIN_LABEL.fullmatch(part.strip()) for part in _label_parts(label)
        ):
            return 1
        compact = "".join(re.sub(r"\s+", " ", part).strip() for part in _label_parts(label)[:1])
        certain = any(
            _CERTAIN_LABEL.fullmatch(word) for part in _label_parts(label) for word in (part.strip(), *part.split())
        )
        return 3 if certain or (len(_label_parts(label)) > 1 and len(compact) > 1) else 2
    return 1


def _credits(lines: list[SortedLine], names: set[str]) -> list[SortedLine]:
    """Credits above the first sung line and below the last, each as a block, with the title line above them."""
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
        if strength:
            found.append((index, strength))
        elif (head and len(titles) < 2 and not any(strength > 1 for _, strength in found) and _may_be_title(line.text)) or (head and _is_title(line.text, names)):
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
    for line in lines:
        heading = heading_of(line.text) if line.kind == SUNG or line.why == _SAYS_NO_VOICE else None
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

_KNOWN_SPEAKER = (
    r"男[声聲生]?|女[声聲生]?|男女(?:[声聲合]|合唱)?|合[唱声聲]?|[齐齊][唱]?|独[唱白]?|獨[唱白]?|众|眾|全[体體]?|童[声聲]|旁白|[念道对對]白|[说說]唱|领唱|領唱|伴唱|和[声聲]|"
    r"男女|女男|全員|男性|女性|セリフ|台詞|합창|남|여|함께|"
    r"all|both|male|female|men|women|man|woman|boys?|girls?|duet|together|everyone|everybody|choir|backing|backing vocals|background|narrator|spoken|"
    r"singer \d|speaker \d|voice \d|vocalist \d|lead|m|f|m/f|b/g"
)
_SPEAKER_LINE = re.compile(
    rf"\s*[(（\[【<]?\s*(?:{_KNOWN_SPEAKER})\s*[)）\]】>]?\s*[:：]\s*(?P<rest>.*)", re.IGNORECASE
)
_SPEAKER_ALONE = re.compile(rf"\s*[(（\[【<]\s*(?:{_KNOWN_SPEAKER})\s*[)）\]】>]\s*(?P<rest>.*)", re.IGNORECASE)
_NAMED = re.compile(r"\s*[(（\[【]?(?P<name>[^:：()（）\[\]【】，。,.!?！？…]{1,24}?)[)）\]】]?\s*[:：]\s*(?P<rest>.*)")
_SAYING = re.compile(
    r"(?:[说說道问問喊唱想叫答是有写寫听聽见見云曰]|告诉我?|whisper\w*|s[ai]\w*d?|says?|tell\w*|told|asks?|asked|know|was|is|like|this|that|be|to|me|you)$",
    re.IGNORECASE,
)


def _speakers(lines: list[SortedLine]) -> list[SortedLine]:
    """Labels of who sings taken off their lines: known ones, and names of which at least two sing in turn."""
    names = _speaker_names(lines)
    result: list[SortedLine] = []
    for line in lines:
        match = None
        if line.kind == SUNG:
            match = _SPEAKER_LINE.fullmatch(line.text) or _SPEAKER_ALONE.fullmatch(line.text)
            if match is None and (named := _NAMED.fullmatch(line.text)) and named["name"].strip().casefold() in names:
                match = named
        if match is None:
            result.append(line)
            continue
        rest = match["rest"].strip()
        label = line.text[: match.start("rest")].strip()
        result.append(SortedLine(line.seconds, label if rest else line.text, SPEAKER, why="says who sings"))
        if rest:
            result.append(SortedLine(line.seconds, rest, SUNG))
    return result


def _speaker_names(lines: Sequence[SortedLine]) -> set[str]:
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
    if sum(map(len, said.values())) >= 3 and (len(said) >= 2 or known):
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


def all_kinds(lines: Iterable[SortedLine]) -> dict[str, int]:
    """How many lines there are of each kind, for a sentence; kinds without a line are left out."""
    counts = {kind: 0 for kind in KINDS}
    for kind, group in itertools.groupby(sorted(line.kind for line in lines)):
        counts[kind] = len(list(group))
    return {kind: count for kind, count in counts.items() if count}
