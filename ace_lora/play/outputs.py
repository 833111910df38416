"""Where the sound goes: the system's device through PortAudio (sounddevice), or nowhere, in real time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ace_lora.play.track import RATE

BLOCK = 480  # samples that the silent output takes at once: 10 ms
Fill = Callable[[np.ndarray], None]


class NoDevice(Exception):
    """There is nothing to play on; the message says why and what to do."""


class Output(Protocol):
    name: str
    latency: float  # seconds from `fill` to the ear

    def start(self) -> None:
        """Begin to ask `fill` for samples. Raises NoDevice."""

    def stop(self) -> None: ...

    def close(self) -> None: ...


def open_output(fill: Fill, wanted: str = "") -> Output:
    """The system's usual device; `wanted`: "dummy" for none, "dummy:FILE" to keep what it played as raw float32."""
    if wanted.split(":", 1)[0] == "dummy":
        _, _, kept = wanted.partition(":")
        return SilentOutput(fill, Path(kept) if kept else None)
    return DeviceOutput(fill)


class DeviceOutput:
    def __init__(self, fill: Fill):
        try:
            import sounddevice
        except ImportError as error:
            raise NoDevice(
                f"Songs cannot be played here: the package sounddevice cannot be loaded ({error}). "
                "Run: python start.py install, or: pip install sounddevice"
            ) from error
        except OSError as error:  # its PortAudio, which is part of it on Windows and macOS
            raise NoDevice(
                f"Songs cannot be played here: {error}. On Linux, install the package libportaudio2."
            ) from error
        self._portaudio: Any = sounddevice
        self._fill = fill
        try:
            device = sounddevice.query_devices(kind="output")
            self._stream = sounddevice.OutputStream(
                samplerate=RATE, channels=2, dtype="float32", latency="low", callback=self._called
            )
        except (sounddevice.PortAudioError, ValueError) as error:
            raise NoDevice(
                f"There is no sound device to play on ({error}). Connect headphones or loudspeakers, then try again."
            ) from error
        self.name = str(device["name"])
        self.latency = float(self._stream.latency)

    def _called(self, out: np.ndarray, frames: int, when: Any, status: Any) -> None:
        self._fill(out)

    def start(self) -> None:
        try:
            if not self._stream.active:
                self._stream.stop()
                self._stream.start()
        except self._portaudio.PortAudioError as error:
            raise NoDevice(f"The sound device '{self.name}' does not answer ({error}). Connect it again.") from error

    def stop(self) -> None:
        if self._stream.active:
            self._stream.abort()

    def close(self) -> None:
        self._stream.close()


class SilentOutput:
    """Takes samples as fast as a device does and plays them nowhere; for computers without one, and for tests."""

    latency = 0.0

    def __init__(self, fill: Fill, kept: Path | None = None):
        self.name = "dummy"
        self._fill = fill
        self._file = kept.open("wb") if kept else None
        self._thread: threading.Thread | None = None
        self._running = threading.Event()

    def start(self) -> None:
        if self._thread is None:
            self._running.set()
            self._thread = threading.Thread(target=self._play, daemon=True)
            self._thread.start()

    def _play(self) -> None:
        out = np.zeros((BLOCK, 2), dtype=np.float32)
        due = time.monotonic()
        while self._running.is_set():
            self._fill(out)
            if self._file is not None:
                self._file.write(out.tobytes())
            due += BLOCK / RATE
            time.sleep(max(0.0, due - time.monotonic()))

    def stop(self) -> None:
        self._running.clear()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        self.stop()
        if self._file is not None:
            self._file.close()
