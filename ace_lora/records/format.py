"""Training records: what preprocessing keeps of one song, one file per song.

Shapes: T latent frames (44100/4096 = 10.77 per second of audio), n feature rows (MERT 74.8, mHuBERT 49.97 per second).

Our files are safetensors:

    target_latents       float32 [8, 16, T]
    text_token_ids       int64   [tokens]      UMT5 ids of the prompt, at most 256
    lyric_token_ids      int64   [tokens]      at most 4096
    mert, mhubert        int8    [n, width]    absent where the SSL features are not stored
    mert_scale, …        float32 [n]           feature = int8 value * scale of its row

with a header that holds the metadata as JSON (prompt, lyrics, times, source fingerprint, software versions) and a
CRC-32 of every tensor, checked whenever the tensor is read. Masks and speaker embedding, constant in ACE-Step v1, are
not stored.
The HDF5 records of earlier ACE-Step training scripts are read as well.

Why this format: `python -m benchmarks.record_loading`, a song of 240 s, one thread of a shared server CPU:

    format                                                MB   MB per s of audio   write ms   read ms
    HDF5 float32 (once bf16), byte shuffle, zstd        43.6               0.181        444       455
    safetensors, bf16 features                          56.5               0.235         92        57
    safetensors, int8 rows, checksums verified (ours)   29.0               0.121        179        22

A feature row is used through a cosine with a predicted row, so its length does not matter. With a largest value of k
times the row's RMS, rounding to int8 costs k^2 / 387,000 of the cosine on average: 3e-5 for k = 3.5, 4e-4 for k = 12.

This module imports the standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

RECORD_SUFFIX = ".safetensors"
HDF5_SUFFIX = ".hdf5"

# ACE-Step v1's latent encoder reads audio at this rate, and makes one frame of so many of its samples (8 mel frames).
LATENT_SAMPLE_RATE = 44_100
SAMPLES_PER_LATENT_FRAME = 4096
SECONDS_PER_LATENT_FRAME = SAMPLES_PER_LATENT_FRAME / LATENT_SAMPLE_RATE
SSL_BRANCHES = ("mert", "mhubert")


class RecordError(Exception):
    """A record that is damaged, cut short, or not a record at all; the message names the file."""

    def __init__(self, path: Path, reason: str):
        self.path = Path(path)
        self.reason = reason
        super().__init__(
            f"Cannot use the record '{path}': {reason}. Expected a file written whole by preprocess_dataset_new.py. "
            "Delete the file and run that step again; it makes the record anew."
        )


class NotARecord(RecordError):
    """A file in a record's place that was never one, so perhaps the user's own; or one of a newer program."""

    def __init__(self, path: Path, reason: str):
        super().__init__(path, reason)
        self.args = (
            f"Cannot use '{path}' as a record: {reason}. Expected nothing but records in this folder. "
            "Move the file to another folder.",
        )


@dataclass
class Record:
    """What training needs of one song.

    `mert` [n, 1024] and `mhubert` [n, 768] are None where they are not stored. In our own files they are int8 and their
    true values are `restore_rows(mert, mert_scale)`; for a cosine the int8 rows can be used as they are, in float32 or
    bfloat16 (their squared norms overflow float16). In HDF5 records they are float32 and the scales are None.
    """

    keys: str
    target_latents: torch.Tensor  # float32 [8, 16, T]
    text_token_ids: torch.Tensor  # int64 [tokens]
    lyric_token_ids: torch.Tensor  # int64 [tokens]
    mert: torch.Tensor | None = None
    mhubert: torch.Tensor | None = None
    mert_scale: torch.Tensor | None = None
    mhubert_scale: torch.Tensor | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


# What preprocessing writes of a song, and what it may be: other programs and damaged disks write records too.
_TEXTS = ("keys", "prompt", "lyrics", "audio", "dataset", "ssl")
_FACTS = ("seconds", "original_seconds", "cropped", "prompt", "lyrics", "timed_lines", "lyric_language", "audio")
MOST_FRAMES = 100_000  # two and a half hours


def metadata_problem(metadata: Any) -> str | None:
    """Why `metadata` is not that of a record, or None; what is there has to be right, a fingerprint needs the rest."""
    if not isinstance(metadata, dict):
        return f"its metadata is {metadata!r:.50}, not a table"
    for name in _TEXTS:
        if not isinstance(metadata.get(name, ""), str):
            return f"{name} is {metadata[name]!r:.50}, not a text"
    for name in ("seconds", "original_seconds"):
        if not _is_number(metadata.get(name, 1)) or not 0 < metadata.get(name, 1) < 1e6:
            return f"{name} is {metadata[name]!r:.50}, not a number of seconds"
    if not isinstance(metadata.get("cropped", False), bool):
        return f"cropped is {metadata['cropped']!r:.50}, not true or false"
    if not isinstance(metadata.get("lyric_language") or "", str):
        return f"lyric_language is {metadata['lyric_language']!r:.50}, not a text"
    lines = metadata.get("timed_lines", [])
    if not isinstance(lines, list) or not all(map(_is_timed_line, lines)):
        return "timed_lines is not a list of times and lines"
    if "fingerprint" not in metadata:
        return None
    missing = [name for name in _FACTS if name not in metadata]
    return f"its metadata has no {missing[0]}" if missing else _fingerprint_problem(metadata["fingerprint"])


def _fingerprint_problem(fingerprint: Any) -> str | None:
    pieces = ("audio", "latents", "text", "lyrics")
    if not isinstance(fingerprint, dict) or not all(isinstance(value, dict) for value in fingerprint.values()):
        return "its fingerprint is not a table of tables"
    missing = [piece for piece in pieces if piece not in fingerprint]
    if missing:
        return f"its fingerprint has no {missing[0]}"
    audio = fingerprint["audio"]
    if not all(isinstance(audio.get(name), int) for name in ("size", "mtime_ns", "checked_ns")):
        return "its fingerprint of the audio lacks size or times"
    return None if isinstance(audio.get("sha256"), str) else "its fingerprint of the audio lacks the checksum"


def _is_timed_line(line: Any) -> bool:
    return isinstance(line, list) and len(line) == 2 and isinstance(line[1], str) and _is_time(line[0])


def _is_time(value: Any) -> bool:
    return value is None or (_is_number(value) and 0 <= value < 1e6)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def list_records(folder: Path) -> list[Path]:
    """The records in `folder`, sorted by name; hidden and temporary files, other files and folders are left out.

    Where a song has a record of both formats, the safetensors one stands: it is checked against its source.
    """
    paths = [
        path
        for path in Path(folder).iterdir()
        if path.suffix in (RECORD_SUFFIX, HDF5_SUFFIX) and not path.name.startswith(".") and not path.is_dir()
    ]
    ours = {path.stem for path in paths if path.suffix == RECORD_SUFFIX}
    return sorted(
        (path for path in paths if path.suffix == RECORD_SUFFIX or path.stem not in ours), key=lambda path: path.name
    )
