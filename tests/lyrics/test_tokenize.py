"""Token ids against the reference (golden; needs the published vocabulary), and what the user is told.

The sentences are tested with a small vocabulary of single letters, so that they run everywhere.
"""

import json
import os
import random
import re
import string
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from ace_lora.commands import WrongInput
from ace_lora.lyrics import japanese
from ace_lora.lyrics.cleaners import SUPPORTED_LANGUAGES
from ace_lora.lyrics.packages import MissingLyricSupport
from ace_lora.lyrics.text import STRUCTURE_TAGS, suggest_structure_tag
from ace_lora.lyrics.tokenize import MAX_TOKENS, LyricTokenizer
from ace_lora.lyrics.vocabulary import PUBLISHED_SIZE, load_vocabulary

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lyrics" / "lyrics.json").read_text(encoding="utf-8"))
NO_VOCABULARY = "set ACE_LYRIC_VOCAB to the published lyric vocabulary (vocab.json) to run this test"


@pytest.fixture(scope="module")
def published():
    path = os.environ.get("ACE_LYRIC_VOCAB")
    if not path:
        pytest.skip(NO_VOCABULARY)
    return LyricTokenizer(load_vocabulary(Path(path), PUBLISHED_SIZE))


LANGUAGE_TAGS = [f"[{language}]" for language in SUPPORTED_LANGUAGES if language != "zh"] + ["[zh-cn]"]
SMALL_TOKENS = [
    *("[STOP]", "[UNK]", "[SPACE]", "[START]"),
    *LANGUAGE_TAGS,
    *STRUCTURE_TAGS,
    *(string.ascii_lowercase + string.digits + ".,!?'()"),
]
START = SMALL_TOKENS.index("[START]")


@pytest.fixture(scope="module")
def small():
    entries = {token: number for number, token in enumerate(SMALL_TOKENS)}
    vocabulary = Tokenizer(models.BPE(vocab=entries, merges=[], unk_token="[UNK]", fuse_unk=False))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    vocabulary.add_tokens([AddedToken(t, normalized=False, special=True) for t in SMALL_TOKENS if t[0] == "["])
    return LyricTokenizer(vocabulary)


def small_ids(language_tag, text):
    return [SMALL_TOKENS.index(language_tag)] + [2 if c == " " else SMALL_TOKENS.index(c) for c in text]


def skip_without_japanese(needed):
    if needed:
        try:
            japanese.require_japanese()
        except MissingLyricSupport as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("song", GOLDEN["songs"], ids=lambda song: song["name"])
def test_every_golden_song(published, song):
    skip_without_japanese(song["name"].startswith("ja_"))
    result = published.tokenize(song["text"])
    if song["ids"] is None:
        assert result.ids == song["fallback_ids"]
        assert result.main_language == song["fallback_main"]
        assert any(warning.startswith("The language was detected as ") for warning in result.warnings)
    else:
        assert result.ids == song["ids"]
        assert result.ids_before_cut == song["n_before_truncation"]


@pytest.mark.parametrize("language", SUPPORTED_LANGUAGES)
def test_every_golden_line(published, language):
    skip_without_japanese(language == "ja")
    for line in GOLDEN["lines"]:
        if line["lang"] == language:
            assert published._encode(line["line"], language).ids == line["ids"], line["line"]


def test_instrumental_is_the_convention_and_no_cause_for_a_warning(published):
    result = published.tokenize("[instrumental]")
    assert result.ids == [261, 259, 1, 718, 1951, 763, 56, 1, 2]
    assert (result.warnings, result.unknown_lines) == ([], [])


def test_random_text_gives_ids_in_range_and_never_raises(published):
    skip_without_japanese(True)
    source = random.Random(6)
    pools = [
        "abc XYZ",
        "éßłşÉ",
        "0123１",
        "。.?！,",
        "【（(“\"'”)】[]<>",
        "我你爱",
        "あカー",
        "한국",
        "абЁ",
        "ฉัน",
        "مر",
        "नम",
    ]
    pools += ["\n\n \t\u3000\r", "😀♪", "£$€%&@#°", "年月个元万/%-+", "\u200d\ufe0f\u0301", "^$²①"]
    for _ in range(400):
        if source.random() < 0.2:
            letters = [
                chr(source.choice([source.randrange(1, 0x3000), source.randrange(0xE000, 0x20000)])) for _ in "a" * 30
            ]
        else:
            letters = [source.choice(source.choice(source.sample(pools, 4))) for _ in range(source.randrange(40))]
        text = "".join(letters)
        result = published.tokenize(text, language=source.choice([None, None, *SUPPORTED_LANGUAGES]))
        assert result.ids, ascii(text)
        assert all(0 <= token < PUBLISHED_SIZE for token in result.ids), ascii(text)


def test_a_line_of_a_hundred_kilobytes_is_tokenised(published):
    """Each of these took minutes or longer with the patterns of the spec taken literally."""
    size = 100_000
    repeated = ("(", "!", "'", ". ", "write a ", "<a>")
    texts = ["a" + " " * size + "b", *(part * (size // len(part)) for part in repeated)]
    # Chinese lines cost what pypinyin takes for each character, so fewer of them.
    texts += ["1" * 30_000 + "a", "1." * 10_000, "我们一起走 " * 2_000]
    for text in texts:
        assert len(published.tokenize(text).ids) <= MAX_TOKENS


def test_empty_lyrics_and_the_filtered_sentence(small):
    for text in ("", " \n\t\n"):
        result = small.tokenize(text)
        assert (result.ids, result.main_language, result.warnings) == ([0], "", [])
    result = small.tokenize("hello\nPlease write a sad song that genre is pop")
    assert result.ids == [0]
    assert len(result.warnings) == 1 and result.warnings[0].endswith("Remove that line.")
    assert small.tokenize("write a\nsad song that genre is").ids != [0]
    assert small.tokenize("write a song that genre is").ids != [0]


def test_ids_of_a_small_song(small):
    result = small.tokenize(
        "[verse]\nThe porch light flickers on a quiet road\n\nEvery town we drive through looks the same"
    )
    assert result.ids == [
        START,
        *(SMALL_TOKENS.index("[en]"), SMALL_TOKENS.index("[verse]"), 2),
        *(*small_ids("[en]", "the porch light flickers on a quiet road"), 2),
        2,
        *(*small_ids("[en]", "every town we drive through looks the same"), 2),
    ]
    assert (result.main_language, result.warnings, result.unknown_lines) == ("en", [], [])
    assert result.ids_before_cut == len(result.ids)


def test_the_user_may_say_the_language(small):
    text = "Hello my old friend, hello again my friend"
    result = small.tokenize(text, language="de")
    assert result.ids == [START, *small_ids("[de]", text.lower()), 2]
    assert result.main_language == "de"
    assert small.tokenize("", language=small.tokenize("").main_language).ids == [0]
    assert small.tokenize(text, language="") == small.tokenize(text)
    with pytest.raises(WrongInput) as caught:
        small.tokenize(text, language="xx")
    assert caught.value.problems[0].startswith(
        "The lyric language 'xx' is not one that the model knows. Expected one of:"
    )


def test_an_unsupported_language_falls_back_and_says_so(small):
    song = next(song for song in GOLDEN["songs"] if song["name"] == "en_no_tags")
    result = small.tokenize(song["text"])
    assert result.main_language == song["fallback_main"]
    assert result.warnings[0] == (
        "The language was detected as Malay (ms), which the model does not know; Spanish (es) is used. "
        "If that is wrong, set the language of this song."
    )
    assert small.tokenize(song["text"], language="en").warnings == []


def test_unknown_structure_tags_are_reported_with_what_to_write(small):
    text = "[主歌]\nHello my old friend\n[Verse 1]\nHello my friend\n[主歌]\n[xyz]\nHello my old friend again\n[Chorus]"
    result = small.tokenize(text, language="en")
    assert result.unknown_lines == ["[主歌]", "[Verse 1]", "[xyz]"]
    assert result.warnings == [
        "The model does not know the structure tags '[主歌]' '[Verse 1]' (3 lines); write [verse].",
        f"The model does not know the structure tag '[xyz]' (1 line); write one of {' '.join(STRUCTURE_TAGS)}, "
        "or remove it.",
    ]


def test_full_width_brackets_are_no_structure_tag(small):
    result = small.tokenize("【副歌】\nHello my old friend, hello again", language="en")
    assert "The line '【副歌】' would be sung, because of its brackets; write [chorus]." in result.warnings


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("Verse 2", "[verse]"),
        ("主歌", "[verse]"),
        ("副歌 x2", "[chorus]"),
        ("Pre Chorus", "[pre-chorus]"),
        ("PRE-CHORUS 1", "[pre-chorus]"),
        ("Post-Chorus", "[chorus]"),
        ("Guitar Solo", "[solo]"),
        ("间奏", "[inst]"),
        ("Interlude", "[inst]"),
        ("サビ", "[chorus]"),
        ("후렴", "[chorus]"),
        ("Куплет 1", "[verse]"),
        ("Refrain", "[chorus]"),
        ("weekend", None),
        ("whispered", None),
        ("", None),
    ],
)
def test_suggestions(name, tag):
    assert suggest_structure_tag(name) == tag


def test_unknown_characters_are_reported_with_the_line_as_typed(small):
    result = small.tokenize(
        "Hello my old friend\nOMG my old friend ♪❤\ufe0f\nOMG my old friend ♪❤\ufe0f", language="en"
    )
    assert result.unknown_lines == ["OMG my old friend ♪❤\ufe0f"]
    assert result.warnings == [
        "The model does not know these characters: ♪ ❤ U+FE0F (1 line, first: 'OMG my old friend ♪❤\ufe0f'). "
        "Replace or remove them."
    ]


def test_text_behind_a_tag_is_read_as_english(small):
    result = small.tokenize("[verse] Über den Dächern wird es still", language="de")
    assert any(warning.startswith("Text behind a structure tag is read as English") for warning in result.warnings)


def test_a_line_that_cannot_be_encoded_is_left_out_and_said(small):
    whole = small.tokenize("Goodbye my old friend", language="en")
    result = small.tokenize("\ud800 hello\nGoodbye my old friend", language="en")
    assert result.ids == whole.ids
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith("This line cannot be encoded and is left out (")
    assert "'? hello'" in result.warnings[0]


def test_markup_is_warned_of(small):
    assert (
        small.tokenize("I <3 you and <en> you", language="en").warnings[0].startswith("The model does not know these")
    )
    for text in ("<en>my old friend</en>", "my <b>old\n</b>friend"):
        warning = small.tokenize(text, language="en").warnings[-1]
        assert warning.startswith("The lyrics hold markup such as '<en>text</en>'.")
    assert not any("markup" in warning for warning in small.tokenize("</en>my <en>", language="en").warnings)


def test_the_cut_is_reported_with_the_lines_that_are_lost(small):
    lines = [f"{number:03d} hello my old friend hello my old friend" for number in range(150)]
    result = small.tokenize("\n".join(lines), language="hi")  # Hindi leaves the digits alone
    assert len(result.ids) == MAX_TOKENS
    (warning,) = [warning for warning in result.warnings if "tokens" in warning]
    lost = int(re.search(r"the last (\d+) lines", warning).group(1))
    assert warning == (
        f"The lyrics make {result.ids_before_cut} tokens and the model takes 4096: the last {lost} lines, "
        f"from '{lines[-lost]}', are left out, in whole or in part. Shorten the lyrics or split the song."
    )
    # The last id of a text is the break behind its last line; a break that is cut off loses no words.
    assert small.tokenize("\n".join(lines[:-lost]), language="hi").ids_before_cut <= MAX_TOKENS + 1
    assert small.tokenize("\n".join(lines[: 1 - lost]), language="hi").ids_before_cut > MAX_TOKENS + 1


def test_missing_japanese_is_never_swallowed(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "cutlet", None)
    japanese._load_cutlet.cache_clear()
    try:
        with pytest.raises(MissingLyricSupport, match=r"^The lyrics of 'よる' contain Japanese\. Install"):
            small.tokenize("夜の駅で君を待っていた\n冷たい風が頬をなでる", song="よる")
        # A single line of another song that asks for it, because it has a character unknown in the main language.
        with pytest.raises(MissingLyricSupport, match=r"The line that needs it: '夜の駅で君を待っていた'"):
            small.tokenize("夜の駅で君を待っていた", language="en", song="one line")
        assert small.tokenize("Hello my old friend").main_language
    finally:
        japanese._load_cutlet.cache_clear()
