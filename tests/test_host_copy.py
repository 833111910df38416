"""Copies to main memory that are not waited for where they are begun."""

import pytest
import torch

from ace_lora.host_copy import HostCopy


def test_a_tensor_on_the_cpu_needs_no_copy():
    tensor = torch.arange(5.0, requires_grad=True)
    copy = HostCopy(tensor)
    assert copy.is_there()
    assert copy.wait().data_ptr() == tensor.data_ptr() and not copy.wait().requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA card")
def test_what_follows_on_the_card_does_not_change_the_copy():
    tensor = torch.arange(1_000_000, device="cuda")
    copy = HostCopy(tensor)
    tensor.zero_()
    assert torch.equal(copy.wait(), torch.arange(1_000_000))
    assert copy.is_there()
