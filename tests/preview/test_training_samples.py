"""Samples of a running training: in the log folder and in TensorBoard, and not a number of the training other."""

from __future__ import annotations

import json

import pytest
import soundfile
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import trainer_new
from ace_lora.commands import run_script
from ace_lora.lora.file import WEIGHTS_NAME
from ace_lora.tiny_base.make import make_tiny_base
from tests.training_data import make_records

LORA = {"r": 4, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q", "to_v"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make_tiny_base(folder / "tiny")
    make_records(folder / "prep", folder / "tiny")
    (folder / "lora.json").write_text(json.dumps(LORA), encoding="utf-8")
    plan = {"songs": [{"name": "我 1", "record": "prep/song 1.safetensors", "seconds": 0.3}], "settings": {"steps": 2}}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    return folder


def train(base, folder, *more):
    argv = [
        "--dataset_path",
        base / "prep",
        "--checkpoint_dir",
        base / "tiny",
        "--lora_config_path",
        base / "lora.json",
    ]
    argv += ["--output_dir", folder / "checkpoints", "--log_dir", folder / "logs", "--precision", "32-true"]
    argv += ["--device", "cpu", "--max_steps", 4, "--warmup_steps", 0, "--save_every_n_train_steps", 1]
    return run_script(trainer_new.main, trainer_new.parse_args([str(value) for value in (*argv, *more)]))


def test_a_training_is_heard_while_it_runs_and_goes_on_as_without(base, tmp_path, capsys):
    sampled, plain = tmp_path / "sampled", tmp_path / "plain"
    assert train(base, sampled, "--sample_every", 2, "--sample_plan", base / "plan.json") == 0
    (folder,) = sampled.glob("logs/*/*/samples")
    assert sorted(path.name for path in folder.iterdir()) == ["step_000002__我_1.wav", "step_000004__我_1.wav"]
    first, second = (soundfile.read(path)[0] for path in sorted(folder.iterdir()))
    assert first.shape == second.shape and (first != second).any()
    assert f"sample: {folder}" in capsys.readouterr().out

    events = EventAccumulator(str(folder.parent), size_guidance={"audio": 0})
    events.Reload()
    audio = events.Audio("samples/我_1")
    assert [event.step for event in audio] == [2, 4] and audio[0].sample_rate == 48_000

    assert train(base, plain, "--logger", "csv") == 0
    name = f"checkpoints/epoch=0-step=4_lora/{WEIGHTS_NAME}"
    (with_samples,), (without,) = (list(home.glob(name.replace("epoch=0", "epoch=*"))) for home in (sampled, plain))
    one, other = load_file(with_samples), load_file(without)
    assert one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)


def test_the_flags_are_checked(base, tmp_path, capsys):
    assert train(base, tmp_path, "--save_every_n_train_steps", 3, "--sample_every", 4, "--logger", "none") == 2
    error = capsys.readouterr().err
    assert "--sample_every is 4, expected 0 or a multiple of --save_every_n_train_steps 3" in error
    assert "expected 0 where --logger is none" in error
    assert train(base, tmp_path, "--sample_every", 1, "--sample_plan", tmp_path / "none.json") == 2
    assert "none.json' cannot be read" in capsys.readouterr().err
