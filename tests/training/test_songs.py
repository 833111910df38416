"""Run with: pytest tests/training/test_songs.py"""

import pytest

from ace_lora.commands import WrongInput
from ace_lora.training.songs import scan_dataset
from tests.training_data import make_record, make_records


def test_scan_reads_lengths_tags_and_digests(tmp_path):
    make_records(tmp_path, None)
    songs = scan_dataset(tmp_path, need_ssl=True)
    assert [(song.name, song.frames, song.lyric_tokens) for song in songs] == [
        ("song 0", 24, 5),
        ("song 1", 17, 8),
        ("song 2", 30, 11),
    ]
    assert songs[0].tags == ["rock", "drums", "120 bpm", "female vocals", "sad"]
    make_record(tmp_path, "song 1", 17, lyric_tokens=8, scale=1.0001)
    again = scan_dataset(tmp_path, need_ssl=True)
    assert [one.digest == other.digest for one, other in zip(songs, again, strict=True)] == [True, False, True]


def test_every_unusable_record_is_named(tmp_path):
    make_records(tmp_path, None, (9, 9))
    make_record(tmp_path, "no features", ssl="none")
    (tmp_path / "song 0.safetensors").write_bytes(b"{}")
    with pytest.raises(WrongInput) as caught:
        scan_dataset(tmp_path, need_ssl=True)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 2 and "song 0.safetensors" in text and "'no features'" in text
