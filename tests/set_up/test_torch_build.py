"""Which PyTorch is chosen for which computer, and from where."""

import os
import stat
import sys

import pytest

from ace_lora.set_up import torch_build
from ace_lora.set_up.torch_build import TORCH_MIRRORS, Card, choose_torch, read_nvidia_card, why_no_card

OFFICIAL = "https://download.pytorch.org/whl"
TURING, PASCAL, BLACKWELL = (7, 5), (6, 1), (12, 0)


@pytest.mark.parametrize(
    ("wanted", "card", "system", "name", "index"),
    [
        ("auto", None, "Windows", "the package index's build", None),
        ("auto", Card(581, TURING), "Windows", "CUDA 13 build", f"{OFFICIAL}/cu130"),
        ("auto", Card(581, None), "Windows", "CUDA 13 build", f"{OFFICIAL}/cu130"),
        (
            "auto",
            Card(552, (8, 6)),
            "Windows",
            "CUDA 12.6 build, because of the NVIDIA driver 552",
            f"{OFFICIAL}/cu126",
        ),
        ("auto", Card(590, (8, 6)), "Linux", "CUDA 13 build", None),
        ("auto", Card(550, None), "Linux", "CUDA 12.6 build, because of the NVIDIA driver 550", f"{OFFICIAL}/cu126"),
        (
            "auto",
            Card(590, PASCAL),
            "Windows",
            "CUDA 12.6 build, the last for compute capability 6.1",
            f"{OFFICIAL}/cu126",
        ),
        (
            "auto",
            Card(590, (7, 0)),
            "Linux",
            "CUDA 12.6 build, the last for compute capability 7.0",
            f"{OFFICIAL}/cu126",
        ),
        (
            "cuda",
            Card(590, (5, 2)),
            "Linux",
            "CUDA 12.6 build, the last for compute capability 5.2",
            f"{OFFICIAL}/cu126",
        ),
        # CUDA 12.6 has nothing for it: the driver has to be updated.
        ("auto", Card(572, BLACKWELL), "Windows", "CUDA 13 build", f"{OFFICIAL}/cu130"),
        ("auto", Card(470, (3, 5)), "Windows", "CPU build", f"{OFFICIAL}/cpu"),
        ("cpu", Card(590, (8, 6)), "Linux", "CPU build", f"{OFFICIAL}/cpu"),
        ("cpu", None, "Darwin", "CPU build", None),
        ("cuda", None, "Windows", "CUDA 13 build", f"{OFFICIAL}/cu130"),
        ("https://x.example/cu130", None, "Windows", "from https://x.example/cu130", "https://x.example/cu130"),
    ],
)
def test_choice_of_pytorch(wanted, card, system, name, index):
    torch = choose_torch(wanted, card, system, environment={})
    assert (torch.name, torch.indexes) == (name, (index,) if index else ())


def test_a_named_copy_of_the_index_comes_first():
    card = Card(590, (8, 6))
    for system in ("Windows", "Linux"):
        torch = choose_torch("auto", card, system, "https://copy.example/whl/", environment={})
        assert torch.indexes == ("https://copy.example/whl/cu130", f"{OFFICIAL}/cu130")


@pytest.mark.parametrize(
    ("index", "mirrored"),
    [("https://packages.example/simple", True), ("https://pypi.org/simple", False), ("", False)],
)
def test_copies_are_tried_first_where_packages_come_from_a_mirror(index, mirrored):
    torch = choose_torch("cpu", None, "Windows", environment={"PIP_INDEX_URL": index})
    copies = tuple(f"{copy.rstrip('/')}/cpu" for copy in TORCH_MIRRORS)
    assert torch.indexes == (*(copies if mirrored else ()), f"{OFFICIAL}/cpu")


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        (None, None),
        (Card(580, TURING), None),
        (Card(550, (8, 9)), None),
        (
            Card(471, TURING),
            "The NVIDIA driver (471) is too old for any CUDA build of PyTorch. Update it to 580 or newer.",
        ),
        (Card(572, BLACKWELL), "driver of version 580 or newer; this one is 572. Update the driver."),
        (Card(550, (3, 7)), "compute capability 3.7) is too old for every build"),
    ],
)
def test_what_is_said_of_a_card_that_cannot_be_used(card, sentence):
    said = why_no_card(card)
    assert said is None if sentence is None else sentence in said


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for nvidia-smi is a shell script")
@pytest.mark.parametrize(
    ("answers", "card"),
    [
        ({"driver_version": "581.29", "compute_cap": "8.6"}, Card(581, (8, 6))),
        ({"driver_version": "581.29\n581.29", "compute_cap": "6.1\n12.0"}, Card(581, (12, 0))),
        ({"driver_version": "470.42", "compute_cap": None}, Card(470, None)),  # a driver that does not know the field
        ({"driver_version": "581.29", "compute_cap": "[N/A]"}, Card(581, None)),
        ({"driver_version": None, "compute_cap": None}, None),
        ({"driver_version": "No devices were found", "compute_cap": ""}, None),
    ],
)
def test_the_card_is_read_from_nvidia_smi(answers, card, tmp_path, monkeypatch):
    lines = [
        f"*={field}*) " + ("exit 2" if text is None else f"printf '%s\\n' '{text}'") + " ;;"
        for field, text in answers.items()
    ]
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\ncase "$1" in\n' + "\n".join(lines) + "\nesac\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert read_nvidia_card() == card


def test_without_the_driver_there_is_no_card(monkeypatch):
    monkeypatch.setattr(torch_build.shutil, "which", lambda name: None)
    assert read_nvidia_card() is None
