"""Lyrics of a service, from a server on this computer: `python -m pytest tests/lyrics/test_online.py`."""

from __future__ import annotations

import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mutagen
import numpy as np
import pytest
import soundfile
from mutagen.id3 import ID3, TIT2, TPE1

from ace_lora.commands import run_script
from ace_lora.lyrics.online import LookupFailed, Proposal, look_up
from ace_lora.lyrics.sources import SongNames
from generate_prompts_lyrics import main, parse_args

NAMES = SongNames("晴天", "某人")
LRC = "[00:00.50]故事的小黄花\n[00:01.50]从出生那年就飘着"
SONG = {"trackName": "晴天", "artistName": "某人", "duration": 3.0, "instrumental": False, "syncedLyrics": LRC}


class Service(ThreadingHTTPServer):
    """Answers what its `answers` hold by path: a value for JSON, bytes as they are, a number as a status."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, object] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        self.server.asked.append((url.path, dict(urllib.parse.parse_qsl(url.query))))
        answer = self.server.answers.get(url.path, 404)
        self.send_response(answer if isinstance(answer, int) else 200)
        self.end_headers()
        if not isinstance(answer, int):
            self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())


@pytest.fixture
def service(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Service()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(
    service: Service, name: str = "lrclib", names: SongNames = NAMES, stem: str = "x"
) -> tuple[Proposal | None, list[str]]:
    said: list[str] = []
    return look_up(name, names, stem, 3.2, said.append, service.address), said


def test_lrclib(service):
    other = SONG | {"duration": 240.0, "syncedLyrics": "[00:01.00]another version"}
    service.answers["/api/search"] = [other, SONG]
    found, said = ask(service)
    assert found == Proposal("lrclib", "晴天", "某人", 3.0, LRC)
    assert service.asked == [("/api/search", {"track_name": "晴天", "artist_name": "某人"})]
    assert said == [f"asks {service.address}/api/search?track_name=晴天&artist_name=某人"]


def test_netease_with_its_translation(service):
    songs = [
        {"id": 7, "name": "晴天 (Live)", "artists": [{"name": "别人"}], "duration": 3000},
        {"id": 8, "name": "晴天", "artists": [{"name": "某人"}], "duration": 3100},
    ]
    service.answers["/api/search/get"] = {"result": {"songs": songs}}
    service.answers["/api/song/lyric"] = {"lrc": {"lyric": LRC}, "tlyric": {"lyric": "[00:00.50]The yellow flower"}}
    found, said = ask(service, "netease")
    assert (found.title, found.artist, found.seconds) == ("晴天", "某人", 3.1)
    assert json.loads(found.text)["lrc"]["lyric"] == LRC
    assert [path for path, _ in service.asked] == ["/api/search/get", "/api/song/lyric"]
    assert service.asked[1][1]["id"] == "8"
    assert len(said) == 2


@pytest.mark.parametrize(
    "songs",
    [
        [],
        [SONG | {"trackName": "雨天"}],
        [SONG | {"artistName": "别人"}],
        [SONG | {"duration": 30.0}],
        [SONG | {"syncedLyrics": None, "plainLyrics": ""}],
        [SONG | {"duration": "long"}, "no song", {"x": 1}],
        {"error": "x"},
    ],
)
def test_no_match(service, songs):
    service.answers["/api/search"] = songs
    assert ask(service)[0] is None


@pytest.mark.parametrize("stem", ["某人 - 晴天", "晴天 - 某人", "03. 某人 - 晴天"])
def test_names_from_the_file_in_either_order(service, stem):
    service.answers["/api/search"] = [SONG]
    assert ask(service, names=SongNames(), stem=stem)[0] is not None


@pytest.mark.parametrize(
    ("answer", "reason"), [(500, "HTTP 500"), (403, "HTTP 403"), (b"<html>", "no JSON"), (b"[" * 100_000, "no JSON")]
)
def test_a_service_that_fails(service, answer, reason):
    service.answers["/api/search"] = answer
    with pytest.raises(LookupFailed, match=reason):
        ask(service)


def test_a_service_that_is_not_there(service):
    address = service.address
    service.shutdown()
    service.server_close()
    with pytest.raises(LookupFailed, match="cannot be reached"):
        look_up("lrclib", NAMES, "x", 3.0, lambda line: None, address)


def test_shown_first_and_used_when_accepted(service, tmp_path, capsys):
    audio = tmp_path / "qing_tian.mp3"
    soundfile.write(audio, 0.1 * np.random.default_rng(0).normal(size=44100 * 3), 44100)
    tags = ID3()
    tags.add(TIT2(encoding=3, text=["晴天"]))
    tags.add(TPE1(encoding=3, text=["某人"]))
    tags.save(audio)
    (tmp_path / "qing_tian_prompt.txt").write_text("pop, rock", "utf-8")
    service.answers["/api/search"] = [SONG]

    def run(*arguments: str) -> tuple[int, str]:
        flags = ("--data_dir", str(tmp_path), "--backend", "analysis", "--lyrics", *arguments)
        status = run_script(main, parse_args(list(flags)))
        return status, capsys.readouterr().out

    assert run()[0] == 1
    assert service.asked == []  # never by default
    online = ("--lyrics_source", "lrclib", "--lyrics_address", service.address)
    status, out = run(*online)
    assert status == 1
    assert "qing_tian.mp3: asks http://127.0.0.1" in out
    assert "found at lrclib: '晴天' by 某人, 3 s." in out
    assert "  | 故事的小黄花." in out
    assert "waits for a decision: lyrics found at lrclib are shown above" in out
    assert not (tmp_path / "qing_tian_lyrics.txt").exists()
    asked = len(service.asked)
    status, out = run(*online, "--accept_found", "--structure", "off")
    assert status == 0
    assert len(service.asked) == asked  # what was shown is what is used
    assert (tmp_path / "qing_tian_lyrics.txt").read_text("utf-8") == "故事的小黄花\n从出生那年就飘着"
    assert (tmp_path / "qing_tian_lyrics.lrc").exists()


def test_nothing_is_accepted_that_was_not_shown(service, tmp_path, capsys):
    soundfile.write(tmp_path / "某人 - 晴天.wav", 0.1 * np.random.default_rng(0).normal(size=44100 * 3), 44100)
    flags = [
        "--data_dir",
        str(tmp_path),
        "--backend",
        "analysis",
        "--lyrics",
        "--lyrics_source",
        "lrclib",
        "--accept_found",
    ]
    assert run_script(main, parse_args([*flags, "--lyrics_address", service.address])) == 1
    assert "no lyrics were found and shown by an earlier run, so there is nothing to accept" in capsys.readouterr().out
    assert service.asked == [] and not list(tmp_path.glob("*_lyrics.txt"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("晴天 - 某人.lrc", LRC),
        ("某人 - 晴天.lrc", LRC),
        ("某人-晴天.lrc", LRC),
        (
            "lyrics_某人_晴天.json",
            json.dumps({"title": "晴天", "artist": "某人", "lyrics": "故事的小黄花\n从出生那年就飘着"}),
        ),
        ("Lyrics_某人_晴天.txt", "故事的小黄花\n从出生那年就飘着"),
    ],
)
def test_files_of_other_programs_beside_the_song(tmp_path, name, text):
    from ace_lora.lyrics.sources import lyrics_beside, song_names
    from ace_lora.songs import SongFiles

    audio = tmp_path / "qing_tian.flac"
    soundfile.write(audio, np.zeros(44100), 44100)
    file = mutagen.File(audio)
    file["title"], file["artist"] = "晴天", "某人"
    file.save()
    (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "雨天 - 某人.lrc").write_text("[00:01.00]another song", "utf-8")
    song = SongFiles(audio)
    assert lyrics_beside(song, song_names(audio)).text == "故事的小黄花\n从出生那年就飘着"
    assert lyrics_beside(SongFiles(Path(tmp_path, "other.flac"))) is None
