"""Recomputed blocks: what they keep, counted, and that not a bit of the result changes."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from ace_lora.model.recompute import BlockMemory, block_memory, set_checkpointing
from ace_lora.v1.transformer import ACEStepTransformer, Context, TransformerConfig
from tests.small_transformer import adapt, small_transformer, step


@pytest.fixture(scope="module")
def base() -> ACEStepTransformer:
    return small_transformer()


def widths(config: TransformerConfig) -> tuple[int, int, int]:
    return config.inner_dim, config.feed_forward_dim, config.num_attention_heads


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
    set_checkpointing(model.transformer_blocks, 0, int(recomputed_product))
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
    memory = block_memory(*widths(config), frames, length)
    assert sum(kept.values()) == (memory.without_product if recomputed_product else memory.kept)
    del out


def test_block_memory_at_full_size() -> None:
    """240 s of audio, 32 text and 1024 lyric tokens; the straightforward block keeps 627 MB."""
    memory = block_memory(*widths(TransformerConfig()), frames=2584, context=1057)
    assert memory == BlockMemory(kept=185_317_504, without_product=119_167_104, recomputed=13_230_080)


@pytest.mark.parametrize("blocks, products", [(5, 0), (2, 0), (0, 5), (2, 1)])
def test_recomputation_changes_no_bit(blocks: int, products: int, base: ACEStepTransformer) -> None:
    model = adapt(copy.deepcopy(base)).to(torch.bfloat16)
    loss, gradient = step(model)
    set_checkpointing(model.transformer_blocks, blocks, products)
    again_loss, again = step(model)
    assert torch.equal(again_loss, loss) and torch.equal(again, gradient)
