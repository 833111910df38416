"""Frozen weights in 8 and 4 bits: their error, their size, and a training on them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ace_lora.model.quantise import QuantisedLinear, quantise_layers
from ace_lora.v1.transformer import ACEStepTransformer
from tests.golden_recipe import relative_error
from tests.small_transformer import adapt, small_transformer, step


@pytest.fixture(scope="module")
def base() -> ACEStepTransformer:
    return small_transformer()


@pytest.mark.parametrize("precision, limit, bits", [("int8", 0.01, 8.4), ("nf4", 0.12, 4.6)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quantised_weight(precision: str, limit: float, bits: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 96).to(dtype).requires_grad_(False)
    quantised = QuantisedLinear(layer, precision)
    assert relative_error(quantised.dequantised(dtype).float(), layer.weight.float()) < limit
    stored = sum(p.numel() * p.element_size() for p in (quantised.weight, quantised.scales))
    assert 8 * stored / layer.weight.numel() < bits
    x = torch.randn(3, 256, dtype=dtype, requires_grad=True)
    quantised(x).sum().backward()
    assert relative_error(x.grad.float(), layer.weight.float().sum(0).expand(3, -1)) < limit + 0.01


def test_zero_rows_and_odd_shapes_survive_quantisation() -> None:
    layer = torch.nn.Linear(38, 5, bias=False).requires_grad_(False)
    layer.weight[2] = 0
    for precision in ("int8", "nf4"):
        weight = QuantisedLinear(layer, precision).dequantised(torch.float32)
        assert weight.shape == (5, 38) and bool(weight.isfinite().all())
        assert not bool(weight[2].any())


@pytest.mark.parametrize("precision, limit", [("int8", 0.03), ("nf4", 0.4)])
@pytest.mark.parametrize("adapter_first", [False, True])
def test_lora_trains_on_a_quantised_base(
    precision: str, limit: float, adapter_first: bool, base: ACEStepTransformer
) -> None:
    loss, gradient = step(adapt(copy.deepcopy(base)))
    model = copy.deepcopy(base)
    if adapter_first:
        quantise_layers(adapt(model).large_parts(), precision)
    else:
        quantise_layers(model.large_parts(), precision)
        adapt(model)
    quantised_loss, quantised = step(model)
    assert relative_error(quantised, gradient) < limit
    assert float(quantised_loss) == pytest.approx(float(loss), rel=0.05)
    block = model.transformer_blocks[0]
    assert isinstance(block.ff.inverted_conv.conv, QuantisedLinear)
    assert isinstance(block.attn.to_q.base_layer, QuantisedLinear)
    assert not any(isinstance(module, QuantisedLinear) for module in block.attn.to_q.lora_A.modules())


def test_parts_that_were_dropped_are_not_quantised(base: ACEStepTransformer) -> None:
    model = copy.deepcopy(base)
    model.drop_lyric_branch()
    model.drop_ssl_heads()
    quantise_layers(model.large_parts(), "int8")
    assert not any(name.startswith(("lyric", "projectors")) for name, _ in model.named_parameters())


def test_int8_rows_of_zeros_stay_zeros() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 4)
    with torch.no_grad():
        layer.weight[1] = 0
    restored = QuantisedLinear(layer, "int8").dequantised(torch.float32)
    assert torch.equal(restored[1], torch.zeros(64))
    # Half a step of 127 to the row's largest weight, and float16's rounding of that weight and of the weight itself.
    assert ((restored - layer.weight).abs() <= layer.weight.abs().amax(1, keepdim=True) * (0.57 / 127)).all()
