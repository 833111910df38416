"""Fingerprints notice every change of content, and no change that is none."""

import os
import time
from pathlib import Path

import pytest

from ace_lora.records.fingerprints import audio_fingerprint, digest, is_same_audio, weights_identity

AN_HOUR_NS = 3_600_000_000_000


@pytest.fixture
def song(tmp_path) -> Path:
    path = tmp_path / "song.wav"
    path.write_bytes(b"one" * 1000)
    set_time(path, time.time_ns() - AN_HOUR_NS)
    return path


def set_time(path: Path, nanoseconds: int) -> None:
    os.utime(path, ns=(nanoseconds, nanoseconds))


def test_unchanged(song):
    recorded = audio_fingerprint(song)
    assert recorded["size"] == 3000
    assert is_same_audio(song, recorded)


def test_another_time_alone_is_no_change(song):
    recorded = audio_fingerprint(song)
    set_time(song, recorded["mtime_ns"] + AN_HOUR_NS // 2)
    assert is_same_audio(song, recorded)


def test_another_content_of_equal_size_is_one(song):
    recorded = audio_fingerprint(song)
    song.write_bytes(b"two" * 1000)
    assert not is_same_audio(song, recorded)
    song.write_bytes(b"more")
    assert not is_same_audio(song, recorded)


def test_a_change_within_the_resolution_of_the_clock_is_noticed(song):
    now = time.time_ns()
    set_time(song, now)
    recorded = audio_fingerprint(song)
    song.write_bytes(b"two" * 1000)
    set_time(song, now)
    assert not is_same_audio(song, recorded)


def test_a_missing_file_is_an_error(song):
    recorded = audio_fingerprint(song)
    song.unlink()
    with pytest.raises(FileNotFoundError):
        is_same_audio(song, recorded)


def test_digest_depends_on_all_of_the_value():
    values = ["a", "b", ["a", "b"], ["ab"], ["a", "b", ""], ["夜"], None]
    assert len({digest(value) for value in values}) == len(values)


def test_identity_of_base_weights(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    weights = bytes(range(256)) * (1 << 17)  # 32 MB: read at places
    for folder in (first, second):
        folder.mkdir()
        (folder / "config.json").write_text("{}", encoding="utf-8")
        (folder / "model.safetensors").write_bytes(weights)
    (second / "README.md").write_text("not part of the model", encoding="utf-8")
    identity = weights_identity(first)
    assert weights_identity(second) == identity
    with (second / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert weights_identity(second) != identity
    (second / "model.safetensors").write_bytes(weights)
    assert weights_identity(second) == identity
    (second / "config.json").write_text("{ }", encoding="utf-8")
    assert weights_identity(second) != identity


def test_identity_of_one_file_does_not_depend_on_its_name(tmp_path):
    (tmp_path / "vocab.json").write_text("{}", encoding="utf-8")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    assert weights_identity(tmp_path / "vocab.json") == weights_identity(tmp_path / "other.json")
