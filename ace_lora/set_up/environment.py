"""What `start.py` does once Python is known to be new enough: make `.venv`, fill it, and start what was asked for.

Reads `requirements.txt` and `requirements/GROUP.txt`; writes the environment `.venv` in the program folder, with what
pip said in `.venv/install.log` and what is installed completely in `.venv/ace_setup.json`. What that file names is not
installed again, so a later start needs no network; what is missing from it is installed, so an interrupted set-up goes
on with the same command. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
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
from ace_lora.set_up.pip import LOG, explain_pip_failure, pip_install
from ace_lora.set_up.torch_build import CUDA_12_DRIVER, CUDA_13_DRIVER, choose_torch, read_nvidia_driver

HOME = Path(__file__).resolve().parents[2]
# The tests exercise every group that installs on a machine without a card.
TEST_GROUPS = ("captioning", "japanese", "prodigy", "small_cards", "test")
# More test processes than this gain little and take a gigabyte of memory each.
MOST_TEST_PROCESSES = 4
# What more packages take on the disk at the most.
ADDED_GB = 1
STAMP, LOCK = "ace_setup.json", "ace_setup.lock"
# How long a program may take to end after Ctrl+C before it is told again.
INTERRUPT_SECONDS = 10.0


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


def environment_python(environment: Path) -> Path:
    """The interpreter inside a virtual environment."""
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


def set_up(environment: Path, groups: list[str], torch_request: str) -> Path:
    """Make the environment and install what is missing from it. Returns its interpreter.

    Raises StepFailed with a sentence for people.
    """
    python = environment_python(environment)
    wanted = {path.name: digest(path) for path in requirement_files(groups)}
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
        _fill(environment, stamp or {}, wanted, groups, torch_request, lock)
    print(f"The environment is ready: {environment}", flush=True)
    return python


def _fill(
    environment: Path,
    stamp: dict[str, str],
    wanted: dict[str, str],
    groups: list[str],
    torch_request: str,
    lock: IO[bytes],
) -> None:
    python = environment_python(environment)
    driver = read_nvidia_driver()
    torch = choose_torch(torch_request, driver, platform.system())
    whole = has_pip(python)
    needed_gb = (
        ADDED_GB
        if whole and "torch" in stamp and stamp["torch"] == wanted.get("torch", stamp["torch"])
        else torch.disk_gb
    )
    problem = check_disk(free_bytes(HOME), needed_gb)
    if problem:
        raise StepFailed(problem)
    if driver is not None and driver < CUDA_12_DRIVER and torch.name.startswith("CUDA"):
        print(
            f"The NVIDIA driver ({driver}) is too old for any CUDA build of PyTorch. "
            f"Update it to {CUDA_13_DRIVER} or newer.",
            flush=True,
        )
    if not whole:
        if stamp:
            print(
                f"The environment {environment} does not start any more: its Python was moved or removed.", flush=True
            )
        make_environment(environment, lock)
        stamp = {}

    base = requirement_files([])[0]
    if "torch" not in stamp or stamp["torch"] != wanted.get("torch", stamp["torch"]):
        pin = next((line for line in base.read_text(encoding="utf-8").split() if line.startswith("torch==")), None)
        if pin is None:
            raise StepFailed(
                f"'{base}' names no version of torch; expected the file that came with start.py. Restore it."
            )
        # PyTorch's own indexes have other versions of the packages that it needs; the base requirements follow anyway.
        source = ["--index-url", torch.index] if torch.index else ["--constraint", str(base)]
        # Another build of the same version counts as installed for pip.
        again = ["--force-reinstall"] if "torch" in stamp else []
        stamp.pop(base.name, None)
        write_stamp(environment, stamp)
        pip_install(python, [pin, *source, *again], f"PyTorch ({torch.name})", inherited(lock))
        stamp["torch"] = torch_request
        write_stamp(environment, stamp)
    for path in requirement_files(groups):
        if stamp.get(path.name) != wanted[path.name]:
            # Every file lists its whole closure for the groups, the base included, so pip need not look further.
            extra = [] if path == base else ["--no-deps"]
            pip_install(python, ["-r", str(path), *extra], f"the packages of {path.relative_to(HOME)}", inherited(lock))
            stamp[path.name] = wanted[path.name]
            write_stamp(environment, stamp)
            if path == base:
                compile_analysis(python)


# --- What is started -------------------------------------------------------------------------------------------------


def run(python: Path, *arguments: str) -> int:
    """Run a program of ours in the environment and return its exit status; Ctrl+C reaches it directly."""
    variables = {**os.environ, "PYTHONUTF8": "1", "VIRTUAL_ENV": str(python.parent.parent)}
    for name in ("PYTHONHOME", "PYTHONPATH"):
        variables.pop(name, None)
    process = subprocess.Popen([str(python), *arguments], cwd=HOME, env=variables)
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
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] not in ACTIONS and Path(argv[0]).exists():
        argv = ["window", *argv]  # songs that were dropped on start.bat
    # Whatever follows `test` belongs to pytest, options too.
    own = argv.index("test") + 1 if "test" in argv and not {"install", "window"} & {*argv} else len(argv)
    args = parser.parse_args(argv[:own])
    args.rest += argv[own:]
    if args.torch not in ("auto", "cpu", "cuda") and "://" not in args.torch:
        parser.error(f"--torch '{args.torch}' is not known. Give auto, cpu, cuda or the address of a package index.")
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
    environment = HOME / ".venv"
    groups = {"test": [*TEST_GROUPS], "install": args.rest}.get(args.action, [])
    if args.action == "window" and "requirements.txt" not in (read_stamp(environment) or {}):
        problem = check_window()
        if problem:
            raise StepFailed(problem)
    python = set_up(environment, groups, args.torch)
    processes = min(MOST_TEST_PROCESSES, os.cpu_count() or 1)
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
