"""Fixtures of the window tests: a display, windows, songs.

Runs on the display of $DISPLAY, else on an Xvfb that the tests start themselves; skips with the reason without either.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ace_gui
from tests.gui.desk import Desk
from tests.gui.window import Window, write_stand_ins, write_wav


@pytest.fixture(scope="session")
def display() -> Iterator[None]:
    """A display of 1280x720; the machine's own where there is no Xvfb to start."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        if not shutil.which("Xvfb"):
            pytest.skip("no display: $DISPLAY is not set and Xvfb is not installed")
        command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1280x720x24", "-nolisten", "tcp"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert server.stdout is not None
        os.environ["DISPLAY"] = ":" + server.stdout.readline().decode().strip()
        yield
        del os.environ["DISPLAY"]
        server.terminate()
        server.wait()
    else:
        yield


@pytest.fixture
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings, locks, and logs of runs without a project lie in the test's folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "config"))


def with_stand_ins(program: Path) -> Path:
    """The folder of the scripts, filled with stand-ins where a test has put none there."""
    if not (program / "trainer_new.py").exists():
        write_stand_ins(program)
    return program


@pytest.fixture
def make_window(display: None, own_settings: None, program: Path) -> Iterator[Callable[..., Window]]:
    windows: list[Window] = []

    def make(home: Path | None = None, program: Path = program, **arguments: Any) -> Window:
        windows.append(Window(with_stand_ins(program), home, **arguments))
        return windows[-1]

    yield make
    for window in windows:
        window.close()


@pytest.fixture
def make_desk(own_settings: None, program: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Desk]]:
    """Owners of the window in a process that has neither a display nor Tk."""
    for name in ("tk", "ttk", "tkfont", "filedialog", "ScrolledText"):
        monkeypatch.setattr(ace_gui, name, None)
    desks: list[Desk] = []

    def make(home: Path | None = None, **arguments: Any) -> Desk:
        desks.append(Desk(with_stand_ins(program), home, **arguments))
        return desks[-1]

    yield make
    for desk in desks:
        desk.close()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The folder of the scripts that `make_window` and `make_desk` use."""
    return tmp_path / "my 程序 🎵"


@pytest.fixture
def songs(tmp_path: Path) -> list[Path]:
    return [
        write_wav(tmp_path / "我的 歌曲" / name, level=level)
        for name, level in (("晴天.wav", 500), ("夜曲 (Live).wav", 900))
    ]
