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

The module imports the standard library only; reading a whole record needs torch, an HDF5 one also h5py and hdf5plugin.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.files import replace_atomically

if TYPE_CHECKING:
    import torch

RECORD_SUFFIX = ".safetensors"
HDF5_SUFFIX = ".hdf5"
FORMAT_NAME = "ace-lora-record"
FORMAT_VERSION = 1

SECONDS_PER_LATENT_FRAME = 4096 / 44100
SPEAKER_WIDTH = 512  # the published model's speaker embedding, always zeros in version 1
SSL_BRANCHES = ("mert", "mhubert")

# The dtypes that a record may hold: safetensors name -> torch name, bytes.
_DTYPES = {"F32": ("float32", 4), "I64": ("int64", 8), "I8": ("int8", 1)}
# A header longer than this is no header of ours: metadata of the longest lyrics takes some tens of kilobytes.
_MAX_HEADER_BYTES = 16 * 2**20
_BLOCK_BYTES = 1 << 20


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


def list_records(folder: Path) -> list[Path]:
    """The records in `folder`, sorted by name; hidden and temporary files, other files and folders are left out.

    Where a song has a record of both formats, the safetensors one stands: it is checked against its source.
    """
    paths = [
        path
        for path in Path(folder).iterdir()
        if path.suffix in (RECORD_SUFFIX, HDF5_SUFFIX) and not path.name.startswith(".") and path.is_file()
    ]
    ours = {path.stem for path in paths if path.suffix == RECORD_SUFFIX}
    return sorted(
        (path for path in paths if path.suffix == RECORD_SUFFIX or path.stem not in ours), key=lambda path: path.name
    )


def read_record(path: Path, *, ssl: bool = True) -> Record:
    """Read a record of either format; `ssl=False` leaves the features unread.

    Raises RecordError for a file that is damaged, cut short or no record, and OSError when it cannot be opened.
    """
    path = Path(path)
    if path.suffix == HDF5_SUFFIX:
        return _read_hdf5_record(path, ssl)
    tensors, metadata = read_tensors(
        path, skip=() if ssl else [name for b in SSL_BRANCHES for name in _branch_names(b)]
    )
    keys = metadata.pop("keys", None)
    problem = _misfit(tensors) if isinstance(keys, str) else "it has no name of a song"
    if problem:
        raise RecordError(path, problem)
    return Record(keys=keys, metadata=metadata, **tensors)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a record, without reading its tensors (torch is not needed).

    For an HDF5 record, which has none, `seconds` and `ssl` are told from its tables. Checks what can be checked
    without reading everything: the file is whole by its size, and complete.

    Raises RecordError and OSError as `read_record` does.
    """
    path = Path(path)
    if path.suffix == HDF5_SUFFIX:
        return _read_hdf5_metadata(path)
    names, metadata = read_header(path)
    missing = [name for name in ("target_latents", "text_token_ids", "lyric_token_ids") if name not in names]
    if missing:
        raise RecordError(path, f"it has no {missing[0]}")
    metadata.pop("keys", None)
    return metadata


def needed_of_base(path: Path) -> dict[str, int]:
    """What a base model needs to have for the record: `text_tokens` and `lyric_tokens` in its vocabularies at least,
    `mert` and `mhubert` as widths of features exactly, where they are stored. Only token ids are read.

    Raises RecordError and OSError as `read_record` does.
    """
    path = Path(path)
    if path.suffix == HDF5_SUFFIX:
        with _open_hdf5(path) as file:
            ids = {name: int(file[name][()].max()) for name in ("text_token_ids", "lyric_token_ids")}
            widths = {branch: file[f"{branch}_ssl_hidden_states"].shape[1] for branch in SSL_BRANCHES}
    else:
        entries = _read_header(path).entries
        tensors, _ = read_tensors(path, skip=[name for name in entries if not name.endswith("_token_ids")])
        ids = {name: int(tensor.max()) for name, tensor in tensors.items()}
        widths = {branch: entries[branch]["shape"][1] for branch in SSL_BRANCHES if branch in entries}
    return {"text_tokens": ids["text_token_ids"] + 1, "lyric_tokens": ids["lyric_token_ids"] + 1, **widths}


def check_record(path: Path) -> dict[str, Any]:
    """The metadata of a record after every byte of it has been compared with the checksums; torch is not needed.

    Of an HDF5 record, which has no checksums, only what `read_metadata` checks is checked.
    Raises RecordError and OSError as `read_record` does.
    """
    path = Path(path)
    metadata = read_metadata(path)
    if path.suffix == HDF5_SUFFIX:
        return metadata
    header = _read_header(path)
    with path.open("rb") as file:
        for name, entry in header.entries.items():
            begin, end = entry["data_offsets"]
            file.seek(header.data_start + begin)
            checksum, left = 0, end - begin
            while left and (block := file.read(min(left, _BLOCK_BYTES))):
                checksum = zlib.crc32(block, checksum)
                left -= len(block)
            if left or checksum != header.checksums.get(name):
                raise RecordError(path, f"{name} is damaged (its checksum does not fit)")
    return metadata


def write_record(path: Path, record: Record) -> None:
    """Write `record` to `path` (`<keys>.safetensors`), whole or not at all; float32 features are rounded to int8 rows.

    Raises ValueError for shapes that do not fit together and for values that are not finite.
    """
    tensors = {
        "target_latents": record.target_latents,
        "text_token_ids": record.text_token_ids,
        "lyric_token_ids": record.lyric_token_ids,
    }
    for branch in SSL_BRANCHES:
        features, scale = getattr(record, branch), getattr(record, f"{branch}_scale")
        if features is None:
            continue
        if scale is None:
            features, scale = quantise_rows(features)
        tensors[branch], tensors[f"{branch}_scale"] = features, scale
    problem = _misfit(tensors)
    if problem:
        raise ValueError(f"The record of '{record.keys}' cannot be written: {problem}.")
    write_tensors(path, tensors, {"keys": record.keys, **record.metadata})


def quantise_rows(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round float features [n, width] to int8 [n, width] and the scale of each row, float32 [n].

    A row of zeros stays one. Raises ValueError for values that are not finite.
    """
    import torch

    features = features.detach().to(torch.float32)
    scale = features.abs().amax(dim=1) / 127  # [n]
    if not bool(torch.isfinite(scale).all()):
        raise ValueError("The features hold values that are not finite.")
    divisor = scale.clamp_min(torch.finfo(torch.float32).tiny)
    return (features / divisor[:, None]).round_().to(torch.int8), scale


def restore_rows(features: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Features as float32 [n, width], from int8 rows and their scales [n] or from rows that hold the values (None)."""
    import torch

    values = features.to(torch.float32)
    return values if scale is None else values * scale[:, None]


# --- Tensors in a checked safetensors file ---


@dataclass
class _Header:
    entries: dict[str, dict[str, Any]]  # tensor name -> dtype, shape, data_offsets
    metadata: dict[str, Any]
    checksums: dict[str, int]
    data_start: int


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and JSON metadata to a safetensors file with a CRC-32 per tensor, atomically."""
    from safetensors.torch import save

    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(metadata, ensure_ascii=False)
    checksums = {name: zlib.crc32(_bytes_of(tensor)) for name, tensor in stored.items()}
    checksums["metadata"] = zlib.crc32(text.encode("utf-8"))
    header = {
        "format": FORMAT_NAME,
        "version": str(FORMAT_VERSION),
        "metadata": text,
        "crc32": json.dumps(checksums),
    }
    with replace_atomically(path) as temporary:
        # Not save_file: it writes to one more temporary file, which a killed process would leave behind.
        temporary.write_bytes(save(stored, header))


def read_tensors(path: Path, skip: Iterable[str] = ()) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the metadata of a file of `write_tensors`; every tensor read is checked by its CRC-32.

    Each tensor is read into memory of its own rather than mapped: on Windows a mapped file cannot be replaced.
    Raises RecordError and OSError as `read_record` does.
    """
    import torch

    path = Path(path)
    header = _read_header(path)
    tensors = {}
    with path.open("rb") as file:
        for name, entry in header.entries.items():
            if name in skip:
                continue
            tensor = torch.empty(entry["shape"], dtype=getattr(torch, _DTYPES[entry["dtype"]][0]))
            data = _bytes_of(tensor)
            file.seek(header.data_start + entry["data_offsets"][0])
            if file.readinto(data) != len(data):
                raise RecordError(path, f"it ends within {name}")
            if zlib.crc32(data) != header.checksums.get(name):
                raise RecordError(path, f"{name} is damaged (its checksum does not fit)")
            tensors[name] = tensor
    return tensors, header.metadata


def read_header(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Names of the tensors and the metadata of a file of `write_tensors`; standard library only.

    Raises RecordError and OSError as `read_record` does, as far as header and file size show the damage.
    """
    header = _read_header(Path(path))
    return list(header.entries), header.metadata


def _read_header(path: Path) -> _Header:
    """Header of a safetensors file: 8 bytes little-endian length, then JSON, then the tensors without gaps."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise RecordError(path, f"it is cut short ({size} bytes)")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise NotARecord(path, f"it is cut short or no safetensors file ({size} bytes)")
            try:
                header = json.loads(file.read(length))
            except ValueError as error:
                raise NotARecord(path, f"it is damaged or no safetensors file ({size} bytes)") from error
        own = header.pop("__metadata__", {})
        if own.get("format") != FORMAT_NAME:
            raise NotARecord(path, "it is a safetensors file, but not a training record")
        if own.get("version") != str(FORMAT_VERSION):
            raise NotARecord(path, f"its format version is {own.get('version')}, this program's is {FORMAT_VERSION}")
        checksums = json.loads(own["crc32"])
        if zlib.crc32(own["metadata"].encode("utf-8")) != checksums["metadata"]:
            raise RecordError(path, "its metadata is damaged (its checksum does not fit)")
        end = 0
        for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
            begin, next_begin = entry["data_offsets"]
            if begin != end or next_begin - begin != math.prod(entry["shape"]) * _DTYPES[entry["dtype"]][1]:
                raise RecordError(path, "its header is damaged (sizes do not fit)")
            end = next_begin
        parsed = _Header(header, json.loads(own["metadata"]), checksums, 8 + length)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RecordError(path, f"its header is damaged ({type(error).__name__})") from error
    if size != parsed.data_start + end:
        raise RecordError(path, f"it is cut short or damaged ({size} bytes, {parsed.data_start + end} expected)")
    return parsed


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, as bytes."""
    # .data: a memoryview already; without elements there is none that could be cast.
    return tensor.numpy().data.cast("B") if tensor.numel() else memoryview(bytearray())


def _branch_names(branch: str) -> tuple[str, str]:
    return branch, f"{branch}_scale"


def _misfit(tensors: dict[str, torch.Tensor]) -> str | None:
    """Why tensors are not those of a record, or None."""
    import torch

    expected = {"target_latents": (torch.float32, 3), "text_token_ids": (torch.int64, 1)}
    expected["lyric_token_ids"] = (torch.int64, 1)
    for branch in SSL_BRANCHES:
        present = [name in tensors for name in _branch_names(branch)]
        if any(present) and not all(present):
            return f"{branch} lacks its values or its scales"
        if all(present):
            expected |= {branch: (torch.int8, 2), f"{branch}_scale": (torch.float32, 1)}
            if len(tensors[branch]) != len(tensors[f"{branch}_scale"]):
                return f"{branch} has {len(tensors[branch])} rows but {len(tensors[f'{branch}_scale'])} scales"
    for name, (dtype, dimensions) in expected.items():
        if name not in tensors:
            return f"it has no {name}"
        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.ndim != dimensions or tensor.numel() == 0:
            return f"{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} in {dimensions} dimensions"
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"{name} holds values that are not finite"
    unknown = sorted(set(tensors) - set(expected))
    return f"it holds {unknown[0]}, which no record has" if unknown else None


# --- The HDF5 records of earlier training scripts ---

# name -> dtype, number of dimensions, the constant that every element has (None: values of the song)
_HDF5_TABLE: dict[str, tuple[str, int, float | None]] = {
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


def _open_hdf5(path: Path) -> Any:
    """An open h5py.File whose tables are those of a record; raises RecordError where they are not."""
    import h5py
    import hdf5plugin  # noqa: F401  registers the Zstandard filter that the records are written with

    path.stat()  # a missing file is an OSError, h5py's errors below are damage
    if not os.access(path, os.R_OK):
        raise PermissionError(13, "Permission denied", str(path))
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise RecordError(path, f"it is cut short or no HDF5 file ({error})") from error
    try:
        problem = _hdf5_misfit(file)
    except (OSError, RuntimeError, KeyError) as error:
        problem = f"it is damaged ({error})"
    if problem:
        file.close()
        raise RecordError(path, problem)
    return file


def _hdf5_misfit(file: Any) -> str | None:
    """Why the tables of an open HDF5 file are not those of a record, or None; reads no values but the name."""
    missing = sorted({"keys", *_HDF5_TABLE} - set(file))
    if missing:
        return f"it has no {missing[0]}"
    unknown = sorted(set(file) - {"keys", *_HDF5_TABLE})
    if unknown:
        return f"it holds {unknown[0]}, which no record has"
    for name, (dtype, dimensions, _) in _HDF5_TABLE.items():
        table = file[name]
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
    if not isinstance(file["keys"][()], bytes):
        return "keys is not one string"
    return None


def _read_hdf5_record(path: Path, ssl: bool) -> Record:
    import torch

    with _open_hdf5(path) as file:
        values = {}
        for name, (_, _, constant) in _HDF5_TABLE.items():
            if name.endswith("ssl_hidden_states") and not ssl:
                continue
            try:
                values[name] = torch.from_numpy(file[name][()])
            except (OSError, RuntimeError) as error:
                raise RecordError(path, f"{name} is damaged ({error})") from error
            if constant is not None and not bool((values[name] == constant).all()):
                raise RecordError(path, f"{name} is not {constant:g} throughout, as ACE-Step v1 has it")
            if values[name].is_floating_point() and not bool(torch.isfinite(values[name]).all()):
                raise RecordError(path, f"{name} holds values that are not finite")
        return Record(
            keys=file["keys"][()].decode("utf-8"),
            target_latents=values["target_latents"],
            text_token_ids=values["text_token_ids"],
            lyric_token_ids=values["lyric_token_ids"],
            mert=values.get("mert_ssl_hidden_states"),
            mhubert=values.get("mhubert_ssl_hidden_states"),
            metadata=_hdf5_metadata(file),
        )


def _read_hdf5_metadata(path: Path) -> dict[str, Any]:
    with _open_hdf5(path) as file:
        return _hdf5_metadata(file)


def _hdf5_metadata(file: Any) -> dict[str, Any]:
    return {"seconds": file["target_latents"].shape[2] * SECONDS_PER_LATENT_FRAME, "ssl": "stored"}
