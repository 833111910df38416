"""Run with: pytest tests/training/test_state.py"""

import pytest
import torch

from ace_lora.training.state import AdapterAverage


def test_average_follows_the_adapter():
    parameter = torch.nn.Parameter(torch.zeros(2))
    average = AdapterAverage({"a": parameter}, decay=0.5)
    with torch.no_grad():
        parameter.fill_(1.0)
    average.update({"a": parameter})
    assert average.tensors["a"].tolist() == pytest.approx([1 - 2 / 11] * 2)
    for _ in range(60):
        average.update({"a": parameter})
    assert average.tensors["a"].tolist() == pytest.approx([1.0] * 2)
