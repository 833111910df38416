"""Tensors under checksums: no damaged or foreign file is accepted."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ace_lora.records.format import NotARecord, Record, RecordError
from ace_lora.records.record import (
    check_record,
    read_metadata,
    read_record,
    write_record,
)
from ace_lora.records.tensor_file import read_tensors, write_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "audio"
TENSORS = ["target_latents", "text_token_ids", "lyric_token_ids", "mert", "mhubert"]


@pytest.fixture
def small_file(tmp_path) -> Path:
    path = tmp_path / "song.safetensors"
    record = Record(
        "song",
        torch.ones(8, 16, 2),
        torch.tensor([1]),
        torch.tensor([0]),
        torch.ones(3, 4),
        torch.ones(2, 4),
        metadata={"prompt": "pop"},
    )
    write_record(path, record)
    return path


def test_a_file_cut_short_anywhere_is_refused_and_named(small_file):
    whole = small_file.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, *range(150, len(whole), 37), len(whole) - 1]:
        small_file.write_bytes(whole[:length])
        for read in (read_record, read_metadata):
            with pytest.raises(RecordError, match=r"song\.safetensors"):
                read(small_file)
    small_file.write_bytes(whole + b"\0")
    with pytest.raises(RecordError, match="cut short or damaged"):
        read_record(small_file)


def test_every_changed_byte_of_the_tensors_is_noticed(small_file):
    whole = small_file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in range(start, len(whole), 11):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        small_file.write_bytes(damaged)
        for read in (read_record, check_record):
            with pytest.raises(RecordError, match="damaged"):
                read(small_file)
    small_file.write_bytes(whole)
    assert check_record(small_file) == read_metadata(small_file) == {"prompt": "pop"}


def test_a_changed_header_never_ends_in_another_error(small_file):
    whole = small_file.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    for position in range(length):
        damaged = bytearray(whole)
        damaged[position] ^= 0x05
        small_file.write_bytes(damaged)
        try:
            record = read_record(small_file)
        except RecordError:
            continue
        # White space that fills up the header may change; nothing else.
        assert record.keys == "song" and record.metadata == {"prompt": "pop"}
        assert torch.equal(record.target_latents, torch.ones(8, 16, 2))


def test_other_safetensors_files_are_no_records(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(NotARecord, match=r"not a training record.*Move the file"):
        read_record(path)
    write_tensors(path, {"weight": torch.ones(2)}, {"keys": "song"})
    with pytest.raises(RecordError, match="no target_latents"):
        read_record(path)
    with pytest.raises(RecordError, match="no target_latents"):
        read_metadata(path)


def test_a_record_of_another_version_says_so(small_file):
    small_file.write_bytes(small_file.read_bytes().replace(b'"version":"1"', b'"version":"9"'))
    with pytest.raises(RecordError, match="its format version is 9, this program's is 1"):
        read_record(small_file)


def test_a_missing_file_is_no_damage(tmp_path):
    for name in ("gone.safetensors", "gone.hdf5"):
        with pytest.raises(FileNotFoundError):
            read_record(tmp_path / name)


def test_tensors_with_metadata(tmp_path):
    path = tmp_path / "part.safetensors"
    write_tensors(path, {"b": torch.arange(3), "a": torch.zeros(2, 2)}, {"made": [1, None, "ü"]})
    tensors, metadata = read_tensors(path)
    assert tensors["b"].tolist() == [0, 1, 2] and tensors["a"].shape == (2, 2)
    assert metadata == {"made": [1, None, "ü"]}
    assert set(read_tensors(path, skip=["a"])[0]) == {"b"}


def test_the_header_is_read_without_torch(small_file):
    code = (
        "import sys; from ace_lora.records.record import read_metadata; read_metadata(sys.argv[1]);"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small_file)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.strip() == "False False"


def hostile_file(path: Path, header: str, data: bytes = b"") -> Path:
    """A safetensors file of ours with any header, whose checksums fit."""
    encoded = header.encode("utf-8")
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def header_of(entries: str, metadata: str = "{}", checksums: str = "") -> str:
    crc = json.dumps({"metadata": zlib.crc32(metadata.encode("utf-8"))})
    own = {"format": "ace-lora-record", "version": "1", "metadata": metadata, "crc32": checksums or crc}
    return f'{{"__metadata__": {json.dumps(own)}{", " if entries else ""}{entries}}}'


@pytest.mark.parametrize(
    "header",
    [
        "[" * 200_000,
        "[" * 50 + "]" * 50,
        header_of("", "[" * 100_000),
        header_of("", "[1, 2]"),
        header_of("", '{"seconds": NaN}'),
        header_of("", '{"seconds": 1e999}'),
        header_of("", "{}", "[" * 100_000),
        header_of("", "{}", "[]"),
        header_of('"a": {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]}'),
        header_of('"a": {"dtype": "F32", "shape": [true, 4], "data_offsets": [0, 16]}'),
        header_of('"a": {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}'),
        header_of('"a": {"dtype": "F32", "shape": [0, 1000000000000000000000], "data_offsets": [0, 0]}'),
        header_of('"a": {"dtype": "F32", "shape": "four", "data_offsets": [0, 16]}'),
        header_of('"a": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}'),
        header_of('"a": []'),
        header_of('"a": 1'),
    ],
)
def test_headers_of_strangers_are_refused(tmp_path, header):
    path = hostile_file(tmp_path / "song.safetensors", header, bytes(16))
    for read in (read_tensors, read_record, check_record):
        with pytest.raises(RecordError):
            read(path)


@pytest.mark.skipif(os.name != "posix", reason="Windows has neither named pipes nor devices as files")
@pytest.mark.parametrize("suffix", [".safetensors", ".hdf5"])
def test_pipes_devices_and_folders_are_no_records(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"folder{suffix}").mkdir()
    for path in tmp_path.iterdir():
        for read in (read_record, check_record):
            with pytest.raises(RecordError, match="no regular file"):
                read(path)
