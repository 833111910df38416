"""Base weights that are missing are fetched from the hub, or from a mirror of it.

Downloads use HF_ENDPOINT (a mirror), HF_TOKEN and the proxy variables as huggingface_hub does; HF_HUB_OFFLINE=1 keeps
everything off the network. An interrupted download goes on where it stopped, also days later.

The files are fetched here and not by `huggingface_hub.snapshot_download`, because since its version 1.1x that deletes
the unfinished file when it is interrupted: a slow connection would never finish 6.6 GB. What is left on the disk is
the cache layout of huggingface_hub without links, as huggingface_hub makes it on a Windows that allows none, so that
ACE-Step's own scripts find the weights too.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ace_lora.base_weights.find import (
    DEFAULT_CHECKPOINT_DIR,
    BaseWeights,
    faults_of_file,
    find_base_weights,
    holds_any_part,
    missing,
    missing_sentences,
)
from ace_lora.base_weights.parts import (
    LYRIC_VOCABULARY,
    LYRIC_VOCABULARY_BYTES,
    LYRIC_VOCABULARY_SHA256,
    LYRIC_VOCABULARY_URL_VARIABLE,
    LYRIC_VOCABULARY_URLS,
    PARTS,
    TOKENIZERS,
    PartSource,
    check_names,
    format_bytes,
)
from ace_lora.commands import StepFailed, WrongInput
from ace_lora.files import free_bytes, replace_atomically, write_text

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

TIMEOUT_SECONDS = 20
# Waits between attempts that brought no new byte; an attempt that brought some starts the count again.
RETRY_WAITS_SECONDS = (1, 2, 4)
BLOCK_BYTES = 1 << 20
# Left free on the disk, so that a download does not stop the computer.
SPARE_BYTES = 500_000_000


# --- Checking and completing ------------------------------------------------------------------------------------------


def check_base_weights(checkpoint_dir: Path | None, parts: Iterable[str]) -> list[str]:
    """What keeps `parts` from being used and no download would mend: sentences for `WrongInput`, or an empty list.

    Opens no connection. Parts that are missing and can be downloaded are no problem here.
    """
    weights = BaseWeights(checkpoint_dir)
    folder = weights.folder
    if weights.named and folder.exists() and not folder.is_dir():
        return [f"--checkpoint_dir '{folder}' is a file. Expected a folder with the base weights."]
    if weights.named and not folder.exists():
        return [
            f"--checkpoint_dir '{folder}' is not there. Expected the folder with the base weights. "
            "Correct the name, or make an empty folder of that name to download the weights there."
        ]
    parts = list(parts)
    absent = missing(checkpoint_dir, parts)
    if not absent:
        return []
    if weights.named and any(folder.iterdir()) and not holds_any_part(folder):
        return [
            f"--checkpoint_dir '{folder}' holds none of the base weights ({', '.join(parts)}). "
            f"Expected folders such as {PARTS['transformer'].folder} or {PARTS['transformer'].cache_folder}. "
            "Name the folder that holds them, or an empty one to download them there."
        ]
    if is_offline():
        return [
            *missing_sentences(absent),
            "HF_HUB_OFFLINE is set, so nothing is downloaded. Unset it, or copy the missing folders to "
            f"'{folder}', or name the folder that holds them with --checkpoint_dir.",
        ]
    caches = {folder / PARTS[part.part].cache_folder for part in absent if part.part in PARTS}
    begun = sum(path.stat().st_size for cache in caches for path in (cache / "blobs").glob("*.part"))
    return _disk_problems(folder, sum(part.size for part in absent) - begun)


def ensure_base_weights(checkpoint_dir: Path | None, parts: Iterable[str]) -> dict[str, Path]:
    """The path of each of `parts`, after downloading those that are missing.

    Prints what is missing and each file that is fetched. Raises WrongInput, before anything is written, when
    the folder cannot be used, the disk is too small, or the network is switched off or cannot be reached; and
    StepFailed when a download breaks off or brings the wrong bytes. What has been fetched is kept for the next time.
    """
    parts = list(parts)
    check_names(parts)
    problems = check_base_weights(checkpoint_dir, parts)
    if problems:
        raise WrongInput(problems)
    weights = BaseWeights(checkpoint_dir)
    absent = missing(checkpoint_dir, parts)
    if absent:
        try:
            plan = _plan_download(weights.folder, [part.part for part in absent])
        except WrongInput as error:
            raise WrongInput([*missing_sentences(absent), *error.problems]) from error
        for sentence in missing_sentences(absent):
            print(sentence)
        _carry_out(weights.folder, plan)
        absent = missing(checkpoint_dir, parts)
        if absent:
            sentences = " ".join(missing_sentences(absent))
            raise StepFailed(f"{sentences} They were downloaded just now, so this is a bug; please report it.")
    return find_base_weights(checkpoint_dir, parts)


def _disk_problems(folder: Path, needed: int) -> list[str]:
    free = free_bytes(folder)
    if needed + SPARE_BYTES <= free:
        return []
    return [
        f"The disk of '{folder}' has {format_bytes(free)} free, and the missing base weights take "
        f"{format_bytes(needed)}. Expected {format_bytes(needed + SPARE_BYTES)}. "
        "Free some, or name a folder on another disk with --checkpoint_dir."
    ]


# --- Downloading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. `key` names its content: sha256 for large files, git's sha1 for small ones."""

    repo: str
    commit: str
    name: str
    size: int
    key: str

    def digest_of(self, path: Path) -> str:
        """What `key` should be, computed from the bytes of `path`."""
        digest = hashlib.sha256() if len(self.key) == 64 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE keeps everything off the network."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def download(checkpoint_dir: Path | None, parts: Iterable[str]) -> None:
    """Fetch `parts` into the cache below `checkpoint_dir` (None is the default one); see `ensure_base_weights`.

    What is already there of a file is not fetched again.
    """
    parts = list(parts)
    check_names(parts)
    root = BaseWeights(checkpoint_dir).folder
    _carry_out(root, _plan_download(root, parts))


@dataclass(frozen=True)
class DownloadPlan:
    """What the servers say: all files of the parts, and those of them that are to be fetched."""

    files: list[RemoteFile]
    to_fetch: list[RemoteFile]
    lyric_vocabulary: bytes | None  # 0.4 MB, so fetched to see whether it can be; None where it is not wanted


def _plan_download(root: Path, parts: list[str]) -> DownloadPlan:
    """Ask the servers; WrongInput when they cannot be asked or the disk is too small. Writes nothing."""
    if is_offline():
        raise WrongInput(f"Cannot download {', '.join(parts)}: HF_HUB_OFFLINE is set. Unset it, and try again.")
    sources = [PARTS[part] for part in parts if part in PARTS]
    unreachable: list[str] = []
    listings, vocabulary = {}, None
    try:
        listings = {repo: _list_repository(repo) for repo in dict.fromkeys(source.repo for source in sources)}
    except WrongInput as error:
        unreachable += error.problems
    try:
        vocabulary = fetch_lyric_vocabulary() if "lyric_vocabulary" in parts else None
    except WrongInput as error:
        unreachable += error.problems
    if unreachable:
        raise WrongInput(unreachable)
    files = [file for source in sources for file in _needed_files(source, listings[source.repo])]
    to_fetch = [file for file in files if not _is_whole(_target(root, file), file)]
    problems = _disk_problems(root, sum(file.size - _bytes_there(_partial(root, file)) for file in to_fetch))
    if problems:
        raise WrongInput(problems)
    return DownloadPlan(files, to_fetch, vocabulary)


def _carry_out(root: Path, plan: DownloadPlan) -> None:
    vocabularies = int(plan.lyric_vocabulary is not None)
    total = len(plan.to_fetch) + vocabularies
    if plan.lyric_vocabulary is not None:
        line = f"download 1/{total} | lyric vocabulary | {format_bytes(LYRIC_VOCABULARY_BYTES)}"
        print(line)
        with replace_atomically(DEFAULT_CHECKPOINT_DIR / LYRIC_VOCABULARY) as temporary:
            temporary.write_bytes(plan.lyric_vocabulary)
        print(f"{line} | done")
    for number, file in enumerate(plan.to_fetch, start=1 + vocabularies):
        line = f"download {number}/{total} | {file.repo}/{file.name} | {format_bytes(file.size)}"
        print(line)
        _fetch(root, file)
        print(f"{line} | done")
    for file in plan.files:
        main = root / ("models--" + file.repo.replace("/", "--")) / "refs" / "main"
        if _bytes_there(main) == 0:
            write_text(main, file.commit)


def _list_repository(repo: str) -> ModelInfo:
    import httpx
    from huggingface_hub import HfApi, constants

    try:
        return HfApi().model_info(repo, files_metadata=True, timeout=TIMEOUT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise WrongInput(
            f"Cannot download {repo} from {constants.ENDPOINT}: {_reason(error)}. "
            "Check the connection, set HF_ENDPOINT to a mirror that works where you are (for example "
            "https://hf-mirror.com), or copy the folder from another computer and name it with --checkpoint_dir."
        ) from error


def _needed_files(source: PartSource, listing: ModelInfo) -> list[RemoteFile]:
    """The files of one part that are needed, as its repository lists them."""
    prefix = f"{source.folder}/" if source.folder else ""
    there = {file.rfilename: file for file in listing.siblings or []}
    in_folder = [name[len(prefix) :] for name in there if name.startswith(prefix)]
    names = _needed_names([name for name in in_folder if "/" not in name], source)
    if not names:
        raise StepFailed(
            f"The server has no whole '{source.plain_folder}' of {source.repo}: expected config.json and "
            f"{' or '.join(source.weights)}. Check HF_ENDPOINT, or get the folder elsewhere."
        )
    return [_remote_file(source.repo, listing.sha, there[prefix + name]) for name in names]


def _remote_file(repo: str, commit: str | None, sibling: RepoSibling) -> RemoteFile:
    key = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
    # Both become file names, so nothing but a checksum is taken for one.
    if sibling.size is None or not _is_hexadecimal(key, (40, 64)) or not _is_hexadecimal(commit, (40,)):
        raise StepFailed(
            f"The server does not say size and checksum of '{sibling.rfilename}' of {repo}. "
            "Expected a mirror that serves file metadata. Set HF_ENDPOINT to another one."
        )
    return RemoteFile(repo, str(commit), sibling.rfilename, sibling.size, str(key))


def _is_hexadecimal(text: str | None, lengths: tuple[int, ...]) -> bool:
    return text is not None and len(text) in lengths and all(letter in "0123456789abcdef" for letter in text)


def _needed_names(names: list[str], source: PartSource) -> list[str]:
    """Of the files of a folder: configuration, weights, tokenizer. Empty when one of these is not there."""
    weights = [name for name in source.weights if name in names][:1]
    tokenizer = [name for name in TOKENIZERS if name in names][:1]
    if "config.json" not in names or not weights or (source.needs_tokenizer and not tokenizer):
        return []
    if not source.needs_tokenizer:
        return ["config.json", *weights]
    # The last two are for whoever loads the tokenizer through transformers, as ACE-Step does.
    settings = [name for name in ("tokenizer_config.json", "special_tokens_map.json") if name in names]
    return ["config.json", *weights, *tokenizer, *settings]


def _target(root: Path, file: RemoteFile) -> Path:
    return root / ("models--" + file.repo.replace("/", "--")) / "snapshots" / file.commit / file.name


def _partial(root: Path, file: RemoteFile) -> Path:
    return root / ("models--" + file.repo.replace("/", "--")) / "blobs" / f"{file.key}.part"


def _bytes_there(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _is_whole(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and not faults_of_file(path)


def _fetch(root: Path, file: RemoteFile) -> None:
    """Bring one file to its place, going on where an earlier attempt stopped."""
    from filelock import FileLock, Timeout

    partial, target = _partial(root, file), _target(root, file)
    partial.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(partial.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Another program is downloading '{file.name}'; waiting for it.")
        lock.acquire()
    try:
        if _is_whole(target, file):
            return
        _fetch_rest(file, partial)
        found = file.digest_of(partial)
        if found != file.key:
            partial.unlink()
            raise StepFailed(
                f"'{file.name}' of {file.repo} arrived with the wrong content: checksum {found}, expected {file.key}. "
                "The damaged download was removed. Run the same command again; if it happens again, the server or a "
                "proxy between is at fault: set HF_ENDPOINT to another one."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, target)
    finally:
        lock.release()


def _fetch_rest(file: RemoteFile, partial: Path) -> None:
    """Download until `partial` has all bytes; StepFailed when several attempts in a row bring none."""
    import httpx
    from huggingface_hub import hf_hub_url
    from tqdm import tqdm

    url = hf_hub_url(file.repo, file.name, revision=file.commit)
    if _bytes_there(partial) > file.size:
        partial.unlink()
    there = _bytes_there(partial)
    if there:
        print(f"going on after {format_bytes(there)} of {format_bytes(file.size)}")
    with tqdm(total=file.size, initial=there, unit="B", unit_scale=True, desc=file.name.rsplit("/", 1)[-1]) as bar:
        attempts = 0
        while there < file.size:
            try:
                _append(url, partial, bar)
                reason = "the server closed the connection"
            except httpx.HTTPError as error:
                reason = _reason(error)
                response = getattr(error, "response", None)
                if response is not None and response.status_code < 500 and response.status_code not in (408, 429):
                    attempts = len(RETRY_WAITS_SECONDS)  # asking again would bring the same answer
            attempts = 0 if _bytes_there(partial) > there else attempts
            there = _bytes_there(partial)
            if there >= file.size:
                break
            if attempts == len(RETRY_WAITS_SECONDS):
                raise StepFailed(
                    f"The download of '{file.name}' of {file.repo} broke off after {format_bytes(there)} of "
                    f"{format_bytes(file.size)}: {reason}. Run the same command again to go on from there, "
                    "or set HF_ENDPOINT to a mirror."
                )
            time.sleep(RETRY_WAITS_SECONDS[attempts])
            attempts += 1


def _append(url: str, partial: Path, bar) -> None:
    """One request for what `partial` lacks. Raises httpx.HTTPError; keeps what arrived."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    there = _bytes_there(partial)
    # Compressed in transit, byte ranges would count compressed bytes.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
    request = get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=True)
    with request as response:
        hf_raise_for_status(response)
        # A server that knows no ranges answers 200 and starts from the beginning.
        goes_on = response.status_code == 206
        if not goes_on:
            bar.update(-there)
        with partial.open("ab" if goes_on else "wb") as out:
            # Blocks as they come: gathered into larger ones, the last would be lost when the connection breaks.
            for block in response.iter_bytes():
                out.write(block)
                bar.update(len(block))


def fetch_lyric_vocabulary() -> bytes:
    """Content of ACE-Step's `vocab.json`, downloaded and checked.

    Raises WrongInput where no server answers, StepFailed where one has something else; both say where else to get it.
    ACE_LYRIC_VOCAB_URL replaces the addresses.
    """
    import httpx
    from huggingface_hub import get_session

    own = os.environ.get(LYRIC_VOCABULARY_URL_VARIABLE)
    failures, answered = [], False
    for url in [own] if own else LYRIC_VOCABULARY_URLS:
        try:
            response = get_session().get(url, timeout=TIMEOUT_SECONDS, follow_redirects=True)
            response.raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            failures.append(f"{url}: {_reason(error)}")
            answered = answered or getattr(error, "response", None) is not None
            continue
        answered = True
        found = hashlib.sha256(response.content).hexdigest()
        if found != LYRIC_VOCABULARY_SHA256:
            failures.append(f"{url}: sha256 is {found}, expected {LYRIC_VOCABULARY_SHA256}")
            continue
        return response.content
    problem = (
        f"The lyric vocabulary could not be downloaded. {'; '.join(failures)}. "
        "Save acestep/models/lyrics_utils/vocab.json of the ACE-Step repository as "
        f"'{DEFAULT_CHECKPOINT_DIR / LYRIC_VOCABULARY}', "
        f"or set {LYRIC_VOCABULARY_URL_VARIABLE} to an address that works where you are."
    )
    raise StepFailed(problem) if answered else WrongInput(problem)


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answered {response.status_code}"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
