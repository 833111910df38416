"""Run with: pytest tests/test_adapter.py

Key lists are those of the published ACE-Step v1 trainer; the layers are tried on a small stand-in model.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ace_lora.commands import WrongInput
from ace_lora.lora import file as adapter
from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "transformer"
CONFIGS = Path(__file__).parents[2] / "config"
SMALL = {"r": 2, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q", "to_out.0"]}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(6, 5)
        self.to_out = nn.ModuleList([nn.Linear(5, 6, bias=False), nn.Identity()])

    def forward(self, x):
        return self.to_out[0](self.to_q(x))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.blocks = nn.ModuleList([Attention(), Attention()])
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def write_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**SMALL, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "rank", "targets"),
    [
        ("lora_config.json", 64, 7),
        ("lora_config_transformer_only.json", 64, 4),
        ("lora_config_with_projectors.json", 64, 13),
    ],
)
def test_shipped_configurations(name, rank, targets):
    config = adapter.read_lora_config(CONFIGS / name)
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (rank, 1, True)
    assert len(config["target_modules"]) == targets


@pytest.mark.parametrize(
    ("golden", "config"),
    [
        ("lora_keys_transformer_only.json", "lora_config_transformer_only.json"),
        ("lora_keys_with_lyric_encoder.json", "lora_config.json"),
    ],
)
def test_keys_and_shapes_of_the_published_model(golden, config):
    expected = json.loads((GOLDEN / golden).read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = ACEStepTransformer(TransformerConfig())
    values = adapter.read_lora_config(CONFIGS / config)
    shapes = adapter.adapter_shapes(adapter.target_layers(model, values), values["r"])
    assert {key: list(shape) for key, shape in shapes.items()} == expected["keys"]
    assert sum(math.prod(shape) for shape in shapes.values()) == expected["parameters"]
    adapter.inject_adapter(model, values)
    assert {key: tuple(tensor.shape) for key, tensor in adapter.adapter_tensors(model).items()} == shapes


def test_projectors_can_be_adapted_too():
    with torch.device("meta"):
        model = ACEStepTransformer(TransformerConfig())
    layers = adapter.target_layers(model, adapter.read_lora_config(CONFIGS / "lora_config_with_projectors.json"))
    assert len(layers) == 192 + 18 + 6 and layers["projectors.1.4"] == (5120, 768)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"r": 0}, "'r'"),
        ({"r": True}, "'r'"),
        ({"r": 2.5}, "'r'"),
        ({"r": "64"}, "'r'"),
        ({"lora_alpha": 0}, "'lora_alpha'"),
        ({"lora_alpha": "1"}, "'lora_alpha'"),
        ({"lora_alpha": 10**400}, "'lora_alpha'"),
        ({"use_rslora": 1}, "'use_rslora'"),
        ({"target_modules": []}, "'target_modules'"),
        ({"target_modules": "to_q"}, "'target_modules'"),
        ({"use_dora": True}, "'use_dora'"),
        ({"lora_dropout": 0.1}, "'lora_dropout'"),
    ],
)
def test_wrong_configuration_values_are_named(tmp_path, changes, part):
    with pytest.raises(WrongInput) as caught:
        adapter.read_lora_config(write_config(tmp_path, **changes))
    assert len(caught.value.problems) == 1
    assert part in caught.value.problems[0]


def test_all_problems_of_a_configuration_at_once(tmp_path):
    (tmp_path / "c.json").write_text('{"r": -1, "lora_alpha": 0}', encoding="utf-8")
    with pytest.raises(WrongInput) as caught:
        adapter.read_lora_config(tmp_path / "c.json")
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize("content", ["", "[1]", "{", "3", "[" * 100_000, '{"r": 1' + "0" * 5000])
def test_no_json_object(tmp_path, content):
    (tmp_path / "c.json").write_text(content, encoding="utf-8")
    with pytest.raises(WrongInput):
        adapter.read_lora_config(tmp_path / "c.json")


def test_the_saved_peft_config_is_a_configuration_too(tmp_path):
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(adapter.peft_config_dict(SMALL)), encoding="utf-8")
    assert adapter.read_lora_config(path) == {**SMALL, "target_modules": sorted(SMALL["target_modules"])}


def test_targets_that_match_nothing_are_all_named():
    with pytest.raises(WrongInput) as caught:
        adapter.target_layers(Small(), {**SMALL, "target_modules": ["to_q", "to_w", "to_out", "o_q"]})
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "'to_w'" in text and "'to_out'" in text and "'o_q'" in text and "no Linear layers" in text


def test_keys_shapes_and_initial_values():
    model = adapter.inject_adapter(Small(), SMALL, seed=3)
    tensors = adapter.adapter_tensors(model)
    layers = adapter.target_layers(Small(), SMALL)
    assert {key: tuple(t.shape) for key, t in tensors.items()} == adapter.adapter_shapes(layers, 2)
    assert all(t.dtype == torch.float32 and t.requires_grad for t in tensors.values())
    assert sum(p.requires_grad for p in model.parameters()) == len(tensors) == 8
    for key, tensor in tensors.items():
        if key.endswith("lora_B.weight"):
            assert not tensor.any()
        else:
            assert tensor.any() and tensor.abs().max() <= 1 / math.sqrt(tensor.shape[1])
    same = adapter.adapter_tensors(adapter.inject_adapter(Small(), SMALL, seed=3))
    other = adapter.adapter_tensors(adapter.inject_adapter(Small(), SMALL, seed=4))
    key = "blocks.0.to_q.lora_A.weight"
    assert torch.equal(same[key], tensors[key])
    assert not torch.equal(other[key], tensors[key])


@pytest.mark.parametrize(("rslora", "scale"), [(True, 3 / math.sqrt(2)), (False, 1.5)])
def test_the_layer_computes_wx_plus_scaled_bax(rslora, scale):
    base = Small().double()
    model = adapter.inject_adapter(Small(), {**SMALL, "lora_alpha": 3, "use_rslora": rslora}).double()
    for tensor in adapter.adapter_tensors(model).values():
        nn.init.normal_(tensor)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    tensors = adapter.adapter_tensors(model)
    a, b = tensors["blocks.0.to_q.lora_A.weight"], tensors["blocks.0.to_q.lora_B.weight"]
    expected = base.blocks[0].to_q(x) + scale * (x @ a.T @ b.T)
    torch.testing.assert_close(model.blocks[0].to_q(x), expected)


def test_bfloat16_base_keeps_float32_gradients():
    model = adapter.inject_adapter(Small().bfloat16(), SMALL)
    for tensor in adapter.adapter_tensors(model).values():
        nn.init.normal_(tensor)
    model(torch.randn(4, 6, dtype=torch.bfloat16)).float().sum().backward()
    for tensor in adapter.adapter_tensors(model).values():
        assert tensor.dtype == tensor.grad.dtype == torch.float32 and tensor.grad.any()


def test_strength_zero_is_the_base_bit_for_bit():
    model = adapter.inject_adapter(Small(), SMALL)
    for tensor in adapter.adapter_tensors(model).values():
        nn.init.normal_(tensor)
    x = torch.randn(5, 6)
    full = model(x)
    adapter.set_adapter_strength(model, 0.0)
    assert torch.equal(model(x), Small()(x))
    adapter.set_adapter_strength(model, 1.0)
    assert torch.equal(model(x), full)
    assert not torch.equal(full, Small()(x))


def test_saved_file(tmp_path):
    model = adapter.inject_adapter(Small(), SMALL)
    tensors = adapter.adapter_tensors(model)
    adapter.save_lora(tmp_path / "l.safetensors", tensors, SMALL, {"steps": "7"})
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


def test_load_lora_is_exact_and_accepts_alpha_with_a_note(tmp_path):
    model = adapter.inject_adapter(Small(), SMALL)
    for tensor in adapter.adapter_tensors(model).values():
        tensor.data = tensor.data.normal_().bfloat16().float()
    adapter.save_lora(tmp_path / "a.safetensors", adapter.adapter_tensors(model), SMALL)
    adapter.save_lora(tmp_path / "b.safetensors", adapter.adapter_tensors(model), SMALL, with_alpha=True)
    for name, notes in (("a.safetensors", 0), ("b.safetensors", 1)):
        fresh = adapter.inject_adapter(Small(), SMALL, seed=9)
        assert len(adapter.load_lora(fresh, tmp_path / name)) == notes
        for key, tensor in adapter.adapter_tensors(fresh).items():
            assert torch.equal(tensor, adapter.adapter_tensors(model)[key])


def change(tensors, kind):
    if kind == "missing":
        return dict(list(tensors.items())[1:])
    if kind == "unexpected":
        return {**tensors, "blocks.7.to_q.lora_A.weight": torch.zeros(2, 6)}
    if kind == "rank":
        return {k: torch.zeros((4, t.shape[1]) if ".lora_A." in k else (t.shape[0], 4)) for k, t in tensors.items()}
    if kind == "shape":
        return {**tensors, "blocks.0.to_q.lora_A.weight": torch.zeros(2, 7)}
    if kind == "prefix":
        return {f"transformer.{k}": t for k, t in tensors.items()}
    if kind == "nan":
        return {k: t * float("nan") for k, t in tensors.items()}
    return {"some.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("missing", "lacks 1 of the 8"),
        ("unexpected", "blocks.7.to_q"),
        ("rank", "rank 4"),
        ("shape", "[2, 7]"),
        ("prefix", "'transformer.'"),
        ("nan", "not finite"),
        ("no lora", "holds no LoRA"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, kind, part):
    model = adapter.inject_adapter(Small(), SMALL)
    tensors = {key: tensor.detach().clone() for key, tensor in adapter.adapter_tensors(model).items()}
    save_file(change(tensors, kind), tmp_path / "l.safetensors")
    with pytest.raises(WrongInput, match=r"l\.safetensors") as caught:
        adapter.load_lora(model, tmp_path / "l.safetensors")
    assert part in str(caught.value)
    assert all(torch.equal(t, tensors[k]) for k, t in adapter.adapter_tensors(model).items())


def test_damaged_and_missing_files(tmp_path):
    (tmp_path / "l.safetensors").write_bytes(b"12345")
    for path in (tmp_path / "l.safetensors", tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(WrongInput):
            adapter.read_lora_file(path)


def test_one_training_step_moves_only_the_adapter():
    model = adapter.inject_adapter(Small(), SMALL)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_B" in name}  # B is zero at first: A gets no gradient yet
