"""Answers of ACE-Step's captioner and transcriber: `python -m pytest tests/test_acestep_answers.py`."""

import pytest

from ace_lora.captions.acestep import answer_style, parse_description, parse_transcription
from ace_lora.captions.caption import Caption, UnusableAnswer


@pytest.mark.parametrize(
    ("model", "style"),
    [
        ("Qwen/Qwen2.5-Omni-7B", "json"),
        ("ACE-Step/acestep-captioner", "captioner"),
        ("ACE-Step/acestep-transcriber", "transcriber"),
        ("D:\\models\\acestep-transcriber", "transcriber"),
        ("/m/models--ACE-Step--acestep-captioner/snapshots/0123abcd", "captioner"),
    ],
)
def test_style(model, style):
    assert answer_style(model) == style


def test_description_with_a_voice():
    caption = parse_description(
        "This is an energetic pop-punk track driven by distorted electric guitars and punchy acoustic drums. "
        "A raspy male vocal sings an anthemic melody over a fast tempo of 170 BPM."
    )
    assert caption.has_vocal is True
    assert caption.lyrics == ()
    assert set(caption.tags) >= {
        "anthemic",
        "energetic",
        "fast tempo",
        "pop punk",
        "male vocal",
        "raspy vocal",
    }
    assert not any("bpm" in tag for tag in caption.tags)
    assert list(caption.tags) == sorted(set(caption.tags))


@pytest.mark.parametrize(
    "prose",
    [
        "A calm instrumental piece for piano and strings.",
        "A dreamy ambient track with synth pads. There are no vocals.",
        "An epic, purely instrumental orchestral score with brass and timpani.",
    ],
)
def test_description_without_a_voice(prose):
    caption = parse_description(prose)
    assert caption.has_vocal is False
    assert not any("vocal" in tag for tag in caption.tags)
    assert len(caption.tags) >= 2


def test_longer_names_win():
    caption = parse_description("Deep house with electric piano.")
    assert caption.tags == ("deep house", "electric piano")


@pytest.mark.parametrize("prose", ["", "I cannot hear anything.", "Some rock."])
def test_useless_descriptions(prose):
    with pytest.raises(UnusableAnswer):
        parse_description(prose)


def test_transcription():
    caption = parse_transcription(
        "# Languages\nen\n\n# Lyrics\n[Intro]\n\n[Verse 1]\nHello morning\n\n[Chorus - loud]\nWe are free\n[Outro]\n"
    )
    assert caption == Caption(
        (), True, ("[intro]", "", "[verse]", "Hello morning", "", "[chorus]", "We are free", "[outro]")
    )


def test_sections_behind_the_lyrics_are_not_lyrics():
    caption = parse_transcription("## Lyrics:\n[Verse]\nHello morning\n# Notes\nsung softly")
    assert caption.lyrics == ("[verse]", "Hello morning")


@pytest.mark.parametrize(
    "body", ["[Instrumental]", "[Intro]\n[Instrumental]\n[Outro]", "", "Instrumental", "N/A", "(no vocals)"]
)
def test_transcription_without_a_voice(body):
    assert parse_transcription(f"# Languages\nunknown\n# Lyrics\n{body}") == Caption((), False)


@pytest.mark.parametrize("answer", ["", "Hello morning", "# Languages\nen", "# Lyrics\n" + "la la\n" * 20])
def test_useless_transcriptions(answer):
    with pytest.raises(UnusableAnswer):
        parse_transcription(answer)
