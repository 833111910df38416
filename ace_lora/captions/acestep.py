"""ACE-Step's own captioner and transcriber: Qwen2.5-Omni checkpoints that want their own question and answer in text.

The captioner describes a song in prose, from which the words that are tags are taken. The transcriber answers with
`# Languages` and `# Lyrics` sections, the lyrics with structure tags.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from ace_lora.captions.caption import (
    Caption,
    UnusableAnswer,
    gated_lyrics,
    gated_tags,
)
from ace_lora.lyrics.phrases import stands_for_no_lyrics
from ace_lora.lyrics.text import sung_lines

QUESTIONS = {
    "captioner": "*Task* Describe this audio in detail",
    "transcriber": "*Task* Transcribe this audio in detail",
}

# What a description may be searched for. Longer names win over the shorter ones inside them.
_GENRES = """
acoustic, afrobeat, alternative rock, ambient, americana, anime, arena rock, baroque, bebop, big band, black metal,
blues, blues rock, bluegrass, boom bap, bossa nova, breakbeat, britpop, c-pop, cantopop, celtic, chamber music,
chillout, chillwave, chiptune, choral, cinematic, city pop, classical, country, country rock, cumbia, dance, dance-pop,
dancehall, dark ambient, death metal, deep house, disco, doo-wop, downtempo, dream pop, drill, drum and bass, dub,
dubstep, edm, electro, electro house, electronic, electropop, emo, enka, eurodance, experimental, flamenco, folk,
folk rock, funk, future bass, gangsta rap, garage, garage rock, glam rock, glitch, gospel, gothic rock, grime, grunge,
guofeng, hard rock, hardcore, hardstyle, heavy metal, hip hop, hip-hop, house, hyperpop, idm, indie, indie folk,
indie pop, indie rock, industrial, j-pop, j-rock, jazz, jazz fusion, jungle, k-pop, klezmer, latin, latin pop,
lo-fi, lo-fi hip hop, lounge, mandopop, mariachi, math rock, melodic house, metal, metalcore, minimal, motown,
neo soul, neo-classical, new age, new wave, noise, nu metal, opera, orchestral, phonk, pop, pop punk, pop rock,
pop-punk, post-punk, post-rock, power metal, power pop, progressive house, progressive metal, progressive rock,
psychedelic, psychedelic rock, psytrance, punk, punk rock, r&b, ragtime, rap, rap rock, reggae, reggaeton, rock,
rock and roll, rockabilly, salsa, samba, schlager, shoegaze, singer-songwriter, ska, smooth jazz, soft rock, soul,
soundtrack, surf rock, swing, symphonic metal, synth-pop, synthpop, synthwave, tango, tech house, techno, thrash metal,
trance, trap, trip hop, trip-hop, tropical house, trot, uk garage, vaporwave, waltz, world music
"""
_INSTRUMENTS = """
808 bass, accordion, acoustic bass, acoustic drums, acoustic guitar, arpeggiator, bagpipes, banjo, bass, bass drum,
bass guitar, bassoon, bongos, brass, cello, choir, clarinet, claps, clavinet, congas, cymbals, distorted guitar,
distorted electric guitar, dizi, djembe, double bass, drum machine, drums, electric bass, electric guitar,
electric piano, erhu, fiddle, finger snaps, flute, french horn, glockenspiel, gong, guitar, guzheng, handclaps,
harmonica, harp, harpsichord, hi-hats, horns, kalimba, keyboards, koto, mandolin, marimba, mellotron, music box, oboe,
orchestra,
organ, oud, pads, pan flute, percussion, piano, pipa, pizzicato strings, rhodes, saxophone, shakuhachi, shamisen,
sitar, slide guitar, snare, steel drums, string section, strings, sub-bass, suona, synth, synth bass, synth lead,
synth pads, synthesizer, synthesizers, tabla, taiko, tambourine, theremin, timpani, triangle, trombone, trumpet, tuba,
turntables, ukulele, upright bass, vibraphone, viola, violin, woodwinds, xylophone
"""
_MOODS = """
aggressive, angry, anthemic, anxious, atmospheric, bittersweet, bouncy, bright, calm, carefree, catchy, cheerful,
chill, confident, contemplative, dark, defiant, desperate, determined, dramatic, dreamy, driving, eerie, emotional,
empowering, energetic, epic, ethereal, euphoric, exciting, festive, fierce, gentle, gloomy, groovy, happy, haunting,
heartfelt, heroic, hopeful, hypnotic, inspiring, intense, intimate, introspective, joyful, laid-back, lively, lonely,
longing, lush, majestic, meditative, melancholic, melancholy, mellow, mysterious, mystical, nostalgic, ominous,
optimistic, passionate, peaceful, playful, positive, powerful, quirky, raw, rebellious, reflective, relaxed, relaxing,
romantic, sad, sensual, sentimental, serene, sexy, sombre, somber, soothing, soulful, spiritual, spooky, sultry,
suspenseful, sweet, tender, tense, tragic, triumphant, upbeat, uplifting, urgent, vulnerable, warm, whimsical, wistful,
yearning
"""
_TEMPOS = """
slow tempo, mid-tempo, medium tempo, moderate tempo, fast tempo, fast-paced, slow-paced, up-tempo, uptempo, downtempo
"""
_VOICES = """
male, female, child, androgynous, duet, choral, a cappella, autotuned, auto-tuned, baritone, bass-baritone, belted,
breathy, clean, deep, falsetto, gravelly, gritty, growled, harmonized, high-pitched, husky, layered, melodic, nasal,
operatic, powerful, rap, rapped, raspy, robotic, screamed, shouted, smooth, soprano, spoken, spoken word, soulful,
soft, tenor, vocoded, whispered
"""
# Up to three adjectives between the description of the voice and the word for it: "a soft, breathy female vocal".
_VOICE_WORDS = r"(?:vocal(?:s|ist|ists)?|voices?|singers?|rapper|rappers|singing)"
_NO_VOICE = re.compile(
    r"\b(?:no|without(?: any)?|lacks?(?: any)?|absence of|free of)\s+(?:\w+\s+)?(?:vocals?|voices?|singing|lyrics)\b"
    r"|\b(?:purely|entirely|completely|fully|wholly|strictly)\s+instrumental\b"
    r"|\b(?:an?|this|the)\s+(?:[\w-]+[\s,]+){0,4}instrumental\s+(?:track|piece|composition|song|recording|work|music)\b"
    r"|\binstrumental music\b",
    re.IGNORECASE,
)
_VOICE = re.compile(
    rf"\b{_VOICE_WORDS}\b|\b(?:sings|sung|raps|rapped|lyrics|lyrical|chorus is sung|choir)\b", re.IGNORECASE
)


def answer_style(model: str) -> str:
    """`captioner` or `transcriber` for ACE-Step's two checkpoints, by hub name or folder name, else `json`."""
    for part in reversed(PurePath(model.replace("\\", "/")).parts):
        # A folder of the hub's cache is called models--ACE-Step--acestep-captioner.
        name = part.casefold()
        for style in QUESTIONS:
            if f"acestep-{style}" in name:
                return style
    return "json"


def parse_description(prose: str) -> Caption:
    """Tags and whether somebody sings, from the captioner's prose. Raises UnusableAnswer."""
    text = " ".join(prose.split())
    if not text:
        raise UnusableAnswer("the answer is empty")
    has_vocal = bool(_VOICE.search(without_negations(text))) and not _NO_VOICE.search(text)
    text = without_negations(text)
    # All at once: the longest name wins over one of another list inside it ("acoustic guitar" is no acoustic song).
    tags = _named_in(text, ",".join((_GENRES, _INSTRUMENTS, _MOODS, _TEMPOS)))
    if has_vocal:
        for match in re.finditer(rf"((?:[\w-]+[\s,]+(?:and\s+)?){{1,4}}){_VOICE_WORDS}\b", text, re.IGNORECASE):
            tags += [f"{voice} vocal" for voice in _named_in(match.group(1), _VOICES)]
    return Caption(gated_tags(tags, has_vocal), has_vocal)


def parse_transcription(answer: str) -> Caption:
    """Lyrics, with structure tags, from the transcriber's sections. Raises UnusableAnswer.

    Lyrics of nothing but structure tags mean that nobody sings.
    """
    if not answer.strip():
        raise UnusableAnswer("the answer is empty")
    heading = re.search(r"^#+\s*Lyrics\s*:?\s*$", answer, re.IGNORECASE | re.MULTILINE)
    if heading is None:
        raise UnusableAnswer("the answer has no '# Lyrics' section")
    body = re.split(r"^#+\s", answer[heading.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    written = [line for line in body.split("\n") if line.strip() and not stands_for_no_lyrics(line)]
    if not sung_lines(written):
        return Caption((), has_vocal=False)
    return Caption((), has_vocal=True, lyrics=gated_lyrics(body, has_vocal=True))


# "no drums", "lacks electric guitar", "not aggressive or dark", "rather than", up to the end of what is denied.
_NEGATION = re.compile(
    r"\b(?:no|not|non|without|lack(?:s|ing)?(?: of)?|absence of|absent|free of|devoid of|never|neither|nor|rather than|"
    r"instead of|isn't|aren't|doesn't|don't|does not|do not|avoid(?:s|ing)?|exclud(?:es|ing)|omit(?:s|ting)?|minus|"
    r"hardly|barely)\b"
    # A comma ends it unless it is one of a list: "no drums, bass or guitar".
    r"(?:[^.;:!?,]|,(?=[^.;:!?]*\b(?:or|nor)\b))*?"
    r"(?=[.;:!?,]|,? (?:but|yet|however|although|though|while|instead|featuring|with|it|which|"
    r"and (?:it|the|a|an|has|features|is|there))\b|$)",
    re.IGNORECASE,
)
_NOT_ONLY = re.compile(
    r"\bnot (?:only|just|merely)\b|\bno(?:t| longer)? (?:less|doubt|unlike|nonsense|frills)\b|\bnon-stop\b",
    re.IGNORECASE,
)


def without_negations(text: str) -> str:
    """`text` without what it says is not there: "no drums, but strings" gives " , but strings"."""
    return _NEGATION.sub(" ", _NOT_ONLY.sub(" ", text))


def _named_in(text: str, names: str) -> list[str]:
    """The names of a comma-separated list that stand in `text` as whole words, longest first, none inside another."""
    wanted = sorted(
        {name.strip() for name in names.replace("\n", " ").split(",") if name.strip()}, key=len, reverse=True
    )
    pattern = (
        r"(?<![\w&-])(?:"
        + "|".join(map(re.escape, sorted(wanted, key=lambda name: (-len(name), name))))
        + r")(?![\w&-])"
    )
    return [match.group().lower() for match in re.finditer(pattern, text, re.IGNORECASE)]
