"""What `start.py` does once Python is known to be new enough: make `.venv`, fill it, and start what was asked for.

Reads `requirements.txt`, `requirements/GROUP.txt` and `requirements/torch.txt`; writes the environment `.venv` in the
program folder, with what pip said in `.venv/install.log` and what is installed completely in `.venv/ace_setup.json`.
What that file names is not installed again, so a later start needs no network; what is missing from it is installed, so
an interrupted set-up goes on with the same command. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ace_lora.commands import EXIT_INTERRUPTED, StepFailed, run_script
from ace_lora.files import free_bytes, write_json
from ace_lora.set_up.pip import LOG, PACKAGES_HELP, TORCH_HELP, explain_pip_failure, pip_install
from ace_lora.set_up.torch_build import Torch, choose_torch, read_nvidia_card, why_no_card

HOME = Path(__file__).resolve().parents[2]
TORCH = HOME / "requirements" / "torch.txt"
# The tests exercise every group that installs on a machine without a card.
TEST_GROUPS = ("captioning", "japanese", "prodigy", "small_cards", "test")
# More test processes than this gain little and take a gigabyte of memory each.
MOST_TEST_PROCESSES = 4
# What more packages take on the disk at the most.
ADDED_GB = 1
# The folder of a Python that was brought along: packages go into it, and the whole program can be moved.
BROUGHT = "python"
STAMP, LOCK = "ace_setup.json", "ace_setup.lock"
# How long a program may take to end after Ctrl+C before it is told again.
INTERRUPT_SECONDS = 10.0
# A window that is still there after this long is up.
WINDOW_SECONDS, WINDOW_LOG = 5.0, "window.log"
# start.bat was double-clicked, or songs were dropped on it: the whole command line, which only Windows knows to read.
COMMAND_LINE = "ACE_COMMAND_LINE"


# --- The checks that need no environment -----------------------------------------------------------------------------


def check_disk(free_bytes: int, needed_gb: int) -> str | None:
    """Why the disk is too small for the installation, or None."""
    if free_bytes >= needed_gb * 10**9:
        return None
    return (
        f"The disk of '{HOME}' has {free_bytes / 1e9:.1f} GB free; the installation needs about {needed_gb} GB. "
        "Free some space or move this folder to another drive, then run the same command again."
    )


def check_window() -> str | None:
    """Why this Python cannot open a window here, or None. Asked before gigabytes are installed for one."""
    # On Windows and macOS a root window would flash up; there the interpreter alone is enough to ask.
    ask = "Tk().destroy()" if sys.platform.startswith("linux") else "Tcl()"
    answer = subprocess.run([sys.executable, "-c", f"import tkinter; tkinter.{ask}"], capture_output=True, text=True)
    if answer.returncode == 0:
        return None
    if "No module named" in answer.stderr:
        return (
            f"The window needs Tk, which the Python '{sys.executable}' does not have. Install it (Debian and Ubuntu: "
            "sudo apt install python3-tk; Fedora: sudo dnf install python3-tkinter; Windows: run Python's installer "
            "again and tick 'tcl/tk'), then run the same command again. Without a window: python start.py setup"
        )
    last = (answer.stderr.strip().splitlines() or ["it said nothing"])[-1].removeprefix("_tkinter.TclError: ")
    return (
        f"No window can be opened here ({last}). Run this in a graphical session. "
        "Without a window, 'python start.py setup' installs everything for the scripts and 'python start.py demo' "
        "shows them."
    )


# --- The environment -------------------------------------------------------------------------------------------------


def environment_folder() -> Path:
    """Where everything is installed: the Python that was brought along (start.bat, a pack), else `.venv`."""
    brought = HOME / BROUGHT
    has_own = environment_python(brought).is_file() and "requirements.txt" not in (read_stamp(HOME / ".venv") or {})
    return brought if has_own else HOME / ".venv"


def environment_python(environment: Path) -> Path:
    """The interpreter inside a virtual environment, or in the folder of a Python that stands for itself."""
    if environment.name == BROUGHT:
        return environment / ("python.exe" if os.name == "nt" else "bin/python3")
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def starts(python: Path, *arguments: str) -> bool:
    """Whether this interpreter runs these arguments (none: an empty program) with status 0."""
    try:
        command = [str(python), *(arguments or ("-c", ""))]
        return python.exists() and subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def has_pip(python: Path) -> bool:
    """Whether the environment is whole: one whose making was interrupted has no pip yet."""
    return starts(python, "-I", "-m", "pip", "--version")


def requirement_files(groups: list[str]) -> list[Path]:
    """The base requirements and those of the groups."""
    return [HOME / "requirements.txt", *(HOME / "requirements" / f"{group}.txt" for group in groups)]


def digest(path: Path) -> str:
    """What identifies the wanted state of a requirements file."""
    # Line ends are left out: git may check the file out with either.
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()[:16]


def read_stamp(environment: Path) -> dict[str, str] | None:
    """What was installed completely: file name → digest, "torch" → where it came from. None: not made by start.py."""
    try:
        stamp = json.loads((environment / STAMP).read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError:
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(environment: Path, stamp: dict[str, str]) -> None:
    """Record what is installed; replaced in one go, so that an interruption leaves the old record."""
    write_json(environment / STAMP, stamp)


@contextlib.contextmanager
def one_at_a_time(environment: Path) -> Iterator[IO[bytes]]:
    """Wait until no other start.py works on this environment. Yields the lock's file, for children to inherit.

    The system gives the lock back when its last holder ends, however it ends. pip inherits it: when start.py is killed
    and started again, the new one waits for the end of the pip that the old one left behind.
    """
    told = False
    with (environment / LOCK).open("ab") as file:
        while not _lock(file):
            if not told:
                print("Another start.py is setting this folder up. Waiting for it to end …", flush=True)
                told = True
            time.sleep(0.5)
        yield file


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> bool:
        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def inherited(file: IO[bytes]) -> dict:
        """The keywords of Popen that hand the lock to a child: none, Windows locks belong to one process."""
        return {}
else:
    import fcntl

    def _lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # Some network drives have no locks; there, nobody is kept waiting.
            return True
        return True

    def inherited(file: IO[bytes]) -> dict:
        """The keywords of Popen that hand the lock to a child."""
        return {"pass_fds": (file.fileno(),)}


def make_environment(environment: Path, lock: IO[bytes]) -> None:
    """Make the virtual environment in a folder that holds nothing but what an earlier start.py left there."""
    print(f"Making the environment {environment} …", flush=True)
    for entry in environment.iterdir():
        if entry.name not in (STAMP, LOCK, LOG):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    # The folder is marked as ours before anything is in it, so that a half-made environment is known as such.
    write_stamp(environment, {})
    # The Python that an environment was made with, when this runs inside one: the old .venv itself, for example.
    base = getattr(sys, "_base_executable", None) or sys.executable
    # pip is put in by a second command of ours: `venv` would start it as a grandchild that outlives an interruption.
    for command in (
        [base, "-m", "venv", "--without-pip", str(environment)],
        [str(environment_python(environment)), "-I", "-m", "ensurepip", "--upgrade", "--default-pip"],
    ):
        try:
            answer = subprocess.run(command, capture_output=True, text=True, errors="replace", **inherited(lock))
        except OSError as error:
            raise StepFailed(f"The environment '{environment}' could not be made: {error}.") from error
        if answer.returncode != 0:
            output = (answer.stdout + answer.stderr).strip()
            if "ensurepip" in output and ("No module named" in output or "not available" in output):
                raise StepFailed(
                    "This Python cannot make virtual environments: its part 'ensurepip' is missing. On Debian and "
                    "Ubuntu install it with: sudo apt install python3-venv. Then run the same command again."
                )
            raise StepFailed(f"The environment '{environment}' could not be made. {explain_pip_failure(output)}")


def drop_half_installed(environment: Path) -> None:
    """Remove the metadata of packages whose installation was cut off, or pip would take them for installed.

    pip writes RECORD last; a folder without it that already holds METADATA belongs to files that are not all there.
    """
    for metadata in environment.glob("[Ll]ib/**/site-packages/*.dist-info"):
        if not (metadata / "RECORD").exists():
            shutil.rmtree(metadata)


def compile_analysis(python: Path) -> None:
    """Let librosa compile its loops now: it takes half a minute, once, and else the first prompts would wait for it."""
    if not (HOME / "ace_lora" / "audio" / "analysis.py").exists():
        return
    print("Compiling the signal analysis …", flush=True)
    # Five seconds of two clicks per second: enough for every loop to be needed. A failure here is told by that step.
    clicks = "clicks = numpy.zeros((1, 110250), 'float32'); clicks[0, ::11025] = 1"
    program = f"import numpy; from ace_lora.audio.analysis import measure_bpm; {clicks}; measure_bpm(clicks, 22050)"
    subprocess.run([str(python), "-c", program], cwd=HOME, capture_output=True)


def set_up(environment: Path, groups: list[str], torch_request: str, torch_index: str | None = None) -> Path:
    """Make the environment and install what is missing from it. Returns its interpreter.

    Raises StepFailed with a sentence for people.
    """
    python = environment_python(environment)
    wanted = {path.name: digest(path) for path in (*requirement_files(groups), TORCH)}
    if torch_request != "auto":
        wanted["torch"] = torch_request

    def complete(stamp: dict[str, str] | None) -> bool:
        return stamp is not None and all(stamp.get(name) == value for name, value in wanted.items())

    # Nothing is written on this path: the folder may be read-only by now.
    if complete(read_stamp(environment)) and starts(python):
        return python
    if environment.exists() and read_stamp(environment) is None:
        foreign = [entry.name for entry in environment.iterdir() if entry.name != LOCK]
        if foreign and not has_pip(python):
            raise StepFailed(
                f"'{environment}' was not made by start.py and is no Python environment with pip that starts. "
                "Rename or move it, then run the same command again."
            )
        if foreign:
            print(f"Using the environment that is there: {environment}", flush=True)
    environment.mkdir(exist_ok=True)
    with one_at_a_time(environment) as lock:
        stamp = read_stamp(environment)
        if complete(stamp) and starts(python):
            return python
        if stamp is not None:
            drop_half_installed(environment)
        card = read_nvidia_card()
        torch = choose_torch(torch_request, card, platform.system(), torch_index)
        if torch_request in ("auto", "cuda"):
            unusable = why_no_card(card)
            if unusable:
                print(unusable, flush=True)
        _fill(environment, stamp or {}, wanted, groups, torch, torch_request, lock)
    print(f"The environment is ready: {environment}", flush=True)
    return python


def _fill(
    environment: Path,
    stamp: dict[str, str],
    wanted: dict[str, str],
    groups: list[str],
    torch: Torch,
    torch_request: str,
    lock: IO[bytes],
) -> None:
    python = environment_python(environment)
    whole = has_pip(python)
    same_build = "torch" in stamp and stamp["torch"] == wanted.get("torch", stamp["torch"])
    problem = check_disk(free_bytes(HOME), ADDED_GB if whole and same_build else torch.disk_gb)
    if problem:
        raise StepFailed(problem)
    if not whole and environment.name == BROUGHT:
        raise StepFailed(
            f"The Python in '{environment}' does not start or has no pip: it is damaged. Rename or move that folder, "
            "then start the program again; it fetches another one. A pack: unpack it again."
        )
    if not whole:
        if stamp:
            print(
                f"The environment {environment} does not start any more: its Python was moved or removed.", flush=True
            )
        make_environment(environment, lock)
        stamp = {}

    for path in requirement_files(groups):
        if stamp.get(path.name) != wanted[path.name]:
            # Every file lists its whole closure, the groups' without the base, so pip need not look further.
            command = ["--require-hashes", "--no-deps", "-r", str(path)]
            pip_install(python, command, f"the packages of {path.relative_to(HOME)}", inherited(lock), PACKAGES_HELP)
            stamp[path.name] = wanted[path.name]
            write_stamp(environment, stamp)
            if path.parent == HOME:
                compile_analysis(python)
    if stamp.get(TORCH.name) == wanted[TORCH.name] and same_build:
        return
    if "torch" in stamp and not same_build:
        # Another build of the same version counts as installed for pip.
        del stamp["torch"]
        write_stamp(environment, stamp)
        _install_torch(python, torch, ["--force-reinstall", "--no-deps"], lock)
    # The packages that PyTorch needs are there by now, checked, so that its index adds nothing but its own.
    _install_torch(python, torch, [], lock)
    stamp |= {"torch": torch_request, TORCH.name: wanted[TORCH.name]}
    write_stamp(environment, stamp)


def _install_torch(python: Path, torch: Torch, options: list[str], lock: IO[bytes]) -> None:
    what = f"PyTorch ({torch.name})"
    *mirrors, last = torch.indexes or (None,)
    for index in mirrors:
        try:
            command = ["-r", str(TORCH), "--index-url", str(index), *options]
            return pip_install(python, command, f"{what} from {index}", inherited(lock), TORCH_HELP)
        except StepFailed as error:
            print(f"{error}\nTrying the next address.", flush=True)
    command = ["-r", str(TORCH), *(["--index-url", last] if last else []), *options]
    pip_install(python, command, what, inherited(lock), TORCH_HELP if last else PACKAGES_HELP)


# --- What is started -------------------------------------------------------------------------------------------------


def _variables(python: Path) -> dict[str, str]:
    """What a program of ours is started with: nothing of the user's that would bring in other packages."""
    variables = {**os.environ, "PYTHONUTF8": "1", "VIRTUAL_ENV": str(python.parent.parent)}
    if HOME / BROUGHT in python.parents:
        del variables["VIRTUAL_ENV"]
    return {name: value for name, value in variables.items() if name not in ("PYTHONHOME", "PYTHONPATH", COMMAND_LINE)}


def open_window(python: Path, arguments: list[str], log: Path) -> int:
    """Start the window as a program of its own, which no console takes down with it when that is closed.

    Returns 0 when it is up after some seconds; else its exit status, after showing what it said.
    """
    windowed = python.with_name("pythonw.exe")
    program = windowed if windowed.exists() else python
    with log.open("wb") as said:
        process = subprocess.Popen(
            [str(program), *arguments],
            cwd=HOME,
            env=_variables(python),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            creationflags=getattr(subprocess, "DETACHED_PROCESS", 0)
            | getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    try:
        status = process.wait(WINDOW_SECONDS)
    except subprocess.TimeoutExpired:
        return 0
    if status:
        print(log.read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
    return status


def run(python: Path, *arguments: str) -> int:
    """Run a program of ours in the environment and return its exit status; Ctrl+C reaches it directly."""
    process = subprocess.Popen([str(python), *arguments], cwd=HOME, env=_variables(python))
    # A request to end, unlike Ctrl+C, reaches only this process.
    signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    patience: float | None = None
    while True:
        try:
            status = process.wait(patience)
            break
        except KeyboardInterrupt:
            # Pressed at a terminal, the child got it too and is ending; at the second time it is to end at once.
            if patience is not None:
                process.terminate()
            patience = INTERRUPT_SECONDS
        except subprocess.TimeoutExpired:
            process.terminate()
            patience = None
    return EXIT_INTERRUPTED if status in (-signal.SIGINT, -signal.SIGTERM) else abs(status)


def dropped_songs(command_line: str) -> list[str]:
    """The files that were dropped on start.bat, from the command line of the console that Windows made for it.

    Windows quotes only names with spaces, so that the console itself would cut `A&B.mp3` at the &:
    `cmd.exe /c ""C:\\x\\start.bat" C:\\songs\\A&B.mp3 "C:\\songs\\two words.mp3""`.
    """
    own_name = re.search(r'start\.bat"|start\.bat(?=\s|$)', command_line, re.IGNORECASE)
    rest = command_line[own_name.end() :] if own_name else ""
    if rest.count('"') % 2:
        rest = rest[::-1].replace('"', "", 1)[::-1]
    return [quoted or plain for quoted, plain in re.findall(r'"([^"]+)"|([^\s"]+)', rest)]


ACTIONS = ("window", "demo", "test", "install", "setup")


def parse_args(groups: dict[str, str], argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; `groups` are the optional groups and what each is for."""
    parser = argparse.ArgumentParser(
        prog="start.py",
        description="Set everything up in '.venv' beside this file, then open the window.",
        epilog="Groups: " + "; ".join(f"{name} – {text}" for name, text in groups.items()),
    )
    parser.add_argument(
        "action",
        nargs="?",
        default="window",
        choices=ACTIONS,
        help="window (default): open the window; demo: the seven steps on a synthesised song; test: run the tests; "
        "install: add optional groups; setup: nothing further",
    )
    parser.add_argument(
        "rest",
        nargs="*",
        help="window: songs to add; install: the groups; test: arguments for pytest (default: all tests)",
    )
    parser.add_argument(
        "--torch",
        default="auto",
        metavar="auto|cpu|cuda|INDEX-URL",
        help="which PyTorch to install; auto: the CUDA build when an NVIDIA card is present, else what pip's package "
        "index gives (default: auto)",
    )
    parser.add_argument(
        "--torch_index",
        metavar="URL",
        help="a copy of PyTorch's own index (the folder that holds cpu, cu126, …), tried before the official one "
        "(default: known copies where PIP_INDEX_URL is a mirror, else none)",
    )
    if argv is None:
        argv = sys.argv[1:] or dropped_songs(os.environ.get(COMMAND_LINE, ""))
    if argv and argv[0] not in ACTIONS and Path(argv[0]).exists():
        argv = ["window", *argv]  # songs that were dropped on start.bat
    # Whatever follows `test` belongs to pytest, options too.
    own = argv.index("test") + 1 if "test" in argv and not {"install", "window"} & {*argv} else len(argv)
    args = parser.parse_args(argv[:own])
    args.rest += argv[own:]
    if args.torch not in ("auto", "cpu", "cuda") and "://" not in args.torch:
        parser.error(f"--torch '{args.torch}' is not known. Give auto, cpu, cuda or the address of a package index.")
    if args.torch_index is not None and "://" not in args.torch_index:
        parser.error(f"--torch_index '{args.torch_index}' is no address. Give one that begins with https://.")
    if args.action == "install":
        wrong = [group for group in args.rest if group not in (*groups, "test")]
        if wrong or not args.rest:
            named = f"no group named '{wrong[0]}'" if wrong else "install needs the name of a group"
            parser.error(f"{named}. Groups: {', '.join(groups)}.")
    elif args.action == "window":
        missing = [song for song in args.rest if not Path(song).exists()]
        if missing:
            parser.error(f"there is no song or folder '{missing[0]}'. Check the name, or start without songs.")
        args.rest = [str(Path(song).absolute()) for song in args.rest]
    elif args.rest and args.action != "test":
        parser.error(f"'{args.action}' takes no further words: '{args.rest[0]}'. See --help.")
    return args


def act(args: argparse.Namespace) -> None:
    """Set up, then start what was asked for. Ends with the exit status of what was started."""
    environment = environment_folder()
    groups = {"test": [*TEST_GROUPS], "install": args.rest}.get(args.action, [])
    if args.action == "window" and "requirements.txt" not in (read_stamp(environment) or {}):
        problem = check_window()
        if problem:
            raise StepFailed(problem)
    python = set_up(environment, groups, args.torch, args.torch_index)
    processes = min(MOST_TEST_PROCESSES, os.cpu_count() or 1)
    if args.action == "window" and os.name == "nt":
        raise SystemExit(open_window(python, [str(HOME / "ace_gui.py"), *args.rest], environment / WINDOW_LOG))
    commands = {
        "window": [str(HOME / "ace_gui.py"), *args.rest],
        "demo": [str(HOME / "demo.py")],
        "test": ["-m", "pytest", *(args.rest or ["-n", str(processes), "--dist", "loadfile"])],
    }
    if args.action in commands:
        raise SystemExit(run(python, *commands[args.action]))


def main(groups: dict[str, str]) -> int:
    """Read the command line and do it. Returns the exit status."""
    return run_script(act, parse_args(groups))
