"""pip, run for people: its progress in few calm lines, its failures in a sentence. Standard library only."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ace_lora.commands import StepFailed

LOG, DOWNLOADS = "install.log", "downloads"
# A sign of life while pip is silent: every second on a terminal, every minute in a log.
QUIET_SECONDS = {True: 1, False: 60}

# What pip prints when it fails, and what that means; the first match is shown.
PIP_FAILURES = (
    (
        ("No space left on device", "Errno 28", "quota exceeded", "not enough space on the disk", "WinError 112"),
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
        "The package index cannot be reached. Connect to the network, then run the same command again. {help}",
    ),
    (
        ("Permission denied", "Errno 13", "Read-only file system", "WinError 5", "Access is denied", "WinError 32"),
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
        "The package index has no build of a package for this Python and system. Use Python 3.10 to 3.14 (64-bit); if "
        "an index or mirror is set by hand (--torch, --torch_index, PIP_INDEX_URL), choose another one.",
    ),
    (
        ("Microsoft Visual C++", "error: command 'gcc' failed", "Failed building wheel", "failed-wheel-build"),
        "A package has no ready build for this Python and system and could not be built here. Install Python 3.12 "
        "(64-bit), remove the folder '.venv' and run the same command with that Python.",
    ),
    (
        ("DO NOT MATCH THE HASHES", "has a wrong size", "Bad magic number for file", "File is not a zip file"),
        "A download arrived damaged, or is not the file that was published. Run the same command again; if that does "
        "not help, set another mirror (the README names how).",
    ),
)


# What helps where an index cannot be reached: PyTorch's own is another than that of all other packages.
PACKAGES_HELP = (
    "Where the index is slow or blocked, set a mirror first (the README names how), for example in the variable "
    "PIP_INDEX_URL."
)
TORCH_HELP = (
    "PyTorch comes from an index of its own, which PIP_INDEX_URL does not change. Where that is slow or blocked, name "
    "a copy of it (the README names some): python start.py --torch_index https://…"
)


def explain_pip_failure(output: str, help: str = PACKAGES_HELP) -> str:
    """A sentence for people about a failed pip or venv run; `help` is what to do when the index is out of reach."""
    for signs, sentence in PIP_FAILURES:
        if any(sign.lower() in output.lower() for sign in signs):
            return sentence.format(help=help)
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "it said nothing")
    return f"The last words were: {last.strip()}"


class Progress:
    """Turns what pip says into few calm lines: each package of some size once, and a sign of life in between."""

    def __init__(self, downloads: Path):
        self._downloads = downloads
        self._started = self._spoke = time.monotonic()
        self._terminal = sys.stdout.isatty()
        self._doing = "looking for the packages"
        self._seen: set[str] = set()

    def line(self, text: str) -> None:
        """Take one line of pip's output."""
        text = text.strip()
        package = re.match(r"(?:Downloading|Using cached|Processing) (.+\.whl)(?: \(([\d.]+) (\w+)\))?", text)
        if package:
            # Only what is measured in megabytes is worth a line; a package in a local folder comes without its size.
            path, number, unit = package.groups()
            name, version = path.replace("\\", "/").rsplit("/", 1)[-1].replace("%2B", "+").split("-")[:2]
            self._doing = f"{name} {version}"
            if name not in self._seen and unit in (None, "MB", "GB"):
                self._say(f"  {name} {version}" + (f" ({number} {unit})" if unit else ""))
            self._seen.add(name)
        elif text.startswith("Installing collected packages:"):
            count = text.count(",") + 1
            self._doing = f"unpacking {count} packages" if count > 1 else "unpacking"
            self._say(f"  {self._doing} …")

    def tick(self) -> None:
        """Call about every second: shows that something is going on when pip has long said nothing."""
        if time.monotonic() - self._spoke < QUIET_SECONDS[self._terminal]:
            return
        elapsed = int(time.monotonic() - self._started)
        megabytes = sum(path.stat().st_size for path in _files(self._downloads)) / 1e6
        arrived = f", {megabytes:.0f} MB so far" if megabytes >= 1 and not self._doing.startswith("unpacking") else ""
        words = f"  {self._doing}{arrived}, {elapsed // 60}:{elapsed % 60:02d}"
        if self._terminal:
            print(f"\r{words:<76}", end="", flush=True)
        else:
            print(words, flush=True)
            self._spoke = time.monotonic()

    def end(self) -> None:
        """Clear the line that was written over and over."""
        if self._terminal:
            print(f"\r{'':76}\r", end="", flush=True)

    def _say(self, words: str) -> None:
        self.end()
        print(words, flush=True)
        self._spoke = time.monotonic()


def _files(folder: Path) -> Iterator[Path]:
    # pip removes files while they are being counted.
    with contextlib.suppress(OSError):
        yield from (path for path in folder.rglob("*") if path.is_file())


def pip_install(python: Path, arguments: list[str], what: str, inherited: dict, help: str) -> None:
    """Run pip, show its progress, keep what it says in `install.log`. Raises StepFailed with a sentence.

    `inherited` are keywords for Popen: what hands pip the lock of its environment.
    """
    print(f"Installing {what} …", flush=True)
    environment = python.parent.parent if python.parent.name in ("bin", "Scripts") else python.parent
    downloads = environment / DOWNLOADS
    shutil.rmtree(downloads, ignore_errors=True)
    downloads.mkdir()
    # A Python that was brought along says that a system looks after it; this is that system.
    # Isolated from the user's PYTHONPATH, whose packages would count as installed; beside the environment because the
    # system's temporary folder may lie on a small disk.
    command = [str(python), "-I", "-X", "utf8", "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    variables = {
        **os.environ,
        "PIP_USER": "0",
        "PIP_BREAK_SYSTEM_PACKAGES": "1",
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(downloads)),
    }
    output: list[str] = []
    progress = Progress(downloads)
    with (environment / LOG).open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=variables,
            **inherited,
        )
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True).start()
        try:
            while True:
                try:
                    line = lines.get(timeout=1)
                except queue.Empty:
                    progress.tick()
                    continue
                if line is None:
                    break
                output.append(line)
                log.write(line)
                progress.line(line)
            process.wait()
        finally:
            progress.end()
            if process.poll() is None:
                process.terminate()
                process.wait()
    shutil.rmtree(downloads, ignore_errors=True)
    if "Operation cancelled by user" in "".join(output[-3:]):
        raise KeyboardInterrupt
    if process.returncode != 0:
        # With no network, pip ends on "no matching distribution"; the cause stands in its warnings above.
        why = explain_pip_failure("".join(output), help)
        if process.returncode == -9:
            why = (
                "The system ended it, most likely for want of memory. Close other programs, then run the command again."
            )
        raise StepFailed(f"{what[0].upper()}{what[1:]} could not be installed. {why} ({environment / LOG})")


def _read_lines(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)
