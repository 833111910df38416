"""A wave to a WAV, FLAC or MP3 file, whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import StepFailed
from ace_lora.files import replace_atomically

if TYPE_CHECKING:
    import torch

_FORMATS: dict[str, dict[str, Any]] = {
    "wav": {"format": "WAV", "subtype": "FLOAT"},
    "flac": {"format": "FLAC", "subtype": "PCM_24"},
    # LAME's best variable rate, which ComfyUI calls V0.
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE", "compression_level": 0.0},
}
BYTES_PER_SECOND = {"wav": 48_000 * 2 * 4, "flac": 48_000 * 2 * 3, "mp3": 40_000}  # at most


def encode_audio(wave: torch.Tensor, rate: int, kind: str, *, bits: int = 24) -> bytes:
    """Float32 [2, N] as the content of a file; `bits` of a FLAC file are 16 or 24.

    WAV holds the numbers as they are; in the others what is above full scale is clipped.
    Raises StepFailed when the wave holds numbers that are not finite.
    """
    import soundfile

    if not bool(wave.isfinite().all()):
        raise StepFailed(
            "The song that was computed holds values that are not finite, so nothing was written. Expected numbers. "
            "Try --dtype fp32, a lower --guidance or a lower --strength; if the base model alone does so too, check "
            "its weight files."
        )
    options = dict(_FORMATS[kind])
    if kind == "flac":
        options["subtype"] = f"PCM_{bits}"
    samples = wave.T.contiguous().numpy()
    # Into memory first: libsndfile does not say when the disk is full.
    content = io.BytesIO()
    soundfile.write(content, samples if kind == "wav" else samples.clip(-1, 1), rate, **options)
    return _without_time(content.getvalue()) if kind == "wav" else content.getvalue()


def _without_time(wav: bytes) -> bytes:
    """The same file without the time in its PEAK chunk, so that equal songs are equal files."""
    place = wav.find(b"PEAK", 12, 100)
    if place < 0:
        return wav
    # name, size, version, time, of 4 bytes each
    return wav[: place + 12] + bytes(4) + wav[place + 16 :]


def write_audio(wave: torch.Tensor, rate: int, path: Path, *, bits: int = 24) -> None:
    """Write float32 [2, N] to `path`, whose ending names the format. Raises StepFailed and OSError."""
    content = encode_audio(wave, rate, path.suffix[1:].lower(), bits=bits)
    with replace_atomically(path) as temporary:
        temporary.write_bytes(content)
