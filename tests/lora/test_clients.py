"""Run with: pytest tests/lora/test_clients.py

Every kind of file that our tools write, held against what each client makes of it. diffusers and PEFT are the real
ones, on ACE-Step v1's transformer in small. ComfyUI's and ACE-Step's own loaders are written here after the description
of their rules; `golden/clients/lora_fold.safetensors` holds what the clients themselves computed.
"""

import json
import warnings
from pathlib import Path

import pytest
import torch
from diffusers.loaders.peft import PeftAdapterMixin
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import add_alpha_in_lora
import merge_lora
import resize_lora
from ace_lora.commands import run_script
from ace_lora.lora.clients import one_for_all
from ace_lora.lora.file import COMFYUI_NAME, PEFT_WEIGHTS_NAME, WEIGHTS_NAME, save_lora, save_lora_config
from ace_lora.lora.layers import adapter_shapes, target_layers
from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "clients" / "lora_fold.safetensors"
TARGETS = ["to_q", "to_out.0", "linear_k", "speaker_embedder", "projectors.0.0", "projectors.1.4"]
SMALL = TransformerConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=8,
    speaker_embedding_dim=12,
    text_embedding_dim=10,
    ssl_encoder_depths=(1, 1),
    ssl_latent_dims=(6, 5),
    lyric_encoder_vocab_size=20,
    lyric_hidden_size=16,
    lyric_encoder_layers=2,
    lyric_encoder_heads=2,
    lyric_encoder_feed_forward=20,
)


class Player(ACEStepTransformer, PeftAdapterMixin):
    """The transformer with diffusers' own loading of LoRAs."""


def fresh_model():
    torch.manual_seed(0)
    return Player(SMALL)


LINEAR = {name: module for name, module in fresh_model().named_modules() if isinstance(module, nn.Linear)}


# --- What each client makes of a file: the change of each layer's weight ---


def comfyui(path):
    """Walks over all names that it can map; s = alpha / rows of A, 1 without alpha; the header is not read."""
    content = load_file(path / WEIGHTS_NAME if path.is_dir() else path)
    deltas, used = {}, set()
    for layer in LINEAR:
        for name in (layer, f"diffusion_model.{layer}", "lora_unet_" + layer.replace(".", "_")):
            for down, up in (("lora_A", "lora_B"), ("lora_down", "lora_up")):
                keys = [f"{name}.{down}.weight", f"{name}.{up}.weight"]
                if not set(keys) <= content.keys():
                    continue
                a, b = (content[key].float() for key in keys)
                alpha = content.get(f"{name}.alpha")
                deltas[layer] = b @ a * (1.0 if alpha is None else alpha.item() / len(a))
                used |= {*keys, f"{name}.alpha"}
    assert content.keys() <= used, "ComfyUI would warn of these keys"
    return deltas


def ace_step(folder):
    """Upstream's page and the fork's: alpha is the rank of the first layer in the file, for all layers."""
    path = folder / WEIGHTS_NAME if folder.is_dir() else folder
    with safe_open(path, "pt") as file:
        names = list(file.keys())
    content = load_file(path)
    ranks = {key: content[key].shape[1] for key in names if key.endswith(".lora_B.weight")}
    assert ranks and all(key.split(".lora_")[0] in LINEAR for key in ranks)
    alpha = next(iter(ranks.values()))
    deltas = {}
    for key, rank in ranks.items():
        layer = key.removesuffix(".lora_B.weight")
        deltas[layer] = alpha / rank * content[key].float() @ content[f"{layer}.lora_A.weight"].float()
    return deltas


def diffusers(path):
    """The real `load_lora_adapter`."""
    model = fresh_model()
    folder, name = (path, WEIGHTS_NAME) if path.is_dir() else (path.parent, path.name)
    model.load_lora_adapter(str(folder), weight_name=name, prefix=None, use_safetensors=True)
    return peft_deltas(model)


def peft(folder):
    """The real `PeftModel.from_pretrained`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of missing adapter keys there is no more than a warning
        return peft_deltas(PeftModel.from_pretrained(fresh_model(), str(folder)))


def peft_deltas(model):
    deltas = {}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            (adapter,) = module.scaling
            deltas[name.removeprefix("base_model.model.")] = module.get_delta_weight(adapter).detach()
    return deltas


def check(deltas, truth, factor=1.0, limit=1e-6):
    assert deltas.keys() == truth.keys()
    for layer, delta in truth.items():
        error = ((deltas[layer] - factor * delta).norm() / (factor * delta).norm()).item()
        assert error <= limit, (layer, error)


# --- Our files ---


def config_for(alpha, rslora=True, rank=4):
    return {"r": rank, "lora_alpha": alpha, "use_rslora": rslora, "target_modules": TARGETS}


def make_lora(folder, config, seed=0):
    """A checkpoint's LoRA and the change of each layer that it was trained with."""
    generator = torch.Generator().manual_seed(seed)
    shapes = adapter_shapes(target_layers(fresh_model(), config), config["r"])
    tensors = {key: torch.randn(shape, generator=generator).bfloat16().float() for key, shape in shapes.items()}
    folder.mkdir()
    save_lora(folder / WEIGHTS_NAME, tensors, config)
    save_lora(folder / COMFYUI_NAME, tensors, config, with_alpha=True)
    save_lora_config(folder, config)
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    layers = {key.split(".lora_")[0] for key in tensors}
    return {n: scale * tensors[f"{n}.lora_B.weight"] @ tensors[f"{n}.lora_A.weight"] for n in layers}


def run(script, *argv):
    assert run_script(script.main, script.parse_args([str(part) for part in argv])) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a checkpoint with s = 0.5, and its truth."""
    folder = tmp_path_factory.mktemp("LoRA 新") / "epoch=0-step=5_lora"
    return folder, make_lora(folder, config_for(1))


def test_the_golden_layers_are_folded_as_the_clients_want():
    golden = load_file(GOLDEN)
    layers = [key.removeprefix("delta.") for key in golden if key.startswith("delta.")]
    factors = {n: tuple(golden[f"trained.{n}.lora_{w}.weight"] for w in "AB") for n in layers}
    tensors, config = one_for_all(factors, dict.fromkeys(layers, 0.5))
    assert len(layers) == 2 and config["r"] == config["lora_alpha"] == 4 and config["use_rslora"] is False
    for layer in layers:
        for which in "AB":
            assert torch.equal(tensors[f"{layer}.lora_{which}.weight"], golden[f"folded.{layer}.lora_{which}.weight"])
        delta = tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
        torch.testing.assert_close(delta, golden[f"delta.{layer}"], rtol=1e-6, atol=1e-7)
        assert tensors[f"{layer}.alpha"].item() == 4 and tensors[f"{layer}.alpha"].shape == ()


def test_files_of_the_training_play_as_is_known(trained):
    """The strength is in the header only, or in alpha values: no client reads both."""
    folder, truth = trained
    check(diffusers(folder), truth)
    check(comfyui(folder), truth, 2.0)
    check(ace_step(folder), truth, 2.0)
    check(comfyui(folder / COMFYUI_NAME), truth)
    check(diffusers(folder / COMFYUI_NAME), truth)
    check(ace_step(folder / COMFYUI_NAME), truth, 2.0)
    # PEFT cannot load it, and it does not look as if it could.
    assert not (folder / "adapter_config.json").exists()
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        peft(folder)


def test_step_7_by_itself_is_for_comfyui(trained, tmp_path):
    folder, truth = trained
    run(add_alpha_in_lora, "--input_name", folder, "--output_name", tmp_path / "c.safetensors")
    check(comfyui(tmp_path / "c.safetensors"), truth)


@pytest.mark.parametrize("name", ["one.safetensors", "folder 新"])
@pytest.mark.parametrize(
    ("alpha", "rslora", "limit"), [(1, True, 1e-6), (8, False, 1e-6), (3, True, 3e-3), (0.7, False, 3e-3)]
)
def test_one_file_for_all(tmp_path, name, alpha, rslora, limit):
    """Exact where the scale is a power of two, else rounded once to bfloat16."""
    truth = make_lora(tmp_path / "in", config_for(alpha, rslora))
    output = tmp_path / name
    run(add_alpha_in_lora, "--input_name", tmp_path / "in", "--output_name", output, "--for", "all")
    for client in (comfyui, ace_step, diffusers):
        check(client(output), truth, limit=limit)
    file = output
    if output.is_dir():
        (file,) = output.iterdir()
        assert file.name == WEIGHTS_NAME
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    header = json.loads(metadata.pop("lora_adapter_metadata"))
    assert metadata == {"format": "pt"}
    assert header.pop("target_modules") == sorted(truth)
    assert header == {
        **{"peft_type": "LORA", "r": 4, "lora_alpha": 4, "use_rslora": False, "use_dora": False},
        **{"lora_bias": False, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}},
    }
    assert {t.dtype for key, t in load_file(file).items() if "lora_" in key} == {torch.bfloat16}


def test_a_folder_for_peft(trained, tmp_path):
    folder, truth = trained
    run(add_alpha_in_lora, "--input_name", folder, "--output_name", tmp_path / "p", "--for", "peft")
    assert {path.name for path in (tmp_path / "p").iterdir()} == {PEFT_WEIGHTS_NAME, "adapter_config.json"}
    check(peft(tmp_path / "p"), truth)


@pytest.mark.parametrize("source", ["file for ComfyUI", "file for all", "folder for PEFT"])
def test_what_was_written_for_one_can_be_written_for_all(trained, tmp_path, source):
    folder, truth = trained
    made = tmp_path / {"file for ComfyUI": "c.safetensors", "file for all": "a.safetensors"}.get(source, "p")
    client = {"file for ComfyUI": "comfyui", "file for all": "all"}.get(source, "peft")
    run(add_alpha_in_lora, "--input_name", folder, "--output_name", made, "--for", client)
    run(add_alpha_in_lora, "--input_name", made, "--output_name", tmp_path / "again", "--for", "all")
    for client in (comfyui, ace_step, diffusers):
        check(client(tmp_path / "again"), truth)


@pytest.mark.parametrize("how", [("--new_rank", 2), ("--sv_fro", 0.8), ("--sv_ratio", 2)])
def test_smaller_files(trained, tmp_path, how):
    """As it was: right where the header or alpha values are read. For all: right everywhere, ranks padded to one."""
    folder, _ = trained
    run(resize_lora, "--input_name", folder, "--output_name", tmp_path / "small", *how)
    content = load_file(tmp_path / "small" / WEIGHTS_NAME)
    layers = {key.split(".lora_")[0] for key in content}
    truth = {n: 0.5 * content[f"{n}.lora_B.weight"].float() @ content[f"{n}.lora_A.weight"].float() for n in layers}
    check(diffusers(tmp_path / "small"), truth)
    run(add_alpha_in_lora, "--input_name", tmp_path / "small", "--output_name", tmp_path / "c.safetensors")
    check(comfyui(tmp_path / "c.safetensors"), truth, limit=3e-3)  # an alpha in bfloat16
    assert not (tmp_path / "small" / "adapter_config.json").exists()

    run(resize_lora, "--input_name", folder, "--output_name", tmp_path / "a", *how, "--for", "all")
    run(resize_lora, "--input_name", folder, "--output_name", tmp_path / "p", *how, "--for", "peft")
    for client in (comfyui, ace_step, diffusers):
        check(client(tmp_path / "a"), truth)
    check(peft(tmp_path / "p"), truth)
    # Later is as good as at once.
    run(add_alpha_in_lora, "--input_name", tmp_path / "small", "--output_name", tmp_path / "b", "--for", "all")
    assert (tmp_path / "b" / WEIGHTS_NAME).read_bytes() == (tmp_path / "a" / WEIGHTS_NAME).read_bytes()


def test_a_smaller_file_for_comfyui_stays_one(trained, tmp_path):
    folder, _ = trained
    run(add_alpha_in_lora, "--input_name", folder, "--output_name", tmp_path / "c.safetensors")
    run(resize_lora, "--input_name", tmp_path / "c.safetensors", "--output_name", tmp_path / "s", "--sv_fro", 0.8)
    run(resize_lora, "--input_name", folder, "--output_name", tmp_path / "a", "--sv_fro", 0.8, "--for", "all")
    check(comfyui(tmp_path / "s"), comfyui(tmp_path / "a"), limit=3e-3)


def test_a_merged_file(trained, tmp_path):
    folder, first = trained
    second = make_lora(tmp_path / "two", {**config_for(3, rank=2), "target_modules": ["to_q", "to_v"]}, seed=1)
    truth = {
        name: 0.7 * first.get(name, torch.zeros(1)) - 0.3 * second.get(name, torch.zeros(1))
        for name in {*first, *second}
    }
    flags = ("--weights", 0.7, -0.3)
    run(merge_lora, folder, tmp_path / "two", *flags, "--output_name", tmp_path / "m")
    run(merge_lora, folder, tmp_path / "two", *flags, "--output_name", tmp_path / "p", "--for", "peft")
    for client in (comfyui, ace_step, diffusers):
        check(client(tmp_path / "m"), truth)
    check(peft(tmp_path / "p"), truth)
