"""Blocks streamed from main memory: not a bit of the result changes."""

from __future__ import annotations

import copy

import pytest
import torch

from ace_lora.model.offload import offload_blocks
from ace_lora.model.quantise import quantise_layers
from ace_lora.model.recompute import set_checkpointing
from ace_lora.v1.transformer import ACEStepTransformer, Context
from tests.golden_recipe import float_input
from tests.small_transformer import adapt, small_transformer, step

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
]


@pytest.fixture(scope="module")
def base() -> ACEStepTransformer:
    return small_transformer()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "precision, blocks, recomputed", [("bf16", 1, 0), ("bf16", 5, 2), ("bf16", 5, 5), ("int8", 2, 5), ("nf4", 5, 2)]
)
def test_offloading_changes_no_bit(
    device: str, precision: str, blocks: int, recomputed: int, base: ACEStepTransformer
) -> None:
    model = copy.deepcopy(base)
    if precision != "bf16":
        quantise_layers(model.large_parts(), precision, device)
    model.to(device)
    adapt(model)
    set_checkpointing(model.transformer_blocks, recomputed)
    loss, gradient = step(model)
    offload_blocks(model.transformer_blocks, blocks, device)
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
    offload_blocks(model.transformer_blocks, 5, "cpu")
    gone = before - {name for name, _ in model.named_parameters()}
    assert len(gone) == 5 * 10 and all(name.endswith("weight") and "lora_" not in name for name in gone)
    weight = model.transformer_blocks[0].attn.to_q.base_layer.weight
    model.to(torch.float64)
    assert weight.dtype == torch.float32


def test_more_blocks_than_there_are(base: ACEStepTransformer) -> None:
    with pytest.raises(ValueError, match="Cannot offload 6 of 5 blocks"):
        offload_blocks(base.transformer_blocks, 6, "cpu")
