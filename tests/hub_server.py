"""The little of a model hub that downloads need, for `tests/base_weights/test_download.py`; a program of its own.

    python tests/hub_server.py FOLDER

Serves the repositories below FOLDER/repos (`FOLDER/repos/<org>/<name>/…`) and the files below FOLDER/plain on
127.0.0.1, prints its port, and writes each request to FOLDER/requests.txt as `path range`. FOLDER/faults.json, read at
each request, makes it misbehave:

    cut        {file name: N}   after N bytes of an answer without a range the connection is closed
    stall      {file name: N}   the same for any answer, but the connection stays open without a word
    corrupt    [file name]      every byte is replaced
    status     {file name: S}   answers with status S; the name of a repository concerns its listing
    no_ranges  true             ranges are ignored and the whole file is sent
    bare       true             listings say neither size nor checksum
    commit     C                listings are of the commit C
    claim      {file name: N}   listings say that the file has N bytes
    forge      [file name]      every byte is replaced, and listings state the checksum of that
    more       {file name: N}   N bytes more are sent than the file has
    drip       [name]           of a file or repository: a header line of one byte every 20 ms
    endless    [name]           of a repository: the listing never ends
    redirect   {file name: URL} where the request is sent on to
"""

import contextlib
import hashlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(sys.argv[1])
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def read_faults() -> dict:
    path = ROOT / "faults.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def describe(repo: Path, path: Path, faults: dict) -> dict:
    entry: dict = {"rfilename": path.relative_to(repo).as_posix()}
    content = path.read_bytes()
    if path.name in faults.get("forge", []):
        content = bytes(255 - byte for byte in content)
    if not faults.get("bare"):
        entry["size"] = faults.get("claim", {}).get(path.name, len(content))
        entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if path.suffix in (".safetensors", ".bin"):
            entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        wanted = self.headers.get("Range") or "-"
        with (ROOT / "requests.txt").open("a", encoding="utf-8") as log:
            log.write(f"{path} {wanted}\n")
        if self.headers.get("Authorization"):
            with (ROOT / "tokens.txt").open("a", encoding="utf-8") as log:
                log.write(f"{path} {self.headers['Authorization']}\n")
        faults = read_faults()
        if path.startswith("/api/models/"):
            self.send_listing(path.removeprefix("/api/models/"), faults)
        elif "/resolve/" in path:
            repo, _, rest = path.lstrip("/").partition("/resolve/")
            self.send_content(ROOT / "repos" / repo / rest.partition("/")[2], wanted, faults)
        else:
            self.send_content(ROOT / "plain" / path.lstrip("/"), wanted, faults)

    def send_listing(self, name: str, faults: dict) -> None:
        name, _, revision = name.partition("/revision/")
        if revision not in ("", faults.get("commit", COMMIT)):
            self.send_bytes(404, b'{"error": "no such revision"}', {"X-Error-Code": "RevisionNotFound"})
            return
        if name in faults.get("drip", []):
            self.drip()
        if name in faults.get("endless", []):
            self.send_without_end()
        repo = ROOT / "repos" / name
        status = faults.get("status", {}).get(name)
        if status or not repo.is_dir():
            self.send_bytes(status or 404, b'{"error": "no such repository"}', {"X-Error-Code": "RepoNotFound"})
            return
        files = sorted(path for path in repo.rglob("*") if path.is_file())
        siblings = [describe(repo, path, faults) for path in files]
        listing = {"id": name, "sha": faults.get("commit", COMMIT), "siblings": siblings}
        self.send_bytes(200, json.dumps(listing).encode())

    def drip(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while True:
            self.wfile.write(b"x")
            time.sleep(0.02)

    def send_without_end(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            self.wfile.write(b"[" * (1 << 16))

    def send_content(self, path: Path, wanted: str, faults: dict) -> None:
        name = path.name
        status = faults.get("status", {}).get(name)
        if status or not path.is_file():
            self.send_bytes(status or 404, b"not here")
            return
        content = path.read_bytes()
        if name in faults.get("drip", []):
            self.drip()
        if name in faults.get("redirect", {}):
            self.send_bytes(302, b"elsewhere", {"Location": faults["redirect"][name]})
            return
        if name in faults.get("corrupt", []) + faults.get("forge", []):
            content = bytes(255 - byte for byte in content)
        content += bytes(faults.get("more", {}).get(name, 0))
        start = 0 if wanted == "-" or faults.get("no_ranges") else int(wanted.removeprefix("bytes=").rstrip("-"))
        ranges = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        cut = faults.get("cut", {}).get(name) if wanted == "-" else None
        stall = faults.get("stall", {}).get(name)
        self.send_bytes(206 if start else 200, content[start:], ranges, cut if stall is None else stall)
        if stall is not None:
            self.wfile.flush()
            threading.Event().wait(60)

    def send_bytes(self, status: int, content: bytes, headers: dict | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that hung up is what some of the tests are about
            super().handle()

    def log_message(self, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
