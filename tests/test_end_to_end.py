"""python -m pytest tests/test_end_to_end.py

The workflow as a user runs it: the five scripts as programs, one after another, on songs in a folder with a space and a
Chinese file name, with the tiny base. Then what the trained file does to a fresh base is measured.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
soundfile = pytest.importorskip("soundfile")
for package in ("lightning", "peft", "datasets", "transformers", "diffusers", "mutagen"):
    pytest.importorskip(package)

from safetensors.torch import load_file  # noqa: E402

from ace_lora.lora.config import read_lora_config  # noqa: E402
from ace_lora.lora.layers import inject_adapter, load_lora, set_adapter_strength  # noqa: E402
from ace_lora.records.format import list_records  # noqa: E402
from ace_lora.records.record import read_record  # noqa: E402
from ace_lora.v1.flow_matching import add_noise, build_schedule, denoising_loss  # noqa: E402
from ace_lora.v1.text_encoder import load_text_encoder  # noqa: E402
from ace_lora.v1.transformer import load_transformer  # noqa: E402

# The first test runs all scripts: half a minute alone, minutes on a busy machine.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[1]
RATE = 44100
LYRICS = "[verse]\nThe river carries all the light away\nwe sing until the morning\n\n[chorus]\n我爱你 my home"
RANK = 16
# What 200 steps on one song must take off its denoising loss, measured on fixed noise at fixed times: from 0.522 to
# below 0.339; 0.311 is what it reaches.
REQUIRED_FALL = 0.35


# --- Songs ------------------------------------------------------------------------------------------------------------


def synthesise(seconds: float, root_hz: float, beats_per_minute: float) -> np.ndarray:
    """[samples, 2] float32: a lead with vibrato, a bass, a chord and a drum, each at its own place in the panorama."""
    time = np.arange(int(seconds * RATE)) / RATE
    beat = time * beats_per_minute / 60
    fade = np.exp(-4 * (beat % 1))
    scale = 2 ** (np.array([0, 2, 4, 7, 9, 7, 4, 2]) / 12)
    lead_hz = 2 * root_hz * scale[(2 * beat).astype(int) % 8] * (1 + 0.005 * np.sin(2 * np.pi * 5 * time))
    lead = np.sin(2 * np.pi * np.cumsum(lead_hz) / RATE) * np.exp(-3 * ((2 * beat) % 1))
    bass_phase = np.cumsum(root_hz / 2 * scale[(beat / 2).astype(int) % 8]) / RATE
    bass = np.sign(np.sin(2 * np.pi * bass_phase)) * fade
    chord = sum(np.sin(2 * np.pi * root_hz * ratio * time) for ratio in (1, 1.26, 1.5)) * (0.6 + 0.4 * np.sin(beat))
    drum = np.random.default_rng(0).standard_normal(len(time)) * np.exp(-30 * (beat % 1))
    left = 0.25 * lead + 0.12 * bass + 0.06 * chord + 0.08 * drum
    right = 0.10 * lead + 0.12 * bass + 0.10 * chord + 0.12 * drum
    return np.stack([left, right], 1).astype(np.float32)


def make_songs(folder: Path) -> None:
    from mutagen.id3 import ID3, USLT

    folder.mkdir()
    soundfile.write(folder / "夜曲 第一.mp3", synthesise(9, 220, 96), RATE, format="MP3")
    tags = ID3()
    tags.add(USLT(encoding=3, lang="eng", text=LYRICS))
    tags.save(folder / "夜曲 第一.mp3")
    soundfile.write(folder / "second song.flac", synthesise(6, 165, 132), RATE, format="FLAC")


# --- The scripts ------------------------------------------------------------------------------------------------------


class Workflow:
    def __init__(self, folder: Path):
        self.folder = folder
        self.songs = folder / "我的 songs"
        self.base = folder / "tiny base"
        self.prep = folder / "songs_prep"
        self.lora = folder / "checkpoints" / "epoch=199-step=200_lora" / "pytorch_lora_weights.safetensors"
        self.output: dict[str, str] = {}

    def run(self, program: str, *arguments: object, expected: int = 0) -> str:
        """Run a script of the repository, or a module, from another folder; returns what it printed."""
        start = [str(ROOT / program)] if program.endswith(".py") else ["-m", program]
        own = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", "HF_HOME": str(self.folder)}
        result = subprocess.run(
            [sys.executable, *start, *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, **own},
            capture_output=True,
            encoding="utf-8",
            timeout=280,
        )
        assert result.returncode == expected, f"{program}: {result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr, result.stderr
        return result.stdout if expected == 0 else result.stderr


@pytest.fixture(scope="module")
def workflow(tmp_path_factory) -> Workflow:
    """Everything is run once; the tests look at what it left."""
    flow = Workflow(tmp_path_factory.mktemp("work flow"))
    make_songs(flow.songs)
    flow.run("ace_lora.tiny_base", flow.base)
    texts = ("generate_prompts_lyrics.py", "--data_dir", flow.songs, "--backend", "analysis")
    flow.run(*texts)
    flow.run(*texts, "--lyrics", "--assume_instrumental")
    filenames = flow.folder / "songs_filenames"
    flow.run("convert2hf_dataset_new.py", "--data_dir", flow.songs, "--output_name", filenames)
    preprocess = ["--input_name", filenames, "--output_dir", flow.prep, "--checkpoint_dir", flow.base]
    flow.output["preprocess"] = flow.run("preprocess_dataset_new.py", *preprocess, "--device", "cpu")
    flow.output["preprocess again"] = flow.run("preprocess_dataset_new.py", *preprocess, "--device", "cpu")

    one_song = flow.folder / "one_prep"
    one_song.mkdir()
    shutil.copy(flow.prep / "夜曲 第一.safetensors", one_song)
    lora_config = json.loads((ROOT / "config" / "lora_config_transformer_only.json").read_text(encoding="utf-8"))
    (flow.folder / "lora.json").write_text(json.dumps({**lora_config, "r": RANK}), encoding="utf-8")
    flow.output["train"] = flow.run(
        *["trainer_new.py", "--dataset_path", one_song, "--checkpoint_dir", flow.base],
        *["--lora_config_path", flow.folder / "lora.json", "--max_steps", 200, "--save_every_n_train_steps", 100],
        *["--learning_rate", 1e-3, "--precision", "32-true", "--device", "cpu", "--logger", "csv"],
    )
    alpha = ["--input_name", flow.lora, "--output_name", flow.folder / "out.safetensors"]
    flow.output["alpha"] = flow.run("add_alpha_in_lora.py", *alpha, "--lora_config_path", flow.folder / "lora.json")
    return flow


def test_texts_of_the_songs(workflow):
    names = sorted(path.name for path in workflow.songs.iterdir())
    assert names == [
        "second song.flac",
        "second song_lyrics.txt",
        "second song_prompt.txt",
        "夜曲 第一.mp3",
        "夜曲 第一_lyrics.txt",
        "夜曲 第一_prompt.txt",
    ]
    read = {name: (workflow.songs / name).read_text(encoding="utf-8").strip() for name in names if name[-3:] == "txt"}
    assert read["second song_lyrics.txt"] == "[instrumental]"
    assert read["夜曲 第一_lyrics.txt"] == LYRICS
    assert all(len(read[f"{stem}_prompt.txt"].split(", ")) >= 2 for stem in ("second song", "夜曲 第一"))


def test_records(workflow):
    assert [path.name for path in list_records(workflow.prep)] == [
        "second song.safetensors",
        "夜曲 第一.safetensors",
    ]
    record = read_record(workflow.prep / "夜曲 第一.safetensors")
    frames = record.target_latents.shape[-1]
    # 9 s and what the mp3 coder adds, at 44100 / 4096 frames per second.
    assert record.target_latents.shape == (8, 16, frames)
    assert 97 <= frames <= 98
    assert record.lyric_token_ids[0] == 261
    assert record.text_token_ids[-1] == 1
    assert record.mert is not None and record.mert.shape[1] == 32
    assert record.mhubert is not None and record.mhubert.shape[1] == 24
    assert read_record(workflow.prep / "second song.safetensors").lyric_token_ids[0] == 261
    assert "done 2, skipped 0, failed 0" in workflow.output["preprocess"]
    assert "done 0, skipped 2, failed 0" in workflow.output["preprocess again"]


def test_checkpoints(workflow):
    made = sorted(path.name for path in (workflow.folder / "checkpoints").iterdir())
    assert made == ["epoch=199-step=200_lora", "epoch=99-step=100_lora"]
    files = sorted(path.name for path in workflow.lora.parent.iterdir())
    assert files == [
        "lora_config.json",
        "pytorch_lora_weights.safetensors",
        "training_state.json",
        "training_state.safetensors",
    ]
    tensors = load_file(workflow.lora)
    layers = [
        f"transformer_blocks.{block}.{attention}.{layer}"
        for block in range(3)
        for attention in ("attn", "cross_attn")
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    assert sorted(tensors) == sorted(f"{layer}.lora_{side}.weight" for layer in layers for side in "AB")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(bool(tensor.any()) for tensor in tensors.values())


def test_alpha(workflow):
    before, after = load_file(workflow.lora), load_file(workflow.folder / "out.safetensors")
    added = {key: after.pop(key).item() for key in list(after) if key.endswith(".alpha")}
    assert {value for value in added.values()} == {4.0}  # alpha / sqrt(r) · r = sqrt(16)
    assert len(added) == 24
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_second_training_refuses_the_used_folder(workflow):
    error = workflow.run(
        *["trainer_new.py", "--dataset_path", workflow.prep, "--checkpoint_dir", workflow.base, "--max_steps", 1],
        *["--device", "cpu"],
        expected=2,
    )
    assert "checkpoints" in error
    assert "--resume" in error and "--output_dir" in error


# --- What the LoRA does -----------------------------------------------------------------------------------------------


class Song:
    """The trained song, and the loss and the velocity that a model has on it at fixed noise and times."""

    def __init__(self, workflow: Workflow):
        record = read_record(workflow.prep / "夜曲 第一.safetensors")
        self.latents = record.target_latents[None]
        self.lyric_ids = record.lyric_token_ids[None]
        encoder = load_text_encoder(workflow.base / "umt5-base", device="cpu", dtype=torch.float32)
        with torch.no_grad():
            self.text = encoder(record.text_token_ids[None]).last_hidden_state
        self.schedule = build_schedule(3.0)

    @torch.no_grad()
    def measure(self, model) -> tuple[float, torch.Tensor]:
        lyrics = model.encode_lyrics(self.lyric_ids)
        context = model.encode_context(self.text, None, lyrics, None, None)
        losses, velocities = [], []
        for index in range(100, 1000, 200):
            noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(index))
            sigma, time = self.schedule.sigmas[index].view(1), self.schedule.timesteps[index].view(1)
            velocity = model(add_noise(self.latents, noise, sigma), time, context).velocity
            losses.append(denoising_loss(velocity, noise, self.latents, sigma).item())
            velocities.append(velocity)
        return sum(losses) / len(losses), torch.cat(velocities)


def test_the_lora_learned_its_song_and_strength_zero_is_the_base(workflow):
    song = Song(workflow)
    base = load_transformer(workflow.base / "ace_step_transformer", dtype=torch.float32, device="cpu")
    loss_before, velocity_before = song.measure(base)

    fresh = load_transformer(workflow.base / "ace_step_transformer", dtype=torch.float32, device="cpu")
    inject_adapter(fresh, read_lora_config(workflow.lora.with_name("lora_config.json")))
    assert load_lora(fresh, workflow.lora) == []
    loss_after, velocity_after = song.measure(fresh)
    print(f"loss {loss_before:.4f} -> {loss_after:.4f}")
    assert loss_after < (1 - REQUIRED_FALL) * loss_before
    assert not torch.allclose(velocity_after, velocity_before, rtol=0.05, atol=0.05)

    set_adapter_strength(fresh, 0)
    loss_at_zero, velocity_at_zero = song.measure(fresh)
    assert torch.equal(velocity_at_zero, velocity_before)
    assert loss_at_zero == loss_before

    set_adapter_strength(fresh, 1)
    assert torch.equal(song.measure(fresh)[1], velocity_after)
