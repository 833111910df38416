"""Pieces that wait for the rest of their song."""

import torch
from safetensors.torch import load_file, save_file

from ace_lora.records.format import list_records
from ace_lora.records.record import read_metadata
from ace_lora.records.tensor_file import write_tensors
from ace_lora.tiny_base.make import make_tiny_base


def test_pieces_of_an_interrupted_run_are_used(two_songs, tiny, tmp_path_factory):
    broken = tmp_path_factory.mktemp("broken") / "base"
    make_tiny_base(broken)
    path = next((broken / "MERT-v1-330M").glob("*.safetensors"))
    whole = path.read_bytes()
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(path).items()}, path)
    two_songs.tiny = broken
    status, out, errors = two_songs.preprocess()
    assert status == 1 and "2 of 2 songs could not" in errors and "latents: 2 songs" in out
    assert not list_records(two_songs.prep) and two_songs.others() == {"prep.partial"}
    pieces = sorted(path.name for path in (two_songs.folder / "prep.partial").iterdir())
    assert pieces == ["b.latents.safetensors", "夜曲.latents.safetensors"]
    # One piece is damaged and one song has changed: neither may be used.
    path.write_bytes(whole)
    piece = two_songs.folder / "prep.partial" / "b.latents.safetensors"
    piece.write_bytes(piece.read_bytes()[:-1])
    status, out, _ = two_songs.preprocess()
    assert status == 0 and "latents: 1 songs" in out and "mert: 2 songs" in out
    assert set(two_songs.records()) == {"b", "夜曲"} and two_songs.others() == set()


def test_pieces_of_songs_that_left_are_cleared(two_songs):
    partial = two_songs.folder / "prep.partial"
    partial.mkdir()
    write_tensors(partial / "left.latents.safetensors", {"target_latents": torch.ones(1)}, {})
    (partial / ".tmp-killed.safetensors").touch()
    (partial / "notes.txt").touch()
    assert two_songs.preprocess("--ssl", "none")[0] == 0
    assert [path.name for path in partial.iterdir()] == ["notes.txt"]
    assert read_metadata(two_songs.prep / "b.safetensors")["ssl"] == "none"
