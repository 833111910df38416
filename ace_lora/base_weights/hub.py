"""The model hub, or a mirror of it: what a repository holds, and single files, read with limits.

HF_ENDPOINT names the mirror, HF_TOKEN the token, the proxy variables the proxy, as huggingface_hub has them. The token
goes out over https alone. Nothing a server says is believed beyond its limits: replies end by a deadline, are never
longer than allowed, and are not unpacked.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ace_lora.commands import StepFailed, WrongInput
from ace_lora.files import UnusableFile, parse_json
from ace_lora.replies import Deadline, pieces, reply_before

OFFICIAL_HUB = "https://huggingface.co"
CONNECT_SECONDS = 20
# A listing is small: the largest of these repositories takes some ten kilobytes.
LISTING_SECONDS, LISTING_BYTES = 60, 4_000_000
# Where the official hub is blocked, it is not waited for.
OFFICIAL_SECONDS = 10
MOST_REDIRECTS = 5
# What ends a request: no connection, a reply that is none or comes too late, an address that is none.
FAILURES = (OSError, http.client.HTTPException, ValueError)


class Refused(OSError):
    """A server that answers with another status than success."""

    def __init__(self, status: int):
        super().__init__(f"the server answered {status}")
        self.status = status


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. `key` names its content: sha256 for large files, git's sha1 for small ones."""

    repo: str
    commit: str
    name: str
    size: int
    key: str


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit, by name. `vouched`: the official hub itself stated the checksums."""

    commit: str
    files: dict[str, RemoteFile | None]  # None: no size and checksum stated
    vouched: bool


def endpoint() -> str:
    """The address of the hub or of the mirror that is used."""
    from huggingface_hub import constants

    return constants.ENDPOINT.rstrip("/")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE keeps everything off the network."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def withheld_token() -> str | None:
    """Why HF_TOKEN does not go out, where there is one and the connection is not encrypted."""
    from huggingface_hub import get_token

    if not get_token() or endpoint().startswith("https://"):
        return None
    return f"HF_TOKEN is not sent to {endpoint()}: it would be readable on its way. Use an address with https://."


def file_address(file: RemoteFile) -> str:
    return f"{endpoint()}/{file.repo}/resolve/{file.commit}/{urllib.parse.quote(file.name)}"


def list_repository(repo: str) -> tuple[Listing, str | None]:
    """What the hub, or its mirror, has of `repo`, and why nobody but the mirror vouches for it (None: not so).

    A mirror is asked for names and commit, the official hub for the checksums of that commit, because a mirror's own
    checksum only shows that a download is whole. Raises WrongInput when the mirror cannot be asked, StepFailed when it
    offers a commit that the official hub does not have.
    """
    try:
        listing = _listing(endpoint(), repo, None, LISTING_SECONDS)
    except FAILURES as error:
        raise WrongInput(
            f"Cannot download {repo} from {endpoint()}: {described(error)}. "
            "Check the connection, set HF_ENDPOINT to a mirror that works where you are (for example "
            "https://hf-mirror.com), or copy the folder from another computer and name it with --checkpoint_dir."
        ) from error
    if listing.vouched:
        return listing, None
    try:
        return _listing(OFFICIAL_HUB, repo, listing.commit, OFFICIAL_SECONDS), None
    except Refused as error:
        if error.status != 404:
            return listing, described(error)
        raise StepFailed(
            f"{endpoint()} offers {repo} at the commit {listing.commit}, which {OFFICIAL_HUB} does not have: it is not "
            "what was published. Set HF_ENDPOINT to another mirror."
        ) from error
    except FAILURES as error:
        return listing, described(error)


def _listing(hub: str, repo: str, commit: str | None, seconds: float) -> Listing:
    """Raises one of FAILURES."""
    revision = f"/revision/{commit}" if commit else ""
    with open_reply(f"{hub}/api/models/{repo}{revision}?blobs=true", Deadline(seconds)) as reply:
        content = b"".join(pieces(reply, LISTING_BYTES))
    answer = parse_json(content, f"the listing of {repo}")
    siblings = answer.get("siblings") if isinstance(answer, dict) else None
    stated = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(siblings, list) or not _is_checksum(stated, (40,)) or (commit and stated != commit):
        raise UnusableFile(f"the listing of {repo} is none. Expected the files of a commit.")
    names = [entry.get("rfilename") for entry in siblings if isinstance(entry, dict)]
    files = {
        name: _remote_file(repo, str(stated), name, entry)
        for name, entry in zip(names, siblings, strict=False)
        if isinstance(name, str)
    }
    return Listing(str(stated), files, vouched=hub == OFFICIAL_HUB)


def _remote_file(repo: str, commit: str, name: str, entry: Mapping[str, Any]) -> RemoteFile | None:
    large = entry.get("lfs")
    key = large.get("sha256") if isinstance(large, dict) else entry.get("blobId")
    size = entry.get("size")
    # The key becomes a file name, so nothing but a checksum is taken for one.
    if type(size) is not int or size < 0 or not _is_checksum(key, (64,) if isinstance(large, dict) else (40,)):
        return None
    return RemoteFile(repo, commit, name, size, str(key))


def _is_checksum(text: object, lengths: tuple[int, ...]) -> bool:
    return isinstance(text, str) and len(text) in lengths and all(letter in "0123456789abcdef" for letter in text)


# --- Requests ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_reply(
    address: str, deadline: Deadline, headers: Mapping[str, str] | None = None
) -> Iterator[http.client.HTTPResponse]:
    """The successful reply to a GET of `address`, its content unread, redirects followed. Raises one of FAILURES."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import build_hf_headers

    # Unpacked, a short reply could fill the memory, and byte ranges would count packed bytes.
    sent = {**build_hf_headers(token=False), **(headers or {}), "Accept-Encoding": "identity"}
    director = _director(deadline)
    token = get_token()
    for _ in range(1 + MOST_REDIRECTS):
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{address}' is no http or https address")
        request = urllib.request.Request(address, headers=sent)
        if token and address.startswith(f"{endpoint()}/") and parts.scheme == "https":
            request.add_header("Authorization", f"Bearer {token}")
        reply = director.open(request, timeout=CONNECT_SECONDS)
        assert isinstance(reply, http.client.HTTPResponse)
        with reply:
            if reply.status in (301, 302, 303, 307, 308) and reply.headers["Location"]:
                address = urllib.parse.urljoin(address, reply.headers["Location"])
                continue
            if reply.status not in (200, 206):
                raise Refused(reply.status)
            yield reply
            return
    raise http.client.HTTPException(f"more than {MOST_REDIRECTS} redirects")


def _director(deadline: Deadline) -> urllib.request.OpenerDirector:
    """urllib's proxies and encryption, but not its redirects, which read replies to their end, nor other schemes."""
    proxies = urllib.request.getproxies()
    for scheme in ("http", "https"):
        if proxies.get(scheme, "").lower().startswith("socks"):
            raise ValueError(f"the proxy '{proxies[scheme]}' is a SOCKS proxy; name its http:// address instead")
    director = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), _Plain(deadline), _Encrypted(deadline)):
        director.add_handler(handler)
    return director


@functools.lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):
        import certifi

        # Beside the system's own: a Python that was unpacked somewhere may not find those.
        context.load_verify_locations(certifi.where())
    return context


def _connection(kind: type[http.client.HTTPConnection], deadline: Deadline, *arguments: Any, **more: Any) -> Any:
    connection = kind(*arguments, **more)
    connection.response_class = reply_before(deadline)  # type: ignore[assignment]
    return connection


class _Plain(urllib.request.HTTPHandler):
    def __init__(self, deadline: Deadline):
        super().__init__()
        self._make = functools.partial(_connection, http.client.HTTPConnection, deadline)

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._make, request)  # type: ignore[arg-type]


class _Encrypted(urllib.request.HTTPSHandler):
    def __init__(self, deadline: Deadline):
        super().__init__(context=_certificates())
        self._make = functools.partial(_connection, http.client.HTTPSConnection, deadline, context=_certificates())

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._make, request)  # type: ignore[arg-type]


def described(error: BaseException) -> str:
    """What went wrong with a request, for people."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, (Refused, UnusableFile)):
        return str(error)
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
