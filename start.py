#!/usr/bin/env python3
"""Set everything up and start: the one command for a fresh machine that has only Python.

    python start.py                     set up, then open the window
    python start.py demo                set up, then run the seven steps on a synthesised song (no model download)
    python start.py test                set up with what the tests need, then run the tests
    python start.py install GROUP       add an optional group: captioning, japanese, prodigy, small_cards, wandb
    python start.py setup               set up only

Makes the environment `.venv` beside this file and installs the pinned versions of `requirements.txt` in it. What is
there is not installed again (a stamp in `.venv` holds what was installed), so a second start needs no network. An
interrupted installation goes on with the same command. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).resolve().parent
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
GROUPS = {
    "captioning": "prompts and lyrics from Qwen2.5-Omni on an NVIDIA card",
    "japanese": "Japanese lyrics (about 250 MB on disk)",
    "prodigy": "the schedule-free Prodigy optimizer",
    "small_cards": "a base model in 8 or 4 bits, 8-bit AdamW",
    "wandb": "logging to Weights & Biases",
}
# The tests exercise every group that installs on a machine without a card.
TEST_GROUPS = ("captioning", "japanese", "prodigy", "small_cards", "test")
TORCH_INDEX = "https://download.pytorch.org/whl/"
# CUDA 13 needs this NVIDIA driver branch; older ones run the CUDA 12.6 build.
# https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/
CUDA_13_DRIVER = 580
DISK_GB = {"cpu": 4, "cuda": 9}

EXIT_DONE, EXIT_FAILED, EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

# What pip prints when it fails, and what that means; the first match is shown.
PIP_FAILURES = (
    (
        ("No space left on device", "Errno 28", "not enough space on the disk", "WinError 112"),
        "The disk is full. Free some space, then run the same command again; what is installed stays.",
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED", "SSLError"),
        "The secure connection to the package index was refused. Check the date and time of this computer and any "
        "proxy or virus scanner that inspects traffic, then run the same command again.",
    ),
    (
        (
            "NewConnectionError",
            "NameResolutionError",
            "Temporary failure in name resolution",
            "getaddrinfo failed",
            "Network is unreachable",
            "ConnectTimeoutError",
            "ReadTimeoutError",
            "Read timed out",
            "ConnectionResetError",
            "ProxyError",
            "Connection refused",
            "Connection broken",
        ),
        "The package index cannot be reached. Connect to the network, then run the same command again. Where the index "
        "is slow or blocked, set a mirror first (the README names how), for example in the variable PIP_INDEX_URL.",
    ),
    (
        ("Permission denied", "Errno 13", "WinError 5", "Access is denied", "WinError 32"),
        "A file of the environment is in use or may not be written. Close other windows of this program, move its "
        "folder to a place that you may write to, then run the same command again.",
    ),
    (
        ("path too long", "Errno 36", "WinError 206", "Filename or extension is too long"),
        "A path is too long for this system. Move the program folder nearer to the root of the drive, for example to "
        "C:\\ace-step, then run the same command again.",
    ),
    (
        ("No matching distribution found", "Could not find a version that satisfies"),
        "The package index has no build of a package for this Python and system. Use Python 3.10 to 3.13 (64-bit); if "
        "an index or mirror is set by hand (--torch, PIP_INDEX_URL), choose another one.",
    ),
)


class SetupFailed(Exception):
    """The environment could not be made or filled; the message says why and what to do."""


@dataclass(frozen=True)
class Torch:
    """Which build of PyTorch to install: a name for people, the index to take it from (None: pip's own), the disk."""

    name: str
    index: str | None
    disk_gb: int


# --- The checks that need no environment -----------------------------------------------------------------------------


def check_python(version: tuple[int, int], pointer_bits: int) -> str | None:
    """Why this Python cannot be used, or None."""
    range_text = f"{'.'.join(map(str, OLDEST_PYTHON))} to {'.'.join(map(str, NEWEST_PYTHON))}"
    found = ".".join(map(str, version))
    if pointer_bits < 64:
        return (
            f"This Python ({found}) is a {pointer_bits}-bit build; PyTorch exists for 64 bits only. "
            f"Install a 64-bit Python {range_text} from https://www.python.org/downloads/, then run this again with it."
        )
    if not OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        age = "old" if version < OLDEST_PYTHON else "new"
        return (
            f"Python {found} is too {age}; the pinned packages exist for Python {range_text}. "
            "Install one of these from https://www.python.org/downloads/, then run this again with it "
            "(on Windows: py -3.12 start.py)."
        )
    return None


def check_disk(free_bytes: int, needed_gb: int) -> str | None:
    """Why the disk is too small for the installation, or None."""
    if free_bytes >= needed_gb * 10**9:
        return None
    return (
        f"The disk of '{HOME}' has {free_bytes / 1e9:.1f} GB free; the installation needs about {needed_gb} GB. "
        "Free some space or move this folder to another drive, then run the same command again."
    )


def read_nvidia_driver() -> int | None:
    """The driver's major version number when an NVIDIA card is present, else None."""
    program = shutil.which("nvidia-smi")
    if program is None and os.name == "nt":
        # Old drivers put it where PATH does not lead.
        candidate = Path(os.environ.get("PROGRAMFILES", "C:/Program Files")) / "NVIDIA Corporation/NVSMI/nvidia-smi.exe"
        program = str(candidate) if candidate.exists() else None
    if program is None:
        return None
    try:
        answer = subprocess.run(
            [program, "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return int(answer.stdout.strip().splitlines()[0].split(".")[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        # The program is there but no card answers it: as good as none.
        return None


def choose_torch(request: str, driver: int | None, system: str) -> Torch:
    """Which PyTorch to install for `--torch auto|cpu|cuda|INDEX-URL` on this `system` (platform.system())."""
    if "://" in request:
        return Torch(f"from {request}", request, DISK_GB["cuda"])
    if request == "cpu":
        # macOS wheels of the package index are CPU and MPS builds already.
        return Torch("CPU build", None if system == "Darwin" else TORCH_INDEX + "cpu", DISK_GB["cpu"])
    if request == "cuda" or driver is not None:
        if driver is not None and driver < CUDA_13_DRIVER:
            return Torch("CUDA 12.6 build", TORCH_INDEX + "cu126", DISK_GB["cuda"])
        # On Linux the package index itself has the CUDA 13 build, on Windows only a CPU build.
        index = TORCH_INDEX + "cu130" if system == "Windows" else None
        return Torch("CUDA 13 build", index, DISK_GB["cuda"])
    return Torch("the package index's build", None, DISK_GB["cpu"])


# --- The environment -------------------------------------------------------------------------------------------------


def environment_python(environment: Path) -> Path:
    """The interpreter inside a virtual environment."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def runs(python: Path) -> bool:
    """Whether this interpreter starts and has pip: an interrupted or moved environment does not."""
    try:
        return subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def make_environment(environment: Path) -> None:
    """Make the virtual environment, or mend one whose making was interrupted or whose folder was moved."""
    if environment.exists() and not (environment / "pyvenv.cfg").exists() and any(environment.iterdir()):
        raise SetupFailed(
            f"'{environment}' exists but is no Python environment. Rename or move it, then run the same command again."
        )
    print(f"Making the environment {environment} …", flush=True)
    # --upgrade-deps is not used: it needs the network for nothing that matters here.
    answer = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(environment)], capture_output=True, text=True, errors="replace"
    )
    if answer.returncode != 0:
        output = (answer.stdout + answer.stderr).strip()
        if "ensurepip" in output:
            raise SetupFailed(
                "This Python cannot make virtual environments: its part 'ensurepip' is missing. On Debian and Ubuntu "
                "install it with: sudo apt install python3-venv. Then run the same command again."
            )
        raise SetupFailed(f"The environment '{environment}' could not be made: {explain_pip_failure(output)}")


def explain_pip_failure(output: str) -> str:
    """A sentence for people about a failed pip or venv run."""
    for signs, sentence in PIP_FAILURES:
        if any(sign.lower() in output.lower() for sign in signs):
            return sentence
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "it said nothing")
    return f"The last words were: {last.strip()}"


def requirement_files(groups: list[str]) -> list[Path]:
    """The base requirements and those of the groups."""
    return [HOME / "requirements.txt", *(HOME / "requirements" / f"{group}.txt" for group in groups)]


def digest(path: Path) -> str:
    """What identifies the wanted state of a requirements file."""
    # Line ends are left out: git may check the file out with either.
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()[:16]


def read_stamp(environment: Path) -> dict[str, str]:
    """What was installed completely: file name → digest, and "torch" → where it came from."""
    try:
        stamp = json.loads((environment / "ace_setup.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(environment: Path, stamp: dict[str, str]) -> None:
    """Record what is installed; replaced in one go, so that an interruption leaves the old record."""
    temporary = environment / "ace_setup.json.tmp"
    temporary.write_text(json.dumps(stamp, indent=2), encoding="utf-8")
    os.replace(temporary, environment / "ace_setup.json")


def pip_install(python: Path, arguments: list[str], what: str) -> None:
    """Run pip, show what it says as it comes, keep it in `install.log`; raise SetupFailed with a sentence."""
    print(f"Installing {what} …", flush=True)
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *arguments]
    log = python.parent.parent / "install.log"
    output: list[str] = []
    environment = {**os.environ, "PYTHONUTF8": "1"}
    shown = ("Collecting", "Downloading", "Building", "Installing", "Successfully", "ERROR")
    with log.open("a", encoding="utf-8") as written:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
        try:
            for line in process.stdout:
                output.append(line)
                written.write(line)
                if line.strip().startswith(shown):
                    print("  " + line.strip()[:160], flush=True)
        finally:
            process.wait()
    if process.returncode != 0:
        text = "".join(output)
        # With no network, pip ends on "no matching distribution"; the cause stands in its warnings above.
        raise SetupFailed(f"{what[0].upper()}{what[1:]} could not be installed. {explain_pip_failure(text)} ({log})")


def set_up(environment: Path, groups: list[str], torch_request: str) -> Path:
    """Make the environment and install what is missing from it. Returns its interpreter.

    Raises SetupFailed with a sentence for people.
    """
    python = environment_python(environment)
    stamp = read_stamp(environment)
    wanted = {path.name: digest(path) for path in requirement_files(groups)}
    torch_changes = torch_request != "auto" and stamp.get("torch") != torch_request
    if all(stamp.get(name) == value for name, value in wanted.items()) and not torch_changes:
        if python.exists() and runs_quickly(python):
            return python
        print(f"The environment {environment} does not start any more (moved, or its Python was removed).", flush=True)
        stamp = {}

    torch = choose_torch(torch_request, read_nvidia_driver(), platform.system())
    problem = check_disk(shutil.disk_usage(HOME).free, torch.disk_gb if not stamp else 1)
    if problem:
        raise SetupFailed(problem)
    if not (python.exists() and runs(python)):
        make_environment(environment)
        stamp = {}
        if not runs(python):
            raise SetupFailed(
                f"The environment '{environment}' was made but does not start. Delete it, then run this again."
            )

    if "torch" not in stamp or torch_changes:
        pin = next(line for line in requirement_files([])[0].read_text(encoding="utf-8").split() if "torch==" in line)
        index = ["--index-url", torch.index] if torch.index else []
        # Another build of the same version counts as installed for pip.
        again = ["--force-reinstall", "--no-deps"] if torch_changes and "torch" in stamp else []
        pip_install(python, [pin, *index, *again], f"PyTorch ({torch.name})")
        stamp["torch"] = torch_request
        write_stamp(environment, stamp)
    for path in requirement_files(groups):
        if stamp.get(path.name) != wanted[path.name]:
            # Every file lists its whole closure for the groups, the base included, so pip need not look further.
            extra = [] if path.name == "requirements.txt" else ["--no-deps"]
            pip_install(python, ["-r", str(path), *extra], f"the packages of {path.relative_to(HOME)}")
            stamp[path.name] = wanted[path.name]
            write_stamp(environment, stamp)
    print(f"The environment is ready: {environment}", flush=True)
    return python


def runs_quickly(python: Path) -> bool:
    """Whether this interpreter starts at all (half a second less than asking pip, at every start)."""
    try:
        return subprocess.run([str(python), "-c", ""], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


# --- What is started -------------------------------------------------------------------------------------------------


def run(python: Path, arguments: list[str]) -> int:
    """Run a program of ours in the environment and pass on its exit status; Ctrl+C reaches it directly."""
    environment = {**os.environ, "PYTHONUTF8": "1", "VIRTUAL_ENV": str(python.parent.parent)}
    with subprocess.Popen([str(python), *arguments], cwd=HOME, env=environment) as process:
        while True:
            try:
                status = process.wait()
                break
            except KeyboardInterrupt:
                # The child got the same signal and is ending; its status is wanted, not ours.
                continue
    return EXIT_INTERRUPTED if status in (-signal.SIGINT, EXIT_INTERRUPTED) else abs(status)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Set everything up in '.venv' beside this file, then open the window.",
        epilog="Groups: " + "; ".join(f"{name} – {text}" for name, text in GROUPS.items()),
    )
    parser.add_argument(
        "action",
        nargs="?",
        default="window",
        choices=["window", "demo", "test", "install", "setup"],
        help="window (default): open the window; demo: the seven steps on a synthesised song; test: run the tests; "
        "install: add optional groups; setup: nothing further",
    )
    parser.add_argument("rest", nargs="*", help="install: the groups; test: arguments for pytest")
    parser.add_argument(
        "--torch",
        default="auto",
        metavar="auto|cpu|cuda|INDEX-URL",
        help="which PyTorch to install; auto: the CUDA build when an NVIDIA card is present, else what pip's package "
        "index gives (default: auto)",
    )
    argv = sys.argv[1:] if argv is None else argv
    # Whatever follows `test` belongs to pytest, options too.
    own = argv.index("test") + 1 if "test" in argv else len(argv)
    args = parser.parse_args(argv[:own])
    args.rest += argv[own:]
    if args.torch not in ("auto", "cpu", "cuda") and "://" not in args.torch:
        parser.error(f"--torch '{args.torch}' is not known. Give auto, cpu, cuda or the address of a package index.")
    if args.action == "install":
        wrong = [group for group in args.rest if group not in (*GROUPS, "test")]
        if wrong or not args.rest:
            named = f"no group named '{wrong[0]}'" if wrong else "install needs the name of a group"
            parser.error(f"{named}. Groups: {', '.join(GROUPS)}.")
    elif args.rest and args.action != "test":
        parser.error(f"'{args.action}' takes no further words: '{args.rest[0]}'. See --help.")
    return args


def main(argv: list[str] | None = None) -> int:
    """Set up, then start what was asked for. Returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A Windows console may use a code page that cannot print the user's folder names.
            stream.reconfigure(encoding="utf-8", errors="replace")
    args = parse_args(argv)
    problem = check_python(sys.version_info[:2], struct.calcsize("P") * 8)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    groups = {"test": list(TEST_GROUPS), "install": args.rest}.get(args.action, [])
    try:
        python = set_up(HOME / ".venv", groups, args.torch)
        if args.action == "test":
            return run(python, ["-m", "pytest", *args.rest])
        if args.action == "demo":
            return run(python, [str(HOME / "demo.py")])
        if args.action == "window":
            return run(python, [str(HOME / "ace_gui.py")])
    except SetupFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        print(
            f"error: '{error.filename}' cannot be used: {error.strerror}. Check the disk and the permissions of this "
            "folder, then run the same command again.",
            file=sys.stderr,
        )
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on; what is installed stays.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_DONE


if __name__ == "__main__":
    raise SystemExit(main())
