"""Inputs made by threads, one network over all songs, and weight files compared before the first one runs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ace_lora.audio.decode import AudioError, prepare_waveform, read_audio
from ace_lora.preprocessing.dataset import DatasetSong
from ace_lora.preprocessing.networks import InputMaker, compute_all, load_network, network_input
from ace_lora.preprocessing.work import SongWork
from ace_lora.records.fingerprints import audio_fingerprint
from ace_lora.tiny_base.make import make_tiny_base
from ace_lora.v1 import dcae
from tests.prep_project import lines_of, write_song


def work_on(path: Path, stages: list[str]) -> SongWork:
    song = DatasetSong(path.stem, path, "pop", "", "")
    fingerprint = {"audio": audio_fingerprint(path), **{stage: {} for stage in stages}}
    return SongWork(song, str(path), fingerprint=fingerprint, stages=stages)


def test_a_song_is_decoded_once_where_main_memory_has_room(tmp_path):
    path = tmp_path / "夜曲.flac"
    write_song(path, 3.2)
    work = work_on(path, ["latents", "mert", "mhubert"])
    inputs = InputMaker(torch.device("cpu"))
    assert inputs.room == 0  # on a CPU every network decodes anew
    inputs.room = 480_000  # bytes of the MERT input, five seconds: none is left for mHuBERT
    wave, _ = prepare_waveform(read_audio(path))
    made = inputs.make(work, "latents")
    assert torch.equal(made.values[0], network_input("latents", wave)[0])
    assert made.facts == {"seconds": 3.2, "original_seconds": 3.2, "cropped": False}
    assert set(inputs.waiting) == {("夜曲", "mert")} and inputs.room == 0
    path.unlink()
    made = inputs.make(work, "mert")
    expected, samples = network_input("mert", wave)
    assert torch.equal(made.values[0], expected) and made.values[1] == samples
    assert inputs.waiting == {} and inputs.room == 480_000
    with pytest.raises(AudioError, match="cannot be opened"):
        inputs.make(work, "mhubert")


def test_a_song_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a.wav"
    write_song(path, 3.2)
    work = work_on(path, ["latents"])
    write_song(path, 3.2, seed=1)
    with pytest.raises(AudioError, match="changed while it was being read"):
        InputMaker(torch.device("cpu")).make(work, "latents")


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_with_the_next_song_begun_before_a_result_is_collected(tmp_path, tiny, kind):
    """What is done on an NVIDIA card, on the CPU: order, results and failures stay those of one after another."""
    works = []
    for number in range(4):
        path = tmp_path / f"{number}.wav"
        write_song(path, 3.2, seed=number)
        works.append(work_on(path, ["latents"]))
    works[1].song.audio.write_bytes(b"this is no audio" * 100)
    network = load_network("latents", tiny / "music_dcae_f8c8", "cpu", torch.float32)
    device = SimpleNamespace(torch_device=SimpleNamespace(type=kind))
    inputs = InputMaker(torch.device("cpu"))
    found = list(compute_all("latents", network, works, inputs, device))
    assert [work for work, _ in found] == works
    for work, computed in found:
        if work is works[1]:
            assert computed is None and "cannot be decoded" in work.outcome
            continue
        wave, _ = prepare_waveform(read_audio(work.song.audio))
        assert torch.equal(computed.values, dcae.encode_latents(network, wave)) and not work.outcome
        assert computed.facts["audio_sha256"] == work.fingerprint["audio"]["sha256"]


def test_all_weight_files_are_compared_before_the_first_network_runs(two_songs, tmp_path_factory):
    broken = tmp_path_factory.mktemp("broken") / "base"
    make_tiny_base(broken)
    for part in ("music_dcae_f8c8", "mHuBERT-147"):
        path = next((broken / part).glob("*.safetensors"))
        save_file({**load_file(path), "foreign.weight": torch.ones(1)}, path)
    two_songs.tiny = broken
    status, out, errors = two_songs.preprocess()
    assert status == 2 and "latents:" not in out
    problems = lines_of(errors, "error: ")
    assert len(problems) == 2 and all("unexpected: foreign.weight" in problem for problem in problems)
    assert "music_dcae_f8c8" in problems[0] and "mHuBERT-147" in problems[1]
    assert two_songs.others() == set() and not two_songs.prep.exists()
