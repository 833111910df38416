from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from ace_lora.model.recompute import (
    BlockMemory,
    QuantisedLinear,
    block_memory,
    offload_blocks,
    quantise_base,
    set_checkpointing,
)
from ace_lora.v1.transformer import ACEStepTransformer, Context, TransformerConfig
from tests.golden_recipe import C1, fill, float_input, relative_error

CONFIG = TransformerConfig.from_dict(
    C1
    | {
        "num_layers": 5,
        "attention_head_dim": 32,
        "lyric_hidden_size": 32,
        "lyric_encoder_layers": 1,
        "lyric_encoder_heads": 4,
        "lyric_encoder_feed_forward": 64,
    }
)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
]


@pytest.fixture(scope="module")
def base() -> ACEStepTransformer:
    return fill(ACEStepTransformer(CONFIG))


def adapt(model: ACEStepTransformer, rank: int = 4) -> ACEStepTransformer:
    targets = ["to_q", "to_k", "to_v", "to_out.0", "projectors.0.0", "linear_q"]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=1, use_rslora=True, target_modules=targets), model, "ace")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(float_input(name, tuple(parameter.shape)) / parameter.shape[1] ** 0.5)
    return model


def step(model: ACEStepTransformer) -> tuple[Tensor, Tensor]:
    """Loss and all LoRA gradients of one fixed step."""
    device = model.proj_in.early_conv_layers[0].weight.device
    factors = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    for factor in factors:
        factor.grad = None
    lyrics = model.encode_lyrics(torch.arange(1, 8, device=device)[None])
    context = model.encode_context(float_input("text", (1, 4, 48)).to(device), None, lyrics, None)
    latents = float_input("latents", (1, 8, 16, 37)).to(device)
    output = model(latents, torch.tensor([500.0], device=device), context, None, ssl_taps=True)
    features = {"mert": [float_input("mert", (99, 40)).to(device)]}
    loss = (output.velocity - latents).square().mean() + model.ssl_losses(output.ssl_taps, features)["mert"]
    loss.backward()
    return loss.detach().cpu(), torch.cat([factor.grad.flatten() for factor in factors]).cpu()


# --- What a block keeps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recomputed_product", [False, True])
def test_a_full_width_block_keeps_exactly_what_is_promised(recomputed_product: bool) -> None:
    """Counted from what autograd saves, parameters and what all blocks share left out."""
    config = TransformerConfig(
        num_layers=1, lyric_hidden_size=16, lyric_encoder_layers=1, lyric_encoder_heads=1, ssl_latent_dims=(8, 8)
    )
    with torch.device("meta"):
        model = ACEStepTransformer(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.zero_()
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    inject_adapter_in_model(LoraConfig(r=64, target_modules=targets), model)
    set_checkpointing(model, 0, int(recomputed_product))
    frames, length = 48, 24
    context = Context(torch.zeros(1, length, 2560, dtype=torch.bfloat16), None, None)
    x = torch.zeros(1, frames, 2560, dtype=torch.bfloat16)
    modulation = torch.zeros(1, 6, 2560, dtype=torch.bfloat16)
    inputs = model._block_inputs(x, context, None, None, modulation, exact=True)
    shared = [*model.parameters(), inputs.context, *inputs.frame_rotation, *inputs.context_rotation]
    known = {tensor.untyped_storage().data_ptr() for tensor in shared}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        out = model.transformer_blocks[0](x.requires_grad_(), inputs)
    memory = block_memory(config, frames, length)
    assert sum(kept.values()) == (memory.without_product if recomputed_product else memory.kept)
    del out


def test_block_memory_at_full_size() -> None:
    """240 s of audio, 32 text and 1024 lyric tokens; the straightforward block keeps 627 MB."""
    memory = block_memory(TransformerConfig(), frames=2584, context=1057)
    assert memory == BlockMemory(kept=185_317_504, without_product=119_167_104, recomputed=13_230_080)


@pytest.mark.parametrize("blocks, products", [(5, 0), (2, 0), (0, 5), (2, 1)])
def test_recomputation_changes_no_bit(blocks: int, products: int, base: ACEStepTransformer) -> None:
    model = adapt(copy.deepcopy(base)).to(torch.bfloat16)
    loss, gradient = step(model)
    set_checkpointing(model, blocks, products)
    again_loss, again = step(model)
    assert torch.equal(again_loss, loss) and torch.equal(again, gradient)


# --- Quantised base ---------------------------------------------------------------------------------------------------


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
        quantise_base(adapt(model), precision)
    else:
        quantise_base(model, precision)
        adapt(model)
    quantised_loss, quantised = step(model)
    assert relative_error(quantised, gradient) < limit
    assert float(quantised_loss) == pytest.approx(float(loss), rel=0.05)
    block = model.transformer_blocks[0]
    assert isinstance(block.ff.inverted_conv.conv, QuantisedLinear)
    assert isinstance(block.attn.to_q.base_layer, QuantisedLinear)
    assert not any(isinstance(module, QuantisedLinear) for module in block.attn.to_q.lora_A.modules())


def test_bf16_base_is_left_alone(base: ACEStepTransformer) -> None:
    model = copy.deepcopy(base)
    quantise_base(model, "bf16", "cpu")
    assert not any(isinstance(module, QuantisedLinear) for module in model.modules())


def test_parts_that_were_dropped_are_not_quantised(base: ACEStepTransformer) -> None:
    model = copy.deepcopy(base)
    model.drop_lyric_branch()
    model.drop_ssl_heads()
    quantise_base(model, "int8")
    assert not any(name.startswith(("lyric", "projectors")) for name, _ in model.named_parameters())


# --- Blocks in main memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "precision, blocks, recomputed", [("bf16", 1, 0), ("bf16", 5, 2), ("bf16", 5, 5), ("int8", 2, 5), ("nf4", 5, 2)]
)
def test_offloading_changes_no_bit(
    device: str, precision: str, blocks: int, recomputed: int, base: ACEStepTransformer
) -> None:
    model = copy.deepcopy(base)
    quantise_base(model, precision, device)
    adapt(model)
    set_checkpointing(model, recomputed)
    loss, gradient = step(model)
    offload_blocks(model, blocks, device)
    for _ in range(2):  # the second step starts where the first one's backward pass ended
        again_loss, again = step(model)
        assert torch.equal(again_loss, loss) and torch.equal(again, gradient)
        with torch.no_grad():  # and a validation in between
            latents = float_input("latents", (1, 8, 16, 9)).to(device)
            context = Context(float_input("context", (1, 3, 64)).to(device), None, None)
            model(latents, torch.tensor([500.0], device=device), context)


def test_offloaded_weights_take_no_part_in_moves(base: ACEStepTransformer) -> None:
    model = adapt(copy.deepcopy(base))
    before = {name for name, _ in model.named_parameters()}
    offload_blocks(model, 5, "cpu")
    gone = before - {name for name, _ in model.named_parameters()}
    assert len(gone) == 5 * 10 and all(name.endswith("weight") and "lora_" not in name for name in gone)
    weight = model.transformer_blocks[0].attn.to_q.base_layer.weight
    model.to(torch.float64)
    assert weight.dtype == torch.float32


def test_more_blocks_than_there_are(base: ACEStepTransformer) -> None:
    with pytest.raises(ValueError, match="Cannot offload 6 of 5 blocks"):
        offload_blocks(base, 6, "cpu")


def test_int8_rows_of_zeros_stay_zeros() -> None:
    layer = nn.Linear(64, 4)
    with torch.no_grad():
        layer.weight[1] = 0
    restored = QuantisedLinear(layer, "int8").dequantised(torch.float32)
    assert torch.equal(restored[1], torch.zeros(64))
    # Half a step of the row's largest weight in 127 steps, and float16's rounding of the scale.
    assert ((restored - layer.weight).abs() <= layer.weight.abs().amax(1, keepdim=True) * (0.51 / 127)).all()
