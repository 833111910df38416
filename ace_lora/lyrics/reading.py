"""What the model will read of a song's lyrics, and everything the user should know of it before a training.

One function for preprocessing and for `python -m ace_lora.lyrics read`: what is said here first is what step 5 says.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace_lora.commands import WrongInput
from ace_lora.lyrics.language import is_decomposed, language_remarks
from ace_lora.lyrics.text import STRUCTURE_TAGS, heading_of
from ace_lora.lyrics.timed import TimedLine, attach_times, crop, has_times, parse_timed, strip_times
from ace_lora.lyrics.tokenize import LyricTokenizer, LyricTokens, check_language


@dataclass(frozen=True)
class LyricReading:
    """`text` is what was tokenised to `tokens`; `timed_lines` has the times of all lines, empty where none are known.

    `cropped`: lines that lie behind the end of the cropped audio. `warnings` and, for what the cropping does,
    `cropping_warnings`: sentences without the song's name.
    """

    text: str
    tokens: LyricTokens
    timed_lines: list[TimedLine]
    cropped: list[str]
    warnings: list[str]
    cropping_warnings: list[str]


def read_lyrics(
    tokenizer: LyricTokenizer,
    lyrics: str,
    timed_lyrics: str = "",
    *,
    language: str | None = None,
    song: str = "",
    cropped_at: float | None = None,
) -> LyricReading:
    """Lyrics as the model gets them. Of timed lyrics only the lines before `cropped_at` seconds are used.

    Raises WrongInput for a language that the model does not know, MissingLyricSupport as the tokenizer does.
    """
    warnings = []
    if is_decomposed(lyrics):
        warnings.append(
            "The letters of these lyrics are decomposed (NFD); they are read as if they were composed. Save them "
            "composed (NFC) to be sure of what other programs make of them."
        )
        lyrics, timed_lyrics = (unicodedata.normalize("NFC", text) for text in (lyrics, timed_lyrics))
    lines, text = [], lyrics
    if has_times(lyrics):
        lines, text = parse_timed(lyrics), strip_times(lyrics)
    elif timed_lyrics:
        lines = attach_times(lyrics, timed_lyrics)
    if all(line.seconds is None for line in lines):
        lines = []
    cropped: list[str] = []
    cropping_warnings: list[str] = []
    if cropped_at is not None:
        if lines:
            text = crop(lines, 0.0, cropped_at)
            cropped = [
                line.text for line in lines if line.seconds is not None and line.seconds >= cropped_at and line.text
            ]
        elif text.strip():
            cropping_warnings.append("its lyrics have no times, so they are kept whole though the audio is cropped")
    tokens = tokenizer.tokenize(text, language or None, song)
    warnings += tokens.warnings
    warnings += language_remarks(text, tokens, language or None)
    return LyricReading(text, tokens, lines, cropped, warnings, cropping_warnings)


def mended(lyrics: str, lines: Sequence[str] = ()) -> str:
    """`lyrics` with what can be mended for certain: composed letters, headings as the model's tags, nothing unknown.

    `lines`: characters that the model does not know, which are taken out of sung lines.
    """
    text = unicodedata.normalize("NFC", lyrics)
    unknown = {character for line in lines for character in line}
    result = []
    for line in text.split("\n"):
        heading = heading_of(line)
        if heading is None or line.strip().lower() in (*STRUCTURE_TAGS, "[instrumental]"):
            result.append(line if line.strip().lower() in STRUCTURE_TAGS else _without(line, unknown))
        else:
            result += [heading.tag, *([_without(heading.rest, unknown)] if heading.rest else [])]
    return "\n".join(result)


def _without(line: str, unknown: set[str]) -> str:
    kept = "".join(" " if character.lower() in unknown or character in unknown else character for character in line)
    return line if kept == line else " ".join(kept.split())


# --- The song's own setting ---


def song_language(about: Path) -> str | None:
    """The language that `<song>_lyrics.json` sets for its song; None where it sets none or there is no such file.

    Raises WrongInput where it names one that the model does not know, or cannot be read.
    """
    try:
        said = json.loads(about.read_text(encoding="utf-8")) if about.exists() else {}
    except (OSError, ValueError) as error:
        raise WrongInput(
            f"'{about}' cannot be read ({error}). Expected the JSON that step 3 writes beside the lyrics. "
            "Restore it, or remove it: then the language is found from the text."
        ) from error
    language = said.get("language") if isinstance(said, dict) else None
    if not language:
        return None
    try:
        check_language(str(language))
    except WrongInput as error:
        raise WrongInput([f"'{about}': {problem}" for problem in error.problems]) from error
    return str(language)
