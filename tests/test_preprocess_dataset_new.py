"""Step 5 on real audio with the tiny base: whole records, what is done again and what is not, kills at any moment.

ACE_LORA_KILLS=20 pytest tests/test_preprocess_dataset_new.py -k kill    more kills than the few of the normal run
"""

import json
import math
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from ace_lora.audio import decode as audio_module
from ace_lora.audio.decode import prepare_waveform, read_audio
from ace_lora.records.format import list_records
from ace_lora.records.record import read_record, restore_rows
from ace_lora.tiny_base.make import make_tiny_base
from ace_lora.v1 import ssl_features
from tests.golden_audio import assert_digest, audio, golden_json, weights
from tests.prep_project import GOLDEN, ROOT, TENSORS, lines_of, same, write_song


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


@pytest.fixture
def cutting_off(monkeypatch):
    """Samples above full scale, which track_a has, are cut off as the reference does; ours turns the song down."""
    monkeypatch.setattr(audio_module, "_within_full_scale", lambda decoded: (decoded.samples, ""))


@pytest.mark.usefixtures("cutting_off")
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


@pytest.mark.usefixtures("cutting_off")
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


@pytest.mark.parametrize("place", ["songs", "dataset"])
def test_records_need_a_folder_of_their_own(two_songs, place):
    folder = two_songs.songs if place == "songs" else two_songs.folder / "filenames"
    status, _, errors = two_songs.preprocess("--output_dir", str(folder))
    assert status == 2 and "holds the songs or their dataset" in errors


def test_a_checkpoint_dir_that_is_not_there(two_songs, tmp_path):
    status, _, errors = two_songs.preprocess("--checkpoint_dir", str(tmp_path / "gone"), "--shard", "2")
    assert status == 2 and not two_songs.prep.exists()
    assert len(lines_of(errors, "error: ")) == 2 and f"--checkpoint_dir '{tmp_path / 'gone'}' is not there" in errors


def test_help_is_quick_and_light():
    code = "import sys, preprocess_dataset_new as p; p.parse_args(['--input_name', 'a', '--output_dir', 'b']);"
    code += "print([name for name in ('torch', 'numpy', 'datasets', 'safetensors') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


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


def test_loudness_is_part_of_the_record_and_of_nothing_else(two_songs):
    assert two_songs.preprocess("--ssl", "none")[0] == 0
    plain = two_songs.records()
    files = {path: path.read_bytes() for path in two_songs.songs.iterdir()}
    status, out, _ = two_songs.preprocess("--ssl", "none", "--loudness", "-30")
    assert status == 0 and "record was made: loudness" in out and "latents: 2 songs" in out
    quiet = two_songs.records()
    assert not same(plain["b"], quiet["b"], ["target_latents"])
    assert same(plain["b"], quiet["b"], ["text_token_ids", "lyric_token_ids"])
    assert two_songs.preprocess("--ssl", "none", "--loudness", "-30")[1].endswith("done 0, skipped 2, failed 0\n")
    status, out, _ = two_songs.preprocess("--ssl", "none")
    assert status == 0 and "record was made: loudness" in out
    assert same(plain["b"], two_songs.records()["b"])
    assert {path: path.read_bytes() for path in two_songs.songs.iterdir()} == files
    status, _, errors = two_songs.preprocess("--loudness", "14")
    assert status == 2 and "--loudness 14 cannot be used" in errors
