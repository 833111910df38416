"""Run with: pytest tests/test_merge_lora.py - on small files; the players are in tests/lora/test_clients.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import merge_lora
from ace_lora.commands import run_script
from ace_lora.lora.file import WEIGHTS_NAME, save_lora

ROOT = Path(__file__).parent.parent
Q, V, OUT = (f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_v", "to_out.0"))


def make_lora(path, layers, rank, alpha=1.0, seed=0):
    """A file with rsLoRA, and the change s · B A of each layer."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, 12, generator=generator).bfloat16().float()
        tensors[f"{layer}.lora_B.weight"] = torch.randn(10, rank, generator=generator).bfloat16().float()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_lora(path, tensors, {"r": rank, "lora_alpha": alpha, "use_rslora": True, "target_modules": ["to_q"]})
    scale = alpha / rank**0.5
    return {n: scale * tensors[f"{n}.lora_B.weight"] @ tensors[f"{n}.lora_A.weight"] for n in layers}


def run(*argv):
    return run_script(merge_lora.main, merge_lora.parse_args([str(part) for part in argv]))


def changes(path):
    content = load_file(path)
    layers = {key.removesuffix(".alpha") for key in content if key.endswith(".alpha")}
    return {n: content[f"{n}.lora_B.weight"].float() @ content[f"{n}.lora_A.weight"].float() for n in layers}


@pytest.fixture
def two(tmp_path):
    first = make_lora(tmp_path / "one_lora" / WEIGHTS_NAME, (Q, OUT), 4)
    second = make_lora(tmp_path / "二 two.safetensors", (Q, V), 2, alpha=3.0, seed=1)
    return tmp_path, first, second


def test_equals_both_together_at_their_strengths(two, capsys):
    folder, first, second = two
    out = folder / "out.safetensors"
    loras = (folder / "one_lora", folder / "二 two.safetensors")
    assert run(*loras, "--weights", 0.6, "-1.1", "--output_name", out) == 0
    merged = changes(out)
    expected = {Q: 0.6 * first[Q] - 1.1 * second[Q], OUT: 0.6 * first[OUT], V: -1.1 * second[V]}
    assert merged.keys() == expected.keys()
    for layer, change in expected.items():
        assert float((merged[layer] - change).norm() / change.norm()) < 1e-6
    ranks = {t.shape[0] for key, t in load_file(out).items() if "lora_A" in key}
    assert ranks == {6}  # one rank in all layers
    with safe_open(out, "pt") as file:
        origin = json.loads(file.metadata()["merged_from"])
    assert origin == [{"file": WEIGHTS_NAME, "weight": 0.6}, {"file": "二 two.safetensors", "weight": -1.1}]
    said = capsys.readouterr().out
    assert "one_lora" in said and "二 two.safetensors" in said and "3 layers of rank 6, exact" in said


def test_without_weights_each_counts_fully(two):
    folder, first, second = two
    assert run(folder / "one_lora", folder / "二 two.safetensors", "--output_name", folder / "m") == 0
    torch.testing.assert_close(changes(folder / "m" / WEIGHTS_NAME)[Q], first[Q] + second[Q])


def test_one_lora_gets_its_weight(two):
    folder, first, _ = two
    assert run(folder / "one_lora", "--weights", 0.5, "--output_name", folder / "half.safetensors") == 0
    torch.testing.assert_close(changes(folder / "half.safetensors")[Q], 0.5 * first[Q])


def test_a_lower_rank_is_the_nearest_and_says_what_it_keeps(two, capsys):
    folder, first, second = two
    out = folder / "out.safetensors"
    assert run(folder / "one_lora", folder / "二 two.safetensors", "--output_name", out, "--new_rank", 3) == 0
    shares = []
    for layer, change in {Q: first[Q] + second[Q], OUT: first[OUT], V: second[V]}.items():
        values = torch.linalg.svdvals(change)
        left_out = float(values[3:].norm())
        assert float((changes(out)[layer] - change).norm()) == pytest.approx(left_out, rel=0.05, abs=0.05)
        shares.append(float(values[:3].norm() / values.norm()))
    assert {t.shape[0] for key, t in load_file(out).items() if "lora_A" in key} == {3}
    said = capsys.readouterr().out.splitlines()[-1]
    assert f"kept {100 * min(shares):.2f} % of the norm" in said


def test_loras_that_do_not_say_their_strength_take_the_stated_one(two):
    folder, first, _ = two
    tensors = load_file(folder / "one_lora" / WEIGHTS_NAME)
    save_file(tensors, folder / "silent.safetensors")
    (folder / "c.json").write_text(json.dumps({"r": 4, "lora_alpha": 1, "use_rslora": True}), encoding="utf-8")
    argv = (folder / "silent.safetensors", folder / "二 two.safetensors", "--output_name", folder / "o.safetensors")
    assert run(*argv) == 2
    assert run(*argv, "--lora_config_path", folder / "c.json") == 0
    torch.testing.assert_close(changes(folder / "o.safetensors")[OUT], first[OUT])


def test_all_problems_at_once(two, capsys):
    folder, _, _ = two
    make_lora(folder / "other.safetensors", (Q,), 2)
    tensors = load_file(folder / "other.safetensors")
    tensors[f"{Q}.lora_A.weight"] = torch.ones(2, 13)
    save_file(tensors, folder / "other.safetensors", metadata={"lora_adapter_metadata": '{"r": 2, "lora_alpha": 1}'})
    argv = (folder / "one_lora", folder / "other.safetensors", folder / "none.safetensors")
    flags = ("--weights", "nan", "2", "--new_rank", "0", "--output_name", folder / "one_lora")
    assert run(*argv, *flags) == 2
    errors = capsys.readouterr().err.splitlines()
    parts = (
        *("2 numbers for 3 LoRAs", "has nan", "No LoRA file at", "different base models", "its folder"),
        "--new_rank is 0",
    )
    assert len(errors) == len(parts)
    for part in parts:
        assert any(part in line for line in errors), part
    assert [path.name for path in (folder / "one_lora").iterdir()] == [WEIGHTS_NAME]


def test_a_rank_above_the_sum_is_refused_and_nothing_overwritten(two, capsys):
    folder, _, _ = two
    loras = (folder / "one_lora", folder / "二 two.safetensors")
    assert run(*loras, "--output_name", folder / "o", "--new_rank", 7) == 2
    assert "add up to 6" in capsys.readouterr().err
    (folder / "o.safetensors").write_bytes(b"mine")
    assert run(*loras, "--output_name", folder / "o.safetensors") == 2
    assert (folder / "o.safetensors").read_bytes() == b"mine"
    assert run(*loras, "--output_name", folder / "o.safetensors", "--overwrite") == 0
    assert run(*loras, "--output_name", folder / "二 two.safetensors", "--overwrite") == 2
    assert run(*loras, "--output_name", folder / "o.safetensors", "--for", "peft", "--overwrite") == 2


def test_flags_of_other_programs_lead_to_ours(capsys):
    for argv, ours in ((["a", "--ratios", "1", "2"], "--weights"), (["--models", "a", "b"], "the names themselves")):
        with pytest.raises(SystemExit) as caught:
            merge_lora.parse_args(argv)
        assert caught.value.code == 2 and f"Use {ours}" in capsys.readouterr().err


def test_parse_args_needs_no_torch():
    code = "import sys, merge_lora as s; s.parse_args(['a', 'b', '--output_name', 'c']); "
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
