"""Which PyTorch is chosen for which computer."""

import pytest

from ace_lora.set_up.torch_build import choose_torch


@pytest.mark.parametrize(
    ("wanted", "driver", "system", "name", "index"),
    [
        ("auto", None, "Windows", "the package index's build", None),
        ("auto", 581, "Windows", "CUDA 13 build", "https://download.pytorch.org/whl/cu130"),
        ("auto", 552, "Windows", "CUDA 12.6 build", "https://download.pytorch.org/whl/cu126"),
        ("auto", 590, "Linux", "CUDA 13 build", None),
        ("auto", 550, "Linux", "CUDA 12.6 build", "https://download.pytorch.org/whl/cu126"),
        ("cpu", 590, "Linux", "CPU build", "https://download.pytorch.org/whl/cpu"),
        ("cpu", None, "Darwin", "CPU build", None),
        ("cuda", None, "Windows", "CUDA 13 build", "https://download.pytorch.org/whl/cu130"),
        ("https://x.example/cu130", None, "Windows", "from https://x.example/cu130", "https://x.example/cu130"),
    ],
)
def test_choice_of_pytorch(wanted, driver, system, name, index):
    torch = choose_torch(wanted, driver, system)
    assert (torch.name, torch.index) == (name, index)
