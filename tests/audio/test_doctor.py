"""What the audio doctor finds in songs with one fault each, and what its repair makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ace_lora.audio import __main__ as command
from ace_lora.audio.decode import read_audio
from ace_lora.audio.doctor import examine, find_duplicates, highest_frequency
from ace_lora.audio.repair import repair_song
from ace_lora.commands import run_script
from ace_lora.songs import SongFiles

RATE = 44_100
SECONDS = 12


def music(seed: int = 0, seconds: float = SECONDS) -> np.ndarray:
    """float32 [2, N]: noise in other bursts on each side, so full of sound up to the top and changing all the time."""
    rng = np.random.default_rng(seed)
    length = int(seconds * RATE)
    loudness = np.repeat(rng.uniform(0.05, 1, (2, int(seconds * 4) + 1)), RATE // 4 + 1, axis=1)[:, :length]
    return (0.1 * rng.standard_normal((2, length)) * loudness).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = RATE, **kind) -> Path:
    soundfile.write(path, samples.T, rate, **kind)
    return path


def codes(path: Path) -> list[str]:
    return [finding.code for finding in examine(path).findings]


def low_passed(samples: np.ndarray, hz: float) -> np.ndarray:
    spectrum = np.fft.rfft(samples)
    spectrum[:, int(hz * samples.shape[1] / RATE) :] = 0
    return np.fft.irfft(spectrum, samples.shape[1]).astype(np.float32)


def faulty(name: str) -> tuple[np.ndarray, dict]:
    samples, silence = music(), np.zeros((2, 5 * RATE), np.float32)
    return {
        "fine": (samples, {}),
        "clipped": (np.clip(samples * 12, -0.3, 0.3), {}),
        "quiet": (samples * 0.02, {"subtype": "FLOAT"}),
        "loud": (samples * 0.05 + 0.9 * np.sin(np.arange(samples.shape[1]) * 0.1), {}),
        "silence": (np.concatenate([silence, samples, silence], axis=1), {}),
        "mono": (samples[:1], {}),
        "one_sided": (samples * np.array([[1], [0]], np.float32), {}),
        "cancelling": (np.stack([samples[0], -samples[0]]), {}),
        "surround": (np.concatenate([samples, samples, samples[::-1]]) * 0.3, {}),
        "dull": (low_passed(samples, 11_000), {}),
        "short": (samples[:, : 2 * RATE], {}),
        "above_full_scale": (samples * 20, {"subtype": "FLOAT"}),
    }[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(
            (name, [name])
            for name in ("clipped", "quiet", "silence", "mono", "one_sided", "cancelling", "dull", "short")
        ),
        ("fine", []),
        ("surround", ["surround"]),
    ],
)
def test_one_fault_is_one_finding(tmp_path, name, expected):
    samples, kind = faulty(name)
    assert codes(write(tmp_path / "a.wav", samples.astype(np.float32), **kind)) == expected


def test_loud_songs_and_what_reaches_above_full_scale(tmp_path):
    for name in ("loud", "above_full_scale"):
        samples, kind = faulty(name)
        assert name in codes(write(tmp_path / f"{name}.wav", samples.astype(np.float32), **kind))


def test_files_that_hold_no_song(tmp_path):
    (tmp_path / "text.mp3").write_text("no audio", encoding="utf-8")
    assert codes(tmp_path / "text.mp3") == ["unreadable"]
    assert codes(write(tmp_path / "nothing.wav", np.zeros((2, 5 * RATE), np.float32))) == ["silent"]
    song = write(tmp_path / "cut.wav", music())
    song.write_bytes(song.read_bytes()[: 6 * RATE * 4])
    assert codes(song) == ["length"]


def test_the_edge_of_a_coder_is_found_and_the_slope_of_music_is_not():
    assert highest_frequency(music(), RATE) == RATE / 2
    assert highest_frequency(low_passed(music(), 11_000), RATE) == pytest.approx(11_000, abs=300)
    samples = music(seconds=4)
    slope = np.fft.rfft(samples)
    slope /= np.maximum(1, np.arange(slope.shape[1]) / 400) ** 2  # 12 dB per octave
    assert highest_frequency(np.fft.irfft(slope, samples.shape[1]).astype(np.float32), RATE) == RATE / 2


def test_the_same_recording_is_found_in_another_format_and_cut(tmp_path):
    original = write(tmp_path / "a.wav", music(seconds=20))
    cut = write(tmp_path / "b.mp3", 0.5 * music(seconds=20)[:, 3 * RATE :], format="MP3")
    other = write(tmp_path / "c.wav", music(seed=1, seconds=20))
    assert find_duplicates([examine(path) for path in (original, cut, other)]) == [(0, 1)]


def test_the_command_says_it_in_both_languages(tmp_path, capsys):
    write(tmp_path / "a.wav", music())
    write(tmp_path / "夜曲.wav", faulty("one_sided")[0])
    assert run_script(command.main, command.parse_args(["check", str(tmp_path)])) == 0
    english = capsys.readouterr().out
    assert "夜曲.wav: Nearly all of it is on the left side" in english and "1 of 2 songs have no remark." in english
    assert run_script(command.main, command.parse_args(["check", str(tmp_path), "--language", "zh"])) == 0
    assert "夜曲.wav：几乎只有左声道有声音" in capsys.readouterr().out
    (tmp_path / "bad.mp3").write_bytes(b"no audio")
    assert run_script(command.main, command.parse_args(["check", str(tmp_path), "--json"])) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["song"] for line in lines] == ["a.wav", "bad.mp3", "夜曲.wav"]
    assert [[found["code"] for found in line["findings"]] for line in lines] == [[], ["unreadable"], ["one_sided"]]
    assert run_script(command.main, command.parse_args(["check", str(tmp_path / "gone")])) == 2


def test_repairs_are_copies(tmp_path):
    song = SongFiles(write(tmp_path / "a.wav", faulty("silence")[0] * np.array([[1], [0]], np.float32)))
    song.lyrics.write_text("la", encoding="utf-8")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    output = tmp_path / "mended"
    assert repair_song(song, output) == ["the side that sounds put on both", "4.5 s before and 4.5 s behind cut off"]
    assert sorted(path.name for path in output.iterdir()) == ["a.flac", "a_lyrics.txt"]
    assert {path: path.read_bytes() for path in before} == before
    wave = read_audio(output / "a.flac")
    assert wave.samples.shape[1] == pytest.approx((SECONDS + 1) * RATE, abs=10)
    np.testing.assert_array_equal(wave.samples[0], wave.samples[1])
    assert repair_song(SongFiles(write(tmp_path / "fine.wav", music())), output) == []
