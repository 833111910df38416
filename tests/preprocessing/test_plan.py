"""What is done again, what is kept, and what is set aside, told from whole runs on real audio."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert2hf_dataset_new as convert
from ace_lora.base_weights import find as base_weights
from ace_lora.commands import run_script
from ace_lora.records.format import RecordError
from ace_lora.records.record import read_record
from ace_lora.tiny_base.make import make_tiny_base
from tests.prep_project import GOLDEN, TENSORS, same, write_song


def test_only_what_changed_is_done_again(two_songs):
    assert two_songs.preprocess()[0] == 0
    first = two_songs.records()
    networks = re.compile(r"^(latents|mert|mhubert): \d+ songs$", re.MULTILINE)

    # Copied to another disk: new times, equal content.
    for path in two_songs.songs.iterdir():
        os.utime(path, (1e9, 1e9))
    assert two_songs.preprocess()[1].splitlines()[-1] == "done 0, skipped 2, failed 0"

    (two_songs.songs / "b_prompt.txt").write_text("ambient, slow", encoding="utf-8")
    _, out, _ = two_songs.preprocess()
    assert "warning: b.wav: b_prompt.txt is not what the dataset holds" in out
    assert out.splitlines()[-1] == "done 0, skipped 2, failed 0"
    two_songs.convert()
    status, out, _ = two_songs.preprocess()
    assert status == 0 and not networks.search(out)
    assert "warning: b.wav: changed since its record was made: tags" in out
    assert out.splitlines()[-1] == "done 1, skipped 1, failed 0"
    second = two_songs.records()
    assert same(first["夜曲"], second["夜曲"])
    assert same(first["b"], second["b"], set(TENSORS) - {"text_token_ids"})
    assert not same(first["b"], second["b"], ["text_token_ids"])
    assert second["b"]["metadata"]["prompt"] == "ambient, slow"

    (two_songs.songs / "夜曲_lyrics.txt").write_text("[verse]\nAnother line", encoding="utf-8")
    two_songs.convert()
    status, out, _ = two_songs.preprocess()
    assert status == 0 and not networks.search(out) and "record was made: lyrics" in out
    third = two_songs.records()
    assert same(second["夜曲"], third["夜曲"], set(TENSORS) - {"lyric_token_ids"})
    assert not same(second["夜曲"], third["夜曲"], ["lyric_token_ids"])

    write_song(two_songs.songs / "夜曲.flac", 3.2, seed=9)
    status, out, _ = two_songs.preprocess()
    assert status == 0 and "record was made: audio" in out
    assert networks.findall(out) == ["latents", "mert", "mhubert"]
    fourth = two_songs.records()
    assert same(third["b"], fourth["b"])
    assert not torch.equal(third["夜曲"]["target_latents"], fourth["夜曲"]["target_latents"])
    assert two_songs.preprocess()[1].splitlines()[-1] == "done 0, skipped 2, failed 0"


def test_a_base_with_another_network_makes_that_piece_again(two_songs, tmp_path_factory):
    assert two_songs.preprocess()[0] == 0
    first = two_songs.records()
    other = tmp_path_factory.mktemp("other") / "base"
    make_tiny_base(other)
    path = next((other / "mHuBERT-147").glob("*.safetensors"))

    tensors = load_file(path)
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, path)
    two_songs.tiny = other
    status, out, _ = two_songs.preprocess()
    assert status == 0 and "record was made: base weights" in out
    assert "mhubert: 2 songs" in out and "mert: 2 songs" not in out and "latents: 2 songs" not in out
    second = two_songs.records()
    for stem in first:
        assert same(first[stem], second[stem], set(TENSORS) - {"mhubert", "mhubert_scale"})
        assert not same(first[stem], second[stem], ["mhubert"])


def test_weights_downloaded_during_the_first_run_are_the_same_in_the_second(two_songs, monkeypatch):
    find, calls = base_weights.find_base_weights, []

    def find_nothing_at_first(*arguments):
        calls.append(arguments)
        return {} if len(calls) == 1 else find(*arguments)

    monkeypatch.setattr(base_weights, "find_base_weights", find_nothing_at_first)
    assert two_songs.preprocess()[0] == 0
    assert two_songs.preprocess()[1].splitlines()[-1] == "done 0, skipped 2, failed 0"


def test_base_weights_that_are_gone_count_as_unchanged(two_songs, monkeypatch):
    assert two_songs.preprocess()[0] == 0
    monkeypatch.setattr(base_weights, "find_base_weights", lambda *arguments: {})
    assert two_songs.preprocess()[1].splitlines()[-1] == "done 0, skipped 2, failed 0"


def test_a_record_outlives_its_audio(two_songs):
    assert two_songs.preprocess()[0] == 0
    (two_songs.songs / "b.wav").unlink()
    status, out, _ = two_songs.preprocess()
    assert status == 0 and out.splitlines()[-1] == "done 0, skipped 2, failed 0"
    assert "warning: b.wav: its audio cannot be read" in out
    status, out, _ = two_songs.preprocess("--ssl", "at_training")
    assert status == 1 and "song 1/2 | b.wav | failed: " in out


def test_a_dataset_that_names_another_place_without_audio_does_not_change_the_recorded_place(two_songs):
    assert two_songs.preprocess("--ssl", "none")[0] == 0
    place = two_songs.records()["b"]["metadata"]["audio"]
    moved = two_songs.songs.rename(two_songs.folder / "moved")
    two_songs.songs = moved
    two_songs.convert()
    for path in moved.iterdir():
        path.rename(path.with_suffix(".away"))
    assert two_songs.preprocess("--ssl", "none")[1].splitlines()[-1] == "done 0, skipped 2, failed 0"
    assert two_songs.records()["b"]["metadata"]["audio"] == place


def test_the_place_of_the_audio_is_followed(two_songs):
    assert two_songs.preprocess("--ssl", "at_training")[0] == 0
    first = two_songs.records()
    two_songs.songs.rename(two_songs.folder / "moved")
    two_songs.songs = two_songs.folder / "moved"
    two_songs.convert()
    status, out, _ = two_songs.preprocess("--ssl", "at_training")
    assert status == 0 and "record was made: place of the audio" in out and "device:" not in out
    second = two_songs.records()
    assert same(first["b"], second["b"])
    assert Path(second["b"]["metadata"]["audio"]) == (two_songs.folder / "moved" / "b.wav").resolve()
    two_songs.songs.rename(two_songs.folder / "我的 歌")


def test_a_dataset_with_relative_paths_can_be_used_from_any_folder(two_songs, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(two_songs.folder)
    arguments = ["--data_dir", two_songs.songs.name, "--output_name", "filenames"]
    assert run_script(convert.main, convert.parse_args(arguments)) == 0
    assert two_songs.preprocess("--ssl", "none")[0] == 0
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert two_songs.preprocess("--ssl", "none")[1].splitlines()[-1] == "done 0, skipped 2, failed 0"


def test_hdf5_records_count_as_done(two_songs):
    two_songs.prep.mkdir()
    old = two_songs.prep / "b.hdf5"
    old.write_bytes((GOLDEN / "record_track_b.hdf5").read_bytes())
    status, out, _ = two_songs.preprocess("--ssl", "none")
    assert status == 0 and "song 1/2 | b.wav | skipped" in out
    assert "1 records in" in out and "HDF5" in out
    assert two_songs.files() == ["b.hdf5", "夜曲.safetensors"]
    assert old.read_bytes() == (GOLDEN / "record_track_b.hdf5").read_bytes()

    # Cut short by a crash of the script that wrote it: no training could read it, so it may not count as done.
    old.write_bytes(old.read_bytes()[:5000])
    status, out, _ = two_songs.preprocess("--ssl", "none")
    assert status == 0 and "b.hdf5 cannot be used and is made again" in out
    assert two_songs.files() == ["b.safetensors", "夜曲.safetensors"]
    (moved,) = two_songs.folder.glob("prep/.removed/*/b.hdf5")
    assert moved.stat().st_size == 5000


def test_records_of_songs_that_left_the_dataset_are_set_aside(two_songs):
    assert two_songs.preprocess("--ssl", "none")[0] == 0
    foreign = two_songs.prep / "foreign.hdf5"
    foreign.write_bytes((GOLDEN / "record_track_a.hdf5").read_bytes())
    content = (two_songs.prep / "b.safetensors").read_bytes()
    (two_songs.songs / "b.wav").rename(two_songs.songs / "b.wav.away")
    two_songs.convert()
    status, out, _ = two_songs.preprocess("--ssl", "none")
    assert status == 0
    assert two_songs.files() == ["foreign.hdf5", "夜曲.safetensors"]
    (moved,) = two_songs.folder.glob("prep/.removed/*/b.safetensors")
    assert moved.read_bytes() == content
    # The window restores by this file.
    manifest = json.loads((moved.parent / "removed.json").read_text(encoding="utf-8"))
    assert manifest["files"] == {"b.safetensors": "b.safetensors"}
    assert manifest["reason"] == "records of songs that are no longer in the dataset"
    assert f"no longer in the dataset, so their records were moved to '{moved.parent.resolve()}': b" in out
    assert "holds records of other songs than this dataset's, training uses them too: foreign.hdf5" in out


def test_two_datasets_may_share_a_training_folder(two_songs):
    assert two_songs.preprocess("--ssl", "none")[0] == 0
    (two_songs.songs / "b.wav").unlink()
    (two_songs.songs / "夜曲.flac").rename(two_songs.songs / "c.flac")
    two_songs.convert("second")
    second = str(two_songs.folder / "second")
    status, out, _ = two_songs.preprocess("--ssl", "none", "--input_name", second)
    assert status == 0 and "training uses them too: b.safetensors, 夜曲.safetensors" in out
    assert set(two_songs.records()) == {"b", "c", "夜曲"}


def test_damaged_records_are_made_again(two_songs):
    assert two_songs.preprocess("--ssl", "none")[0] == 0
    whole = two_songs.records()
    path = two_songs.prep / "b.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    status, out, _ = two_songs.preprocess("--ssl", "none")
    assert status == 0 and "its record b.safetensors cannot be used and is made again: it is cut short" in out
    assert same(two_songs.records()["b"], whole["b"])

    # Damage inside, which the size does not show, whether or not something else has changed.
    damaged = bytearray(content)
    damaged[-100] ^= 1
    for prompt in ("ambient", "ambient, slow"):
        path.write_bytes(damaged)
        with pytest.raises(RecordError):
            read_record(path)
        (two_songs.songs / "b_prompt.txt").write_text(prompt, encoding="utf-8")
        two_songs.convert()
        status, out, _ = two_songs.preprocess("--ssl", "none")
        assert status == 0 and "b.wav: its record b.safetensors cannot be used and is made again" in out
        assert same(two_songs.records()["b"], whole["b"], ["target_latents", "lyric_token_ids"])
    assert two_songs.others() == set()


def test_a_file_of_the_users_in_a_records_place_is_set_aside(two_songs):
    two_songs.prep.mkdir()
    own = {
        "b.safetensors": (two_songs.tiny / "MERT-v1-330M" / "model.safetensors").read_bytes(),
        "夜曲.safetensors": b"my notes about this song",
    }
    for name, content in own.items():
        (two_songs.prep / name).write_bytes(content)
    status, out, _ = two_songs.preprocess("--ssl", "none")
    assert status == 0 and "b.safetensors was moved to" in out
    assert set(two_songs.records()) == {"b", "夜曲"}
    for name, content in own.items():
        (moved,) = two_songs.folder.glob(f"prep/.removed/*/{name}")
        assert moved.read_bytes() == content
    # Beside the records it is only named, and nobody is told to delete it.
    (two_songs.prep / "lora.safetensors").write_bytes(own["b.safetensors"])
    status, out, _ = two_songs.preprocess("--ssl", "none")
    assert status == 0 and "lora.safetensors' as a record" in out and "Delete" not in out
    assert (two_songs.prep / "lora.safetensors").read_bytes() == own["b.safetensors"]
