"""Captions from a running llama.cpp server: `LlamaServer.connect(host, port).ask(samples, …)`.

Talks to `llama-server` (POST /v1/chat/completions) over one connection that is kept open. Standard library and numpy:
http.client knows no proxies, which is what an address on this computer or in this house wants.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import time
import wave
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ace_lora.captions.ask import CAPTION_RATE, LONGEST_SECONDS, TEMPERATURES, SongFailed
from ace_lora.captions.caption import (
    MAX_LYRIC_TOKENS,
    MAX_TAG_TOKENS,
    Caption,
    UnusableAnswer,
    answer_tokens,
    caption_question,
    caption_schema,
    parse_caption,
)
from ace_lora.commands import StepFailed
from ace_lora.replies import Deadline, pieces, reply_before

if TYPE_CHECKING:
    import numpy as np

# The server pads audio to windows of 30 s, which take 750 places of its context each.
WINDOW_SECONDS = 30
WINDOW_TOKENS = 750
QUESTION_TOKENS = 500
# Shorter parts would make tags of single phrases.
SHORTEST_PART_SECONDS = 60.0

CONNECT_TIMEOUT = 5.0  # seconds; loopback answers at once, a computer in the house nearly so
LOADING_TIMEOUT = 180.0  # seconds that a server may take to load its model
TRIES = 4
FIRST_PAUSE = 0.5  # seconds before the second try; doubled for each further one
LARGEST_REPLY = 16 << 20  # bytes; an answer has some thousand

_START = "Start it with: llama-server -m MODEL.gguf --mmproj MMPROJ.gguf -c 16384"


class LlamaServer:
    """A connection to a server that can hear."""

    gives_tags = True

    def __init__(self, host: str, port: int, *, answer_timeout: float, seed: int):
        """No request is made yet; `answer_timeout` in seconds is for one whole reply."""
        self.host = host
        self.port = port
        self.answer_timeout = answer_timeout
        self.seed = seed
        self.context_tokens: int | None = None
        self._connection: http.client.HTTPConnection | None = None

    @classmethod
    def connect(
        cls, host: str, port: int, *, answer_timeout: float, seed: int, say: Callable[[str], None]
    ) -> LlamaServer:
        """A server that is ready: it runs, has loaded its model, and the model can hear.

        Raises StepFailed with what to do otherwise.
        """
        server = cls(host, port, answer_timeout=answer_timeout, seed=seed)
        server._wait_until_loaded(say)
        server._read_properties(say)
        return server

    @property
    def longest_seconds(self) -> float:
        """What one request may hold: what the model hears, or less where the server's context is small."""
        if self.context_tokens is None:
            return LONGEST_SECONDS
        windows = (self.context_tokens - QUESTION_TOKENS - MAX_TAG_TOKENS - MAX_LYRIC_TOKENS // 2) // WINDOW_TOKENS
        return min(LONGEST_SECONDS, windows * float(WINDOW_SECONDS))

    def ask(self, samples: np.ndarray, *, tags: bool, lyrics: bool, language: str | None, attempt: int) -> Caption:
        """See `ace_lora.captions.ask.Captioner`."""
        request = {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_audio", "input_audio": {"data": wav_base64(samples), "format": "wav"}},
                        {"type": "text", "text": caption_question(tags=tags, lyrics=lyrics, language=language)},
                    ],
                }
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "caption", "schema": caption_schema(tags=tags, lyrics=lyrics)},
            },
            "temperature": TEMPERATURES[attempt],
            "max_tokens": answer_tokens(tags=tags, lyrics=lyrics),
            "stream": False,
        }
        return parse_caption(self._complete(request, attempt), tags=tags, lyrics=lyrics)

    # --- Requests ---

    def _complete(self, request: dict[str, Any], attempt: int) -> str:
        """The text of the answer. Failures that may pass are tried again, each time with a new seed."""
        reason = ""
        for number in range(TRIES):
            if number:
                time.sleep(FIRST_PAUSE * 2 ** (number - 1))
            request["seed"] = self.seed + attempt * TRIES + number
            try:
                status, body = self._request("POST", "/v1/chat/completions", request, self.answer_timeout)
            except (OSError, http.client.HTTPException) as error:
                reason = _described(error)
                continue
            if status == 200:
                return _answer_text(body)
            reason = f"HTTP {status}: {_server_message(body)}"
            if status < 400 or status in (401, 403, 404, 405):
                raise StepFailed(
                    f"The server at {self.address} refuses requests ({reason}). A llama-server without an API key, "
                    f"with /v1/chat/completions, was expected. {_START}."
                )
            if status < 500 and status not in (408, 429):
                # Asking again would send the same audio into the same context.
                raise SongFailed(
                    f"the server does not take the song ({reason}). If it speaks of the context, start llama-server "
                    "with a larger one: -c 16384"
                )
        if not self._is_alive():
            raise StepFailed(
                f"The server at {self.address} is gone after {TRIES} tries ({reason}). {_START}, look at its log, "
                "and run the same command again: finished songs are kept."
            )
        raise SongFailed(
            f"the server gave no answer in {TRIES} tries ({reason}). Look at the log of llama-server; "
            "--timeout gives it longer"
        )

    def _wait_until_loaded(self, say: Callable[[str], None]) -> None:
        deadline = time.monotonic() + LOADING_TIMEOUT
        waiting = False
        while True:
            try:
                status, body = self._request("GET", "/health", None, CONNECT_TIMEOUT)
            except (OSError, http.client.HTTPException) as error:
                raise StepFailed(
                    f"No llama.cpp server answers at {self.address} ({_described(error)}). {_START} --host {self.host} "
                    f"--port {self.port}, or give its address with --host and --port."
                ) from error
            if status == 200:
                return
            if status != 503:
                raise StepFailed(
                    f"What answers at {self.address} is no llama.cpp server: /health gives HTTP {status} "
                    f"({_server_message(body)}). Give the address of llama-server with --host and --port."
                )
            if time.monotonic() > deadline:
                raise StepFailed(
                    f"The server at {self.address} is still loading its model after {LOADING_TIMEOUT:.0f} s. "
                    "Look at its log; run the same command again when it is ready."
                )
            if not waiting:
                say(f"The server at {self.address} is loading its model; waiting for it …")
                waiting = True
            time.sleep(FIRST_PAUSE)

    def _read_properties(self, say: Callable[[str], None]) -> None:
        try:
            status, body = self._request("GET", "/props", None, CONNECT_TIMEOUT)
            properties = json.loads(body) if status == 200 else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise StepFailed(
                f"The server at {self.address} does not say what it can do (/props: {_described(error)}). "
                f"A current llama-server was expected. {_START}."
            ) from error
        if not isinstance(properties, dict):
            # Other servers of the same interface have no such page; what they cannot do shows at the first song.
            say(f"The server at {self.address} does not say whether its model can hear (/props: HTTP {status}).")
            return
        modalities = properties.get("modalities")
        if not isinstance(modalities, dict) or modalities.get("audio") is not True:
            raise StepFailed(
                f"The model of the server at {self.address} cannot hear: /props names no audio. "
                f"A model with audio input and its projector (--mmproj) is needed, such as Qwen2.5-Omni. {_START}."
            )
        settings = properties.get("default_generation_settings")
        context = settings.get("n_ctx") if isinstance(settings, dict) else properties.get("n_ctx")
        if isinstance(context, int) and context > 0:
            self.context_tokens = context
            if self.longest_seconds < SHORTEST_PART_SECONDS:
                raise StepFailed(
                    f"The context of the server at {self.address} is too small for a song: {context} tokens; 30 s of "
                    f"audio take {WINDOW_TOKENS}. Start llama-server with -c 16384."
                )

    def _request(self, method: str, path: str, content: object | None, timeout: float) -> tuple[int, bytes]:
        """(status, body) of one exchange on the open connection, which is opened where there is none.

        Raises OSError or http.client.HTTPException; the connection is closed then.
        """
        body = None if content is None else json.dumps(content, ensure_ascii=False).encode("utf-8")
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body else {})
        try:
            if self._connection is None:
                connection = http.client.HTTPConnection(self.host, self.port, timeout=CONNECT_TIMEOUT)
                connection.connect()
                self._connection = connection
            self._connection.sock.settimeout(timeout)
            self._connection.response_class = reply_before(Deadline(timeout))  # type: ignore[assignment]
            self._connection.request(method, path, body, headers)
            return self._read(self._connection)
        except BaseException:
            # Half a reply may still be under way on it. A server also closes a connection that stood idle, which only
            # shows when it is used again.
            self.close()
            raise

    def _read(self, connection: http.client.HTTPConnection) -> tuple[int, bytes]:
        reply = connection.getresponse()
        content = b"".join(pieces(reply, LARGEST_REPLY))
        if reply.will_close:
            self.close()
        return reply.status, content

    def _is_alive(self) -> bool:
        try:
            self._request("GET", "/health", None, CONNECT_TIMEOUT)
        except (OSError, http.client.HTTPException):
            return False
        return True

    @property
    def address(self) -> str:
        """`127.0.0.1:8080`, for messages."""
        return f"{self.host}:{self.port}"

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None


def wav_base64(samples: np.ndarray) -> str:
    """Mono `samples` [N] (float, full scale 1) at 16 kHz as a 16-bit WAV file in base64."""
    import numpy as np

    pcm = np.round(np.clip(samples, -1, 1) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(CAPTION_RATE)
        file.writeframes(pcm.tobytes())
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _answer_text(body: bytes) -> str:
    """The text in a reply of /v1/chat/completions. Raises UnusableAnswer."""
    try:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UnusableAnswer(f"the reply of the server is no chat completion ({_described(error)})") from error
    if choice.get("finish_reason") == "length":
        raise UnusableAnswer("the answer is cut short: the token limit was reached")
    if not isinstance(text, str):
        raise UnusableAnswer("the reply of the server holds no text")
    return text


def _server_message(body: bytes) -> str:
    """The server's own words for an error, shortened."""
    text = body.decode("utf-8", errors="replace")
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
        error = json.loads(text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    text = " ".join(text.split())
    return text[:200] if text else "without a message"


def _described(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return " ".join(str(error).split()) or type(error).__name__
