"""Run with: pytest tests/test_benchmarks.py - that the benchmarks run and compare what they say; nothing is timed."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def training_step(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("training_step", BENCHMARKS / "training_step.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "training_step", module)
    spec.loader.exec_module(module)
    return module


SMALL = ["--config", "tiny", "--layers", "2", "--seconds", "3", "--lyric_tokens", "8", "--rank", "4"]


def test_variants_of_a_step_agree(training_step, capsys):
    words = ["reference, all", "lean, none", "lean, all"]
    training_step.main(training_step.parse_args([*SMALL, "--dtype", "fp32", "--repeats", "1", "--variants", *words]))
    lines = capsys.readouterr().out.splitlines()
    compared = {line[:46].strip(): line for line in lines if "gradient apart" in line}
    assert set(compared) == {
        *("reference, all recomputed", "reference, all, no SSL", "lean, all recomputed", "lean, none recomputed"),
        *("lean, all, lyrics in step", "lean, all, no SSL"),
    }
    losses: dict[bool, set[str]] = {True: set(), False: set()}
    for name, line in compared.items():
        loss, apart = re.search(r"loss (\S+), gradient apart (\S+),", line).groups()
        losses["no SSL" in name].add(f"{float(loss):.5f}")
        assert float(apart) < 1e-4, line
    assert all(len(found) == 1 for found in losses.values()) and losses[True] != losses[False]
    table = lines[next(place for place, line in enumerate(lines) if line.startswith("variant")) + 1 :]
    assert [line[:46].strip() for line in table] == list(compared)


def test_kernels_of_a_step_are_counted(training_step, capsys):
    training_step.main(training_step.parse_args([*SMALL, "--count", "--variants", "recomputed"]))
    table = {line[:46].strip(): line[46:].split() for line in capsys.readouterr().out.splitlines()[2:]}
    assert set(table) == {f"lean, {which} recomputed" for which in ("all", "half", "products", "none")}
    kernels = {name: int(row[0]) for name, row in table.items()}
    products = {name: int(row[1]) for name, row in table.items()}
    assert kernels["lean, none recomputed"] < kernels["lean, half recomputed"] < kernels["lean, all recomputed"]
    # One product of each of the two blocks is made again.
    assert products["lean, products recomputed"] == products["lean, none recomputed"] + 2
    assert torch.autocast.__name__ == "autocast"  # what the counting replaced is back
