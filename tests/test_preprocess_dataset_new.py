"""Step 5 on real audio with the tiny base: whole records, what is done again and what is not, kills at any moment.

ACE_LORA_KILLS=20 pytest tests/test_preprocess_dataset_new.py -k kill    more kills than the few of the normal run
"""

import json
import math
import os
import random
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

import convert2hf_dataset_new as convert
import preprocess_dataset_new as preprocess
from ace_lora.audio import decode as audio_module
from ace_lora.audio.decode import AudioError, prepare_waveform, read_audio
from ace_lora.base_weights import find as base_weights
from ace_lora.commands import run_script
from ace_lora.preprocessing.dataset import DatasetSong
from ace_lora.records.fingerprints import audio_fingerprint
from ace_lora.records.record import RecordError, list_records, read_metadata, read_record, restore_rows, write_tensors
from ace_lora.tiny_base.make import make_tiny_base
from ace_lora.v1 import dcae, ssl_features
from tests.golden_audio import assert_digest, audio, golden_json, weights

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "audio"
TENSORS = ("target_latents", "text_token_ids", "lyric_token_ids", "mert", "mhubert", "mert_scale", "mhubert_scale")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_tiny_base(folder)
    return folder


def write_song(path: Path, seconds: float, rate: int = 44100, channels: int = 2, seed: int = 0) -> None:
    noise = np.random.default_rng(seed).standard_normal((int(seconds * rate), channels)) * 0.1
    tone = 0.3 * np.sin(np.arange(len(noise))[:, None] * 0.03 * (seed + 1))
    formats = {".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3"}
    soundfile.write(path, (noise + tone).astype(np.float32), rate, format=formats[path.suffix])


class Project:
    """A folder of songs on its way through steps 4 and 5."""

    def __init__(self, folder: Path, tiny: Path, capsys):
        self.folder, self.tiny, self.capsys = folder, tiny, capsys
        self.songs = folder / "我的 歌"
        self.prep = folder / "prep"
        self.songs.mkdir()

    def add(self, name: str, prompt: str, lyrics: str | None = None, **sound) -> Path:
        path = self.songs / name
        write_song(path, **{"seconds": 3.2, **sound})
        (self.songs / f"{path.stem}_prompt.txt").write_text(prompt, encoding="utf-8")
        if lyrics is not None:
            (self.songs / f"{path.stem}_lyrics.txt").write_text(lyrics, encoding="utf-8")
        return path

    def convert(self, output: str = "filenames") -> None:
        arguments = ["--data_dir", str(self.songs), "--output_name", str(self.folder / output)]
        assert run_script(convert.main, convert.parse_args(arguments)) == 0
        self.capsys.readouterr()

    def arguments(self, *more: str) -> list[str]:
        paths = {"--input_name": "filenames", "--output_dir": "prep"}
        given = [part for flag, name in paths.items() for part in (flag, str(self.folder / name)) if flag not in more]
        return [*given, "--checkpoint_dir", str(self.tiny), "--device", "cpu", *more]

    def preprocess(self, *more: str) -> tuple[int, str, str]:
        """Exit status, stdout and the error lines of stderr."""
        status = run_script(preprocess.main, preprocess.parse_args(self.arguments(*more)))
        captured = self.capsys.readouterr()
        errors = captured.err[captured.err.find("error: ") :] if "error: " in captured.err else ""
        return status, captured.out, errors

    def records(self) -> dict[str, dict]:
        """Tensors and metadata of every file in the training folder; fails where one is no record."""
        assert sorted(self.prep.iterdir()) == list_records(self.prep)
        result = {}
        for path in list_records(self.prep):
            record = read_record(path)
            result[path.stem] = {name: getattr(record, name) for name in TENSORS} | {"metadata": record.metadata}
        return result

    def others(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} - {self.songs.name, "filenames", "prep"}


@pytest.fixture
def project(tmp_path, tiny, capsys) -> Project:
    return Project(tmp_path, tiny, capsys)


@pytest.fixture
def two_songs(project) -> Project:
    project.add("夜曲.flac", "folk, guitar", "[verse]\nThe river carries all the light away")
    project.add("b.wav", "ambient", seconds=3.6, rate=22050, channels=1, seed=1)
    project.convert()
    return project


def lines_of(out: str, start: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith(start)]


def same(first: dict, second: dict, names=TENSORS) -> bool:
    return all(
        first[name] is second[name] or (first[name] is not None and torch.equal(first[name], second[name]))
        for name in names
    )


# --- Whole records ---


def test_one_record_per_song_and_nothing_else(two_songs):
    status, out, errors = two_songs.preprocess()
    assert (status, errors) == (0, "")
    assert lines_of(out, "song ") == ["song 1/2 | b.wav | done", "song 2/2 | 夜曲.flac | done"]
    assert out.splitlines()[-1] == "done 2, skipped 0, failed 0"
    assert two_songs.others() == set()
    records = two_songs.records()
    assert set(records) == {"b", "夜曲"}
    for stem, seconds in (("夜曲", 3.2), ("b", 3.6)):
        record, samples = records[stem], round(seconds * 48000)
        frames = math.ceil(math.ceil(samples * 147 / 160) / 4096)
        assert list(record["target_latents"].shape) == [8, 16, frames]
        # One chunk each: the frames of its true samples.
        assert list(record["mert"].shape) == [math.ceil(samples // 2 / 320), 32]
        assert list(record["mhubert"].shape) == [math.ceil(samples // 3 / 320), 24]
        assert record["text_token_ids"][-1] == 1 and record["lyric_token_ids"][0] == 261
    metadata = records["夜曲"]["metadata"]
    assert metadata["prompt"] == "folk, guitar"
    assert metadata["lyrics"] == "[verse]\nThe river carries all the light away"
    assert metadata["timed_lines"] == [] and metadata["ssl"] == "stored"
    assert metadata["seconds"] == pytest.approx(3.2) and metadata["cropped"] is False
    assert Path(metadata["audio"]) == (two_songs.songs / "夜曲.flac").resolve()
    assert records["b"]["metadata"]["lyrics"] == "[instrumental]"


@pytest.fixture(scope="module")
def golden_base(tmp_path_factory) -> Path:
    """A checkpoint folder of the golden tiny models, formula weights, and the golden stub tokenizer (bytes + 3)."""
    from diffusers import AutoencoderDC
    from transformers import HubertConfig, HubertModel

    folder = tmp_path_factory.mktemp("golden") / "base"
    make_tiny_base(folder)
    configs = golden_json("record")["configs"]
    autoencoder = AutoencoderDC(**configs["dcae"])
    hubert = {name: HubertModel(HubertConfig(**configs[name])) for name in ("mert", "mhubert")}
    for part, model, config, file in (
        ("music_dcae_f8c8", autoencoder, configs["dcae"], "diffusion_pytorch_model.safetensors"),
        ("MERT-v1-330M", hubert["mert"], configs["mert"], "model.safetensors"),
        ("mHuBERT-147", hubert["mhubert"], configs["mhubert"], "model.safetensors"),
    ):
        for old in (*(folder / part).glob("*.safetensors"), *(folder / part).glob("*.bin")):
            old.unlink()
        save_file(weights({name: tensor.shape for name, tensor in model.state_dict().items()}), folder / part / file)
        (folder / part / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokens = ["<pad>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for number, token in enumerate(tokens[:3])
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [],
        },
    }
    (folder / "umt5-base" / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    if os.environ.get("ACE_LYRIC_VOCAB"):
        (folder / "vocab.json").write_bytes(Path(os.environ["ACE_LYRIC_VOCAB"]).read_bytes())
        config = json.loads((folder / "ace_step_transformer/config.json").read_text(encoding="utf-8"))
        config["lyric_encoder_vocab_size"] = 6693
        (folder / "ace_step_transformer/config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_golden_song(folder: Path, stem: str) -> dict:
    song = golden_json("record")["songs"][stem]
    recipe = song["input"]
    soundfile.write(folder / f"{stem}.wav", audio(recipe).T, recipe["rate"], subtype="FLOAT")
    for kind in ("prompt", "lyrics"):
        if song[f"{kind}_file"] is not None:
            (folder / f"{stem}_{kind}.txt").write_text(song[f"{kind}_file"], encoding="utf-8")
    return song


def test_golden_whole_records(project, golden_base):
    golden = {stem: write_golden_song(project.songs, stem) for stem in ("track_a", "track_b")}
    project.convert()
    project.tiny = golden_base
    assert project.preprocess()[0] == 0
    for stem, record in project.records().items():
        fields = golden[stem]["fields"]
        assert_digest(record["target_latents"], fields["target_latents"]["digest"], f"{stem}.target_latents", 1e-4)
        assert record["text_token_ids"].tolist() == fields["text_token_ids"]["values"]
        reference = read_record(GOLDEN / f"record_{stem}.hdf5")
        for branch in ("mert", "mhubert"):
            rows = restore_rows(record[branch], record[f"{branch}_scale"])
            cosine = torch.cosine_similarity(rows.double(), getattr(reference, branch).double(), dim=1)
            assert cosine.shape == (fields[f"{branch}_ssl_hidden_states"]["shape"][0],)
            assert 1 - float(cosine.min()) < 4e-4
            lengths = rows.norm(dim=1) / getattr(reference, branch).norm(dim=1)
            assert float((lengths - 1).abs().max()) < 0.01


@pytest.mark.skipif(not os.environ.get("ACE_LYRIC_VOCAB"), reason="ACE_LYRIC_VOCAB does not name the lyric vocabulary")
def test_golden_lyric_ids(project, golden_base):
    golden = {stem: write_golden_song(project.songs, stem) for stem in ("track_a", "track_b")}
    project.convert()
    project.tiny = golden_base
    assert project.preprocess("--ssl", "none")[0] == 0
    ids = {stem: record["lyric_token_ids"].tolist() for stem, record in project.records().items()}
    assert ids == {stem: song["fields"]["lyric_token_ids"]["values"] for stem, song in golden.items()}


@pytest.mark.parametrize("stem", ["track_a", "track_b"])
def test_golden_features_before_rounding(tmp_path, golden_base, stem):
    song = write_golden_song(tmp_path, stem)
    wave, _ = prepare_waveform(read_audio(tmp_path / f"{stem}.wav"))
    assert_digest(wave, song["audio48k"], f"audio.{stem}", 1e-4)
    cpu = {"device": torch.device("cpu"), "dtype": torch.float32}
    for branch, load, kind, folder in (
        ("mert", ssl_features.load_mert, ssl_features.MERT, "MERT-v1-330M"),
        ("mhubert", ssl_features.load_mhubert, ssl_features.MHUBERT, "mHuBERT-147"),
    ):
        features = ssl_features.extract_features(load(golden_base / folder, **cpu), wave, kind, 2)
        field = f"{branch}_ssl_hidden_states"
        assert_digest(features, song["fields"][field]["digest"], f"{stem}.{field}", 1e-4)


# --- The networks' inputs ---


def work_on(path: Path, stages: list[str]) -> preprocess.Work:
    song = DatasetSong(path.stem, path, "pop", "", "")
    fingerprint = {"audio": audio_fingerprint(path), **{stage: {} for stage in stages}}
    return preprocess.Work(song, str(path), fingerprint=fingerprint, stages=stages)


def test_a_song_is_decoded_once_where_main_memory_has_room(tmp_path):
    path = tmp_path / "夜曲.flac"
    write_song(path, 3.2)
    work = work_on(path, ["latents", "mert", "mhubert"])
    inputs = preprocess.Inputs(torch.device("cpu"))
    assert inputs.room == 0  # on a CPU every network decodes anew
    inputs.room = 480_000  # bytes of the MERT input, five seconds: none is left for mHuBERT
    wave, _ = prepare_waveform(read_audio(path))
    made = inputs.make(work, "latents")
    assert torch.equal(made.values[0], preprocess.network_input("latents", wave)[0])
    assert made.facts == {"seconds": 3.2, "original_seconds": 3.2, "cropped": False}
    assert set(inputs.waiting) == {("夜曲", "mert")} and inputs.room == 0
    path.unlink()
    made = inputs.make(work, "mert")
    expected, samples = preprocess.network_input("mert", wave)
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
        preprocess.Inputs(torch.device("cpu")).make(work, "latents")


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_with_the_next_song_begun_before_a_result_is_collected(tmp_path, tiny, kind):
    """What is done on an NVIDIA card, on the CPU: order, results and failures stay those of one after another."""
    works = []
    for number in range(4):
        path = tmp_path / f"{number}.wav"
        write_song(path, 3.2, seed=number)
        works.append(work_on(path, ["latents"]))
    works[1].song.audio.write_bytes(b"this is no audio" * 100)
    network = preprocess.load_network("latents", tiny / "music_dcae_f8c8", "cpu", torch.float32)
    device = SimpleNamespace(torch_device=SimpleNamespace(type=kind))
    inputs = preprocess.Inputs(torch.device("cpu"))
    found = list(preprocess.compute_all("latents", network, works, inputs, device))
    assert [work for work, _ in found] == works
    for work, computed in found:
        if work is works[1]:
            assert computed is None and "cannot be decoded" in work.outcome
            continue
        wave, _ = prepare_waveform(read_audio(work.song.audio))
        assert torch.equal(computed[0], dcae.encode_latents(network, wave)) and not work.outcome
        assert computed[1]["audio_sha256"] == work.fingerprint["audio"]["sha256"]


# --- Running again ---


def test_up_to_date_songs_need_no_network_and_no_torch(two_songs):
    assert two_songs.preprocess()[0] == 0
    before = {path: path.stat().st_mtime_ns for path in two_songs.prep.iterdir()}
    code = (
        "import sys, preprocess_dataset_new as p; from ace_lora.commands import run_script;"
        "status = run_script(p.main, p.parse_args(sys.argv[1:]));"
        "print(status, [name for name in ('torch', 'soundfile', 'av', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *two_songs.arguments()],
        capture_output=True,
        cwd=ROOT,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert done.stdout.splitlines()[-2:] == ["done 0, skipped 2, failed 0", "0 []"], done.stderr
    assert "song 2/2 | 夜曲.flac | skipped" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in two_songs.prep.iterdir()} == before


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


def test_a_base_with_another_network_makes_that_piece_again(two_songs, tmp_path_factory):
    assert two_songs.preprocess()[0] == 0
    first = two_songs.records()
    other = tmp_path_factory.mktemp("other") / "base"
    make_tiny_base(other)
    path = next((other / "mHuBERT-147").glob("*.safetensors"))
    from safetensors.torch import load_file

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


def test_ssl_modes(two_songs):
    status, out, _ = two_songs.preprocess("--ssl", "none")
    assert status == 0 and "mert" not in out
    none = two_songs.records()
    assert none["b"]["mert"] is None and none["b"]["metadata"]["ssl"] == "none"
    size = (two_songs.prep / "b.safetensors").stat().st_size
    assert size < 0.02e6 * 3.6

    status, out, _ = two_songs.preprocess("--ssl", "at_training")
    assert status == 0 and "latents: " not in out
    assert two_songs.records()["b"]["metadata"]["ssl"] == "at_training"
    assert Path(two_songs.records()["b"]["metadata"]["audio"]).is_file()

    status, out, _ = two_songs.preprocess()
    assert status == 0 and "mert: 2 songs" in out and "latents: " not in out
    stored = two_songs.records()
    assert same(none["b"], stored["b"], ["target_latents", "text_token_ids", "lyric_token_ids"])
    assert stored["b"]["mert"] is not None and stored["b"]["mhubert"] is not None

    status, out, _ = two_songs.preprocess("--ssl", "none")
    assert status == 0 and two_songs.records()["b"]["mert"] is None


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


# --- Songs that cannot be used ---


def test_bad_songs_are_listed_and_the_rest_goes_on(two_songs):
    silent = two_songs.songs / "silent.wav"
    soundfile.write(silent, np.zeros((44100 * 4, 2)), 44100)
    write_song(two_songs.songs / "gone.wav", 3.2)
    write_song(two_songs.songs / "rotten.wav", 3.2)
    two_songs.convert()
    (two_songs.songs / "gone.wav").unlink()
    (two_songs.songs / "rotten.wav").write_bytes(b"this is no audio" * 100)
    status, out, errors = two_songs.preprocess("--ssl", "none")
    assert status == 1
    assert out.splitlines()[-1] == "done 2, skipped 0, failed 3"
    assert len([line for line in lines_of(out, "song ") if "| failed: " in line]) == 3
    assert errors.startswith("error: 3 of 5 songs could not be preprocessed; the others are done.")
    for name in ("gone.wav", "silent.wav", "rotten.wav"):
        assert f"\n  {name}: " in errors
    assert "is silent" in errors and "cannot be decoded" in errors
    assert set(two_songs.records()) == {"b", "夜曲"} and silent.exists()

    # Mended, the same command finishes.
    for name in ("gone.wav", "rotten.wav", "silent.wav"):
        write_song(two_songs.songs / name, 3.2, seed=3)
    status, out, _ = two_songs.preprocess("--ssl", "none")
    assert status == 0 and out.splitlines()[-1] == "done 3, skipped 2, failed 0"


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


# --- Other files in the training folder ---


def test_hdf5_records_count_as_done(two_songs):
    two_songs.prep.mkdir()
    old = two_songs.prep / "b.hdf5"
    old.write_bytes((GOLDEN / "record_track_b.hdf5").read_bytes())
    status, out, _ = two_songs.preprocess("--ssl", "none")
    assert status == 0 and "song 1/2 | b.wav | skipped" in out
    assert "1 records in" in out and "HDF5" in out
    assert sorted(path.name for path in two_songs.prep.iterdir()) == ["b.hdf5", "夜曲.safetensors"]
    assert old.read_bytes() == (GOLDEN / "record_track_b.hdf5").read_bytes()

    # Cut short by a crash of the script that wrote it: no training could read it, so it may not count as done.
    old.write_bytes(old.read_bytes()[:5000])
    status, out, _ = two_songs.preprocess("--ssl", "none")
    assert status == 0 and "b.hdf5 cannot be used and is made again" in out
    assert sorted(path.name for path in two_songs.prep.iterdir()) == ["b.safetensors", "夜曲.safetensors"]
    (moved,) = two_songs.folder.glob("prep.set_aside/*/b.hdf5")
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
    assert sorted(path.name for path in two_songs.prep.iterdir()) == ["foreign.hdf5", "夜曲.safetensors"]
    (moved,) = two_songs.folder.glob("prep.set_aside/*/b.safetensors")
    assert moved.read_bytes() == content
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
        (moved,) = two_songs.folder.glob(f"prep.set_aside/*/{name}")
        assert moved.read_bytes() == content
    # Beside the records it is only named, and nobody is told to delete it.
    (two_songs.prep / "lora.safetensors").write_bytes(own["b.safetensors"])
    status, out, _ = two_songs.preprocess("--ssl", "none")
    assert status == 0 and "lora.safetensors' as a record" in out and "Delete" not in out
    assert (two_songs.prep / "lora.safetensors").read_bytes() == own["b.safetensors"]


# --- Shares and wrong input ---


def test_shares_divide_the_songs(project):
    for number in range(5):
        project.add(f"{number}.wav", "pop", seed=number)
    project.convert()
    status, out, _ = project.preprocess("--ssl", "none", "--shard", "2/2")
    assert status == 0 and "5 songs in" in out and "2 of them in share 2/2" in out
    assert set(project.records()) == {"1", "3"}
    status, out, _ = project.preprocess("--ssl", "none", "--shard", "1/2")
    assert status == 0 and set(project.records()) == {"0", "1", "2", "3", "4"}
    assert project.preprocess("--ssl", "none")[1].splitlines()[-1] == "done 0, skipped 5, failed 0"
    assert project.others() == set()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/-2", "1/0", ""])
def test_wrong_shares(two_songs, shard):
    status, _, errors = two_songs.preprocess("--shard", shard)
    assert status == 2 and f"--shard '{shard}' cannot be used" in errors


def test_all_wrong_input_at_once(two_songs):
    (two_songs.folder / "file").touch()
    status, _, errors = two_songs.preprocess(
        "--shard", "5", "--input_name", str(two_songs.folder / "gone"), "--output_dir", str(two_songs.folder / "file")
    )
    assert status == 2 and len(lines_of(errors, "error: ")) == 3
    assert "does not exist" in errors and "is a file" in errors


def test_device_and_language_are_checked_before_anything_is_written(two_songs):
    status, _, errors = two_songs.preprocess("--device", "gpu", "--lyric_language", "xx", "--shard", "9")
    assert status == 2 and len(lines_of(errors, "error: ")) == 3
    assert "Device 'gpu'" in errors and "lyric language 'xx'" in errors
    assert two_songs.others() == set() and not two_songs.prep.exists()


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


@pytest.mark.parametrize(
    ("running", "starting"), [("1/1", "1/1"), ("1/1", "1/2"), ("2/2", "1/1"), ("2/2", "2/2"), ("1/3", "2/2")]
)
def test_a_second_run_on_the_same_songs_is_refused(two_songs, running, starting):
    partial = two_songs.folder / "prep.partial"
    partial.mkdir()
    with FileLock(partial / f".lock-{running.replace('/', '-of-')}"):
        status, _, errors = two_songs.preprocess("--ssl", "none", "--shard", starting)
        assert status == 2 and "Another run of this step" in errors and "is making records" in errors
        assert ("--shard " + running in errors) == (running != "1/1")
        assert not two_songs.prep.exists()
    # A lock file that a killed run left holds nobody off.
    assert (partial / f".lock-{running.replace('/', '-of-')}").exists()
    assert two_songs.preprocess("--ssl", "none")[0] == 0
    assert set(two_songs.records()) == {"b", "夜曲"} and two_songs.others() == set()


def test_shares_of_one_division_run_at_the_same_time(two_songs):
    partial = two_songs.folder / "prep.partial"
    partial.mkdir()
    piece, unfinished, lock = "夜曲.latents.safetensors", ".tmp-夜曲.safetensors", ".lock-2-of-2"
    write_tensors(partial / piece, {"target_latents": torch.ones(1)}, {})
    (partial / unfinished).touch()
    with FileLock(partial / lock):
        # What the other share is at work on stays.
        assert two_songs.preprocess("--ssl", "none", "--shard", "1/2")[0] == 0
        assert {path.name for path in partial.iterdir()} == {piece, unfinished, lock}
        # So it does when a run on the whole dataset finds every record made.
        (two_songs.songs / "夜曲_prompt.txt").unlink()
        (two_songs.songs / "夜曲.flac").rename(two_songs.folder / "away.flac")
        two_songs.convert()
        assert two_songs.preprocess("--ssl", "none")[1].splitlines()[-1] == "done 0, skipped 1, failed 0"
        assert {path.name for path in partial.iterdir()} == {piece, unfinished, lock}
    assert two_songs.preprocess("--ssl", "none")[0] == 0
    assert not partial.exists()


def test_a_dataset_with_relative_paths_can_be_used_from_any_folder(two_songs, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(two_songs.folder)
    arguments = ["--data_dir", two_songs.songs.name, "--output_name", "filenames"]
    assert run_script(convert.main, convert.parse_args(arguments)) == 0
    assert two_songs.preprocess("--ssl", "none")[0] == 0
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert two_songs.preprocess("--ssl", "none")[1].splitlines()[-1] == "done 0, skipped 2, failed 0"


@pytest.mark.parametrize("place", ["songs", "dataset"])
def test_records_need_a_folder_of_their_own(two_songs, place):
    folder = two_songs.songs if place == "songs" else two_songs.folder / "filenames"
    status, _, errors = two_songs.preprocess("--output_dir", str(folder))
    assert status == 2 and "holds the songs or their dataset" in errors


def test_a_checkpoint_dir_that_is_not_there(two_songs, tmp_path):
    status, _, errors = two_songs.preprocess("--checkpoint_dir", str(tmp_path / "gone"), "--shard", "2")
    assert status == 2 and not two_songs.prep.exists()
    assert len(lines_of(errors, "error: ")) == 2 and f"--checkpoint_dir '{tmp_path / 'gone'}' is not there" in errors


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


def test_help_is_quick_and_light():
    code = "import sys, preprocess_dataset_new as p; p.parse_args(['--input_name', 'a', '--output_dir', 'b']);"
    code += "print([name for name in ('torch', 'numpy', 'datasets', 'safetensors') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# --- Kills ---


def kill_after(arguments: list[str], event: int) -> None:
    """Run the script in a process and kill it when it has printed or written the `event`-th of its signs of life."""
    # Every write to a file is a sign of life: the kill falls into the moments around which files are made.
    code = (
        "import sys, pathlib, os, preprocess_dataset_new as p;"
        "from ace_lora import files; from ace_lora.v1 import dcae;"
        "from ace_lora.commands import run_script;"
        "sys.addaudithook(lambda name, args: name in ('os.rename', 'os.remove', 'open', 'os.chmod')"
        " and 'prep.partial' in str(args[0]) and print('*', flush=True));"
        "raise SystemExit(run_script(p.main, p.parse_args(sys.argv[1:])))"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            event -= line.startswith(b"*")
            if event <= 0:
                break
        process.kill()
        process.wait()
    finally:
        watchdog.cancel()
        process.stdout.close()


def test_killed_at_random_moments_the_result_is_the_same(project):
    for number in range(3):
        project.add(f"{number}.wav", "pop", "la la la", seed=number)
    project.convert()
    assert project.preprocess("--output_dir", str(project.folder / "whole"))[0] == 0
    expected = {path.name: read_record(path) for path in list_records(project.folder / "whole")}

    moments = random.Random(2024)
    project.prep.mkdir()
    for _ in range(int(os.environ.get("ACE_LORA_KILLS", "3"))):
        kill_after(project.arguments(), moments.randint(1, 65))
        # Whatever the moment: training finds only whole records.
        project.records()
        if len(list_records(project.prep)) == 3 and moments.random() < 0.5:
            list_records(project.prep)[0].unlink()
    status, _, errors = project.preprocess()
    assert (status, errors) == (0, "")
    assert project.others() == {"whole"}
    assert {path.name for path in project.prep.iterdir()} == set(expected)
    for name, record in expected.items():
        found = read_record(project.prep / name)
        assert all(torch.equal(getattr(found, tensor), getattr(record, tensor)) for tensor in TENSORS)
        assert found.metadata.keys() == record.metadata.keys()
        for key in set(record.metadata) - {"fingerprint"}:
            assert found.metadata[key] == record.metadata[key]


def test_pieces_of_songs_that_left_are_cleared(two_songs):
    partial = two_songs.folder / "prep.partial"
    partial.mkdir()
    write_tensors(partial / "left.latents.safetensors", {"target_latents": torch.ones(1)}, {})
    (partial / ".tmp-killed.safetensors").touch()
    (partial / "notes.txt").touch()
    assert two_songs.preprocess("--ssl", "none")[0] == 0
    assert [path.name for path in partial.iterdir()] == ["notes.txt"]
    assert read_metadata(two_songs.prep / "b.safetensors")["ssl"] == "none"
