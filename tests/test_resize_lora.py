"""Run with: pytest tests/test_resize_lora.py - on small files with known singular values."""

import json
import math
import os
import re
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
from ace_lora.lora.config import CONFIG_NAME, TRAINING_CONFIG_NAME, peft_config_dict, read_lora_config
from ace_lora.lora.file import WEIGHTS_NAME, save_lora

LAYERS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_out.0")
CONFIG = {"r": 4, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q", "to_out.0"]}


def make_lora(folder, values=(8.0, 4.0, 1.0, 0.5), **options):
    """A *_lora folder whose layers have these singular values."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer, size in zip(LAYERS, (12, 20), strict=True):
        left = torch.linalg.qr(torch.randn(size, 4, generator=generator, dtype=torch.float64))[0]
        right = torch.linalg.qr(torch.randn(16, 4, generator=generator, dtype=torch.float64))[0]
        tensors[f"{layer}.lora_A.weight"] = right.T
        tensors[f"{layer}.lora_B.weight"] = left * torch.tensor(values)
    save_lora(folder / WEIGHTS_NAME, tensors, CONFIG, {"rank": "4"}, **options)
    (folder / CONFIG_NAME).write_text(json.dumps(peft_config_dict(CONFIG)), encoding="utf-8")
    return load_file(folder / WEIGHTS_NAME)


def run(*argv):
    return run_script(resize_lora.main, resize_lora.parse_args([str(part) for part in argv]))


def product(tensors, layer):
    return tensors[f"{layer}.lora_B.weight"].double() @ tensors[f"{layer}.lora_A.weight"].double()


def test_rank_r_pruned_to_r_is_unchanged(tmp_path, capsys):
    before = make_lora(tmp_path / "in_lora")
    assert run("--input_name", tmp_path / "in_lora", "--output_name", tmp_path / "o", "--new_rank", 4) == 0
    after = load_file(tmp_path / "o" / WEIGHTS_NAME)
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert read_lora_config(tmp_path / "o" / TRAINING_CONFIG_NAME)["r"] == 4
    assert "kept 100.00 % of the norm" in capsys.readouterr().out
    assert run("--input_name", tmp_path / "in_lora", "--output_name", tmp_path / "p", "--new_rank", 5) == 2
    assert "has rank 4: a higher one adds nothing" in capsys.readouterr().err and not (tmp_path / "p").exists()


def test_libraries_say_nothing(tmp_path):
    make_lora(tmp_path / "in_lora")
    argv = ["--input_name", tmp_path / "in_lora", "--output_name", tmp_path / "o", "--new_rank", "2"]
    done = subprocess.run([sys.executable, resize_lora.__file__, *map(str, argv)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout.splitlines()) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_full_disk_is_told_in_a_sentence(tmp_path, capsys):
    import resource

    make_lora(tmp_path / "in_lora")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        assert run("--input_name", tmp_path / "in_lora", "--output_name", tmp_path / "o", "--new_rank", 2) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert "Free the disk" in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["in_lora"]


def test_new_rank_keeps_the_best_and_prints_the_share(tmp_path, capsys):
    before = make_lora(tmp_path / "in_lora")
    out = tmp_path / "新 out.safetensors"
    assert run("--input_name", tmp_path / "in_lora" / WEIGHTS_NAME, "--output_name", out, "--new_rank", 2) == 0
    expected = 100 * math.sqrt((64 + 16) / (64 + 16 + 1 + 0.25))  # of the norm, the unit of --sv_fro
    lines = capsys.readouterr().out.splitlines()
    for layer in LAYERS:
        (line,) = (line for line in lines if line.startswith(layer + " |"))
        assert float(re.search(r"kept ([\d.]+) % of the norm", line)[1]) == pytest.approx(expected, abs=0.1)
        assert "rank 4 to 2" in line
    after = load_file(out)
    for layer in LAYERS:
        assert after[f"{layer}.lora_A.weight"].shape[0] == after[f"{layer}.lora_B.weight"].shape[1] == 2
        assert after[f"{layer}.lora_A.weight"].dtype == torch.bfloat16
        error = (product(after, layer) - product(before, layer)).norm().item()
        assert error == pytest.approx(math.sqrt(1.25), rel=0.05)  # what was left out
    with safe_open(out, "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    # alpha / sqrt(r) as before
    assert config["r"] == 2 and config["lora_alpha"] / math.sqrt(2) == pytest.approx(1 / math.sqrt(4))


@pytest.mark.parametrize(
    ("flag", "value", "rank"),
    [("sv_ratio", 3, 2), ("sv_ratio", 10, 3), ("sv_fro", 0.88, 1), ("sv_fro", 0.99, 2), ("sv_fro", 1, 4)],
)
def test_rank_by_singular_values(tmp_path, flag, value, rank):
    make_lora(tmp_path / "in_lora")
    assert run("--input_name", tmp_path / "in_lora", "--output_name", tmp_path / "o", f"--{flag}", value) == 0
    after = load_file(tmp_path / "o" / WEIGHTS_NAME)
    assert {t.shape[0] for key, t in after.items() if "lora_A" in key} == {rank}


def test_layers_of_different_rank_keep_their_scale(tmp_path):
    tensors = make_lora(tmp_path / "in_lora")
    tensors[f"{LAYERS[1]}.lora_B.weight"][:, 1:] = 0  # one direction only
    save_lora(tmp_path / "in_lora" / WEIGHTS_NAME, tensors, CONFIG)
    assert run("--input_name", tmp_path / "in_lora", "--output_name", tmp_path / "o", "--sv_ratio", 10) == 0
    assert [path.name for path in (tmp_path / "o").iterdir()] == [WEIGHTS_NAME]
    with safe_open(tmp_path / "o" / WEIGHTS_NAME, "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    assert config["r"] == 3 and config["rank_pattern"] == {LAYERS[1]: 1}
    assert config["alpha_pattern"][LAYERS[1]] / math.sqrt(1) == pytest.approx(0.5)


def test_a_pruned_lora_can_be_pruned_again_and_given_alpha(tmp_path):
    tensors = make_lora(tmp_path / "in_lora")
    tensors[f"{LAYERS[1]}.lora_B.weight"][:, 1:] = 0
    save_lora(tmp_path / "in_lora" / WEIGHTS_NAME, tensors, CONFIG)
    assert run("--input_name", tmp_path / "in_lora", "--output_name", tmp_path / "once", "--sv_ratio", 10) == 0
    # As a file alone: the configuration is in its header.
    assert run("--input_name", tmp_path / "once", "--output_name", tmp_path / "2.safetensors", "--new_rank", 2) == 0
    for name in ("once", "2.safetensors"):
        argv = ["--input_name", str(tmp_path / name), "--output_name", str(tmp_path / f"{name}_alpha.safetensors")]
        assert run_script(add_alpha_in_lora.main, add_alpha_in_lora.parse_args(argv)) == 0
        written = load_file(argv[-1])
        for layer in LAYERS:
            scale = float(written[f"{layer}.alpha"]) / len(written[f"{layer}.lora_A.weight"])
            assert scale == pytest.approx(0.5)


@pytest.mark.parametrize("header", ['{"transformer.r": 64}', "{bad", "[1]", '{"r": "4"}'])
def test_headers_of_other_programs_are_no_mistake(tmp_path, header):
    tensors = make_lora(tmp_path / "in_lora")
    save_file(tensors, tmp_path / "in.safetensors", metadata={"lora_adapter_metadata": header})
    assert run("--input_name", tmp_path / "in.safetensors", "--output_name", tmp_path / "o", "--new_rank", 2) == 0
    assert [path.name for path in (tmp_path / "o").iterdir()] == [WEIGHTS_NAME]


def test_alpha_values_follow_the_rank(tmp_path):
    make_lora(tmp_path / "in_lora", with_alpha=True)
    assert run("--input_name", tmp_path / "in_lora", "--output_name", tmp_path / "o", "--new_rank", 2) == 0
    after = load_file(tmp_path / "o" / WEIGHTS_NAME)
    assert {after[f"{layer}.alpha"].item() for layer in LAYERS} == {1.0}  # was 2 for rank 4


def test_a_layer_of_zeros_is_no_problem(tmp_path):
    make_lora(tmp_path / "in_lora", values=(0.0, 0, 0, 0))
    for number, how in enumerate((("--new_rank", 2), ("--sv_ratio", 4), ("--sv_fro", 0.9))):
        assert run("--input_name", tmp_path / "in_lora", "--output_name", tmp_path / f"o{number}", *how) == 0


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such permissions")
@pytest.mark.parametrize(("name", "file"), [("o", "o/" + WEIGHTS_NAME), ("o.safetensors", "o.safetensors")])
def test_the_result_has_the_permissions_of_any_new_file(tmp_path, name, file):
    make_lora(tmp_path / "in_lora")
    assert run("--input_name", tmp_path / "in_lora", "--output_name", tmp_path / name, "--new_rank", 2) == 0
    (tmp_path / "new").touch()
    assert (tmp_path / file).stat().st_mode == (tmp_path / "new").stat().st_mode


def test_wrong_input_is_reported_at_once_and_nothing_overwritten(tmp_path, capsys):
    make_lora(tmp_path / "in_lora")
    (tmp_path / "o.safetensors").write_bytes(b"mine")
    assert run("--input_name", tmp_path / "none", "--output_name", tmp_path / "o.safetensors", "--new_rank", 0) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert (tmp_path / "o.safetensors").read_bytes() == b"mine"
    for how in (("--sv_ratio", 0.5), ("--sv_fro", 1.5), ("--sv_fro", "nan")):
        assert run("--input_name", tmp_path / "in_lora", "--output_name", tmp_path / "p", *how) == 2
    with pytest.raises(SystemExit):
        resize_lora.parse_args(["--input_name", "a", "--output_name", "b", "--new_rank", "1", "--sv_fro", "1"])


def test_overwrite_replaces_the_output_and_never_the_input(tmp_path, capsys):
    make_lora(tmp_path / "in_lora")
    before = (tmp_path / "in_lora" / WEIGHTS_NAME).read_bytes()
    for name in ("in_lora", f"in_lora/{WEIGHTS_NAME}"):
        flags = ("--output_name", tmp_path / name, "--new_rank", 2, "--overwrite")
        assert run("--input_name", tmp_path / "in_lora", *flags) == 2
        assert "the input file itself, or its folder" in capsys.readouterr().err
    assert (tmp_path / "in_lora" / WEIGHTS_NAME).read_bytes() == before
    for name in ("o", "o.safetensors"):
        for rank in (2, 1):
            flags = ("--output_name", tmp_path / name, "--new_rank", rank, "--overwrite")
            assert run("--input_name", tmp_path / "in_lora", *flags) == 0
        file = tmp_path / name / WEIGHTS_NAME if name == "o" else tmp_path / name
        assert {t.shape[0] for key, t in load_file(file).items() if "lora_A" in key} == {1}
    assert not (tmp_path / ".removed").exists()


def test_the_strength_can_be_stated_where_the_file_is_silent(tmp_path):
    tensors = make_lora(tmp_path / "in_lora")
    save_file(tensors, tmp_path / "silent.safetensors")
    (tmp_path / "c.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    args = ("--input_name", tmp_path / "silent.safetensors", "--new_rank", 2)
    assert run(*args, "--output_name", tmp_path / "a", "--for", "all") == 2
    stated = ("--lora_config_path", tmp_path / "c.json")
    assert run(*args, "--output_name", tmp_path / "a", "--for", "all", *stated) == 0
    assert run(*args, "--output_name", tmp_path / "b.safetensors", *stated) == 0
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    assert config["lora_alpha"] / math.sqrt(config["r"]) == pytest.approx(0.5)


def test_flags_of_other_programs_lead_to_ours(capsys):
    with pytest.raises(SystemExit) as caught:
        resize_lora.parse_args(["--model", "a", "--save_to", "b", "--dynamic_method", "sv_fro"])
    assert caught.value.code == 2 and "Use --input_name instead" in capsys.readouterr().err


def test_parse_args_needs_no_torch():
    code = (
        "import sys, resize_lora as s; s.parse_args(['--input_name', 'a', '--output_name', 'b', '--new_rank', '1']); "
    )
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    folder = Path(resize_lora.__file__).parent
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
