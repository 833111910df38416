"""Base weights that are missing are fetched from the hub, or from a mirror of it.

HF_HUB_OFFLINE=1 keeps everything off the network. An interrupted download goes on where it stopped, also days later.

The files are fetched here and not by `huggingface_hub.snapshot_download`, because since its version 1.1x that deletes
the unfinished file when it is interrupted: a slow connection would never finish 6.6 GB. What is left on the disk is
the cache layout of huggingface_hub without links, as huggingface_hub makes it on a Windows that allows none, so that
ACE-Step's own scripts find the weights too.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ace_lora.base_weights.find import (
    DEFAULT_CHECKPOINT_DIR,
    BaseWeights,
    faults_of_file,
    find_base_weights,
    holds_any_part,
    missing,
    missing_sentences,
)
from ace_lora.base_weights.hub import (
    FAILURES,
    OFFICIAL_HUB,
    Listing,
    Refused,
    RemoteFile,
    described,
    endpoint,
    file_address,
    is_offline,
    list_repository,
    open_reply,
    withheld_token,
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
from ace_lora.files import free_bytes, rename, replace_atomically, write_text
from ace_lora.replies import Deadline, pieces

# A reply that brings less than this in this time counts as broken off, and so does an attempt that brings less.
STEADY_BYTES, STEADY_SECONDS = 600_000, 60
# A part that is said to be larger than this many times what is known of it is not what was published.
LARGEST_SHARE = 2
# Waits between attempts that brought next to nothing; an attempt that brought more starts the count again.
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
class DownloadPlan:
    """What the servers say: all files of the parts, and those of them that are to be fetched."""

    files: list[RemoteFile]
    to_fetch: list[RemoteFile]
    lyric_vocabulary: bytes | None  # 0.4 MB, so fetched to see whether it can be; None where it is not wanted
    notes: list[str]  # what the user should know before


def _plan_download(root: Path, parts: list[str]) -> DownloadPlan:
    """Ask the servers; WrongInput when they cannot be asked or the disk is too small. Writes nothing."""
    if is_offline():
        raise WrongInput(f"Cannot download {', '.join(parts)}: HF_HUB_OFFLINE is set. Unset it, and try again.")
    sources = [PARTS[part] for part in parts if part in PARTS]
    withheld = withheld_token() if sources else None
    notes = [withheld] if withheld else []
    unreachable: list[str] = []
    listings: dict[str, Listing] = {}
    vocabulary = None
    try:
        for repo in dict.fromkeys(source.repo for source in sources):
            listings[repo], unvouched = list_repository(repo)
            if unvouched:
                notes.append(
                    f"Only {endpoint()} vouches for {repo}: {OFFICIAL_HUB} could not be asked ({unvouched}). Its "
                    "checksums show that a download is whole, not that it is what was published."
                )
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
    return DownloadPlan(files, to_fetch, vocabulary, notes)


def _carry_out(root: Path, plan: DownloadPlan) -> None:
    for note in plan.notes:
        print(note)
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


def _needed_files(source: PartSource, listing: Listing) -> list[RemoteFile]:
    """The files of one part that are needed, as its repository lists them."""
    prefix = f"{source.folder}/" if source.folder else ""
    in_folder = [name[len(prefix) :] for name in listing.files if name.startswith(prefix)]
    names = _needed_names([name for name in in_folder if "/" not in name], source)
    if not names:
        raise StepFailed(
            f"The server has no whole '{source.plain_folder}' of {source.repo}: expected config.json and "
            f"{' or '.join(source.weights)}. Check HF_ENDPOINT, or get the folder elsewhere."
        )
    files = []
    for name in names:
        file = listing.files[prefix + name]
        if file is None:
            raise StepFailed(
                f"The server does not say size and checksum of '{prefix + name}' of {source.repo}. "
                "Expected a mirror that serves file metadata. Set HF_ENDPOINT to another one."
            )
        files.append(file)
    stated = sum(file.size for file in files)
    if stated > LARGEST_SHARE * source.approximate_bytes:
        raise StepFailed(
            f"The server states {format_bytes(stated)} for '{source.plain_folder}' of {source.repo}; expected about "
            f"{format_bytes(source.approximate_bytes)}. Nothing was downloaded. Set HF_ENDPOINT to another server."
        )
    return files


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


def _digest(file: RemoteFile, path: Path) -> str:
    """What the key of `file` should be, computed from the bytes of `path`."""
    digest = hashlib.sha256() if len(file.key) == 64 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as content:
        while block := content.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


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
        found = _digest(file, partial)
        if found != file.key:
            partial.unlink()
            raise StepFailed(
                f"'{file.name}' of {file.repo} arrived with the wrong content: checksum {found}, expected {file.key}. "
                "The damaged download was removed. Run the same command again; if it happens again, the server or a "
                "proxy between is at fault: set HF_ENDPOINT to another one."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        rename(partial, target)
    finally:
        lock.release()


def _fetch_rest(file: RemoteFile, partial: Path) -> None:
    """Download until `partial` has all bytes; StepFailed when several attempts in a row bring next to nothing."""
    from tqdm import tqdm

    if _bytes_there(partial) > file.size:
        partial.unlink()
    there = _bytes_there(partial)
    if there:
        print(f"going on after {format_bytes(there)} of {format_bytes(file.size)}")
    with tqdm(total=file.size, initial=there, unit="B", unit_scale=True, desc=file.name.rsplit("/", 1)[-1]) as bar:
        attempts = 0
        while there < file.size:
            try:
                _append(file, partial, bar)
                reason = "the server closed the connection"
            except FAILURES as error:
                reason = described(error)
                if isinstance(error, Refused) and error.status < 500 and error.status not in (408, 429):
                    attempts = len(RETRY_WAITS_SECONDS)  # asking again would bring the same answer
            attempts = 0 if _bytes_there(partial) >= there + STEADY_BYTES else attempts
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


def _append(file: RemoteFile, partial: Path, bar) -> None:
    """One request for what `partial` lacks. Raises one of FAILURES; keeps what arrived, never more than is stated."""
    there = _bytes_there(partial)
    deadline = Deadline(STEADY_SECONDS)
    with open_reply(file_address(file), deadline, {"Range": f"bytes={there}-"} if there else None) as reply:
        # A server that knows no ranges answers 200 and starts from the beginning.
        goes_on = reply.status == 206
        if goes_on and not (reply.headers["Content-Range"] or "").startswith(f"bytes {there}-"):
            raise http.client.HTTPException("the server sends another part than was asked for")
        if not goes_on:
            bar.update(-there)
            there = 0
        arrived = 0
        with partial.open("ab" if goes_on else "wb") as out:
            # Pieces as they come: gathered into larger ones, the last would be lost when the connection breaks.
            for piece in pieces(reply, file.size - there):
                out.write(piece)
                bar.update(len(piece))
                arrived += len(piece)
                if arrived >= STEADY_BYTES:
                    deadline.put_off(STEADY_SECONDS)
                    arrived = 0


def fetch_lyric_vocabulary() -> bytes:
    """Content of ACE-Step's `vocab.json`, downloaded and checked.

    Raises WrongInput where no server answers, StepFailed where one has something else; both say where else to get it.
    ACE_LYRIC_VOCAB_URL replaces the addresses.
    """
    own = os.environ.get(LYRIC_VOCABULARY_URL_VARIABLE)
    failures, answered = [], False
    for url in [own] if own else LYRIC_VOCABULARY_URLS:
        try:
            with open_reply(url, Deadline(STEADY_SECONDS)) as reply:
                answered = True
                content = b"".join(pieces(reply, LYRIC_VOCABULARY_BYTES))
        except FAILURES as error:
            failures.append(f"{url}: {described(error)}")
            answered = answered or isinstance(error, Refused)
            continue
        found = hashlib.sha256(content).hexdigest()
        if found != LYRIC_VOCABULARY_SHA256:
            failures.append(f"{url}: sha256 is {found}, expected {LYRIC_VOCABULARY_SHA256}")
            continue
        return content
    problem = (
        f"The lyric vocabulary could not be downloaded. {'; '.join(failures)}. "
        "Save acestep/models/lyrics_utils/vocab.json of the ACE-Step repository as "
        f"'{DEFAULT_CHECKPOINT_DIR / LYRIC_VOCABULARY}', "
        f"or set {LYRIC_VOCABULARY_URL_VARIABLE} to an address that works where you are."
    )
    raise StepFailed(problem) if answered else WrongInput(problem)
