"""Replies of hostile servers: each ends by its deadline, within its limit, and takes little memory."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from ace_lora.replies import Deadline, pieces, reply_before

LIMIT = 1_000_000
SECONDS = 0.5


@contextlib.contextmanager
def serving(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that reads one request and then talks as it likes; yields its port."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 16)
            talk(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
    thread.join(10)


def content(port: int, seconds: float = SECONDS, limit: int = LIMIT) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.response_class = reply_before(Deadline(seconds))
    with contextlib.closing(connection):
        connection.request("GET", "/")
        return b"".join(pieces(connection.getresponse(), limit))


def dripping(start: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(drop)
            time.sleep(0.02)

    return talk


def endless(start: bytes, block: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(block)

    return talk


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "talk",
    [
        lambda connection: connection.recv(1),  # until the client has left
        dripping(b"", b"H"),
        dripping(OK, b"X"),
        dripping(OK, b"A: b\r\n"),
        dripping(OK + b"Content-Length: 1000\r\n\r\n", b" "),
        dripping(OK + b"\r\n", b" "),
        dripping(CHUNKED, b"1\r\n \r\n"),
        dripping(CHUNKED + b"0\r\n", b"A: b\r\n"),
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        endless(CHUNKED + b"0\r\n", b"A: b\r\n" * 1000),
    ],
    ids=["nothing", "status", "header", "headers", "body", "endless-body", "chunks", "trailer", "100s", "trailers"],
)
def test_a_reply_that_never_ends_ends_with_its_deadline(talk):
    started = time.monotonic()
    with serving(talk) as port, pytest.raises((TimeoutError, http.client.HTTPException)):
        content(port)
    assert time.monotonic() - started < SECONDS + 2


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (endless(b"", b"H" * 10_000), "status line"),
        (endless(OK, b"A" * 10_000), "header line"),
        (endless(OK, b"A: b\r\n" * 1000), "more than 100 headers"),
        (endless(OK + b"Content-Length: 1000000000000\r\n\r\n", bytes(100_000)), "longer than 1,000,000 bytes"),
        (endless(OK + b"\r\n", bytes(100_000)), "longer than 1,000,000 bytes"),
        (endless(CHUNKED + b"FFFFFFFFFFFF\r\n", bytes(100_000)), "longer than 1,000,000 bytes"),
        (endless(CHUNKED, b"A" * 100_000), "chunk size"),
    ],
    ids=["status", "header", "headers", "length", "body", "chunk", "sizes"],
)
def test_a_reply_that_is_too_long_takes_no_memory(talk, reason):
    tracemalloc.start()
    try:
        with serving(talk) as port, pytest.raises(http.client.HTTPException, match=reason):
            content(port, seconds=30)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * LIMIT + 1_000_000


def test_a_reply_that_breaks_off():
    def broken(where: str) -> contextlib.AbstractContextManager:
        return pytest.raises(http.client.HTTPException, match=f"broke off {where}")

    with (
        serving(lambda connection: connection.sendall(OK + b"Content-Length: 10\r\n\r\nabc")) as port,
        broken("after 3 bytes"),
    ):
        content(port)
    with serving(lambda connection: connection.sendall(CHUNKED + b"5\r\nabc")) as port, broken("after"):
        content(port)


def test_a_good_reply_of_exactly_the_limit_comes_whole():
    body = bytes(range(256)) * 4000
    head = OK + f"Content-Length: {len(body)}\r\n\r\n".encode()
    with serving(lambda connection: connection.sendall(head + body)) as port:
        assert content(port, 20, len(body)) == body
    with serving(lambda connection: connection.sendall(CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")) as port:
        assert content(port, 20, 5) == b"abcde"


def test_a_deadline_can_be_put_off():
    deadline = Deadline(0)
    with pytest.raises(TimeoutError):
        deadline.seconds_left()
    deadline.put_off(5)
    assert 4 < deadline.seconds_left() <= 5
