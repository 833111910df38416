"""What can honestly be said of a recording without a model: tempo, loudness, dynamics and brightness.

Key, genre, mood, instruments and vocals are not measured here: published methods for the key disagree with each
other on produced music, and the rest needs a model that has learnt it.

librosa and what needs numpy are imported when they are first needed: librosa takes seconds, `--help` needs neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# librosa's own default rate: its tempo prior and frame lengths are tuned to it.
ANALYSIS_RATE = 22050
HOP = 512
# The loudness is measured in blocks of 0.4 s.
SHORTEST_SECONDS = 0.5
# Fewer beats than in this time have no tempo that could be told from chance.
SHORTEST_FOR_TEMPO = 3.0
SILENCE = 1e-4
# Power of the mono mix to that of the channels, below which little is left of the song: one channel is the other
# with its sign turned. Equal channels have 1, unrelated ones 0.5.
CANCELLED = 0.01
# Correlation of the onset strength with itself one beat later. Measured: white noise 0.03, a rap song 0.45,
# percussion 0.6 to 0.9.
STEADY_PULSE = 0.15
# Spread of the onset strength (dB per frame, averaged over mel bands). Measured: sustained tones 0.02 to 0.2,
# white noise 0.5, a rap song 3.3. Below this there are no onsets whose distance would mean anything.
AUDIBLE_ONSETS = 0.4

# (upper limit, tag); the last one has no limit. LUFS: streaming services level at -14, quiet classical lies near -23.
LOUDNESS_CLASSES = ((-20.0, "quiet"), (-12.0, "moderate loudness"), (float("inf"), "loud"))
# Peak over RMS in dB: heavily limited masters have less than 10, unmastered or acoustic recordings more than 16.
DYNAMICS_CLASSES = ((10.0, "compressed dynamics"), (16.0, "moderate dynamics"), (float("inf"), "wide dynamics"))
# Spectral centroid in Hz below 11 kHz.
BRIGHTNESS_CLASSES = ((1500.0, "dark timbre"), (3000.0, "balanced timbre"), (float("inf"), "bright timbre"))


@dataclass(frozen=True)
class Measurements:
    """Figures of one song; `bpm` is None when there is no steady pulse.

    `bpm` may be half or twice what a listener taps: the signal does not settle which (89 and 178 fit alike).
    """

    bpm: float | None
    loudness_lufs: float  # integrated, ITU-R BS.1770
    crest_db: float  # peak over RMS
    centroid_hz: float  # mean over the frames that are not silent


class TooLittleSound(Exception):
    """The audio is silent or too short to measure."""


def require_sound(samples: np.ndarray, rate: int) -> None:
    """Raise TooLittleSound when `samples` [channels, length] are silent or shorter than `SHORTEST_SECONDS`."""
    seconds = samples.shape[-1] / rate
    if seconds < SHORTEST_SECONDS:
        raise TooLittleSound(
            f"The audio lasts {seconds:.1f} s; at least {SHORTEST_SECONDS} s are needed to describe it. "
            "Use a longer recording or write the prompt by hand."
        )
    if is_silent(samples):
        raise TooLittleSound(
            "The audio is silent (peak below -80 dB). Sound was expected; use another file or write the prompt by hand."
        )


def is_silent(samples: np.ndarray) -> bool:
    """Whether no sample of `samples` is above -80 dB."""
    import numpy as np

    return not np.abs(samples).max() >= SILENCE


def mix_down(samples: np.ndarray) -> np.ndarray:
    """[channels, length] to mono [length]: the mean, or the first channel where the channels cancel each other."""
    import numpy as np

    mono = samples.mean(axis=0)
    cancelled = np.mean(np.square(mono)) < CANCELLED * np.mean(np.square(samples))
    return samples[0] if cancelled else mono


def measure(samples: np.ndarray, rate: int) -> Measurements:
    """Measure audio `samples` [channels, length] (float, full scale 1) at `rate` Hz.

    Raises TooLittleSound as `require_sound` does, and when no part of it is loud enough for a loudness.
    """
    import numpy as np

    from ace_lora.audio.loudness import integrated_loudness

    require_sound(samples, rate)
    samples = np.asarray(samples, dtype=np.float32)
    peak = float(np.abs(samples).max())
    loudness = integrated_loudness(samples, rate)
    if not np.isfinite(loudness):
        raise TooLittleSound(
            "The audio is nearly silent: no part of it is above the gate of the loudness measurement (-70 LUFS). "
            "Use another file or write the prompt by hand."
        )
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))

    mono = _for_analysis(samples, rate)
    return Measurements(
        bpm=_tempo(mono),
        loudness_lufs=loudness,
        crest_db=20 * float(np.log10(peak / rms)),
        centroid_hz=_centroid(mono),
    )


def signal_tags(measured: Measurements) -> list[str]:
    """Sorted tags for `measured`, one each for loudness, dynamics and brightness.

    None for the tempo: of 33 songs 16 got the wrong class by their beats per minute, with whatever limits, because half
    and double the tempo cannot be told apart. `bpm_choices` is what can be said.
    """
    tags = [
        _class_of(measured.loudness_lufs, LOUDNESS_CLASSES),
        _class_of(measured.crest_db, DYNAMICS_CLASSES),
        _class_of(measured.centroid_hz, BRIGHTNESS_CLASSES),
    ]
    return sorted(tags)


def bpm_choices(bpm: float) -> list[int]:
    """What a measured tempo may mean, for people to choose from: as measured, half and double of it.

    Half and double only where somebody could tap them, from 40 to 240 beats per minute.
    """
    return [round(bpm), *(value for value in (round(bpm / 2), 2 * round(bpm)) if 40 <= value <= 240)]


def bpm_tag(bpm: float) -> str:
    """`"120 bpm"` for 119.98."""
    return f"{round(bpm)} bpm"


def measure_bpm(samples: np.ndarray, rate: int) -> float | None:
    """Beats per minute of `samples` [channels, length] at `rate` Hz, or None without a steady pulse."""
    import numpy as np

    return _tempo(_for_analysis(np.asarray(samples, dtype=np.float32), rate))


def _class_of(value: float, classes: tuple[tuple[float, str], ...]) -> str:
    return next(tag for limit, tag in classes if value < limit)


def _for_analysis(samples: np.ndarray, rate: int) -> np.ndarray:
    """[channels, length] at `rate` -> mono [length] at `ANALYSIS_RATE`."""
    import librosa

    return librosa.resample(mix_down(samples), orig_sr=rate, target_sr=ANALYSIS_RATE)


def _centroid(mono: np.ndarray) -> float:
    import librosa
    import numpy as np

    magnitude = np.abs(librosa.stft(mono, n_fft=2048, hop_length=HOP))
    energy = np.square(magnitude).sum(axis=0)
    # Pauses and fades would count hiss as brightness: keep frames within 50 dB of the loudest.
    audible = energy >= energy.max() * 1e-5
    return float(librosa.feature.spectral_centroid(S=magnitude[:, audible], sr=ANALYSIS_RATE).mean())


def _tempo(mono: np.ndarray) -> float | None:
    import librosa
    import numpy as np

    if len(mono) < SHORTEST_FOR_TEMPO * ANALYSIS_RATE:
        return None
    onsets = librosa.onset.onset_strength(y=mono, sr=ANALYSIS_RATE, hop_length=HOP)
    if onsets.std() < AUDIBLE_ONSETS:
        return None
    tempo, beats = librosa.beat.beat_track(onset_envelope=onsets, sr=ANALYSIS_RATE, hop_length=HOP)
    tempo = float(np.atleast_1d(tempo)[0])
    if tempo <= 0 or len(beats) < 4:
        return None

    frames_per_beat = 60 * ANALYSIS_RATE / HOP / tempo
    correlation = librosa.autocorrelate(onsets - onsets.mean())
    # The beat does not fall on whole frames: take the best of the neighbouring lags.
    around = correlation[max(1, int(frames_per_beat) - 1) : int(frames_per_beat) + 3]
    if around.size == 0 or around.max() < STEADY_PULSE * correlation[0]:
        return None

    # The tempo above is a whole number of frames per beat (117.5 or 123 for 120); the slope of the beats over the
    # whole song is far finer. A beat that the tracker left out or put in must not shift the count.
    gaps = np.diff(beats)
    period = np.median(gaps)
    number = np.concatenate([[0], np.cumsum(np.maximum(1, np.round(gaps / period)))])
    slope = np.polyfit(number, beats, deg=1)[0]
    refined = 60 * ANALYSIS_RATE / HOP / slope
    return float(refined) if abs(refined / tempo - 1) < 0.05 else tempo
