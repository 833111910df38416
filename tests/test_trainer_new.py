"""Run with: pytest tests/test_trainer_new.py

Real trainings of the tiny base model on records of noise, a few steps each. What is compared bit for bit is compared
on a CPU. What is killed or signalled runs as a process of its own.
"""

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import ace_gui
import trainer_new
from ace_lora.commands import run_script
from ace_lora.lora.config import TRAINING_CONFIG_NAME
from ace_lora.lora.file import WEIGHTS_NAME
from ace_lora.records.record import read_record
from ace_lora.tiny_base.make import make_tiny_base
from ace_lora.training import load as training_load
from ace_lora.training import run as training_run
from ace_lora.training.checkpoints import STATE_JSON, STATE_TENSORS
from ace_lora.training.metrics import COLUMNS
from ace_lora.training.optimizers import OPTIMIZERS
from ace_lora.training.plan import Plan
from ace_lora.training.prepare import prepare
from tests.training_data import make_record, make_records

ROOT = Path(__file__).parent.parent
IMAGE_TEST = "test_logger_none_writes_no_logs_and_csv_no_tensorboard"
LORA = {"r": 4, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Tiny base model, records of three songs and a LoRA configuration; tests only read them."""
    folder = tmp_path_factory.mktemp("base")
    make_tiny_base(folder / "tiny")
    make_records(folder / "prep", folder / "tiny")
    write_config(folder / "lora.json")
    return folder


@pytest.fixture(autouse=True)
def without_image(request, monkeypatch):
    """Drawing takes a third of so short a run; two tests here do it, the others leave it to test_metrics.py."""
    if request.node.name not in ("test_files_lines_and_metadata_of_a_run", IMAGE_TEST):
        monkeypatch.setattr("ace_lora.training.metrics.draw_losses", lambda metrics, image: None)


def write_config(path, **changes):
    path.write_text(json.dumps({**LORA, **changes}), encoding="utf-8")
    return path


def arguments(base, folder, **flags):
    """Command-line arguments of a short training into `folder`; a flag set to None is left out, True has no value."""
    values = {
        "dataset_path": base / "prep",
        "checkpoint_dir": base / "tiny",
        "lora_config_path": base / "lora.json",
        "output_dir": folder / "checkpoints",
        "log_dir": folder / "logs",
        "precision": "32-true",
        "device": "cpu",
        "max_steps": 4,
        "warmup_steps": 0,
        "learning_rate": 0.01,
        "logger": "csv",
        **flags,
    }
    argv = []
    for name, value in values.items():
        if value is True:
            argv.append(f"--{name}")
        elif value is not None:
            argv += [f"--{name}", str(value)]
    return argv


def train(base, folder, **flags):
    """Run a training in this process; its exit status."""
    return run_script(trainer_new.main, trainer_new.parse_args(arguments(base, folder, **flags)))


def train_interrupted(base, folder, **flags):
    with pytest.raises(SystemExit) as caught:
        train(base, folder, **flags)
    return caught.value.code


def folders(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def state_tensors(folder, name):
    return load_file(folder / "checkpoints" / name / STATE_TENSORS)


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype and torch.equal(tensor, other[key]), key


def rows(folder):
    (path,) = folder.glob("logs/*/*/metrics.csv")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- The command line ---


def test_defaults_are_the_published_ones():
    args = vars(trainer_new.parse_args(["--dataset_path", "x"]))
    expected = {
        "checkpoint_dir": None,
        "shift": 3.0,
        "lora_config_path": "./config/lora_config_transformer_only.json",
        "last_lora_path": None,
        "batch_size": 1,
        "num_workers": 0,
        "tag_dropout": 0.5,
        "speaker_dropout": 0.0,
        "lyrics_dropout": 0.0,
        "ssl_coeff": 1.0,
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "beta1": 0.9,
        "beta2": 0.99,
        "weight_decay": 1e-2,
        "epochs": -1,
        "max_steps": 2000,
        "warmup_steps": 10,
        "accumulate_grad_batches": 1,
        "gradient_clip_val": 1.0,
        "gradient_clip_algorithm": "norm",
        "exp_name": "ace_step_lora",
        "precision": "bf16-mixed",
        "save_every_n_train_steps": 100,
        "save_last": 5,
        "logger": "tensorboard",
        "output_dir": "checkpoints",
        "log_dir": "logs",
        "resume": None,
    }
    assert {name: args[name] for name in expected} == expected


def test_window_reads_the_choices_without_running_the_script():
    flags = ace_gui.read_flags(ROOT / "trainer_new.py")
    assert flags["optimizer"].choices == tuple(OPTIMIZERS)
    for name in ("base_precision", "logger", "lr_schedule", "gradient_clip_algorithm", "text_encoder", "plan"):
        assert len(flags[name].choices) > 1, name


def test_parse_args_needs_no_torch():
    code = "import sys, trainer_new as t; t.parse_args(['--dataset_path', 'a']); "
    code += "assert not {'torch', 'numpy', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_default_configuration_is_found_from_any_folder(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default = trainer_new.parse_args(["--dataset_path", "x"]).lora_config_path
    assert prepare(trainer_new.parse_args(arguments(base, tmp_path, lora_config_path=default))).lora_config["r"] == 64


def test_folders_that_cannot_be_are_named_before_anything_loads(base, tmp_path, capsys):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert train(base, tmp_path, output_dir=tmp_path / "file", log_dir=tmp_path / "file" / "logs") == 2
    problems = capsys.readouterr().err.splitlines()
    assert len(problems) == 2 and "is a file" in problems[0] and "lies below a file" in problems[1]


def test_all_problems_are_reported_at_once(base, tmp_path, capsys):
    write_config(tmp_path / "bad.json", r=0, target_modules=["to_q"])
    flags = {
        "batch_size": 0,
        "learning_rate": -1,
        "tag_dropout": 1.5,
        "precision": "16-true",
        "max_steps": -1,
        "dataset_path": tmp_path / "nothing",
        "lora_config_path": tmp_path / "bad.json",
        "last_lora_path": tmp_path / "none.safetensors",
    }
    assert train(base, tmp_path, **flags) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 8
    for part in (
        "--batch_size",
        "--learning_rate",
        "--tag_dropout",
        "--precision",
        "both -1",
        "nothing",
        "'r'",
        "none.s",
    ):
        assert sum(part in error for error in errors) == 1, part
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("ssl_coeff", "nan"),
        ("shift", 0),
        ("beta2", 1),
        ("warmup_steps", -1),
        ("save_every_n_train_steps", 0),
        ("gradient_clip_val", -1),
        ("exp_name", "a/b"),
        ("exp_name", ".."),
        ("exp_name", "song."),
        ("ema_decay", 1),
        ("epochs", 0),
        ("max_seconds", 0.5),
        ("devices", 0),
        ("strategy", "fsdp"),
        ("lyrics_dropout", -0.1),
    ],
)
def test_wrong_values_are_named(base, tmp_path, capsys, flag, value):
    assert train(base, tmp_path, **{flag: value}) == 2
    error = capsys.readouterr().err
    assert f"--{flag} is" in error and "Traceback" not in error


def test_data_set_without_records_and_with_damaged_ones(base, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert train(base, tmp_path, dataset_path=tmp_path / "empty") == 2
    assert "holds no records" in capsys.readouterr().err
    make_records(tmp_path / "prep", base / "tiny")
    for name in ("song 0", "song 2"):
        path = tmp_path / "prep" / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:-40])
    assert train(base, tmp_path, dataset_path=tmp_path / "prep") == 2
    error = capsys.readouterr().err
    assert "song 0.safetensors" in error and "song 2.safetensors" in error and "song 1" not in error


def test_targets_that_match_nothing(base, tmp_path, capsys):
    config = write_config(tmp_path / "l.json", target_modules=["to_q", "to_qq"])
    assert train(base, tmp_path, lora_config_path=config) == 2
    assert "'to_qq'" in capsys.readouterr().err


def test_records_of_another_base_model_are_named(base, tmp_path, capsys):
    # Its tokens would end in an index error, on a card in one that no later call survives.
    for name in ("song 0", "song 1"):
        shutil.copy(base / "prep" / f"{name}.safetensors", tmp_path)
    shutil.copy(ROOT / "tests" / "golden" / "audio" / "record_track_a.hdf5", tmp_path)
    assert train(base, tmp_path, dataset_path=tmp_path) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "1 of 3 records were made with other base weights" in error
    assert "'record_track_a.hdf5' (lyric tokens" in error


def test_the_number_of_workers_has_a_limit(base, tmp_path, capsys):
    assert train(base, tmp_path, num_workers=500) == 2
    assert "--num_workers is 500, expected 0 to 32" in capsys.readouterr().err


def test_missing_base_weights_are_listed_with_the_other_problems(base, tmp_path, capsys):
    shutil.copytree(base / "tiny", tmp_path / "tiny")
    shutil.rmtree(tmp_path / "tiny" / "umt5-base")
    # With another problem, so that nothing is downloaded.
    assert train(base, tmp_path, checkpoint_dir=tmp_path / "tiny", batch_size=0) == 2
    error = capsys.readouterr().err
    assert "umt5-base" in error and "--batch_size" in error


def test_wandb_that_is_not_installed(base, tmp_path, capsys):
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    assert train(base, tmp_path, logger="wandb") == 2
    assert "pip install wandb" in capsys.readouterr().err


def test_disk_that_is_too_small_is_reported_beforehand(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ace_lora.training.prepare.free_bytes", lambda path: 1000)
    assert train(base, tmp_path) == 2
    assert "are free" in capsys.readouterr().err


# --- One run ---


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_disk_that_fills_up_meanwhile_ends_the_run_with_a_sentence(base, tmp_path, capsys):
    import resource

    def train_with_limit(size, **flags):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            return train(base, tmp_path, **flags)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert train(base, tmp_path, max_steps=2) == 0
    assert train_with_limit(200_000, max_steps=4, resume=True, accept_changes=True) == 1
    error = capsys.readouterr().err
    assert "step 4 cannot be written" in error and "step=2_lora' (step 2)" in error and "Traceback" not in error
    assert folders(tmp_path) == ["epoch=0-step=2_lora"]  # the good one, and nothing of the other
    assert train(base, tmp_path, max_steps=4, resume=True, accept_changes=True) == 0


def test_files_lines_and_metadata_of_a_run(base, tmp_path, capsys):
    assert train(base, tmp_path, max_steps=5, save_every_n_train_steps=2, logger="tensorboard", save_comfyui=True) == 0
    out = capsys.readouterr().out
    assert folders(tmp_path) == ["epoch=0-step=2_lora", "epoch=1-step=4_lora", "epoch=1-step=5_lora"]
    last = tmp_path / "checkpoints" / "epoch=1-step=5_lora"
    names = {WEIGHTS_NAME, "pytorch_lora_weights_comfyui.safetensors", TRAINING_CONFIG_NAME, STATE_JSON, STATE_TENSORS}
    assert {path.name for path in last.iterdir()} == names

    steps = re.findall(
        r"^step (\d+)/5 \| loss \d+\.\d{4} \| lr 1\.00e-02 \| [\d.]+ it/s \| left \d:\d\d:\d\d$", out, re.M
    )
    assert steps == ["1"] or len(re.findall(r"^step \d/5 \| loss ", out, re.M)) == 5
    assert f"saved: {last}" in out and f"done: 5 steps, {last}" in out
    (log,) = (tmp_path / "logs" / "ace_step_lora").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", log.name)
    assert f"metrics: {log / 'metrics.csv'}" in out
    kinds = sorted(path.name.split(".")[0] for path in log.iterdir())
    assert kinds == ["events", "log", "loss", "metrics", "settings"]
    assert json.loads((log / "settings.json").read_text(encoding="utf-8"))["max_steps"] == 5
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "logs"}

    table = rows(tmp_path)
    assert [row["step"] for row in table] == ["1", "2", "3", "4", "5"]
    assert list(table[0]) == list(COLUMNS)
    for row in table:
        assert all(row[name] for name in COLUMNS if name not in ("peak_memory_gb", "prodigy_d", "val_loss"))
        parts = [float(row[name]) for name in ("denoising_loss", "mert_loss", "m-hubert_loss", "loss")]
        assert parts[0] + (parts[1] + parts[2]) / 2 == pytest.approx(parts[3], rel=1e-5)

    tensors = load_file(last / WEIGHTS_NAME)
    expected = {
        f"transformer_blocks.{block}.{part}.{layer}.lora_{which}.weight"
        for block in range(3)
        for part in ("attn", "cross_attn")
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
        for which in "AB"
    }
    assert set(tensors) == expected
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    state = load_file(last / STATE_TENSORS)
    for key, tensor in tensors.items():
        assert torch.equal(state[f"adapter/{key}"].bfloat16(), tensor)
        assert state[f"adapter/{key}"].dtype == torch.float32
    assert any(tensor.any() for key, tensor in tensors.items() if "lora_B" in key)
    with safe_open(last / WEIGHTS_NAME, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and metadata["rank"] == "4" and metadata["alpha"] == "1"
    assert metadata["use_rslora"] == "true" and metadata["steps"] == "5" and metadata["songs"] == "3"
    assert json.loads(metadata["tags"])["female vocals"] == 3
    assert "torch" in json.loads(metadata["versions"]) and metadata["base_model"].startswith("ACE-Step v1")
    assert json.loads(metadata["lora_adapter_metadata"])["r"] == 4
    config = json.loads((last / TRAINING_CONFIG_NAME).read_text(encoding="utf-8"))
    assert config == LORA
    assert not (last / "adapter_config.json").exists()  # with which it would look like a folder for PEFT
    comfy = load_file(last / "pytorch_lora_weights_comfyui.safetensors")
    assert comfy["transformer_blocks.0.attn.to_q.alpha"].item() == 2.0  # 4 / sqrt(4)


def test_logger_none_writes_no_logs_and_csv_no_tensorboard(base, tmp_path):
    assert train(base, tmp_path / "none", logger="none", max_steps=1) == 0
    assert not (tmp_path / "none" / "logs").exists()
    assert train(base, tmp_path / "csv", logger="csv", max_steps=1) == 0
    names = {path.name for path in tmp_path.glob("csv/logs/*/*/*")}
    assert names == {"log.txt", "metrics.csv", "settings.json", "loss.png"}


def test_output_folder_with_loras_is_refused(base, tmp_path, capsys):
    assert train(base, tmp_path, max_steps=1) == 0
    before = state_tensors(tmp_path, "epoch=0-step=1_lora")
    assert train(base, tmp_path, max_steps=1) == 2
    error = capsys.readouterr().err
    assert "--resume" in error and "--output_dir" in error and "move" in error
    assert_same_state(before, state_tensors(tmp_path, "epoch=0-step=1_lora"))


def whole(folder):
    """Names of the checkpoints that can be gone on from."""
    return [name for name in folders(folder) if (folder / "checkpoints" / name / STATE_TENSORS).exists()]


def test_save_last_keeps_every_lora_and_touches_nothing_else(base, tmp_path, capsys):
    assert train(base, tmp_path, max_steps=6, save_every_n_train_steps=1, save_last=2) == 0
    assert whole(tmp_path) == ["epoch=1-step=5_lora", "epoch=1-step=6_lora"]
    assert len(folders(tmp_path)) == 6
    old = tmp_path / "checkpoints" / "epoch=0-step=2_lora"
    assert {path.name for path in old.iterdir()} == {WEIGHTS_NAME, TRAINING_CONFIG_NAME, STATE_JSON}
    assert f"only the LoRA is left: {old} (--save_last 2)" in capsys.readouterr().out
    assert train(base, tmp_path, max_steps=9, resume=old) == 2
    assert "only the LoRA is left" in capsys.readouterr().err
    # A folder that came from elsewhere, with more steps and fewer: neither is counted nor removed.
    for name in ("epoch=9-step=99_lora", "epoch=0-step=0_lora"):
        shutil.copytree(tmp_path / "checkpoints" / "epoch=1-step=6_lora", tmp_path / "checkpoints" / name)
        (tmp_path / "checkpoints" / name / STATE_JSON).unlink()
    resume = tmp_path / "checkpoints" / "epoch=1-step=6_lora"
    more = {"max_steps": 9, "save_every_n_train_steps": 1, "save_last": 2, "accept_changes": True}
    assert train(base, tmp_path, resume=resume, **more) == 2
    assert "another training" in capsys.readouterr().err
    assert train(base, tmp_path, resume=True, keep_loras=3, **more) == 0
    assert folders(tmp_path) == [
        "epoch=0-step=0_lora",
        "epoch=2-step=7_lora",
        "epoch=2-step=8_lora",
        "epoch=2-step=9_lora",
        "epoch=9-step=99_lora",
    ]
    assert whole(tmp_path) == ["epoch=0-step=0_lora", *folders(tmp_path)[2:]]


def test_epochs_end_the_run_too(base, tmp_path):
    assert train(base, tmp_path, epochs=2, max_steps=100) == 0
    assert folders(tmp_path) == ["epoch=1-step=6_lora"]


def test_two_equal_commands_give_equal_files_and_another_seed_others(base, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train(base, tmp_path / name, seed=seed) == 0
    a, b, c = (state_tensors(tmp_path / name, "epoch=1-step=4_lora") for name in "abc")
    assert_same_state(a, b)
    assert not all(torch.equal(a[key], c[key]) for key in a)


@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_precisions(base, tmp_path, precision):
    assert train(base, tmp_path, precision=precision) == 0
    tensors = state_tensors(tmp_path, "epoch=1-step=4_lora")
    assert {tensors[key].dtype for key in tensors if key.startswith("adapter/")} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    values = json.loads((tmp_path / "checkpoints/epoch=1-step=4_lora" / STATE_JSON).read_text(encoding="utf-8"))
    assert (values["scaler"] is not None) == (precision == "16")


def test_half_precisions_stay_near_float32(base, tmp_path):
    losses = {}
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        assert train(base, tmp_path / precision, precision=precision) == 0
        losses[precision] = [float(row["loss"]) for row in rows(tmp_path / precision)]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=2e-2)
    assert losses["16-mixed"] == pytest.approx(losses["32-true"], rel=2e-2)


@pytest.mark.parametrize("targets", ["lora_config.json", "lora_config_with_projectors.json"])
def test_other_shipped_configurations(base, tmp_path, targets):
    config = write_config(
        tmp_path / "l.json",
        target_modules=json.loads((ROOT / "config" / targets).read_text(encoding="utf-8"))["target_modules"],
    )
    assert train(base, tmp_path, lora_config_path=config) == 0
    tensors = load_file(tmp_path / "checkpoints" / "epoch=1-step=4_lora" / WEIGHTS_NAME)
    key = "lyric_encoder.encoders.1.self_attn.linear_q.lora_B.weight"
    assert tensors[key].any()
    assert ("projectors.1.4.lora_B.weight" in tensors) == ("projectors" in targets)


def test_without_ssl_no_features_are_needed(base, tmp_path, capsys):
    make_records(tmp_path / "prep", base / "tiny", ssl="none")
    assert train(base, tmp_path, dataset_path=tmp_path / "prep") == 2
    assert "--ssl_coeff 0" in capsys.readouterr().err
    config = write_config(tmp_path / "l.json", target_modules=["to_q", "projectors.0.0"])
    assert train(base, tmp_path, dataset_path=tmp_path / "prep", ssl_coeff=0, lora_config_path=config) == 0
    assert all(row["mert_loss"] == "" and row["loss"] == row["denoising_loss"] for row in rows(tmp_path))
    tensors = state_tensors(tmp_path, "epoch=1-step=4_lora")
    assert not tensors["adapter/projectors.0.0.lora_B.weight"].any()  # has no gradient


def test_features_at_training_start_need_the_audio(base, tmp_path, capsys):
    make_records(tmp_path / "prep", base / "tiny", ssl="at_training")
    assert train(base, tmp_path, dataset_path=tmp_path / "prep") == 2
    error = capsys.readouterr().err
    assert "audio is gone" in error and "song 0.mp3" in error and "song 2.mp3" in error


def test_lyric_branch_is_computed_once_and_dropped(base, tmp_path, monkeypatch):
    args = trainer_new.parse_args(arguments(base, tmp_path))
    model = training_load.load(args, prepare(args)).model
    assert model.lyric_encoder is model.lyric_embs is model.lyric_proj is None
    # With an adapter in it, it is needed in every step.
    args.lora_config_path = str(write_config(tmp_path / "l.json", target_modules=["to_q", "linear_q"]))
    model = training_load.load(args, prepare(args)).model
    assert model.lyric_encoder is not None
    # Where it does not fit into memory it is computed in every step as well, to the same weights.
    assert train(base, tmp_path / "cached") == 0
    monkeypatch.setattr(training_load, "LYRIC_CACHE_SHARE", 0.0)
    assert train(base, tmp_path / "computed") == 0
    assert_same_state(*(state_tensors(tmp_path / name, "epoch=1-step=4_lora") for name in ("cached", "computed")))


def test_warm_start(base, tmp_path, capsys):
    assert train(base, tmp_path / "first", save_comfyui=True) == 0
    folder = tmp_path / "first" / "checkpoints" / "epoch=1-step=4_lora"
    for name in (WEIGHTS_NAME, "pytorch_lora_weights_comfyui.safetensors"):
        target = tmp_path / name
        assert train(base, target, last_lora_path=folder / name, max_steps=1, learning_rate=1e-30) == 0
        out = capsys.readouterr().out
        assert "is a LoRA of 24 layers, rank 4, bfloat16: trained by this program, 4 steps" in out
        for changed in ("scaled by", "grown from", "made smaller", "are left out", "start from zero"):
            assert changed not in out
        assert folders(target) == ["epoch=0-step=1_lora"]
        start, now = (
            load_file(folder / WEIGHTS_NAME),
            load_file(target / "checkpoints/epoch=0-step=1_lora" / WEIGHTS_NAME),
        )
        assert all(torch.equal(start[key], now[key]) for key in start)
    assert train(base, tmp_path / "by_folder", last_lora_path=folder, max_steps=1) == 0


def test_warm_start_from_another_rank_strength_and_choice_of_layers(base, tmp_path, capsys):
    """What is played stays what it was; what had to be changed is said. A configuration may lack use_rslora."""
    assert train(base, tmp_path / "first") == 0
    folder = tmp_path / "first" / "checkpoints" / "epoch=1-step=4_lora"
    config = tmp_path / "l.json"
    content = {"r": 8, "lora_alpha": 2, "target_modules": ["to_q", "linear_q"], "lora_dropout": 0.1}
    config.write_text(json.dumps(content), encoding="utf-8")
    capsys.readouterr()
    flags = {"last_lora_path": folder, "lora_config_path": config, "max_steps": 1, "learning_rate": 1e-30}
    assert train(base, tmp_path / "second", **flags) == 0
    out = capsys.readouterr().out
    for said in (
        "has no use_rslora: false, as in PEFT",
        "'lora_dropout' in",
        "6 layers scaled by 2, so that the strength stays",
        "6 layers grown from rank 4 to 8",
        "are not in the file and start from zero, for example 'lyric_encoder.",
        "18 layers of the file are not in this training and are left out",
    ):
        assert said in out, said
    before = load_file(folder / WEIGHTS_NAME)
    after = load_file(tmp_path / "second/checkpoints/epoch=0-step=1_lora" / WEIGHTS_NAME)
    layer = "transformer_blocks.0.attn.to_q"
    changes = [
        scale * tensors[f"{layer}.lora_B.weight"].float() @ tensors[f"{layer}.lora_A.weight"].float()
        for tensors, scale in ((before, 0.5), (after, 0.25))
    ]
    torch.testing.assert_close(*changes)


def test_compile_goes_on_without_a_compiler(base, tmp_path):
    """A process of its own: what is compiled stays so, and the compiler is looked up once."""
    command = [sys.executable, str(ROOT / "trainer_new.py"), *arguments(base, tmp_path, max_steps=1, compile=True)]
    nothing = tmp_path / "no programs"
    nothing.mkdir()
    cache = tmp_path / "inductor"
    environment = {**os.environ, "PATH": str(nothing), "CXX": "no-compiler", "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    answer = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "torch.compile does not work here" in answer.stdout
    assert "Traceback" not in answer.stdout + answer.stderr
    assert folders(tmp_path) == ["epoch=0-step=1_lora"]


@pytest.mark.parametrize("optimizer", trainer_new.OPTIMIZERS)
def test_optimizers(base, tmp_path, capsys, optimizer):
    prodigy = optimizer.startswith("prodigy")
    assert train(base, tmp_path, optimizer=optimizer, learning_rate=1 if prodigy else 0.01) == 0
    table = rows(tmp_path)
    assert all(bool(row["prodigy_d"]) == prodigy for row in table)


def test_song_with_no_number_stops_the_run_and_is_named(base, tmp_path, capsys):
    make_records(tmp_path / "prep", base / "tiny", (24, 17))
    # Finite in the record, infinite once squared.
    make_record(tmp_path / "prep", "坏歌", 20, tiny=base / "tiny", scale=1e30)
    bad = 2  # its place in the order of names
    seed = next(seed for seed in range(99) if Plan([1] * 3, seed=seed).draws(2)[0][0].song == bad)
    flags = {"dataset_path": tmp_path / "prep", "max_steps": 20, "save_every_n_train_steps": 100, "seed": seed}
    assert train(base, tmp_path, **flags) == 1
    error = capsys.readouterr().err
    assert "'坏歌'" in error and "step 3" in error and "song 0" not in error and "Traceback" not in error
    # What the two good steps came to is kept.
    assert "last good checkpoint" in error and folders(tmp_path) == ["epoch=0-step=2_lora"]
    good = load_file(tmp_path / "checkpoints" / "epoch=0-step=2_lora" / WEIGHTS_NAME)
    assert all(tensor.isfinite().all() for tensor in good.values())


# --- Batches ---


def test_accumulation_equals_the_larger_batch(base, tmp_path):
    make_records(tmp_path / "prep", base / "tiny", (24, 17, 30, 12, 21))
    for name, flags in (("batch", {"batch_size": 5}), ("steps", {"accumulate_grad_batches": 5})):
        assert train(base, tmp_path / name, dataset_path=tmp_path / "prep", **flags) == 0
    one, other = (state_tensors(tmp_path / name, "epoch=3-step=4_lora") for name in ("batch", "steps"))
    for key, tensor in one.items():
        if key.startswith("adapter/"):
            torch.testing.assert_close(tensor, other[key], rtol=1e-3, atol=1e-5)


def test_threads_that_read_give_the_same_training(base, tmp_path):
    for workers in (0, 2):
        assert train(base, tmp_path / str(workers), num_workers=workers, max_steps=3) == 0
    one, other = (state_tensors(tmp_path / name, "epoch=0-step=3_lora") for name in "02")
    assert_same_state(one, other)


def test_each_record_is_read_once_for_all_epochs(base, tmp_path, monkeypatch, capsys):
    read = []
    monkeypatch.setattr(
        "ace_lora.records.cache.read_record", lambda path, *, ssl: read.append(path) or read_record(path, ssl=ssl)
    )
    assert train(base, tmp_path / "roomy", max_steps=9) == 0
    assert sorted(read) == sorted((base / "prep").iterdir())
    assert "stay in main memory" not in capsys.readouterr().out
    read.clear()
    monkeypatch.setattr("ace_lora.training.load.RECORD_CACHE_SHARE", 0.0)
    assert train(base, tmp_path / "tight", max_steps=9) == 0
    assert len(read) == 9
    assert "0.0 of their" in capsys.readouterr().out
    assert_same_state(*(state_tensors(tmp_path / name, "epoch=2-step=9_lora") for name in ("roomy", "tight")))


def test_random_pieces_with_lyrics_that_follow(base, tmp_path, capsys):
    lines = [[0.0, "one"], [1.0, "two"], [1.5, "three"]]
    make_records(tmp_path / "prep", base / "tiny", timed_lines=lines, lyric_language="en")
    flags = {"max_seconds": 1.0, "val_every": 4}
    assert train(base, tmp_path / "timed", dataset_path=tmp_path / "prep", **flags) == 0
    assert "pieces of songs with timed lyrics" in capsys.readouterr().out
    assert train(base, tmp_path / "untimed", **flags) == 0
    losses = [[row["loss"] for row in rows(tmp_path / name) if row["loss"]] for name in ("timed", "untimed")]
    assert len(losses[0]) == len(losses[1]) == 4
    assert losses[0] != losses[1]  # other lyrics, all else equal


def test_two_processes_equal_one_with_the_double_batch(base, tmp_path):
    make_records(tmp_path / "prep", base / "tiny", (24, 17))
    data = {"dataset_path": tmp_path / "prep", "max_steps": 2}
    # With a trial first, which the second process must not make again.
    process = start(base, tmp_path, devices=2, plan="auto", output_dir=tmp_path / "two" / "checkpoints", **data)
    out, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert (
        out.count("step 2/2 |") == out.count("saved: ") == out.count("trial: as given: fits") == 1
    )  # only the first process prints and writes
    assert train(base, tmp_path / "one", batch_size=2, **data) == 0
    one, two = (state_tensors(tmp_path / name, folders(tmp_path / name)[0]) for name in ("one", "two"))
    moments = [key for key in one if key.endswith("/exp_avg")]
    assert len(moments) == 48
    for key in moments:  # an average of the two steps' gradients
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-7)


# --- Memory ---


@pytest.mark.parametrize(
    "flags",
    [
        {"base_precision": "int8"},
        {"base_precision": "nf4", "precision": "bf16-mixed"},
        {"offload": 2},
        {"checkpointing": "all"},
        {"base_precision": "int8", "offload": 3, "checkpointing": 1},
    ],
)
def test_savings_train_nearly_alike(base, tmp_path, capsys, flags):
    assert train(base, tmp_path / "plain", checkpointing="none") == 0
    assert train(base, tmp_path / "lean", **flags) == 0
    plain, lean = ([float(row["loss"]) for row in rows(tmp_path / name)] for name in ("plain", "lean"))
    quantised = "base_precision" in flags
    assert lean == pytest.approx(plain, rel=0.05 if quantised else 1e-6)
    assert (lean != plain) == quantised


def test_wrong_savings_are_named(base, tmp_path, capsys):
    assert train(base, tmp_path, checkpointing="some", offload=4) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "--checkpointing" in errors[0] and "3 blocks" in errors[1]


# --- Trial ---


def test_trial_tells_the_costs_and_leaves_the_output_alone(base, tmp_path, capsys):
    (tmp_path / "checkpoints" / "epoch=0-step=1_lora").mkdir(parents=True)
    assert train(base, tmp_path, trial=True, max_steps=500, save_every_n_train_steps=100) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "logs" / "ace_step_lora" / "trial.json").read_text(encoding="utf-8"))
    assert result["fits"] and result["savings"] == {} and result["spilled"] is False
    assert 0 < result["peak_memory_gb"] < result["memory_gb"]
    assert result["hours"] == pytest.approx(result["seconds_per_step"] * 500 / 3600 * (24 + 17 + 30) / 90)
    assert result["disk_gb"] == pytest.approx(5 * result["checkpoint_gb"])
    for part in ("memory: ", "s per step", "whole run: ", "disk: "):
        assert part in out
    assert folders(tmp_path) == ["epoch=0-step=1_lora"]
    assert train(base, tmp_path, trial=True, batch_size=0) == 2
    capsys.readouterr()
    assert train(base, tmp_path, plan="auto", num_nodes=2) == 2
    assert "--plan auto" in capsys.readouterr().err


def test_plan_tries_savings_in_order_and_trains_with_what_fits(base, tmp_path, capsys, monkeypatch):
    from ace_lora.training import trial

    asked = []

    def attempt(args, savings):
        # Stands for a card that is too small until the base is quantised; the real attempt is tested above.
        asked.append(dict(savings))
        found = {"savings": savings, "device": "a card", "device_type": "cuda", "mean_share": 1.0, "blocks": 3}
        used = 9.0 if "base_precision" not in savings else 5.0
        found |= {"seconds_per_step": 1.0, "peak_memory_gb": used, "memory_gb": 8.0, "spilled": used > 8}
        return {**found, "fits": used <= 8}

    monkeypatch.setattr(trial, "_attempt", attempt)
    monkeypatch.setenv(trial.FOUND, "{}")  # which the trial sets
    assert train(base, tmp_path, plan="auto", max_steps=2) == 0
    assert asked == [
        {},
        {"text_encoder": "cpu"},
        {"text_encoder": "cpu", "checkpointing": "all"},
        {"text_encoder": "cpu", "checkpointing": "all", "base_precision": "int8"},
    ]
    out = capsys.readouterr().out
    assert "spilled into main memory" in out and "with these savings: --text_encoder cpu" in out
    assert folders(tmp_path) == ["epoch=0-step=2_lora"]
    settings = json.loads(next(tmp_path.glob("logs/*/*/settings.json")).read_text(encoding="utf-8"))
    assert settings["base_precision"] == "int8" and settings["checkpointing"] == "all"

    # The same command goes on with the base as it was trained, whatever the card has free by now.
    asked.clear()
    assert train(base, tmp_path, plan="auto", max_steps=3, resume=True, accept_changes=True) == 0
    assert asked == [{"base_precision": "int8"}]
    assert "step 3/3 |" in capsys.readouterr().out
    asked.clear()
    monkeypatch.setattr(trial, "_attempt", lambda *given: {**attempt(*given), "fits": False})
    assert train(base, tmp_path, plan="auto", max_steps=4, resume=True, accept_changes=True) == 1
    assert {name for savings in asked for name in savings} == {
        "base_precision",
        "text_encoder",
        "checkpointing",
        "offload",
    }
    assert all(savings["base_precision"] == "int8" for savings in asked)


def test_trial_goes_on_without_savings_whose_package_is_missing(base, tmp_path, capsys, monkeypatch):
    from ace_lora.training import trial

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else real(name))

    def attempt(args, savings):
        # Stands for a card on which only streamed blocks fit.
        found = {"savings": savings, "device": "a card", "device_type": "cuda", "mean_share": 1.0, "blocks": 3}
        found |= {"seconds_per_step": 1.0, "peak_memory_gb": 5.0, "memory_gb": 8.0, "spilled": False}
        return {**found, "fits": "offload" in savings}

    monkeypatch.setattr(trial, "_attempt", attempt)
    monkeypatch.setenv(trial.FOUND, "{}")
    assert train(base, tmp_path, trial=True) == 0
    out = capsys.readouterr().out
    assert out.count("trial: not tried: ") == 3 and "start.py install small_cards" in out
    assert "with these savings: --text_encoder cpu --checkpointing all --offload 2" in out


@pytest.mark.parametrize(
    "environment",
    [
        {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"},
        {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"},  # of a launcher that is not known
    ],
    ids=["torchrun first", "torchrun second", "other second"],
)
def test_plan_is_refused_where_all_processes_start_at_once(base, tmp_path, capsys, monkeypatch, environment):
    (tmp_path / "logs" / "ace_step_lora").mkdir(parents=True)
    earlier = {"savings": {"base_precision": "nf4"}}
    (tmp_path / "logs" / "ace_step_lora" / "trial.json").write_text(json.dumps(earlier), encoding="utf-8")
    monkeypatch.delenv("ACE_LORA_SAVINGS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert train(base, tmp_path, plan="auto", devices=2) == 2
    assert "Run --trial once" in capsys.readouterr().err


# --- Stop and resume ---


RUNS = {
    "adamw": {},
    "accumulated": {"accumulate_grad_batches": 2, "batch_size": 2},
    "average": {"ema_decay": 0.9},
    "fp16": {"precision": "16-mixed"},
    "dropout": {"lyrics_dropout": 0.5, "max_seconds": 1.5},
    "adamw8bit": {"optimizer": "adamw8bit"},
    "prodigy": {"optimizer": "prodigy", "learning_rate": 1},
    "prodigy_schedule_free": {"optimizer": "prodigy_schedule_free", "learning_rate": 1},
}


@pytest.mark.parametrize("flags", RUNS.values(), ids=RUNS.keys())
def test_resumed_run_equals_one_that_was_never_stopped(base, tmp_path, capsys, flags):
    flags = {"max_steps": 7, "warmup_steps": 2, "val_every": 3, **flags}
    assert train(base, tmp_path / "whole", **flags) == 0
    assert train(base, tmp_path / "parts", save_every_n_train_steps=3, **flags) == 0
    last = folders(tmp_path / "whole")[0]
    # Saving in between changed nothing.
    assert_same_state(state_tensors(tmp_path / "whole", last), state_tensors(tmp_path / "parts", last))
    for folder in folders(tmp_path / "parts"):
        if "step=3_" not in folder:
            shutil.rmtree(tmp_path / "parts" / "checkpoints" / folder)
    capsys.readouterr()
    shutil.move(tmp_path / "parts" / "logs", tmp_path / "earlier_logs")
    assert train(base, tmp_path / "parts", resume=True, **flags) == 0
    out = capsys.readouterr().out
    assert "resuming at step 3/7" in out and re.search(r"loss \d+\.\d+", out)
    assert_same_state(state_tensors(tmp_path / "whole", last), state_tensors(tmp_path / "parts", last))
    files = [(tmp_path / run / "checkpoints" / last / WEIGHTS_NAME).read_bytes() for run in ("whole", "parts")]
    assert files[0] == files[1]
    whole, parts = rows(tmp_path / "whole"), rows(tmp_path / "parts")
    for row in (*whole, *parts):
        row.pop("seconds_per_step")
    assert whole[-4:] == parts[-4:]


def test_curve_of_a_resumed_run_begins_where_the_run_began(base, tmp_path):
    assert train(base, tmp_path, max_steps=3) == 0
    (earlier,) = (tmp_path / "logs").glob("*/*")
    assert train(base, tmp_path, max_steps=5, resume=True, accept_changes=True) == 0
    (later,) = {path for path in (tmp_path / "logs").glob("*/*")} - {earlier}
    steps = [row["step"] for row in csv.DictReader((later / "metrics.csv").open(encoding="utf-8", newline=""))]
    assert steps == ["1", "2", "3", "4", "5"]


def test_stop_file(base, tmp_path, capsys, monkeypatch):
    args = trainer_new.parse_args(arguments(base, tmp_path, max_steps=50))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "STOP").touch()
    os.utime(folder / "STOP", (1e9, 1e9))  # of an earlier run: does not stop this one
    original = training_run.Reports.start

    def start(reports):
        original(reports)
        (folder / "STOP").touch()

    monkeypatch.setattr(training_run.Reports, "start", start)
    assert run_script(trainer_new.main, args) == 0
    monkeypatch.undo()
    out = capsys.readouterr().out
    assert "stopped at step 1/50" in out
    assert folders(tmp_path) == ["epoch=0-step=1_lora"]
    assert train(base, tmp_path, max_steps=50, resume=True, epochs=1, accept_changes=True) == 0
    assert "epoch=0-step=3_lora" in folders(tmp_path)


@pytest.mark.parametrize("when", [time.time() + 86400, 1e9], ids=["tomorrow", "long ago"])
def test_stop_file_of_another_day_stops_nothing(base, tmp_path, capsys, when):
    """Left by an earlier run, or before the clock was set back."""
    stop = tmp_path / "checkpoints" / "STOP"
    stop.parent.mkdir()
    stop.write_text("stop\n", encoding="ascii")
    os.utime(stop, (when, when))
    assert train(base, tmp_path, max_steps=2) == 0
    assert f"Removed '{stop}'" in capsys.readouterr().out
    assert folders(tmp_path) == ["epoch=0-step=2_lora"]


def test_a_users_own_file_called_stop_stays(base, tmp_path, capsys, monkeypatch):
    stop = tmp_path / "checkpoints" / "STOP"
    stop.parent.mkdir()
    stop.write_text("songs that I stop listening to", encoding="utf-8")
    os.utime(stop, (1e9, 1e9))
    assert train(base, tmp_path, max_steps=2) == 0
    assert "holds something of yours" in capsys.readouterr().out
    original = training_run.Reports.start

    def begin(reports):
        original(reports)
        stop.touch()  # written anew, so it stops the run; and stays

    monkeypatch.setattr(training_run.Reports, "start", begin)
    assert train(base, tmp_path, max_steps=50, resume=True, accept_changes=True) == 0
    assert "stopped at step 3/50" in capsys.readouterr().out
    assert stop.read_text(encoding="utf-8") == "songs that I stop listening to"


def test_a_second_training_into_the_same_folder_is_refused(base, tmp_path, capsys, monkeypatch):
    original = training_run.Reports.start
    statuses = []

    def begin(reports):
        original(reports)
        # As another process would be: the lock is the system's, whoever asks for it.
        monkeypatch.setattr(training_run.Reports, "start", original)
        statuses.append(train(base, tmp_path, max_steps=2, resume=True))

    monkeypatch.setattr(training_run.Reports, "start", begin)
    assert train(base, tmp_path, max_steps=2) == 0
    assert statuses == [2] and "Another training is saving its checkpoints" in capsys.readouterr().err
    assert folders(tmp_path) == ["epoch=0-step=2_lora"]


@pytest.mark.skipif(sys.platform == "win32", reason="the runs are ended by a closed pipe of POSIX")
@pytest.mark.parametrize("go_on", [None, True], ids=["saves and ends", "goes on"])
def test_a_reader_that_is_gone_kills_no_training(base, tmp_path, go_on):
    process = start(base, tmp_path, max_steps=30, save_every_n_train_steps=100, go_on_unread=go_on)
    wait_for_step(process, 3)
    process.stdout.close()
    process.stderr.close()
    assert process.wait(200) == (0 if go_on else 130)
    (log,) = tmp_path.glob("logs/*/*/log.txt")
    text = log.read_text(encoding="utf-8")
    (name,) = folders(tmp_path)
    saved = int(re.search(r"step=(\d+)_", name)[1])
    assert text.startswith("settings:") and f"step {saved}/30 |" in text and "Traceback" not in text
    if go_on:
        assert saved == 30 and "done: 30 steps" in text
    else:
        assert 3 <= saved < 30 and f"stopped at step {saved}/30 because nobody reads its output any more" in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_under_the_output(base, tmp_path):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, str(ROOT / "trainer_new.py"), *arguments(base, tmp_path, max_steps=2)]
        assert subprocess.run(command, cwd=tmp_path, stdout=full, stderr=full, check=False).returncode == 0
    (log,) = tmp_path.glob("logs/*/*/log.txt")
    assert "done: 2 steps" in log.read_text(encoding="utf-8")
    assert folders(tmp_path) == ["epoch=0-step=2_lora"]


def start(base, folder, **flags):
    argv = [sys.executable, "-u", str(ROOT / "trainer_new.py"), *arguments(base, folder, **flags)]
    return subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")


def wait_for_step(process, step):
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that a process can handle")
def test_signal_saves_and_killed_run_resumes_to_equal_weights(base, tmp_path, capsys):
    steps = 40
    assert train(base, tmp_path / "whole", max_steps=steps) == 0
    process = start(base, tmp_path, max_steps=steps, save_every_n_train_steps=4, save_last=0)
    wait_for_step(process, 7)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate()
    assert process.returncode == 130, error
    assert "Stopping after this step" in out and "stopped at step" in out and "Traceback" not in error
    process = start(base, tmp_path, max_steps=steps, save_every_n_train_steps=4, save_last=0, resume=True)
    wait_for_step(process, 22)
    process.kill()
    process.communicate()
    for folder in (tmp_path / "checkpoints").glob("epoch*"):
        assert len(list(folder.iterdir())) == 4
    assert train(base, tmp_path, max_steps=steps, resume=True) == 0
    last = folders(tmp_path / "whole")[-1]
    assert_same_state(state_tensors(tmp_path / "whole", last), state_tensors(tmp_path, last))


def test_resume_says_what_does_not_fit(base, tmp_path, capsys):
    assert train(base, tmp_path, max_steps=2) == 0
    capsys.readouterr()
    make_records(tmp_path / "prep", base / "tiny")
    make_record(tmp_path / "prep", "song 1", 18, tiny=base / "tiny")
    make_record(tmp_path / "prep", "new", 18, tiny=base / "tiny")
    shutil.copytree(base / "tiny", tmp_path / "tiny")
    weights = tmp_path / "tiny" / "ace_step_transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    config = write_config(tmp_path / "l.json", lora_alpha=2)
    flags = {
        "dataset_path": tmp_path / "prep",
        "checkpoint_dir": tmp_path / "tiny",
        "lora_config_path": config,
        "learning_rate": 0.5,
        "seed": 3,
    }
    assert train(base, tmp_path, resume=True, max_steps=9, **flags) == 2
    errors = capsys.readouterr().err.splitlines()
    parts = ("2 songs were added", "base model", "LoRA configuration", "--learning_rate was 0.01", "--seed was 0")
    assert len(errors) == 6
    for part in (*parts, "number of steps was 2"):
        assert sum(part in error for error in errors) == 1, part


def test_resume_with_nothing_there_finished_or_damaged(base, tmp_path, capsys):
    assert train(base, tmp_path, max_steps=4, save_every_n_train_steps=2, resume=True) == 0
    assert "starts at step 0" in capsys.readouterr().out
    assert train(base, tmp_path, max_steps=4, resume=True) == 0
    assert "finished" in capsys.readouterr().out
    assert train(base, tmp_path, max_steps=4, resume=tmp_path / "none") == 2
    assert "does not exist" in capsys.readouterr().err
    assert train(base, tmp_path, max_steps=4, resume=base / "lora.json") == 2
    assert f"'{base / 'lora.json'}' belongs to no checkpoint" in capsys.readouterr().err
    damaged = tmp_path / "checkpoints" / "epoch=1-step=4_lora"
    state = damaged / STATE_TENSORS
    state.write_bytes(state.read_bytes()[:-1] + b"\x55")
    assert train(base, tmp_path, max_steps=6, resume=damaged) == 2
    assert "is damaged" in capsys.readouterr().err
    assert train(base, tmp_path, max_steps=6, resume=True, accept_changes=True) == 0
    out = capsys.readouterr().out
    assert "Passed over" in out and "resuming at step 2/6" in out
    (tmp_path / "other" / "checkpoints" / "epoch=0-step=1_lora").mkdir(parents=True)
    assert train(base, tmp_path / "other", resume=True) == 2
    error = capsys.readouterr().err
    assert "--last_lora_path" in error and "Passed over" in error


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_run_goes_on_past_the_place_of_a_damaged_checkpoint(base, tmp_path, capsys, damage):
    assert train(base, tmp_path, max_steps=4, save_every_n_train_steps=2) == 0
    newest = tmp_path / "checkpoints" / "epoch=1-step=4_lora"
    before = state_tensors(tmp_path, newest.name)
    if damage == "cut":
        (newest / STATE_JSON).write_text('{"ver', encoding="utf-8")
    else:
        (newest / STATE_JSON).unlink()
    assert train(base, tmp_path, max_steps=4, resume=True) == 0
    assert "set aside" in capsys.readouterr().out
    assert_same_state(state_tensors(tmp_path, newest.name), before)
    assert folders(tmp_path) == [".removed", "epoch=0-step=2_lora", newest.name]
    (manifest,) = (tmp_path / "checkpoints" / ".removed").glob("*/removed.json")
    assert json.loads(manifest.read_text(encoding="utf-8"))["files"] == {newest.name: newest.name}
    assert_same_state(load_file(manifest.parent / newest.name / STATE_TENSORS), before)


def rates(folder):
    """The learning rates of a run that was resumed in parts, by step."""
    tables = [list(csv.DictReader(path.open(encoding="utf-8", newline=""))) for path in folder.glob("logs/*/*/*.csv")]
    return [float(row["learning_rate"]) for row in max(tables, key=len)]


def test_longer_run_after_the_end(base, tmp_path, capsys):
    assert train(base, tmp_path, max_steps=2) == 0
    assert train(base, tmp_path, max_steps=4, resume=True) == 2
    error = capsys.readouterr().err
    assert "number of steps was 2" in error and "is 4 now" in error and "--accept_changes" in error
    assert folders(tmp_path) == ["epoch=0-step=2_lora"]
    more = {"max_steps": 4, "resume": True}
    assert train(base, tmp_path, save_every_n_train_steps=1, accept_changes=True, **more) == 0
    assert "note: number of steps was 2" in capsys.readouterr().out
    last = "epoch=1-step=4_lora"
    assert folders(tmp_path) == ["epoch=0-step=2_lora", "epoch=0-step=3_lora", last]
    # From the rate where it was to zero, never up.
    assert rates(tmp_path) == pytest.approx([0.01, 0.005, 0.005, 0.0025])
    # Stopped in between it goes the same way: the course of the rate is part of the state.
    whole_run = state_tensors(tmp_path, last)
    shutil.rmtree(tmp_path / "checkpoints" / last)
    assert train(base, tmp_path, **more) == 0
    assert_same_state(state_tensors(tmp_path, last), whole_run)


def test_settings_that_may_change_keep_the_moments(base, tmp_path, capsys):
    assert train(base, tmp_path, max_steps=2) == 0
    before = state_tensors(tmp_path, "epoch=0-step=2_lora")
    make_records(tmp_path / "prep", base / "tiny")
    make_record(tmp_path / "prep", "new", 18, tiny=base / "tiny")
    changed = {
        "learning_rate": 1e-30,
        "lr_schedule": "constant",
        "batch_size": 2,
        "seed": 3,
        "tag_dropout": 0.1,
        "beta1": 0.5,
        "weight_decay": 0.0,
    }
    flags = {"dataset_path": tmp_path / "prep", "max_steps": 3, "resume": True, **changed}
    capsys.readouterr()
    assert train(base, tmp_path, **flags) == 2
    errors = capsys.readouterr().err.splitlines()
    parts = ("1 added, 0 removed, 0 changed", "number of steps was", *(f"--{name} was" for name in changed))
    assert len(errors) == len(parts) and all("--accept_changes" in error for error in errors)
    assert all(sum(part in error for error in errors) == 1 for part in parts)
    assert train(base, tmp_path, **flags, accept_changes=True) == 0
    (name,) = set(folders(tmp_path)) - {"epoch=0-step=2_lora"}
    after = state_tensors(tmp_path, name)
    for key, tensor in before.items():
        if key.startswith("adapter/"):  # the new rate counts
            torch.testing.assert_close(after[key], tensor, rtol=0, atol=1e-25)
        elif key.endswith("/step"):
            assert after[key] == tensor + 1
    assert rates(tmp_path)[2] == 1e-30
    # What cannot change is refused all the same.
    capsys.readouterr()
    assert train(base, tmp_path, **{**flags, "optimizer": "prodigy"}, accept_changes=True) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert '--optimizer was "adamw"' in error and "--last_lora_path" in error


# --- Validation loss ---


def test_validation_loss_is_comparable_between_runs(base, tmp_path):
    for name, flags in (("a", {}), ("b", {"seed": 5, "tag_dropout": 0.0, "batch_size": 2})):
        assert train(base, tmp_path / name, val_every=2, max_steps=4, **flags) == 0
    tables = [rows(tmp_path / name) for name in "ab"]
    assert [row["step"] for row in tables[0] if row["val_loss"]] == ["0", "2", "4"]
    assert tables[0][0]["val_loss"] == tables[1][0]["val_loss"]  # before training, whatever the settings
    assert len({row["val_loss"] for row in tables[0] if row["val_loss"]}) == 3


def test_single_song_overfit_is_seen(base, tmp_path):
    make_records(tmp_path / "prep", base / "tiny", (24,))
    flags = {"max_steps": 60, "val_every": 60, "learning_rate": 0.02, "warmup_steps": 5, "ssl_coeff": 0}
    assert train(base, tmp_path, dataset_path=tmp_path / "prep", **flags) == 0
    losses = [float(row["val_loss"]) for row in rows(tmp_path) if row["val_loss"]]
    assert losses[1] < 0.97 * losses[0]


def test_held_out_songs_are_not_trained_on(base, tmp_path, capsys):
    assert train(base, tmp_path, val_every=2, val_songs=1, epochs=1) == 0
    assert "held-out songs 'song" in capsys.readouterr().out
    assert folders(tmp_path) == ["epoch=0-step=2_lora"]
    assert train(base, tmp_path / "x", val_every=2, val_songs=3) == 2
