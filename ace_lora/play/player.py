"""What sounds next: the samples of one of two tracks from a position on, at a level; no device and no files here.

`fill` is called by the output's thread, everything else by another: one lock around what they share.
"""

from __future__ import annotations

import threading

import numpy as np

from ace_lora.play.track import RATE, Track

FADE = RATE // 200  # 5 ms: a change of track, level or position within a wave would click


class Player:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tracks: dict[str, Track] = {}
        self._slot = ""
        self._position = 0  # samples
        self._level = self._sounding_level = 1.0
        self._playing = False
        # What sounded until now and fades out over the next samples: track and position.
        self._leaving: tuple[Track, int] | None = None

    # --- Told from outside ---

    def load(self, slot: str, track: Track) -> None:
        """Put a track into a slot; the first one is the one that is played, from its beginning."""
        with self._lock:
            if slot == self._slot or not self._slot:
                self._leave()
                self._slot, self._position = slot, 0
            self._tracks[slot] = track

    def play(self) -> bool:
        """False where there is nothing to play. At the end of the track it begins anew."""
        with self._lock:
            track = self._tracks.get(self._slot)
            if track is None:
                return False
            if self._position >= len(track.samples):
                self._position = 0
            self._playing = True
            return True

    def pause(self) -> None:
        with self._lock:
            self._playing = False

    def seek(self, seconds: float) -> None:
        with self._lock:
            track = self._tracks.get(self._slot)
            if track is not None:
                self._leave()
                self._position = min(max(round(seconds * RATE), 0), len(track.samples))

    def set_level(self, level: float) -> None:
        """0 is silence, 1 the file as it is."""
        with self._lock:
            self._level = level

    def switch(self, slot: str) -> bool:
        """Go on in another track at the same position; False where there is none."""
        with self._lock:
            if slot not in self._tracks:
                return False
            if slot != self._slot:
                self._leave()
                self._slot = slot
            return True

    def _leave(self) -> None:
        track = self._tracks.get(self._slot)
        self._leaving = (track, self._position) if track is not None and self._playing else None

    # --- Asked from outside ---

    @property
    def slot(self) -> str:
        with self._lock:
            return self._slot

    @property
    def playing(self) -> bool:
        with self._lock:
            return self._playing

    @property
    def seconds(self) -> float:
        with self._lock:
            return self._position / RATE

    # --- The output's side ---

    def fill(self, out: np.ndarray) -> bool:
        """Write the next samples to `out` float32 [n, 2]; True where the track ended in them."""
        with self._lock:
            track = self._tracks.get(self._slot)
            if track is None or not self._playing:
                out[:] = 0
                return False
            count = len(out)
            out[:] = _from(track, self._position, count)
            if self._leaving is not None:
                faded = min(FADE, count)
                share = (np.arange(1, faded + 1, dtype=np.float32) / faded)[:, None]
                out[:faded] = share * out[:faded] + (1 - share) * _from(*self._leaving, faded)
                self._leaving = None
            if self._sounding_level != self._level or self._level != 1:
                out *= np.linspace(self._sounding_level, self._level, count, dtype=np.float32)[:, None]
                self._sounding_level = self._level
            self._position = min(self._position + count, len(track.samples))
            ended = self._position == len(track.samples)
            if ended:
                self._playing = False
            return ended


def _from(track: Track, position: int, count: int) -> np.ndarray:
    """[count, 2], zeros behind the end."""
    part = track.samples[position : position + count]
    return part if len(part) == count else np.concatenate([part, np.zeros((count - len(part), 2), np.float32)])
