"""Tensors with JSON metadata in a safetensors file whose every byte is under a checksum.

The metadata of the safetensors header holds `format`, `version`, `metadata` (JSON) and `crc32` (JSON, tensor name to
CRC-32, and that of the metadata). Records are such files, and so are the pieces of a record that is being made.

The module imports the standard library only; reading and writing tensors needs torch.
"""

from __future__ import annotations

import json
import math
import stat
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.files import parse_json, replace_atomically
from ace_lora.records.format import NotARecord, RecordError

if TYPE_CHECKING:
    import torch

FORMAT_NAME = "ace-lora-record"
FORMAT_VERSION = 1

# The dtypes that a file may hold: safetensors name -> torch name, bytes.
_DTYPES = {"F32": ("float32", 4), "I64": ("int64", 8), "I8": ("int8", 1)}
# A header longer than this is no header of ours: metadata of the longest lyrics takes some tens of kilobytes.
_MAX_HEADER_BYTES = 16 * 2**20
_BLOCK_BYTES = 1 << 20


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
            if not math.prod(entry["shape"]):
                raise RecordError(path, f"{name} is empty")
            tensor = torch.empty(entry["shape"], dtype=getattr(torch, _DTYPES[entry["dtype"]][0]))
            data = _bytes_of(tensor)
            file.seek(header.data_start + entry["data_offsets"][0])
            if file.readinto(data) != len(data):
                raise RecordError(path, f"it ends within {name}")
            if zlib.crc32(data) != header.checksums.get(name):
                raise RecordError(path, f"{name} is damaged (its checksum does not fit)")
            tensors[name] = tensor
    return tensors, header.metadata


def check_checksums(path: Path) -> None:
    """Compare every byte of the tensors with the checksums, without torch and without keeping them in memory.

    Raises RecordError and OSError as `read_record` does.
    """
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


def read_header(path: Path) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Shapes of the tensors by name, and the metadata, of a file of `write_tensors`; standard library only.

    Raises RecordError and OSError as `read_record` does, as far as header and file size show the damage.
    """
    header = _read_header(Path(path))
    return {name: entry["shape"] for name, entry in header.entries.items()}, header.metadata


def _read_header(path: Path) -> _Header:
    """Header of a safetensors file: 8 bytes little-endian length, then JSON, then the tensors without gaps."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise NotARecord(path, "it is no regular file")
        size = status.st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise RecordError(path, f"it is cut short ({size} bytes)")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise NotARecord(path, f"it is cut short or no safetensors file ({size} bytes)")
            try:
                header = parse_json(file.read(length), "the header")
            except ValueError as error:
                raise NotARecord(path, f"it is damaged or no safetensors file ({size} bytes)") from error
        own = header.pop("__metadata__", {})
        if own.get("format") != FORMAT_NAME:
            raise NotARecord(path, "it is a safetensors file, but not a training record")
        if own.get("version") != str(FORMAT_VERSION):
            raise NotARecord(path, f"its format version is {own.get('version')}, this program's is {FORMAT_VERSION}")
        checksums = parse_json(own["crc32"], "the checksums")
        if zlib.crc32(own["metadata"].encode("utf-8")) != checksums["metadata"]:
            raise RecordError(path, "its metadata is damaged (its checksum does not fit)")
        end = 0
        for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
            begin, next_begin = entry["data_offsets"]
            if any(type(number) is not int or number < 0 for number in (*entry["shape"], begin, next_begin)):
                raise RecordError(path, "its header is damaged (sizes are no whole numbers)")
            if begin != end or next_begin - begin != math.prod(entry["shape"]) * _DTYPES[entry["dtype"]][1]:
                raise RecordError(path, "its header is damaged (sizes do not fit)")
            end = next_begin
        metadata = parse_json(own["metadata"], "the metadata")
        if not isinstance(metadata, dict):
            raise RecordError(path, "its metadata is not a table")
        parsed = _Header(header, metadata, checksums, 8 + length)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RecordError(path, f"its header is damaged ({type(error).__name__})") from error
    if size != parsed.data_start + end:
        raise RecordError(path, f"it is cut short or damaged ({size} bytes, {parsed.data_start + end} expected)")
    return parsed


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, as bytes."""
    # .data: a memoryview already; without elements there is none that could be cast.
    return tensor.numpy().data.cast("B") if tensor.numel() else memoryview(bytearray())
