"""A sound file as samples of one rate, and its outline for drawing. N samples."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ace_lora.audio.decode import AudioError, read_audio

RATE = 48_000  # of everything that is played, so that two tracks can be exchanged in one stream
LONGEST_SECONDS = 1800  # 0.7 GB of samples
PEAKS = 1000


@dataclass(frozen=True)
class Track:
    path: Path
    samples: np.ndarray  # float32 [N, 2] at RATE
    seconds: float  # of the whole file; what is played may be less
    warning: str = ""
    rate: int = RATE

    def peaks(self, count: int = PEAKS) -> list[float]:
        """The largest absolute value in each of `count` equal parts (fewer in a shorter file), 0 to 1."""
        loudest = np.abs(self.samples).max(axis=1)
        if not len(loudest):
            return []
        starts = np.unique(np.linspace(0, len(loudest), count, endpoint=False).astype(np.int64))
        return [round(min(float(value), 1.0), 3) for value in np.maximum.reduceat(loudest, starts)]


def load_track(path: Path) -> Track:
    """Raises AudioError when the file cannot be decoded."""
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise AudioError(f"'{path}' is no file. Expected a sound file. Choose another one.")
    wave = read_audio(path, LONGEST_SECONDS)
    samples = wave.samples[:2]
    if len(samples) == 1:
        samples = np.repeat(samples, 2, axis=0)
    if wave.rate != RATE:
        samples = _resampled(samples, wave.rate)
    return Track(path, np.ascontiguousarray(samples.T, dtype=np.float32), wave.original_seconds, wave.warning)


def _resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    from scipy.signal import resample_poly

    # An odd rate would need a filter of a million values: the nearest simple ratio is less than 1e-7 off.
    ratio = Fraction(RATE, rate).limit_denominator(4000)
    return resample_poly(samples, ratio.numerator, ratio.denominator, axis=1)
