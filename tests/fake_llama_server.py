"""A stand-in for `llama-server` that checks what it is sent and misbehaves on demand; runs as a process of its own.

    python tests/fake_llama_server.py LOG.jsonl SETTINGS.json

Prints its port. SETTINGS is an object with `chat`: what to do at each chat request in turn, the last one for all
further ones (see `Handler.chat`), `health`: HTTP statuses of /health in turn, `props`: the object at /props or a
status. Every request is written to LOG as one line of JSON.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import sys
import threading
import time
import wave
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

CAPTION = {
    "cannot_tell": False,
    "genre": ["Rock"],
    "subgenre": ["indie rock"],
    "instrument": ["guitar", "drums"],
    "tempo": ["fast"],
    "mood": ["happy"],
    "has_vocal": True,
    "vocal": ["female"],
    "lyrics": ["Hello morning", "we are free", "Goodbye evening", "we are free"],
}
PROPS = {"modalities": {"vision": False, "audio": True}, "default_generation_settings": {"n_ctx": 16384}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    settings: ClassVar[dict] = {}
    log_path = Path()
    lock = threading.Lock()
    counts: ClassVar[dict[str, int]] = {"chat": 0, "health": 0, "connections": 0}

    def setup(self):
        super().setup()
        with self.lock:
            self.counts["connections"] += 1
            self.connection_number = self.counts["connections"]

    def log_message(self, *arguments):
        pass

    def note(self, **entry):
        with self.lock, self.log_path.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"path": self.path, "connection": self.connection_number} | entry) + "\n")

    def reply(self, status: int, content: object, **headers: str):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", headers.pop("length", str(len(body))))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def take(self, kind: str) -> object:
        """The next entry of a list of the settings; the last one stays."""
        entries = self.settings[kind]
        with self.lock:
            index = self.counts[kind]
            self.counts[kind] += 1
        return entries[min(index, len(entries) - 1)]

    def do_GET(self):
        if self.path == "/health":
            status = self.take("health")
            self.note(status=status)
            self.reply(status, {"status": "ok"} if status == 200 else {"error": {"message": "Loading model"}})
        elif self.path == "/props":
            self.note()
            props = self.settings["props"]
            self.reply(props, {}) if isinstance(props, int) else self.reply(200, props)
        else:
            self.reply(404, {})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.note(**self.described(request))
        self.chat(self.take("chat"), request)

    def described(self, request: dict) -> dict:
        """What a test asserts of a request, or what is wrong with it."""
        try:
            assert self.path == "/v1/chat/completions", self.path
            content = request["messages"][-1]["content"]
            sound = next(part["input_audio"] for part in content if part["type"] == "input_audio")
            assert sound["format"] == "wav", sound["format"]
            with wave.open(io.BytesIO(base64.b64decode(sound["data"], validate=True))) as file:
                frames = file.readframes(file.getnframes())
                audio = [file.getframerate(), file.getnchannels(), file.getsampwidth(), file.getnframes()]
            schema = request["response_format"]["json_schema"]["schema"]
            return {
                "audio": audio,
                "peak": max(abs(int.from_bytes(frames[i : i + 2], "little", signed=True)) for i in range(0, 32000, 2)),
                "fields": list(schema["properties"]),
                "type": request["response_format"]["type"],
                "seed": request["seed"],
                "temperature": request["temperature"],
                "text": next(part["text"] for part in content if part["type"] == "text"),
            }
        except Exception as error:
            return {"wrong": repr(error)}

    def chat(self, behaviour: str, request: dict):
        fields = request.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", CAPTION)
        said = {name: value for name, value in CAPTION.items() if name in fields}
        if isinstance(behaviour, dict):  # changes to the good answer
            said |= behaviour
            behaviour = "good"
        text = json.dumps(said, ensure_ascii=False)
        if behaviour == "good":
            self.complete(text)
        elif behaviour.isdigit():
            self.reply(int(behaviour), {"error": {"message": f"failure number {behaviour}"}})
        elif behaviour == "close":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif behaviour == "half body":
            body = self.body(text)
            self.reply(200, body[: len(body) // 2], length=str(len(body)))
            self.close_connection = True
        elif behaviour == "broken json":
            self.reply(200, self.body(text)[:-9])
        elif behaviour == "html":
            self.reply(200, b"<html>It works!</html>")
        elif behaviour == "no choices":
            self.reply(200, {"choices": []})
        elif behaviour == "null content":
            self.complete(None)
        elif behaviour == "empty content":
            self.complete("")
        elif behaviour == "prose":
            self.complete("This is a lovely rock song with guitars.")
        elif behaviour == "half answer":
            self.complete(text[: len(text) - 12])
        elif behaviour == "length":
            self.complete(text, finish_reason="length")
        elif behaviour == "fenced":
            self.complete(f"```json\n{text}\n```")
        elif behaviour == "wrong schema":
            self.complete(json.dumps({"title": "Song", "tags": ["rock", "pop"]}))
        elif behaviour == "list":
            self.complete("[1, 2, 3]")
        elif behaviour == "garbage":
            self.wfile.write(b"\x00\x01\x02 nonsense\r\n\r\n")
            self.close_connection = True
        elif behaviour == "slow":
            time.sleep(30)
        elif behaviour == "trickle":
            self.reply(200, b"{", length="1000000")
            while True:
                self.wfile.write(b" ")
                time.sleep(0.05)
        elif behaviour == "trickling headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while True:
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif behaviour == "endless":
            self.reply(200, b"{", length=str(1 << 40))
            while True:
                self.wfile.write(b" " * (1 << 20))
        elif behaviour == "redirect":
            self.reply(302, {}, Location="http://127.0.0.1:1/")
        elif behaviour == "close after":
            self.complete(text, Connection="close")
            self.close_connection = True
        elif behaviour == "die":
            os._exit(1)
        else:
            raise ValueError(behaviour)

    def body(self, text: str | None, finish_reason: str = "stop") -> bytes:
        choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
        return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()

    def complete(self, text: str | None, finish_reason: str = "stop", **headers: str):
        self.reply(200, self.body(text, finish_reason), **headers)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that hung up is what some of the tests are about."""


def main(log: str, settings: str) -> None:
    """Serve until killed."""
    Handler.log_path = Path(log)
    Handler.settings = {"chat": ["good"], "health": [200], "props": PROPS} | json.loads(settings)
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
