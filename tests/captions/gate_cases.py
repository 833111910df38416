"""Answers of captioning models by kind: (kind, what is changed in a good answer, what becomes of it).

What becomes of it: a reason (a part of it) for which the answer cannot be used, else the tags or lyrics that differ.
Made for these tests; half of the rows of a kind are answers that only look like the kind.
"""

from __future__ import annotations

from typing import Any

GOOD: dict[str, Any] = {
    "cannot_tell": False,
    "genre": ["rock"],
    "subgenre": [],
    "instrument": ["drums", "electric guitar"],
    "tempo": ["fast"],
    "mood": ["energetic"],
    "has_vocal": True,
    "vocal": ["male"],
    "lyrics": ["I keep the lantern burning low", "until the morning finds the door"],
}
TAGS = ["drums", "electric guitar", "energetic", "fast tempo", "male vocal", "rock"]
LINES = GOOD["lyrics"]
PINYIN = ["deng huo zai he mian man man san kai", "wo ba ming zi xie jin feng li lai"]

REFUSED = [
    *(
        ("refusal in tags", {"genre": [said]}, "refuses")
        for said in (
            "i cannot hear the audio",
            "unable to determine",
            "as an ai i cannot listen",
            "no audio provided",
            "无法识别",
            "抱歉，我无法听到音频",
            "申し訳ありません",
            "音声が提供されていません",
            "please provide the audio",
        )
    ),
    *(
        ("refusal in lyrics", {"lyrics": [said, "and so on"]}, "refuses")
        for said in (
            "I'm sorry, but I can't transcribe copyrighted lyrics.",
            "As an AI language model, I cannot listen to audio.",
            "I cannot provide the lyrics of this song",
            "The lyrics are not audible",
            "抱歉，我无法提供完整歌词",
            "作为AI，我无法听取音频",
            "申し訳ありませんが、歌詞を書き起こすことができません",
            "죄송합니다, 들을 수 없습니다",
            "Lo siento, no puedo escuchar el audio",
            "Please consult an official source.",
        )
    ),
    ("cannot tell", {"cannot_tell": True, "genre": [], "instrument": [], "mood": []}, "cannot tell"),
    (
        "nothing said",
        {"genre": ["unclear"], "instrument": ["not specified"], "tempo": ["unknown"], "mood": ["n/a"], "vocal": []},
        "no tag",
    ),
    ("one tag", {"genre": ["rock"], "instrument": [], "tempo": [], "mood": ["unclear mood"], "vocal": []}, "one tag"),
    (
        "hundreds of tags",
        {"mood": [f"mood {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300)]},
        "300|30\\d tags",
    ),
    ("contradiction", {"tempo": ["slow", "fast"]}, "slow and fast"),
    ("contradiction", {"tempo": ["slow"], "mood": ["fast-paced"]}, "slow and fast"),
    ("contradiction", {"genre": ["instrumental", "rock"]}, "calls the song instrumental"),
    ("contradiction", {"has_vocal": False, "lyrics": []}, "no voice and describes one"),
    ("contradiction", {"has_vocal": False, "vocal": []}, "no voice and writes lyrics"),
    ("Chinese tags", {"mood": ["躁动不安的"]}, "not in English"),
    ("Russian tags", {"genre": ["рок"]}, "not in English"),
    ("pinyin", {"lyrics": PINYIN}, "pinyin"),
    ("pinyin with tones", {"lyrics": ["dēng huǒ zài hé miàn", "màn màn sàn kāi le"]}, "pinyin"),
    *(
        ("subtitles alone", {"lyrics": lines}, "nothing|empty|silence")
        for lines in (
            ["Thank you for watching", "Please subscribe"],
            ["请不吝点赞 订阅 转发 打赏支持明镜与点点栏目"],
            ["ご視聴ありがとうございました"],
            ["시청해 주셔서 감사합니다"],
            ["Субтитры сделал DimaTorzok"],
            ["Thank you."],
            ["you"],
            ["[Music]", "♪♪"],
        )
    ),
]
CLEANED = [
    (
        "times",
        {"lyrics": ["0:20 until the morning", "(00:25) finds the door", "00:30 --> 00:35"]},
        {"lyrics": ["until the morning", "finds the door"]},
    ),
    (
        "times",
        {"lyrics": ["[00:12.50] [Verse 1]", "[00:14] one line", "[00:16]another"]},
        {"lyrics": ["[verse]", "one line", "another"]},
    ),
    ("thanks at the end", {"lyrics": [*LINES, "Thanks for watching!"]}, {"lyrics": LINES}),
    (
        "speakers",
        {"lyrics": ["Singer 1: hold the light", "Singer 2: till the day"]},
        {"lyrics": ["hold the light", "till the day"]},
    ),
    ("speakers", {"lyrics": ["男：灯火在河面", "女：慢慢散开"]}, {"lyrics": ["灯火在河面", "慢慢散开"]}),
    ("remarks on the sound", {"lyrics": ["[Music]", *LINES, "(applause)"]}, {"lyrics": LINES}),
    (
        "near-duplicates",
        {
            "genre": ["rock", "rock music", "rock 'n' roll", "rock and roll"],
            "instrument": ["electric guitar", "electric guitars", "guitar (electric)"],
            "vocal": ["male", "male vocals", "man's voice"],
        },
        {"tags": ["electric guitar", "energetic", "fast tempo", "male vocal", "rock", "rock and roll"]},
    ),
    (
        "Chinese tags",
        {"genre": ["摇滚"], "instrument": ["鼓", "电吉他"], "tempo": ["快"], "mood": ["激昂"], "vocal": ["男声"]},
        {"tags": TAGS},
    ),
    (
        "one vocabulary",
        {"genre": ["hip-hop"], "instrument": ["synths", "drum machine"], "tempo": ["mid-tempo"], "vocal": ["rapping"]},
        {"tags": ["drum machine", "energetic", "hip hop", "medium tempo", "rap vocal", "synthesizer"]},
    ),
    ("unsaid beside said", {"subgenre": ["unclear"], "mood": ["energetic", "not specified"]}, {"tags": TAGS}),
    # False friends
    (
        "sung, no refusal",
        {"lyrics": ["I can't hear you calling", "I'm sorry, I can't stay", "I cannot breathe without you"]},
        {"lyrics": ["I can't hear you calling", "I'm sorry, I can't stay", "I cannot breathe without you"]},
    ),
    (
        "sung, no thanks",
        {"lyrics": ["thank you", "thank you for the music"]},
        {"lyrics": ["thank you", "thank you for the music"]},
    ),
    (
        "English, no pinyin",
        {"lyrics": ["he can dance and she can sing", "hen and men can fan a long song"]},
        {"lyrics": ["he can dance and she can sing", "hen and men can fan a long song"]},
    ),
    ("la la, no pinyin", {"lyrics": ["la la la la", "na na na na"]}, {"lyrics": ["la la la la", "na na na na"]}),
    (
        "Italian, no pinyin",
        {"lyrics": ["ti amo, non mi lasciare mai", "sei la luna in fondo al mare"]},
        {"lyrics": ["ti amo, non mi lasciare mai", "sei la luna in fondo al mare"]},
    ),
    (
        "a singing bowl is no voice",
        {"instrument": ["singing bowl", "drums"], "has_vocal": False, "vocal": [], "lyrics": []},
        {"tags": ["drums", "energetic", "fast tempo", "rock", "singing bowl"]},
    ),
    (
        "no voice, said in its field",
        {"has_vocal": False, "vocal": ["none"], "lyrics": ["(instrumental)"]},
        {"lyrics": []},
    ),
    (
        "accents are Latin",
        {"genre": ["música popular"]},
        {"tags": ["drums", "electric guitar", "energetic", "fast tempo", "male vocal", "música popular"]},
    ),
]

DESCRIPTIONS = [
    (
        "The track has no drums and lacks electric guitar; it features a gentle acoustic guitar. It is not aggressive or dark. A soft female voice sings.",
        {"acoustic guitar", "gentle", "female vocal", "soft vocal"},
    ),
    (
        "A calm piano ballad without drums or bass, sung by a breathy female vocalist.",
        {"calm", "piano", "breathy vocal", "female vocal"},
    ),
    ("A pop song with drums, but no guitar. A male voice.", {"pop", "drums", "male vocal"}),
    (
        "It is not only energetic but also dark, a techno track with synth bass.",
        {"energetic", "dark", "techno", "synth bass"},
    ),
    (
        "A folk piece free of percussion. Neither sad nor dark, it is hopeful; violin and flute.",
        {"folk", "hopeful", "violin", "flute"},
    ),
    ("Rather than electric guitar, it uses a banjo. Country music, upbeat.", {"banjo", "country", "upbeat"}),
]
