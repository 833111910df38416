"""One vocabulary for the tags of all backends: what models write, in the words that prompts use.

    hip-hop -> hip hop, female vocals -> female vocal, fast -> fast tempo, 摇滚 -> rock

Tags that say the same become one; tags of no language but English are translated where that is certain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

TEMPOS = ("slow tempo", "medium tempo", "fast tempo")
# The tag, then what else is written for it.
_SAME = """
slow tempo: slow, slow-paced, slow paced, adagio, largo, slow-tempo, slow beat, slowly
medium tempo: medium, moderate, moderate tempo, mid-tempo, midtempo, mid tempo, mid-paced, andante, medium-tempo,
    medium paced, moderately paced
fast tempo: fast, fast-paced, fast paced, up-tempo, uptempo, up tempo, allegro, presto, quick, fast-tempo, very
    fast, high tempo, rapid
rock: rock music, rock song
rock and roll: rock 'n' roll, rock n roll, rock'n'roll, rock & roll, rock n' roll
pop: pop music, pop song
hip hop: hip-hop, hiphop, hip hop music, hip-hop music
lo-fi: lofi, lo fi
lo-fi hip hop: lofi hip hop, lo-fi hip-hop, lofi hip-hop
trip hop: trip-hop
drum and bass: drum & bass, drum n bass, drum'n'bass, dnb, d&b, drum 'n' bass
r&b: rnb, r & b, r and b, rhythm and blues, rhythm & blues
synth-pop: synthpop, synth pop
pop punk: pop-punk
indie rock: indie-rock
indie pop: indie-pop
j-pop: jpop, j pop, japanese pop
k-pop: kpop, k pop, korean pop
c-pop: cpop, chinese pop
electronic: electronic music, electronica
edm: electronic dance music
classical: classical music
ambient: ambient music
folk: folk music
jazz: jazz music
country: country music
metal: metal music
heavy metal: heavy-metal
singer-songwriter: singer songwriter
a cappella: acapella, a capella, acappella
electric guitar: electric guitars, guitar (electric), guitars (electric), e-guitar
acoustic guitar: acoustic guitars, guitar (acoustic), guitars (acoustic)
guitar: guitars
bass guitar: electric bass, bass guitars, electric bass guitar
drums: drum, drum kit, drum set, drumset, drumkit, acoustic drums, live drums
drum machine: drum machines, electronic drums, electronic drum
synthesizer: synth, synths, synthesizers, synthesiser, synthesisers
synth pads: synth pad, pads, pad
piano: pianos, acoustic piano, grand piano
keyboard: keyboards, keys
strings: string, string section, string ensemble
violin: violins
trumpet: trumpets
saxophone: saxophones, sax
flute: flutes
claps: clap, handclaps, hand claps, handclap
808 bass: 808, 808s, 808 basses
male vocal: male vocals, male voice, male singer, man's voice, male vocalist, men's voice, man singing, male
    singing, male lead vocal, man vocal
female vocal: female vocals, female voice, female singer, woman's voice, female vocalist, women's voice, woman
    singing, female singing, female lead vocal, woman vocal
rap vocal: rapping, rapped, rapper, rapped vocal
choir: choirs, choral vocals, choir vocal
backing vocals: background vocals, backup vocals, backing vocal, background vocal, harmony vocals, vocal harmonies,
    vocal harmony
duet: duet vocal, duet vocals
melancholic: melancholy
sad: sorrowful, sadness
happy: happiness
energetic: high energy, high-energy, energy
uplifting: uplift
relaxing: relaxed, chill, chilled
romantic: romance
dreamy: dreamlike, dream-like
nostalgic: nostalgia
"""
_CHINESE = """
摇滚 rock; 流行 pop; 流行音乐 pop; 民谣 folk; 说唱 rap; 嘻哈 hip hop; 电子 electronic; 电子音乐 electronic;
爵士 jazz; 蓝调 blues; 布鲁斯 blues; 古典 classical; 古风 guofeng; 国风 guofeng; 中国风 guofeng; 乡村 country;
金属 metal; 重金属 heavy metal; 朋克 punk; 雷鬼 reggae; 灵魂乐 soul; 放克 funk; 轻音乐 easy listening; 抒情 ballad;
华语流行 mandopop; 粤语流行 cantopop; 舞曲 dance; 鼓 drums; 架子鼓 drums; 吉他 guitar; 电吉他 electric guitar;
木吉他 acoustic guitar; 原声吉他 acoustic guitar; 贝斯 bass guitar; 钢琴 piano; 键盘 keyboard; 合成器 synthesizer;
小提琴 violin; 大提琴 cello; 弦乐 strings; 笛子 dizi; 二胡 erhu; 古筝 guzheng; 琵琶 pipa; 萨克斯 saxophone;
小号 trumpet; 口琴 harmonica; 打击乐 percussion; 快 fast tempo; 快速 fast tempo; 快节奏 fast tempo; 慢 slow tempo;
慢速 slow tempo; 慢节奏 slow tempo; 中 medium tempo; 中速 medium tempo; 中等 medium tempo; 适中 medium tempo;
中等速度 medium tempo; 激昂 energetic; 激情 passionate; 欢快 happy; 快乐 happy; 悲伤 sad; 忧伤 sad; 伤感 sad;
忧郁 melancholic; 温柔 gentle; 温暖 warm; 浪漫 romantic; 平静 calm; 安静 calm; 宁静 peaceful; 放松 relaxing;
治愈 soothing; 怀旧 nostalgic; 梦幻 dreamy; 黑暗 dark; 愤怒 angry; 励志 uplifting; 史诗 epic; 深情 emotional;
抒情的 lyrical; 活力 energetic; 动感 energetic; 轻快 upbeat; 孤独 lonely; 神秘 mysterious; 男声 male vocal;
男 male vocal; 女声 female vocal; 女 female vocal; 男生 male vocal; 女生 female vocal; 童声 child vocal;
合唱 choir; 对唱 duet; 说唱人声 rap vocal; ロック rock; ポップ pop; ポップス pop; 女性ボーカル female vocal;
男性ボーカル male vocal; ピアノ piano; ギター guitar; エレキギター electric guitar; ドラム drums;
ベース bass guitar; 速い fast tempo; 遅い slow tempo; 明るい bright; 切ない bittersweet; 悲しい sad; 搖滾 rock;
民謠 folk; 說唱 rap; 電子 electronic; 爵士樂 jazz; 電吉他 electric guitar; 鋼琴 piano; 鍵盤 keyboard;
男聲 male vocal; 女聲 female vocal; 悲傷 sad; 歡快 happy; 溫柔 gentle; 快節奏 fast tempo; 慢節奏 slow tempo
"""
_CANONICAL = {
    other.strip(): tag
    for line in _SAME.replace("\n    ", " ").strip().split("\n")
    for tag, _, others in [line.partition(": ")]
    for other in others.split(",")
}
_TRANSLATIONS = dict(entry.split(" ", 1) for entry in re.split(r";\s*", _CHINESE.strip()) if entry)


def canonical(tag: str) -> str:
    """The word of the vocabulary for a clean lower-case tag; the tag itself where it has none."""
    return _CANONICAL.get(tag) or _TRANSLATIONS.get(tag) or tag


def foreign(tags: Iterable[str]) -> list[str]:
    """Tags in other than Latin letters: the model's text encoder was trained with English ones."""
    return [tag for tag in tags if any(character.isalpha() and ord(character) > 0x24F for character in tag)]


def contradictions(tags: Sequence[str], has_vocal: bool | None) -> list[str]:
    """Sentences on tags that cannot both be true of one recording."""
    found = []
    tempos = [tag for tag in tags if tag in TEMPOS]
    if "slow tempo" in tempos and "fast tempo" in tempos:
        found.append("the tags call the tempo slow and fast")
    if has_vocal and any(tag in NO_VOICE_TAGS for tag in tags):
        found.append("the answer hears a voice and calls the song instrumental")
    if has_vocal is False and (voices := [tag for tag in tags if is_vocal(tag)]):
        found.append(f"the answer hears no voice and describes one ({', '.join(voices)})")
    return found


NO_VOICE_TAGS = (
    "instrumental",
    "no vocal",
    "no vocals",
    "without vocals",
    "no voice",
    "non-vocal",
    "instrumental music",
)


def is_vocal(tag: str) -> bool:
    """Whether a tag describes a voice that is there."""
    return tag not in NO_VOICE_TAGS and bool(
        re.search(r"\bvocals?\b|\bvocalist\b|\bvoices?\b|\bsing(?:er|ing)\b", tag)
        and not re.search(r"\b(?:no|without|non)\b|\bvocal (?:samples?|chops?)\b|\bsinging (?:bowls?|saw)\b", tag)
    )


def united(parts: Sequence[Sequence[str]]) -> list[str]:
    """The tags of a song that was heard in parts, of which none contradicts another.

    Of several tempos the one of most parts stays, and none where no part decides; that a part is instrumental is not
    said of a song that is sung in another.
    """
    tags = {tag for part in parts for tag in part}
    tempos = [tag for part in parts for tag in part if tag in TEMPOS]
    if len(set(tempos)) > 1:
        ranked = sorted(set(tempos), key=tempos.count, reverse=True)
        tags -= set(TEMPOS)
        if tempos.count(ranked[0]) > tempos.count(ranked[1]):
            tags.add(ranked[0])
    if any(is_vocal(tag) for tag in tags):
        tags -= set(NO_VOICE_TAGS)
    return sorted(tags)
