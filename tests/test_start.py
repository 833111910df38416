"""start.py itself: what any Python, also one that is too old, says of its own version."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import start

SCRIPT = Path(start.__file__)


@pytest.mark.parametrize(
    ("version", "bits", "sentence"),
    [
        ((3, 9), 64, "Python 3.9 is too old"),
        ((3, 15), 64, "Python 3.15 is too new"),
        ((3, 11), 32, "is a 32-bit build"),
        ((3, 10), 64, None),
        ((3, 14), 64, None),
    ],
)
def test_python_that_cannot_be_used(version, bits, sentence):
    problem = start.check_python(version, bits)
    assert problem is None if sentence is None else sentence in problem
    if problem:
        assert "https://www.python.org/downloads/" in problem


def starts_as(python: str | Path, version: str) -> bool:
    """Whether this interpreter exists in this version; a version manager's stand-in may not."""
    answer = subprocess.run([python, "--version"], capture_output=True, encoding="utf-8")
    return f"Python {version}." in answer.stdout + answer.stderr


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8", "3.9", "3.15"])
def test_python_of_this_version_says_it_itself(version, tmp_path):
    # Version managers keep all Pythons in folders beside each other.
    beside = Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python")
    candidates = [shutil.which(f"python{version}"), *beside]
    pythons = [python for python in candidates if python and starts_as(python, version)]
    if not pythons:
        pytest.skip(f"there is no Python {version} on this machine")
    answer = subprocess.run([pythons[0], str(SCRIPT)], capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"error: Python {version} is too {'new' if version == '3.15' else 'old'};")
    assert len(answer.stderr.splitlines()) == 1
