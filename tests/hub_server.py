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
"""

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(sys.argv[1])
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def read_faults() -> dict:
    path = ROOT / "faults.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def describe(repo: Path, path: Path, bare: bool) -> dict:
    entry: dict = {"rfilename": path.relative_to(repo).as_posix()}
    content = path.read_bytes()
    if not bare:
        entry["size"] = len(content)
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
        faults = read_faults()
        if path.startswith("/api/models/"):
            self.send_listing(path.removeprefix("/api/models/"), faults)
        elif "/resolve/" in path:
            repo, _, rest = path.lstrip("/").partition("/resolve/")
            self.send_content(ROOT / "repos" / repo / rest.partition("/")[2], wanted, faults)
        else:
            self.send_content(ROOT / "plain" / path.lstrip("/"), wanted, faults)

    def send_listing(self, name: str, faults: dict) -> None:
        repo = ROOT / "repos" / name
        status = faults.get("status", {}).get(name)
        if status or not repo.is_dir():
            self.send_bytes(status or 404, b'{"error": "no such repository"}', {"X-Error-Code": "RepoNotFound"})
            return
        files = sorted(path for path in repo.rglob("*") if path.is_file())
        siblings = [describe(repo, path, bool(faults.get("bare"))) for path in files]
        self.send_bytes(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())

    def send_content(self, path: Path, wanted: str, faults: dict) -> None:
        name = path.name
        status = faults.get("status", {}).get(name)
        if status or not path.is_file():
            self.send_bytes(status or 404, b"not here")
            return
        content = path.read_bytes()
        if name in faults.get("corrupt", []):
            content = bytes(255 - byte for byte in content)
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

    def log_message(self, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
