"""start.py: the set-up with a real pip and real environments, on tiny packages that the tests build."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import start

SCRIPT = Path(start.__file__)


def build_wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel that pip accepts and that holds one module."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"__version__ = '{version}'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in files) + f"{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program folder with start.py, tiny requirements, and a window that prints that it opened."""
    home = tmp_path / "程序 folder"
    (home / "requirements").mkdir(parents=True)
    shutil.copy(SCRIPT, home / "start.py")
    (home / "requirements.txt").write_text("torch==2.13.0\nbase_package==1.0\n", encoding="utf-8")
    (home / "requirements" / "prodigy.txt").write_text("# 可选\ngroup_package==1.0\n", encoding="utf-8")
    (home / "ace_gui.py").write_text(
        "import sys, torch, base_package\nprint('window', torch.__version__, sys.prefix)\nraise SystemExit(7)\n",
        encoding="utf-8",
    )
    for name, version in (("torch", "2.13.0"), ("base_package", "1.0"), ("group_package", "1.0")):
        build_wheel(tmp_path / "wheels", name, version)
    return home


def run_start(home: Path, *arguments: str, links: Path | None = None, **environment: str):
    """Run start.py as a user does, from another folder, with the wheels of `links` as the only package index."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    # A fresh user: no pip configuration but this.
    variables.update(PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(links or home.parent / "wheels"))
    variables.update(environment)
    return subprocess.run(
        [sys.executable, str(home / "start.py"), *arguments],
        cwd=home.parent,
        env=variables,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
    )


def test_first_start_installs_and_second_start_installs_nothing(program: Path):
    first = run_start(program)
    assert first.returncode == 7, first.stdout + first.stderr  # the window's own exit status
    assert "Installing PyTorch" in first.stdout
    assert f"window 2.13.0 {program / '.venv'}" in first.stdout
    stamp = json.loads((program / ".venv" / "ace_setup.json").read_text(encoding="utf-8"))
    assert set(stamp) == {"torch", "requirements.txt"}
    assert stamp["requirements.txt"] == hashlib.sha256(b"torch==2.13.0\nbase_package==1.0\n").hexdigest()[:16]

    # No package index at all: the second start must not look for one.
    second = run_start(program, links=program / "nowhere")
    assert second.returncode == 7
    assert "Installing" not in second.stdout
    assert second.stdout.startswith("window 2.13.0")


def test_group_is_added_without_touching_the_rest_and_changed_pin_is_installed(program: Path):
    assert run_start(program, "setup").returncode == 0
    added = run_start(program, "install", "prodigy")
    assert added.returncode == 0, added.stderr
    assert added.stdout.count("Installing the packages") == 1
    assert "prodigy.txt" in added.stdout

    build_wheel(program.parent / "wheels", "base_package", "1.1")
    (program / "requirements.txt").write_text("torch==2.13.0\nbase_package==1.1\n", encoding="utf-8")
    changed = run_start(program, "setup")
    assert changed.returncode == 0, changed.stderr
    assert "PyTorch" not in changed.stdout
    python = start.environment_python(program / ".venv")
    shown = subprocess.run(
        [python, "-c", "import base_package, group_package as g; print(base_package.__version__, g.__version__)"],
        capture_output=True,
        text=True,
    )
    assert shown.stdout.strip() == "1.1 1.0"


def test_interrupted_installation_goes_on(program: Path):
    # The base package cannot be had: PyTorch gets installed, then the installation ends.
    wheel = program.parent / "wheels" / "base_package-1.0-py3-none-any.whl"
    wheel.rename(program.parent / "kept.whl")
    failed = run_start(program)
    assert failed.returncode == 1
    assert "error: The packages of requirements.txt could not be installed." in failed.stderr
    assert "no build of a package for this Python" in failed.stderr
    assert "Traceback" not in failed.stderr
    (program.parent / "kept.whl").rename(wheel)
    resumed = run_start(program)
    assert resumed.returncode == 7, resumed.stderr
    assert "Installing PyTorch" not in resumed.stdout


def test_half_made_environment_is_made_again(program: Path):
    # What an interruption in the middle of making the environment leaves.
    (program / ".venv" / "bin").mkdir(parents=True)
    (program / ".venv" / "pyvenv.cfg").write_text("home = nowhere\n", encoding="utf-8")
    answer = run_start(program)
    assert answer.returncode == 7, answer.stderr


def test_foreign_folder_named_venv_is_left_alone(program: Path):
    (program / ".venv").mkdir()
    (program / ".venv" / "mine.txt").write_text("keep", encoding="utf-8")
    answer = run_start(program)
    assert answer.returncode == 1
    assert "is no Python environment. Rename or move it" in answer.stderr
    assert (program / ".venv" / "mine.txt").read_text(encoding="utf-8") == "keep"


def test_without_network_and_environment_a_sentence(program: Path):
    # A port of this machine on which nobody listens stands for a network that is down.
    answer = run_start(
        program, PIP_NO_INDEX="0", PIP_FIND_LINKS="", PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1"
    )
    assert answer.returncode == 1
    assert "could not be installed. The package index cannot be reached. Connect to the network" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("version", "bits", "sentence"),
    [
        ((3, 9), 64, "Python 3.9 is too old"),
        ((3, 14), 64, "Python 3.14 is too new"),
        ((3, 11), 32, "is a 32-bit build"),
        ((3, 10), 64, None),
        ((3, 13), 64, None),
    ],
)
def test_python_that_cannot_be_used(version, bits, sentence):
    problem = start.check_python(version, bits)
    assert problem is None if sentence is None else sentence in problem
    if problem:
        assert "https://www.python.org/downloads/" in problem


def test_old_python_reads_the_file_far_enough_to_say_that_it_is_too_old():
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 7))


def test_full_disk_is_said_before_anything_is_installed():
    assert start.check_disk(10 * 10**9, 9) is None
    assert "3.0 GB free; the installation needs about 9 GB" in start.check_disk(3 * 10**9, 9)


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
    torch = start.choose_torch(wanted, driver, system)
    assert (torch.name, torch.index) == (name, index)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("OSError: [Errno 28] No space left on device", "The disk is full."),
        ("WARNING: Retrying … NameResolutionError …\nERROR: No matching distribution found", "index cannot be reached"),
        ("ERROR: Could not install … [WinError 5] Access is denied", "in use or may not be written"),
        ("SSLError(SSLCertVerificationError(1, 'CERTIFICATE_VERIFY_FAILED", "secure connection"),
        ("ERROR: something new\n\n", "The last words were: ERROR: something new"),
        ("", "it said nothing"),
    ],
)
def test_failures_of_pip_in_a_sentence(output, sentence):
    assert sentence in start.explain_pip_failure(output)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["install", "photo"], "no group named 'photo'"),
        (["install"], "install needs the name of a group"),
        (["--torch", "rocm"], "--torch 'rocm' is not known"),
        (["demo", "fast"], "'demo' takes no further words: 'fast'"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_wrong_words_are_refused(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        start.parse_args(arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_words_after_test_go_to_pytest():
    args = start.parse_args(["--torch", "cpu", "test", "tests/test_start.py", "-k", "disk", "--torch"])
    assert args.torch == "cpu"
    assert args.rest == ["tests/test_start.py", "-k", "disk", "--torch"]


def test_every_group_has_its_file_of_exact_versions():
    for path in start.requirement_files([*start.GROUPS, "test"]):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        assert lines, path
        assert all("==" in line.split(";")[0] for line in lines), path
