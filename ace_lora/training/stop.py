"""Whether someone wants the training to end after the step under way."""

from __future__ import annotations

import contextlib
import signal
import stat
import time
from pathlib import Path
from typing import Any

from ace_lora.processes import is_first_process, say
from ace_lora.training.output import RunOutput

STOP_NAME = "STOP"
REQUESTS = (b"", b"stop")  # what the file holds when a person or the window has made it to stop a training
CLOCKS_DIFFER_S = 2.0  # between this machine and the disk's, and what a file system rounds times to


class StopRequest:
    """A file named STOP in the output folder, a signal, or, unless it was started to `go_on_unread`, a lost reader."""

    def __init__(self, output_dir: Path, output: RunOutput, *, go_on_unread: bool = False):
        self.path = output_dir / STOP_NAME
        self.signalled = False
        self._output = output
        self._go_on_unread = go_on_unread
        self._passed_over: tuple[int, ...] | None = None  # a file of that name which asks for nothing
        self._earlier: dict[int, Any] = {}

    def requested(self) -> bool:
        return self.signalled or self.unread() or (is_first_process() and self._file_asks())

    def unread(self) -> bool:
        """Whether the training ends because nobody reads its output any more."""
        return self._output.reader_gone and not self._go_on_unread

    def look_for_old_file(self, started: float) -> str | None:
        """Remove, or from now on pass over, a STOP file that was there before this program; a sentence about it.

        `started`: when this program began, in seconds since the epoch. A file that came since then is meant for it.
        """
        identity = self._identity()
        if identity is None:
            return None
        if started - CLOCKS_DIFFER_S <= self.path.stat().st_mtime <= time.time() + CLOCKS_DIFFER_S:
            return None
        if self._is_request():
            self.path.unlink(missing_ok=True)
            return f"Removed '{self.path}', which an earlier run had left."
        self._passed_over = identity
        return f"'{self.path}' holds something of yours: it stays, and stops nothing unless it is written anew."

    def forget_file(self) -> None:
        """Remove the STOP file when it has done its work; a user's own file of that name stays."""
        if self._file_asks() and self._is_request():
            self.path.unlink(missing_ok=True)

    def install(self) -> None:
        """From now on the first signal asks to stop after the step; a second one interrupts at once."""
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            if hasattr(signal, name):
                self._handle(getattr(signal, name), self._on_signal)
        # Its terminal was closed. More of them may follow at once; with nohup they are ignored already.
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._handle(signal.SIGHUP, signal.SIG_IGN if self._go_on_unread else self._on_closed_terminal)

    def remove(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _handle(self, number: int, handler: Any) -> None:
        self._earlier[number] = signal.getsignal(number)
        signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.signalled:
            raise KeyboardInterrupt
        self.signalled = True
        with contextlib.suppress(RuntimeError):  # the signal came in the middle of printing a line
            say("Stopping after this step, then saving. (Once more: stop at once, without saving.)")

    def _on_closed_terminal(self, number: int, frame: object) -> None:
        self.signalled = True

    def _file_asks(self) -> bool:
        identity = self._identity()
        return identity is not None and identity != self._passed_over

    def _identity(self) -> tuple[int, ...] | None:
        """What tells the file from one that is made anew; None where there is none."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return (status.st_ino, status.st_mtime_ns, status.st_size) if stat.S_ISREG(status.st_mode) else None

    def _is_request(self) -> bool:
        """Whether the file holds nothing that a person would miss."""
        with contextlib.suppress(OSError):
            if self.path.is_symlink() or self.path.stat().st_size > 16:
                return False
            return self.path.read_bytes().strip().lower() in REQUESTS
        return False
