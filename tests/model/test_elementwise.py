from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ace_lora.model import elementwise
from tests.golden_recipe import relative_error


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    elementwise._compiled.clear()
    torch._dynamo.config.suppress_errors = False


def run_all(frames: int) -> dict[str, Tensor]:
    torch.manual_seed(frames)
    x, y, heads = torch.randn(2, frames, 8), torch.randn(2, frames, 8), torch.randn(2, frames, 2, 4)
    row, mask = torch.randn(2, 1, 8), torch.ones(2, frames, 1)
    cos, sin = torch.randn(2, 1, frames, 1, 4)
    p, p_gate, dm = torch.randn(3, 2, frames, 6)
    taps = torch.randn(4, 6), torch.randn(4, 6)
    feature = elementwise.feature(heads, cos, sin, mask[..., None])
    m = torch.empty(2, frames, 6)
    elementwise.gated_convolution(p, p_gate, *taps, mask, m)
    dp, dp_gate = p.clone(), p_gate.clone()
    elementwise.gated_convolution_backward(dm, dp, dp_gate, *taps, mask)
    return {
        "modulated_norm": elementwise.modulated_norm(x, row, row, 1e-6),
        "modulated_norm_backward": elementwise.modulated_norm_backward(y, x, row, 1e-6),
        "add_gated": elementwise.add_gated(x, y, row),
        "rotate": elementwise.rotate(heads, cos, sin),
        "rotate_backward": elementwise.rotate_backward(heads, cos, sin),
        "feature": feature,
        "feature_backward": elementwise.feature_backward(heads, feature, cos, sin),
        "gated_convolution": m,
        "gated_convolution_backward": torch.stack([dp, dp_gate]),
    }


def test_compiled_functions_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and decomposed as for a GPU, but run without generating code, which takes minutes on a busy CPU."""
    expected = {frames: run_all(frames) for frames in (5, 9)}
    assert set(elementwise._functions) == expected[5].keys()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    reason = elementwise.compile_elementwise("cpu")
    if reason is not None:
        pytest.skip(reason)
    for frames, results in expected.items():
        for name, found in run_all(frames).items():
            assert relative_error(found, results[name]) < 1e-6, name


def test_without_a_compiler_it_goes_on_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(function: object, **options: object) -> object:
        def call(*args: object) -> None:
            raise RuntimeError("Compiler: cl is not found.\nlong trace")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    reason = elementwise.compile_elementwise("cpu")
    assert reason == "torch.compile does not work here (Compiler: cl is not found.); going on without it."
    assert elementwise.add_gated(torch.ones(1), torch.ones(1), torch.ones(1)).tolist() == [2]


def test_one_that_fails_only_in_training_runs_uncompiled() -> None:
    calls = []

    def fails_the_second_time(graph: torch.fx.GraphModule, inputs: object) -> object:
        calls.append(graph)
        if len(calls) > 1:
            raise RuntimeError("no kernel for this shape")
        return graph.forward

    compile_ = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(compile_, backend=fails_the_second_time))
        assert elementwise.compile_elementwise("cpu") is None
    x, y, row = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.randn(2, 1, 8)
    torch.testing.assert_close(elementwise.add_gated(x, y, row), x + y * row)
    assert len(calls) == 2
