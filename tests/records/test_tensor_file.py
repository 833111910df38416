"""Tensors under checksums: no damaged or foreign file is accepted."""

import os
import subprocess
import sys
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
