from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from ace_lora.v1 import lyric_encoder as module
from ace_lora.v1.lyric_encoder import LyricEncoder, _layer_norm, relative_positions
from tests.golden_recipe import GOLDEN, check, fill, float_input, prefix_mask, relative_error

CLOSE = 4e-6


@pytest.fixture(scope="module")
def published() -> LyricEncoder:
    return fill(LyricEncoder(), "lyric_encoder.").requires_grad_(False)


@pytest.mark.parametrize("case", ["l1", "l2", "l3", "l4"])
def test_golden(case: str, published: LyricEncoder) -> None:
    golden = load_file(GOLDEN / f"lyric_{case}.safetensors")
    facts = json.loads((GOLDEN / f"lyric_{case}.json").read_text(encoding="utf-8"))
    length, lengths = facts["T"], facts["lengths"]
    xs, mask = float_input(f"{case}.xs", (len(lengths), length, 1024)), prefix_mask(lengths, length)
    found = {"pos_emb": relative_positions(length, 1024, xs.device, torch.float32)[None]}
    found["embed"] = x = _layer_norm(published.embed.out[1], published.embed.out[0](xs)) * 32
    for number, layer in enumerate(published.encoders):
        x = layer(x, found["pos_emb"][0], (mask > 0)[:, None, None], torch.float32)
        found[f"layer{number}"] = x
    found["out"] = published(xs, mask)

    assert relative_error(found["out"], golden["out"]) < CLOSE
    assert relative_error(found["pos_emb"][..., :64], golden["pos_emb"]) < CLOSE
    for name in ("embed", "layer0", "layer5"):
        assert relative_error(found[name][..., :32], golden[f"{name}.head"]) < CLOSE
    for name, expected in facts["stats"].items():
        tensor = found[name]
        assert float(tensor.std(correction=0)) == pytest.approx(expected["std"], rel=1e-3)
        assert check(tensor, f"{case}.{name}") == pytest.approx(expected["check"], abs=3e-5 * float(tensor.norm()))


@pytest.fixture
def small() -> LyricEncoder:
    torch.manual_seed(0)
    return LyricEncoder(32, 2, 4, 64).requires_grad_(False)


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_pieces_of_the_scores_join_seamlessly(rows: int, small: LyricEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    xs, mask = torch.randn(2, 11, 32), prefix_mask([11, 6], 11)
    whole = small(xs, mask)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", rows)
    assert relative_error(small(xs, mask), whole) < CLOSE


def test_padded_lyrics_are_what_they_are_alone(small: LyricEncoder) -> None:
    xs = torch.randn(2, 11, 32)
    padded = small(xs, prefix_mask([11, 6], 11))
    assert relative_error(padded[1, :6], small(xs[1:, :6], None)[0]) < CLOSE


def test_fully_masked_lyrics_give_finite_values_and_gradients(small: LyricEncoder) -> None:
    xs = torch.randn(1, 3, 32, requires_grad=True)
    out = small(xs, torch.zeros(1, 3))
    out.sum().backward()
    assert bool(out.isfinite().all()) and bool(xs.grad.isfinite().all())


def test_reduced_precision(small: LyricEncoder) -> None:
    xs = torch.randn(1, 20, 32).bfloat16()
    small.bfloat16()
    rounded = small(xs, None)
    assert rounded.dtype == torch.bfloat16
    assert relative_error(rounded.float(), small.float()(xs.float(), None)) < 0.01
