"""Songs rendered by the command on the tiny base model, with and without a LoRA."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from ace_lora.commands import WrongInput, run_script
from ace_lora.lora.file import WEIGHTS_NAME, save_lora
from ace_lora.lora.layers import adapter_shapes, target_layers
from ace_lora.preview import __main__ as preview
from ace_lora.preview.__main__ import parse_args
from ace_lora.preview.adapters import adapted, apply_lora, read_lora, scales_to_play
from ace_lora.records.format import Record
from ace_lora.records.record import write_record
from ace_lora.tiny_base.make import make_tiny_base
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


def run(base, output, *more: str) -> int:
    argv = ["--checkpoint_dir", str(base), "--seconds", "1", "--steps", "2"]
    if "--record" not in more:
        argv += ["--prompt", "rock, drums"]
    return run_script(preview.main, parse_args([*argv, "--device", "cpu", "--output", str(output), *more]))


def render(base, output, *more: str) -> np.ndarray:
    assert run(base, output, *more) == 0
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
    assert run_script(preview.main, parse_args(["--prompt", "x", "--output", "a.ogg"])) == 2


# --- Settings ---


def test_settings_reach_the_sampling(base, tmp_path):
    lyrics = tmp_path / "l.txt"
    lyrics.write_text("[verse]\nhello", encoding="utf-8")
    flags = ["--seconds", "0.3", "--steps", "4", "--lyrics", str(lyrics)]
    songs = [render(base, tmp_path / "a.wav", *flags)]
    for number, more in enumerate((["--sampler", "pingpong", "--shift", "5"], ["--erg_lyrics", "--erg_tags"])):
        songs.append(render(base, tmp_path / f"{number}.wav", *flags, *more))
        assert not any(np.array_equal(songs[-1], other) for other in songs[:-1]), more


def test_as_comfyui_the_song_has_its_rate_its_bits_and_its_loudness(base, tmp_path, lora):
    flags = ["--as", "comfyui", "--guidance", "2", "--seed", str(2**64 - 1), "--seconds", "0.3"]
    assert run(base, tmp_path / "a.flac", *flags) == 0
    assert run(base, tmp_path / "a.wav", *flags) == 0
    flac, wav = soundfile.info(tmp_path / "a.flac"), soundfile.info(tmp_path / "a.wav")
    assert (flac.samplerate, flac.subtype, flac.frames) == (44_100, "PCM_16", 3 * 4096)
    assert wav.samplerate == 44_100
    samples = soundfile.read(tmp_path / "a.wav", dtype="float32", always_2d=True)[0]
    assert samples.std(ddof=0) <= 0.2001
    compared = soundfile.read(tmp_path / "a.flac", dtype="float32", always_2d=True)[0]
    assert np.abs(compared - samples.clip(-1, 1)).max() <= 2**-15
    assert run(base, tmp_path / "b.wav", *flags, "--lora", str(lora)) == 0
    assert not np.array_equal(soundfile.read(tmp_path / "b.wav", dtype="float32")[0], samples)


def test_mp3_and_flac_hold_the_song(base, tmp_path):
    reference = render(base, tmp_path / "a.wav")
    assert run(base, tmp_path / "a.flac") == run(base, tmp_path / "a.mp3") == 0
    flac, rate = soundfile.read(tmp_path / "a.flac", dtype="float32")
    assert rate == 48_000 and np.abs(flac - reference.clip(-1, 1)).max() <= 2**-23
    mp3, rate = soundfile.read(tmp_path / "a.mp3", dtype="float32")
    assert rate == 48_000 and (tmp_path / "a.mp3").stat().st_size < (tmp_path / "a.wav").stat().st_size / 4
    assert np.corrcoef(mp3[: len(reference), 0], reference[: len(mp3), 0])[0, 1] > 0.9


def test_equal_songs_are_equal_files(base, tmp_path):
    render(base, tmp_path / "a.wav")
    time.sleep(1.1)  # the format would keep the second
    render(base, tmp_path / "b.wav")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_a_song_of_the_training_is_sung_from_its_record(base, tmp_path, capsys):
    record = Record(
        keys="song",
        target_latents=torch.zeros(8, 16, 4),
        text_token_ids=torch.tensor([5, 6, 1]),
        lyric_token_ids=torch.tensor([0]),
        metadata={"prompt": "rock"},
    )
    write_record(tmp_path / "song.safetensors", record)
    sung = render(base, tmp_path / "a.wav", "--record", str(tmp_path / "song.safetensors"))
    assert not np.array_equal(sung, render(base, tmp_path / "b.wav"))
    (tmp_path / "text.txt").write_text("la", encoding="utf-8")
    argv = ["--record", str(tmp_path / "song.safetensors"), "--lyrics", str(tmp_path / "text.txt")]
    assert run(base, tmp_path / "c.wav", *argv) == 2
    assert run(base, tmp_path / "c.wav", "--record", str(tmp_path / "none.safetensors")) == 2
    error = capsys.readouterr().err
    assert "brings the lyrics of its song" in error and "none.safetensors' cannot be read" in error


def test_settings_of_the_other_way_and_wrong_ones_are_refused(tmp_path, capsys):
    argv = ["--prompt", "x", "--output", str(tmp_path / "a.wav")]
    own = ["--omega", "1", "--erg_lyrics", "--sampler", "heun", "--as", "comfyui"]
    assert run_script(preview.main, parse_args([*argv, *own])) == 2
    error = capsys.readouterr().err
    for name in ("omega", "erg_lyrics", "sampler"):
        assert f"--{name} does not exist when a song is made as comfyui makes it" in error
    wrong = ["--tonemap", "1", "--interval", "2", "--shift", "nan", "--erg_tags", "--steps", "1001"]
    wrong += ["--seed", str(2**63)]
    assert run_script(preview.main, parse_args([*argv, *wrong])) == 2
    error = capsys.readouterr().err
    for part in ("--tonemap does not exist", "--interval is 2.0", "--shift is nan", "--erg_tags has no effect"):
        assert part in error
    assert "--steps is 1001, expected 1 to 1000" in error and f"--seed is {2**63}, expected 0 or more" in error


# --- What goes wrong ---


@pytest.mark.parametrize("way", ["ace-step", "comfyui"])
def test_numbers_that_are_not_finite_are_no_song(base, tmp_path, lora, transformer, way, capsys):
    folder = tmp_path / "large_lora"
    folder.mkdir()
    save_lora(folder / WEIGHTS_NAME, {key: 1e18 * value for key, value in lora_tensors(transformer).items()}, CONFIG)
    output = tmp_path / "a.wav"
    assert run(base, output, "--lora", str(folder), "--as", way, "--strength", "1e29") == 1
    error = capsys.readouterr().err
    assert "not finite" in error and "Traceback" not in error and not output.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp-")]


@pytest.mark.skipif(sys.platform == "win32", reason="the size of files is limited by a call of POSIX")
@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])
def test_a_full_disk_is_said(base, tmp_path, kind, capsys):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        status = run(base, tmp_path / f"a.{kind}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1 and list(tmp_path.iterdir()) == []
    error = capsys.readouterr().err
    assert "error: " in error and "Traceback" not in error and "bug" not in error


def test_too_little_room_is_seen_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preview, "free_bytes", lambda path: 1000)
    argv = ["--prompt", "x", "--output", str(tmp_path / "a.wav"), "--checkpoint_dir", str(tmp_path)]
    assert run_script(preview.main, parse_args(argv)) == 2
    assert "the disk has 1,000 left" in capsys.readouterr().err


# --- LoRA ---


@pytest.mark.parametrize("merge", [False, True])
def test_a_lora_leaves_the_base_model_as_it_was(base, lora, merge):
    model = load_transformer(base / "ace_step_transformer", dtype=torch.bfloat16, device="cpu")
    model.drop_ssl_heads()
    before = {name: (type(module), id(module)) for name, module in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    file = read_lora(lora)
    for strength in (1.0, -0.5):
        with adapted(model, file, strength, merge=merge):
            x = torch.ones(1, model.transformer_blocks[0].attn.to_q.in_features, dtype=torch.bfloat16)
            inside = model.transformer_blocks[0].attn.to_q(x)
        assert not torch.equal(inside, model.transformer_blocks[0].attn.to_q(x))
        assert {name: (type(module), id(module)) for name, module in model.named_modules()} == before
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_comfyui_adds_the_lora_to_the_weight_and_rounds(base, lora):
    model = load_transformer(base / "ace_step_transformer", dtype=torch.bfloat16, device="cpu")
    model.drop_ssl_heads()
    name = "transformer_blocks.0.attn.to_q"
    weight = model.get_submodule(name).weight.clone()
    file = read_lora(lora)
    a, b = (file.tensors[f"{name}.lora_{side}.weight"].float() for side in "AB")
    with adapted(model, file, 0.5, merge=True) as sentence:
        expected = (weight.float() + 0.5 * 0.5 * b @ a).bfloat16()
        assert torch.equal(model.get_submodule(name).weight, expected) and "as ComfyUI does" in sentence


def test_a_scale_that_no_file_states_comes_from_the_user(tmp_path, transformer):
    tensors = lora_tensors(transformer)
    path = tmp_path / "x.safetensors"
    save_lora(path, tensors, {**CONFIG, "use_rslora": False})
    scales, source = scales_to_play(read_lora(path), 9.0)
    assert set(scales.values()) == {0.25} and source == "its header"
    save_file(tensors, path)
    with pytest.raises(WrongInput, match=r"does not say with which scale.*--lora_scale \(0\.125 for rank 64"):
        scales_to_play(read_lora(path), None)
    assert scales_to_play(read_lora(path), 0.3) == (dict.fromkeys(scales, 0.3), "--lora_scale")


def test_layers_may_differ_in_rank(tmp_path, base, transformer):
    """As after pruning by energy. The result is W + s B A, layer by layer."""
    tensors = lora_tensors(transformer)
    name = "transformer_blocks.1.attn.to_q"
    tensors[f"{name}.lora_A.weight"] = tensors[f"{name}.lora_A.weight"][:1].clone()
    tensors[f"{name}.lora_B.weight"] = tensors[f"{name}.lora_B.weight"][:, :1].clone()
    path = tmp_path / "pruned.safetensors"
    save_file(tensors, path)
    model = load_transformer(base / "ace_step_transformer", dtype=torch.float32, device="cpu")
    sentence = apply_lora(model, read_lora(path), -2.0, stated_scale=0.25)
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
