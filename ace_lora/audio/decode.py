"""Audio files to waveforms, and waveforms to the 48 kHz stereo signal that everything else starts from.

Shape legend: C channels, N samples at the file's own rate, L samples at 48 kHz.

libsndfile (through soundfile) decodes .wav, .flac, .ogg and .opus. FFmpeg (through PyAV) decodes .aac and .m4a, what
libsndfile cannot read, and MPEG audio. libsndfile reads MPEG audio too, with the same samples, but its decoder takes
an MP4 named `.mp3` for MPEG audio and returns noise, gives up at a damaged frame, and writes its remarks straight to
stderr; so it is only used for .mp3 where PyAV is not installed.

torch is imported by the functions that compute, so that a folder can be listed and measured without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

SAMPLE_RATE = 48_000
# Longer songs are cropped to their beginning, shorter ones padded with zeros, as in ACE-Step v1's own training.
MAX_SECONDS = 360
MIN_SECONDS = 3
MAX_SILENT_FRACTION = 0.95

# A decoded song that misses more of the length that its header states is damaged; less is a matter of counting.
_TOLERATED_LOSS_SECONDS = 1.0
_TOLERATED_BAD_PACKETS = 0.01
# Beyond this a float sample is a damaged number, and its sums in the resampler would overflow.
_LARGEST_SAMPLE = 1e30
_RATES = range(1_000, 768_001)
_BLOCK = 1 << 16
# Containers that hold audio only, so that a playlist or a script named .mp3 never makes FFmpeg open what it names.
_CONTAINERS = "aac,aiff,amr,ape,asf,au,caf,flac,latm,loas,matroska,mov,mp3,mpc,mpegts,ogg,tta,w64,wav,webm,wv"
_SCALE = {"u8": 1 << 7, "s16": 1 << 15, "s32": 1 << 31, "s64": 1 << 63}


class AudioError(Exception):
    """A song that cannot be used: unreadable, empty, damaged or silent. The message says what to do."""


@dataclass(frozen=True)
class Waveform:
    """What `read_audio` got out of a file."""

    samples: np.ndarray  # float32 [C, N], full scale 1; at most the first `MAX_SECONDS` and the first two channels
    rate: int  # Hz
    seconds: float | None = None  # of the whole file; None: that of `samples`
    name: str = "the song"  # for messages
    warning: str = ""  # a sentence about what is odd in a file that can be used all the same

    @property
    def original_seconds(self) -> float:
        """Length of the file before any cropping, in seconds."""
        return self.samples.shape[1] / self.rate if self.seconds is None else self.seconds


@dataclass(frozen=True)
class WaveformInfo:
    """What `prepare_waveform` did to the length."""

    original_seconds: float
    cropped: bool  # the song is longer than `MAX_SECONDS`; only its beginning is used
    padded: bool  # the song is shorter than `MIN_SECONDS`; zeros follow it
    warning: str = ""  # that of the `Waveform`


def read_audio(path: Path, max_seconds: float = MAX_SECONDS) -> Waveform:
    """Decode the first `max_seconds` of a file, at its own rate; of more than two channels the first two.

    The decoder is chosen by the content, not by the name. Encoder delay and padding are dropped as the file states
    them. Raises AudioError when the file is missing, empty, no audio, damaged, or holds values that are not numbers.
    """
    path = Path(path)
    problems = []
    for decode in _decoders(path):
        try:
            waveform = decode(path, max_seconds)
        except (_Unreadable, ImportError) as error:
            problems.append(str(error))
            continue
        _check_numbers(waveform)
        return waveform
    raise _unreadable(path, problems)


def audio_seconds(path: Path) -> float:
    """Length of a file in seconds, from its header, or where that has none or only an estimate by counting packets.

    Nothing is decoded. Raises AudioError as `read_audio` does, as far as a header shows it.
    """
    path = Path(path)
    problems = []
    for decode in _decoders(path):
        measure = _seconds_with_soundfile if decode is _read_with_soundfile else _seconds_with_pyav
        try:
            return measure(path)
        except (_Unreadable, ImportError) as error:
            problems.append(str(error))
    raise _unreadable(path, problems)


def prepare_waveform(waveform: Waveform) -> tuple[torch.Tensor, WaveformInfo]:
    """The signal that latents and SSL features are computed from: float32 [2, L], 48 kHz, within [-1, 1], on the CPU.

    In this order, as ACE-Step v1 was trained: crop to 360 s, pad with zeros to 3 s, mono to both channels, of several
    channels the first two (no mix), resample, clamp, reject silence. 144 000 <= L <= 17 280 000.
    Raises AudioError when more than 95 % of the samples are exactly zero in both channels.
    """
    import torch

    samples, rate = waveform.samples, waveform.rate
    cropped = waveform.original_seconds > MAX_SECONDS or samples.shape[1] > MAX_SECONDS * rate
    padded = samples.shape[1] < MIN_SECONDS * rate
    samples = samples[:2, : MAX_SECONDS * rate]
    if padded:
        samples = np.pad(samples, ((0, 0), (0, MIN_SECONDS * rate - samples.shape[1])))
    if samples.shape[0] == 1:
        samples = np.repeat(samples, 2, axis=0)
    # Clamped after resampling, because the filter overshoots.
    wave = resample(torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32)), rate, SAMPLE_RATE)
    wave = wave.clamp(-1, 1)
    silent = (wave == 0).all(dim=0).sum().item() / wave.shape[1]
    if silent > MAX_SILENT_FRACTION:
        raise AudioError(
            f"{waveform.name} is silent: {silent:.1%} of its samples are exactly zero, at most "
            f"{MAX_SILENT_FRACTION:.0%} may be. Listen to the file; replace it or remove it from the folder."
        )
    return wave, WaveformInfo(waveform.original_seconds, cropped, padded, waveform.warning)


# --- Resampling ---


# Windowed sinc: zero crossings on each side, and the share of the narrower band that is kept.
_ZERO_CROSSINGS = 6
_ROLLOFF = 0.99
# Outputs computed at once; bounds the scratch memory to some tens of MB whatever the length of the song.
_OUTPUTS_PER_BLOCK = 1 << 18
_LEAST_PHASES = 32


def resample(wave: torch.Tensor, rate_in: int, rate_out: int) -> torch.Tensor:
    """Windowed-sinc resampling of float32 [C, N] to float32 [C, ceil(N * rate_out / rate_in)], on the same device.

    Equal to `torchaudio.functional.resample` with its defaults (Hann window, 6 zero crossings, rolloff 0.99) up to
    rounding: the taps are computed in float64. Only taps that are not zero are applied, phases in groups, so that
    odd pairs of rates cost no more than common ones.
    """
    import torch

    divisor = math.gcd(rate_in, rate_out)
    p, q = rate_in // divisor, rate_out // divisor
    if p == q:
        return wave
    # On a GPU in float64, for which no TF32 setting applies; it is little work there.
    dtype = torch.float64 if wave.device.type == "cuda" else torch.float32
    length = -(-q * wave.shape[1] // p)
    first, taps = _resampling_taps(p, q)  # [q], [q, K]
    tap_count = taps.shape[1]
    # Few phases make thin matrix products: treat several blocks of p inputs and q outputs as one.
    joined = -(-_LEAST_PHASES // q)
    first = (np.arange(joined)[:, None] * p + first).reshape(-1)
    taps = np.tile(taps, (joined, 1))
    p, q = p * joined, q * joined
    blocks = -(-length // q)
    # Output m*q + j needs inputs m*p + first[j] ... + K-1; everything outside the song is zero.
    left = -int(first[0])
    right = (blocks - 1) * p + int(first[-1]) + tap_count - wave.shape[1]
    padded = torch.nn.functional.pad(wave, (left, max(right, 0)))
    # Phases of a group read one common window, so that a group is one matrix product; about half of it is zeros.
    group = max(1, min(q, tap_count * q // p))
    result = torch.empty(wave.shape[0], blocks, q, dtype=torch.float32, device=wave.device)
    for low in range(0, q, group):
        high = min(low + group, q)
        offsets = first[low:high] - first[low]
        window = tap_count + int(offsets[-1])
        matrix = np.zeros((window, high - low))
        for column, offset in enumerate(offsets):
            matrix[offset : offset + tap_count, column] = taps[low + column]
        kernel = torch.from_numpy(matrix).to(torch.float32).to(wave.device, dtype)
        inputs = padded[:, left + int(first[low]) :].unfold(1, window, p)  # [C, >= blocks, window]
        step = max(1, _OUTPUTS_PER_BLOCK // (high - low))
        for start in range(0, blocks, step):
            piece = inputs[:, start : min(start + step, blocks)].to(dtype)
            result[:, start : start + step, low:high] = piece @ kernel
    return result.flatten(1)[:, :length]


@lru_cache(maxsize=8)
def _resampling_taps(p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    """Index of the first tap relative to the block's start [q], and the taps [q, K] in float64, of each phase."""
    band = min(p, q) * _ROLLOFF
    phase = np.arange(q)
    # |i/p - j/q| * band < zero crossings holds for these inputs i; taps outside have window value zero.
    centre, reach = phase * p / q, _ZERO_CROSSINGS * p / band
    first = np.ceil(centre - reach).astype(np.int64)
    tap_count = int((np.floor(centre + reach).astype(np.int64) - first).max()) + 1
    i = first[:, None] + np.arange(tap_count)
    t = np.clip((i / p - phase[:, None] / q) * band, -_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = np.cos(np.pi * t / (2 * _ZERO_CROSSINGS)) ** 2
    return first, band / p * window * np.sinc(t)


# --- Decoders ---


class _Unreadable(Exception):
    """One decoder's reason; another may still read the file."""


def _decoders(path: Path) -> list[Any]:
    """Decoders to try in turn, by the first bytes of the file. Raises AudioError when there is nothing to decode."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise AudioError(
            f"'{path}' cannot be opened: {error.strerror}. An audio file was expected. "
            "Check the name, the permissions and whether another program holds it open."
        ) from None
    if not head:
        raise AudioError(f"'{path}' is empty (0 bytes). An audio file was expected. Copy or download it again.")
    is_mpeg = head[:3] == b"ID3" or (head[0] == 0xFF and len(head) > 1 and head[1] & 0xE0 == 0xE0)
    if head[4:8] == b"ftyp" or is_mpeg or path.suffix.lower() == ".mp3":
        return [_read_with_pyav] if _has_pyav() else [_read_with_soundfile, _read_with_pyav]
    return [_read_with_soundfile, _read_with_pyav]


def _has_pyav() -> bool:
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def _unreadable(path: Path, problems: list[str]) -> AudioError:
    reasons = "; ".join(dict.fromkeys(problem.rstrip(".") for problem in problems))
    return AudioError(
        f"'{path}' cannot be decoded ({reasons}). An undamaged audio file was expected. "
        "Play it to see whether it is complete; convert it to .flac or .wav, or replace it."
    )


def _check_numbers(waveform: Waveform) -> None:
    samples = waveform.samples
    # One comparison for both: NaN is not smaller than anything.
    if samples.size and not (np.abs(samples).max() < _LARGEST_SAMPLE):
        bad = int((~(np.abs(samples) < _LARGEST_SAMPLE)).sum())
        raise AudioError(
            f"{waveform.name} holds {bad} samples that are not numbers (NaN or infinite). Values around -1 to 1 were "
            "expected. Export the song again from the program that made it."
        )


def _limit(rate: int, max_seconds: float) -> int:
    return math.floor(Fraction(max_seconds) * rate)


def _check_rate(rate: int) -> None:
    if rate not in _RATES:
        raise _Unreadable(f"the header states {rate} samples per second")


def _check_complete(decoded: int, expected: int, rate: int) -> None:
    if expected - decoded > _TOLERATED_LOSS_SECONDS * rate:
        raise _Unreadable(
            f"the file is damaged or cut off: only {decoded / rate:.1f} s of {expected / rate:.1f} s can be decoded"
        )


def _read_with_soundfile(path: Path, max_seconds: float) -> Waveform:
    import soundfile

    try:
        with soundfile.SoundFile(str(path)) as file:
            rate = file.samplerate
            _check_rate(rate)
            channels = min(file.channels, 2)
            expected = min(file.frames, _limit(rate, max_seconds))
            # Read in blocks, so that channels that are dropped never take memory for the whole length.
            samples = np.empty((channels, expected), dtype=np.float32)
            decoded = 0
            while decoded < expected:
                block = file.read(min(_BLOCK, expected - decoded), dtype="float32", always_2d=True)
                if not len(block):
                    break
                samples[:, decoded : decoded + len(block)] = block[:, :channels].T
                decoded += len(block)
            seconds = file.frames / rate
    except soundfile.LibsndfileError as error:
        raise _Unreadable(f"libsndfile: {error.error_string}") from None
    if not decoded:
        raise _Unreadable("it holds no samples")
    _check_complete(decoded, expected, rate)
    if decoded < expected:
        seconds = decoded / rate
    return Waveform(samples[:, :decoded], rate, seconds, f"'{path}'")


def _seconds_with_soundfile(path: Path) -> float:
    import soundfile

    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        raise _Unreadable(f"libsndfile: {error.error_string}") from None
    _check_rate(info.samplerate)
    if info.frames <= 0:
        raise _Unreadable("it holds no samples")
    return info.frames / info.samplerate


def _open_with_pyav(path: Path) -> Any:
    """An open container that has an audio stream."""
    try:
        import av
    except ImportError:
        raise _Unreadable("this format needs PyAV: pip install av") from None

    try:
        container = av.open(
            # The prefix keeps FFmpeg from reading a colon in the name as a protocol.
            f"file:{path.absolute()}",
            options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"},
            metadata_errors="replace",  # tags of old files are in any encoding
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _Unreadable(f"FFmpeg: {_reason(error)}") from None
    if not container.streams.audio:
        container.close()
        raise _Unreadable("FFmpeg: it holds no audio")
    return container


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _stated_samples(container: Any, stream: Any, rate: int) -> int | None:
    """Samples that the container states, None where it is an estimate from the size. MP4 and FLAC state them."""
    if container.format.name.split(",")[0] not in ("mov", "flac") or not stream.duration:
        return None
    return round(stream.duration * stream.time_base * rate)


def _promised_seconds(container: Any, stream: Any) -> float:
    """Length that the header of an MP3 states; 0 where there is none. A stated encoder delay shows that there is."""
    if container.format.name != "mp3" or not stream.start_time or not stream.duration:
        return 0.0
    return float(stream.duration * stream.time_base)


def _read_with_pyav(path: Path, max_seconds: float) -> Waveform:
    with _open_with_pyav(path) as container:
        stream = container.streams.audio[0]
        pieces: list[np.ndarray] = []
        decoded, rate, shape = 0, 0, None
        for frame in _frames(container, stream):
            piece = _frame_samples(frame)
            if shape is None:
                rate, shape = frame.sample_rate, (frame.sample_rate, len(piece))
                _check_rate(rate)
            elif (frame.sample_rate, len(piece)) != shape:
                raise _Unreadable(
                    f"its format changes after {decoded / rate:.1f} s from {shape[1]} channels at {rate} Hz "
                    f"to {len(piece)} channels at {frame.sample_rate} Hz"
                )
            pieces.append(piece[:2])
            decoded += piece.shape[1]
            # One sample more than is kept tells a song of exactly the limit from a longer one.
            if decoded > _limit(rate, max_seconds):
                break
        if not decoded:
            raise _Unreadable("FFmpeg: it holds no audio that can be decoded")
        stated = _stated_samples(container, stream, rate)
        promised = _promised_seconds(container, stream)
    # The last AAC frame of an MP4 is padded by the encoder; the container states where the song ends.
    samples = np.concatenate(pieces, axis=1)[:, :stated]
    limit = _limit(rate, max_seconds)
    if samples.shape[1] > limit:
        seconds = max(_seconds_with_pyav(path), samples.shape[1] / rate)
        return Waveform(samples[:, :limit], rate, seconds, f"'{path}'")
    seconds, warning = samples.shape[1] / rate, ""
    if stated is not None:
        _check_complete(samples.shape[1], stated, rate)
    elif promised - seconds > _TOLERATED_LOSS_SECONDS:
        # Not an error: programs that cut MP3 files without re-encoding leave the old length in the header.
        warning = (
            f"'{path}' ends after {seconds:.1f} s, its header states {promised:.1f} s. "
            "If the song stops in the middle, replace the file."
        )
    return Waveform(samples, rate, seconds, f"'{path}'", warning)


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames; a few damaged packets are left out, as players do (the last of a recording is often cut)."""
    import av

    packets, bad = 0, 0
    try:
        for packet in container.demux(stream):
            packets += 1
            try:
                yield from packet.decode()
            except av.FFmpegError:
                bad += 1
    except av.FFmpegError as error:
        raise _Unreadable(f"FFmpeg: {_reason(error)}") from None
    if bad > 1 + _TOLERATED_BAD_PACKETS * packets:
        raise _Unreadable(f"FFmpeg: {bad} of its {packets} packets are damaged")


def _frame_samples(frame: Any) -> np.ndarray:
    """float32 [C, n] of one frame, whatever its sample format; nothing is resampled or mixed."""
    values = frame.to_ndarray()
    kind = frame.format.name.removesuffix("p")
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if kind in ("flt", "dbl"):
        return values.astype(np.float32)
    scale = _SCALE[kind]
    if kind == "u8":
        values = values.astype(np.int16) - scale
    # float64 first: a 32-bit integer does not fit float32.
    return (values / scale).astype(np.float32)


def _seconds_with_pyav(path: Path) -> float:
    import av

    with _open_with_pyav(path) as container:
        stream = container.streams.audio[0]
        rate = stream.rate or 0
        _check_rate(rate)
        stated = _stated_samples(container, stream, rate)
        if stated:
            return stated / rate
        ticks = 0
        try:
            for packet in container.demux(stream):
                ticks += packet.duration or 0
        except av.FFmpegError:
            pass  # cut off: what came before counts
        counted = float(ticks * stream.time_base)
        header = float((stream.duration or 0) * stream.time_base)
    if not counted:
        raise _Unreadable("FFmpeg: it holds no audio that can be decoded")
    # An MP3 header states the length without encoder delay and padding, but may be an estimate or of a cut-off file.
    return header if 0 < counted - header < 0.15 else counted
