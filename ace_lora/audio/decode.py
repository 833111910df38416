"""Audio files to waveforms, and waveforms to the 48 kHz stereo signal that everything else starts from.

Shape legend: C channels, N samples at the file's own rate, L samples at 48 kHz.

libsndfile (through soundfile) decodes .wav, .ogg and .opus of one or two channels. FFmpeg (through PyAV) decodes all
else. libsndfile reads FLAC and MPEG audio too, with the same samples, but it gives up at a damaged frame and at the end
that a header states; for MPEG audio it takes an MP4 named `.mp3`, returns noise, and writes its remarks straight to
stderr. So it is only used for these where PyAV is not installed.

torch is imported by the functions that compute, so that a folder can be listed and measured without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ace_lora.audio.length import TOLERANCE_SECONDS, Statement, frame_is_whole, length_warning, read_statement

if TYPE_CHECKING:
    import torch

SAMPLE_RATE = 48_000
# Longer songs are cropped to their beginning, shorter ones padded with zeros, as in ACE-Step v1's own training.
MAX_SECONDS = 360
MIN_SECONDS = 3
MAX_SILENT_FRACTION = 0.95

# A decoder that stops this much before the end has met damage; another one may get over it.
_TOLERATED_LOSS_SECONDS = 1.0
_TOLERATED_BAD_PACKETS = 0.01
# Beyond this a float sample is a damaged number, and its sums in the resampler would overflow.
_LARGEST_SAMPLE = 1e30
_RATES = range(1_000, 768_001)
_BLOCK = 1 << 16
# Containers that hold audio only, so that a playlist or a script named .mp3 never makes FFmpeg open what it names.
_CONTAINERS = "aac,aiff,amr,ape,asf,au,caf,flac,latm,loas,matroska,mov,mp3,mpc,mpegts,ogg,tta,w64,wav,webm,wv"
# Below this (-60 dB) nothing is heard; so much of it at an end is said.
_SILENT, _SILENT_SECONDS = 1e-3, 3.0
# What a lossy coder adds to peaks is cut off, as players do; what was too loud before it was coded reaches further.
_CODER_OVERSHOOT = 2**0.5
# PyAV (18.1) reads beyond a frame of eight planes and crashes.
_MOST_PLANES = 7
_EXACT_CODECS = ("pcm_", "flac", "alac", "wavpack", "ape", "tta")
_SCALE = {"u8": 1 << 7, "s16": 1 << 15, "s32": 1 << 31, "s64": 1 << 63}


class AudioError(Exception):
    """A song that cannot be used: unreadable, empty, damaged or silent. The message says what to do."""


@dataclass(frozen=True)
class Waveform:
    """What `read_audio` got out of a file."""

    samples: np.ndarray  # float32 [C, N], C 1 or 2, full scale 1; at most the first `MAX_SECONDS`
    rate: int  # Hz
    seconds: float | None = None  # of the whole file; None: that of `samples`
    name: str = "the song"  # for messages
    length_warning: str = ""  # a sentence where the file holds not what it states
    other_warnings: str = ""  # sentences on what else is odd
    channels: int = 2  # of the file
    turned_down: bool = False  # it reached above full scale

    @property
    def warning(self) -> str:
        """All that is odd in a file that can be used all the same."""
        return f"{self.length_warning} {self.other_warnings}".strip()

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
    """Decode the first `max_seconds` of a file, at its own rate; more than two channels are mixed down to stereo.

    The decoder is chosen by the content, not by the name. Encoder delay and padding are dropped as the file states
    them. What lies above full scale is turned down, not cut off. Raises AudioError when the file is missing, empty, no
    audio, damaged, or holds values that are not numbers.
    """
    path = Path(path)
    problems = []
    for decode in _decoders(path):
        try:
            decoded = decode(path, max_seconds)
        except (_Unreadable, ImportError) as error:
            problems.append(str(error))
            continue
        _check_numbers(decoded.samples, path)
        samples, loud = _within_full_scale(decoded)
        used = samples.shape[1] / decoded.rate
        length = length_warning(path, used if decoded.whole else decoded.seconds, decoded.seconds, decoded.statement)
        silence = _silence_at_ends(samples, decoded.rate, decoded.whole)
        return Waveform(
            samples,
            decoded.rate,
            decoded.seconds_used(),
            f"'{path}'",
            length,
            f"{loud} {silence}".strip(),
            decoded.channels,
            bool(loud),
        )
    raise _unreadable(path, problems)


def measure_length(path: Path) -> tuple[float, str]:
    """Length of a file in seconds, and the sentence of `read_audio` on a file that holds not what it states, or "".

    Told from the header, or where that has none or only an estimate by counting packets; nothing is decoded.
    Raises AudioError as `read_audio` does, as far as this shows it.
    """
    path = Path(path)
    problems = []
    for decode in _decoders(path):
        measure = _measure_with_soundfile if decode is _read_with_soundfile else _measure_with_pyav
        try:
            used, there, statement = measure(path)
        except (_Unreadable, ImportError) as error:
            problems.append(str(error))
            continue
        return used, length_warning(path, used, there, statement)
    raise _unreadable(path, problems)


def audio_seconds(path: Path) -> float:
    """Length of a file in seconds; see `measure_length`. Raises AudioError as it does."""
    return measure_length(path)[0]


def prepare_waveform(waveform: Waveform) -> tuple[torch.Tensor, WaveformInfo]:
    """The signal that latents and SSL features are computed from: float32 [2, L], 48 kHz, within [-1, 1], on the CPU.

    In this order, as ACE-Step v1 was trained: crop to 360 s, pad with zeros to 3 s, mono to both channels, of several
    channels the first two (`read_audio` mixes before), resample, clamp, reject silence. 144 000 <= L <= 17 280 000.
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


@dataclass(frozen=True)
class _Decoded:
    """What one decoder made of a file."""

    samples: np.ndarray  # float32 [C, N], C 1 or 2
    rate: int
    whole: bool  # False: decoding ended at the limit
    seconds: float  # of sound in the file
    statement: Statement
    exact: bool  # samples are kept as they are (PCM, float), not coded with a loss
    channels: int  # of the file

    def seconds_used(self) -> float:
        return self.samples.shape[1] / self.rate if self.whole else self.seconds


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
    if head[4:8] == b"ftyp" or head[:4] == b"fLaC" or is_mpeg or path.suffix.lower() == ".mp3":
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


def _check_numbers(samples: np.ndarray, path: Path) -> None:
    # One comparison for both: NaN is not smaller than anything.
    if samples.size and not (np.abs(samples).max() < _LARGEST_SAMPLE):
        bad = int((~(np.abs(samples) < _LARGEST_SAMPLE)).sum())
        raise AudioError(
            f"'{path}' holds {bad} samples that are not numbers (NaN or infinite). Values around -1 to 1 were "
            "expected. Export the song again from the program that made it."
        )


def _within_full_scale(decoded: _Decoded) -> tuple[np.ndarray, str]:
    """The samples, turned down where their peak is above full scale, and a sentence on that or ""."""
    peak = float(np.abs(decoded.samples).max()) if decoded.samples.size else 0.0
    if peak <= (1.0 if decoded.exact else _CODER_OVERSHOOT):
        return decoded.samples, ""
    decibels = 20 * math.log10(peak)
    return decoded.samples / np.float32(peak), (
        f"It reaches {decibels:.1f} dB above full scale and is turned down by as much, so that nothing is cut off."
    )


def _silence_at_ends(samples: np.ndarray, rate: int, whole: bool) -> str:
    """A sentence on long silence before and behind the song, or ""; a song that is silent throughout has none."""
    heard = np.flatnonzero((np.abs(samples) > _SILENT).any(axis=0))
    if not heard.size:
        return ""
    before, behind = heard[0] / rate, (samples.shape[1] - 1 - heard[-1]) / rate
    ends = [f"begins with {before:.1f} s"] if before >= _SILENT_SECONDS else []
    ends += [f"ends with {behind:.1f} s"] if whole and behind >= _SILENT_SECONDS else []
    if not ends:
        return ""
    return f"It {' and '.join(ends)} of silence, which is trained like music. Cut it off if it does not belong."


def _limit(rate: int, max_seconds: float) -> int:
    return math.floor(Fraction(max_seconds) * rate)


def _check_rate(rate: int) -> None:
    if rate not in _RATES:
        raise _Unreadable(f"the header states {rate} samples per second")


def _read_with_soundfile(path: Path, max_seconds: float) -> _Decoded:
    import soundfile

    try:
        with soundfile.SoundFile(str(path)) as file:
            rate = file.samplerate
            _check_rate(rate)
            if file.channels > 2:
                raise _Unreadable("which channel stands where is PyAV's to tell: pip install av")
            stated = file.frames
            expected = min(stated, _limit(rate, max_seconds))
            samples = np.empty((file.channels, expected), dtype=np.float32)
            decoded = 0
            while decoded < expected:
                block = file.read(min(_BLOCK, expected - decoded), dtype="float32", always_2d=True)
                if not len(block):
                    break
                samples[:, decoded : decoded + len(block)] = block.T
                decoded += len(block)
            exact = file.subtype not in ("VORBIS", "OPUS") and not file.subtype.startswith("MPEG")
    except soundfile.LibsndfileError as error:
        raise _Unreadable(f"libsndfile: {error.error_string}") from None
    if not decoded:
        raise _Unreadable("it holds no samples")
    if expected - decoded > _TOLERATED_LOSS_SECONDS * rate:
        raise _Unreadable(
            f"the file is damaged or cut off: only {decoded / rate:.1f} s of {expected / rate:.1f} s can be decoded"
        )
    whole = decoded < expected or expected == stated
    statement = read_statement(path)
    seconds = decoded / rate if whole else stated / rate
    # More than this decoder takes may lie behind its end.
    seconds = max(seconds, statement.there or 0.0)
    return _Decoded(samples[:, :decoded], rate, whole, seconds, statement, exact, len(samples))


def _measure_with_soundfile(path: Path) -> tuple[float, float, Statement]:
    """Seconds that are used, seconds that are there, and what the file states."""
    import soundfile

    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        raise _Unreadable(f"libsndfile: {error.error_string}") from None
    _check_rate(info.samplerate)
    if info.channels > 2:
        raise _Unreadable("which channel stands where is PyAV's to tell: pip install av")
    if info.frames <= 0:
        raise _Unreadable("it holds no samples")
    used, statement = info.frames / info.samplerate, read_statement(path)
    return used, max(used, statement.there or 0.0), statement


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
    """Samples that an MP4 states; its last frame is padded by the encoder."""
    if container.format.name.split(",")[0] != "mov" or not stream.duration:
        return None
    return round(stream.duration * stream.time_base * rate)


def _statement_with_pyav(path: Path, container: Any, stream: Any) -> Statement:
    """What the file states, where our own reading of headers does not know its container."""
    statement = read_statement(path)
    kind = container.format.name.split(",")[0]
    if statement != Statement() or kind in ("aac", "mp3", "flac", "ogg", "wav"):  # FFmpeg's length is an estimate
        return statement
    if stream.duration:
        return Statement(float(stream.duration * stream.time_base))
    return Statement(container.duration / 1_000_000) if container.duration else statement


def _read_with_pyav(path: Path, max_seconds: float) -> _Decoded:
    with _open_with_pyav(path) as container:
        stream = container.streams.audio[0]
        pieces: list[np.ndarray] = []
        decoded, rate, shape = 0, 0, None
        packets = _Packets(container, stream)
        for frame in packets.frames():
            piece = _frame_samples(frame)
            if shape is None:
                rate, shape = frame.sample_rate, (frame.sample_rate, len(piece))
                _check_rate(rate)
            elif (frame.sample_rate, len(piece)) != shape:
                raise _Unreadable(
                    f"its format changes after {decoded / rate:.1f} s from {shape[1]} channels at {rate} Hz "
                    f"to {len(piece)} channels at {frame.sample_rate} Hz"
                )
            pieces.append(piece if len(piece) < 3 else downmix(piece, _channel_names(frame)))
            decoded += piece.shape[1]
            # One sample more than is kept tells a song of exactly the limit from a longer one.
            if decoded > _limit(rate, max_seconds):
                break
        if not decoded or shape is None:
            raise _Unreadable("FFmpeg: it holds no audio that can be decoded")
        stated = _stated_samples(container, stream, rate)
        statement = _statement_with_pyav(path, container, stream)
        exact = stream.codec_context.name.startswith(_EXACT_CODECS)
    samples = np.concatenate(pieces, axis=1)[:, :stated]
    limit = _limit(rate, max_seconds)
    if samples.shape[1] > limit:
        _, there, statement = _measure_with_pyav(path)
        return _Decoded(
            samples[:, :limit], rate, False, max(there, samples.shape[1] / rate), statement, exact, shape[1]
        )
    if not packets.ended:
        statement = replace(statement, ended=False)
    seconds = max(samples.shape[1] / rate, statement.there or 0.0)
    return _Decoded(samples, rate, True, seconds, statement, exact, shape[1])


class _Packets:
    """The packets of a stream, decoded; a few damaged ones are left out, as players do."""

    def __init__(self, container: Any, stream: Any):
        self.container, self.stream = container, stream
        self.ended = True  # False when the last one is cut off

    def frames(self) -> Iterator[Any]:
        """Decoded frames. Raises _Unreadable where more is damaged than a little."""
        import av

        packets, bad, last, whole = 0, 0, b"", True
        try:
            for packet in self.container.demux(self.stream):
                packets += 1
                try:
                    if packet.size:
                        last, whole = bytes(packet), True
                    yield from packet.decode()
                except av.FFmpegError:
                    bad, whole = bad + 1, False
        except av.FFmpegError as error:
            if packets == bad:
                raise _Unreadable(f"FFmpeg: {_reason(error)}") from None
            whole = False
        if bad > 1 + _TOLERATED_BAD_PACKETS * packets:
            raise _Unreadable(f"FFmpeg: {bad} of its {packets} packets are damaged")
        self.ended = whole and _ends_whole(self.container, last)


def _channel_names(frame: Any) -> list[str]:
    """FFmpeg's names of the channels, `FL`, `FR`, `FC` …; where the file has none, in the order that WAV has them."""
    names = [channel.name for channel in frame.layout.channels]
    return names if "FL" in names else list(_CHANNELS_BY_COUNT.get(len(names), names))


def _frame_samples(frame: Any) -> np.ndarray:
    """float32 [C, n] of one frame, whatever its sample format and number of channels."""
    import av

    kind = frame.format.name.removesuffix("p")
    if frame.format.is_planar and frame.layout.nb_channels > _MOST_PLANES:
        (frame,) = av.AudioResampler(format=kind, layout=frame.layout).resample(frame)  # one plane; nothing is mixed
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if kind in ("flt", "dbl"):
        return values.astype(np.float32)
    scale = _SCALE[kind]
    if kind == "u8":
        values = values.astype(np.int16) - scale
    # float64 first: a 32-bit integer does not fit float32.
    return (values / scale).astype(np.float32)


def _measure_with_pyav(path: Path) -> tuple[float, float, Statement]:
    """Seconds that are used, seconds that are there, and what the file states."""
    import av

    with _open_with_pyav(path) as container:
        stream, kind = container.streams.audio[0], container.format.name
        rate = stream.rate or 0
        _check_rate(rate)
        statement = _statement_with_pyav(path, container, stream)
        ticks, end, last, whole = 0, 0, None, True
        try:
            for packet in container.demux(stream):
                ticks += packet.duration or 0
                if packet.size:
                    last = packet
                    end = max(end, (packet.pts or 0) + (packet.duration or 0))
        except av.FFmpegError:  # cut off: what came before counts
            whole = False
        if last is not None and not _ends_whole(container, bytes(last)):
            whole = False
            ticks -= last.duration or 0  # decoding leaves it out
        if not whole:
            statement = replace(statement, ended=False)
        stated = _stated_samples(container, stream, rate)
        if kind.startswith("matroska") or kind == "asf":
            ticks = end - (stream.start_time or 0)  # these round durations
        counted = float(ticks * stream.time_base)
        header = float((stream.duration or 0) * stream.time_base)
        delay = float((stream.start_time or 0) * stream.time_base) if kind == "mp3" else 0.0
    if kind == "flac" and statement.seconds and abs(statement.seconds - counted) > TOLERANCE_SECONDS:
        counted = _count_by_decoding(path)  # what is not a whole frame passes for one
    if counted <= 0:
        raise _Unreadable("FFmpeg: it holds no audio that can be decoded")
    used = min(counted, stated / rate) if stated else counted - delay
    # The header of an MP3 states the length without the padding too.
    if not stated and 0 < counted - header < 0.15:
        used = header
    return used, max(used, statement.there or 0.0), statement


def _ends_whole(container: Any, packet: bytes) -> bool:
    """Whether the last packet of a file is not cut off, as far as it shows by itself."""
    return container.format.name not in ("aac", "mp3") or frame_is_whole(packet)


def _count_by_decoding(path: Path) -> float:
    """Seconds that are there."""
    with _open_with_pyav(path) as container:
        stream = container.streams.audio[0]
        return sum(frame.samples for frame in _Packets(container, stream).frames()) / (stream.rate or 1)


# --- Several channels to two ---

# The order of a WAV without a channel mask, and of FLAC (RFC 9639, section 9.1.3).
_CHANNELS_BY_COUNT = {
    3: ("FL", "FR", "FC"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}
_HALF_POWER = 2**-0.5
# ITU-R BS.775-4, annex 4: centre and surrounds at -3 dB, a single surround at -3 dB divided between both sides, the
# low-frequency channel not at all. The pairs of 7.1 are both surrounds; what lies above or beside counts as its pair.
_INTO_STEREO = {
    "FC": (_HALF_POWER, _HALF_POWER),
    **dict.fromkeys(("FL", "DL", "WL"), (1.0, 0.0)),
    **dict.fromkeys(("FR", "DR", "WR"), (0.0, 1.0)),
    **dict.fromkeys(("BL", "SL", "FLC", "TFL", "TBL", "TSL"), (_HALF_POWER, 0.0)),
    **dict.fromkeys(("BR", "SR", "FRC", "TFR", "TBR", "TSR"), (0.0, _HALF_POWER)),
    **dict.fromkeys(("BC", "TC", "TFC", "TBC"), (0.5, 0.5)),
}


def downmix(samples: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """float32 [C, n] of channels with FFmpeg's names to stereo float32 [2, n], by ITU-R BS.775."""
    matrix = np.array([_INTO_STEREO.get(name, (0.0, 0.0)) for name in names], dtype=np.float32)
    if not matrix.any():
        matrix[0, 0] = matrix[1, 1] = 1.0  # names that nobody knows: the first two, as they are
    return matrix.T @ samples
