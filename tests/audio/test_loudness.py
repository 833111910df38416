"""Loudness against the numbers of ITU-R BS.1770 and EBU Tech 3341, and what a target does to a song."""

import numpy as np
import pytest
import torch

from ace_lora.audio.loudness import integrated_loudness, normalise_loudness, true_peak

RATE = 48_000


def sine(hz: float, decibels: float, seconds: float = 10.0, phase: float = 0.0) -> torch.Tensor:
    """float32 [2, N] with a peak of `decibels` to full scale."""
    n = np.arange(int(seconds * RATE))
    wave = 10 ** (decibels / 20) * np.sin(2 * np.pi * hz * n / RATE + phase)
    return torch.from_numpy(np.stack([wave, wave]).astype(np.float32))


@pytest.mark.parametrize("decibels", [-23.0, -33.0])
def test_a_stereo_sine_of_1_khz_is_as_loud_as_its_peak(decibels):
    """EBU Tech 3341, cases 1 and 2."""
    assert integrated_loudness(sine(1000, decibels, 20).numpy(), RATE) == pytest.approx(decibels, abs=0.1)


def test_the_true_peak_lies_between_the_samples():
    """A quarter of the rate, at 45 degrees: every sample is 3 dB below the peak (EBU Tech 3341, case 16)."""
    wave = sine(RATE / 4, -6.0, phase=np.pi / 4)
    assert 20 * np.log10(float(wave.abs().max())) == pytest.approx(-9.01, abs=0.01)
    # The tolerance of the standard: +0.2 and -0.4 dB.
    assert -6.4 < 20 * np.log10(true_peak(wave, RATE)) < -5.8


def test_a_song_is_brought_to_the_loudness():
    for decibels in (-40.0, -20.0, -6.0):
        wave, said = normalise_loudness(sine(1000, decibels), RATE, -14)
        assert integrated_loudness(wave.numpy(), RATE) == pytest.approx(-14, abs=0.1) and said == ""


def test_peaks_keep_their_room_and_that_is_said():
    wave = sine(1000, -40.0)
    wave[:, 100_000] = 0.5
    loud, said = normalise_loudness(wave, RATE, -14)
    assert 20 * np.log10(true_peak(loud, RATE)) == pytest.approx(-1.0, abs=0.05)
    assert "It reaches -3" in said and "LUFS, not -14: its peaks would pass -1 dB" in said
    # Only the volume differs.
    torch.testing.assert_close(loud / loud.abs().max(), wave / wave.abs().max())


def test_silence_stays():
    wave, said = normalise_loudness(torch.zeros(2, RATE), RATE, -14)
    assert not wave.any() and "too quiet for a loudness" in said
