"""Asking a model that listens: as often as an answer is of no use, and in parts where a song is longer than it hears.

numpy and PyTorch are imported when a song is asked about.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ace_lora.audio.analysis import TooLittleSound, is_silent, mix_down, require_sound
from ace_lora.captions.caption import Caption, UnusableAnswer
from ace_lora.captions.tags import united
from ace_lora.lyrics.cleaners import SUPPORTED_LANGUAGES
from ace_lora.lyrics.language_id import identify, language_name, squash
from ace_lora.lyrics.segment import segment
from ace_lora.lyrics.text import sung_lines

if TYPE_CHECKING:
    import numpy as np

    from ace_lora.audio.decode import Waveform

# What captioning models hear: mono at this rate, in Hz, and so many seconds at once; what is longer
# their feature extractor cuts without a word.
CAPTION_RATE = 16_000
LONGEST_SECONDS = 300.0

# Probability from which the guess for a whole text is believed. Measured on short lyrics in 30 languages: 0.93 or more
# for 10 of the 11 unknown ones, and no known language taken for an unknown one; "la la la" is Catalan with 0.87.
_CERTAIN = 0.9

# The first answer is the model's most likely one; the others are sampled, each with more freedom.
ATTEMPTS = 4
TEMPERATURES = (0.0, 0.6, 0.8, 1.0)


class SongFailed(Exception):
    """A song for which nothing can be written; the text says why and what to do. The other songs go on."""


class Captioner(Protocol):
    """A model that listens. One call is one attempt."""

    gives_tags: bool
    longest_seconds: float  # that it hears at once

    def ask(self, samples: np.ndarray, *, tags: bool, lyrics: bool, language: str | None, attempt: int) -> Caption:
        """What the model says of `samples` [N], float32 mono at 16 kHz; `attempt` counts from 0 and sets the sampling.

        Raises UnusableAnswer, SongFailed (asking again is of no use), StepFailed (for no song is it).
        """
        ...


def ask_until_usable(ask: Callable[[int], Caption], say: Callable[[str], None]) -> Caption:
    """The first usable answer of `ask(attempt)`. Raises SongFailed after `ATTEMPTS` unusable ones."""
    for attempt in range(ATTEMPTS):
        try:
            return ask(attempt)
        except UnusableAnswer as error:
            reason = str(error)
            if attempt + 1 < ATTEMPTS:
                say(f"answer {attempt + 1} of at most {ATTEMPTS} is of no use ({reason}); asking again")
    raise SongFailed(
        f"no usable answer in {ATTEMPTS} attempts; the last one: {reason}. "
        "Write the text by hand, or try another --seed or --model"
    )


def check_language(lyrics: Sequence[str]) -> None:
    """Raise UnusableAnswer when `lyrics` are in a language that ACE-Step's lyric tokenizer does not know.

    Two guesses must agree, because either alone takes syllables such as `la la la` for Welsh: that of the tokenizer,
    which guesses line by line, and that for the whole text.
    """
    sung = "\n".join(sung_lines(lyrics))
    if not sung:
        return
    language, probability = identify(squash(sung))
    counts = segment(sung).counts
    known = sum(count for code, count in counts if code in SUPPORTED_LANGUAGES)
    if (
        language not in SUPPORTED_LANGUAGES
        and probability >= _CERTAIN
        and known <= sum(count for _, count in counts) / 2
    ):
        raise UnusableAnswer(
            f"the lyrics are in {language_name(language)}, which ACE-Step's lyric tokenizer does not know"
        )


# --- One song ---


def caption_waveform(
    captioner: Captioner,
    waveform: Waveform,
    *,
    tags: bool,
    lyrics: bool,
    language: str | None,
    say: Callable[[str], None],
) -> Caption:
    """What `captioner` says of a song; one longer than it hears is captioned in parts, which are merged."""
    import torch

    from ace_lora.audio.decode import resample

    try:
        # A model describes silence as well.
        require_sound(waveform.samples, waveform.rate)
    except TooLittleSound as error:
        raise SongFailed(str(error)) from error
    mono = torch.from_numpy(mix_down(waveform.samples))
    heard = resample(mono[None], waveform.rate, CAPTION_RATE)[0].clamp(-1, 1).numpy()
    bounds = part_bounds(len(heard), int(captioner.longest_seconds * CAPTION_RATE))
    if len(bounds) > 1:
        say(
            f"{len(heard) / CAPTION_RATE:.0f} s is more than the {captioner.longest_seconds:.0f} s that the model "
            f"hears at once: captioned in {len(bounds)} parts"
        )

    parts = []
    for start, end in bounds:
        if len(bounds) > 1 and is_silent(heard[start:end]):
            continue

        def ask(attempt: int, part: np.ndarray = heard[start:end]) -> Caption:
            caption = captioner.ask(part, tags=tags, lyrics=lyrics, language=language, attempt=attempt)
            if language is None:
                check_language(caption.lyrics)
            return caption

        parts.append(ask_until_usable(ask, say))
    return merge_captions(parts)


def merge_captions(parts: Sequence[Caption]) -> Caption:
    """One caption of a song whose parts were captioned in their order: tags that go together, all lines, any voice."""
    tags = united([part.tags for part in parts])
    heard = [part.has_vocal for part in parts if part.has_vocal is not None]
    lyrics = [line for part in parts for line in part.lyrics]
    return Caption(tuple(tags), any(heard) if heard else None, tuple(lyrics))


def part_bounds(length: int, longest: int) -> list[tuple[int, int]]:
    """`[0, length)` in the fewest equal parts of at most `longest` samples each."""
    count = max(1, -(-length // longest))
    edges = [round(index * length / count) for index in range(count + 1)]
    return list(itertools.pairwise(edges))
