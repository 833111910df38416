"""The player as a process, on a device that only keeps time: its lines, its clock, and what it played."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ace_lora.play.track import RATE

ROOT = Path(__file__).parents[2]


class Process:
    """The player, its lines in and its events out."""

    def __init__(self, output, **environment):
        self.child = subprocess.Popen(
            [sys.executable, "-m", "ace_lora.play", *(["--output", output] if output else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
        self.events = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.child.stdout:
            self.events.put((time.monotonic(), json.loads(line)))

    def tell(self, do, **values):
        self.send(json.dumps({"do": do, **values}).encode())

    def send(self, line):
        self.child.stdin.write(line + b"\n")
        self.child.stdin.flush()

    def wait(self, event, timeout=60, **values):
        """The next event of that kind with those values, and when it came."""
        until = time.monotonic() + timeout
        seen = []
        while True:
            try:
                when, found = self.events.get(timeout=max(0.01, until - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {event} {values} among {seen}: {self.child.poll()}") from None
            seen.append(found)
            if found["event"] == event and all(found[name] == value for name, value in values.items()):
                return when, found

    def end(self):
        self.child.stdin.close()
        return self.child.wait(60)


@pytest.fixture
def songs(tmp_path):
    """Two files that tell each sample's position, one up, one down."""
    samples = np.arange(3 * RATE, dtype=np.float32) / 1e6
    paths = [tmp_path / "上 up.wav", tmp_path / "down.wav"]
    for path, sign in zip(paths, (1, -1), strict=True):
        soundfile.write(path, np.stack([sign * samples] * 2, 1), RATE, subtype="FLOAT")
    return paths


def test_a_session_from_load_to_quit(songs, tmp_path):
    kept = tmp_path / "played.raw"
    process = Process(f"dummy:{kept}")
    _, ready = process.wait("ready")
    assert ready == {"event": "ready", "device": "dummy", "rate": RATE}
    process.tell("play")
    assert "nothing to play" in process.wait("error")[1]["message"]
    process.tell("load", slot="A", path=str(songs[0]))
    process.tell("load", slot="B", path=str(songs[1]))
    loaded = dict((event["slot"], event) for _, event in (process.wait("loaded"), process.wait("loaded")))
    assert loaded["A"]["path"] == str(songs[0]) and loaded["A"]["seconds"] == 3.0
    peaks = loaded["B"]["peaks"]
    assert len(peaks) == 1000 and peaks[-1] == pytest.approx(0.144, abs=1e-3) and peaks == sorted(peaks)
    process.tell("switch", slot="A")
    process.tell("seek", seconds=0.5)
    process.wait("position", slot="A", seconds=0.5, playing=False)
    process.tell("play")
    start, first = process.wait("position", playing=True)
    time.sleep(0.7)
    process.tell("switch", slot="B")
    process.wait("position", slot="B", playing=True)
    time.sleep(0.3)
    process.tell("pause")
    stop, paused = process.wait("position", playing=False)
    assert paused["slot"] == "B"
    assert paused["seconds"] - first["seconds"] == pytest.approx(stop - start, abs=0.35)  # real time
    process.tell("seek", seconds=2.9)
    process.tell("level", value=0.5)
    process.tell("play")
    process.wait("ended", slot="B")
    process.wait("position", seconds=3.0, playing=False)
    process.tell("quit")
    assert process.child.wait(60) == 0 and process.child.stderr.read() == b""

    played = np.fromfile(kept, dtype=np.float32).reshape(-1, 2)[:, 0]
    sounding = played[int(np.argmax(played != 0)) :]
    change = int(np.argmax(sounding < 0))
    # Upwards from the middle of a second on, then downwards from the very next position: nothing lost, nothing twice.
    assert sounding[0] == pytest.approx(0.5 * RATE / 1e6) and np.all(np.diff(sounding[: change - 480]) > 0)
    position = np.round(np.abs(sounding) * 1e6 - 0.5 * RATE)
    assert position[change + 480] == change + 480
    first_part = round((paused["seconds"] - 0.5) * RATE)
    assert np.array_equal(position[change + 480 : first_part], np.arange(change + 480, first_part))


def test_lines_that_cannot_be_carried_out_are_answered_and_change_nothing(songs, tmp_path):
    process = Process("dummy")
    process.wait("ready")
    (tmp_path / "text.mp3").write_text("no sound", encoding="utf-8")
    for line, part in (
        (b"what?", "Expected JSON"),
        (b"[" * 5000, "nested too deeply"),
        (b"\xff\xfe", "cannot be read"),
        (b"[1]", "does not say what to do"),
        (b'{"do": "dance"}', "does not say what to do"),
        (b'{"do": ["play"]}', "does not say what to do"),
        (b'{"do": "seek", "seconds": "1"}', '"seconds" of "seek"'),
        (b'{"do": "seek", "seconds": NaN}', "NaN"),
        (b'{"do": "level", "value": 2}', '"value" of "level"'),
        (b'{"do": "load", "slot": "A", "path": "a\\u0000b"}', '"path" of "load"'),
        (b'{"do": "load", "slot": "A"}', '"path" of "load"'),
        (b'{"do": "load", "slot": "A", "path": "nowhere.wav"}', "nowhere.wav"),
        (b'{"do": "load", "slot": "A", "path": "' + os.fsencode(tmp_path / "text.mp3") + b'"}', "text.mp3"),
        (b'{"do": "switch", "slot": "C"}', "no track in slot 'C'"),
        (b'{"do": "play", "x": "' + b"x" * 200_000 + b'"}', "more than 100,000 bytes"),
    ):
        process.send(line)
        assert part in process.wait("error")[1]["message"], line[:80]
    process.tell("load", slot="A", path=str(songs[0]))
    process.wait("loaded")
    assert process.end() == 0  # the window is gone: the player goes too
    assert process.child.stderr.read() == b""


def test_without_a_sound_device_one_event_says_so_and_the_process_ends(tmp_path):
    # A package that cannot be loaded stands before the real one.
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')", encoding="utf-8")
    process = Process("", PYTHONPATH=str(tmp_path), ACE_LORA_AUDIO="")
    _, event = process.wait("no_device")
    assert "PortAudio library not found" in event["message"] and "libportaudio2" in event["message"]
    assert process.child.wait(60) == 0 and process.child.stderr.read() == b"" and process.events.empty()


def test_the_variable_chooses_the_device_too():
    process = Process("", ACE_LORA_AUDIO="dummy")
    assert process.wait("ready")[1]["device"] == "dummy"
    assert process.end() == 0


STAND_IN = '''
class PortAudioError(Exception):
    pass

def query_devices(kind):
    return {"name": "headphones"}

class OutputStream:
    """A device that is taken away after the first samples."""
    latency = 0.25
    active = False

    def __init__(self, **options):
        assert options["samplerate"] == 48000 and options["channels"] == 2 and options["dtype"] == "float32"
        self.callback = options["callback"]

    def start(self):
        import numpy
        self.active = True
        self.callback(numpy.zeros((4800, 2), numpy.float32), 4800, None, None)

    def stop(self):
        self.active = False

    abort = close = stop
'''


def test_a_device_that_is_taken_away_is_told(songs, tmp_path):
    (tmp_path / "sounddevice.py").write_text(STAND_IN, encoding="utf-8")
    process = Process("", PYTHONPATH=str(tmp_path), ACE_LORA_AUDIO="")
    assert process.wait("ready")[1]["device"] == "headphones"
    process.tell("load", slot="A", path=str(songs[0]))
    process.wait("loaded")
    process.tell("seek", seconds=1)
    process.tell("play")
    # What is heard is behind what was handed over.
    assert process.wait("position", playing=True)[1]["seconds"] == pytest.approx(1 + 0.1 - 0.25)
    assert "'headphones' stands still" in process.wait("error")[1]["message"]
    process.wait("position", playing=False)
    assert process.end() == 0
