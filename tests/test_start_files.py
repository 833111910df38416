"""start.bat, start.sh and start.command: what they do where there is a Python and where there is none.

start.sh runs for real, with stand-ins for the network. start.bat runs under Wine where that is installed; it was never
run on Windows. Wine's cmd knows no %cmdcmdline%, and hands on no status of the stand-ins, which are shell scripts.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]
BATCH = (HOME / "start.bat").read_bytes()
LINES = BATCH.decode("utf-8").replace("\r\n", "\n").split("\n")
POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="a shell script")


# --- start.bat, read --------------------------------------------------------------------------------------------------


def test_batch_file_has_the_line_ends_that_labels_need():
    assert BATCH.count(b"\n") == BATCH.count(b"\r\n") > 100
    assert not BATCH.startswith(b"\xef\xbb\xbf")


def test_every_label_that_is_gone_to_exists_and_every_label_is_gone_to():
    labels = {line[1:].split()[0] for line in LINES if line.startswith(":")}
    used = {
        match for line in LINES for match in re.findall(r"(?:goto|call :) ?(\w+)", line) if not line.startswith("rem")
    }
    fallen_into = {"addresses_chosen", "to_the_folder", "run", "give_up"}
    assert used - labels == set() and labels - used <= fallen_into


def test_no_line_opens_a_block_that_a_parenthesis_in_a_name_would_close():
    for line in LINES:
        code = re.sub(r'"[^"]*"', "", line)
        if not code.startswith(("rem", "echo")):
            outside_for = re.sub(r"\bin \([^()]*\) do", "", code)
            assert "(" not in outside_for and ")" not in outside_for, line


def test_dropped_names_are_never_part_of_a_line_that_is_parsed():
    assert [line for line in LINES if "%*" in line] == ['"%PYTHON%" %PYTHON_OPTION% start.py %*']
    expanded = [line for line in LINES if "cmdcmdline" in line]
    assert all("!cmdcmdline!" in line and line.startswith('set "') for line in expanded) and len(expanded) == 2


def test_chinese_stands_only_in_lines_that_print_it():
    assert all(line.isascii() or line.startswith("echo ") for line in LINES)


@pytest.mark.parametrize("name", ["start.bat", "start.sh"])
def test_both_files_fetch_the_same_uv_and_the_same_python(name):
    text = (HOME / name).read_text(encoding="utf-8")
    assert set(re.findall(r"uv-(\d[\d.]+\d)[-.]", text)) == {"0.13.9"}
    settings = "\n".join(text.split("\n")[:20])
    for address in ("files.pythonhosted", "mirrors.tuna", "mirrors.aliyun", "github.com", "npmmirror", "nju.edu.cn"):
        assert address in settings, address


# --- start.sh, run ----------------------------------------------------------------------------------------------------

PROGRAM = "import os, sys; print('started', sys.argv[1:])\n"


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


class Fresh:
    """A program folder on a computer whose PATH holds what the tests put there."""

    def __init__(self, folder: Path):
        self.home, self.tools = folder / "程序 (1) & more", folder / "tools"
        (self.home / "ace_lora" / "set_up").mkdir(parents=True)
        (self.home / "ace_lora" / "set_up" / "environment.py").touch()
        (self.home / "start.py").write_text(PROGRAM, encoding="utf-8")
        for name in ("start.sh", "start.command"):
            shutil.copy(HOME / name, self.home)
        self.tools.mkdir()
        for name in re.findall(r"\w+", "sh dirname uname rm mkdir mv grep chmod sha256sum unzip cat cp touch"):
            program = shutil.which(name)
            if program:
                (self.tools / name).symlink_to(program)

    def run(self, *arguments: str, name: str = "start.sh") -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(self.home / name), *arguments], env={"PATH": str(self.tools)}, capture_output=True, encoding="utf-8"
        )


@pytest.fixture
def fresh(tmp_path: Path) -> Fresh:
    return Fresh(tmp_path)


@POSIX_ONLY
def test_a_suitable_python_is_used_and_nothing_fetched(fresh):
    write_script(fresh.tools / "python3.12", "exit 1")  # one without Tk, say
    write_script(fresh.tools / "python3.11", f'[ "$1" = -c ] && exit 0\nexec {sys.executable} "$@"')
    for name in ("start.sh", "start.command"):
        answer = fresh.run("a & (b).mp3", "demo", name=name)
        assert answer.stdout == "started ['a & (b).mp3', 'demo']\n", answer.stderr


@POSIX_ONLY
def test_the_python_in_the_folder_comes_first(fresh):
    write_script(fresh.tools / "python3.12", "echo wrong")
    write_script(fresh.home / ".venv" / "bin" / "python", f'exec {sys.executable} "$@"')
    assert fresh.run().stdout == "started []\n"
    write_script(fresh.home / "python" / "bin" / "python3", 'echo "brought $2"')
    assert fresh.run("demo").stdout.splitlines()[-1] == "brought demo"


@POSIX_ONLY
def test_alone_it_asks_to_unpack(fresh):
    (fresh.home / "start.py").unlink()
    answer = fresh.run()
    assert answer.returncode == 2
    assert "Unpack the whole archive first" in answer.stderr and "请先把整个压缩包解压" in answer.stderr


def make_uv(folder: Path, python: Path) -> Path:
    """A wheel with a stand-in for uv that installs a stand-in for Python from the second address only."""
    wheel = folder / "uv.whl"
    uv = (
        '#!/bin/sh\ncase "$UV_PYTHON_INSTALL_MIRROR" in *npmmirror*) ;; *) echo no; exit 1 ;; esac\n'
        'made="$UV_PYTHON_INSTALL_DIR/cpython-3.12.9-linux"\nmkdir -p "$made/bin"\n'
        f'cp {python} "$made/bin/python3"\n'
    )
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("uv-0.13.9.data/scripts/uv", uv)
    return wheel


@POSIX_ONLY
@pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed")
def test_without_a_python_one_is_fetched_from_the_addresses_in_turn(fresh, tmp_path):
    write_script(tmp_path / "brought", f'[ "$1" = -c ] && exit 0\nexec {sys.executable} "$@"')
    wheel = make_uv(tmp_path, tmp_path / "brought")
    # The first address fails, the second has another file, the third the right one.
    write_script(
        fresh.tools / "curl",
        "for word; do target=$before; before=$word; address=$word; done\n"
        'case "$address" in *pythonhosted*) exit 22 ;; *tuna*) echo other >"$target" ;; '
        f'*) cp {wheel} "$target" ;; esac',
    )
    script = (fresh.home / "start.sh").read_text(encoding="utf-8")
    checksum = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (fresh.home / "start.sh").write_text(
        re.sub("UV_SHA256=[0-9a-f]{64}", f"UV_SHA256={checksum}", script), encoding="utf-8"
    )
    answer = fresh.run("demo")
    assert answer.stdout.splitlines()[-1] == "started ['demo']", answer.stdout + answer.stderr
    assert "No suitable Python is installed." in answer.stderr and "正在下载到本文件夹" in answer.stderr
    tried = [line.split("/")[2] for line in answer.stdout.splitlines() if line.startswith("https://")]
    uv_from = ["files.pythonhosted.org", "mirrors.tuna.tsinghua.edu.cn", "mirrors.aliyun.com"]
    assert tried == [*uv_from, "github.com", "registry.npmmirror.com"]
    assert sorted(path.name for path in fresh.home.iterdir() if "python" in path.name) == ["python"]
    assert fresh.run("again").stdout == "started ['again']\n"


@POSIX_ONLY
def test_without_a_network_it_says_so_and_leaves_no_python(fresh):
    write_script(fresh.tools / "curl", "exit 6")
    answer = fresh.run()
    assert answer.returncode == 2
    assert "could not be fetched from any address" in answer.stderr and "所有地址都无法下载" in answer.stderr
    assert not (fresh.home / "python").exists()


@POSIX_ONLY
def test_a_uv_with_another_checksum_is_never_run(fresh, tmp_path):
    write_script(
        fresh.tools / "curl",
        f'for word; do target=$before; before=$word; done\ncp {make_uv(tmp_path, Path("/bin/true"))} "$target"',
    )
    answer = fresh.run()
    assert answer.returncode == 2 and not (fresh.home / "python").exists()
    assert not list((fresh.home / "python.part").glob("uv-*"))


# --- start.bat, under Wine --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wine(tmp_path_factory):
    if shutil.which("wine") is None:
        pytest.skip("Wine is not installed")
    prefix = tmp_path_factory.mktemp("wine")
    variables = {**os.environ, "WINEPREFIX": str(prefix), "WINEDEBUG": "-all"}
    variables.pop("DISPLAY", None)
    subprocess.run(["wine", "cmd", "/c", "ver"], env=variables, capture_output=True, timeout=200)

    def run(home: Path, words: str = "") -> str:
        command = ["wine", "cmd", "/c", f".\\start.bat {words}"]
        answer = subprocess.run(
            command, cwd=home, env=variables, stdin=subprocess.DEVNULL, capture_output=True, timeout=120
        )
        return answer.stdout.decode("utf-8", errors="replace")

    run.system = prefix / "drive_c" / "windows" / "system32"
    return run


@pytest.fixture
def windows(tmp_path: Path) -> Path:
    """A program folder with start.bat."""
    home = tmp_path / "程序 (1)"
    (home / "ace_lora" / "set_up").mkdir(parents=True)
    (home / "ace_lora" / "set_up" / "environment.py").touch()
    (home / "start.py").touch()
    shutil.copy(HOME / "start.bat", home)
    return home


def noted(windows: Path) -> list[str]:
    log = windows / "noted.txt"
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def write_noting(path: Path, more: str = "") -> None:
    """A stand-in for a program: notes how it was called, then does `more` in the shell."""
    note = f"{path.stem} $*"
    write_script(path, f'[ "$1" = -c ] || echo "{note}" >>noted.txt\n{more}')


def test_wine_batch_file_alone(wine, windows):
    (windows / "start.py").unlink()
    assert "This file stands alone. Unpack the whole zip first" in wine(windows, "demo")


@pytest.mark.parametrize("place", [".venv/Scripts/python.exe", "python/python.exe", "py.exe"])
def test_wine_batch_file_with_a_python(wine, windows, place):
    write_noting(windows / place)
    wine(windows, 'demo "song (1).mp3"')
    option = "-3.12 " if place == "py.exe" else ""
    assert noted(windows)[-1] == f'{Path(place).stem} {option}start.py demo "song (1).mp3"'


def test_wine_batch_file_without_a_python(wine, windows):
    for name in ("py.exe", "python.exe"):
        shutil.copy(wine.system / "find.exe", windows / name)  # a program that fails
    write_noting(windows / "curl.exe", "touch python.part/uv.zip")
    # Wine does not wait for its stand-ins, so that each must be done at once: what uv would fetch is there already.
    write_script(windows / "ready" / "uv-0.13.9.data" / "scripts" / "uv.exe", "true")
    write_noting(windows / "ready" / "versions" / "cpython-3.12.9-x" / "python.exe")
    write_noting(windows / "tar.exe", "mv ready/* python.part/")
    said = wine(windows, "setup")
    # Wine's certutil knows no checksums: all addresses are tried, and nothing of what came is run.
    assert "No suitable Python is installed." in said and "could not be fetched from any address" in said
    assert [line.split("https://")[1].split("/")[0] for line in noted(windows)] == [
        "files.pythonhosted.org", "mirrors.tuna.tsinghua.edu.cn", "mirrors.aliyun.com",
    ]  # fmt: skip
    # With the check of the checksum taken out, the rest.
    script = (windows / "start.bat").read_text(encoding="utf-8")
    unchecked = re.sub("(?m)^certutil .*$", "ver >nul", script)
    (windows / "start.bat").write_bytes(unchecked.replace("\n", "\r\n").encode())
    (windows / "noted.txt").unlink()
    wine(windows, "setup")
    assert [line.split()[0] for line in noted(windows)] == ["curl", "tar", "python"]
    assert noted(windows)[-1] == "python start.py setup"
    assert (windows / "python" / "python.exe").exists() and not (windows / "python.part").exists()
