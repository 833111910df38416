"""Measured tags: `python -m pytest tests/test_signal_analysis.py`. Signals are synthesised, so the truth is known."""

import numpy as np
import pytest

from ace_lora.audio.analysis import (
    Measurements,
    TooLittleSound,
    bpm_choices,
    bpm_tag,
    measure,
    measure_bpm,
    mix_down,
    signal_tags,
)

RATE = 44100


def clicks(bpm: float, seconds: float = 20, rate: int = RATE) -> np.ndarray:
    """[1, length]: a short decaying tone on every beat over faint noise."""
    samples = np.random.default_rng(0).normal(scale=0.003, size=int(seconds * rate))
    for beat in range(int(seconds * bpm / 60)):
        start = int(beat * 60 / bpm * rate)
        length = min(4000, len(samples) - start)
        time = np.arange(length)
        samples[start : start + length] += 0.5 * np.exp(-time / 800) * np.sin(2 * np.pi * 300 * time / rate)
    return samples[None].astype(np.float32)


def tone(frequency: float, level: float, seconds: float = 5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE))[None].astype(np.float32)


@pytest.mark.parametrize("bpm", [70, 95, 120, 140])
def test_tempo_is_measured_to_half_a_beat_per_minute(bpm):
    measured = measure(clicks(bpm), RATE)
    assert measured.bpm == pytest.approx(bpm, abs=0.5)
    assert not any("tempo" in tag for tag in signal_tags(measured))  # which of half and double is it?
    assert bpm_tag(measured.bpm) == f"{bpm} bpm"


@pytest.mark.parametrize(
    ("bpm", "choices"), [(120.2, [120, 60, 240]), (89.9, [90, 45, 180]), (70.0, [70, 140]), (170.0, [170, 85])]
)
def test_what_a_tempo_may_mean(bpm, choices):
    assert bpm_choices(bpm) == choices


def test_channels_that_cancel_each_other_are_heard():
    left = clicks(100)
    noise = np.random.default_rng(0).normal(scale=1e-4, size=left.shape).astype(np.float32)  # of a lossy encoder
    measured = measure(np.concatenate([left, noise - left]), RATE)
    assert measured.bpm == pytest.approx(100, abs=0.5)
    assert measured.centroid_hz == pytest.approx(measure(left, RATE).centroid_hz)
    sides = np.concatenate([left, np.zeros_like(left)])
    assert np.array_equal(mix_down(sides), left[0] / 2)


def test_a_left_out_beat_does_not_shift_the_tempo():
    samples = clicks(100)
    samples[:, int(6.0 * RATE) : int(6.5 * RATE)] = 0  # beats 10, 10.83
    assert measure_bpm(samples, RATE) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize(
    "samples",
    [tone(220, 0.3, 10), np.random.default_rng(0).normal(scale=0.1, size=(2, 10 * RATE)).astype(np.float32)],
    ids=["tone", "noise"],
)
def test_without_a_pulse_there_is_no_tempo(samples):
    measured = measure(samples, RATE)
    assert measured.bpm is None
    tags = signal_tags(measured)
    assert len(tags) == 3
    assert not any("tempo" in tag for tag in tags)


def test_loudness_of_a_full_scale_tone_is_that_of_the_standard():
    # ITU-R BS.1770: 997 Hz at 0 dBFS in one channel measures -3.01 LUFS.
    assert measure(tone(997, 1.0), RATE).loudness_lufs == pytest.approx(-3.01, abs=0.05)


@pytest.mark.parametrize(("level", "tag"), [(0.9, "loud"), (0.2, "moderate loudness"), (0.03, "quiet")])
def test_loudness_tag(level, tag):
    assert tag in signal_tags(measure(tone(997, level), RATE))


@pytest.mark.parametrize(
    ("frequency", "tag"), [(220, "dark timbre"), (2000, "balanced timbre"), (6000, "bright timbre")]
)
def test_brightness_tag(frequency, tag):
    measured = measure(tone(frequency, 0.3), RATE)
    assert measured.centroid_hz == pytest.approx(frequency, rel=0.03)
    assert tag in signal_tags(measured)


def test_a_silent_half_does_not_change_the_brightness():
    half_silent = np.concatenate([tone(2000, 0.3), np.zeros((1, 5 * RATE), np.float32)], axis=1)
    assert measure(half_silent, RATE).centroid_hz == pytest.approx(2000, rel=0.03)


def test_dynamics_tags():
    # A sine has a crest factor of 3.01 dB.
    measured = measure(tone(997, 0.5), RATE)
    assert measured.crest_db == pytest.approx(3.01, abs=0.01)
    assert "compressed dynamics" in signal_tags(measured)
    assert "wide dynamics" in signal_tags(measure(clicks(95), RATE))


def test_tags_are_sorted_and_three_or_four():
    assert signal_tags(Measurements(bpm=None, loudness_lufs=-14, crest_db=12, centroid_hz=2000)) == [
        "balanced timbre",
        "moderate dynamics",
        "moderate loudness",
    ]
    assert signal_tags(Measurements(bpm=128, loudness_lufs=-8, crest_db=8, centroid_hz=4000)) == [
        "bright timbre",
        "compressed dynamics",
        "loud",
    ]


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros((2, 5 * RATE), np.float32), "silent"),
        (tone(997, 1e-3, 5) * 0.15, "nearly silent"),
        (tone(997, 0.5, 0.3), "lasts 0.3 s"),
    ],
    ids=["silent", "below the gate", "short"],
)
def test_what_cannot_be_measured_says_so(samples, reason):
    with pytest.raises(TooLittleSound, match=reason):
        measure(samples, RATE)


def test_a_short_sound_has_no_tempo():
    assert measure(clicks(120, seconds=1), RATE).bpm is None
    assert measure_bpm(clicks(120, seconds=2.9), RATE) is None
    assert measure_bpm(clicks(120, seconds=6), RATE) == pytest.approx(120, abs=1)


def test_other_rates_and_channels():
    for rate, channels in ((8000, 1), (48000, 2)):
        measured = measure(np.repeat(clicks(95, rate=rate), channels, axis=0), rate)
        assert measured.bpm == pytest.approx(95, abs=1)


@pytest.mark.parametrize("rate", [1000, 2000, 3000, 8000])
def test_loudness_does_not_depend_on_a_low_sample_rate(rate):
    level = (0.1 * np.sin(2 * np.pi * 200 * np.arange(5 * rate) / rate))[None].astype(np.float32)
    assert measure(level, rate).loudness_lufs == pytest.approx(measure(tone(200, 0.1), RATE).loudness_lufs, abs=0.05)
