"""Lyrics with times: reading, writing, editing, cropping."""

import random

import pytest

from ace_lora.lyrics.timed import (
    TimedLine,
    attach_times,
    crop,
    format_timed,
    has_times,
    parse_timed,
    split,
    strip_times,
)


def lines(*pairs):
    return [TimedLine(seconds, text) for seconds, text in pairs]


LRC = """\ufeff[ti:Song of the road]
[ar: Nobody]
[al:]
[length:03:20]
[by:someone]
[#:a comment]

[verse]
[00:12.50]First line
[00:17]Second line

[chorus]
[00:30.00][01:30.00]Sung twice
[00:35.125] [01:35.1]Twice as well

[verse 2]
[01:00.00]Third line
[outro]
"""


def test_a_whole_file():
    assert parse_timed(LRC) == lines(
        (None, "[verse]"),
        (12.5, "First line"),
        (17.0, "Second line"),
        (None, ""),
        (None, "[chorus]"),
        (30.0, "Sung twice"),
        (35.125, "Twice as well"),
        (None, ""),
        (None, "[verse 2]"),
        (60.0, "Third line"),
        (None, "[chorus]"),
        (90.0, "Sung twice"),
        (95.1, "Twice as well"),
        (None, "[outro]"),
    )


def test_strip_times_gives_the_lyrics_as_sung():
    assert strip_times(LRC) == (
        "[verse]\nFirst line\nSecond line\n\n[chorus]\nSung twice\nTwice as well\n\n[verse 2]\nThird line\n"
        "[chorus]\nSung twice\nTwice as well\n[outro]"
    )


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("[0:05]", 5.0),
        ("[00:05]", 5.0),
        ("[1:02.3]", 62.3),
        ("[01:02.34]", 62.34),
        ("[01:02.345]", 62.345),
        ("[01:02:34]", 62.34),
        ("[01:02,34]", 62.34),
        ("[01:02:03.50]", 3723.5),
        ("[120:00.00]", 7200.0),
        ("[ 01 : 02.30 ]", 62.3),
        ("[01：02]", 62.0),
    ],
)
def test_stamps(stamp, seconds):
    assert parse_timed(f"{stamp}words") == lines((seconds, "words"))
    assert parse_timed(f"  {stamp}  words ") == lines((seconds, "words"))


@pytest.mark.parametrize(
    "text",
    [
        "[verse]",
        "[chorus 2]",
        "[verse: Anna]",
        "[2:chorus]",
        "[12]",
        "[x:12]",
        "[]",
        "[Verse 1:2 people]",
        "at 12:30",
        "(01:02)",
        "[主歌]",
        "[1٢:30]",
    ],
)
def test_what_is_no_time(text):
    assert not has_times(text)
    assert parse_timed(text) == lines((None, text))
    assert strip_times(text) == text
    assert parse_timed(f"{text}\n[00:10.00]words") == lines((None, text), (10.0, "words"))


def test_text_without_times_is_returned_as_it_is():
    text = "\n  [verse]\r\nline  \n\n\n\nline\n"
    assert strip_times(text) == text


def test_the_offset_makes_lines_earlier_wherever_it_stands():
    assert parse_timed("[00:01.00]a\n[00:10.00]b\n[offset:+1500]") == lines((0.0, "a"), (8.5, "b"))
    assert parse_timed("[Offset: -500]\n[00:10.00]b") == lines((10.5, "b"))
    assert parse_timed("[offset:abc]\n[00:10.00]b") == lines((10.0, "b"))


def test_stamps_of_single_words_are_dropped():
    assert parse_timed("[00:12.00]<00:12.00> Hello <00:12.50> my <00:13.00>friend") == lines((12.0, "Hello my friend"))
    assert parse_timed("[00:12.00]<00:12.00>你<00:12.50>好") == lines((12.0, "你好"))
    assert parse_timed("[00:12.00]Hello [00:12.50]my [00:13.00]friend") == lines((12.0, "Hello my friend"))


def test_a_time_behind_the_words_or_behind_a_tag_counts():
    assert parse_timed("Hello [00:12.00]") == lines((12.0, "Hello"))
    assert parse_timed("[verse] [00:12.00] Hello") == lines((12.0, "[verse] Hello"))
    assert parse_timed("[00:12.00][verse]") == lines((12.0, "[verse]"))


def test_lines_come_in_the_order_in_which_they_are_sung():
    assert parse_timed("[00:20.00]b\n[00:10.00]a\n[00:20.00]b, translated") == lines(
        (10.0, "a"), (20.0, "b"), (20.0, "b, translated")
    )


def test_untimed_text_stays_behind_its_line_and_empty_times_remain():
    assert parse_timed("[00:10.00][00:30.00]a\nmore of a\n[00:20.00]\n[00:40.00]b") == lines(
        (10.0, "a"), (None, "more of a"), (20.0, ""), (30.0, "a"), (None, "more of a"), (40.0, "b")
    )


def test_line_ends_of_every_system():
    for end in ("\n", "\r\n", "\r"):
        assert parse_timed(f"[00:10.00]a{end}[00:20.00]b{end}") == lines((10.0, "a"), (20.0, "b"))


def test_nothing():
    assert parse_timed("") == []
    assert parse_timed("[ti:x]\n\n[ar:y]") == []
    assert strip_times("") == ""
    assert not has_times("")


def test_written_lines_are_read_back():
    assert format_timed(lines((None, "[verse]"), (0.0, "a"), (59.999, "b"), (None, ""), (3725.5, "c"))) == (
        "[verse]\n[00:00.00]a\n[01:00.00]b\n\n[62:05.50]c"
    )
    parsed = parse_timed(LRC)
    rounded = [TimedLine(None if line.seconds is None else round(line.seconds, 2), line.text) for line in parsed]
    assert parse_timed(format_timed(parsed)) == rounded


# --- Times for edited lyrics ---

SUNG = """[00:10.00]The porch light flickers
[00:15.00]on a quiet road
[00:20.00]Every town looks the same
[00:25.00]Oh yeah"""


def test_times_follow_edited_lines():
    edited = "[verse]\nThe porch-light flickers!\n\non a very quiet road\na line that is new\n[outro]\noh, yeah"
    assert attach_times(edited, SUNG) == lines(
        (None, "[verse]"),
        (10.0, "The porch-light flickers!"),
        (None, ""),
        (15.0, "on a very quiet road"),
        (None, "a line that is new"),
        (None, "[outro]"),
        (25.0, "oh, yeah"),
    )


def test_a_repeated_chorus_gets_its_times_one_after_the_other():
    timed = "[00:10.00][00:30.00]Oh yeah\n[00:20.00]Every town"
    assert attach_times("Oh yeah\nEvery town\nOh yeah", timed) == lines(
        (10.0, "Oh yeah"), (20.0, "Every town"), (30.0, "Oh yeah")
    )


def test_chinese_lines_and_lines_that_were_joined():
    timed = "[00:10.00]清晨的雾气漫过石板桥\n[00:15.00]老茶馆的灯笼轻轻在摇\n[00:20.00]再见"
    assert attach_times("清晨的雾气,漫过石桥\n老茶馆的灯笼轻轻在摇 再见", timed) == lines(
        (10.0, "清晨的雾气,漫过石桥"), (15.0, "老茶馆的灯笼轻轻在摇 再见")
    )


def test_lyrics_of_other_words_get_no_times():
    assert attach_times("完全不同\n的歌词", SUNG) == lines((None, "完全不同"), (None, "的歌词"))
    assert attach_times("a\nb", "") == lines((None, "a"), (None, "b"))


def test_lyrics_with_times_of_their_own_keep_them():
    assert attach_times("[00:11.00]Oh yeah", SUNG) == lines((11.0, "Oh yeah"))


def test_times_never_run_backwards():
    source = random.Random(7)
    words = ["love", "night", "river", "you", "and", "me", "forever", "baby", "dance", "moon", "light"]
    for _ in range(40):
        song = [" ".join(source.choices(words, k=5)) for _ in range(20)]
        timed = "\n".join(f"[00:{10 + number:02d}.00]{line}" for number, line in enumerate(song))
        edited = [line.replace("love", "hate") for line in song if source.random() < 0.8]
        source.shuffle(edited[5:9])
        times = [line.seconds for line in attach_times("\n".join(edited), timed) if line.seconds is not None]
        assert times == sorted(times)
        assert len(times) >= len(edited) // 2


# --- Cropping ---

SONG = lines(
    (None, "[intro]"),
    (None, ""),
    (None, "[verse]"),
    (10.0, "a"),
    (15.0, "b"),
    (None, "b, continued"),
    (None, ""),
    (None, "[chorus]"),
    (30.0, "c"),
    (35.0, "d"),
    (None, "[outro]"),
)


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [
        (0, 100, "[intro]\n\n[verse]\na\nb\nb, continued\n\n[chorus]\nc\nd\n[outro]"),
        (0, 30, "[intro]\n\n[verse]\na\nb\nb, continued"),
        (0, 15, "[intro]\n\n[verse]\na"),
        (12, 40, "[verse]\nb\nb, continued\n\n[chorus]\nc\nd\n[outro]"),
        (15, 16, "[verse]\nb\nb, continued"),
        (30, 35, "[chorus]\nc"),
        (31, 40, "[chorus]\nd\n[outro]"),
        (16, 30, ""),
        (40, 90, ""),
    ],
)
def test_crop(start, end, text):
    assert crop(SONG, start, end) == text


def test_crop_without_times_or_tags():
    assert crop(lines((None, "[verse]"), (None, "a")), 0, 1) == "[verse]\na"
    assert crop([], 0, 1) == ""
    assert crop(lines((5.0, "a"), (20.0, "b")), 10, 30) == "b"


def test_a_timed_tag_governs_and_is_kept_by_its_own_time():
    song = lines((0.0, "[verse]"), (5.0, "a"), (10.0, "b"), (20.0, "[inst]"), (40.0, "[chorus] c"), (45.0, "d"))
    assert crop(song, 8, 30) == "[verse]\nb\n[inst]"
    assert crop(song, 42, 60) == "[chorus]\nd"
    assert crop(song, 15, 30) == "[inst]"


def test_cropping_what_was_parsed_keeps_only_lines_of_the_window():
    assert crop(parse_timed(LRC), 0, 40) == "[verse]\nFirst line\nSecond line\n\n[chorus]\nSung twice\nTwice as well"
    assert crop(parse_timed(LRC), 92, 200) == "[chorus]\nTwice as well\n[outro]"


def test_random_text_is_read_without_errors_and_quickly():
    source = random.Random(8)
    for _ in range(2000):
        text = "".join(source.choice("[[]]<>0123459::.,：  \n\tofset:ti你[00:1") for _ in range(source.randrange(60)))
        parsed = parse_timed(text)
        strip_times(text)
        crop(parsed, 10, 100)
        assert parse_timed(format_timed(parsed)) is not None
        attach_times(text, SUNG)
    for part in ("[", "[00:", "[00:01" + " " * 50, "[00:01.00]", "[verse]", " ", "<00:01.00>", "[00:01:"):
        text = part * (100_000 // len(part))
        parse_timed(text)
        strip_times(text)


# --- Pieces of a song ---

LINES = parse_timed("[verse]\n[00:10.00]a\n[00:20.00]b\n\n[chorus]\n[00:30.00]c\n[00:40.00]d\n[00:95.00]e")


def test_pieces_of_a_song_get_their_own_lines():
    assert [format_timed(piece) for piece in split(LINES, [0, 35, 60, 90, 120])] == [
        "[verse]\n[00:10.00]a\n[00:20.00]b\n\n[chorus]\n[00:30.00]c",
        "[chorus]\n[00:05.00]d",
        "",
        "[chorus]\n[00:05.00]e",
    ]


def test_a_line_on_an_edge_belongs_to_the_piece_behind_it():
    assert [[line.text for line in piece if line.seconds is not None] for piece in split(LINES, [0, 30, 100])] == [
        ["a", "b"],
        ["c", "d", "e"],
    ]


def test_no_piece_gets_the_lyrics_of_the_whole():
    assert split([TimedLine(None, "[verse]"), TimedLine(None, "a")], [0, 30, 60]) is None
