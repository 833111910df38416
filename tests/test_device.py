"""python -m pytest tests/test_device.py

What needs a card is tested only where there is one; the TF32 state that Lightning reads exists in every build of
PyTorch and is tested everywhere, in a process of its own because the state is global.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from ace_lora.commands import WrongInput

torch = pytest.importorskip("torch")

from ace_lora.device import (  # noqa: E402
    HostCopy,
    choose_device,
    free_device_bytes,
    free_device_memory,
    free_main_memory,
    has_native_bf16,
    is_out_of_memory,
    peak_process_bytes,
)


def test_cpu_is_float32_unless_bf16_is_asked_for():
    device = choose_device("cpu")
    assert device.torch_device == torch.device("cpu")
    assert device.dtype is torch.float32
    assert device.reason == "CPU, fp32 (asked for)"
    assert choose_device("cpu", "bf16").dtype is torch.bfloat16
    assert choose_device("cpu", "bf16").reason == "CPU, bf16 asked for (asked for)"


def test_automatic_choice_says_why():
    device = choose_device()
    if torch.cuda.is_available():
        assert device.torch_device == torch.device("cuda", 0)
        assert device.reason.startswith(f"CUDA: {torch.cuda.get_device_name(0)}, ")
    elif torch.backends.mps.is_available():
        assert device.torch_device == torch.device("mps")
    else:
        assert device.torch_device == torch.device("cpu")
        assert "CUDA" in device.reason or "NVIDIA" in device.reason
        assert "MPS" in device.reason


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", "", "cuda:-1"])
def test_unknown_device_name(name):
    with pytest.raises(WrongInput, match=f"Device '{name}' is not known"):
        choose_device(name)


def test_unknown_number_format():
    with pytest.raises(WrongInput, match="Number format 'int3' is not known"):
        choose_device("cpu", "int3")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_asked_for_and_absent():
    with pytest.raises(WrongInput, match=r"Device 'cuda:0' cannot be used: .*CUDA"):
        choose_device("cuda:0")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU here")
def test_mps_asked_for_and_absent():
    with pytest.raises(WrongInput, match="Device 'mps' cannot be used"):
        choose_device("mps")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_card_that_is_not_there():
    with pytest.raises(WrongInput, match="card 99 is not there"):
        choose_device("cuda:99")


def test_cpu_computes_bf16():
    assert has_native_bf16(torch.device("cpu"))


# Lightning asks for the matmul precision only on an Ampere or later card. The two questions about the card are answered
# for it where there is none, so that the line that used to raise runs for real. One process for all cases: importing
# Lightning takes seconds.
LIGHTNING_START = """
import torch
import lightning.fabric.accelerators.cuda as accelerator
from ace_lora.device import set_tf32

if not torch.cuda.is_available():
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_name = lambda device: "a card"
    accelerator._is_ampere_or_later = lambda device: True


def lightning_starts(preset, ours):
    torch.set_float32_matmul_precision("highest")
    exec(preset)
    if ours:
        set_tf32()
    try:
        accelerator._check_cuda_matmul_precision(torch.device("cuda", 0))
    except RuntimeError as error:
        return "mix of the legacy and new APIs" in str(error)
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32


presets = ["", "torch.backends.cuda.matmul.allow_tf32 = True"]
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    new = [
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.backends.cuda.matmul.fp32_precision = 'ieee'",
        "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    ]
    # The failure that users patched site-packages for.
    assert lightning_starts(new[0], ours=False) is True
    presets += new
for preset in presets:
    assert lightning_starts(preset, ours=True) == ("high", True), preset
print(len(presets))
"""


def test_lightning_starts_whatever_was_set_before():
    pytest.importorskip("lightning")
    result = subprocess.run(
        [sys.executable, "-c", LIGHTNING_START],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parents[1],
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout in ("2\n", "6\n")


def test_running_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as full:
        torch.empty(1 << 60)  # an error of this system's allocator
    assert is_out_of_memory(full.value)
    for words in (
        "MPS backend out of memory (MPS allocated: 17.90 GB, other allocations: 1.02 GB, max allowed: 18.13 GB).",
        "CUDA error: out of memory",
        "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ):
        assert is_out_of_memory(RuntimeError(words))
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
    free_device_memory(torch.device("cpu"))


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_memory_of_this_machine():
    peak, total = peak_process_bytes()
    assert 0 < peak < total and 0 < free_main_memory() < total


def test_free_memory_of_a_card_counts_what_pytorch_holds_and_nothing_uses(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_000, 10_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert free_device_bytes(torch.device("cuda", 1)) == 3_500


def test_free_memory_of_the_cpu_is_that_of_the_machine(monkeypatch):
    monkeypatch.setattr("ace_lora.device.free_main_memory", lambda: 4_000)
    assert free_device_bytes(torch.device("cpu")) == 4_000


def test_memory_that_cannot_be_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert free_main_memory() is None


# --- Copies to main memory --------------------------------------------------------------------------------------------


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
