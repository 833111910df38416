"""What sounds: positions, level, the change between two tracks; samples are compared one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from ace_lora.audio.decode import AudioError
from ace_lora.play.player import FADE, Player
from ace_lora.play.track import RATE, Track, load_track


def ramp(sign=1.0, seconds=2.0):
    """Every sample tells its position."""
    samples = np.arange(int(seconds * RATE), dtype=np.float32) / 1e6
    return Track(Path("ramp"), sign * np.stack([samples, samples], 1), seconds)


def heard(player, count, block=480):
    out = np.full((count, 2), 9.0, dtype=np.float32)
    ends = [player.fill(out[start : start + block]) for start in range(0, count, block)]
    return out, ends


@pytest.fixture
def player():
    player = Player()
    player.load("A", ramp())
    player.load("B", ramp(-1.0))
    return player


def test_nothing_sounds_before_it_is_told_to():
    player = Player()
    assert not player.play() and not player.switch("A") and player.seconds == 0
    player.load("A", ramp())
    assert not heard(player, 960)[0].any()


def test_play_pause_and_seek_follow_the_samples(player):
    assert player.play() and player.slot == "A"
    out, _ = heard(player, 960)
    assert np.array_equal(out[:, 0], ramp().samples[:960, 0])
    player.pause()
    assert not heard(player, 480)[0].any() and player.seconds == 960 / RATE
    player.seek(1.5)
    player.play()
    out, _ = heard(player, 480)
    assert np.array_equal(out, ramp().samples[int(1.5 * RATE) :][:480])
    player.seek(-5)
    assert player.seconds == 0
    player.seek(1e8)
    assert player.seconds == 2.0


def test_the_other_track_goes_on_at_the_same_sample_without_a_gap(player):
    player.play()
    heard(player, 960)
    player.switch("B")
    out, _ = heard(player, 960)
    a, b = ramp().samples[960:1920], ramp(-1.0).samples[960:1920]
    assert np.array_equal(out[FADE:], b[FADE:])
    share = (np.arange(1, FADE + 1, dtype=np.float32) / FADE)[:, None]
    np.testing.assert_allclose(out[:FADE], share * b[:FADE] + (1 - share) * a[:FADE], atol=1e-7)
    assert player.slot == "B" and player.seconds == 1920 / RATE
    player.switch("A")
    assert np.array_equal(heard(player, 960)[0][FADE:], ramp().samples[1920 + FADE : 2880])


def test_the_level_changes_within_a_block_without_a_jump(player):
    player.play()
    player.set_level(0.5)
    out, _ = heard(player, 960)
    gain = out[1:, 0] / ramp().samples[1:960, 0]
    assert np.abs(np.diff(gain)).max() < 0.005 and gain[500:] == pytest.approx(0.5, abs=1e-3)


def test_the_end_is_told_once_and_silence_follows(player):
    player.seek(2.0 - 700 / RATE)
    player.play()
    out, ends = heard(player, 1440)
    assert ends == [False, True, False] and not player.playing
    assert np.array_equal(out[FADE:700], ramp().samples[-700 + FADE :]) and not out[700:].any()
    assert player.play() and player.seconds == 0


def test_a_shorter_track_ends_where_it_has_no_more(player):
    player.load("short", ramp(seconds=0.5))
    player.seek(1.0)
    player.play()
    player.switch("short")
    out, ends = heard(player, 480)
    assert ends == [True] and not out[FADE:].any()


def test_loading_into_the_slot_that_plays_begins_anew(player):
    player.play()
    heard(player, 4800)
    player.load("A", ramp(0.5))
    assert player.seconds == 0
    assert np.array_equal(heard(player, 480)[0][FADE:], ramp(0.5).samples[FADE:480])


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 2), (44_100, 1), (44_099, 2)])
def test_files_of_any_rate_come_at_one_rate(tmp_path, rate, channels):
    path = tmp_path / "ton 音.wav"
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(path, np.stack([tone] * channels, 1), rate, subtype="FLOAT")
    track = load_track(path)
    assert track.samples.dtype == np.float32 and track.samples.shape[1] == 2
    assert len(track.samples) == pytest.approx(RATE, abs=20) and track.seconds == pytest.approx(1.0)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(track.samples)) / RATE)
    assert np.abs(track.samples[1000:-1000, 0] - expected[1000:-1000]).max() < 0.01


def test_the_outline_is_the_loudest_of_each_part():
    samples = np.zeros((1000, 2), dtype=np.float32)
    samples[250, 1], samples[999, 0] = -0.5, 2.0
    assert Track(Path("x"), samples, 1.0).peaks(4) == [0.0, 0.5, 0.0, 1.0]
    assert len(Track(Path("x"), samples[:3], 1.0).peaks(10)) == 3
    assert Track(Path("x"), samples[:0], 0.0).peaks() == []


def test_what_is_no_sound_is_refused(tmp_path):
    (tmp_path / "x.mp3").write_text("no sound", encoding="utf-8")
    for path in (tmp_path / "x.mp3", tmp_path / "none.mp3", tmp_path):
        with pytest.raises(AudioError):
            load_track(path)
