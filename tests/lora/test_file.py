"""Run with: pytest tests/lora/test_file.py"""

import json
import os
import struct
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ace_lora.commands import StepFailed, WrongInput
from ace_lora.lora.config import TRAINING_CONFIG_NAME
from ace_lora.lora.file import (
    PEFT_WEIGHTS_NAME,
    WEIGHTS_NAME,
    describe,
    dora_problems,
    output_problems,
    read_lora_file,
    save_lora,
    save_lora_config,
    write_tensors,
)
from ace_lora.lora.scales import lora_scales

CONFIG = {"r": 2, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q", "to_out.0"]}
LAYERS = [f"transformer_blocks.{block}.attn.{layer}" for block in range(2) for layer in ("to_out.0", "to_q")]


def make(rank=2):
    """Tensors by key, as our trainer names them."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in LAYERS:
        tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, 6, generator=generator)
        tensors[f"{layer}.lora_B.weight"] = torch.randn(6, rank, generator=generator)
    return tensors


def problem_of(path):
    with pytest.raises(WrongInput) as caught:
        read_lora_file(path)
    return "\n".join(caught.value.problems)


def test_saved_file(tmp_path):
    tensors = make()
    save_lora(tmp_path / "l.safetensors", tensors, CONFIG, {"steps": "7"})
    written = load_file(tmp_path / "l.safetensors")
    assert set(written) == set(tensors)
    for key, tensor in tensors.items():
        assert written[key].dtype == torch.bfloat16 and torch.equal(written[key], tensor.bfloat16())
    with safe_open(tmp_path / "l.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and metadata["steps"] == "7"
    lora_config = json.loads(metadata["lora_adapter_metadata"])
    assert {key: lora_config[key] for key in ("r", "lora_alpha", "use_rslora")} == {
        "r": 2,
        "lora_alpha": 1,
        "use_rslora": True,
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l.safetensors"]


def test_the_configuration_of_a_training_is_one_for_the_next(tmp_path):
    save_lora_config(tmp_path, CONFIG)
    assert json.loads((tmp_path / TRAINING_CONFIG_NAME).read_text(encoding="utf-8")) == CONFIG
    assert [path.name for path in tmp_path.iterdir()] == [TRAINING_CONFIG_NAME]


# --- Spellings ---


def respelt(tensors, how):
    def name(key):
        layer, which = key.removesuffix(".weight").split(".lora_")
        down_up = {"A": "down", "B": "up"}[which]
        return {
            "transformer.": f"transformer.{key}",
            "diffusion_model.": f"diffusion_model.{key}",
            "peft": f"base_model.model.{key}",
            "peft, named": f"base_model.model.{layer}.lora_{which}.default.weight",
            "down and up": f"{layer}.lora_{down_up}.weight",
            "kohya": f"lora_unet_{layer.replace('.', '_')}.lora_{down_up}.weight",
        }[how]

    return {name(key): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("transformer.", "names of a diffusers pipeline"),
        ("diffusion_model.", "ComfyUI's names"),
        ("peft", "PEFT's names"),
        ("peft, named", "PEFT's names"),
        ("down and up", "lora_down and lora_up"),
        ("kohya", "names of kohya's scripts"),
    ],
)
def test_every_spelling_is_read_as_what_it_is(tmp_path, how, words):
    tensors = make()
    save_file(respelt(tensors, how), tmp_path / "l.safetensors")
    lora = read_lora_file(tmp_path / "l.safetensors")
    assert lora.tensors.keys() == tensors.keys() and not lora.other_keys
    assert all(torch.equal(lora.tensors[key], tensors[key]) for key in tensors)
    sentence = describe(lora)
    assert words in sentence and "a LoRA of 4 layers, rank 2, float32" in sentence


def test_alpha_belongs_to_its_layer_in_every_spelling(tmp_path):
    tensors = respelt(make(), "kohya") | {
        f"lora_unet_{layer.replace('.', '_')}.alpha": torch.tensor(1.0) for layer in LAYERS
    }
    save_file(tensors, tmp_path / "l.safetensors")
    assert lora_scales(read_lora_file(tmp_path / "l.safetensors")) == (dict.fromkeys(LAYERS, 0.5), "its alpha values")


def test_a_folder_means_the_file_in_it(tmp_path):
    for name in (WEIGHTS_NAME, PEFT_WEIGHTS_NAME):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file(make(), tmp_path / name)
        assert read_lora_file(tmp_path).path == tmp_path / name
        (tmp_path / name).unlink()
    assert "holds no pytorch_lora_weights.safetensors" in problem_of(tmp_path)


def test_what_it_is_is_told(tmp_path):
    path = tmp_path / "l.safetensors"
    save_lora(path, make(), CONFIG, {"base_model_fingerprint": "x", "steps": "200"})
    assert describe(read_lora_file(path)) == (
        f"'{path}' is a LoRA of 4 layers, rank 2, bfloat16: trained by this program, 200 steps"
    )
    zero = {key: t * (0 if "lora_B" in key else 1) for key, t in make().items()}
    save_file(zero, path)
    assert describe(read_lora_file(path)).endswith("all its lora_B are zero, so it changes nothing")
    foreign = {key.replace("transformer_blocks", "layers"): tensor for key, tensor in make().items()}
    save_file(foreign, path)
    assert "none of them a layer of ACE-Step v1" in describe(read_lora_file(path))
    save_file({**make(), "some.thing": torch.ones(1)}, path)
    assert describe(read_lora_file(path)).endswith("; 1 other tensors are left out, such as 'some.thing'")
    two = make(3)
    two |= {key: tensor for key, tensor in make().items() if LAYERS[0] in key}
    save_file(two, path, metadata={"ss_network_module": "networks.lora"})
    assert "ranks 2 to 3" in describe(read_lora_file(path)) and "by kohya's scripts" in describe(read_lora_file(path))


# --- What cannot be used ---


def spoilt(kind):
    tensors = make()
    a, b = f"{LAYERS[1]}.lora_A.weight", f"{LAYERS[1]}.lora_B.weight"
    if kind == "no B at all":
        return {key: tensor for key, tensor in tensors.items() if "lora_A" in key}
    if kind == "one A missing":
        del tensors[a]
    elif kind == "ranks differ in a pair":
        tensors[b] = torch.ones(6, 3)
    elif kind == "three dimensions":
        tensors[a] = torch.ones(2, 6, 1)
    elif kind == "no rank":
        tensors |= {a: torch.ones(0, 6), b: torch.ones(6, 0)}
    elif kind == "widths differ":
        tensors[a] = torch.ones(2, 7)
    elif kind == "whole numbers":
        tensors[a] = torch.ones(2, 6, dtype=torch.int8)
    elif kind == "nan":
        tensors[b][3, 1] = float("nan")
    elif kind == "infinite":
        tensors[a][0, 0] = float("inf")
    elif kind == "alpha nan":
        tensors[f"{LAYERS[1]}.alpha"] = torch.tensor(float("nan"))
    elif kind == "twice":
        tensors[f"transformer.{a}"] = tensors[a].clone()
    elif kind == "two adapters":
        layer = f"base_model.model.{LAYERS[0]}"
        for name in ("one", "two"):
            tensors[f"{layer}.lora_A.{name}.weight"] = torch.ones(2, 6)
    elif kind == "no lora":
        return {"some.weight": torch.ones(2)}
    elif kind == "lokr":
        return {f"{LAYERS[0]}.lokr_w1": torch.ones(2, 2)}
    return tensors


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("no B at all", "lora_B is missing, the partner of lora_A, in 4 layers"),
        ("one A missing", f"lora_A is missing, the partner of lora_B, in the layer '{LAYERS[1]}'"),
        ("ranks differ in a pair", f"'{LAYERS[1]} (A [2, 6], B [6, 3])'"),
        ("three dimensions", f"'{LAYERS[1]} (A [2, 6, 1], B [6, 2])'"),
        ("no rank", f"'{LAYERS[1]} (A [0, 6], B [6, 0])'"),
        ("widths differ", "widths that differ from block to block in the layer 'transformer_blocks.N.attn.to_q'"),
        ("whole numbers", "no floating-point numbers"),
        (
            "nan",
            f"not finite in the layer '{LAYERS[1]}'. The training that wrote it had failed by then; take an earlier",
        ),
        ("infinite", "take an earlier checkpoint"),
        ("alpha nan", "an alpha that is no finite number"),
        ("twice", "two tensors for the same place"),
        ("two adapters", "several LoRAs in one file"),
        ("no lora", "holds no LoRA: no key ends with '.lora_A.weight' (found: some.weight)"),
        ("lokr", "looks like LoKr"),
    ],
)
def test_files_that_cannot_be_played_are_refused(tmp_path, kind, part):
    save_file(spoilt(kind), tmp_path / "l.safetensors")
    problem = problem_of(tmp_path / "l.safetensors")
    assert part in problem and str(tmp_path / "l.safetensors") in problem


def test_dora_is_named(tmp_path):
    for name in (f"{LAYERS[0]}.dora_scale", f"{LAYERS[0]}.lora_magnitude_vector"):
        save_file({**make(), name: torch.ones(6, 1)}, tmp_path / "l.safetensors")
        (problem,) = dora_problems(read_lora_file(tmp_path / "l.safetensors"))
        assert "DoRA" in problem and name in problem
    save_file(make(), tmp_path / "l.safetensors")
    assert dora_problems(read_lora_file(tmp_path / "l.safetensors")) == []


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


DAMAGED = {
    "cut": b"12345",
    "empty": b"",
    "header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "header without end": raw(b"[" * 100_000),
    "nested": raw({"__metadata__": {"a": "b"}, "x": json.loads("[" * 70 + "]" * 70)}),
    "no object": raw(b"[1]"),
    "no JSON": raw(b"{{"),
    "metadata of numbers": raw({"__metadata__": {"a": 1}}),
    "metadata is a list": raw({"__metadata__": ["a"]}),
    "too many keys": raw({f"k{n}.lora_A.weight": 0 for n in range(20_001)}),
    "tensors that are not there": raw(
        {"a.lora_A.weight": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
    ),
    "negative offsets": raw({"a.lora_A.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [-4, 0]}}, b"1234"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files(tmp_path, kind):
    (tmp_path / "l.safetensors").write_bytes(DAMAGED[kind])
    start = time.monotonic()
    problem = problem_of(tmp_path / "l.safetensors")
    assert "cannot be read as a safetensors file" in problem and len(problem) < 2000
    assert time.monotonic() - start < 5


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    assert "No LoRA file at" in problem_of(tmp_path / "none.safetensors")
    (tmp_path / "l.bin").write_bytes(b"x")
    assert "runs code when it is opened" in problem_of(tmp_path / "l.bin")
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe.safetensors")
        assert "is no regular file" in problem_of(tmp_path / "pipe.safetensors")
        (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
        assert "is no regular file" in problem_of(tmp_path / "zero.safetensors")


def test_eight_bits_are_read(tmp_path):
    tensors = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in make().items()}
    save_file(tensors, tmp_path / "l.safetensors")
    lora = read_lora_file(tmp_path / "l.safetensors")
    for key, tensor in tensors.items():
        assert lora.tensors[key].dtype == torch.bfloat16 and torch.equal(lora.tensors[key].float(), tensor.float())


# --- Writing ---


def test_numbers_that_the_format_cannot_hold_are_not_written(tmp_path):
    with pytest.raises(StepFailed, match="too large for their format"):
        write_tensors(tmp_path / "l.safetensors", {"a": torch.tensor([70000.0]).half()}, None)
    assert list(tmp_path.iterdir()) == []


def test_what_may_be_replaced(tmp_path):
    source = tmp_path / "in_lora" / WEIGHTS_NAME
    source.parent.mkdir()
    save_file(make(), source)

    def problem(name, overwrite=True):
        return " ".join(output_problems(tmp_path / name, [source], overwrite=overwrite))

    assert problem("new.safetensors") == problem("new") == ""
    for name in (f"in_lora/{WEIGHTS_NAME}", "in_lora", "x/../in_lora", "."):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert "the input file itself, or its folder" in problem(name)
    (tmp_path / "old.safetensors").touch()
    assert "exists already" in problem("old.safetensors", overwrite=False) and problem("old.safetensors") == ""
    assert "holds no LoRA" in problem("x")
    (tmp_path / "other").mkdir()
    save_file(make(), tmp_path / "other" / WEIGHTS_NAME)
    assert "exists already" in problem("other", overwrite=False) and problem("other") == ""
    (tmp_path / "other" / "training_state.safetensors").touch()
    assert "is a checkpoint of a training" in problem("other")
    (tmp_path / "folder.safetensors").mkdir()
    assert "name of a folder" in problem("folder.safetensors")
    (tmp_path / "plain").touch()
    assert "name of a file" in problem("plain")
