"""What ComfyUI would make of LoRA files, told by its rules; the golden pair that every client must show."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ace_lora.comfyui import __main__ as command
from ace_lora.comfyui.delivery import check_delivery, published_layers
from ace_lora.commands import run_script
from ace_lora.lora.file import WEIGHTS_NAME, read_lora_file, save_lora
from ace_lora.records.format import Record
from ace_lora.records.record import write_record
from ace_lora.tiny_base.make import make_tiny_base
from tests.comfyui.test_workflow import GOLDEN

CONFIG = {"r": 4, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q", "linear_q"]}  # s = 1/2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make_tiny_base(folder)
    return folder


@pytest.fixture(scope="module")
def layers(base):
    return published_layers(base / "ace_step_transformer")


@pytest.fixture(scope="module")
def tensors(layers):
    """As trained, without scale."""
    generator = torch.Generator().manual_seed(0)
    result = {}
    for name, (outer, inner) in ((name, shape) for name, shape in layers.items() if name.endswith("_q")):
        result[f"{name}.lora_A.weight"] = torch.randn(4, inner, generator=generator)
        result[f"{name}.lora_B.weight"] = torch.randn(outer, 4, generator=generator)
    return result


@pytest.fixture
def trained(tmp_path, tensors):
    folder = tmp_path / "epoch=0-step=5_lora"
    folder.mkdir()
    save_lora(folder / WEIGHTS_NAME, tensors, CONFIG)
    return folder


def written(path, tensors, metadata=None):
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def folded(tensors, scale=0.5):
    return {key: tensor * scale if ".lora_B." in key else tensor for key, tensor in tensors.items()}


def test_the_layers_are_those_of_the_published_model():
    layers = published_layers()
    assert layers["transformer_blocks.23.cross_attn.to_out.0"] == (2560, 2560)
    assert layers["lyric_encoder.encoders.5.self_attn.linear_v"] == (1024, 1024)
    assert layers["speaker_embedder"] == (2560, 512) and "projectors.1.4" in layers


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "lora_unet_"])
def test_a_folded_file_plays_as_it_was_trained_under_each_name(tmp_path, layers, tensors, trained, prefix):
    def named(key):
        name, dot, rest = key.partition(".lora_")
        return f"{prefix}{name.replace('.', '_') if prefix == 'lora_unet_' else name}{dot}{rest}"

    path = written(tmp_path / "x.safetensors", {named(key): t.bfloat16() for key, t in folded(tensors).items()})
    result = check_delivery(path, layers, read_lora_file(trained / WEIGHTS_NAME))
    assert result.good, result.sentence()
    assert len(result.layers) == len(tensors) // 2 and {layer.scale for layer in result.layers} == {1.0}
    assert all(abs(strength - 1) < 0.003 for strength in result.strengths)
    assert result.sentence().endswith(
        f"all {len(tensors) // 2} layers of this file, at strength 1 as they were trained."
    )
    assert {row["kind"] for row in result.table()} == {"attention", "cross-attention", "lyric encoder"}


def test_alpha_values_scale_and_the_header_is_compared_with_them(tmp_path, layers, tensors, trained):
    save_lora(tmp_path / "alpha.safetensors", tensors, CONFIG, with_alpha=True)
    result = check_delivery(tmp_path / "alpha.safetensors", layers)
    assert result.good and {layer.scale for layer in result.layers} == {0.5} and set(result.strengths) == {1.0}
    # The training's own file has no alpha: ComfyUI plays it at twice its strength.
    loud = check_delivery(trained / WEIGHTS_NAME, layers)
    assert not loud.good and set(loud.strengths) == {2.0} and "2 times as strong" in loud.sentence()


def test_the_norm_is_that_of_what_is_added(tmp_path, layers):
    name = "transformer_blocks.0.attn.to_q"
    outer, inner = layers[name]
    a, b = torch.randn(3, inner), torch.randn(outer, 3)
    path = written(
        tmp_path / "x.safetensors",
        {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b, f"{name}.alpha": torch.tensor(6.0)},
    )
    (layer,) = check_delivery(path, layers).layers
    assert layer.scale == 2.0 and layer.rank == 3
    assert layer.norm == pytest.approx(float((2 * b @ a).norm()), rel=1e-6)


def test_the_golden_fold_is_what_was_trained(tmp_path):
    stored = load_file(GOLDEN / "clients" / "lora_fold.safetensors")
    parts = {
        kind: {key.removeprefix(f"{kind}."): tensor for key, tensor in stored.items() if key.startswith(f"{kind}.")}
        for kind in ("trained", "folded", "delta")
    }
    shapes = {name: tuple(delta.shape) for name, delta in parts["delta"].items()}
    header = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 1, "use_rslora": True})}
    trained = read_lora_file(written(tmp_path / "trained.safetensors", parts["trained"], header))
    result = check_delivery(written(tmp_path / "folded.safetensors", parts["folded"]), shapes, trained)
    assert result.good and all(abs(strength - 1) < 1e-6 for strength in result.strengths)
    for layer in result.layers:
        assert layer.norm == pytest.approx(float(parts["delta"][layer.name].norm()), rel=1e-6)


def test_a_file_that_comfyui_does_not_know_plays_nothing(tmp_path, layers, tensors):
    path = written(tmp_path / "x.safetensors", {f"transformer.{key}": value for key, value in tensors.items()})
    result = check_delivery(path, layers)
    assert not result.good and not result.layers and len(result.unmapped) == len(tensors)
    assert "would play the base model alone" in result.sentence()


def test_each_fault_is_named(tmp_path, layers, tensors):
    broken = dict(folded(tensors))
    keys = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith("A.weight")]
    broken[f"{keys[0]}.lora_B.weight"] = torch.zeros_like(broken[f"{keys[0]}.lora_B.weight"])
    broken[f"{keys[1]}.lora_A.weight"] = torch.full_like(broken[f"{keys[1]}.lora_A.weight"], torch.nan)
    broken[f"{keys[2]}.lora_A.weight"] = torch.zeros(4, 3)
    del broken[f"{keys[3]}.lora_B.weight"]
    broken["nope.lora_A.weight"] = torch.zeros(1, 1)
    result = check_delivery(written(tmp_path / "x.safetensors", broken), layers)
    assert result.dead == [keys[0]] and result.not_finite == [keys[1]] and result.unmapped == ["nope.lora_A.weight"]
    assert len(result.misfits) == 2 and keys[2] in result.misfits[0] + result.misfits[1]
    assert not result.good
    for part in ("are no numbers", "do nothing", "passes over 1 keys"):
        assert part in result.sentence()


def test_layers_without_effect_do_not_count_as_dead(tmp_path, layers, tensors):
    outer, inner = layers["speaker_embedder"]
    more = {
        "speaker_embedder.lora_A.weight": torch.zeros(4, inner),
        "speaker_embedder.lora_B.weight": torch.zeros(outer, 4),
    }
    result = check_delivery(written(tmp_path / "x.safetensors", folded(tensors) | more), layers)
    assert result.good and "could not be compared" in result.sentence()


# --- The commands ---


def run(*argv):
    return run_script(command.main, command.parse_args([str(argument) for argument in argv]))


def test_check_prints_a_table_and_says_by_its_status_what_it_found(base, tmp_path, tensors, trained, capsys):
    good = written(tmp_path / "good.safetensors", folded(tensors))
    transformer = ["--transformer", base / "ace_step_transformer"]
    assert run("check", good, "--trained", trained, "--json", *transformer) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["layers", "count", "rank"] and json.loads(lines[-1])["good"] is True
    assert run("check", trained / WEIGHTS_NAME, *transformer) == 1
    assert "2 times as strong" in capsys.readouterr().err
    assert run("check", tmp_path / "none.safetensors") == 2
    assert run("check", good) == 1  # of the tiny model, whose sizes ComfyUI does not have


def test_deliver_copies_checks_and_puts_the_workflow_beside(base, tmp_path, tensors, trained, capsys):
    home = tmp_path / "Comfy UI"
    (home / "models" / "loras").mkdir(parents=True)
    good = written(tmp_path / "good.safetensors", folded(tensors))
    record = Record(
        keys="song",
        target_latents=torch.zeros(8, 16, 4),
        text_token_ids=torch.tensor([1]),
        lyric_token_ids=torch.tensor([0]),
        metadata={"prompt": "rock (live)"},
    )
    write_record(tmp_path / "song.safetensors", record)
    argv = ["deliver", good, "--name", "我的歌", "--comfyui_dir", home, "--record", tmp_path / "song.safetensors"]
    argv += ["--trained", trained, "--checkpoint_dir", base, "--transformer", base / "ace_step_transformer"]
    assert run(*argv) == 0
    copy = home / "models" / "loras" / "我的歌.safetensors"
    assert copy.read_bytes() == good.read_bytes()
    window = json.loads(copy.with_suffix(".json").read_text(encoding="utf-8"))
    values = {node["type"]: node["widgets_values"] for node in window["nodes"]}
    assert values["LoraLoaderModelOnly"] == ["我的歌.safetensors", 1.0]
    assert values["TextEncodeAceStepAudio"][0] == r"rock \(live\)"
    assert "at strength 1 as they were trained" in capsys.readouterr().out
    assert run(*argv) == 2
    assert "exists and would be overwritten" in capsys.readouterr().err
    assert copy.read_bytes() == good.read_bytes()


def test_workflow_problems_are_said_at_once(tmp_path, base, capsys):
    (tmp_path / "old.json").write_text("mine", encoding="utf-8")
    argv = ["workflow", "--lora_name", "x.safetensors", "--prompt", "x", "--seconds", "0.5", "--seed", str(2**53)]
    assert run(*argv, "--output", tmp_path / "old.json") == 2
    error = capsys.readouterr().err
    assert "--seconds is 0.5" in error and "--seed is" in error and "would be overwritten" in error
    argv = ["workflow", "--lora_name", "x.safetensors", "--prompt", "x", "--lyrics", tmp_path / "none.txt"]
    assert run(*argv, "--output", tmp_path / "new.json", "--checkpoint_dir", base) == 2
    assert "none.txt' cannot be read" in capsys.readouterr().err and not (tmp_path / "new.json").exists()
    argv = ["workflow", "--lora_name", "x.safetensors", "--prompt", "x", "--checkpoint_dir", base, "--api"]
    assert run(*argv, "--output", tmp_path / "new.json") == 0
    assert json.loads((tmp_path / "new.json").read_text(encoding="utf-8"))["6"]["inputs"]["tags"] == "x"
