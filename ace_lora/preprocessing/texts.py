"""Prompts and lyrics as token ids, and the times of the lyrics' lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ace_lora.base_weights.model_config import read_model_config
from ace_lora.commands import WrongInput
from ace_lora.lyrics.packages import MissingLyricSupport, version_warnings
from ace_lora.lyrics.timed import attach_times, crop, has_times, parse_timed, strip_times
from ace_lora.lyrics.tokenize import LyricTokenizer
from ace_lora.lyrics.vocabulary import load_vocabulary
from ace_lora.preprocessing.work import SongWork, TokenizedLyrics
from ace_lora.v1.text_encoder import exceeds_limit, load_text_tokenizer, tokenize_prompt


def tokenize_prompts(works: Sequence[SongWork], text_encoder: Path) -> None:
    """Set `text_ids` of every song; what the model will not read is said."""
    tokenizer = load_text_tokenizer(text_encoder)
    for work in works:
        work.text_ids = tokenize_prompt(tokenizer, work.song.prompt)
        if exceeds_limit(tokenizer, work.song.prompt):
            print(
                f"warning: {work.name}: its tags are longer than the {len(work.text_ids)} tokens that the model "
                "reads, so the last ones are left out. Shorten the prompt to the tags that matter."
            )


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
        tokenizer = LyricTokenizer(load_vocabulary(vocabulary, _embedding_rows(transformer)))
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


def _embedding_rows(transformer: Path | None) -> int | None:
    """Rows of the base model's lyric embedding, to check that the vocabulary is its own; None where it is not here."""
    if transformer is None or not (transformer / "config.json").is_file():
        return None
    return read_model_config(transformer).get("lyric_encoder_vocab_size")


def tokenize_lyrics(work: SongWork, tokenizer: LyricTokenizer, language: str, cropped_at: float | None = None) -> None:
    """Set `work.lyrics`. Of timed lyrics, only the lines before `cropped_at` seconds are used."""
    song, lines, text = work.song, [], work.song.lyrics
    if has_times(song.lyrics):
        lines, text = parse_timed(song.lyrics), strip_times(song.lyrics)
    elif song.timed_lyrics:
        lines = attach_times(song.lyrics, song.timed_lyrics)
    timed_lines = [[line.seconds, line.text] for line in lines]
    if all(seconds is None for seconds, _ in timed_lines):
        timed_lines = []
    if cropped_at is not None:
        if timed_lines:
            text = crop(lines, 0.0, cropped_at)
        else:
            print(f"warning: {work.name}: its lyrics have no times, so they are kept whole though the audio is cropped")
    tokens = tokenizer.tokenize(text, language or None, work.name)
    if cropped_at is None:
        for warning in tokens.warnings:
            print(f"warning: {work.name}: {warning}")
    work.lyrics = TokenizedLyrics(list(tokens.ids), tokens.main_language or None, text, timed_lines)
