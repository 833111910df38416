"""Whether someone wants the training to end after the step under way."""

from __future__ import annotations

import contextlib
import math
import signal
from pathlib import Path
from typing import Any

from ace_lora.processes import say

STOP_NAME = "STOP"


class StopRequest:
    """Whether someone wants the run to end: a file named STOP in the output folder, or a signal."""

    def __init__(self, output_dir: Path):
        self.path = output_dir / STOP_NAME
        self.signalled = False
        self._earlier: dict[int, Any] = {}

    def requested(self) -> bool:
        return self.signalled or self.path.is_file()

    def forget_file(self, older_than: float = math.inf) -> bool:
        """Remove the STOP file, if it is older than a time in seconds since the epoch; whether it was removed."""
        try:
            if not self.path.is_file() or self.path.stat().st_mtime >= older_than:
                return False
            self.path.unlink()
        except FileNotFoundError:  # gone meanwhile
            return False
        return True

    def install(self) -> None:
        """From now on the first signal asks to stop after the step; a second one interrupts at once."""
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            number = getattr(signal, name, None)
            if number is not None:
                self._earlier[number] = signal.getsignal(number)
                signal.signal(number, self._on_signal)

    def remove(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _on_signal(self, number: int, frame: object) -> None:
        if self.signalled:
            raise KeyboardInterrupt
        self.signalled = True
        with contextlib.suppress(RuntimeError):  # the signal came in the middle of printing a line
            say("Stopping after this step, then saving. (Once more: stop at once, without saving.)")
