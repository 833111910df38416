"""What a training prints: kept in its log folder, and handed to whoever reads it without waiting for them.

A reader that is gone (a closed window, a dead pipe), one that does not read, and a full disk under the output end no
training: the log file has everything.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import TextIO

from ace_lora.commands import StepFailed, WrongInput

LOG_NAME = "log.txt"
MOST_TEXTS_WAITING = 10_000  # for a reader that does not read; what comes then is in the log file only
LAST_WORDS_S = 5.0  # for a slow reader to take what is left when the training ends
# How a system says that nobody reads any more; Windows says EINVAL of a broken pipe.
_GONE = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET}
_GONE |= {errno.EINVAL} if os.name == "nt" else set()


class RunOutput:
    """Stands for standard output and error while it is entered. Printing then never raises, and never waits."""

    def __init__(self) -> None:
        self.reader_gone = False  # of standard output
        self._log: TextIO | None = None
        self._early: list[str] = []  # what was printed before there was a log file
        self._lock = threading.RLock()  # a signal may print in the middle of a line
        self._waiting: queue.Queue[tuple[_Stream, bytes] | None] = queue.Queue(MOST_TEXTS_WAITING)
        self._thread = threading.Thread(target=self._hand_on, name="output", daemon=True)

    def __enter__(self) -> RunOutput:
        self._before = sys.stdout, sys.stderr
        self._streams = [_Stream(self, stream) for stream in self._before]
        sys.stdout, sys.stderr = self._streams  # type: ignore[assignment]
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._streams:
            stream.flush()
        if isinstance(error, (WrongInput, StepFailed)):
            self._write_log("".join(f"error: {line}\n" for line in str(error).splitlines()))
        elif error is not None and not isinstance(error, SystemExit):
            self._write_log("".join(traceback.format_exception(error)))
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=0.1)
            self._thread.join(LAST_WORDS_S)
        if not self._thread.is_alive():
            for stream in self._streams:
                stream.close_number()
        sys.stdout, sys.stderr = self._before
        if self.reader_gone:
            # What the script itself has to say, and Python's last flush, must not fail on it.
            sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until the script ends
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.close()

    def keep(self, path: Path) -> None:
        """From now on everything that is printed, and what was so far, is kept in the file `path`."""
        with self._lock, contextlib.suppress(OSError):
            self._log = path.open("a", encoding="utf-8", errors="replace", newline="\n")
            self._write_log("".join(self._early))
            self._early.clear()

    def take(self, stream: _Stream, text: str) -> None:
        """Keep `text` and hand it on."""
        with self._lock:
            self._write_log(text)
            if stream.number is None:
                stream.write_through(text)
                return
            with contextlib.suppress(queue.Full):
                data = text.replace("\n", os.linesep).encode("utf-8", "replace")
                self._waiting.put_nowait((stream, data))

    def _write_log(self, text: str) -> None:
        with self._lock:
            if self._log is None:
                self._early.append(text)
                return
            with contextlib.suppress(OSError, ValueError):  # the disk is full: what follows may find room again
                self._log.write(text)
                self._log.flush()

    def _hand_on(self) -> None:
        while (item := self._waiting.get()) is not None:
            stream, data = item
            stream.write_data(data)


class _Stream(io.TextIOBase):
    """What `print` writes to, in place of standard output or error."""

    def __init__(self, output: RunOutput, stream: TextIO):
        self._output = output
        self._stream = stream
        self._part = ""  # of a line
        self._gone = False
        self._is_stdout = stream is sys.stdout
        # Handed on by a thread, past Python's buffers, whose locks would stop the whole program when it ends while a
        # reader lets the thread wait. A console is written to here: it shows text, not bytes, and always reads.
        self.number: int | None = None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
            if not stream.isatty():
                self.number = os.dup(stream.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.number is None and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        with self._output._lock:
            self._part += text
            if "\n" in text or "\r" in text:
                self.flush()
        return len(text)

    def flush(self) -> None:
        with self._output._lock:
            part, self._part = self._part, ""
            if part:
                self._output.take(self, part)

    def write_through(self, text: str) -> None:
        """To a stream that has no file, or to a console."""
        if not self._gone:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError) as error:  # ValueError: it was closed
                self._failed(error)

    def write_data(self, data: bytes) -> None:
        """To the file or pipe. A full disk may have room again for what comes next."""
        assert self.number is not None
        while data and not self._gone:
            try:
                data = data[os.write(self.number, data) :]
            except BlockingIOError:
                time.sleep(0.05)
            except OSError as error:
                self._failed(error)
                return

    def close_number(self) -> None:
        """When nothing is handed on any more."""
        if self.number is not None:
            os.close(self.number)

    def _failed(self, error: OSError | ValueError) -> None:
        if isinstance(error, ValueError) or error.errno in _GONE:
            self._gone = True
            self._output.reader_gone |= self._is_stdout
