"""What becomes a caption and what does not: `python -m pytest tests/captions/test_caption.py`."""

import json

import pytest

from ace_lora.captions.caption import (
    Caption,
    UnusableAnswer,
    caption_question,
    caption_schema,
    check_lyrics,
    clean_tags,
    parse_caption,
    vocal_tag,
)

GOOD = {
    "genre": ["Rock", "pop"],
    "subgenre": ["indie rock"],
    "instrument": ["Guitar", "drums"],
    "tempo": ["fast"],
    "mood": ["happy", "rock"],
    "has_vocal": True,
    "vocal": ["female"],
    "lyrics": ["Hello morning", "goodbye night"],
}


def answer(**changes) -> str:
    return json.dumps({name: value for name, value in (GOOD | changes).items() if value is not ...}, ensure_ascii=False)


def parse(text: str, tags=True, lyrics=True) -> Caption:
    return parse_caption(text, tags=tags, lyrics=lyrics)


# --- Schema ---


def test_every_string_and_list_of_the_schema_is_bounded():
    schema = caption_schema(tags=True, lyrics=True)
    names = ("cannot_tell", "genre", "subgenre", "instrument", "tempo", "mood", "has_vocal", "vocal", "lyrics")
    assert schema["required"] == [*names]
    assert schema["additionalProperties"] is False
    for name, field in schema["properties"].items():
        if name in ("has_vocal", "cannot_tell"):
            assert field == {"type": "boolean"}
            continue
        assert field["type"] == "array"
        assert field["minItems"] == 0  # nothing has to be made up by a model that cannot tell
        assert field["maxItems"] <= 120
        assert field["items"]["pattern"].startswith("^")
        assert field["items"]["pattern"].endswith("}$")  # a repetition with an upper limit


def test_the_question_asks_for_what_the_schema_holds():
    for tags, lyrics in ((True, False), (False, True), (True, True)):
        asked = caption_question(tags=tags, lyrics=lyrics)
        names = caption_schema(tags=tags, lyrics=lyrics)["properties"]
        assert [name for name in ("cannot_tell", *GOOD) if f"\n{name}: " in asked] == list(names)
    assert "'zh'" in caption_question(tags=False, lyrics=True, language="zh")


# --- Answers that can be used ---


def test_tags_are_lower_case_unique_and_sorted():
    caption = parse(answer())
    assert caption.tags == ("drums", "fast tempo", "female vocal", "guitar", "happy", "indie rock", "pop", "rock")
    assert caption.has_vocal is True
    assert caption.lyrics == ("Hello morning", "goodbye night")


def test_tags_hold_nothing_that_cannot_be_written_or_is_no_word():
    caption = parse(
        answer(genre=["ro\x00ck", "\ud83d pop"], mood=["happy 😀", "🎵", "dr\u200beamy"], instrument=["instrument"])
    )
    assert caption.tags == ("dreamy", "fast tempo", "female vocal", "happy", "indie rock", "pop", "rock")


def test_without_a_voice_there_is_neither_vocal_tag_nor_lyrics():
    caption = parse(answer(has_vocal=False, vocal=["none"], lyrics=["(instrumental)"]))
    assert caption.has_vocal is False
    assert not any("vocal" in tag for tag in caption.tags)
    assert caption.lyrics == ()


def test_texts_stand_for_lists_and_vocal_may_be_missing_without_a_voice():
    caption = parse(answer(genre="Rock, Pop", tempo="slow", vocal=..., has_vocal=False, lyrics=[]))
    assert caption.tags == ("drums", "guitar", "happy", "indie rock", "pop", "rock", "slow tempo")


def test_only_lyrics():
    text = json.dumps({"has_vocal": True, "lyrics": ["one line", "", "another"]})
    assert parse(text, tags=False) == Caption((), True, ("one line", "", "another"))


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{answer()}\n```",
        f"Here it is:\n```\n{answer()}\n```\nI hope this helps.",
        str(GOOD),  # single quotes, True
        answer()[:-1] + ",}",
        "\ufeff" + answer(),
        f'<think>I hear {{guitars}}: {{"genre": ["pop"], "has_vocal": false}}?</think>\n{answer()}',
        f"The object {{genre, …}} is:\n```json\n{answer()}\n```\nI hope {{this}} helps.",
    ],
    ids=["fence", "prose around", "python quotes", "trailing comma", "bom", "thinking aloud", "braces around"],
)
def test_replies_of_unconstrained_servers_are_mended(text):
    assert parse(text) == parse(answer())


@pytest.mark.parametrize(
    ("tempo", "tags"),
    [
        ("fast (around 140)", ["fast tempo"]),
        ("fast 140", ["fast tempo"]),
        ("about 120-130", []),
        ("mid-tempo", ["medium tempo"]),
    ],
)
def test_numbers_beside_the_tempo_are_left_out(tempo, tags):
    assert set(parse(answer(tempo=[tempo])).tags) ^ set(parse(answer(tempo=[])).tags) == set(tags)


def test_times_that_a_model_makes_up_are_left_out():
    assert parse(answer(lyrics=["[00:12.50] [Verse 1]", "[00:14] one line", "[00:16]another"])).lyrics == (
        "[verse]",
        "one line",
        "another",
    )


# --- Answers that cannot ---


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ("This is a rock song.", "no JSON"),
        (answer()[:-3], "cut short"),
        (answer()[:40], "cut short"),
        (json.dumps([GOOD]), "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "lacks genre"),
        (answer(mood=...), "lacks mood"),
        (answer(has_vocal="yes"), "has_vocal"),
        (answer(has_vocal=None), "has_vocal"),
        (answer(genre={"a": 1}), "genre"),
        (answer(genre=[1, 2]), "genre"),
        (answer(genre=["rock"], subgenre=[], instrument=[], tempo=[], mood=["Rock"], vocal=[]), "one tag"),
        (answer(genre=[], subgenre=[], instrument=["none"], tempo=["N/A"], mood=[], vocal=[]), "no tag"),
        (answer(genre=["rock " * 30]), "repeats"),
        (answer(genre=["lalalalalalalalala"]), "repeats"),
        (answer(genre=["ro\ufffdck"]), "broken"),
        (answer(lyrics=[]), "lyrics are empty"),
        (answer(lyrics=["[verse]", "", "..."]), "lyrics are empty"),
        (answer(lyrics=["(Instrumental)"]), "lyrics are empty"),
        (answer(lyrics=["N/A"]), "lyrics are empty"),
        (answer(lyrics=["Lyrics not available.", "纯音乐，请欣赏"]), "lyrics are empty"),
        (answer(lyrics="la la la\n" * 11), "repeat"),
        (answer(lyrics=["a b", "c d", "e f"] * 9), "repeat"),
        (answer(lyrics=["yeah " * 13]), "repeats"),
        (answer(lyrics=["啊" * 30]), "repeats"),
        (answer(lyrics=["br\ufffdken"]), "broken"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_unusable(text, reason):
    with pytest.raises(UnusableAnswer, match=reason):
        parse(text)


def test_a_chorus_may_repeat_itself():
    check_lyrics(["la la la la"] * 10)
    check_lyrics(["one", "two", "three", "four"] * 8)
    check_lyrics(["na " * 12])


# --- Tags ---


@pytest.mark.parametrize(
    ("words", "tags"),
    [
        (["fast 120 BPM"], ["fast tempo"]),
        (["120bpm", "~ 98.5 BPM", "128 beats per minute", "tempo: around 90-95 bpm"], []),
        (["140 b.p.m.", "140 beats/min", "120 beats per min", "beats per minute: 90", "１２０ＢＰＭ"], []),
        (
            ["tempo 120", "tempo: 98.5", "Tempo of around 98", "mid-tempo (around 110)", "downtempo 90s"],
            ["downtempo 90s", "medium tempo"],
        ),
        (["slow (around 70 BPM)"], ["slow tempo"]),
        (["BPM: 120", "bpm 90", "BPM"], []),
        (["120"], []),
        (["80s", "808 bass", "k-pop", "r&b", "drum'n'bass"], ["808 bass", "80s", "drum and bass", "k-pop", "r&b"]),
        (["Rock,pop", "pop、folk", " jazz.  ", "ROCK"], ["folk", "jazz", "pop", "rock"]),
        (["None", "unknown", "n/a", "-", "*"], []),
        (["a very long sentence that describes the whole song"], []),
        (["two\nlines", "tab\tstop"], ["lines", "tab stop", "two"]),
    ],
)
def test_clean_tags(words, tags):
    assert clean_tags(words) == tags


@pytest.mark.parametrize(
    ("word", "tag"),
    [
        ("female", "female vocal"),
        ("Male ", "male vocal"),
        ("female vocals", "female vocal"),
        ("female vocal", "female vocal"),
        ("vocal harmonies", "vocal harmonies"),
        ("female, breathy", "female vocal, breathy vocal"),
        ("none", "none"),
        ("", ""),
    ],
)
def test_vocal_tag(word, tag):
    assert vocal_tag(word) == tag


def test_tempo_numbers_of_the_model_never_become_tags():
    caption = parse(answer(tempo=["120 bpm"], mood=["calm at 90 BPM"]))
    assert not any("bpm" in tag or "120" in tag or "90" in tag for tag in caption.tags)
    assert "calm" in caption.tags


def test_structure_tags_of_models_become_those_of_the_vocabulary():
    assert parse(answer(lyrics=["[Verse 1]", "Hello"])).lyrics == ("[verse]", "Hello")
