"""What is odd in the sound of a song, what it does to a training, and a repair on a copy where there is one.

Nothing here decides: a song may be quiet, or in mono, because it is meant so. Every finding is a sentence in English
and one in Chinese, for the command line and for the window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ace_lora.audio.decode import MAX_SECONDS, MIN_SECONDS, AudioError, Waveform, read_audio
from ace_lora.audio.loudness import integrated_loudness

SHORTEST_FOR_LOUDNESS = 0.5  # seconds
QUIET_LUFS, LOUD_LUFS = -30.0, -6.0  # quiet classical music lies near -23, the loudest masters near -7
# Samples in a row at the top of the wave, and so many such places in a minute: a limiter leaves single ones.
CLIPPED_RUN, CLIPPED_PER_MINUTE = 3, 20
SILENT, SILENT_SECONDS = 1e-3, 3.0  # -60 dB
ONE_SIDED_DB = 30.0
# An edge in the spectrum where a coder cut it off. Music itself falls by some dB per octave.
EDGE_DB, EDGE_HZ, LOWEST_EDGE_HZ = 25.0, 500.0, 4_000.0
HIGH_ENOUGH_HZ = 15_500.0  # an mp3 of 128 kbit/s reaches 16 kHz
ALIKE = 0.97
_BANDS, _STEP_SECONDS, _MOST_SHIFT = 16, 0.5, 60

REPAIRS = ("silence", "one_sided", "surround", "above_full_scale")


@dataclass(frozen=True)
class Finding:
    """One remark on a song: `code` names its kind."""

    code: str
    english: str
    chinese: str

    @property
    def repairable(self) -> bool:
        return self.code in REPAIRS


@dataclass(frozen=True)
class SongHealth:
    """What was found out about one song."""

    path: Path
    seconds: float | None  # None: it cannot be read
    loudness_lufs: float | None  # None: too short or too quiet to measure
    findings: tuple[Finding, ...]
    print: np.ndarray | None = None  # float32 [steps, bands], for the comparison with other songs


def examine(path: Path) -> SongHealth:
    """Listen to one song. Raises nothing: a song that cannot be read is a finding."""
    try:
        wave = read_audio(path)
    except (AudioError, OSError) as error:
        chinese = f"无法读取，不能用于训练：{error}"
        return SongHealth(path, None, None, (Finding("unreadable", f"It cannot be trained on: {error}", chinese),))
    samples, rate = wave.samples, wave.rate
    if not (np.abs(samples) > SILENT).any():
        silent = Finding(
            "silent", "It is silent; there is nothing to learn. Remove it.", "整首无声，学不到东西。请移除。"
        )
        return SongHealth(path, wave.original_seconds, None, (silent,))
    loudness = None
    if samples.shape[1] >= SHORTEST_FOR_LOUDNESS * rate:
        measured = integrated_loudness(samples, rate)
        loudness = measured if math.isfinite(measured) else None
    checks = (
        _length(wave, path),
        _clipping(samples, rate),
        _loudness(loudness),
        _above_full_scale(wave),
        _silence(samples, rate, cropped=wave.original_seconds > MAX_SECONDS),
        _sides(samples),
        _surround(wave),
        _bandwidth(samples, rate),
    )
    findings = [finding for found in checks for finding in found]
    return SongHealth(path, wave.original_seconds, loudness, tuple(findings), _print_of(samples, rate))


def find_duplicates(songs: Sequence[SongHealth]) -> list[tuple[int, int]]:
    """Pairs of indices of songs that sound alike, whatever their format, volume and a few seconds at their ends."""
    pairs = []
    for second in range(len(songs)):
        for first in range(second):
            one, other = songs[first].print, songs[second].print
            if one is not None and other is not None and _likeness(one, other) >= ALIKE:
                pairs.append((first, second))
    return pairs


def duplicate_finding(other: str) -> Finding:
    return Finding(
        "duplicate",
        f"It sounds like '{other}'. A song that is there twice is learnt twice as much; remove one.",
        f"听起来与“{other}”相同。重复的歌会被加倍学习，请移除其中一首。",
    )


def _length(wave: Waveform, path: Path) -> list[Finding]:
    found = []
    if wave.length_warning:
        found.append(
            Finding(
                "length",
                wave.length_warning,
                "文件的实际长度与文件头所写的不一致，可能下载不完整或被截断；训练只会用到实际存在的部分。"
                "如果歌曲中途断掉，请换一个完整的文件。",
            )
        )
    if wave.original_seconds < MIN_SECONDS:
        found.append(
            Finding(
                "short",
                f"It lasts {wave.original_seconds:.1f} s and is filled up with silence to {MIN_SECONDS} s, which is "
                "trained too. Use a longer piece.",
                f"只有 {wave.original_seconds:.1f} 秒，会用静音补到 {MIN_SECONDS} 秒并一起训练。请用更长的片段。",
            )
        )
    if wave.original_seconds > MAX_SECONDS:
        found.append(
            Finding(
                "long",
                f"It lasts {wave.original_seconds:.0f} s; only the first {MAX_SECONDS} s are trained.",
                f"长 {wave.original_seconds:.0f} 秒，只训练前 {MAX_SECONDS} 秒。",
            )
        )
    return found


def _clipping(samples: np.ndarray, rate: int) -> list[Finding]:
    peak = float(np.abs(samples).max())
    places = 0
    for channel in samples:
        for side in (channel, -channel):
            # Beginnings of runs of at least CLIPPED_RUN samples at the top.
            top = side >= 0.9995 * peak
            run = np.logical_and.reduce(
                [top[shift : len(top) - CLIPPED_RUN + 1 + shift] for shift in range(CLIPPED_RUN)]
            )
            places += int(np.count_nonzero(run[1:] & ~run[:-1])) + int(run[:1].any())
    per_minute = places / len(samples) / (samples.shape[1] / rate / 60)
    if peak < 0.1 or per_minute < CLIPPED_PER_MINUTE:
        return []
    return [
        Finding(
            "clipped",
            f"It is clipped in {per_minute:.0f} places a minute: the wave is cut flat, and this harshness is learnt. "
            "Look for a version that is not; it cannot be repaired.",
            f"有削波，每分钟约 {per_minute:.0f} 处：波形顶部被削平，刺耳的失真会被学进去。"
            "无法修复，请尽量换一个没有失真的版本。",
        )
    ]


def _loudness(lufs: float | None) -> list[Finding]:
    if lufs is None or QUIET_LUFS <= lufs <= LOUD_LUFS:
        return []
    if lufs < QUIET_LUFS:
        return [
            Finding(
                "quiet",
                f"It is very quiet ({lufs:.1f} LUFS); what is made after training becomes quieter too. "
                "Preprocess with --loudness -14; the file stays as it is.",
                f"音量很小（{lufs:.1f} LUFS），训练后生成的音乐也会偏小声。"
                "预处理时加 --loudness -14 即可，原文件不变。",
            )
        ]
    return [
        Finding(
            "loud",
            f"It is very loud ({lufs:.1f} LUFS); what is made after training becomes louder too, and may distort. "
            "Preprocess with --loudness -14; the file stays as it is.",
            f"音量很大（{lufs:.1f} LUFS），训练后生成的音乐也会偏大声，可能失真。"
            "预处理时加 --loudness -14 即可，原文件不变。",
        )
    ]


def _above_full_scale(wave: Waveform) -> list[Finding]:
    if not wave.turned_down:
        return []
    return [
        Finding(
            "above_full_scale",
            "It reaches above full scale, which players cut off; here it is turned down instead, so nothing is lost.",
            "音量超过满刻度，播放器会把超出部分削掉；这里改为整体调低，不会丢失内容。",
        )
    ]


def _silence(samples: np.ndarray, rate: int, *, cropped: bool) -> list[Finding]:
    begin, end = silent_ends(samples)
    before, behind = begin / rate, 0.0 if cropped else end / rate
    if max(before, behind) < SILENT_SECONDS:
        return []
    return [
        Finding(
            "silence",
            f"It begins with {before:.1f} s and ends with {behind:.1f} s of silence, which is trained like music.",
            f"开头有 {before:.1f} 秒、结尾有 {behind:.1f} 秒静音，静音也会被当作音乐学习。",
        )
    ]


def silent_ends(samples: np.ndarray) -> tuple[int, int]:
    """Silent samples before and behind what is heard in float [C, N]."""
    heard = np.flatnonzero((np.abs(samples) > SILENT).any(axis=0))
    return (int(heard[0]), int(samples.shape[1] - 1 - heard[-1])) if heard.size else (samples.shape[1], 0)


def _sides(samples: np.ndarray) -> list[Finding]:
    if len(samples) == 1 or np.array_equal(samples[0], samples[1]):
        return [
            Finding(
                "mono",
                "It is mono: both sides are trained alike. Many such songs make what is generated narrow.",
                "是单声道：左右声道相同。这样的歌多了，生成的音乐会没有立体感。",
            )
        ]
    power = np.square(samples, dtype=np.float64).mean(axis=1)
    apart = abs(10 * math.log10((power[0] + 1e-12) / (power[1] + 1e-12)))
    if apart > ONE_SIDED_DB:
        side = ("left", "左") if power[0] > power[1] else ("right", "右")
        return [
            Finding(
                "one_sided",
                f"Nearly all of it is on the {side[0]} side; what is made after training would lean to that side.",
                f"几乎只有{side[1]}声道有声音，训练后生成的音乐会偏向一边。",
            )
        ]
    middle = np.square(samples.mean(axis=0), dtype=np.float64).mean()
    if middle < 0.02 * power.mean():
        return [
            Finding(
                "cancelling",
                "Its sides cancel each other (one is the other turned over); in mono nothing is left of it. "
                "Look for another version.",
                "左右声道相位相反，互相抵消；合成单声道时几乎没有声音。请换一个版本。",
            )
        ]
    return []


def _surround(wave: Waveform) -> list[Finding]:
    if wave.channels <= 2:
        return []
    return [
        Finding(
            "surround",
            f"It has {wave.channels} channels, mixed down to stereo by ITU-R BS.775 (without the low-frequency one).",
            f"有 {wave.channels} 个声道，已按 ITU-R BS.775 混成立体声（不含低音炮声道）。",
        )
    ]


def _bandwidth(samples: np.ndarray, rate: int) -> list[Finding]:
    reach = highest_frequency(samples, rate)
    if reach is None or reach >= HIGH_ENOUGH_HZ:
        return []
    return [
        Finding(
            "dull",
            f"Nothing is heard above {reach / 1000:.1f} kHz: it comes from a strongly compressed or old recording, "
            "whatever its format says, and its dull sound is learnt. Look for a better version.",
            f"{reach / 1000:.1f} kHz 以上没有声音：无论文件是什么格式，它都来自高度压缩或老旧的录音，"
            "发闷的音色会被学进去。请找音质更好的版本。",
        )
    ]


def highest_frequency(samples: np.ndarray, rate: int) -> float | None:
    """Where the spectrum of float [C, N] breaks off, in Hz: half the rate, or an edge below it. None: too short."""
    size = 4096
    if samples.shape[1] < 8 * size:
        return None
    starts = np.linspace(0, samples.shape[1] - size, min(400, samples.shape[1] // size)).astype(int)
    frames = np.stack([samples[:, start : start + size] for start in starts]) * np.hanning(size).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(frames))).mean(axis=(0, 1)) + 1e-20
    decibels = 10 * np.log10(power)
    width = max(1, int(EDGE_HZ * size / rate))
    smooth = np.convolve(decibels, np.ones(width) / width, mode="valid")  # entry k: mean of k … k + width - 1
    drop = smooth[: -2 * width] - smooth[2 * width :]  # over a gap as wide as the means
    low = int(LOWEST_EDGE_HZ * size / rate)
    floor = smooth.max() - 110  # below this there is dither or nothing
    edges = [k for k in range(low, len(drop)) if drop[k] >= EDGE_DB and smooth[k] > floor]
    if not edges:
        return rate / 2
    return float((edges[int(np.argmax(drop[edges]))] + 1.5 * width) * rate / size)


def _print_of(samples: np.ndarray, rate: int) -> np.ndarray | None:
    """How the energy in bands from 100 Hz to 6 kHz goes, in steps of half a second: float32 [steps, bands]."""
    step = int(_STEP_SECONDS * rate)
    steps = samples.shape[1] // step
    if steps < 8:
        return None
    mono = samples[:, : steps * step].mean(axis=0)
    if np.square(mono).mean() < 0.02 * np.square(samples).mean():
        mono = samples[0, : steps * step]
    edges = np.geomspace(100, 6000, _BANDS + 1) * step / rate
    result = np.empty((steps, _BANDS), dtype=np.float32)
    for number, piece in enumerate(mono.reshape(steps, step)):
        power = np.square(np.abs(np.fft.rfft(piece * np.hanning(step))))
        result[number] = [power[int(a) : int(b) + 1].sum() for a, b in itertools.pairwise(edges)]
    return np.log10(result + 1e-6 * result.max() + 1e-20)


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    """The best correlation of two prints, one moved against the other by at most half a minute."""
    best = 0.0
    for shift in range(-_MOST_SHIFT, _MOST_SHIFT + 1):
        a, b = one[max(0, shift) :], other[max(0, -shift) :]
        length = min(len(a), len(b))
        if length < 0.7 * max(len(one), len(other)):
            continue
        a, b = a[:length] - a[:length].mean(axis=0), b[:length] - b[:length].mean(axis=0)
        size = math.sqrt(float(np.square(a).sum()) * float(np.square(b).sum()))
        best = max(best, float((a * b).sum()) / size if size else 0.0)
    return best
