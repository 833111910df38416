"""A base model small enough for tests and for trying the whole workflow on a CPU in seconds.

Makes the checkpoint folder DIR with the layout of the published weights: the same folders, file names, configuration
keys and tensor names, but a few narrow layers of random numbers. Every script runs on it with
`--checkpoint_dir DIR` and the same loading code. The music it makes is noise.

    ace_step_transformer/   transformer and lyric encoder
    music_dcae_f8c8/        mel autoencoder, encoder and decoder
    music_vocoder/          mel to 44.1 kHz
    umt5-base/              text encoder and its tokenizer
    MERT-v1-330M/           first SSL model
    mHuBERT-147/            second SSL model
    vocab.json              lyric vocabulary
    tiny_base.json          marks the folder as made by this program

The same version makes the same bytes each time. Only numpy and safetensors are used, so that it takes a second.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ace_lora.commands import WrongInput
from ace_lora.files import write_json
from ace_lora.tiny_base.configs import (
    DCAE_CONFIG,
    MERT_CONFIG,
    MHUBERT_CONFIG,
    TRANSFORMER_CONFIG,
    UMT5_CONFIG,
    VOCODER_CONFIG,
)
from ace_lora.tiny_base.shapes import dcae_shapes, hubert_shapes, transformer_shapes, umt5_shapes, vocoder_shapes
from ace_lora.tiny_base.tokenizers import (
    UMT5_SPECIAL_TOKENS,
    UMT5_TOKENIZER_CONFIG,
    lyric_vocabulary_file,
    umt5_tokenizer_file,
)
from ace_lora.tiny_base.weights import write_weights

MARKER = "tiny_base.json"
FORMAT = 1


def make_tiny_base(folder: Path) -> list[Path]:
    """Make the checkpoint folder and return the files made, sorted.

    Files of an earlier run in the same folder are replaced, each at once; other files there are left alone.
    Raises WrongInput when `folder` holds something and is not from an earlier run.
    """
    folder = Path(folder)
    _refuse_foreign_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        _write_parts(made)
        names = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
        # The marker goes first: a folder left half filled by a power cut is then known as ours and can be filled again.
        for name in sorted(names, key=lambda name: name != Path(MARKER)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(made / name, folder / name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return [folder / name for name in names]


def _refuse_foreign_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise WrongInput(f"'{folder}' is a file. Expected the name of a folder to make. Choose another name.")
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise WrongInput(
            f"'{folder}' is not empty and was not made by this program (it has no {MARKER}). "
            "Expected a new or an empty folder. Choose another name."
        )


def _write_parts(folder: Path) -> None:
    lyric_vocabulary = lyric_vocabulary_file()
    tokens = {*lyric_vocabulary["model"]["vocab"], *(token["content"] for token in lyric_vocabulary["added_tokens"])}
    tokenizer = umt5_tokenizer_file()
    transformer = {**TRANSFORMER_CONFIG, "lyric_encoder_vocab_size": len(tokens)}
    umt5 = {**UMT5_CONFIG, "vocab_size": len(tokenizer["model"]["vocab"])}

    diffusers_name, transformers_name = "diffusion_pytorch_model.safetensors", "model.safetensors"
    for part, file_name, config, shapes in [
        ("ace_step_transformer", diffusers_name, transformer, transformer_shapes(transformer)),
        ("music_dcae_f8c8", diffusers_name, DCAE_CONFIG, dcae_shapes(DCAE_CONFIG)),
        ("music_vocoder", diffusers_name, VOCODER_CONFIG, vocoder_shapes(VOCODER_CONFIG)),
        ("umt5-base", transformers_name, umt5, umt5_shapes(umt5)),
        ("MERT-v1-330M", transformers_name, MERT_CONFIG, hubert_shapes(MERT_CONFIG)),
        ("mHuBERT-147", transformers_name, MHUBERT_CONFIG, hubert_shapes(MHUBERT_CONFIG)),
    ]:
        (folder / part).mkdir()
        write_json(folder / part / "config.json", config)
        write_weights(folder / part / file_name, part, shapes)

    write_json(folder / "umt5-base" / "tokenizer.json", tokenizer)
    write_json(folder / "umt5-base" / "tokenizer_config.json", UMT5_TOKENIZER_CONFIG)
    write_json(folder / "umt5-base" / "special_tokens_map.json", UMT5_SPECIAL_TOKENS)
    write_json(folder / "vocab.json", lyric_vocabulary)
    write_json(folder / MARKER, {"format": FORMAT, "what": "random weights for tests and trials, no music model"})
