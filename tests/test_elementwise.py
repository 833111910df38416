from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from golden_recipe import relative_error

from ace_lora import elementwise


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    elementwise.run_uncompiled()


def test_compiled_stretches_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    p, dm = torch.randn(2, 5, 12), torch.randn(2, 5, 6)
    taps = tuple(torch.randn(12) for _ in range(4))
    forward = elementwise.gated_convolution(p, taps, None)
    backward = elementwise.gated_convolution_backward(dm, p, taps, None)
    reason = elementwise.compile_elementwise("cpu")
    if reason is not None:
        pytest.skip(reason)
    assert relative_error(elementwise.gated_convolution(p, taps, None), forward) < 1e-6
    assert relative_error(elementwise.gated_convolution_backward(dm, p, taps, None), backward) < 1e-6


def test_without_a_compiler_it_goes_on_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(function: object, **options: object) -> object:
        def call(*args: object) -> None:
            raise RuntimeError("Compiler: cl is not found.\nlong trace")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    reason = elementwise.compile_elementwise("cpu")
    assert reason == "torch.compile does not work here (Compiler: cl is not found.); going on without it."
    assert elementwise.add_gated(torch.ones(1), torch.ones(1), torch.ones(1)).tolist() == [2]
