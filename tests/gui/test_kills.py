"""A window killed in an import, a move, a restoring: nothing half has a real name, and it can be done again.

The child kills itself before its n-th operation on files, for 20 n spread over all of them.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ace_gui
from ace_gui import Project
from tests.gui.window import put_back, removed, write_wav

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the process that is killed")
KILLS = 20
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.copyfile", "os.utime", "os.chmod")


def run_killed(work: Callable[[], object], at: int) -> bool:
    """Run `work` in a child that dies before its operation number `at` (0: never). Whether it came to its end."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal seen
            seen += event in EVENTS
            if seen == at and event in EVENTS:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def count_operations(work: Callable[[], object]) -> int:
    """How many operations on files `work` has, by doing it in a child."""
    reader, writer = os.pipe()

    def counted() -> None:
        seen = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal seen
            seen += event in EVENTS

        sys.addaudithook(count)
        work()
        os.write(writer, str(seen).encode())

    assert run_killed(counted, 0)
    return int(os.read(reader, 20))


def kills(make: Callable[[Path], Callable[[], object]], folder: Path) -> Iterator[tuple[Path, Callable[[], object]]]:
    """The place and the work of each kill, after it has happened."""
    total = count_operations(make(folder / "whole"))
    assert total > KILLS
    for number in range(KILLS):
        place = folder / str(number)
        work = make(place)
        assert not run_killed(work, 1 + number * total // KILLS)
        yield place, work


def real(folder: Path) -> dict[str, bytes]:
    """Everything under a real name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def other_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders and files of a song's home lie on another disk than everything else."""
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if ("disk" in Path(target).parts) != ("disk" in path.parts):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)


def write_songs(folder: Path) -> Path:
    for name, level in (("甲.wav", 1), ("乙.wav", 2), ("丙.wav", 3)):
        write_wav(folder / name, level=level, seconds=0.2)
        (folder / name.replace(".wav", "_lyrics.txt")).write_text(name, encoding="utf-8")
    return folder


def test_an_import_can_be_killed_and_repeated(tmp_path: Path):
    ace_gui.readable_name("甲")  # loads the dictionary once, not in every child
    source = write_songs(tmp_path / "in")
    audio = {path.read_bytes(): path.with_name(f"{path.stem}_lyrics.txt").read_bytes() for path in source.glob("*.wav")}

    def make(place: Path) -> Callable[[], object]:
        return lambda: ace_gui.import_songs([source], place / "home", lambda *_: None, lambda *_: None, lambda: False)

    for place, work in kills(make, tmp_path / "out"):
        home = place / "home"
        for song in home.glob("*.wav"):  # a song that is there is whole, with its own text
            assert audio[song.read_bytes()] == song.with_name(f"{song.stem}_lyrics.txt").read_bytes()
        assert run_killed(work, 0)
        assert real(home) == real(tmp_path / "out" / "whole" / "home") and len(real(home)) == 6
        assert not (home / ace_gui.STAGING_FOLDER).exists()


@pytest.mark.parametrize("disk", ["same", "disk"])
def test_a_move_can_be_killed_and_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: str):
    other_disk(monkeypatch)

    def make(place: Path) -> Callable[[], object]:
        home = write_songs(place / "old")
        for name in ("甲", "乙", "丙"):
            (place / "old_prep").mkdir(exist_ok=True)
            (place / "old_prep" / f"{name}.safetensors").write_bytes(name.encode() * 100)
        (place / "old_filenames").mkdir()
        (place / "old_filenames" / "state.json").write_text("{}")
        Project(home, titles={"甲.wav": "first"}).save()
        return lambda: ace_gui.move_project(Project.load(home), place / disk / "new")

    for place, work in kills(make, tmp_path):
        whole = {name.split("/", 1)[1]: data for name, data in real(tmp_path / "whole" / disk).items()}
        found = real(place)
        assert len(whole) == 9 and set(whole) <= {name.rsplit("/", 1)[1] for name in found}  # nothing is lost
        for name, data in found.items():
            assert "filenames" in name or whole[name.rsplit("/", 1)[1]] == data, name  # nothing is half
        if (place / "old").exists():
            assert run_killed(work, 0)
        assert real(place / disk) == real(tmp_path / "whole" / disk) and not (place / "old_prep").exists()
        moved = Project.load(place / disk / "new")
        assert (moved.titles, moved.moving) == ({"甲.wav": "first"}, "") and not (place / "old").exists()


@pytest.mark.parametrize("disk", ["same", "disk"])
def test_a_restoring_can_be_killed_and_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: str):
    def make(place: Path) -> Callable[[], object]:
        home = write_songs(place / "home")
        (place / "home_prep").mkdir()
        (place / "home_prep" / "甲.safetensors").write_bytes(b"record")
        folder = ace_gui.remove_songs(Project(home), ace_gui.scan_library(Project(home)))
        assert folder is not None and real(home) == {}
        write_wav(home / "甲.wav", level=99, seconds=0.2)  # stands in the way
        return lambda: put_back(home, folder)

    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:  # as if the bin were on another disk
        if disk == "disk" and (".removed" in Path(target).parts) != (".removed" in path.parts):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    new = write_wav(tmp_path / "new.wav", level=99, seconds=0.2).read_bytes()
    for place, work in kills(make, tmp_path / "out"):
        whole = real(tmp_path / "out" / "whole")
        for name, data in real(place).items():
            assert data in (whole[name], new), name
        left = [entry for entry in removed(place / "home") if entry[1] == "remove"]
        if left:
            assert run_killed(work, 0)
        assert real(place) == whole and len(whole) == 7
        kept = [path.read_bytes() for path in (place / "home" / ".removed").rglob("*.wav")]
        assert new in kept  # what stood there
