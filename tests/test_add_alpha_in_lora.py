"""Run with: pytest tests/test_add_alpha_in_lora.py - expected alphas: the published tool's (golden add_alpha.json)."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import add_alpha_in_lora
import resize_lora
from ace_lora.commands import run_script
from ace_lora.lora.config import CONFIG_NAME
from ace_lora.lora.file import WEIGHTS_NAME

ROOT = Path(__file__).parent.parent
CASES = json.loads((ROOT / "tests/golden/transformer/add_alpha.json").read_text(encoding="utf-8"))
CASES = [case for case in CASES if "r" in case]  # the last one: a configuration without use_rslora, tested below
KEYS = CASES[0]["input_keys"]
CONFIG = {"r": 64, "lora_alpha": 1, "use_rslora": True}


def make_lora(path, rank=64, dtype=torch.bfloat16, **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: torch.randn((rank, 12) if ".lora_A." in key else (20, rank)).to(dtype) for key in KEYS}
    save_file(tensors, path, metadata={"format": "pt", **metadata})
    return tensors


def run(*argv):
    return run_script(add_alpha_in_lora.main, add_alpha_in_lora.parse_args([str(part) for part in argv]))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    return path


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_golden(case, tmp_path, capsys):
    tensors = make_lora(tmp_path / "in.safetensors", case["r"], getattr(torch, case["lora_dtype"]))
    (tmp_path / "c.json").write_text(json.dumps({key: case[key] for key in CONFIG}), encoding="utf-8")
    args = ("--input_name", tmp_path / "in.safetensors", "--output_name", tmp_path / "out.safetensors")
    assert run(*args, "--lora_config_path", tmp_path / "c.json") == 0
    assert capsys.readouterr().out.splitlines()[0] == case["info"]["stdout"]
    written = load_file(tmp_path / "out.safetensors")
    assert set(written) == set(tensors) | set(case["alphas"])
    for key, tensor in tensors.items():
        assert torch.equal(written[key], tensor) and written[key].dtype == tensor.dtype
    for key, alpha in case["alphas"].items():
        assert written[key].dtype == getattr(torch, alpha["dtype"])
        assert list(written[key].shape) == alpha["shape"]
        assert written[key].item() == alpha["value"]
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == case["info"]["metadata"]


def test_second_run_says_so_and_writes_nothing(tmp_path, config, capsys):
    make_lora(tmp_path / "in.safetensors")
    flags = ("--lora_config_path", config)
    assert run("--input_name", tmp_path / "in.safetensors", "--output_name", tmp_path / "a.safetensors", *flags) == 0
    capsys.readouterr()
    assert run("--input_name", tmp_path / "a.safetensors", "--output_name", tmp_path / "b.safetensors", *flags) == 2
    assert "already has alpha" in capsys.readouterr().err
    assert run("--input_name", tmp_path / "a.safetensors", "--output_name", tmp_path / "b.safetensors") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "already has alpha" in errors[0]  # and not that the configuration is missing too
    assert not (tmp_path / "b.safetensors").exists()


def test_the_state_of_a_training_is_no_lora(tmp_path, config, capsys):
    tensors = {"adapter/b.to_q.lora_A.weight": torch.zeros(64, 3), "adapter/b.to_q.lora_B.weight": torch.zeros(4, 64)}
    save_file(tensors, tmp_path / "training_state.safetensors")
    flags = ("--output_name", tmp_path / "b.safetensors", "--lora_config_path", config)
    assert run("--input_name", tmp_path / "training_state.safetensors", *flags) == 2
    assert f"choose '{tmp_path / 'pytorch_lora_weights.safetensors'}'" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()


def test_refuses_to_write_over_its_input_and_over_files(tmp_path, config, capsys):
    make_lora(tmp_path / "in.safetensors")
    before = (tmp_path / "in.safetensors").read_bytes()
    roundabout = tmp_path / "x" / ".." / "in.safetensors"
    (tmp_path / "x").mkdir()
    for output in (tmp_path / "in.safetensors", roundabout):
        args = ("--input_name", tmp_path / "in.safetensors", "--output_name", output, "--lora_config_path", config)
        assert run(*args) == 2
        assert run(*args, "--overwrite") == 2
        assert "input file itself" in capsys.readouterr().err
    assert (tmp_path / "in.safetensors").read_bytes() == before
    (tmp_path / "out.safetensors").write_bytes(b"mine")
    args = ("--input_name", tmp_path / "in.safetensors", "--output_name", tmp_path / "out.safetensors")
    assert run(*args, "--lora_config_path", config) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "out.safetensors").read_bytes() == b"mine"
    assert run(*args, "--lora_config_path", config, "--overwrite") == 0
    assert len(load_file(tmp_path / "out.safetensors")) == 6


def test_folder_input_with_saved_config(tmp_path, capsys):
    folder = tmp_path / "epoch=0-step=100_lora"
    make_lora(folder / WEIGHTS_NAME)
    out = tmp_path / "neu 新.safetensors"
    assert run("--input_name", folder, "--output_name", out) == 2
    assert CONFIG_NAME in capsys.readouterr().err
    (folder / CONFIG_NAME).write_text(json.dumps(CONFIG), encoding="utf-8")
    assert run("--input_name", folder, "--output_name", out) == 0
    assert load_file(out)["transformer_blocks.0.attn.to_q.alpha"].item() == 8.0


def test_config_that_contradicts_the_saved_one(tmp_path, config, capsys):
    folder = tmp_path / "epoch=0-step=100_lora"
    make_lora(folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps({**CONFIG, "lora_alpha": 2}), encoding="utf-8")
    args = ("--input_name", folder / WEIGHTS_NAME, "--output_name", tmp_path / "o.safetensors")
    assert run(*args, "--lora_config_path", config) == 2
    assert "lora_alpha = 1" in capsys.readouterr().err


def test_all_problems_at_once(tmp_path, config, capsys):
    make_lora(tmp_path / "in.safetensors", rank=32)
    args = ("--input_name", tmp_path / "in.safetensors", "--output_name", tmp_path / "out.txt")
    assert run(*args, "--lora_config_path", config) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "rank 32" in errors[0] and "out.txt" in errors[1]


@pytest.mark.parametrize("missing", ["r", "lora_alpha"])
def test_config_without_a_needed_key(tmp_path, config, missing, capsys):
    make_lora(tmp_path / "in.safetensors")
    config.write_text(json.dumps({key: value for key, value in CONFIG.items() if key != missing}), encoding="utf-8")
    args = ("--input_name", tmp_path / "in.safetensors", "--output_name", tmp_path / "o.safetensors")
    assert run(*args, "--lora_config_path", config) == 2
    assert f"'{missing}' is missing" in capsys.readouterr().err


def test_for_all_says_what_it_read_and_wrote(tmp_path, config, capsys):
    make_lora(tmp_path / "in.safetensors")
    flags = ("--output_name", tmp_path / "out", "--for", "all", "--lora_config_path", config)
    assert run("--input_name", tmp_path / "in.safetensors", *flags) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"input: '{tmp_path / 'in.safetensors'}' is a LoRA of ")
    assert first.endswith(f"; scale 0.125 from '{config}'")
    assert "plays at strength 1 in every client), checked by reading it back" in last
    assert [path.name for path in (tmp_path / "out").iterdir()] == [WEIGHTS_NAME]


def test_a_folder_with_the_users_own_files_is_set_aside_whole(tmp_path, config):
    make_lora(tmp_path / "in.safetensors")
    flags = ("--output_name", tmp_path / "out", "--for", "all", "--lora_config_path", config)
    assert run("--input_name", tmp_path / "in.safetensors", *flags) == 0
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    assert run("--input_name", tmp_path / "in.safetensors", *flags) == 2
    assert run("--input_name", tmp_path / "in.safetensors", *flags, "--overwrite") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [WEIGHTS_NAME]
    (kept,) = (tmp_path / ".removed").glob("*/out/notes.txt")
    assert kept.read_text(encoding="utf-8") == "mine"


def test_peft_gets_a_folder_not_a_file(tmp_path, config, capsys):
    make_lora(tmp_path / "in.safetensors")
    flags = ("--output_name", tmp_path / "out.safetensors", "--for", "peft", "--lora_config_path", config)
    assert run("--input_name", tmp_path / "in.safetensors", *flags) == 2
    assert "PEFT loads folders. Choose one, such as out" in capsys.readouterr().err


def test_dora_is_refused_and_leads_on(tmp_path, config, capsys):
    tensors = make_lora(tmp_path / "in.safetensors")
    layer = next(iter(tensors)).split(".lora_")[0]
    save_file({**tensors, f"{layer}.dora_scale": torch.ones(20, 1)}, tmp_path / "in.safetensors")
    for client in ("comfyui", "all", "peft"):
        flags = ("--output_name", tmp_path / "o", "--for", client, "--lora_config_path", config)
        assert run("--input_name", tmp_path / "in.safetensors", *flags) == 2
        assert "trained with DoRA" in capsys.readouterr().err


def test_a_smaller_lora_of_unknown_strength_wants_the_configuration_of_its_training(tmp_path, capsys):
    """Rank 64 to 8 with alpha 1 and rsLoRA would play 2.83 times too strong by the configuration of rank 8."""
    make_lora(tmp_path / "in.safetensors", rank=2)
    argv = ["--input_name", str(tmp_path / "in.safetensors"), "--output_name", str(tmp_path / "s"), "--new_rank", "1"]
    assert run_script(resize_lora.main, resize_lora.parse_args(argv)) == 0
    for rank in (1, 2):
        (tmp_path / f"r{rank}.json").write_text(json.dumps({**CONFIG, "r": rank}), encoding="utf-8")
    args = ("--input_name", tmp_path / "s", "--output_name", tmp_path / "o.safetensors", "--lora_config_path")
    assert run(*args, tmp_path / "r1.json") == 2
    assert "which has r = 2" in capsys.readouterr().err
    assert run(*args, tmp_path / "r2.json") == 0
    content = load_file(tmp_path / "o.safetensors")
    alphas = {tensor.item() for key, tensor in content.items() if key.endswith(".alpha")}
    assert alphas == {torch.tensor(1 / 2**0.5).bfloat16().item()}


def test_flags_of_other_programs_lead_to_ours(capsys):
    for flag, ours in (("--lora_path", "--input_name"), ("--save_to", "--output_name")):
        with pytest.raises(SystemExit) as caught:
            add_alpha_in_lora.parse_args([flag, "x", "--output_name", "b"])
        assert caught.value.code == 2
        assert f"{flag} is a flag of another program. Use {ours} instead." in capsys.readouterr().err


def test_missing_empty_and_damaged_input(tmp_path, config, capsys):
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 40)
    (tmp_path / "empty_lora").mkdir()
    for name in ("bad.safetensors", "none.safetensors", "empty_lora"):
        args = ("--input_name", tmp_path / name, "--output_name", tmp_path / "o.safetensors")
        assert run(*args, "--lora_config_path", config) == 2
        assert name in capsys.readouterr().err
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.skipif(os.name != "posix", reason="only POSIX can limit the size of files")
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, config, capsys):
    import resource

    make_lora(tmp_path / "in.safetensors")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    args = ("--input_name", tmp_path / "in.safetensors", "--output_name", tmp_path / "out.safetensors")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        status = run(*args, "--lora_config_path", config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    errors = capsys.readouterr().err
    assert status == 1 and errors.startswith("error: File too large. Free the disk") and "Traceback" not in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"in.safetensors", config.name})


def test_parse_args_needs_no_torch():
    code = "import sys, add_alpha_in_lora as s; s.parse_args(['--input_name','a','--output_name','b']); "
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
