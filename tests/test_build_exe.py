"""build_exe.py: the exe is built for this system, started on a virtual screen and driven through the first steps."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ace_gui
import build_exe
from ace_lora.commands import StepFailed, WrongInput
from tests.tiny_program import make_program, variables_of_a_fresh_user

HOME = Path(build_exe.__file__).resolve().parent
LARGEST_BYTES = 25_000_000


@pytest.fixture(scope="session")
def exe(tmp_path_factory) -> Path:
    """The built exe."""
    missing = [name for name in ("PyInstaller", "pypinyin") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (python start.py install test)")
    folder = tmp_path_factory.mktemp("dist")
    answer = subprocess.run(
        [sys.executable, build_exe.__file__, "--output_dir", str(folder)], capture_output=True, encoding="utf-8"
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (built,) = folder.iterdir()
    assert f"Made {built} " in answer.stdout
    return built


@pytest.fixture
def program(exe: Path, tmp_path: Path) -> Path:
    """A program folder as a user has it: the exe, the scripts, and an environment in `.venv`."""
    home = tmp_path / "程序 folder"
    home.mkdir()
    shutil.copy(exe, home)
    for name in ("start.py", *ace_gui.SCRIPTS):
        shutil.copy(HOME / name, home)
    for name in ("ace_lora", "config", "requirements"):
        shutil.copytree(HOME / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    (home / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    return home


def fresh_user(folder: Path, **more: str) -> dict[str, str]:
    """The variables of a user who has nothing set up, in whose PATH there is no Python."""
    empty = folder / "home"
    empty.mkdir(exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if key in ("DISPLAY", "LANG", "SYSTEMROOT", "TEMP", "TMP")}
    return {**kept, "HOME": str(empty), "APPDATA": str(empty), "PATH": "/nowhere", **more}


def check(program: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """The exe's report about its surroundings."""
    return subprocess.run(
        [str(next(program.glob("ACE-Step-LoRA*"))), "--check", "--language", "en"],
        cwd=program.parent,
        env=fresh_user(program.parent, **more),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def test_size(exe: Path):
    assert exe.name == ("ACE-Step-LoRA.exe" if os.name == "nt" else "ACE-Step-LoRA")
    assert exe.stat().st_size < LARGEST_BYTES


@pytest.mark.skipif(os.name == "nt", reason="a windowed exe has no output on Windows, and links need a privilege")
def test_finds_the_environment_beside_it_and_has_pypinyin_inside(program: Path):
    lines = check(program).stdout.splitlines()
    assert lines[0] == f"ACE-Step LoRA {ace_gui.VERSION} · {sys.platform}"
    assert f"[ok]  Python: {program / '.venv/bin/python3'} (.venv)" in lines
    assert f"[ok]  All scripts are there: {program}" in lines
    assert any(line.startswith("[ok]  PyTorch") for line in lines)
    assert "pypinyin" not in "\n".join(line for line in lines if not line.startswith("[ok]"))


@pytest.mark.skipif(os.name == "nt", reason="a windowed exe has no output on Windows")
def test_without_an_environment_it_says_so(program: Path):
    (program / ".venv").unlink()
    answer = check(program)
    assert answer.returncode == 1
    assert any(line.startswith("[X]   No Python was found to run the scripts.") for line in answer.stdout.splitlines())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the loader's path is a variable on Linux only")
def test_its_own_libraries_do_not_reach_the_environment(program: Path):
    (program / ".venv").unlink()
    python = program / ".venv" / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n/usr/bin/env > "{program}/seen"\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    answer = check(program, LD_LIBRARY_PATH="/of/the/user")
    assert "[ok]  PyTorch" in answer.stdout
    seen = (program / "seen").read_text(encoding="utf-8")
    assert "\nLD_LIBRARY_PATH=/of/the/user\n" in f"\n{seen}"
    assert [line for line in seen.splitlines() if "_MEI" in line and not line.startswith("_PYI_")] == []
    assert not {line.split("=")[0] for line in seen.splitlines()} & {"TCL_LIBRARY", "TK_LIBRARY", "PYTHONHOME"}


@pytest.fixture
def display(monkeypatch) -> Iterator[str]:
    """A virtual screen of its own."""
    missing = [name for name in ("Xvfb", "xdotool") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout is not None
    number = ":" + server.stdout.readline().decode().strip()
    monkeypatch.setenv("DISPLAY", number)
    yield number
    server.terminate()
    server.wait()


def until(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 150) -> None:
    """Wait until `condition` holds; fails when the process ends or the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the exe ended with status {process.returncode}"
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


def write_song(path: Path) -> None:
    """Six seconds of a 110 Hz saw with two beats per second."""
    rate = 22050
    with wave.open(str(path), "wb") as song:
        song.setnchannels(1)
        song.setsampwidth(2)
        song.setframerate(rate)
        loud = ((1 - n % (rate // 2) / (rate // 2)) ** 4 for n in range(6 * rate))
        song.writeframes(
            b"".join(int(9000 * e * (n % 200 / 100 - 1)).to_bytes(2, "little", signed=True) for n, e in enumerate(loud))
        )


def test_first_steps_of_the_workflow(program: Path, display: str):
    song = program.parent / "晴天.wav"
    write_song(song)
    home = program / "Taudio" / "demo"
    home.mkdir(parents=True)
    # As the options of the prompts page are stored; without a card and a model, tags come from the signal.
    (home / ".ace_gui.json").write_text(
        json.dumps({"version": 1, "values": {"captions": {"backend": "analysis", "assume_instrumental": "true"}}}),
        encoding="utf-8",
    )
    process = subprocess.Popen(
        [str(program / "ACE-Step-LoRA"), "--language", "en", "--project", str(home), str(song)],
        env=fresh_user(program.parent),
        start_new_session=True,
    )

    def xdotool(*words: str) -> list[str]:
        return subprocess.run(["xdotool", *words], capture_output=True, encoding="utf-8").stdout.split()

    def windows() -> list[str]:
        return xdotool("search", "--onlyvisible", "--name", "ACE-Step LoRA")

    def run_step(number: int, name: str) -> None:
        """Go to the step's page, start it as soon as the window is free, wait until its title says that it is done."""

        def is_done() -> bool:
            title = " ".join(xdotool("getwindowname", window))
            running = " · " in title
            if "✓ " + name not in title and not running:
                # There is no window manager that would give the window the keyboard.
                xdotool("windowfocus", window, "key", f"alt+{number}", "key", "F5")
            return "✓ " + name in title

        until(is_done, process)

    try:
        until(windows, process)
        (window,) = windows()
        # 1. The song is there, under the pinyin of its name.
        until((home / "qing_tian.wav").exists, process)
        run_step(2, "Prompts")
        assert "timbre" in (home / "qing_tian_prompt.txt").read_text(encoding="utf-8")
        run_step(3, "Lyrics")
        assert (home / "qing_tian_lyrics.txt").read_text(encoding="utf-8").strip() == "[instrumental]"
        run_step(4, "Dataset")
        assert (home.with_name("demo_filenames") / "state.json").exists()
    finally:
        process.terminate()
        process.wait()


def test_version_of_the_window_is_read_without_running_it(tmp_path: Path):
    assert build_exe.read_version(HOME / "ace_gui.py") == ace_gui.VERSION
    source = tmp_path / "window.py"
    source.write_text('raise SystemExit\nVERSION = "3.1"\n', encoding="utf-8")
    assert build_exe.read_version(source) == "3.1"
    source.write_text("WIDTH = 3\n", encoding="utf-8")
    with pytest.raises(WrongInput, match="has no line VERSION"):
        build_exe.read_version(source)


def test_version_resource_of_windows(tmp_path: Path):
    text = build_exe.windows_version_file("1.2", tmp_path / "版本.txt").read_text(encoding="utf-8")
    assert "filevers=(1, 2, 0, 0)" in text
    assert "StringStruct('ProductVersion', '1.2')" in text


def test_icon_is_one():
    assert (HOME / "docs" / "icon.ico").read_bytes()[:4] == b"\x00\x00\x01\x00"


# --- The pack ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="Windows lays out an environment otherwise than a Python")
def test_the_pack_holds_everything_and_is_checked_before_it_gets_its_name(tmp_path, monkeypatch, capfd):
    """Everything for real but in small: two tiny packages, a stand-in for the exe, a demo that ends at once."""
    home = make_program(tmp_path)
    (home / "ace_gui.py").write_text('VERSION = "1.2"\n', encoding="utf-8")
    (home / "tests").mkdir()
    (home / "tests" / "test_x.py").touch()
    (home / "demo.py").write_text("import torch, base_package, sys; print(sys.prefix)", encoding="utf-8")
    python = tmp_path / "a Python"
    subprocess.run([sys.executable, "-m", "venv", "--copies", str(python)], check=True, capture_output=True)
    monkeypatch.setattr(build_exe, "HOME", home)
    monkeypatch.setattr(build_exe, "build_exe", lambda folder: (folder / "ACE-Step-LoRA").write_bytes(b"exe"))
    for name, value in variables_of_a_fresh_user(home).items():
        monkeypatch.setenv(name, value)
    words = ["--pack", "--torch", "auto", "--python", str(python), "--output_dir", str(tmp_path / "dist")]
    build_exe.main(build_exe.parse_args(words))
    (archive,) = (tmp_path / "dist").iterdir()
    assert archive.name.startswith("ACE-Step-LoRA-1.2-") and archive.suffix == ".gz"
    assert f"Made {archive}: " in capfd.readouterr().out

    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="fully_trusted")
    pack = tmp_path / "unpacked" / "ACE-Step-LoRA"
    assert {"ACE-Step-LoRA", "start.py", "python", "requirements.txt", "SHA256SUMS.txt"} <= {
        path.name for path in pack.iterdir()
    }
    assert not (pack / "tests").exists() and not list(pack.rglob("__pycache__"))
    if shutil.which("sha256sum"):
        assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS.txt"], cwd=pack).returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for a Python is a shell script")
def test_a_pack_that_does_not_work_or_is_not_whole_is_refused(tmp_path):
    pack = tmp_path / "made" / "ACE-Step-LoRA"
    python = pack / "python" / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$2" = demo ] && echo no sound && exit 1\nexit 0\n', encoding="utf-8")
    python.chmod(0o755)
    lines = [f"{checksum}  {name}" for name, checksum in build_exe.checksums(pack).items()]
    (pack / "SHA256SUMS.txt").write_text("\n".join(lines), encoding="utf-8")
    archive = Path(shutil.make_archive(str(tmp_path / "pack"), "gztar", tmp_path / "made", "ACE-Step-LoRA"))
    with pytest.raises(StepFailed, match=r"'start\.py demo' ends with 1: no sound"):
        build_exe.check_pack(archive, tmp_path / "one")
    (pack / "more.txt").touch()
    archive = Path(shutil.make_archive(str(tmp_path / "pack"), "gztar", tmp_path / "made", "ACE-Step-LoRA"))
    with pytest.raises(StepFailed, match="does not hold what was packed"):
        build_exe.check_pack(archive, tmp_path / "two")


def test_a_folder_that_is_no_python_is_refused(tmp_path):
    with pytest.raises(WrongInput, match="is no folder"):
        build_exe.make_pack(build_exe.parse_args(["--pack", "--python", str(tmp_path / "none")]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WrongInput, match="Expected a Python's folder"):
        build_exe.bring_python(tmp_path / "empty", tmp_path / "python")
