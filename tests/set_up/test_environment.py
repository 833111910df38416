"""start.py: the set-up with a real pip and real environments, on tiny packages that the tests build."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import start
from ace_lora.set_up import environment as set_up
from tests.tiny_program import build_wheel, make_program, variables_of_a_fresh_user, write_lock

SCRIPT = Path(start.__file__)
HOME = SCRIPT.parent
POSIX_ONLY = pytest.mark.skipif(os.name == "nt", reason="Windows has neither SIGKILL nor process groups")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program folder without an environment."""
    return make_program(tmp_path)


@pytest.fixture(scope="session")
def once_installed(tmp_path_factory) -> tuple[Path, Path]:
    """Two program folders to copy from: with a whole environment, and with an environment that has no packages yet."""
    empty = make_program(tmp_path_factory.mktemp("empty"))
    stalled = run_start(empty, "setup", links=empty / "nowhere")
    assert "Installing the packages" in stalled.stdout and stalled.returncode == 1
    whole = tmp_path_factory.mktemp("whole")
    shutil.copytree(empty.parent, whole, symlinks=True, dirs_exist_ok=True)
    assert run_start(whole / empty.name, "setup").returncode == 0
    return whole, empty.parent


@pytest.fixture
def installed(tmp_path: Path, once_installed) -> Path:
    """A program folder with a whole environment (a moved one works: see the first test)."""
    shutil.copytree(once_installed[0], tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "程序 folder"


@pytest.fixture
def without_packages(tmp_path: Path, once_installed) -> Path:
    """A program folder whose environment was made, with nothing installed in it."""
    shutil.copytree(once_installed[1], tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "程序 folder"


def run_start(home: Path, *arguments: str, links: Path | None = None, **environment: str):
    """Run start.py as a user does, from another folder."""
    return subprocess.run(
        [sys.executable, str(home / "start.py"), *arguments],
        cwd=home.parent,
        env=variables_of_a_fresh_user(home, links, **environment),
        capture_output=True,
        encoding="utf-8",
        timeout=240,
    )


def test_first_start_installs_and_second_start_installs_nothing(program: Path):
    first = run_start(program, "demo")
    assert first.returncode == 7, first.stdout + first.stderr  # the demo's own exit status
    assert first.stdout.splitlines() == [
        f"Making the environment {program / '.venv'} …",
        "Installing the packages of requirements.txt …",
        "  base_package 1.0",
        "  unpacking …",
        "Installing PyTorch (the package index's build) …",
        "  torch 2.13.0",
        "  unpacking …",
        f"The environment is ready: {program / '.venv'}",
        f"demo 2.13.0 {program / '.venv'}",
    ]
    stamp = json.loads((program / ".venv" / "ace_setup.json").read_text(encoding="utf-8"))
    assert set(stamp) == {"torch", "torch.txt", "requirements.txt"}
    assert stamp["torch.txt"] == hashlib.sha256(b"torch==2.13.0\n").hexdigest()[:16]

    # No package index at all: the second start must not look for one. Nor after the folder was moved.
    for folder in (program, program.with_name("移动 moved")):
        program.rename(folder)
        second = run_start(folder, "demo", links=folder / "nowhere")
        assert second.returncode == 7
        assert second.stdout == f"demo 2.13.0 {folder / '.venv'}\n"


def test_group_is_added_without_touching_the_rest_and_changed_pin_is_installed(installed: Path):
    added = run_start(installed, "install", "prodigy")
    assert added.returncode == 0, added.stderr
    assert added.stdout.count("Installing the packages") == 1
    assert "prodigy.txt" in added.stdout

    write_lock(installed / "requirements.txt", build_wheel(installed.parent / "wheels", "base_package", "1.1"))
    changed = run_start(installed, "setup")
    assert changed.returncode == 0, changed.stderr
    assert "PyTorch" not in changed.stdout
    python = set_up.environment_python(installed / ".venv")
    shown = subprocess.run(
        [python, "-c", "import base_package, group_package as g; print(base_package.__version__, g.__version__)"],
        capture_output=True,
        text=True,
    )
    assert shown.stdout.strip() == "1.1 1.0"


def test_failed_installation_goes_on(without_packages: Path):
    # PyTorch cannot be had: the base gets installed, then the installation ends.
    wheel = without_packages.parent / "wheels" / "torch-2.13.0-py3-none-any.whl"
    wheel.rename(without_packages.parent / "kept.whl")
    failed = run_start(without_packages, "demo")
    assert failed.returncode == 1
    assert "error: PyTorch (the package index's build) could not be installed." in failed.stderr
    assert "no build of a package for this Python" in failed.stderr
    assert "Traceback" not in failed.stderr
    (without_packages.parent / "kept.whl").rename(wheel)
    resumed = run_start(without_packages, "demo")
    assert resumed.returncode == 7, resumed.stderr
    assert "Installing the packages" not in resumed.stdout


def test_package_that_is_not_the_published_one_is_refused(without_packages: Path):
    wheel = without_packages.parent / "wheels" / "base_package-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    refused = run_start(without_packages, "demo")
    assert refused.returncode == 1
    assert (
        "could not be installed. A download arrived damaged, or is not the file that was published." in refused.stderr
    )


def test_mirror_of_pytorch_is_tried_before_the_official_index(without_packages: Path):
    index = (without_packages.parent / "mirror" / "cpu" / "torch").resolve()
    wheel = build_wheel(index, "torch", "2.13.0+cpu")
    (index / "index.html").write_text(f'<a href="{wheel.name.replace("+", "%2B")}">x</a>', encoding="utf-8")
    mirror = index.parents[1].as_uri()
    answer = run_start(
        without_packages, "demo", "--torch", "cpu", "--torch_index", mirror, PIP_NO_INDEX="0", PIP_RETRIES="0"
    )
    assert answer.returncode == 7, answer.stdout + answer.stderr
    assert f"Installing PyTorch (CPU build) from {mirror}/cpu …" in answer.stdout.splitlines()
    assert "demo 2.13.0+cpu" in answer.stdout


class StallingIndex(http.server.BaseHTTPRequestHandler):
    """A package index that takes the request and never answers: pip stands in the middle of its work."""

    def do_GET(self):
        self.server.asked.set()
        self.server.released.wait()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def stalling_index():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StallingIndex)
    server.asked, server.released = threading.Event(), threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@POSIX_ONLY
@pytest.mark.parametrize(
    ("number", "whole_group", "status"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 130), (9, False, -9)],
    ids=["ctrl_c", "asked_to_end", "killed"],
)
def test_interrupted_installation_goes_on(without_packages: Path, stalling_index, number, whole_group, status):
    address = f"http://127.0.0.1:{stalling_index.server_address[1]}/simple"
    process = subprocess.Popen(
        [sys.executable, str(without_packages / "start.py"), "demo"],
        env=variables_of_a_fresh_user(
            without_packages, PIP_NO_INDEX="0", PIP_FIND_LINKS="", PIP_INDEX_URL=address, PIP_RETRIES="0"
        ),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert stalling_index.asked.wait(120)
    os.killpg(process.pid, number) if whole_group else process.send_signal(number)
    assert process.wait(60) == status
    if status == 130:
        assert process.stderr.read() == "Interrupted. Run the same command again to go on.\n"
    # After a kill, pip is still there and holds the lock until it notices; here it is let go.
    stalling_index.released.set()
    process.stderr.close()
    resumed = run_start(without_packages, "demo")
    assert resumed.returncode == 7, resumed.stdout + resumed.stderr
    assert "Making the environment" not in resumed.stdout


@POSIX_ONLY
def test_second_start_waits_for_the_first(without_packages: Path, stalling_index):
    address = f"http://127.0.0.1:{stalling_index.server_address[1]}/simple"
    command = [sys.executable, str(without_packages / "start.py"), "demo"]
    first = subprocess.Popen(
        command,
        env=variables_of_a_fresh_user(without_packages, PIP_NO_INDEX="0", PIP_FIND_LINKS="", PIP_INDEX_URL=address),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert stalling_index.asked.wait(120)
    second = subprocess.Popen(
        command, env=variables_of_a_fresh_user(without_packages), stdout=subprocess.PIPE, encoding="utf-8", bufsize=1
    )
    assert second.stdout.readline() == "Another start.py is setting this folder up. Waiting for it to end …\n"
    first.terminate()
    first.wait(60)
    rest, _ = second.communicate(timeout=120)
    assert second.returncode == 7
    assert "Installing the packages" in rest and "Making the environment" not in rest


def test_half_made_environment_is_made_again(program: Path):
    # What an interruption in the middle of making the environment leaves.
    environment = program / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "pyvenv.cfg").write_text("home = nowhere\n", encoding="utf-8")
    (environment / "ace_setup.json").write_text("{}", encoding="utf-8")
    answer = run_start(program, "setup")
    assert answer.returncode == 0, answer.stderr
    assert "does not start any more" not in answer.stdout


def test_half_installed_package_is_installed_again(installed: Path):
    # A wheel that lists its metadata first, cut off: pip alone would say "Requirement already satisfied".
    (metadata,) = (installed / ".venv").glob("[Ll]ib/**/base_package-1.0.dist-info")
    (metadata / "RECORD").unlink()
    (metadata.parent / "base_package.py").write_text("cut off", encoding="utf-8")
    stamp = json.loads((installed / ".venv" / "ace_setup.json").read_text(encoding="utf-8"))
    del stamp["requirements.txt"]
    (installed / ".venv" / "ace_setup.json").write_text(json.dumps(stamp), encoding="utf-8")
    assert run_start(installed, "demo").returncode == 7


def test_environment_whose_python_is_gone_is_made_again(installed: Path):
    python = set_up.environment_python(installed / ".venv")
    python.unlink()
    answer = run_start(installed, "demo")
    assert answer.returncode == 7, answer.stderr
    assert "does not start any more: its Python was moved or removed." in answer.stdout


def test_another_pytorch_replaces_the_installed_one_and_the_rest_is_checked(installed: Path):
    index = (installed.parent / "index" / "torch").resolve()
    wheel = build_wheel(index, "torch", "2.13.0+cu130")
    (index / "index.html").write_text(f'<a href="{wheel.name.replace("+", "%2B")}">x</a>', encoding="utf-8")
    answer = run_start(
        installed, "setup", "--torch", index.parent.as_uri(), PIP_NO_INDEX="0", PIP_FIND_LINKS="", PIP_RETRIES="0"
    )
    # The base requirements are asked for again: here they are all there, so no index is needed for them.
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "  torch 2.13.0+cu130" in answer.stdout.splitlines()
    assert "demo 2.13.0+cu130" in run_start(installed, "demo").stdout
    # `auto` takes what is there.
    assert "Installing" not in run_start(installed, "demo", "--torch", "auto").stdout


def test_environment_of_somebody_else_is_used_as_it_is(installed: Path):
    (installed / ".venv" / "ace_setup.json").unlink()
    answer = run_start(installed, "demo")
    assert answer.returncode == 7, answer.stderr
    assert f"Using the environment that is there: {installed / '.venv'}" in answer.stdout
    assert "Making the environment" not in answer.stdout


def test_foreign_folder_named_venv_is_left_alone(program: Path):
    (program / ".venv").mkdir()
    (program / ".venv" / "mine.txt").write_text("keep", encoding="utf-8")
    answer = run_start(program, "setup")
    assert answer.returncode == 1
    assert "was not made by start.py" in answer.stderr and "Rename or move it" in answer.stderr
    assert [path.name for path in (program / ".venv").iterdir()] == ["mine.txt"]


def test_without_network_and_environment_a_sentence(without_packages: Path):
    # A port of this machine on which nobody listens stands for a network that is down.
    answer = run_start(
        without_packages,
        "setup",
        PIP_NO_INDEX="0",
        PIP_FIND_LINKS="",
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_RETRIES="1",
    )
    assert answer.returncode == 1
    assert "could not be installed. The package index cannot be reached. Connect to the network" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only X11 is told where its display is")
def test_window_without_a_display_is_refused_before_anything_is_installed(program: Path):
    answer = run_start(program, DISPLAY=":987")
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: No window can be opened here (couldn't connect to display") or (
        "error: The window needs Tk" in answer.stderr
    )
    assert not (program / ".venv").exists()


def test_installed_window_is_opened(installed: Path):
    # Whether a window can be opened is the window's own question then.
    answer = run_start(installed, DISPLAY=":987")
    assert answer.stdout == f"ace_gui 2.13.0 {installed / '.venv'}\n"
    assert answer.returncode == 7


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may write everywhere")
def test_folder_that_may_not_be_written(program: Path):
    program.chmod(0o555)
    answer = run_start(program, "setup")
    program.chmod(0o755)
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"error: Cannot use '{program / '.venv'}': Permission denied.")


def test_file_in_the_place_of_the_environment(program: Path):
    (program / ".venv").write_text("mine", encoding="utf-8")
    answer = run_start(program, "setup")
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"error: Cannot use '{program / '.venv'}': Not a directory.")
    assert (program / ".venv").read_text(encoding="utf-8") == "mine"


def test_installed_environment_works_from_a_folder_that_may_not_be_written(installed: Path):
    before = {path: path.stat().st_mtime_ns for path in (installed / ".venv").iterdir()}
    assert run_start(installed, "demo").returncode == 7
    assert {path: path.stat().st_mtime_ns for path in (installed / ".venv").iterdir()} == before


def test_full_disk_is_said_before_anything_is_installed():
    assert set_up.check_disk(10 * 10**9, 9) is None
    assert "3.0 GB free; the installation needs about 9 GB" in set_up.check_disk(3 * 10**9, 9)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["install", "photo"], "no group named 'photo'"),
        (["install"], "install needs the name of a group"),
        (["--torch", "rocm"], "--torch 'rocm' is not known"),
        (["demo", "fast"], "'demo' takes no further words: 'fast'"),
        (["window", "没有.mp3"], "there is no song or folder '没有.mp3'"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_wrong_words_are_refused(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        set_up.parse_args(start.GROUPS, arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_words_after_test_go_to_pytest():
    args = set_up.parse_args(start.GROUPS, ["--torch", "cpu", "test", "tests/test_start.py", "-k", "disk", "--torch"])
    assert args.torch == "cpu"
    assert args.rest == ["tests/test_start.py", "-k", "disk", "--torch"]


def test_songs_dropped_on_the_start_file_reach_the_window(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "我的 歌.mp3").touch()
    (tmp_path / "test").mkdir()
    for argv in (["我的 歌.mp3", "test"], ["window", "我的 歌.mp3", "test"]):
        args = set_up.parse_args(start.GROUPS, argv)
        assert args.action == "window" and args.rest == [str(tmp_path / "我的 歌.mp3"), str(tmp_path / "test")]
    assert set_up.parse_args(start.GROUPS, ["test"]).action == "test"  # the word, though a folder has that name


@pytest.mark.parametrize(
    ("command_line", "songs"),
    [
        (r'C:\Windows\system32\cmd.exe /c ""D:\ace\start.bat" "', []),
        (r'cmd.exe /c ""D:\ace (1)\Start.BAT" D:\songs\A&B.mp3"', [r"D:\songs\A&B.mp3"]),
        (r'cmd.exe /c ""D:\start.bat" D:\song(1).mp3 "D:\two words.mp3" D:\100%^!.mp3"',
         [r"D:\song(1).mp3", r"D:\two words.mp3", r"D:\100%^!.mp3"]),
        (r'cmd.exe /c ""D:\我的 歌\start.bat" "D:\我的 歌\晴天 & 雨天.mp3""', [r"D:\我的 歌\晴天 & 雨天.mp3"]),
        (r'cmd.exe /c ""D:\start.bat" D:\start.bat.mp3"', [r"D:\start.bat.mp3"]),
        (r"C:\Windows\system32\cmd.exe", []),
        ("", []),
    ],
)  # fmt: skip
def test_songs_that_windows_drops_on_the_start_file(command_line, songs):
    assert set_up.dropped_songs(command_line) == songs


def test_a_window_that_is_up_outlives_its_starter_and_one_that_fails_is_heard(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(set_up, "WINDOW_SECONDS", 2.0)
    python, log = Path(sys.executable), tmp_path / "window.log"
    mark = tmp_path / "still there"
    program = f"import pathlib, time; time.sleep(4); pathlib.Path({str(mark)!r}).touch()"
    assert set_up.open_window(python, ["-c", program], log) == 0
    assert set_up.open_window(python, ["-c", "raise SystemExit('没有 Tk')"], log) == 1
    assert "没有 Tk" in capsys.readouterr().err
    deadline = time.monotonic() + 30
    while not mark.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_python_that_was_brought_along_is_filled_and_can_be_moved(program: Path):
    """As start.sh leaves it, and a pack: here a stand-in made of the Python that runs the tests."""
    brought = program / "python"
    subprocess.run([sys.executable, "-m", "venv", "--copies", str(brought)], check=True, capture_output=True)
    if not (brought / "bin" / "python3").exists():
        pytest.skip("Windows lays out an environment otherwise than a Python")
    answer = run_start(program, "demo")
    assert answer.returncode == 7, answer.stdout + answer.stderr
    assert f"demo 2.13.0 {brought}" in answer.stdout and not (program / ".venv").exists()
    moved = program.with_name("moved 移动")
    program.rename(moved)
    second = run_start(moved, "demo", links=moved / "nowhere")
    assert second.stdout == f"demo 2.13.0 {moved / 'python'}\n"
    (moved / "python" / "bin" / "python3").write_text("", encoding="utf-8")
    (moved / "requirements.txt").write_text("# changed\n", encoding="utf-8")
    broken = run_start(moved, "demo")
    assert broken.returncode == 1 and "it is damaged. Rename or move that folder" in broken.stderr
    assert (moved / "python" / "pyvenv.cfg").exists()


def test_every_package_has_an_exact_version_and_checksums_but_pytorch():
    for path in set_up.requirement_files([*start.GROUPS, "test"]):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert lines, path
        assert all(re.match(r"[a-z0-9._-]+==[^ ]+ ", line) and " --hash=sha256:" in line for line in lines), path
        assert not any(line.startswith(("torch==", "nvidia-", "triton==")) for line in lines), path
        assert "://" not in text, path
    (pin,) = [line for line in set_up.TORCH.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert re.fullmatch(r"torch==[\d.]+", pin)


def test_every_input_of_a_lock_is_in_it():
    for source in (HOME / "requirements").glob("*.in"):
        lock = HOME / "requirements.txt" if source.stem == "base" else source.with_suffix(".txt")
        entries = lock.read_text(encoding="utf-8")
        for line in source.read_text(encoding="utf-8").splitlines():
            if not line.startswith(("#", "-r")) and line:
                assert f"\n{re.split('[<=]=', line)[0].replace('_', '-')}==" in entries, (source.name, line)
