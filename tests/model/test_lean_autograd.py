"""Each function against PyTorch's own autograd on the written-out equation; whole models are in test_transformer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from ace_lora.model import lean_autograd as lean
from tests.golden_recipe import relative_error

CLOSE = 3e-6


class Layers(nn.Module):
    def __init__(self, width: int, adapters: int = 1):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(width, 5), nn.Linear(width, width)
        self.requires_grad_(False)
        for number in range(adapters):
            config = LoraConfig(r=2 + number, lora_alpha=3, target_modules=["first", "second"])
            inject_adapter_in_model(config, self, f"a{number}")
        for name, parameter in self.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter)


def compare(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    weights = torch.randn_like(expected)
    assert relative_error(found, expected) < CLOSE
    gradients = [torch.autograd.grad((y * weights).sum(), inputs, retain_graph=True) for y in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.dtype == theirs.dtype and relative_error(ours, theirs) < CLOSE


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def test_linear_is_what_peft_computes() -> None:
    layers, x = Layers(8), torch.randn(2, 7, 8, requires_grad=True)
    compare(lean.linear(layers.second, x), layers.second(x), [x, *trained(layers.second)])


def test_several_adapters_at_once() -> None:
    layers, x = Layers(8, adapters=2), torch.randn(2, 7, 8, requires_grad=True)
    layers.second.set_adapter(["a0", "a1"])
    compare(lean.linear(layers.second, x), layers.second(x), [x, *trained(layers.second)])


def test_disabled_and_merged_adapters() -> None:
    layers, x = Layers(8), torch.randn(2, 8)
    adapted = lean.linear(layers.second, x)
    layers.second.enable_adapters(False)
    assert torch.equal(lean.linear(layers.second, x), layers.second.base_layer(x))
    layers.second.enable_adapters(True)
    layers.second.merge()
    assert relative_error(lean.linear(layers.second, x), adapted) < CLOSE


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}])
def test_other_kinds_of_lora_are_refused(options: dict) -> None:
    layers = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"], **options), layers)
    with pytest.raises(NotImplementedError, match="plain LoRA"):
        lean.linear(layers[0].train(), torch.ones(1, 4))


def rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def test_modulated_projections() -> None:
    layers, x = Layers(8), torch.randn(2, 7, 8, requires_grad=True)
    shift, scale = torch.randn(2, 1, 8), torch.randn(2, 1, 8)
    found = lean.modulated_projections([layers.first, layers.second], x, shift, scale, 1e-6)
    a = rms(x) * scale + shift
    expected = [layers.first(a), layers.second(a)]
    compare(torch.cat(found, -1), torch.cat(expected, -1), [x, *trained(layers)])


@pytest.mark.parametrize("width", [4, 6])
def test_rotation_follows_the_formula(width: int) -> None:
    """Pairs (2j, 2j+1) with the frequencies of channels 2j and 2j+1 of a half-split table."""
    x = torch.randn(1, 3, 2, width, requires_grad=True)
    cos, sin = lean.rotation_table(torch.arange(3)[None], width, 100.0, torch.float32)
    expected = torch.zeros_like(x)
    for p in range(3):
        for c in range(width):
            angle = torch.tensor(p * 100.0 ** (-2 * (c % (width // 2)) / width))
            other = -x[:, p, :, c + 1] if c % 2 == 0 else x[:, p, :, c - 1]
            expected[:, p, :, c] = x[:, p, :, c] * angle.cos() + other * angle.sin()
    compare(lean.rotate(x, cos, sin), expected, [x])


@pytest.mark.parametrize("masked", [False, True])
def test_linear_attention(masked: bool) -> None:
    batch, frames, heads, width = 2, 9, 2, 4
    layers = Layers(heads * width)
    q, k, v, residual = (torch.randn(batch, frames, heads * width, requires_grad=True) for _ in range(4))
    gate = torch.randn(batch, 1, heads * width)
    mask = (torch.arange(frames) < torch.tensor([[9], [5]])) if masked else None
    rotation = lean.rotation_table(torch.arange(frames)[None], width, 100.0, torch.float32)

    def split(x: Tensor) -> Tensor:
        return x.view(batch, frames, heads, width)

    kept = 1.0 if mask is None else mask[:, :, None, None].float()
    fq, fk = (F.relu(lean.rotate(split(x), *rotation) * kept) for x in (q, k))
    scores = torch.einsum("bthc,bshc->bhts", fq, fk)
    attended = torch.einsum("bhts,bshf->bthf", scores / (scores.sum(-1, keepdim=True) + 1e-15), split(v))
    expected = residual + gate * layers.second(attended.flatten(2))
    found = lean.linear_attention(layers.second, q, k, v, rotation, mask, gate, residual, heads, 1e-15)
    compare(found, expected, [q, k, v, residual, *trained(layers.second)])


@pytest.mark.parametrize("frames", [1, 2, 9])
@pytest.mark.parametrize("keeps_product", [False, True])
@pytest.mark.parametrize("piece_bytes", [2**24, 100])
def test_feed_forward(frames: int, keeps_product: bool, piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "PIECE_BYTES", piece_bytes)
    torch.manual_seed(0)
    width, hidden = 6, 10
    layers = (
        lean.PointwiseConvolution(width, 2 * hidden),
        nn.Conv1d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden),
        lean.PointwiseConvolution(hidden, width, bias=False),
    )
    for layer in layers:
        layer.requires_grad_(False)
    x = torch.randn(2, frames, width, requires_grad=True)
    shift, scale, gate = (torch.randn(2, 1, width) for _ in range(3))
    mask = torch.arange(frames) < torch.tensor([[frames], [max(1, frames - 4)]])

    h = (rms(x) * scale + shift).transpose(1, 2)
    u = F.silu(F.conv1d(h, layers[0].weight, layers[0].bias)) * mask[:, None]
    value, strength = layers[1](u).chunk(2, dim=1)
    expected = x + gate * F.conv1d(value * F.silu(strength), layers[2].weight).transpose(1, 2)
    found = lean.feed_forward(layers, x, shift, scale, gate, mask, 1e-6, keeps_product)
    compare(found, expected, [x])
