"""Token ids and times of prompts and lyrics, as they end up in records."""

import math

import torch

from ace_lora.audio import decode as audio_module


def test_timed_lyrics_are_kept_with_the_record(two_songs):
    assert two_songs.preprocess("--ssl", "none")[0] == 0
    timed = two_songs.songs / "夜曲_lyrics.lrc"
    timed.write_text("[00:01.50]The river carries all the light away", encoding="utf-8")
    status, out, _ = two_songs.preprocess("--ssl", "none")
    assert status == 0 and "record was made: lyrics" in out
    lines = two_songs.records()["夜曲"]["metadata"]["timed_lines"]
    assert lines == [[None, "[verse]"], [1.5, "The river carries all the light away"]]


def test_tags_that_are_left_out_are_said(project):
    project.add("long.wav", ", ".join(f"tag {number}" for number in range(300)))
    project.add("short.wav", "rock")
    project.convert()
    status, out, _ = project.preprocess("--ssl", "none")
    assert status == 0
    assert "warning: long.wav: its tags are longer than the 256 tokens that the model reads" in out
    assert "short.wav: its tags" not in out
    assert len(project.records()["long"]["text_token_ids"]) == 256


def test_cropping_is_said_and_timed_lyrics_are_cropped(project, monkeypatch):
    monkeypatch.setattr(audio_module, "MAX_SECONDS", 5)
    project.add(
        "timed.wav", "pop", "[verse]\n[00:01.00]first line\n[00:04.50]second line\n[00:06.00]third line", seconds=7
    )
    project.add("beside.wav", "pop", "[verse]\nfirst line\nthird line", seconds=7)
    (project.songs / "beside_lyrics.lrc").write_text("[00:01.00]first line\n[00:06.00]third line", encoding="utf-8")
    project.add("untimed.wav", "pop", "[verse]\nfirst line", seconds=7)
    project.add("short.wav", "pop", "[00:01.00]first line", seconds=4)
    project.convert()
    status, out, _ = project.preprocess("--ssl", "none")
    assert status == 0
    for name in ("timed", "beside", "untimed"):
        assert f"warning: {name}.wav: it is 7 s long; only the first 5 s are used" in out
    assert "warning: untimed.wav: its lyrics have no times" in out and "short.wav: it is" not in out
    records = project.records()
    texts = {stem: record["metadata"]["lyrics"] for stem, record in records.items()}
    assert texts == {
        "timed": "[verse]\nfirst line\nsecond line",
        "beside": "[verse]\nfirst line",
        "untimed": "[verse]\nfirst line",
        "short": "first line",
    }
    assert torch.equal(records["beside"]["lyric_token_ids"], records["untimed"]["lyric_token_ids"])
    metadata = records["timed"]["metadata"]
    assert (metadata["cropped"], metadata["seconds"], metadata["original_seconds"]) == (True, 5.0, 7.0)
    assert metadata["timed_lines"][1] == [1.0, "first line"] and metadata["timed_lines"][-1][0] == 6.0
    assert records["timed"]["target_latents"].shape[2] == math.ceil(5 * 44100 / 4096)


def test_missing_lyric_support_stops_before_anything_is_written(two_songs, monkeypatch):
    from ace_lora.lyrics import japanese

    def not_installed():
        raise ImportError("No module named 'cutlet'")

    # Installed on the machine that tests, so its absence has to be made up.
    monkeypatch.setattr(japanese, "_load_cutlet", not_installed)
    (two_songs.songs / "b_lyrics.txt").write_text("[verse]\nさくらが咲く頃\nきみに会いたい", encoding="utf-8")
    two_songs.convert()
    status, _, errors = two_songs.preprocess()
    assert status == 2 and errors.startswith("error: The lyrics of 'b.wav' contain Japanese")
    assert two_songs.others() == set() and not two_songs.prep.exists()
