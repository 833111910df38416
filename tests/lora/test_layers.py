"""Run with: pytest tests/lora/test_layers.py

Key lists are those of the published ACE-Step v1 trainer; the layers are tried on a small stand-in model.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ace_lora.commands import WrongInput
from ace_lora.lora.config import read_lora_config
from ace_lora.lora.file import save_lora
from ace_lora.lora.layers import (
    adapter_shapes,
    adapter_tensors,
    inject_adapter,
    load_lora,
    set_adapter_strength,
    target_layers,
)
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
    values = read_lora_config(CONFIGS / config)
    shapes = adapter_shapes(target_layers(model, values), values["r"])
    assert {key: list(shape) for key, shape in shapes.items()} == expected["keys"]
    assert sum(math.prod(shape) for shape in shapes.values()) == expected["parameters"]
    inject_adapter(model, values)
    assert {key: tuple(tensor.shape) for key, tensor in adapter_tensors(model).items()} == shapes


def test_projectors_can_be_adapted_too():
    with torch.device("meta"):
        model = ACEStepTransformer(TransformerConfig())
    layers = target_layers(model, read_lora_config(CONFIGS / "lora_config_with_projectors.json"))
    assert len(layers) == 192 + 18 + 6 and layers["projectors.1.4"] == (5120, 768)


def test_targets_that_match_nothing_are_all_named():
    with pytest.raises(WrongInput) as caught:
        target_layers(Small(), {**SMALL, "target_modules": ["to_q", "to_w", "to_out", "o_q"]})
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "'to_w'" in text and "'to_out'" in text and "'o_q'" in text and "no Linear layers" in text


def test_keys_shapes_and_initial_values():
    model = inject_adapter(Small(), SMALL, seed=3)
    tensors = adapter_tensors(model)
    layers = target_layers(Small(), SMALL)
    assert {key: tuple(t.shape) for key, t in tensors.items()} == adapter_shapes(layers, 2)
    assert all(t.dtype == torch.float32 and t.requires_grad for t in tensors.values())
    assert sum(p.requires_grad for p in model.parameters()) == len(tensors) == 8
    for key, tensor in tensors.items():
        if key.endswith("lora_B.weight"):
            assert not tensor.any()
        else:
            assert tensor.any() and tensor.abs().max() <= 1 / math.sqrt(tensor.shape[1])
    same = adapter_tensors(inject_adapter(Small(), SMALL, seed=3))
    other = adapter_tensors(inject_adapter(Small(), SMALL, seed=4))
    key = "blocks.0.to_q.lora_A.weight"
    assert torch.equal(same[key], tensors[key])
    assert not torch.equal(other[key], tensors[key])


@pytest.mark.parametrize(("rslora", "scale"), [(True, 3 / math.sqrt(2)), (False, 1.5)])
def test_the_layer_computes_wx_plus_scaled_bax(rslora, scale):
    base = Small().double()
    model = inject_adapter(Small(), {**SMALL, "lora_alpha": 3, "use_rslora": rslora}).double()
    for tensor in adapter_tensors(model).values():
        nn.init.normal_(tensor)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    tensors = adapter_tensors(model)
    a, b = tensors["blocks.0.to_q.lora_A.weight"], tensors["blocks.0.to_q.lora_B.weight"]
    expected = base.blocks[0].to_q(x) + scale * (x @ a.T @ b.T)
    torch.testing.assert_close(model.blocks[0].to_q(x), expected)


def test_bfloat16_base_keeps_float32_gradients():
    model = inject_adapter(Small().bfloat16(), SMALL)
    for tensor in adapter_tensors(model).values():
        nn.init.normal_(tensor)
    model(torch.randn(4, 6, dtype=torch.bfloat16)).float().sum().backward()
    for tensor in adapter_tensors(model).values():
        assert tensor.dtype == tensor.grad.dtype == torch.float32 and tensor.grad.any()


def test_strength_zero_is_the_base_bit_for_bit():
    model = inject_adapter(Small(), SMALL)
    for tensor in adapter_tensors(model).values():
        nn.init.normal_(tensor)
    x = torch.randn(5, 6)
    full = model(x)
    set_adapter_strength(model, 0.0)
    assert torch.equal(model(x), Small()(x))
    set_adapter_strength(model, 1.0)
    assert torch.equal(model(x), full)
    assert not torch.equal(full, Small()(x))


# --- A file as the start of a training ---


def trained(config=SMALL, seed=1):
    """A model with random factors, exact in bfloat16."""
    model = inject_adapter(Small(), config)
    generator = torch.Generator().manual_seed(seed)
    for tensor in adapter_tensors(model).values():
        tensor.data = torch.randn(tensor.shape, generator=generator).bfloat16().float()
    return model


def changes(model):
    """s · B A by layer."""
    return {
        name: next(iter(module.scaling.values())) * (module.lora_B["lora"].weight @ module.lora_A["lora"].weight)
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("with_alpha", [False, True])
def test_the_same_configuration_is_taken_over_exactly(tmp_path, with_alpha):
    model = trained()
    save_lora(tmp_path / "a.safetensors", adapter_tensors(model), SMALL, with_alpha=with_alpha)
    fresh = inject_adapter(Small(), SMALL, seed=9)
    assert load_lora(fresh, tmp_path / "a.safetensors") == []
    for key, tensor in adapter_tensors(fresh).items():
        assert torch.equal(tensor, adapter_tensors(model)[key])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lora_alpha": 3}, "4 layers scaled by 0.3333, so that the strength stays"),
        ({"use_rslora": False}, "4 layers scaled by 1.414"),
        ({"r": 5}, "4 layers grown from rank 2 to 5"),
        ({"r": 5, "use_rslora": False, "lora_alpha": 7}, "4 layers scaled by 0.5051"),
    ],
)
def test_another_strength_or_a_higher_rank_changes_nothing_at_first(tmp_path, changed, said):
    model = trained()
    save_lora(tmp_path / "a.safetensors", adapter_tensors(model), SMALL)
    fresh = inject_adapter(Small(), {**SMALL, **changed}, seed=9)
    random = {key: tensor.detach().clone() for key, tensor in adapter_tensors(fresh).items()}
    notes = load_lora(fresh, tmp_path / "a.safetensors")
    assert any(said in note for note in notes)
    for name, change in changes(model).items():
        torch.testing.assert_close(changes(fresh)[name], change, rtol=1e-5, atol=1e-6)
        # What is new can learn: its A is random as at any start.
        a, b = (adapter_tensors(fresh)[f"{name}.lora_{which}.weight"] for which in "AB")
        assert torch.equal(a[2:], random[f"{name}.lora_A.weight"][2:]) and not b[:, 2:].any()


def test_a_lower_rank_is_the_nearest_and_the_kept_share_is_said(tmp_path):
    config = {**SMALL, "r": 4}
    model = trained(config)
    save_lora(tmp_path / "a.safetensors", adapter_tensors(model), config)
    fresh = inject_adapter(Small(), SMALL)
    notes = load_lora(fresh, tmp_path / "a.safetensors")
    shares = []
    for name, change in changes(model).items():
        values = torch.linalg.svdvals(change.detach())
        shares.append(float(values[:2].norm() / values.norm()))
        left_out = (changes(fresh)[name] - change).detach().norm()
        assert float(left_out) == pytest.approx(float(values[2:].norm()), rel=1e-4)
    (note,) = (note for note in notes if "made smaller" in note)
    assert f"kept {100 * min(shares):.2f} % of the norm at the least" in note
    assert f"{100 * sum(shares) / 4:.2f} % on average" in note


def test_other_layers_start_from_zero_or_are_left_out_and_that_is_said(tmp_path):
    model = trained({**SMALL, "target_modules": ["to_q"]})
    save_lora(tmp_path / "a.safetensors", adapter_tensors(model), SMALL)
    fresh = inject_adapter(Small(), SMALL)
    (note,) = load_lora(fresh, tmp_path / "a.safetensors")
    assert "2 layers are not in the file and start from zero, for example 'blocks.0.to_out.0'" in note
    assert not changes(fresh)["blocks.0.to_out.0"].any() and changes(fresh)["blocks.0.to_q"].any()
    save_lora(tmp_path / "b.safetensors", adapter_tensors(trained()), SMALL)
    fresh = inject_adapter(Small(), {**SMALL, "target_modules": ["to_q"]})
    (note,) = load_lora(fresh, tmp_path / "b.safetensors")
    assert "2 layers of the file are not in this training and are left out, for example 'blocks.0.to_out.0'" in note


def test_a_file_that_does_not_say_its_strength_is_taken_as_this_training_has_it(tmp_path):
    model = trained()
    save_file({key: t.detach().clone() for key, t in adapter_tensors(model).items()}, tmp_path / "a.safetensors")
    fresh = inject_adapter(Small(), {**SMALL, "r": 4})
    notes = load_lora(fresh, tmp_path / "a.safetensors")
    assert any("does not say its alpha; taken as in this training (alpha 1, rsLoRA True)" in note for note in notes)
    for name, change in changes(model).items():
        torch.testing.assert_close(changes(fresh)[name], change)


def test_dora_is_named_and_gone_on_without(tmp_path):
    tensors = {key: t.detach().clone() for key, t in adapter_tensors(trained()).items()}
    tensors["blocks.0.to_q.lora_magnitude_vector"] = torch.ones(5)
    save_file(tensors, tmp_path / "a.safetensors")
    notes = load_lora(inject_adapter(Small(), SMALL), tmp_path / "a.safetensors")
    assert any("DoRA's magnitudes" in note and "'blocks.0.to_q.lora_magnitude_vector'" in note for note in notes)


def change(tensors, kind):
    if kind == "missing":
        return dict(list(tensors.items())[1:])
    if kind == "shape":
        return {**tensors, "blocks.0.to_q.lora_A.weight": torch.zeros(2, 7)}
    if kind == "other model":
        return {key.replace("blocks", "layers"): tensor for key, tensor in tensors.items()}
    if kind == "nan":
        return {k: t * float("nan") for k, t in tensors.items()}
    return {"some.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("missing", "lora_A is missing, the partner of lora_B, in the layer 'blocks.0.to_q'"),
        ("shape", "[2, 7], expected 6 inputs"),
        ("other model", "no layer in common with this training (found 'layers.0.to_out.0', wanted 'blocks.0.to_q')"),
        ("nan", "not finite in 4 layers: 'blocks.0.to_out.0', 'blocks.0.to_q'"),
        ("no lora", "holds no LoRA"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, kind, part):
    model = inject_adapter(Small(), SMALL)
    tensors = {key: tensor.detach().clone() for key, tensor in adapter_tensors(model).items()}
    save_file(change(tensors, kind), tmp_path / "l.safetensors")
    with pytest.raises(WrongInput, match=r"l\.safetensors") as caught:
        load_lora(model, tmp_path / "l.safetensors")
    assert part in str(caught.value)
    assert all(torch.equal(t, tensors[k]) for k, t in adapter_tensors(model).items())


def test_one_training_step_moves_only_the_adapter():
    model = inject_adapter(Small(), SMALL)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_B" in name}  # B is zero at first: A gets no gradient yet
