"""The lyric vocabulary: a Hugging Face tokenizers file, checked before it is used.

The published file is not part of this repository; `ace_lora.base_weights` finds or downloads it. A tiny base model
brings a vocabulary of its own. Spec: vocabulary file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from ace_lora.base_weights.parts import LYRIC_VOCABULARY_SHA256, LYRIC_VOCABULARY_URLS
from ace_lora.commands import WrongInput
from ace_lora.lyrics.packages import MissingLyricSupport

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PUBLISHED_SIZE", "MissingLyricSupport", "load_vocabulary"]

PUBLISHED_SIZE = 6693  # entries, with the 33 added tokens

# Ids that the training code writes itself, beside [START]: padding and "no lyrics", unknown, line break and space.
_FIXED_IDS = {"[STOP]": 0, "[UNK]": 1, "[SPACE]": 2}


def load_vocabulary(path: Path, embedding_rows: int | None) -> Tokenizer:
    """The vocabulary at `path`, checked against the lyric embedding of the model that will get its ids.

    `embedding_rows`: rows of that embedding; None where no model is at hand. A vocabulary of the published size must
    be the published file, byte for byte, and fits an embedding of at least as many rows; one of another size must
    have as many entries as the embedding has rows. Raises WrongInput, and MissingLyricSupport without `tokenizers`.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingLyricSupport(
            f"Lyrics cannot be tokenised: the package tokenizers cannot be loaded ({error}). "
            "Run: pip install tokenizers"
        ) from error

    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WrongInput(
            f"Cannot read the lyric vocabulary '{path}': {error.strerror or error}. "
            "Expected the file vocab.json of ACE-Step. Delete it, if it is there, to have it downloaded again."
        ) from error
    try:
        vocabulary = Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers raises plain Exception
        raise WrongInput(
            f"The lyric vocabulary '{path}' is damaged or of another kind: {error}. "
            f"Expected a tokenizers file. Download it again: {LYRIC_VOCABULARY_URLS[0]}"
        ) from error
    size = vocabulary.get_vocab_size(with_added_tokens=True)

    if hashlib.sha256(content).hexdigest() == LYRIC_VOCABULARY_SHA256:
        if embedding_rows is not None and embedding_rows < PUBLISHED_SIZE:
            raise WrongInput(
                f"The lyric embedding of the model has {embedding_rows} rows, but the vocabulary '{path}' has "
                f"{PUBLISHED_SIZE} entries. Use the vocabulary that belongs to this model, or the published model."
            )
        return vocabulary
    if embedding_rows == PUBLISHED_SIZE or size == PUBLISHED_SIZE:
        raise WrongInput(
            f"The lyric vocabulary '{path}' is not the published file: its sha256 is "
            f"{hashlib.sha256(content).hexdigest()}, expected {LYRIC_VOCABULARY_SHA256}. "
            f"It may have been edited or its line ends converted. Download it again: {LYRIC_VOCABULARY_URLS[0]}"
        )
    if embedding_rows is not None and size != embedding_rows:
        raise WrongInput(
            f"The lyric vocabulary '{path}' has {size} entries, but the lyric embedding of the model has "
            f"{embedding_rows} rows. Use the vocabulary that belongs to this model."
        )
    wrong = [token for token, token_id in _FIXED_IDS.items() if vocabulary.token_to_id(token) != token_id]
    if wrong or vocabulary.token_to_id("[START]") is None:
        raise WrongInput(
            f"The lyric vocabulary '{path}' has no usable {', '.join(wrong or ['[START]'])}. "
            "Expected [STOP], [UNK] and [SPACE] as 0, 1 and 2, and [START]. "
            "Use the vocabulary that belongs to this model."
        )
    return vocabulary
