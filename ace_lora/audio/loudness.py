"""Loudness by ITU-R BS.1770-4: integrated LUFS, true peak, and a gain that reaches the one without passing the other.

pyloudnorm is imported when it is first needed, because it takes seconds to import.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from ace_lora.audio.decode import resample

if TYPE_CHECKING:
    import torch

# Below this rate pyloudnorm's filters, which turn at 1.7 kHz and are designed for each rate, are far from BS.1770's.
_LOWEST_RATE, _INSTEAD = 16_000, 22_050
# What streaming services and EBU R 128 leave for the peaks between the samples.
TRUE_PEAK_DBTP = -1.0
_OVERSAMPLING = 4
_NEAR_DB = 0.5  # nobody hears less
_BLOCK, _EDGE = 480_000, 64


def integrated_loudness(samples: np.ndarray, rate: int) -> float:
    """LUFS of float [C, N], at least 0.4 s; -inf or NaN where nothing is above the gate (-70 LUFS)."""
    import pyloudnorm

    if rate < _LOWEST_RATE:
        import librosa

        samples, rate = librosa.resample(samples, orig_sr=rate, target_sr=_INSTEAD), _INSTEAD
    with warnings.catch_warnings():
        # Below the gate pyloudnorm averages nothing and warns.
        warnings.simplefilter("ignore")
        # Channels beyond five have no weight in BS.1770.
        return float(pyloudnorm.Meter(rate).integrated_loudness(samples[:5].T))


def true_peak(wave: torch.Tensor, rate: int) -> float:
    """Largest value of float32 [C, N] between its samples too, by oversampling four times (BS.1770-4, annex 2)."""
    peak = 0.0
    for start in range(0, wave.shape[1], _BLOCK):
        piece = wave[:, max(0, start - _EDGE) : start + _BLOCK + _EDGE]
        peak = max(peak, float(resample(piece, rate, _OVERSAMPLING * rate).abs().max()), float(piece.abs().max()))
    return peak


def normalise_loudness(wave: torch.Tensor, rate: int, target: float) -> tuple[torch.Tensor, str]:
    """Float32 [C, N] at `target` LUFS, or as near as -1 dBTP allows, and a sentence where that is not near, or "".

    Only the volume changes: nothing is compressed or limited.
    """
    loudness = integrated_loudness(wave.numpy(), rate)
    if not math.isfinite(loudness):
        return wave, "It is too quiet for a loudness; its volume stays as it is."
    gain = target - loudness
    most = TRUE_PEAK_DBTP - 20 * math.log10(true_peak(wave, rate))
    louder = wave * 10 ** (min(gain, most) / 20)
    if gain - most <= _NEAR_DB:
        return louder, ""
    return louder, (
        f"It reaches {loudness + most:.1f} LUFS, not {target:g}: its peaks would pass {TRUE_PEAK_DBTP:g} dB. "
        "That is no fault of the song; only its volume is changed."
    )
