"""The HDF5 records of earlier ACE-Step training scripts, read only.

h5py and hdf5plugin are imported when the first such record is opened, because few folders hold any.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from ace_lora.records.format import MOST_FRAMES, SECONDS_PER_LATENT_FRAME, SSL_BRANCHES, Record, RecordError

# Feature rows of the longest record: a compressed table of a few bytes may state any size.
_LONGEST = 10 * MOST_FRAMES
SPEAKER_WIDTH = 512  # the published model's speaker embedding, always zeros in version 1

# name -> dtype, number of dimensions, the constant that every element has (None: values of the song)
_TABLES: dict[str, tuple[str, int, float | None]] = {
    "target_latents": ("float32", 3, None),
    "attention_mask": ("float32", 1, 1.0),
    "text_token_ids": ("int64", 1, None),
    "text_attention_mask": ("float32", 1, 1.0),
    "speaker_embds": ("float32", 1, 0.0),  # the misspelling is part of the format
    "lyric_token_ids": ("int64", 1, None),
    "lyric_mask": ("float32", 1, 1.0),
    "mert_ssl_hidden_states": ("float32", 2, None),
    "mhubert_ssl_hidden_states": ("float32", 2, None),
}


def _open(path: Path) -> Any:
    """An open h5py.File whose tables are those of a record; raises RecordError where they are not."""
    import h5py
    import hdf5plugin  # noqa: F401  registers the Zstandard filter that the records are written with

    if not stat.S_ISREG(path.stat().st_mode):
        raise RecordError(path, "it is no regular file")
    # A missing file is an OSError above, h5py's errors below are damage.
    if not os.access(path, os.R_OK):
        raise PermissionError(13, "Permission denied", str(path))
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise RecordError(path, f"it is cut short or no HDF5 file ({error})") from error
    try:
        problem = _misfit(file)
    except (OSError, RuntimeError, KeyError) as error:
        problem = f"it is damaged ({error})"
    if problem:
        file.close()
        raise RecordError(path, problem)
    return file


def _misfit(file: Any) -> str | None:
    """Why the tables of an open HDF5 file are not those of a record, or None; reads no values but the name."""
    missing = sorted({"keys", *_TABLES} - set(file))
    if missing:
        return f"it has no {missing[0]}"
    unknown = sorted(set(file) - {"keys", *_TABLES})
    if unknown:
        return f"it holds {unknown[0]}, which no record has"
    import h5py

    for name in ("keys", *_TABLES):
        # A link may lead to a group, or to another file of the computer.
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or not isinstance(file[name], h5py.Dataset) or file[name].external:
            return f"{name} is no table of this file"
    for name, (dtype, dimensions, _) in _TABLES.items():
        table = file[name]
        if max(table.shape, default=0) > _LONGEST:
            return f"{name} is {list(table.shape)}; more than {_LONGEST} of anything is not possible"
        if table.dtype != dtype or table.ndim != dimensions or table.size == 0:
            return f"{name} is {table.dtype} {list(table.shape)}, not {dtype} in {dimensions} dimensions"
    lengths = [
        ("attention_mask", file["target_latents"].shape[2]),
        ("text_attention_mask", len(file["text_token_ids"])),
        ("lyric_mask", len(file["lyric_token_ids"])),
        ("speaker_embds", SPEAKER_WIDTH),
    ]
    for name, length in lengths:
        if len(file[name]) != length:
            return f"{name} has {len(file[name])} elements, not {length}"
    keys = file["keys"]
    if keys.shape != () or not isinstance(name := keys[()], bytes) or len(name) > 1000:
        return "keys is not one string"
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return "keys is not a text"
    return None


def read_record(path: Path, *, ssl: bool = True) -> Record:
    """As `ace_lora.records.record.read_record`, for an HDF5 file."""
    import torch

    with _open(path) as file:
        values = {}
        for name, (_, _, constant) in _TABLES.items():
            if name.endswith("ssl_hidden_states") and not ssl:
                continue
            try:
                values[name] = torch.from_numpy(file[name][()])
            except (OSError, RuntimeError) as error:
                raise RecordError(path, f"{name} is damaged ({error})") from error
            if constant is not None and not bool((values[name] == constant).all()):
                raise RecordError(path, f"{name} is not {constant:g} throughout, as ACE-Step v1 has it")
            if name.endswith("_ids") and int(values[name].min()) < 0:
                raise RecordError(path, f"{name} holds {int(values[name].min())}, which is no token")
            if values[name].is_floating_point() and not bool(torch.isfinite(values[name]).all()):
                raise RecordError(path, f"{name} holds values that are not finite")
        return Record(
            keys=file["keys"][()].decode("utf-8"),
            target_latents=values["target_latents"],
            text_token_ids=values["text_token_ids"],
            lyric_token_ids=values["lyric_token_ids"],
            mert=values.get("mert_ssl_hidden_states"),
            mhubert=values.get("mhubert_ssl_hidden_states"),
            metadata=_metadata(file),
        )


def read_metadata(path: Path) -> dict[str, Any]:
    """What a record of this format tells of itself: `seconds` and `ssl`, from its tables."""
    with _open(path) as file:
        return _metadata(file)


def needed_of_base(path: Path) -> dict[str, int]:
    """As `ace_lora.records.record.needed_of_base`, for an HDF5 file."""
    with _open(path) as file:
        ids = {"latent_channels": file["target_latents"].shape[0]}
        ids |= {f"{kind}_tokens": int(file[f"{kind}_token_ids"][()].max()) + 1 for kind in ("text", "lyric")}
        return ids | {branch: file[f"{branch}_ssl_hidden_states"].shape[1] for branch in SSL_BRANCHES}


def _metadata(file: Any) -> dict[str, Any]:
    return {"seconds": file["target_latents"].shape[2] * SECONDS_PER_LATENT_FRAME, "ssl": "stored"}
