"""What an audio file states of its own length, told from its headers, and the words on a file that does not hold it.

A download that broke off, a full disk or a cut without an editor leave files whose beginning plays. Nothing is decoded
here: WAV by its chunks (Microsoft, Multimedia Programming Interface 1.0; EBU Tech 3306 for RF64), FLAC by STREAMINFO
(RFC 9639), MPEG audio by the Xing, Info or VBRI frame, Ogg by its pages (RFC 3533). What the other containers state is
FFmpeg's to tell. Standard library only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# Less is a matter of counting: encoder delay, the padding of a last frame, rounding in a header.
TOLERANCE_SECONDS = 0.25

_MAX_CHUNKS = 10_000
_CHUNKS = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"cue ", b"smpl", b"inst", b"iXML", b"PEAK", b"fact", b"_PMX", b"JUNK")
# Sizes that programs write which do not know the length yet: they write to a pipe, or did not come to their end.
_UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFE)
_OGG_HEADER = struct.Struct("<4sBBqIIIB")  # the granule position is signed
# Layer III of MPEG-1, and of MPEG-2 and 2.5, by the index in a frame's header from 1 on.
_MPEG_KBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2_KBITS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MPEG_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


@dataclass(frozen=True)
class Statement:
    """What a file says of its length; what it does not say is None."""

    seconds: float | None = None
    there: float | None = None  # seconds of audio in the file, where sizes alone tell that
    ended: bool = True  # False: the mark at the end of the stream is missing
    parts: int = 1  # recordings one after another


def read_statement(path: Path) -> Statement:
    """What the headers of a file say of its length; an empty statement where they say nothing. Raises OSError."""
    with Path(path).open("rb") as file:
        head = file.read(16)
        size = file.seek(0, 2)
        file.seek(0)
        try:
            if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
                return _wav(file, size)
            if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
                return _aiff(file, size)
            if head[:4] == b"fLaC":
                return _flac(file)
            if head[:4] == b"OggS":
                return _ogg(file, size)
            if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0):
                return _mpeg(file)
        except (struct.error, IndexError, ZeroDivisionError, OverflowError):
            pass  # headers that are damaged state nothing
    return Statement()


def length_warning(path: Path, used: float, there: float, statement: Statement) -> str:
    """A sentence where a file holds more or less than it states, else "".

    `used` and `there` are seconds: what was or will be taken of the file, and what it holds.
    """
    stated = statement.seconds
    if stated is not None and stated - there > TOLERANCE_SECONDS:
        return (
            f"'{path}' ends after {there:.1f} s, its header states {stated:.1f} s. "
            "If the song stops in the middle, replace the file."
        )
    if not statement.ended:
        return (
            f"'{path}' ends after {there:.1f} s without the mark that ends its stream. "
            "If the song stops in the middle, replace the file."
        )
    share = "all of them are used" if there - used <= TOLERANCE_SECONDS else f"only the first {used:.1f} s are used"
    if statement.parts > 1:
        return (
            f"'{path}' holds {statement.parts} recordings one after another, {there:.1f} s together; {share}. "
            "If these are several songs, save each to a file of its own."
        )
    if stated is not None and there - stated > TOLERANCE_SECONDS:
        return (
            f"'{path}' holds {there:.1f} s, its header states {stated:.1f} s; {share}. "
            "If that is not the song, save it again from an audio editor."
        )
    return ""


def frame_is_whole(frame: bytes) -> bool:
    """Whether the last frame of an MP3 or of raw AAC has the length that its header states; True of anything else."""
    if len(frame) < 7 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return True
    if frame[1] & 0xF6 == 0xF0:  # ADTS
        return len(frame) >= (frame[3] & 3) << 11 | frame[4] << 3 | frame[5] >> 5
    version, rate_index, bit_index = frame[1] >> 3 & 3, frame[2] >> 2 & 3, frame[2] >> 4
    if frame[1] & 6 != 2 or version == 1 or rate_index == 3 or bit_index in (0, 15):
        return True
    first = version == 3
    bits = (_MPEG_KBITS if first else _MPEG2_KBITS)[bit_index - 1] * 1000
    return len(frame) >= (144 if first else 72) * bits // _MPEG_RATES[version][rate_index]


def _wav(file: BinaryIO, size: int) -> Statement:
    file.seek(12)
    long_size = bytes_per_second = None
    for _ in range(_MAX_CHUNKS):
        name, length = struct.unpack("<4sI", file.read(8))
        body = file.tell()
        if name == b"ds64":
            long_size = struct.unpack("<QQ", file.read(16))[1]
        elif name == b"fmt ":
            kind, _, rate, average, block = struct.unpack("<HHIIH", file.read(14))
            # Other formats than PCM, float and what extends them have blocks of many samples.
            bytes_per_second = rate * block if kind in (1, 3, 0xFFFE) else average
        elif name == b"data":
            if not bytes_per_second:
                return Statement()
            left = size - body
            if length == 0xFFFFFFFF and long_size:
                length = long_size
            elif length in _UNKNOWN_SIZES:
                return Statement(there=left / bytes_per_second)
            more, parts = _behind_data(file, body + length + length % 2, size)
            return Statement(length / bytes_per_second, (min(length, left) + more) / bytes_per_second, parts=parts)
        file.seek(body + length + length % 2)
    return Statement()


def _behind_data(file: BinaryIO, place: int, size: int) -> tuple[int, int]:
    """Bytes behind the data of a WAV that are no chunks, so samples, and how many recordings there are."""
    for _ in range(_MAX_CHUNKS):
        if place + 8 > size:
            return 0, 1
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        if name in (b"RIFF", b"RF64"):
            return size - place, 2
        if not any(name):  # zeros up to the end of a disk block, or digital silence
            place += 4
        elif name in _CHUNKS or (name.isalnum() and place + 8 + length <= size):
            place += 8 + length + length % 2
        else:
            return size - place, 1
    return 0, 1


def _flac(file: BinaryIO) -> Statement:
    file.seek(4 + 4 + 10)
    packed = int.from_bytes(file.read(8), "big")  # 20 bits of rate, 3 of channels, 5 of depth, 36 of samples
    rate, samples = packed >> 44, packed & ((1 << 36) - 1)
    return Statement(samples / rate if samples and rate else None)


def _aiff(file: BinaryIO, size: int) -> Statement:
    """AIFF and AIFF-C (Apple, 1989 and 1991): COMM holds frames and rate, SSND the samples."""
    file.seek(12)
    seconds = 0.0
    for _ in range(_MAX_CHUNKS):
        name, length = struct.unpack(">4sI", file.read(8))
        body = file.tell()
        if name == b"COMM":
            _, frames, _, exponent, mantissa = struct.unpack(">hIhHQ", file.read(18))
            seconds = frames / (mantissa * 2.0 ** (exponent - 16383 - 63))  # an 80-bit float
        elif name == b"SSND" and seconds:
            return Statement(seconds, seconds * min(1.0, (size - body) / length))
        file.seek(body + length + length % 2)
    return Statement()


def _ogg(file: BinaryIO, size: int) -> Statement:
    """Walks over the pages; a stream begins at a page with flag 2 and ends at one with flag 4."""
    open_streams: set[int] = set()
    clocks: dict[int, tuple[int, int]] = {}  # rate and first sample of each stream whose codec is known
    reached: dict[int, float] = {}  # seconds
    begun, place, whole = 0, 0, True
    while place + 27 <= size:
        file.seek(place)
        capture, _, flags, position, serial, _, _, segments = _OGG_HEADER.unpack(file.read(27))
        if capture != b"OggS":
            return Statement()  # damaged in the middle: what it holds is the decoder's to tell
        length = 27 + segments + sum(file.read(segments))
        if place + length > size:
            whole = False
            break
        if flags & 2:
            # Several streams that begin together are one recording.
            begun += not open_streams
            open_streams.add(serial)
            if clock := _ogg_clock(file.read(64)):
                clocks[serial] = clock
        if flags & 4:
            open_streams.discard(serial)
        if serial in clocks and position > 0:  # -1 where no packet ends on the page
            rate, first = clocks[serial]
            reached[serial] = max(0, position - first) / rate
        place += length
    whole = whole and not open_streams and place == size
    return Statement(there=sum(reached.values()) or None if begun > 1 else None, ended=whole, parts=max(begun, 1))


def _ogg_clock(packet: bytes) -> tuple[int, int] | None:
    """Samples per second and number of the first sample, from the first packet of an audio stream."""
    if packet[:7] == b"\x01vorbis":
        return struct.unpack("<I", packet[12:16])[0], 0
    if packet[:8] == b"OpusHead":
        return 48_000, struct.unpack("<H", packet[10:12])[0]
    if packet[:5] == b"\x7fFLAC":
        return int.from_bytes(packet[27:35], "big") >> 44, 0
    return None


def _mpeg(file: BinaryIO) -> Statement:
    """The length that the first frame of an MP3 states: its frames, without delay and padding where those are told."""
    file.seek(0)
    start = 0
    while (head := file.read(10))[:3] == b"ID3" and len(head) == 10:
        length = 0
        for byte in head[6:10]:
            length = length << 7 | byte & 0x7F
        start += 10 + length + (10 if head[5] & 0x10 else 0)
        file.seek(start)
    file.seek(start)
    data = file.read(1 << 16)
    place = data.find(b"\xff")
    while 0 <= place < len(data) - 4 and data[place + 1] & 0xE6 != 0xE2:  # sync and layer III
        place = data.find(b"\xff", place + 1)
    if not 0 <= place < len(data) - 4:
        return Statement()
    version, rate_index, mono = data[place + 1] >> 3 & 3, data[place + 2] >> 2 & 3, data[place + 3] >> 6 == 3
    if version == 1 or rate_index == 3:
        return Statement()
    rate = _MPEG_RATES[version][rate_index]
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    tag = data[place + 4 + side :]
    per_frame = 1152 if version == 3 else 576
    if tag[:4] in (b"Xing", b"Info") and tag[7] & 1:
        frames = struct.unpack(">I", tag[8:12])[0]
        lame = 8 + 4 + (4 if tag[7] & 2 else 0) + (100 if tag[7] & 4 else 0) + (4 if tag[7] & 8 else 0)
        cut = int.from_bytes(tag[lame + 21 : lame + 24], "big") if tag[lame : lame + 4].isalnum() else 0
        samples = frames * per_frame - (cut >> 12) - (cut & 0xFFF)
    elif data[place + 36 : place + 40] == b"VBRI":
        samples = struct.unpack(">I", data[place + 50 : place + 54])[0] * per_frame
    else:
        return Statement()
    return Statement(samples / rate) if samples > 0 else Statement()
