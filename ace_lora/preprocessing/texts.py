"""Prompts and lyrics as token ids, and the times of the lyrics' lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ace_lora.base_weights.model_config import read_model_config
from ace_lora.commands import WrongInput
from ace_lora.lyrics.packages import MissingLyricSupport, version_warnings
from ace_lora.lyrics.reading import read_lyrics
from ace_lora.lyrics.tokenize import LyricTokenizer
from ace_lora.lyrics.vocabulary import load_vocabulary
from ace_lora.preprocessing.work import SongWork, TokenizedLyrics
from ace_lora.v1.text_encoder import exceeds_limit, load_text_tokenizer, tokenize_prompt

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tokenize_prompts(works: Sequence[SongWork], text_encoder: Path) -> None:
    """Set `text_ids` of every song; what the model will not read is said."""
    tokenizer = load_text_tokenizer(text_encoder)
    for work in works:
        work.text_ids = tokenize_prompt(tokenizer, work.song.prompt)
        for warning in prompt_warnings(tokenizer, work.song.prompt):
            print(f"warning: {work.name}: {warning}")


def prompt_warnings(tokenizer: Tokenizer, prompt: str) -> list[str]:
    """Sentences on what the model will not read of a prompt, without the song's name."""
    if not exceeds_limit(tokenizer, prompt):
        return []
    return [
        f"its tags are longer than the {len(tokenize_prompt(tokenizer, prompt))} tokens that the model reads, so the "
        "last ones are left out. Shorten the prompt to the tags that matter."
    ]


def tokenize_all_lyrics(
    works: Sequence[SongWork], vocabulary: Path, transformer: Path | None, language: str
) -> LyricTokenizer:
    """Set `lyrics` of every song, as if none were cropped, and return what did it.

    `language` is "" where each song's text tells. Raises WrongInput where a language needs packages that are missing.
    """
    for warning in version_warnings():
        print(f"warning: {warning}")
    missing = []
    try:
        tokenizer = LyricTokenizer(load_vocabulary(vocabulary, embedding_rows(transformer)))
        for work in works:
            try:
                tokenize_lyrics(work, tokenizer, language)
            except MissingLyricSupport as error:
                missing.append(str(error))
    except MissingLyricSupport as error:
        missing.append(str(error))
    if missing:
        raise WrongInput(missing)
    return tokenizer


def embedding_rows(transformer: Path | None) -> int | None:
    """Rows of the base model's lyric embedding, to check that the vocabulary is its own; None where it is not here."""
    if transformer is None or not (transformer / "config.json").is_file():
        return None
    return read_model_config(transformer).get("lyric_encoder_vocab_size")


def tokenize_lyrics(work: SongWork, tokenizer: LyricTokenizer, language: str, cropped_at: float | None = None) -> None:
    """Set `work.lyrics`. Of timed lyrics, only the lines before `cropped_at` seconds are used.

    The song's own language comes before `language`.
    """
    song = work.song
    read = read_lyrics(
        tokenizer,
        song.lyrics,
        song.timed_lyrics,
        language=song.lyric_language or language,
        song=work.name,
        cropped_at=cropped_at,
    )
    # Said once: the lines were read before the audio was found to be cropped, too.
    for warning in read.warnings if cropped_at is None else read.cropping_warnings:
        print(f"warning: {work.name}: {warning}")
    timed_lines = [[line.seconds, line.text] for line in read.timed_lines]
    tokens = read.tokens
    work.lyrics = TokenizedLyrics(list(tokens.ids), tokens.main_language or None, read.text, timed_lines)
