"""Lyrics from a service, when the user asks for it: LRCLIB, or NetEase Cloud Music.

Only what is needed to find the song is sent: title, artist, album and length. Every request is said before it is made.
What is found is a proposal; nothing here decides that it is used. Standard library only; proxies of the environment are
used. Interfaces: https://lrclib.net/docs; NetEase's search and lyric pages, which have no documentation of their own.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ace_lora.lyrics.formats import read_entries
from ace_lora.lyrics.sources import SongNames
from ace_lora.lyrics.text import comparable

ADDRESSES = {"lrclib": "https://lrclib.net", "netease": "https://music.163.com"}
TIMEOUT = 20.0  # seconds for one request
LARGEST_REPLY = 4 << 20  # bytes; lyrics have some thousand
# Versions of a song differ by more; the same one differs by the silence at its ends.
SAME_LENGTH = 5.0
MOST_LOOKED_AT = 10
_HEADERS = {"User-Agent": "ACE-Step-LoRA-GUI (lyrics on the user's request)", "Accept": "application/json"}


class LookupFailed(Exception):
    """The service cannot be asked, or its answer cannot be read; the text says why and what to do."""


@dataclass(frozen=True)
class Proposal:
    """Lyrics of the song that a service takes for the one asked for; `text` is in a format of `formats.py`."""

    service: str
    title: str
    artist: str
    seconds: float
    text: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, said: Any) -> Proposal | None:
        """The proposal in a JSON value; None where it is none."""
        if not isinstance(said, dict) or not isinstance(said.get("text"), str) or said.get("service") not in ADDRESSES:
            return None
        seconds = said.get("seconds")
        return cls(
            said["service"],
            str(said.get("title", "")),
            str(said.get("artist", "")),
            float(seconds) if isinstance(seconds, (int, float)) else 0.0,
            said["text"],
        )


def look_up(
    service: str, names: SongNames, stem: str, seconds: float, say: Callable[[str], None], address: str = ""
) -> Proposal | None:
    """Lyrics of a song at `service`, by its tags or else its file name, and its length; None without a match.

    A match has the title, the artist where it is known, and the length to within 5 s. `address`: another one than the
    service's own, such as a mirror. Raises LookupFailed.
    """
    base = (address or ADDRESSES[service]).rstrip("/")
    found = {"lrclib": _lrclib, "netease": _netease}[service]
    for title, artist in names.pairs(stem):
        for proposal in found(base, title, artist, names.album, seconds, say):
            if _is_same(proposal, title, artist, seconds) and any(
                line.text for line in read_entries(proposal.text).lines
            ):
                return proposal
    return None


def _is_same(proposal: Proposal, title: str, artist: str, seconds: float) -> bool:
    artists = {_bare(name) for name in re.split(r"[/,&、;]|\bfeat\.?\b|\bft\.?\b", proposal.artist)} | {
        _bare(proposal.artist)
    }
    return (
        _bare(proposal.title) == _bare(title)
        and (not artist or bool(artists & {_bare(name) for name in (artist, *re.split(r"[/,&、;]", artist))}))
        and proposal.seconds > 0
        and abs(proposal.seconds - seconds) <= SAME_LENGTH
    )


def _bare(name: str) -> str:
    return comparable(re.sub(r"[(（\[【].*?[)）\]】]", "", name)).replace(" ", "")


def _lrclib(
    base: str, title: str, artist: str, album: str, seconds: float, say: Callable[[str], None]
) -> Iterator[Proposal]:
    query = {"track_name": title, "artist_name": artist, "album_name": album}
    answer = _get(f"{base}/api/search", {key: value for key, value in query.items() if value}, say)
    for song in answer[:MOST_LOOKED_AT] if isinstance(answer, list) else []:
        if isinstance(song, dict):
            text = (
                song.get("syncedLyrics")
                or song.get("plainLyrics")
                or ("[instrumental]" if song.get("instrumental") else "")
            )
            yield Proposal(
                "lrclib",
                str(song.get("trackName", "")),
                str(song.get("artistName", "")),
                _number(song.get("duration")),
                str(text),
            )


def _netease(
    base: str, title: str, artist: str, album: str, seconds: float, say: Callable[[str], None]
) -> Iterator[Proposal]:
    answer = _get(
        f"{base}/api/search/get", {"s": f"{title} {artist}".strip(), "type": "1", "limit": str(MOST_LOOKED_AT)}, say
    )
    result = answer.get("result") if isinstance(answer, dict) else None
    songs = result.get("songs") if isinstance(result, dict) else None
    for song in songs[:MOST_LOOKED_AT] if isinstance(songs, list) else []:
        if not isinstance(song, dict):
            continue
        artists = song.get("artists") or song.get("ar") or []
        named = "/".join(str(person.get("name", "")) for person in artists if isinstance(person, dict))
        found = Proposal(
            "netease", str(song.get("name", "")), named, _number(song.get("duration") or song.get("dt")) / 1000, ""
        )
        # Asked for its lyrics only if it can be the song.
        if _is_same(found, title, artist, seconds):
            query = {"id": str(song.get("id", "")), "lv": "1", "kv": "1", "tv": "-1", "rv": "-1"}
            lyrics = _get(f"{base}/api/song/lyric", query, say)
            yield Proposal(
                found.service, found.title, found.artist, found.seconds, json.dumps(lyrics, ensure_ascii=False)
            )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _get(url: str, query: dict[str, str], say: Callable[[str], None]) -> Any:
    address = f"{url}?{urllib.parse.urlencode(query)}"
    say(f"asks {urllib.parse.unquote_plus(address)}")
    try:
        request = urllib.request.Request(address, headers=_HEADERS)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            body = reply.read(LARGEST_REPLY + 1)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise LookupFailed(
            f"{url} answers HTTP {error.code} ({error.reason}). Try again later, or put the lyrics beside the song"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise LookupFailed(
            f"{url} cannot be reached ({reason}). Check the connection and the proxy, or put the lyrics beside the song"
        ) from error
    if len(body) > LARGEST_REPLY:
        raise LookupFailed(
            f"{url} answers more than {LARGEST_REPLY >> 20} MB, which are no lyrics. Try another service"
        )
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise LookupFailed(
            f"{url} answers with something that is no JSON. It may be blocked on this network; try another service"
        ) from error
