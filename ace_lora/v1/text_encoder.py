"""The text encoder of the tags, UMT5-base, and its tokenizer: folder `umt5-base` of the base weights.

The transformer takes the encoder's last hidden states [B,Lt,768]. They are not stored with the songs, because the
trainer shuffles and drops tags at token level, cutting at the comma.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ace_lora.base_weights.model_config import read_model_config
from ace_lora.commands import WrongInput

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import UMT5EncoderModel

MAX_TOKENS = 256  # the end token included, as ACE-Step v1 was trained
END_TOKEN = "</s>"
PUBLISHED_COMMA_ID = 275
SHARED, EMBEDDING = "shared.weight", "encoder.embed_tokens.weight"


def load_text_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of `folder`, cutting at 256 ids and adding `</s>` (1) at the end.

    Reads `tokenizer.json` with the tokenizers library, which gives the published ids whatever version of transformers
    is installed: transformers 5 builds T5 tokenizers anew and need not keep what the file says. A folder that has
    only `spiece.model` goes through transformers. Raises WrongInput when neither can be read.
    """
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    try:
        if path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except Exception as error:  # the tokenizers library raises plain Exception
        raise WrongInput(
            f"The text tokenizer in '{folder}' cannot be read: {error}. "
            "Expected the tokenizer.json of umt5-base. Delete the folder and download it again."
        ) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    if tokenizer.encode("").tokens != [END_TOKEN]:
        raise WrongInput(
            f"The text tokenizer in '{folder}' gives {tokenizer.encode('').tokens} for an empty prompt, expected "
            f"['{END_TOKEN}']. It is not the one of umt5-base. Delete the folder and download it again."
        )
    return tokenizer


def tokenize_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of the comma-separated tags, at most 256 with the end token; an empty prompt gives just that, `[1]`."""
    return tokenizer.encode(prompt).ids


def exceeds_limit(tokenizer: Tokenizer, prompt: str) -> bool:
    """Whether `tokenize_prompt` leaves out the end of a prompt."""
    return bool(tokenizer.encode(prompt).overflowing)


def comma_id(tokenizer: Tokenizer) -> int:
    """The id at which the trainer cuts a prompt into tags, 275 in the published tokenizer.

    Raises WrongInput when a comma is no token of its own, since tags could not be told apart then.
    """
    found = tokenizer.token_to_id(",")
    if found is None or tokenizer.encode("rock, drums").ids.count(found) != 1:
        raise WrongInput(
            "The text tokenizer has no token for the comma that separates tags. "
            "Expected the tokenizer of umt5-base. Delete that folder and download it again."
        )
    if found != PUBLISHED_COMMA_ID:
        warnings.warn(
            f"The comma is token {found}, not {PUBLISHED_COMMA_ID} as ACE-Step's trainer has it; using {found}.",
            stacklevel=2,
        )
    return found


def load_text_encoder(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> UMT5EncoderModel:
    """The frozen encoder in evaluation mode; call it with ids [B,Lt] int64 and mask [B,Lt], take `last_hidden_state`.

    In float16 the last layer of each feed-forward block stays in float32, where its sums would overflow.
    Raises WrongWeights when the file lacks a tensor, has one too many, or one of another shape.
    """
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    from ace_lora.base_weights.loading import read_safetensors_strict

    folder = Path(folder)
    config = UMT5Config(**{key: value for key, value in read_model_config(folder).items() if key != "model_type"})
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    # The embedding is one matrix with two names: files have the first, the second or both.
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if name != EMBEDDING}
    path = folder / "model.safetensors"
    in_file = EMBEDDING if _has_only_second_name(path) else SHARED
    expected[in_file] = expected.pop(SHARED)
    tensors = read_safetensors_strict(
        path, expected, ignored=lambda name: name == EMBEDDING != in_file, dtype=dtype, device=device
    )
    tensors[SHARED] = tensors.pop(in_file)
    if dtype is torch.float16:
        for name in [name for name in tensors if name.endswith(".wo.weight")]:
            tensors[name] = tensors[name].float()
    model.load_state_dict({**tensors, EMBEDDING: tensors[SHARED]}, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _has_only_second_name(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
    except (OSError, SafetensorError):
        return False  # the strict loader says what is wrong with the file
    return EMBEDDING in names and SHARED not in names
