"""Run with: pytest tests/training/test_origins.py — songs as step 5 records them, then changed on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from ace_lora.records.fingerprints import audio_fingerprint, digest
from ace_lora.training.origins import remarks_on_origins
from ace_lora.training.songs import TrainingSong


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    songs = tmp_path / "我的 songs"
    songs.mkdir()
    for name in ("a", "b", "c"):
        (songs / f"{name}.mp3").write_bytes(b"sound of " + name.encode())
        (songs / f"{name}_prompt.txt").write_text("rock,  drums\n", encoding="utf-8")
        (songs / f"{name}_lyrics.txt").write_text("la la", encoding="utf-8")
    return songs


def record(folder: Path, name: str, **changes: object) -> TrainingSong:
    """What a training knows of a record of the song as it is now."""
    metadata = {
        "audio": str(folder / f"{name}.mp3"),
        "prompt": "rock, drums",
        "lyric_language": "en",
        "fingerprint": {
            "audio": audio_fingerprint(folder / f"{name}.mp3"),
            "text": {"input": digest("rock, drums")},
            "lyrics": {"input": digest(["la la", "", ""])},
        },
        **changes,
    }
    return TrainingSong(Path(f"{name}.safetensors"), name, 10, 2, "stored", "", metadata)


def test_nothing_is_said_of_songs_that_are_as_they_were(folder):
    assert remarks_on_origins([record(folder, name) for name in "abc"]) == []


def test_changes_and_songs_without_a_record_are_named(folder):
    songs = [record(folder, name) for name in "ab"]
    (folder / "a.mp3").write_bytes(b"another sound")
    (folder / "a_prompt.txt").write_text("rock, drums, sad", encoding="utf-8")
    (folder / "b_lyrics.txt").write_text("la la la", encoding="utf-8")
    audio, prompt, lyrics, missing = remarks_on_origins(songs)
    assert audio.startswith("The audio of 1 songs changed since their records were made: 'a'. Run convert2hf_")
    assert prompt.startswith("The prompt of 1 songs changed since their records were made: 'a'. ")
    assert lyrics.startswith("The lyrics of 1 songs changed since their records were made: 'b'. ")
    assert missing.startswith(f"1 songs in '{folder}' have no record here: 'c'. ")


@pytest.mark.parametrize("times", ["new", "removed"])
def test_times_of_the_lyrics_count(folder, times):
    timed = folder / "a_lyrics.lrc"
    fingerprint = record(folder, "a").metadata["fingerprint"]
    if times == "new":
        timed.write_text("[00:01.00]la la", encoding="utf-8")
    else:
        fingerprint["lyrics"]["input"] = digest(["la la", "[00:01.00]la la", ""])
    songs = [record(folder, "a", fingerprint=fingerprint), record(folder, "b"), record(folder, "c")]
    assert [remark.split(" of ")[0] for remark in remarks_on_origins(songs)] == ["The lyrics"]


def test_what_cannot_be_told_is_not(folder):
    songs = [
        record(folder, "a", fingerprint="of another program"),
        record(folder, "a", fingerprint={"audio": {}, "text": {}, "lyrics": 5}),
        record(folder, "b", audio="/gone/b.mp3"),
        record(folder, "c", lyric_language="zh"),
    ]
    songs[3].metadata["fingerprint"]["lyrics"]["input"] = digest(["la la", "", "zh"])  # made with --lyric_language zh
    (folder / "b_prompt.txt").write_bytes(b"\xff\xfe broken")
    remarks = remarks_on_origins(songs)
    assert len(remarks) == 1 and "have no record here: 'b'" in remarks[0]
