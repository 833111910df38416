"""Run with: pytest tests/lora/test_main.py"""

import subprocess
import sys

import torch
from safetensors.torch import save_file

from ace_lora.commands import run_script
from ace_lora.lora import __main__ as command
from ace_lora.lora.file import save_lora

LAYER = "transformer_blocks.0.attn.to_q"
TENSORS = {f"{LAYER}.lora_A.weight": torch.ones(2, 3), f"{LAYER}.lora_B.weight": torch.ones(4, 2)}


def run(path):
    return run_script(command.main, command.parse_args([str(path)]))


def test_a_sentence_or_the_reason(tmp_path, capsys):
    path = tmp_path / "a b.safetensors"
    save_lora(path, TENSORS, {"r": 2, "lora_alpha": 2, "use_rslora": False, "target_modules": ["to_q"]})
    assert run(path) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"'{path}' is a LoRA of 1 layers, rank 2, bfloat16: ")
    assert line.endswith("; scale 1 from its header")
    save_file(TENSORS, path)
    assert run(path) == 0 and "it does not say its scale" in capsys.readouterr().out
    save_file({**TENSORS, f"{LAYER}.dora_scale": torch.ones(4, 1)}, path)
    assert run(path) == 2 and "DoRA" in capsys.readouterr().err
    save_file({key: tensor * float("nan") for key, tensor in TENSORS.items()}, path)
    assert run(path) == 2 and "take an earlier checkpoint" in capsys.readouterr().err


def test_help_needs_no_torch():
    program = (
        "import sys; from ace_lora.lora.__main__ import parse_args; assert 'torch' not in sys.modules; "
        "parse_args(['-h'])"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert child.returncode == 0 and "where it seems to come from" in child.stdout
