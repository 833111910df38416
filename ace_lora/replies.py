"""Replies of servers, never later than a deadline and never longer than a limit. Standard library only.

The timeout of a socket is for one read: a server that sends a byte now and then holds a program for ever, in the lines
of its headers too. Here a whole reply has a deadline, from its first byte on.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import time
from collections.abc import Callable, Iterator

PIECE_BYTES = 1 << 16
LATE = "the reply did not end in time"


class Deadline:
    """When a reply has to be there; `put_off` gives it longer, for replies that keep arriving."""

    def __init__(self, seconds: float):
        self.put_off(seconds)

    def put_off(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def seconds_left(self) -> float:
        """Raises TimeoutError when nothing is left."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(LATE)
        return left


def reply_before(deadline: Deadline) -> Callable[..., http.client.HTTPResponse]:
    """What to set as `response_class` of an `http.client.HTTPConnection`: its next reply keeps to `deadline`."""
    return functools.partial(_Reply, deadline=deadline)


def pieces(reply: http.client.HTTPResponse, limit: int) -> Iterator[bytes]:
    """The content of a reply as it arrives. Raises HTTPException when it is longer than `limit` bytes or broke off."""
    size = 0
    try:
        while piece := reply.read1(PIECE_BYTES):
            size += len(piece)
            if size > limit:
                raise http.client.HTTPException(f"the reply is longer than {limit:,} bytes")
            yield piece
    except http.client.IncompleteRead:
        raise http.client.HTTPException(f"the reply broke off after {size:,} bytes") from None
    if reply.length:
        raise http.client.HTTPException(f"the reply broke off after {size:,} bytes")
    # Tells the connection that it may be used again: read1 leaves a reply open that it has read to its end.
    reply.close()


class _Reply(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: object, deadline: Deadline, **more: object):
        super().__init__(sock, *arguments, **more)  # type: ignore[arg-type]
        self.fp.close()
        self.fp = io.BufferedReader(_TimedSocket(sock, deadline))


class _TimedSocket(io.RawIOBase):
    """A socket to read from, each read with the time that is left of the whole."""

    def __init__(self, sock: socket.socket, deadline: Deadline):
        self._socket = sock
        # Keeps the connection open after its owner has let go of it, as http.client's own file does.
        self._file = sock.makefile("rb", buffering=0)
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int | None:
        self._socket.settimeout(self._deadline.seconds_left())
        try:
            return self._file.readinto(buffer)
        except TimeoutError:
            raise TimeoutError(LATE) from None

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
