"""Run with: pytest tests/test_record_cache.py"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ace_lora.records.cache import RecordCache
from ace_lora.records.format import Record, RecordError
from ace_lora.records.record import read_record, write_record


@pytest.fixture
def paths(tmp_path):
    """Three songs; the files can be deleted to see who still has to read them."""
    paths = []
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        record = Record(
            keys=f"歌 {number}",
            target_latents=torch.randn(8, 16, 20, generator=generator),
            text_token_ids=torch.arange(1, 6),
            lyric_token_ids=torch.arange(1, 9),
            mert=torch.randn(140, 1024, generator=generator),
            mhubert=torch.randn(93, 768, generator=generator),
        )
        paths.append(tmp_path / f"歌 {number}.safetensors")
        write_record(paths[-1], record)
    return paths


def assert_equal(record, expected):
    for name, value in vars(expected).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(record, name), value), name
        else:
            assert getattr(record, name) == value


def test_a_file_is_read_once(paths):
    expected = [read_record(path) for path in paths]
    cache = RecordCache(10**9)
    for _ in range(2):
        for path, record in zip(paths, expected, strict=True):
            assert_equal(cache.read(path), record)
            path.unlink(missing_ok=True)
    assert_equal(cache.read(paths[0], ssl=False), expected[0])
    assert cache.kept_bytes > 3 * (140 * 1024 + 93 * 768 + 8 * 16 * 20 * 4)


def test_what_does_not_fit_is_read_again(paths):
    one = RecordCache(10**9)
    one.read(paths[0])
    cache = RecordCache(2 * one.kept_bytes)
    for path in paths:
        cache.read(path)
    assert cache.kept_bytes == 2 * one.kept_bytes
    for path in paths:
        path.unlink()
    cache.read(paths[0])
    cache.read(paths[1])
    with pytest.raises(OSError):
        cache.read(paths[2])


def test_a_record_without_features_does_not_stand_for_the_whole(paths):
    cache = RecordCache(10**9)
    assert cache.read(paths[0], ssl=False).mert is None
    assert cache.read(paths[0]).mert is not None


def test_threads_that_want_the_same_song_read_it_once(paths, monkeypatch):
    reads = []

    def counted(path, *, ssl):
        reads.append(path)
        return read_record(path, ssl=ssl)

    monkeypatch.setattr("ace_lora.records.cache.read_record", counted)
    cache = RecordCache(10**9)
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(cache.read, paths * 8))
    assert sorted(reads) == paths
    assert_equal(records[0], records[-3])


def test_a_damaged_record_is_told_each_time(paths):
    paths[0].write_bytes(b"no record")
    cache = RecordCache(10**9)
    for _ in range(2):
        with pytest.raises(RecordError, match="歌 0"):
            cache.read(paths[0])
    assert cache.kept_bytes == 0
