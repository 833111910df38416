"""Files and folders written whole or not at all, what is set aside, and text as people's editors leave it.

Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import itertools
import json
import math
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"  # begins the name of everything that is not whole yet
BIN_FOLDER = ".removed"  # the window restores from folders of this name, so both names are part of the format
BIN_MANIFEST = "removed.json"
PATIENCE_S = 2.0  # a virus scanner or a sync program holds a new file about so long
# Windows' ERROR_ACCESS_DENIED and ERROR_SHARING_VIOLATION: another program has the file open.
HELD_BY_ANOTHER_PROGRAM = (5, 32)
MAX_TEXT_BYTES = 1_000_000  # prompts and lyrics: the longest songs have some 10,000
MAX_JSON_BYTES = 20_000_000  # configurations, states, vocabularies, tables of some thousand songs
MAX_JSON_DEPTH = 60


@contextlib.contextmanager
def replace_atomically(path: Path, own: Sequence[str] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    Without `own` it is a file. With `own`, name patterns of what the caller writes, it is a folder: one that stands at
    `path` gives way as a whole, and is removed when it holds nothing else, else set aside (`remove_own`).
    When the body raises, what was written is removed, `path` stays as it was, and the body's exception goes on.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _new_temporary(path, folder=own is not None)
    try:
        yield temporary
        if own is None:
            _finish_file(temporary)
            rename(temporary, path)
        else:
            flush_folder(temporary)
            _replace_folder(temporary, path, own)
        flush_folder(path.parent)
    except BaseException:
        # The reason of the failure must not be hidden by one of the clean-up.
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        raise


def _new_temporary(path: Path, *, folder: bool) -> Path:
    if folder:
        return Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{path.name}-", dir=path.parent))
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    return Path(name)


def _finish_file(temporary: Path) -> None:
    _share(temporary, 0o666)
    with temporary.open("rb+") as written:
        os.fsync(written.fileno())


def _share(path: Path, mode: int) -> None:
    """Give a new file or folder the permissions of any other: tempfile, and safetensors, make theirs private."""
    if os.name == "posix":
        umask = os.umask(0)
        os.umask(umask)
        path.chmod(mode & ~umask)


def _replace_folder(new: Path, path: Path, own: Sequence[str]) -> None:
    """Rename the folder `new` to `path`. A folder cannot be renamed over another: the old one steps aside first."""
    _share(new, 0o777)
    if not path.exists():
        rename(new, path)
        return
    stepped_aside = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{path.name}-", dir=path.parent)) / path.name
    rename(path, stepped_aside)
    try:
        rename(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            rename(stepped_aside, path)
            stepped_aside.parent.rmdir()
        raise
    if _holds_only(stepped_aside, own):
        shutil.rmtree(stepped_aside.parent, ignore_errors=True)
    else:
        _move_to_bin(path.parent, {path: stepped_aside}, f"replaced, and holds files that are not ours: {path.name}")
        stepped_aside.parent.rmdir()


def rename(path: Path, target: Path) -> None:
    """Rename, over a file that stands at `target`; on Windows again for two seconds while a program holds it open."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            os.replace(path, target)
            return
        except OSError as error:
            if getattr(error, "winerror", None) not in HELD_BY_ANOTHER_PROGRAM or time.monotonic() > give_up:
                raise
        time.sleep(0.05)


def flush_folder(folder: Path) -> None:
    """Make renames in `folder` last through a power cut, where the system can (Windows does so itself)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such call
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with `\\n` line ends, atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write `value` as readable JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


# --- What comes from outside ---


class UnusableFile(ValueError):
    """A file that cannot be taken as it is; the message quotes it, says what is wrong and what was expected."""


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises UnusableFile for anything else (a folder, a pipe, a device, a larger file) without reading it, and OSError.
    """
    path = Path(path)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise UnusableFile(f"'{path}' is {kind}. Expected a file.")
    too_large = f"'{path}' is too large for what it should be. Expected at most {limit:,} bytes"
    if status.st_size > limit:
        raise UnusableFile(f"{too_large}, found {status.st_size:,}.")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:  # it grew, or its size was not told (files of /proc)
        raise UnusableFile(f"{too_large}.")
    return content


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits. Raises OSError."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """The whole text of a UTF-8 file (a byte-order mark is dropped), line ends as `\\n`, stripped at both ends.

    Raises UnicodeDecodeError when the file is not UTF-8, UnusableFile as `read_bytes`, and OSError.
    """
    text = read_bytes(path, limit).decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """The value of a JSON file. Raises UnusableFile as `read_bytes` and `parse_json`, and OSError."""
    return parse_json(read_bytes(path, limit), f"'{path}'")


def parse_json(text: bytes | str, name: str) -> Any:
    """The value of JSON from outside; `name` begins the messages (a quoted path, "the header of '…'").

    Raises UnusableFile when it is no JSON in UTF-8, is nested deeper than MAX_JSON_DEPTH, or holds what no later step
    could write or count: NaN, infinite numbers, halves of UTF-16 pairs.
    """
    try:
        value = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UnusableFile(f"{name} cannot be read: {reason}. Expected JSON.") from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        if not level:
            return value
        for item in level:
            problem = _problem_of(item)
            if problem:
                raise UnusableFile(f"{name} holds {problem}. Expected JSON with plain texts and finite numbers.")
        level = [child for item in level for child in _children(item)]
    raise UnusableFile(f"{name} cannot be read: nested too deeply. Expected JSON of at most {MAX_JSON_DEPTH} levels.")


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _problem_of(item: Any) -> str | None:
    if isinstance(item, float) and not math.isfinite(item):  # 1e999
        return "a number that is too large"
    if isinstance(item, str) and not item.isascii() and any("\ud800" <= letter <= "\udfff" for letter in item):
        return f"a text that cannot be written, {item[:50]!r}"
    return None


def _children(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return itertools.chain(item.keys(), item.values())
    return item if isinstance(item, list) else ()


# --- Nothing is deleted ---


def stamp() -> str:
    """Now, as names of folders and backups have it: `2026-01-31_12-00-00`, local time."""
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def set_aside(paths: Iterable[Path], reason: str) -> Path | None:
    """Move files and folders, all of one parent folder, to `<where they lay>/.removed/<date>/`; return that folder.

    None when none of them exists. The window shows the folder by its manifest and restores from it.
    """
    existing = [path for path in map(Path, paths) if os.path.lexists(path)]
    if not existing:
        return None
    return _move_to_bin(existing[0].parent, {path: path for path in existing}, reason)


def _move_to_bin(home: Path, places: dict[Path, Path], reason: str) -> Path:
    """Move what lies at the values of `places`, and belongs at the keys, to a new folder of `home`'s bin."""
    folder = _new_bin_folder(home / BIN_FOLDER / stamp())
    names: dict[str, Path] = {}
    for original in places:
        name, number = original.name, 2
        while name in names:
            name, number = f"{original.stem}_{number}{original.suffix}", number + 1
        names[name] = original
    # The manifest first: a kill meanwhile leaves a name too many, not a file without a name.
    files = {name: Path(os.path.relpath(original, home)).as_posix() for name, original in names.items()}
    write_json(folder / BIN_MANIFEST, {"reason": reason, "files": files})
    for name, original in names.items():
        rename(places[original], folder / name)
    return folder


def _new_bin_folder(wanted: Path) -> Path:
    wanted.parent.mkdir(parents=True, exist_ok=True)
    folder, number = wanted, 2
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            folder, number = wanted.with_name(f"{wanted.name}_{number}"), number + 1


def remove_own(folder: Path, own: Sequence[str], reason: str) -> Path | None:
    """Remove a folder that holds only what this program writes (name patterns `own`); set another one aside.

    Returns where it was set aside, None when it was removed. The folder vanishes at once: it is renamed first, so that
    one whose removal is interrupted does not pass for whole.
    """
    if not _holds_only(folder, own):
        return set_aside([folder], reason)
    doomed = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{folder.name}-", dir=folder.parent))
    rename(folder, doomed / folder.name)
    shutil.rmtree(doomed, ignore_errors=True)
    return None


def _holds_only(folder: Path, own: Sequence[str]) -> bool:
    """Whether everything in `folder`, at any depth, has a name that this program gives (or is its temporary)."""
    patterns = (*own, f"{TEMPORARY}*")
    return not folder.is_symlink() and all(
        any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        for _, folders, files in os.walk(folder)
        for name in (*folders, *files)
    )


def free_bytes(path: Path) -> int:
    """Free disk space where `path` is or will be."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
