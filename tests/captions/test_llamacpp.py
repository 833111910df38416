"""The llama.cpp client against a server in another process: `python -m pytest tests/test_captioner_llamacpp.py`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ace_lora.captions import llamacpp as captioner_llamacpp
from ace_lora.captions.ask import SongFailed
from ace_lora.captions.caption import UnusableAnswer
from ace_lora.captions.llamacpp import LlamaServer
from ace_lora.commands import StepFailed

ROOT = Path(__file__).parents[2]
TAGS = ("drums", "fast tempo", "female vocal", "guitar", "happy", "indie rock", "rock")
LINES = ("Hello morning", "we are free", "Goodbye evening", "we are free")


class FakeServer:
    """The process and its log."""

    def __init__(self, folder: Path, **settings):
        self.log = folder / "requests.jsonl"
        self.log.touch()
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "fake_llama_server.py"), str(self.log), json.dumps(settings)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self.process.stdout.readline())

    def requests(self, path: str = "/v1/chat/completions") -> list[dict]:
        entries = [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]
        return [entry for entry in entries if entry["path"] == path]

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def serve(tmp_path):
    """A function that starts a server with settings; all are stopped at the end."""
    servers = []

    def start(**settings) -> FakeServer:
        servers.append(FakeServer(tmp_path, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(captioner_llamacpp, "FIRST_PAUSE", 0.01)


def connect(server: FakeServer, timeout: float = 20, say=lambda text: None) -> LlamaServer:
    return LlamaServer.connect("127.0.0.1", server.port, answer_timeout=timeout, seed=7, say=say)


def ask(client: LlamaServer, seconds: float = 2, tags=True, lyrics=True, attempt=0):
    samples = (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * 16000)) / 16000)).astype(np.float32)
    return client.ask(samples, tags=tags, lyrics=lyrics, language=None, attempt=attempt)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- What is sent ---


def test_the_request_is_what_the_server_wants(serve):
    server = serve()
    caption = ask(connect(server), seconds=2.5)
    assert (caption.tags, caption.has_vocal, caption.lyrics) == (TAGS, True, LINES)
    (request,) = server.requests()
    assert "wrong" not in request
    assert request["audio"] == [16000, 1, 2, 40000]
    assert request["peak"] == pytest.approx(32767 / 2, abs=2)
    assert request["type"] == "json_schema"
    names = ("cannot_tell", "genre", "subgenre", "instrument", "tempo", "mood", "has_vocal", "vocal", "lyrics")
    assert request["fields"] == [*names]
    assert request["temperature"] == 0


def test_only_what_is_wanted_is_asked(serve):
    server = serve()
    client = connect(server)
    assert ask(client, tags=False).tags == ()
    assert ask(client, lyrics=False).lyrics == ()
    assert [request["fields"][-1] for request in server.requests()] == ["lyrics", "vocal"]
    assert server.requests()[0]["fields"] == ["cannot_tell", "has_vocal", "lyrics"]


def test_one_connection_for_everything(serve):
    server = serve()
    client = connect(server)
    for _ in range(3):
        ask(client)
    paths = ("/health", "/props", "/v1/chat/completions")
    assert {entry["connection"] for path in paths for entry in server.requests(path)} == {1}


def test_a_connection_that_the_server_closed_is_opened_again(serve):
    server = serve(chat=["close after", "good"])
    client = connect(server)
    assert ask(client) == ask(client)
    assert len(server.requests()) == 2


def test_no_proxy(serve, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert ask(connect(serve())).tags == TAGS


def test_another_attempt_has_another_seed_and_more_freedom(serve):
    server = serve()
    client = connect(server)
    for attempt in range(3):
        ask(client, attempt=attempt)
    requests = server.requests()
    assert len({request["seed"] for request in requests}) == 3
    temperatures = [request["temperature"] for request in requests]
    assert temperatures == sorted(set(temperatures))


# --- A server that is not ready ---


def test_no_server():
    port = free_port()
    with pytest.raises(StepFailed, match=rf"No llama.cpp server answers at 127.0.0.1:{port}.*llama-server -m.*--port"):
        LlamaServer.connect("127.0.0.1", port, answer_timeout=5, seed=0, say=print)


def test_a_host_that_does_not_exist():
    with pytest.raises(StepFailed, match=r"No llama.cpp server answers at no-such-host.invalid"):
        LlamaServer.connect("no-such-host.invalid", 8080, answer_timeout=5, seed=0, say=print)


def test_waiting_for_the_model(serve):
    said = []
    server = serve(health=[503, 503, 200])
    assert ask(connect(server, say=said.append)).tags == TAGS
    assert len(server.requests("/health")) == 3
    assert len(said) == 1
    assert "loading its model" in said[0]


def test_a_model_that_never_loads(serve, monkeypatch):
    monkeypatch.setattr(captioner_llamacpp, "LOADING_TIMEOUT", 0.1)
    with pytest.raises(StepFailed, match="still loading"):
        connect(serve(health=[503]))


def test_something_else_on_that_port(serve):
    with pytest.raises(StepFailed, match=r"is no llama.cpp server: /health gives HTTP 404"):
        connect(serve(health=[404]))


@pytest.mark.parametrize("props", [{"modalities": {"vision": True, "audio": False}}, {"modalities": {}}, {}])
def test_a_model_that_cannot_hear(serve, props):
    with pytest.raises(StepFailed, match=r"cannot hear.*--mmproj"):
        connect(serve(props=props))


def test_a_server_without_properties_is_tried(serve):
    said = []
    assert ask(connect(serve(props=404), say=said.append)).tags == TAGS
    assert "does not say whether its model can hear" in said[0]


@pytest.mark.parametrize(("context", "seconds"), [(16384, 300), (32768, 300), (8192, 180), (None, 300)])
def test_the_context_bounds_the_length_of_a_part(serve, context, seconds):
    settings = {"modalities": {"audio": True}, "default_generation_settings": {"n_ctx": context}}
    assert connect(serve(props=settings)).longest_seconds == seconds


def test_a_context_too_small_for_a_song(serve):
    settings = {"modalities": {"audio": True}, "default_generation_settings": {"n_ctx": 4096}}
    with pytest.raises(StepFailed, match=r"4096 tokens.*-c 16384"):
        connect(serve(props=settings))


# --- A server that misbehaves ---


@pytest.mark.parametrize("behaviour", ["500", "503", "502", "429", "close", "half body", "garbage"])
def test_what_may_pass_is_tried_again_with_another_seed(serve, behaviour):
    server = serve(chat=[behaviour, behaviour, "good"])
    assert ask(connect(server)).tags == TAGS
    seeds = [request["seed"] for request in server.requests()]
    assert len(set(seeds)) >= 3


@pytest.mark.parametrize(("behaviour", "reason"), [("500", "HTTP 500: failure number 500"), ("garbage", "")])
def test_what_does_not_pass_fails_the_song(serve, behaviour, reason):
    server = serve(chat=[behaviour])
    with pytest.raises(SongFailed, match=f"no answer in 4 tries.*{reason}"):
        ask(connect(server))
    assert len(server.requests()) == 4


@pytest.mark.parametrize("behaviour", ["slow", "trickle", "trickling headers"])
def test_a_server_that_does_not_finish(serve, behaviour, monkeypatch):
    monkeypatch.setattr(captioner_llamacpp, "TRIES", 2)
    server = serve(chat=[behaviour])
    with pytest.raises(SongFailed, match=r"in 2 tries .*in time"):
        ask(connect(server, timeout=0.3))
    assert len(server.requests()) == 2


def test_an_endless_reply(serve, monkeypatch):
    monkeypatch.setattr(captioner_llamacpp, "TRIES", 1)
    with pytest.raises(SongFailed, match="longer than 16,777,216 bytes"):
        ask(connect(serve(chat=["endless"])))


def test_audio_that_does_not_fit_is_not_sent_again(serve):
    server = serve(chat=["400"])
    with pytest.raises(SongFailed, match=r"HTTP 400: failure number 400.*-c 16384"):
        ask(connect(server))
    assert len(server.requests()) == 1


@pytest.mark.parametrize("behaviour", ["401", "404", "redirect"])
def test_a_server_that_refuses_ends_the_run(serve, behaviour):
    server = serve(chat=[behaviour])
    with pytest.raises(StepFailed, match="refuses requests"):
        ask(connect(server))
    assert len(server.requests()) == 1


def test_a_server_that_dies_ends_the_run(serve):
    with pytest.raises(StepFailed, match=r"is gone after 4 tries"):
        ask(connect(serve(chat=["die"])))


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("broken json", "no chat completion"),
        ("html", "no chat completion"),
        ("no choices", "no chat completion"),
        ("null content", "no text"),
        ("empty content", "empty"),
        ("prose", "no JSON"),
        ("half answer", "cut short"),
        ("length", "token limit"),
        ("wrong schema", "lacks genre"),
        ("list", "not a JSON object"),
        ({"mood": "rock", "genre": ["rock"], "subgenre": [], "instrument": [], "tempo": [], "vocal": []}, "one tag"),
        ({"lyrics": ["again"] * 50}, "repeat"),
        ({"lyrics": []}, "empty"),
        ({"has_vocal": "true"}, "has_vocal"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_unusable_answers(serve, behaviour, reason):
    server = serve(chat=[behaviour])
    with pytest.raises(UnusableAnswer, match=reason):
        ask(connect(server))
    assert len(server.requests()) == 1


def test_a_fence_around_the_answer_is_no_fault(serve):
    assert ask(connect(serve(chat=["fenced"]))).lyrics == LINES


# --- The command ---


@pytest.fixture
def songs(tmp_path) -> Path:
    folder = tmp_path / "my songs 歌"
    folder.mkdir()
    for name in ("one.wav", "two.flac"):
        soundfile.write(folder / name, 0.1 * np.random.default_rng(0).normal(size=(44100 * 4, 2)), 44100)
    return folder


def run_command(songs: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "generate_prompts_lyrics_llamacpp.py", "--data_dir", str(songs), *arguments],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def texts(songs: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in songs.glob("*.txt")}


def test_command(songs, serve):
    # The first song's first answer is of no use; its second is taken.
    server = serve(chat=["prose", "good", {"has_vocal": False, "vocal": [], "lyrics": []}])
    result = run_command(songs, "--lyrics", "--port", str(server.port))
    assert result.returncode == 0, result.stderr
    assert texts(songs) == {
        "one_prompt.txt": ", ".join(TAGS),
        "one_lyrics.txt": (
            "[verse]\nHello morning\n\n[chorus]\nwe are free\n\n[verse]\nGoodbye evening\n\n[chorus]\nwe are free"
        ),
        "two_prompt.txt": "drums, fast tempo, guitar, happy, indie rock, rock",
        "two_lyrics.txt": "[instrumental]",
    }
    assert f"song 1/2 | one.wav | done: {', '.join(TAGS)}\n" in result.stdout
    assert result.stdout.endswith("done 2, skipped 0, failed 0\n")
    assert [request["audio"] for request in server.requests()] == [[16000, 1, 2, 64000]] * 3


def test_command_goes_on_after_a_song_that_fails(songs, serve):
    vietnamese = {"lyrics": ["Em ơi Hà Nội phố", "ta còn em mùi hoàng lan", "ta còn em mùi hoa sữa"]}
    server = serve(chat=[vietnamese] * 4 + ["good"])
    result = run_command(songs, "--lyrics", "--port", str(server.port))
    assert result.returncode == 1
    assert set(texts(songs)) == {"two_prompt.txt", "two_lyrics.txt"}
    assert "song 1/2 | one.wav | failed: no usable answer in 4 attempts" in result.stdout
    assert "Vietnamese" in result.stdout
    assert "error: No text was written for 1 of 2 songs: one.wav" in result.stderr
    assert "Traceback" not in result.stderr


def test_command_without_a_server(songs):
    result = run_command(songs, "--port", str(free_port()))
    assert result.returncode == 1
    assert "error: No llama.cpp server answers at 127.0.0.1:" in result.stderr
    assert "Traceback" not in result.stderr
    assert texts(songs) == {}
