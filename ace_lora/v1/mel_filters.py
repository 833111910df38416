"""The mel filters of ACE-Step v1, by themselves, so that they can be made without torch. numpy only."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from ace_lora.records.format import LATENT_SAMPLE_RATE

N_FFT = 2048
N_MELS = 128
LOWEST_HZ, HIGHEST_HZ = 40.0, 16_000.0

# Slaney's scale: linear up to 1000 Hz (15 mel), logarithmic above, 27 mel for a factor of 6.4.
_HZ_PER_MEL = 200 / 3
_LOG_STEP = math.log(6.4) / 27


@lru_cache(maxsize=1)
def mel_filter_bank() -> np.ndarray:
    """Triangular filters on Slaney's mel scale, each of unit area: float64 [1025, 128]."""
    bins = np.linspace(0, LATENT_SAMPLE_RATE / 2, N_FFT // 2 + 1)
    edges = _mel_to_hz(np.linspace(_hz_to_mel(LOWEST_HZ), _hz_to_mel(HIGHEST_HZ), N_MELS + 2))
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - low) / (centre - low)
    falling = (high - bins[:, None]) / (high - centre)
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)


def _hz_to_mel(hz: float) -> float:
    return hz / _HZ_PER_MEL if hz < 1000 else 15 + math.log(hz / 1000) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * _HZ_PER_MEL, 1000 * np.exp((mel - 15) * _LOG_STEP))
