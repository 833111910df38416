"""Songs rendered by the command on the tiny base model, with and without a LoRA."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from ace_lora.commands import WrongInput, run_script
from ace_lora.lora.file import WEIGHTS_NAME, read_lora_file, save_lora
from ace_lora.lora.layers import adapter_shapes, target_layers
from ace_lora.preview import __main__ as preview
from ace_lora.preview.__main__ import apply_lora, parse_args, scales_to_play
from ace_lora.tiny_base.build import make_tiny_base
from ace_lora.v1.transformer import load_transformer

QUERIES = [f"transformer_blocks.{block}.attn.to_q" for block in range(3)]
CONFIG = {"r": 4, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q", "to_v", "linear_q"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny base")
    make_tiny_base(folder)
    return folder


@pytest.fixture(scope="module")
def transformer(base):
    return load_transformer(base / "ace_step_transformer", dtype=torch.float32, device="cpu")


def lora_tensors(transformer, rank=4):
    generator = torch.Generator().manual_seed(0)
    return {
        key: 0.5 * torch.randn(shape, generator=generator)
        for key, shape in adapter_shapes(target_layers(transformer, CONFIG), rank).items()
    }


@pytest.fixture
def lora(tmp_path, transformer):
    """A folder as training writes it."""
    folder = tmp_path / "epoch=0-step=5_lora"
    folder.mkdir()
    save_lora(folder / WEIGHTS_NAME, lora_tensors(transformer), CONFIG)
    return folder


def render(base, output, *more: str) -> np.ndarray:
    argv = ["--checkpoint_dir", str(base), "--prompt", "rock, drums", "--seconds", "1", "--steps", "2"]
    status = run_script(preview.main, parse_args([*argv, "--device", "cpu", "--output", str(output), *more]))
    assert status == 0
    samples, rate = soundfile.read(output, dtype="float32", always_2d=True)
    assert rate == 48_000 and soundfile.info(output).subtype == "FLOAT"
    return samples


def test_a_song_is_rendered_and_depends_on_everything_it_should(base, tmp_path, lora, capsys):
    lyrics = tmp_path / "歌 词.txt"
    lyrics.write_text("[verse]\nhello world\n", encoding="utf-8")
    reference = render(base, tmp_path / "a.wav")
    # 10 whole latent frames of 4096 samples at 44.1 kHz.
    assert reference.shape == (-(-160 * 4096 * 10 // 147), 2)
    assert np.isfinite(reference).all() and reference.std() > 0
    assert not np.array_equal(render(base, tmp_path / "c.wav", "--lyrics", str(lyrics)), reference)
    assert not np.array_equal(render(base, tmp_path / "d.wav", "--seed", "1"), reference)
    with_lora = render(base, tmp_path / "e.wav", "--lora", str(lora))
    assert not np.allclose(with_lora, reference, atol=1e-4)
    assert "scale 0.5 from its header, strength 1" in capsys.readouterr().out
    assert np.array_equal(render(base, tmp_path / "f.wav", "--lora", str(lora), "--strength", "0"), reference)
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert names == {"歌 词.txt", *(f"{letter}.wav" for letter in "acdef")}


def test_the_command_itself(base, tmp_path):
    output = tmp_path / "out.wav"
    argv = ["--checkpoint_dir", str(base), "--prompt", "", "--seconds", "0.5", "--steps", "1", "--guidance", "1"]
    child = subprocess.run(
        [sys.executable, "-m", "ace_lora.preview", *argv, "--output", str(output)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert output.is_file() and f"wrote '{output}': 0.5 s" in child.stdout
    assert "Traceback" not in child.stderr


def test_help_needs_no_torch():
    program = (
        "import sys; from ace_lora.preview.__main__ import parse_args;"
        "assert 'torch' not in sys.modules; parse_args(['-h'])"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert child.returncode == 0 and "--strength" in child.stdout


def test_all_problems_are_reported_at_once(tmp_path, capsys):
    (tmp_path / "old.wav").write_bytes(b"mine")
    (tmp_path / "gbk.txt").write_bytes("月光".encode("gbk"))
    argv = ["--prompt", "x", "--seconds", "0", "--steps", "0", "--seed", "-1", "--guidance", "nan", "--strength", "inf"]
    argv += ["--lyrics", str(tmp_path / "gbk.txt"), "--lora", str(tmp_path / "none.safetensors")]
    argv += ["--output", str(tmp_path / "old.wav")]
    assert run_script(preview.main, parse_args(argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    for part in ("--seconds is 0.0", "--steps is 0", "--seed is -1", "--guidance is nan", "--strength is inf"):
        assert any(part in line for line in lines), part
    assert any("gbk.txt' cannot be read" in line for line in lines)
    assert any("No LoRA file at" in line for line in lines)
    assert any("old.wav' exists and would be overwritten" in line for line in lines)
    assert len(lines) == 8 and (tmp_path / "old.wav").read_bytes() == b"mine"
    assert run_script(preview.main, parse_args(["--prompt", "x", "--output", "a.mp3"])) == 2


# --- LoRA ---


def test_a_scale_that_no_file_states_comes_from_the_user(tmp_path, transformer):
    tensors = lora_tensors(transformer)
    path = tmp_path / "x.safetensors"
    save_lora(path, tensors, {**CONFIG, "use_rslora": False})
    scales, source = scales_to_play(read_lora_file(path), 9.0)
    assert set(scales.values()) == {0.25} and source == "its header"
    save_file(tensors, path)
    with pytest.raises(WrongInput, match=r"does not say with which scale.*--lora_scale \(0\.125 for rank 64"):
        scales_to_play(read_lora_file(path), None)
    assert scales_to_play(read_lora_file(path), 0.3) == (dict.fromkeys(scales, 0.3), "--lora_scale")


def test_layers_may_differ_in_rank(tmp_path, base, transformer):
    """As after pruning by energy. The result is W + s B A, layer by layer."""
    tensors = lora_tensors(transformer)
    name = "transformer_blocks.1.attn.to_q"
    tensors[f"{name}.lora_A.weight"] = tensors[f"{name}.lora_A.weight"][:1].clone()
    tensors[f"{name}.lora_B.weight"] = tensors[f"{name}.lora_B.weight"][:, :1].clone()
    path = tmp_path / "pruned.safetensors"
    save_file(tensors, path)
    model = load_transformer(base / "ace_step_transformer", dtype=torch.float32, device="cpu")
    sentence = apply_lora(model, read_lora_file(path), -2.0, stated_scale=0.25)
    assert "scale 0.25 from --lora_scale, strength -2" in sentence
    x = torch.randn(1, 3, 128)
    stored = load_file(path)
    for layer in (name, "transformer_blocks.0.cross_attn.to_v", "lyric_encoder.encoders.0.self_attn.linear_q"):
        base_layer, adapted = transformer.get_submodule(layer), model.get_submodule(layer)
        y = x[..., : base_layer.in_features]
        low = y @ stored[f"{layer}.lora_A.weight"].T @ stored[f"{layer}.lora_B.weight"].T
        torch.testing.assert_close(adapted(y), base_layer(y) - 0.5 * low, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "quoted"),
    [
        (
            lambda t: t.update({"x.lora_A.weight": torch.zeros(4, 8), "x.lora_B.weight": torch.ones(8, 4)}),
            "layers that this base model does not",
        ),
        (lambda t: t.pop("transformer_blocks.0.attn.to_q.lora_B.weight"), "lora_B is missing"),
        (
            lambda t: t.update({"transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 8)}),
            "widths that differ from block to block",
        ),
        (
            lambda t: [t.update({f"{n}.lora_A.weight": torch.zeros(4, 8)}) for n in QUERIES],
            r"has shape \[4, 8\], expected 128 inputs",
        ),
        (
            lambda t: t.update({"transformer_blocks.0.attn.to_q.lora_A.weight": torch.full((4, 128), torch.nan)}),
            "not finite",
        ),
    ],
)
def test_a_lora_that_does_not_fit_is_refused(tmp_path, base, transformer, change, quoted, capsys):
    tensors = lora_tensors(transformer)
    change(tensors)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    argv = ["--checkpoint_dir", str(base), "--prompt", "x", "--seconds", "1", "--steps", "1", "--lora", str(path)]
    argv += ["--lora_scale", "1", "--output", str(tmp_path / "a.wav"), "--device", "cpu"]
    assert run_script(preview.main, parse_args(argv)) == 2
    error = capsys.readouterr().err
    assert "error: " in error and "Traceback" not in error
    assert re.search(quoted, error)
    assert not (tmp_path / "a.wav").exists()


def test_a_lora_of_the_ssl_heads_too_is_played_without_them(tmp_path, base, transformer):
    config = {**CONFIG, "target_modules": ["to_q", "projectors.0.0"]}
    tensors = {k: torch.zeros(s) for k, s in adapter_shapes(target_layers(transformer, config), 4).items()}
    save_lora(tmp_path / "x.safetensors", tensors, config, with_alpha=True)
    render(base, tmp_path / "a.wav", "--lora", str(tmp_path / "x.safetensors"))
