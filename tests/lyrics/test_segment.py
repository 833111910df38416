"""Segmentation against the reference (golden), single rules, and our linear patterns against the literal ones."""

import json
import random
import re
from pathlib import Path

import pytest

from ace_lora.lyrics import segment as segment_module
from ace_lora.lyrics.segment import segment

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lyrics" / "lyrics.json").read_text(encoding="utf-8"))
SONGS = [song for song in GOLDEN["songs"] if "counts" in song]


def pairs(text):
    return [(item.language, item.text) for item in segment(text).segments]


@pytest.mark.parametrize("song", SONGS, ids=lambda song: song["name"])
def test_every_golden_song(song):
    result = segment(song["text"])
    assert [list(count) for count in result.counts] == song["counts"]
    if "segments" in song:
        assert [[item.language, item.text] for item in result.segments] == song["segments"]


def test_the_example_of_the_spec():
    text = "[verse]\nHello my friend, how are you\nI got 99 problems\n\n[chorus]\nOh yeah\nOMG the USA"
    assert pairs(text) == [
        (
            "en",
            "[verse]\n Hello my friend, how are you\n I got  99  problems\n\n [chorus]\n Oh yeah\n O M G the U S A ",
        )
    ]
    assert segment(text).counts == [("en", 96), ("zh", 4)]


def test_text_without_any_record():
    assert segment("").segments == []
    assert segment(" \n\n \n").counts == [("zh", 0)]


def test_leading_blank_lines_vanish_and_those_behind_a_line_stay():
    assert pairs("\n \n\n我们一起走\n\n\n去看海吧朋友") == [("zh", "我们一起走\n\n\n去看海吧朋友")]


def test_sentence_ends_before_trailing_spaces_lose_their_line_break():
    assert pairs("Hello my old friend. \nHow are you my friend")[0][1] == (
        "Hello my old friend. How are you my friend "
    )


def test_a_piece_held_back_at_the_end_of_the_song_is_not_lost():
    """A short quotation in Han at the very end, whose language nothing settles any more."""
    joined = "".join(text for _, text in pairs('我们一起唱\n他说"你好"'))
    assert joined == '我们一起唱\n他说"你好"'


def test_songs_do_not_influence_each_other():
    first = pairs('他说"你好"')
    segment("Oh yeah (你好")
    assert pairs('他说"你好"') == first


def test_cuneiform_of_the_user_is_not_mistaken_for_a_mark():
    text = '𒀀𒀀𒀀 他说"Hello world 𒀀"然后离开 𒀀'
    assert without_spaces("".join(text for _, text in pairs(text))) == without_spaces(text)


def without_spaces(text):
    return re.sub(r"[\s-]", "", text)


POOLS = (
    *(
        "abcXYZ love USA",
        "éèàßłşÉ",
        "0123456789１２３",
        "。.?？!！,，、",
        "【《（(“‘\"'’”)）》】[]<>",
        "我你他们爱中国一二两",
    ),
    *("あいうカタカナー", "한국어가나", "абвЁж", "ฉันรัก", "مرحبا", "नमस्ते", "\n\n\n  \t\u3000\r", "😀🎵♪"),
    *("🀄\u200d\ufe0f\u0301", "^$_²①𒀀"),
)


def random_texts(seed, number, length):
    source = random.Random(seed)
    for _ in range(number):
        pools = source.sample(POOLS, source.randrange(1, 6))
        yield "".join(source.choice(source.choice(pools)) for _ in range(source.randrange(length)))


def test_no_character_but_spaces_and_hyphens_is_ever_lost_or_moved():
    for text in random_texts(seed=1, number=600, length=60):
        joined = "".join(item.text for item in segment(text).segments)
        assert without_spaces(joined) == without_spaces(text), text


def test_linear_patterns_find_what_the_literal_ones_of_the_spec_find():
    openers = "[【《（(“‘\"']"

    def script_run(letters):
        return re.compile(rf"(?:{openers}*[{letters}]+\W*)+")

    literal_runs = {
        "ko": script_run("\uac00-\ud7a3"),
        "th": script_run("\u0e00-\u0e7f"),
        "ru": script_run("А-яЁё"),
    }
    latin = script_run(segment_module._LATIN_LETTERS)
    number = re.compile(r"\W*\d+\W+\d*\W*\d*")
    quote = re.compile(r"""(["'])(.*?)\1""")
    sentence = re.compile(r".*?[。.?？!！]+\n?|.+", re.DOTALL)

    def spans(pattern, text):
        return [match.span() for match in pattern.finditer(text)]

    for text in random_texts(seed=2, number=1500, length=25):
        for kind, pattern in segment_module._SCRIPT_RUNS:
            assert list(segment_module._script_run_spans(pattern, text)) == spans(literal_runs[kind], text), text
        assert list(segment_module._script_run_spans(segment_module._LATIN_RUN, text)) == spans(latin, text), text
        assert list(segment_module._number_spans(text)) == spans(number, text), text
        assert spans(segment_module._QUOTE, text) == spans(quote, text), text
        assert segment_module._SENTENCE.findall(text) == sentence.findall(text), text
