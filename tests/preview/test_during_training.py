"""Samples of a transformer in training: what it makes of a song with its adapter, and nothing of it changed."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from ace_lora.commands import WrongInput, run_script
from ace_lora.device import choose_device
from ace_lora.lora.file import WEIGHTS_NAME, save_lora
from ace_lora.lora.layers import adapter_tensors, inject_adapter
from ace_lora.preview import __main__ as preview
from ace_lora.preview import during_training
from ace_lora.preview.during_training import make_sampler, sample_plan
from ace_lora.records.format import Record
from ace_lora.records.record import write_record
from ace_lora.tiny_base.make import make_tiny_base
from ace_lora.v1.transformer import load_transformer
from tests.preview.test_compare import compare_weights

CONFIG = {"r": 4, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q", "to_v"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    make_tiny_base(home / "base")
    record = Record("song", torch.zeros(8, 16, 4), torch.tensor([5, 6, 1]), torch.tensor([0]), metadata={})
    write_record(home / "song.safetensors", record)
    return home


@pytest.fixture
def model(home):
    """As a training has it: an adapter inside that gets gradients, the lyric branch given back."""
    torch.manual_seed(0)
    model = load_transformer(home / "base" / "ace_step_transformer", dtype=torch.float32, device="cpu")
    inject_adapter(model, CONFIG)
    for key, parameter in adapter_tensors(model).items():
        if key.endswith("lora_B.weight"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.drop_ssl_heads()
    model.drop_lyric_branch()
    return model


def plan_of(home, seconds="0.3"):
    path = home / "plan.json"
    path.write_text(
        '{"songs": [{"name": "a", "record": "song.safetensors", "seconds": ' + seconds + ', "seed": 4}],'
        ' "settings": {"steps": 2}}',
        encoding="utf-8",
    )
    return sample_plan(str(path), [])


def test_a_sample_is_what_the_saved_lora_makes_of_the_song(home, model, tmp_path, capsys):
    sampler = make_sampler(plan_of(home), compare_weights(home), choose_device("cpu"))
    logged = []
    state, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    sampler(model, 40, tmp_path / "samples", lambda *sample: logged.append(sample))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in adapter_tensors(model).values())
    (path,) = (tmp_path / "samples").iterdir()
    assert path.name == "step_000040__a.wav" and f"sample: {path}" in capsys.readouterr().out
    ((name, wave, rate),) = logged
    samples = soundfile.read(path, dtype="float32")[0]
    assert name == "a" and rate == 48_000 and np.array_equal(wave.T.numpy(), samples)

    lora = tmp_path / WEIGHTS_NAME
    save_lora(lora, adapter_tensors(model), CONFIG)
    argv = ["--record", str(home / "song.safetensors"), "--seconds", "0.3", "--seed", "4", "--steps", "2"]
    argv += ["--lora", str(lora), "--checkpoint_dir", str(home / "base"), "--device", "cpu"]
    assert run_script(preview.main, preview.parse_args([*argv, "--output", str(tmp_path / "b.wav")])) == 0
    heard = soundfile.read(tmp_path / "b.wav", dtype="float32")[0]
    # The file's values are bfloat16.
    assert np.linalg.norm(heard - samples) < 0.02 * np.linalg.norm(samples)

    # Later steps load no text encoder again.
    monkeypatched = during_training.encode_texts
    during_training.encode_texts = None
    try:
        sampler(model, 80, tmp_path / "samples", lambda *sample: None)
    finally:
        during_training.encode_texts = monkeypatched
    assert len(list((tmp_path / "samples").iterdir())) == 2


def test_without_room_the_training_goes_on(home, model, tmp_path, monkeypatch, capsys):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    sampler = make_sampler(plan_of(home), compare_weights(home), choose_device("cpu"))
    monkeypatch.setattr(during_training, "sample", full)
    sampler(model, 1, tmp_path / "samples", lambda *sample: None)
    assert "warning: no samples of step 1: the memory is full" in capsys.readouterr().out
    assert not (tmp_path / "samples").exists()


def test_a_disk_that_is_full_does_not_end_the_training(home, model, tmp_path, capsys):
    (tmp_path / "samples").write_text("a file where the folder should be", encoding="utf-8")
    logged = []
    sampler = make_sampler(plan_of(home), compare_weights(home), choose_device("cpu"))
    sampler(model, 1, tmp_path / "samples", lambda *sample: logged.append(sample))
    assert "warning: no sample '" in capsys.readouterr().out and not logged


def test_quantised_weights_are_not_exchanged(home, model, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        during_training, "sample", lambda *given, **options: seen.append(given[3]) or torch.zeros(8, 16, 3)
    )
    weights = compare_weights(home)
    for plain in (True, False):
        make_sampler(plan_of(home), weights, choose_device("cpu"), plain_weights=plain)(
            model, 1, tmp_path / str(plain), lambda *sample: None
        )
    assert [settings.erg_diffusion for settings in seen] == [True, False]


def test_without_a_plan_the_first_songs_of_the_training_are_sung(home):
    plan = sample_plan("", [home / "song.safetensors"] * 3)
    assert len(plan.songs) == 2 and plan.songs[0].text.text_ids == (5, 6, 1) and plan.songs[0].seconds == 30
    with pytest.raises(WrongInput, match="no song to sample"):
        sample_plan("", [])
    with pytest.raises(WrongInput, match="cannot be read"):
        sample_plan(str(home / "none.json"), [])
