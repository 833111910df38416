"""Reading real files of every format, and the way from a file to 48 kHz, compared with the golden data."""

from __future__ import annotations

import re
import struct
import subprocess
import sys

import av
import numpy as np
import pytest
import soundfile
import torch

from ace_lora.audio.decode import (
    AudioError,
    Waveform,
    _resampling_taps,
    audio_seconds,
    measure_length,
    prepare_waveform,
    read_audio,
    resample,
)
from tests.golden_audio import assert_close, assert_digest, audio, golden_json, golden_tensors

RATE = 44_100
LENGTH = 2 * RATE + 123


def tone(channels: int = 2, length: int = LENGTH, rate: int = RATE) -> np.ndarray:
    """float32 [C, N]: another pitch in each channel, fading out, so that shifts and swaps are seen."""
    n = np.arange(length)
    pitches = 220 * (1 + np.arange(channels))[:, None]
    return (0.4 * np.sin(2 * np.pi * pitches * n / rate) * np.linspace(1, 0.2, length)).astype(np.float32)


def encode(path, samples: np.ndarray, codec: str, rate: int = RATE, layout: str = "", kind: str | None = None) -> None:
    # The index of an MP4 stands first: one that was cut off could not be read.
    options = {"movflags": "faststart"} if path.suffix == ".m4a" else {}
    with av.open(str(path), "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout or ("stereo" if len(samples) == 2 else "mono")
        stream.bit_rate = 128_000
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.pts = rate, 0
        for converted in av.AudioResampler(format=stream.format or "fltp", layout=stream.layout).resample(frame):
            container.mux(stream.encode(converted))
        container.mux(stream.encode(None))


def write_song(path, samples: np.ndarray | None = None, rate: int = RATE):
    """A song in the format of the file's ending."""
    samples = tone() if samples is None else samples
    if path.suffix in (".m4a", ".aac", ".mka"):
        encode(path, samples, "aac", rate)
    elif path.suffix == ".aif":
        soundfile.write(path, samples.T, rate, format="AIFF")
    elif path.suffix == ".opus":
        soundfile.write(path, samples.T, rate, format="OGG", subtype="OPUS")
    else:
        soundfile.write(path, samples.T, rate)
    return path


# --- Resampling ---


@pytest.mark.parametrize("pair", list(golden_json("resample")))
def test_resampling_equals_the_golden(pair):
    case = golden_json("resample")[pair]
    rate_in, rate_out = (int(rate) for rate in pair.split("_"))
    result = resample(torch.from_numpy(audio(case["input"])), rate_in, rate_out)
    stored = golden_tensors("resample")
    assert result.shape[1] == case["out_samples"]
    assert_close(result, stored[f"{pair}.transform"], 1e-5)
    # Our kernel is built in float64 throughout, this golden's in float32.
    np.testing.assert_allclose(result, stored[f"{pair}.functional"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("pair", list(golden_json("resample")))
def test_resampling_taps_are_the_golden_kernel_without_its_zeros(pair):
    case = golden_json("resample")[pair]
    q, _, length = case["kernel_shape"]
    width = case["width"]
    first, taps = _resampling_taps(length - 2 * width, q)
    dense = np.zeros((q, length + 2))
    for phase in range(q):
        start = first[phase] + width
        dense[phase, start : start + taps.shape[1]] = taps[phase]
    assert_digest(
        dense[:, None, :length].astype(np.float32),
        case["kernel_digest"],
        "kernel.{}.{}".format(*pair.split("_")),
        1e-5,
    )


@pytest.mark.parametrize(
    ("rate_in", "rate_out"), [(44_101, 48_000), (11_025, 48_000), (192_000, 48_000), (8_000, 48_000), (48_000, 16_000)]
)
@pytest.mark.parametrize("length", [1, 5, 1000, 44_101])
def test_resampled_length_is_exact_for_any_rate_and_length(rate_in, rate_out, length):
    result = resample(torch.ones(1, length), rate_in, rate_out)
    assert result.shape == (1, -(-length * rate_out // rate_in))
    if length == 44_101:
        # Far from the ends a constant stays what it was: the taps of each phase sum to one, nearly.
        middle = result[0, result.shape[1] // 4 : -result.shape[1] // 4]
        assert (middle - 1).abs().max() < 2e-2


def test_resampling_in_blocks_equals_the_definition(monkeypatch):
    monkeypatch.setattr("ace_lora.audio.decode._OUTPUTS_PER_BLOCK", 64)
    x = torch.from_numpy(audio({"name": "blocks", "channels": 1, "samples": 900, "rate": 44_100, "amp": 1.0}))
    p, q, width = 147, 160, 7
    band = p * 0.99
    k = np.arange(2 * width + p) - width
    t = np.clip((k / p - np.arange(q)[:, None] / q) * band, -6, 6)
    kernel = band / p * np.cos(np.pi * t / 12) ** 2 * np.sinc(t)
    padded = np.pad(x[0].double().numpy(), (width, width + p))
    blocks = (len(padded) - kernel.shape[1]) // p + 1
    expected = np.concatenate([kernel @ padded[m * p : m * p + kernel.shape[1]] for m in range(blocks)])
    result = resample(x, 44_100, 48_000)
    np.testing.assert_allclose(result[0], expected[: result.shape[1]], rtol=0, atol=1e-6)


def test_equal_rates_return_the_input_unchanged():
    x = torch.randn(2, 100)
    assert resample(x, 48_000, 48_000) is x


# --- From a waveform to 48 kHz ---


@pytest.mark.parametrize("name", list(golden_json("audioload")))
def test_loader_rules_equal_the_golden(name):
    case = golden_json("audioload")[name]
    samples, rate = audio(case["input"]), case["input"]["rate"]
    if name == "sil95":
        samples[:, 3100:] = 0
    elif name == "sil_left":
        samples[0] = 0
    elif name == "sil_most":
        samples[:, 1000:] = 0
    if case["result"] is None:
        with pytest.raises(AudioError, match=r"is silent: 9[0-9]\.\d% .* replace it or remove it"):
            prepare_waveform(Waveform(samples, rate))
        return
    wave, info = prepare_waveform(Waveform(samples, rate))
    expected = case["result"]
    assert list(wave.shape) == expected["shape"] and wave.dtype == torch.float32
    assert info.cropped == (name == "crop") and info.padded == (name == "short")
    assert info.original_seconds == samples.shape[1] / rate
    assert_digest(wave[:, :5000], expected["digest_first_5000"], f"g.load.{name}.head", 1e-4)
    assert_digest(wave[:, -5000:], expected["digest_last_5000"], f"g.load.{name}.out", 1e-4)
    # The reference also applies taps of 1e-33 beyond the window, so that a few more samples beside silence are not 0.
    zeros = (wave == 0).all(dim=0).double().mean().item()
    assert 0 <= zeros - expected["zero_fraction_all_channels"] < 5e-5
    # A sample at the very edge of full scale may fall on either side.
    assert int((wave.abs() == 1).sum()) == pytest.approx(expected["clipped"], abs=3)


def test_quiet_is_not_silent():
    wave, _ = prepare_waveform(Waveform(np.full((1, 200_000), 1e-20, np.float32), 48_000))
    assert wave.shape == (2, 200_000)


# --- Files ---

EXTENSIONS = (".aac", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav")


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_is_read_with_its_true_length(tmp_path, extension, channels):
    rate = 48_000 if extension == ".opus" else RATE
    folder = tmp_path / "我的 歌 🎵"
    folder.mkdir()
    song = write_song(folder / f"月 光: 1{extension}".replace(":", "："), tone(channels, rate=rate), rate)
    wave = read_audio(song)
    assert wave.rate == rate and wave.samples.dtype == np.float32 and len(wave.samples) == channels
    if extension == ".aac":
        # A raw AAC stream cannot state the encoder's delay: whole frames of 1024, the first one the delay.
        assert wave.samples.shape[1] == 88 * 1024 and LENGTH + 1024 <= 88 * 1024
        samples = wave.samples[:, 1024 : 1024 + LENGTH]
    elif extension == ".m4a":
        # An MP4 states it, in thousandths of a second.
        assert abs(wave.samples.shape[1] - LENGTH) < RATE / 1000
        samples = wave.samples[:, :LENGTH]
    else:
        assert wave.samples.shape[1] == LENGTH
        samples = wave.samples
    expected = tone(channels, rate=rate)[:, : samples.shape[1]]
    # Lossy encoders differ by a little; a delay of two samples would be outside.
    middle = slice(5000, -5000)
    difference = samples[:, middle] - expected[:, middle]
    assert np.sqrt(np.mean(difference**2)) < 0.05 * np.sqrt(np.mean(expected**2))
    assert audio_seconds(song) == pytest.approx(wave.original_seconds, abs=0.06)
    prepared, info = prepare_waveform(wave)
    assert prepared.shape[0] == 2 and not info.cropped and info.padded and prepared.shape[1] == 144_000


@pytest.mark.parametrize(
    ("extension", "codec"), [(".wma", "wmav2"), (".m4b", "aac"), (".mka", "flac"), (".tta", "tta")]
)
def test_less_common_formats_are_read(tmp_path, extension, codec):
    song = tmp_path / f"a{extension}"
    encode(song, tone(), codec, kind="mp4" if extension == ".m4b" else None)
    wave = read_audio(song)
    assert wave.warning == "" and abs(wave.samples.shape[1] - LENGTH) < 4096
    assert audio_seconds(song) == pytest.approx(wave.original_seconds, abs=0.06)


def test_m4a_named_mp3_is_read_as_what_it_is(tmp_path):
    song = write_song(tmp_path / "a.m4a").rename(tmp_path / "a.mp3")
    assert abs(read_audio(song).samples.shape[1] - LENGTH) < RATE / 1000
    assert audio_seconds(song) == pytest.approx(LENGTH / RATE, abs=1e-3)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("wrong", [".mp3", ".wav", ".flac"])
def test_a_wrong_extension_does_not_matter(tmp_path, extension, wrong):
    song = write_song(tmp_path / f"a{extension}", tone(rate=48_000), 48_000)
    renamed = song.rename(tmp_path / f"b{wrong}")
    assert abs(read_audio(renamed).samples.shape[1] - LENGTH) <= 2048


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_an_empty_file_is_an_error(tmp_path, extension):
    song = tmp_path / f"a{extension}"
    song.touch()
    for measure in (read_audio, audio_seconds):
        with pytest.raises(AudioError, match=r"a\.\w+' is empty \(0 bytes\).*Copy or download"):
            measure(song)


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    with pytest.raises(AudioError, match=r"cannot be opened: .*Check the name"):
        read_audio(tmp_path / "none.mp3")
    (tmp_path / "folder.mp3").mkdir()
    with pytest.raises(AudioError, match="cannot be opened"):
        audio_seconds(tmp_path / "folder.mp3")


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize(
    "content",
    [
        b"These are the lyrics, not the song.\n" * 100,
        "这不是音频。".encode() * 50,
        b"\x00" * 5000,
        b"#EXTM3U\n#EXTINF:3,x\nhttp://127.0.0.1:1/x.aac\n",
        b"R",
    ],
)
def test_what_is_no_audio_is_an_error(tmp_path, extension, content):
    song = tmp_path / f"a{extension}"
    song.write_bytes(content)
    for measure in (read_audio, audio_seconds):
        with pytest.raises(AudioError, match=r"cannot be decoded \(.*\)\. An undamaged audio file was expected\."):
            measure(song)


def test_an_mp4_whose_index_is_cut_off_is_an_error(tmp_path):
    song = write_song(tmp_path / "a.m4a", tone(length=5 * RATE))
    content = song.read_bytes()
    song.write_bytes(content[: content.index(b"mdat") - 100])
    with pytest.raises(AudioError, match=r"cannot be decoded"):
        read_audio(song)


@pytest.mark.parametrize("extension", [".aac", ".aif", ".flac", ".m4a", ".mka", ".mp3", ".ogg", ".opus", ".wav"])
@pytest.mark.parametrize("share", [0.35, 0.6, 0.97])
def test_of_a_cut_off_file_the_rest_is_read_and_that_is_said(tmp_path, extension, share):
    song = write_song(tmp_path / f"a{extension}", tone(length=10 * 48_000, rate=48_000), 48_000)
    whole = read_audio(song)
    assert whole.warning == "" and measure_length(song)[1] == ""
    content = song.read_bytes()
    song.write_bytes(content[: int(len(content) * share)])
    wave = read_audio(song)
    assert 1 < wave.original_seconds < whole.original_seconds
    assert wave.original_seconds == wave.samples.shape[1] / wave.rate
    seconds, words = measure_length(song)
    assert seconds == pytest.approx(wave.original_seconds, abs=0.06)
    # Where the file states its length, it is named; else the end mark is missing.
    states = extension not in (".aac", ".ogg", ".opus")
    how = r"its header states 10\.0 s\." if states else "without the mark that ends its stream."
    assert re.fullmatch(
        rf"'.*a\{extension}' ends after {wave.original_seconds:.1f} s,? {how} "
        r"If the song stops in the middle, replace the file\.",
        words,
    )
    assert wave.warning == words == prepare_waveform(wave)[1].warning


@pytest.mark.parametrize("extension", [".flac", ".mp3", ".ogg", ".opus", ".wav"])
def test_two_recordings_in_one_file_are_said(tmp_path, extension):
    parts = [write_song(tmp_path / f"{n}{extension}", tone(length=n * 48_000, rate=48_000), 48_000) for n in (4, 3)]
    song = tmp_path / f"both{extension}"
    song.write_bytes(parts[0].read_bytes() + parts[1].read_bytes())
    wave = read_audio(song)
    assert measure_length(song)[1] == wave.warning
    if extension in (".flac", ".mp3"):
        assert wave.original_seconds == pytest.approx(7, abs=0.15)
        assert re.search(r"holds 7\.[01] s, its header states 4\.0 s; all of them are used", wave.warning)
    else:
        assert wave.original_seconds == pytest.approx(4, abs=0.01)
        words = "holds 2 recordings one after another, 7.0 s together; only the first 4.0 s are used"
        assert words in wave.warning


def test_a_wav_that_holds_more_than_its_header_states(tmp_path):
    song = write_song(tmp_path / "a.wav", tone(length=4 * RATE))
    content = bytearray(song.read_bytes())
    place = content.index(b"data") + 4
    assert struct.unpack_from("<I", content, place) == (4 * RATE * 4,)
    struct.pack_into("<I", content, place, RATE * 4)
    song.write_bytes(content)
    wave = read_audio(song)
    assert wave.original_seconds == 1
    assert "holds 4.0 s, its header states 1.0 s; only the first 1.0 s are used" in wave.warning
    assert measure_length(song) == (1.0, wave.warning)


def test_a_wav_of_a_program_that_did_not_know_the_length_is_whole(tmp_path):
    song = write_song(tmp_path / "a.wav", tone(length=4 * RATE))
    content = bytearray(song.read_bytes())
    struct.pack_into("<I", content, content.index(b"data") + 4, 0xFFFFFFFF)
    struct.pack_into("<I", content, 4, 0xFFFFFFFF)
    song.write_bytes(content)
    wave = read_audio(song)
    assert wave.original_seconds == 4 and wave.warning == ""


def test_a_flac_without_samples_is_an_error(tmp_path):
    song = write_song(tmp_path / "a.flac")
    content = song.read_bytes()
    song.write_bytes(content[: content.index(b"\xff\xf8")])  # all up to the first frame
    for measure in (read_audio, audio_seconds):
        with pytest.raises(AudioError, match="it holds no audio that can be decoded"):
            measure(song)


def test_an_mp3_with_a_damaged_middle_and_broken_tags_is_read(tmp_path):
    song = write_song(tmp_path / "a.mp3", tone(length=20 * RATE))
    content = song.read_bytes()
    broken_tag = b"ID3\x03\x00\x00\x00\x00\x01\x00" + b"COMM\x00\x00\x00\x10\x00\x00" + b"\x07abc" * 4 + b"\xff" * 120
    song.write_bytes(broken_tag + content[:20_000] + b"\x12\x99" * 1500 + content[23_000:])
    wave = read_audio(song)
    assert 18 < wave.original_seconds < 20.2


def test_decoders_write_nothing_to_stderr(tmp_path):
    """Checked in a child process, because FFmpeg and libmpg123 write to the descriptor, past Python."""
    song = write_song(tmp_path / "a.mp3", tone(length=5 * RATE))
    content = song.read_bytes()
    (tmp_path / "b.mp3").write_bytes(content[:20_000] + b"\x12\x99" * 3000 + content[26_000:])
    (tmp_path / "c.mp3").write_bytes(b"\x00" * 5000 + content)
    (tmp_path / "d.mp3").write_bytes(b"no audio")
    (tmp_path / "e.mp3").touch()
    (tmp_path / "f.aac").write_bytes(write_song(tmp_path / "x.aac").read_bytes()[:9_999])
    (tmp_path / "g.ogg").write_bytes(write_song(tmp_path / "x.ogg").read_bytes()[:9_999])
    (tmp_path / "h.flac").write_bytes(write_song(tmp_path / "x.flac").read_bytes()[:9_999])
    program = (
        "import sys, pathlib; from ace_lora.audio.decode import AudioError, audio_seconds, read_audio\n"
        "for song in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    for measure in (read_audio, audio_seconds):\n"
        "        try: measure(song); print('read', song.name)\n"
        "        except AudioError: print('error', song.name)\n"
    )
    child = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    assert child.stdout.count("error") == 4 and child.stdout.count("read") == 18


HALF = 2**-0.5
# ITU-R BS.775: where each channel goes, left and right; WAV without a mask, FLAC and Vorbis in their standard orders.
SURROUND = {
    3: [(1, 0), (0, 1), (HALF, HALF)],
    4: [(1, 0), (0, 1), (HALF, 0), (0, HALF)],
    5: [(1, 0), (0, 1), (HALF, HALF), (HALF, 0), (0, HALF)],
    6: [(1, 0), (0, 1), (HALF, HALF), (0, 0), (HALF, 0), (0, HALF)],
    7: [(1, 0), (0, 1), (HALF, HALF), (0, 0), (0.5, 0.5), (HALF, 0), (0, HALF)],
    8: [(1, 0), (0, 1), (HALF, HALF), (0, 0), (HALF, 0), (0, HALF), (HALF, 0), (0, HALF)],
}


@pytest.mark.parametrize("channels", SURROUND)
@pytest.mark.parametrize("extension", [".wav", ".flac"])
def test_several_channels_are_mixed_down(tmp_path, extension, channels):
    samples = 0.3 * tone(channels)
    wave = read_audio(write_song(tmp_path / f"a{extension}", samples))
    assert wave.samples.shape == (2, LENGTH) and wave.warning == ""
    expected = np.array(SURROUND[channels]).T @ samples
    np.testing.assert_allclose(wave.samples, expected, atol=2e-4)


@pytest.mark.parametrize("extension", [".opus", ".m4a", ".mka"])
def test_coded_channels_are_told_by_their_names(tmp_path, extension):
    """Opus orders them as Vorbis does (left, centre, right …), AAC begins with the centre."""
    rate = 48_000
    samples = np.zeros((6, 3 * rate), np.float32)
    samples[2] = tone(1, 3 * rate, rate)[0]
    codec = "libopus" if extension == ".opus" else "aac"
    encode(tmp_path / f"a{extension}", samples, codec, rate, layout="5.1")
    wave = read_audio(tmp_path / f"a{extension}")
    np.testing.assert_array_equal(wave.samples[0], wave.samples[1])
    expected = HALF * np.sqrt(np.mean(samples[2] ** 2))
    assert np.sqrt(np.mean(wave.samples[0] ** 2)) == pytest.approx(expected, rel=0.05)


def test_a_channel_mask_is_followed(tmp_path):
    """7.1 of the film kind, as libsndfile writes it: the last two are between left or right and the centre."""
    samples = 0.3 * tone(6)
    soundfile.write(tmp_path / "a.wav", samples.T, RATE, format="WAVEX")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    mask = content.index(b"fmt ") + 8 + 20
    assert struct.unpack_from("<I", content, mask) == (0x3F,)
    struct.pack_into("<I", content, mask, 0x60F)  # side instead of back channels
    (tmp_path / "a.wav").write_bytes(content)
    wave = read_audio(tmp_path / "a.wav")
    np.testing.assert_allclose(wave.samples, np.array(SURROUND[6]).T @ samples, atol=2e-4)
    struct.pack_into("<I", content, mask, 0x13F & ~0xC | 0xC0)  # FL FR BL BR FLC FRC BC less the centre and the LFE
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read_audio(tmp_path / "a.wav").samples) == 2


def test_a_voice_in_the_centre_is_no_silence(tmp_path):
    samples = np.zeros((6, 5 * RATE), np.float32)
    samples[2] = tone(1, 5 * RATE)[0]
    wave, _ = prepare_waveform(read_audio(write_song(tmp_path / "a.wav", samples)))
    assert float(wave.abs().max()) == pytest.approx(0.4 * HALF, abs=1e-3)


def test_a_loud_mix_of_channels_is_turned_down(tmp_path):
    samples = np.repeat(tone(1, 4 * RATE) * 2.4, 6, axis=0)  # 0.96 in every channel
    wave = read_audio(write_song(tmp_path / "a.wav", samples))
    assert float(np.abs(wave.samples).max()) == pytest.approx(1, abs=1e-6)
    assert "It reaches 7.3 dB above full scale and is turned down by as much" in wave.warning


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("factor", [1.5, 8.0, 32768.0])
def test_float_samples_above_full_scale_are_turned_down(tmp_path, subtype, factor):
    samples = tone(length=4 * RATE) / 0.4
    samples /= np.abs(samples).max()
    soundfile.write(tmp_path / "a.wav", samples.T * factor, RATE, subtype=subtype)
    wave = read_audio(tmp_path / "a.wav")
    np.testing.assert_allclose(wave.samples, samples, atol=1e-6)
    assert f"reaches {20 * np.log10(factor):.1f} dB above full scale" in wave.warning
    prepared, info = prepare_waveform(wave)
    assert info.warning == wave.warning and float(prepared.abs().mean()) == pytest.approx(
        float(np.abs(samples).mean()), rel=0.01
    )


def test_silence_at_the_ends_is_said(tmp_path):
    quiet = np.zeros((2, 4 * RATE), np.float32)
    quiet[:, ::100] = 5e-4  # noise of a tape, not heard
    song = write_song(tmp_path / "a.wav", np.concatenate([quiet, tone(length=2 * RATE), quiet, quiet], axis=1))
    words = "It begins with 4.0 s and ends with 8.0 s of silence, which is trained like music."
    assert words in read_audio(song).warning
    # What lies behind the part that is used is not known.
    assert "It begins with 4.0 s of silence" in read_audio(song, max_seconds=12).warning
    assert read_audio(write_song(tmp_path / "b.wav", tone(length=9 * RATE))).warning == ""


@pytest.mark.parametrize("rate", [8_000, 192_000])
@pytest.mark.parametrize("extension", [".wav", ".flac"])
def test_unusual_rates(tmp_path, rate, extension):
    song = write_song(tmp_path / f"a{extension}", tone(length=4 * rate, rate=rate), rate)
    wave, _ = prepare_waveform(read_audio(song))
    assert wave.shape == (2, 4 * 48_000)
    expected = tone(length=4 * 48_000, rate=48_000)
    # The fade is sampled from end to end, hence the small difference.
    np.testing.assert_allclose(wave[:, 1000:-1000], expected[:, 1000:-1000], atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_samples_that_are_not_numbers_are_an_error(tmp_path, value):
    samples = tone()
    samples[1, 100:103] = value
    song = tmp_path / "a.wav"
    soundfile.write(song, samples.T, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav' holds 3 samples that are not numbers.*Export the song again"):
        read_audio(song)


def test_a_silent_file_is_named(tmp_path):
    song = write_song(tmp_path / "a.wav", np.zeros((2, 5 * RATE), np.float32))
    with pytest.raises(AudioError, match=r"a\.wav' is silent: 100\.0%"):
        prepare_waveform(read_audio(song))


@pytest.mark.parametrize("extension", [".wav", ".mp3", ".m4a"])
def test_of_a_long_song_only_the_beginning_is_decoded(tmp_path, extension):
    rate = 16_000
    song = write_song(tmp_path / f"a{extension}", tone(1, 7 * rate, rate), rate)
    wave = read_audio(song, max_seconds=3)
    assert wave.samples.shape == (1, 3 * rate)
    assert wave.original_seconds == pytest.approx(7, abs=0.15)


def test_a_song_of_exactly_the_limit_is_not_cropped(tmp_path):
    song = write_song(tmp_path / "a.m4a", tone(1, 4 * 16_000, 16_000), 16_000)
    length = read_audio(song).samples.shape[1]
    assert read_audio(song, max_seconds=length / 16_000).original_seconds == length / 16_000
    assert read_audio(song, max_seconds=(length - 1) / 16_000).original_seconds == length / 16_000


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_sample_formats_agree_between_the_two_decoders(tmp_path, subtype):
    from ace_lora.audio.decode import _read_with_pyav, _read_with_soundfile

    song = tmp_path / "a.wav"
    soundfile.write(song, tone().T, RATE, subtype=subtype)
    first, second = _read_with_soundfile(song, 360), _read_with_pyav(song, 360)
    assert first.rate == second.rate
    np.testing.assert_array_equal(first.samples, second.samples)
