"""Small records for tests of the training: noise in place of music, of the sizes that real songs have."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch

from ace_lora.records.format import Record
from ace_lora.records.record import write_record

TAGS = "rock, drums, 120 bpm, female vocals, sad"


def make_record(
    folder: Path,
    name: str,
    frames: int = 24,
    *,
    ssl: str = "stored",
    lyric_tokens: int = 9,
    tiny: Path | None = None,
    scale: float = 1.0,
    **metadata: object,
) -> Path:
    """One record with random latents, tokens of TAGS, and features where `ssl` is "stored"."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    text_ids = [21, 22, 275, 23, 275, 24, 25, 275, 26, 1]
    if tiny is not None:
        from ace_lora.v1.text_encoder import load_text_tokenizer, tokenize_prompt

        text_ids = tokenize_prompt(load_text_tokenizer(tiny / "umt5-base"), TAGS)
    features = {}
    if ssl == "stored":
        features["mert"] = torch.randn(frames * 7, 32, generator=generator)
        features["mhubert"] = torch.randn(frames * 5, 24, generator=generator)
    record = Record(
        keys=name,
        target_latents=scale * torch.randn(8, 16, frames, generator=generator),
        text_token_ids=torch.tensor(text_ids),
        lyric_token_ids=torch.randint(5, 60, (lyric_tokens,), generator=generator),
        metadata={
            "prompt": TAGS,
            "lyrics": "la",
            "seconds": frames * 4096 / 44100,
            "ssl": ssl,
            "audio": str(folder / f"{name}.mp3"),
            **metadata,
        },
        **features,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    write_record(path, record)
    return path


def make_records(folder: Path, tiny: Path | None, lengths: tuple[int, ...] = (24, 17, 30), **options: object) -> Path:
    """Records `song 0`, `song 1`, … of the given numbers of frames."""
    for number, frames in enumerate(lengths):
        make_record(folder, f"song {number}", frames, tiny=tiny, lyric_tokens=5 + 3 * number, **options)
    return folder
