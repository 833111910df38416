"""ACE-Step LoRA: one window that leads from a folder of songs to a LoRA of ACE-Step v1 (3.5B) for ComfyUI.

    python ace_gui.py                      open the window
    python ace_gui.py --project DIR        open it on the song folder DIR
    python ace_gui.py SONG.mp3 SONG.wav    open it and add these songs (also: drop them on the program's icon)
    python ace_gui.py --check              print the environment report; needs no display

The window runs the step scripts that stand beside this file, each in a process of its own, and shows their output.
It works with this repository's scripts and with those of an ACE-Step training fork (same names, same flags).
Standard library only; `pypinyin` is used for readable file names when it is installed. PyTorch is never imported here.

What is true stands on disk: the songs and their texts in the project's folder (`Taudio/<name>`), `<name>_filenames`,
`<name>_prep`, `checkpoints`, and the settings in `<folder>/.ace_gui.json`. Widgets only show it.

Sections (each uses only those above it, and the texts at the end; 1 to 12 need no display)
    1  Constants               timings, limits and names, with their reasons
    2  Files and names         atomic writing, reading people's text files, readable ASCII names, sentences
    3  Settings and project    what is remembered, and where
    4  Songs                   the library on disk: scanning, importing, the bin for removed things
    5  Steps                   the tables of the seven steps and their settings, flags, command lines, what is done
    6  Environment             which Python runs the scripts, what it can do, disk and base weights
    7  Log text                bytes to lines, progress, known errors, the trainer's figures
    8  Running                 one child process at a time, TensorBoard
    9  Session                 the open project, its settings and songs, what goes on; what is said and what is asked
    10 Importing               copying songs into the project, and looking into them
    11 Step runs               starting the steps' scripts, one after the other, and following them to their end
    12 Other programs          what the scripts' Python has, installations, TensorBoard, ComfyUI
    13 Look                    colours, fonts, icons
    14 Widgets                 log pane, forms, chart, tables, text editors, dialogs
    15 Pages                   one per step, and the environment page
    16 Questions               every dialog, choosers of files and folders
    17 Window                  menus, header, pages, painting
    18 Start                   wiring, heartbeat, closing; command line
    19 Texts                   every other sentence that a user sees, in Chinese and English
"""

# The texts stand one to a line, so that both languages can be compared; some are long.
# ruff: noqa: E501

from __future__ import annotations

import argparse
import ast
import base64
import codecs
import contextlib
import ctypes
import errno
import filecmp
import hashlib
import io
import itertools
import json
import math
import os
import queue
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import traceback
import unicodedata
import webbrowser
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

if os.name == "nt":
    import msvcrt
else:
    import fcntl

# A system Python without Tk can still import this module, run `--check` and the headless tests.
try:
    import tkinter as tk
    from tkinter import filedialog, ttk
    from tkinter import font as tkfont
    from tkinter.scrolledtext import ScrolledText
except ImportError:
    tk = None

# --- 1. Constants -----------------------------------------------------------------------------------------------------

VERSION = "1.0"
PROGRAM_NAME = "ACE-Step LoRA"

AUDIO_EXTENSIONS = (
    ".aac", ".aif", ".aiff", ".ape", ".flac", ".m4a", ".m4b", ".mka", ".mp3", ".oga", ".ogg", ".opus", ".tta",
    ".wav", ".wma", ".wv",
)  # fmt: skip
INSTRUMENTAL = "[instrumental]"
MAX_NAME = 40  # a project's name comes up twice in paths such as Taudio/<name>_prep/<song>; Windows allows 260 in all
MAX_SONG_SECONDS = 360  # the scripts crop what is longer
PREP_BYTES_PER_SECOND = 0.2e6  # of audio, upper bound of a preprocessed record
CHECKPOINT_BYTES = 126e6 + 760e6  # rank 64: the LoRA file in bf16, and the state for resuming in float32

SONGS_ROOT = "Taudio"
PROJECT_FILE = ".ace_gui.json"
PROJECT_VERSION = 1
SETTINGS_FILE = "ace_gui_settings.json"
BIN_FOLDER = ".removed"
BIN_MANIFEST = "removed.json"
STAGING_FOLDER = ".tmp-import"  # where a song is copied to before it gets its real name
LOGS_FOLDER = "logs"
OWNER_FILE = ".ace_gui_owner.json"  # in `checkpoints`: which project's training it holds

TICK_MS = 50  # log and progress
DISK_MS = 1500  # how often the folders are looked at for changes made outside the window
DRAIN_BUDGET_S = 0.012  # work per tick
INSERT_LINES = 250  # at once: what Tk then has to lay out and draw comes on top of the budget
SWITCH_S = 0.001  # Python gives the reading thread 5 ms for every call of Tk; ten such calls in a tick would be felt
MAX_LOG_LINES = 5000  # in the pane; the file has all of them. Without a cap Tk took 404 MB for a million lines
TRIM_SLACK = 1000  # trimming 1,000 lines at once is cheaper than a few at every tick
READ_BYTES = 65536
SETTLE_S = 1.5  # after the child's end: how long output may still come through its pipe
STOP_SECONDS = {"train": 180.0}  # a training step and saving may take long on a small card
DEFAULT_STOP_SECONDS = 20.0
AUTOSAVE_MS = 1500
MAX_BANNER_LINES = 3  # of a list above the log, which must not hide it
MAX_CURVE_POINTS = 200_000
MAX_TEXT_BYTES = 1_000_000  # a prompt or lyrics file; the scripts take no more either
MAX_SHOWN_LINE = 20_000  # letters of one line: Tk lays out longer ones for seconds
MAX_JSON_BYTES = 20_000_000  # settings and projects: some thousand songs take 2 MB
MAX_JSON_DEPTH = 60
MAX_TITLE = 200

MIRRORS = ("https://huggingface.co", "https://hf-mirror.com")
FROZEN = bool(getattr(sys, "frozen", False))
WINDOWS = os.name == "nt"
LANGUAGES = {"zh": "中文", "en": "English"}

# --- 2. Files and names -----------------------------------------------------------------------------------------------


def in_language(language: str, texts: tuple[str, str]) -> str:
    return texts[0 if language == "zh" else 1]


def say(language: str, key: str, fields: dict[str, Any] | None = None) -> str:
    """The sentence `key` of `TEXTS` in `language`, with its `{fields}` filled in so that they can be shown."""
    text = in_language(language, TEXTS[key])
    return (
        text.format(**{name: _UNSEEN.sub("\ufffd", str(value)) for name, value in fields.items()}) if fields else text
    )


# Control characters but for the line breaks of a list, marks that turn the writing round, halves of UTF-16 pairs (which
# stand for the bytes of a file name that is no UTF-8).
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(title: str, longest: int = MAX_TITLE) -> str:
    """A title or file name as one line that can be shown, however strange it is; never empty."""
    shown = " ".join(_UNSEEN.sub("\ufffd", re.sub(r"\s+", " ", title[: 4 * longest])).split())
    return (shown if len(shown) <= longest else shown[: longest - 1] + "…") or "?"


def text_or(language: str, key: str, fallback: str) -> str:
    return say(language, key) if key in TEXTS else fallback


def program_folder() -> Path:
    """The folder that holds the scripts: that of this file, or of the exe (its bundle is unpacked elsewhere)."""
    return Path(sys.executable if FROZEN else __file__).resolve().parent


def user_config_folder() -> Path:
    if WINDOWS:
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "ACE-Step LoRA"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "ACE-Step LoRA"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "ace-step-lora"


def absolute(path: Path) -> Path:
    """Without `..` and the current folder, but with symbolic links as the user wrote them."""
    return Path(os.path.normpath(path.absolute()))


def is_file(path: Path) -> bool:
    """Like Path.is_file, which raises (before Python 3.14) where a folder on the way may not be entered."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def write_atomically(path: Path, text: str) -> None:
    """Write UTF-8 with `\\n` line ends to a temporary name beside `path`, then rename: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{threading.get_ident()}-{path.name}"[:200])
    try:
        with temporary.open("wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    # File names that are no UTF-8 hold halves of UTF-16 pairs, for which JSON has these escapes.
    write_atomically(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


class Unusable(OSError):
    """A file that cannot be taken for what it should be; the message says why."""


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file. Raises Unusable for a pipe, a device, a folder, or more than `limit` bytes."""
    status = path.stat()
    data = b""
    if stat.S_ISREG(status.st_mode) and status.st_size <= limit:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) <= limit:  # files of /proc do not tell their size
            return data
    raise Unusable(f"{path.name}: 不是普通文件，或大于 / no plain file, or above {human_bytes(limit)}")


def read_text(path: Path) -> str:
    """Text of UTF-8 (with or without BOM), else UTF-16 with BOM, else GB18030, which Chinese Windows editors write."""
    data = read_bytes(path, MAX_TEXT_BYTES)
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("gb18030", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError or Unusable when it holds none, OSError when it cannot be read now."""
    try:
        value = json.loads(read_bytes(path, MAX_JSON_BYTES).decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [inner for outer in level for inner in _values(outer)]
    if level or not isinstance(value, dict):
        raise ValueError("no JSON object, or nested too deeply")
    return value


def _values(outer: Any) -> Iterable[Any]:
    return outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ()


def read_or_set_aside(path: Path) -> tuple[dict[str, Any], Path | None, str]:
    """The object in `path` ({} without one), where a damaged file was put, why one that stands there is not used.

    Only what will never be readable is put aside; a file that another program holds, say, must stay, unwritten.
    """
    try:
        return read_json(path), None, ""
    except FileNotFoundError:
        return {}, None, ""
    except (ValueError, Unusable):
        aside = unique_path(path.with_name(f"{path.name}.damaged-{stamp()}"))
    except OSError as error:
        return {}, None, str(error)
    try:
        os.replace(path, aside)
    except OSError as error:  # a read-only place
        return {}, None, str(error)
    return {}, aside, ""


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e19


def usable(text: str) -> str:
    """`text`, or '' when no system takes it as a path or an argument."""
    try:
        return "" if b"\0" in os.fsencode(text) else text
    except UnicodeError:
        return ""


def stamp(moment: float | None = None) -> str:
    """A time (now, else Unix time) as names have it: `2026-01-31_12-00-00`."""
    return datetime.fromtimestamp(time.time() if moment is None else moment).strftime("%Y-%m-%d_%H-%M-%S")


def unique_path(path: Path, taken: Callable[[Path], bool] = os.path.lexists) -> Path:
    """`path`, or `path_2`, `path_3`, … (before the extension) when that exists."""
    candidate, number = path, 2
    while taken(candidate):
        candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")
        number += 1
    return candidate


def try_writable(folder: Path) -> bool:
    """Whether a file can be made in `folder`; os.access is not to be trusted on Windows."""
    probe = folder / f".tmp-{os.getpid()}-writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError:
        return False
    return True


class FolderLock:
    """Keeps a second window out of a folder. The system frees it when the process ends, however that happens.

    Its file stands in the user's configuration folder: an open file inside the folder would keep Windows from moving it.
    """

    def __init__(self, folder: Path, file: io.BufferedIOBase | None):
        self.folder = folder
        self._file = file

    @classmethod
    def take(cls, folder: Path) -> FolderLock | None:
        """The lock on `folder`; None when somebody else has it. Where no lock can be made, everybody gets one."""
        code = hashlib.sha1(os.path.normcase(folder.resolve()).encode("utf-8", "surrogatepass"), usedforsecurity=False)
        path = user_config_folder() / "locks" / f"{code.hexdigest()[:16]}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except OSError:
            return cls(folder, None)
        try:
            if WINDOWS:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # what flock and Windows say of a lock that is held
            file.close()
            return None
        except OSError:  # a file system without locks
            file.close()
            return cls(folder, None)
        return cls(folder, file)

    def heirs(self) -> tuple[int, ...]:
        """What a child is given so that the lock lasts as long as it runs. On Windows no child outlives the window."""
        return () if WINDOWS or self._file is None else (self._file.fileno(),)

    def release(self) -> None:
        if self._file is not None:
            if WINDOWS:
                with contextlib.suppress(OSError):
                    self._file.seek(0)
                    msvcrt.locking(self._file.fileno(), msvcrt.LK_UNLCK, 1)
            self._file.close()
            self._file = None


_RESERVED = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(1, 10)), *(f"lpt{n}" for n in range(1, 10))}
# Runs of Chinese, and of other letters and digits.
_RUNS = re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff]+|[^\W_\u3400-\u9fff\U00020000-\U0003ffff]+")
_NAME_WORDS = re.compile(r"^(CYRILLIC|GREEK|HANGUL|HIRAGANA|KATAKANA)\b.* ([A-Z]+)$")


def readable_name(title: str, longest: int = MAX_NAME) -> str:
    """An ASCII name for files and folders: `我的歌 (Live)` gives `wo_de_ge_Live`; never empty, at most `longest`.

    Chinese becomes pinyin when pypinyin is there. What has no reading becomes a short code of the title, so that
    two such titles do not get the same name.
    """
    words: list[str] = []
    unreadable = False
    for run in _RUNS.findall(unicodedata.normalize("NFKC", title)):
        if "\u3400" <= run[0] <= "\u9fff" or run[0] >= "\U00020000":
            syllables = _pinyin(run)
            unreadable |= not syllables
            words += syllables
        else:
            words.append("".join(_latin(character) for character in run))
            unreadable |= not words[-1] and any(character.isalpha() for character in run)
    name = re.sub(r"[^A-Za-z0-9-]+", "_", "_".join(words)).strip("_-")
    if unreadable:
        name = f"{name or 'song'}_{zlib.crc32(title.encode('utf-8', 'surrogatepass')):08x}"
    if len(name) > longest:
        cut = name[:longest]
        # Rather at a word's end, when that does not lose much.
        name = cut[: cut.rfind("_")] if cut.rfind("_") > longest * 0.6 and name[longest] != "_" else cut
    name = name.strip("_-") or "song"
    return f"{name}_song"[:longest] if name.lower() in _RESERVED else name


def _pinyin(run: str) -> list[str]:
    try:
        from pypinyin import lazy_pinyin
    except ImportError:
        return []
    return [syllable for syllable in lazy_pinyin(run, errors="ignore") if syllable.isascii()]


def _latin(character: str) -> str:
    """One letter in ASCII: é -> e, か -> ka, Ж -> zhe (by its Unicode name); '' when there is no reading."""
    if character.isascii():
        return character
    plain = "".join(c for c in unicodedata.normalize("NFKD", character) if c.isascii() and c.isalnum())
    if plain:
        return plain
    match = _NAME_WORDS.match(unicodedata.name(character, ""))
    if not match or match.group(2) == "SIGN":
        return ""
    script, sound = match.group(1), match.group(2).lower()
    if script in ("CYRILLIC", "GREEK"):
        # Letters are called be, em, zhe, theta: the consonants are the sound.
        vowels = {"ie": "e", "io": "yo", "yeru": "y", "yu": "yu", "ya": "ya"}
        return vowels.get(sound) or re.sub(r"^e?([bcdfghjklmnpqrstvwxz]+).*|^(.).*", r"\1\2", sound)
    return sound


def unique_name(name: str, taken: Iterable[str], longest: int = MAX_NAME) -> str:
    """`name`, or `name_2`, `name_3`, … not in `taken` (case ignored, as Windows does), at most `longest` long."""
    used = {other.casefold() for other in taken}
    candidate, number = name, 2
    while candidate.casefold() in used:
        suffix = f"_{number}"
        candidate = name[: longest - len(suffix)].rstrip("_-") + suffix
        number += 1
    return candidate


def human_bytes(number: float) -> str:
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB" if number < 1000 else f"{number / 1000:.1f} TB"


def human_seconds(seconds: float | None) -> str:
    """`3:05`, `1:02:03`; `--:--` when unknown."""
    if seconds is None or seconds < 0 or seconds > 1e7:
        return "--:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- 3. Settings and project ------------------------------------------------------------------------------------------


def settings_path(program: Path) -> Path:
    """Beside the program, so that the folder can be carried elsewhere; else in the user's configuration folder."""
    return (program if try_writable(program) else user_config_folder()) / SETTINGS_FILE


def take_known(target: Any, stored: dict[str, Any], former: tuple[str, ...] = ()) -> None:
    """Set what a file stored under a key of `target`, in its type; what a newer version wrote goes into `unknown`."""
    for key, value in stored.items():
        if key in target._KEYS and type(value) is type(getattr(target, key)):
            setattr(target, key, usable(value) if isinstance(value, str) else value)
        elif key not in (*target._KEYS, *former):
            target.unknown[key] = value


def text_tables(stored: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Two levels of names and texts, as settings and presets are stored; anything else in there is left out."""
    return {
        str(name): {str(flag): usable(str(text)) for flag, text in values.items()}
        for name, values in stored.items()
        if isinstance(values, dict)
    }


def _is_probe(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4 or not isinstance(value[3], str):
        return False
    kind = value[3].partition("|")[0]
    return all(map(is_number, value[:2])) and (value[2] is None or is_number(value[2])) and (
        not kind or f"problem.{kind}" in TEXTS
    )  # fmt: skip


def _receipts(stored: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of what a project file holds as receipts, what is one."""
    right: dict[str, Callable[[Any], bool]] = {
        "finished": is_number,
        "step": is_number,
        "output": lambda value: isinstance(value, str) and bool(usable(value)),
        "inputs": lambda value: isinstance(value, dict) and all(
            isinstance(parts, list) and all(isinstance(part, str) for part in parts) for parts in value.values()
        ),
    }  # fmt: skip
    return {
        step: {key: value for key, value in receipt.items() if key in right and right[key](value)}
        for step, receipt in stored.items()
        if isinstance(receipt, dict)
    }


@dataclass
class Settings:
    """What holds for all projects. Unknown keys of the file (a newer version's) are kept."""

    path: Path
    language: str = "zh"
    scale: str = "auto"  # or "100", "125", …: per cent
    geometry: str = ""
    last_project: str = ""
    recent: list[str] = field(default_factory=list)
    python: str = ""
    program: str = ""  # another folder with the scripts; for an exe that does not stand beside them
    checkpoint_dir: str = ""
    endpoint: str = ""  # HF_ENDPOINT
    cache: str = ""  # HF_HOME
    offline: bool = False
    comfyui: str = ""  # ComfyUI's models/loras
    presets: dict[str, dict[str, str]] = field(default_factory=dict)
    draft: dict[str, dict[str, str]] = field(default_factory=dict)  # field values while there is no project yet
    log_height: int = 0
    trusted: list[str] = field(default_factory=list)  # places and servers of projects that the user agreed to
    damaged: Path | None = None  # where a damaged file was put
    unread: str = ""  # why the file that is there could not be read: it is not written over
    unknown: dict[str, Any] = field(default_factory=dict)

    _KEYS = (
        "language", "scale", "geometry", "last_project", "recent", "python", "program", "checkpoint_dir", "endpoint",
        "cache", "offline", "comfyui", "presets", "draft", "log_height", "trusted",
    )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Settings:
        stored, damaged, unread = read_or_set_aside(path)
        settings = cls(path, damaged=damaged, unread=unread)
        take_known(settings, stored)
        # A file that was edited by hand may hold anything; what cannot be used gets its default.
        if settings.language not in LANGUAGES:
            settings.language = "zh"
        if settings.scale != "auto" and not re.fullmatch("[1-9][0-9]{1,2}", settings.scale):
            settings.scale = "auto"
        settings.recent = [home for home in settings.recent if isinstance(home, str) and usable(home)][:10]
        settings.trusted = [answer for answer in settings.trusted if isinstance(answer, str)]
        settings.presets, settings.draft = text_tables(settings.presets), text_tables(settings.draft)
        return settings

    def save(self) -> None:
        """Write the file. Raises OSError, also when the one that is there could not be read."""
        if self.unread:
            raise OSError(self.unread)
        defaults = Settings(self.path)
        changed = {key: getattr(self, key) for key in self._KEYS if getattr(self, key) != getattr(defaults, key)}
        write_json(self.path, {**self.unknown, **changed})

    def remember(self, home: Path) -> None:
        self.last_project = str(home)
        self.recent = [str(home), *(other for other in self.recent if other != str(home))][:10]

    def child_environment(self) -> dict[str, str]:
        """The environment of the scripts: unbuffered UTF-8 output, the chosen model source."""
        environment = dict(os.environ)
        # Without PYTHONUNBUFFERED a child's first line came when it ended; UTF-8 because song names are Chinese.
        environment.update(PYTHONUNBUFFERED="1", PYTHONUTF8="1", PYTHONIOENCODING="utf-8:replace")
        if self.endpoint:
            environment["HF_ENDPOINT"] = self.endpoint.rstrip("/")
        if self.cache:
            environment["HF_HOME"] = self.cache
        if self.offline:
            environment.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")
        # The fork logs to Weights & Biases, which asks for a key at a terminal that a window does not have.
        environment.setdefault("WANDB_MODE", "offline")
        # PyInstaller's own library paths must not reach another Python.
        libraries = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
        for name in (
            (*libraries, "PYTHONHOME", "PYTHONPATH", "TCL_LIBRARY", "TK_LIBRARY", "_MEIPASS2") if FROZEN else ()
        ):
            environment.pop(name, None)
            if name in libraries and f"{name}_ORIG" in environment:
                environment[name] = environment[f"{name}_ORIG"]
        return environment


@dataclass
class Project:
    """One song folder and what was set for it. `home` is None until the first songs are chosen."""

    home: Path | None = None
    values: dict[str, dict[str, str]] = field(default_factory=dict)  # step -> flag -> text, only what was changed
    titles: dict[str, str] = field(default_factory=dict)  # audio file name -> the title that the user's file had
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)  # step -> what its last good run read
    probes: dict[str, list[Any]] = field(default_factory=dict)  # audio file name -> [size, mtime_ns, seconds, problem]
    moving: str = ""  # where the project was being moved to, until it is there
    # (step, flag, text) of values that lead out of the project's own places, not used before the user agrees
    doubted: list[tuple[str, str, str]] = field(default_factory=list)
    unknown: dict[str, Any] = field(default_factory=dict)
    damaged: Path | None = None  # as in Settings
    unread: str = ""

    _KEYS = ("values", "titles", "receipts", "probes", "moving")

    @classmethod
    def load(cls, home: Path) -> Project:
        stored, damaged, unread = read_or_set_aside(home / PROJECT_FILE)
        project = cls(home, damaged=damaged, unread=unread)
        take_known(project, stored, ("version", "backend_run"))  # the last one was an earlier version's
        project.moving = "" if project.moving == str(home) else project.moving
        project.values = text_tables(project.values)
        project.titles = {name: str(title) for name, title in project.titles.items()}
        project.receipts = _receipts(project.receipts)
        project.probes = {name: value for name, value in project.probes.items() if _is_probe(value)}
        return project

    def save(self) -> None:
        """Write the project file; nothing is written before the folder exists."""
        if self.home is None or not is_folder(self.home):
            return
        if self.unread:
            raise OSError(self.unread)
        stored = {key: getattr(self, key) for key in self._KEYS if key != "moving" or self.moving}
        stored["values"] = {step: dict(values) for step, values in self.values.items()}
        for step, flag, text in self.doubted:
            stored["values"].setdefault(step, {})[flag] = text
        write_json(self.home / PROJECT_FILE, {**self.unknown, "version": PROJECT_VERSION, **stored})

    @property
    def name(self) -> str:
        return self.home.name if self.home else ""

    def sibling(self, suffix: str) -> Path:
        """`Taudio/<name>` + `_filenames` or `_prep`."""
        assert self.home is not None
        return self.home.with_name(self.home.name + suffix)

    @property
    def dataset(self) -> Path:
        return self.sibling("_filenames")

    @property
    def records(self) -> Path:
        return self.sibling("_prep")

    def value(self, step: str, flag: str, default: str) -> str:
        return self.values.get(step, {}).get(flag, default)

    def doubt(self, trusted: Iterable[str]) -> None:
        """Put by the values that need the user's word, as long as they are not among those `trusted`."""
        for step, values in self.values.items():
            for flag in [flag for flag, text in values.items() if leads_out(flag, text)]:
                if f"{flag}={values[flag]}" not in trusted:
                    self.doubted.append((step, flag, values.pop(flag)))

    def set_value(self, step: str, flag: str, text: str, default: str) -> None:
        values = self.values.setdefault(step, {})
        if text == default:
            values.pop(flag, None)
        else:
            values[flag] = text


def leads_out(flag: str, text: str) -> bool:
    """Whether a value makes a script write outside of the program's folder, or talk to another machine."""
    path = PureWindowsPath(text)
    if path.drive.startswith(("//", "\\\\")):  # of another machine, also for reading
        return True
    if flag == "host":
        return re.fullmatch(r"\s*(localhost|127(\.\d+){3}|\[?::1\]?)?\s*", text) is None
    inner = Path(os.path.normpath(text.replace("\\", "/")))
    outside = bool(path.root or path.drive) or text.startswith("~") or inner.parts[:1] == ("..",)
    return outside and re.search(r"dir$|^output|log", flag) is not None


def name_problem(name: str) -> str | None:
    """The key of the sentence that says why `name` cannot be a folder's name; None when it can."""
    problems = {
        "name.empty": not name.strip(),
        "name.long": len(name) > 80,
        "name.characters": re.search(r'[<>:"/\\|?*\x00-\x1f]|^[.\s]|[.\s]$', name),
        "name.reserved": name.split(".")[0].lower() in _RESERVED,
        "name.suffix": name.endswith(("_filenames", "_prep")),
    }
    return next((key for key, holds in problems.items() if holds), None)


def move_project(project: Project, new_home: Path) -> Project:
    """Move the song folder and the records to another name or place, and return the project there.

    The file-name dataset holds the old paths, so it goes into the bin and is made again in seconds. The song folder
    moves last: until then the project is where it was, and a move that was interrupted can be made again.
    Raises FileExistsError when something stands at the new place, OSError when a move fails.
    """
    assert project.home is not None
    old_records, old_dataset = project.records, project.dataset
    moved = Project(new_home)
    for path in (new_home, moved.records):
        taken = os.path.lexists(path) and (not path.is_dir() or any(path.iterdir()))
        if taken and project.moving != str(new_home):
            raise FileExistsError(str(path))
    project.moving = str(new_home)
    project.save()
    if old_dataset.exists():
        remove_to_bin(project.home, [old_dataset], "move")
    for old, new in ((old_records, moved.records), (project.home, new_home)):
        if old.exists():
            with contextlib.suppress(OSError):
                new.rmdir()  # an empty folder gives way
            move_whole(old, new)
    project.home, project.moving = new_home, ""
    project.receipts.pop("dataset", None)
    project.save()
    return project


# --- 4. Songs ---------------------------------------------------------------------------------------------------------

SIDECARS = ("_prompt.txt", "_lyrics.txt", "_lyrics.lrc", ".lrc", ".txt")


@dataclass
class Song:
    """One audio file of the library and what was found beside it."""

    audio: Path
    title: str
    seconds: float | None = None
    problem: str = ""  # text key: unreadable, silent, too long
    detail: str = ""
    prompt: str = "missing"  # missing, empty, unusable, ok
    lyrics: str = "missing"  # missing, empty, unusable, ok, instrumental
    record: str = "missing"  # missing, ok, old
    probed: bool = False  # whether `seconds` and `problem` are known
    stats: dict[str, tuple[int, int]] = field(default_factory=dict)  # audio, prompt, …: size and time of change in ns
    digests: dict[str, str] = field(default_factory=dict)  # prompt, lyrics, timed: of the content
    record_stat: tuple[int, int] | None = None

    @property
    def stem(self) -> str:
        return self.audio.stem

    @property
    def prompt_path(self) -> Path:
        return self.audio.with_name(f"{self.stem}_prompt.txt")

    @property
    def lyrics_path(self) -> Path:
        return self.audio.with_name(f"{self.stem}_lyrics.txt")

    @property
    def timed_path(self) -> Path:
        return self.audio.with_name(f"{self.stem}_lyrics.lrc")

    def texts(self) -> list[Path]:
        return [path for suffix in SIDECARS if (path := self.audio.with_name(self.stem + suffix)).exists()]


def is_audio(path: Path) -> bool:
    # macOS leaves `._song.mp3` files that are no audio.
    return path.suffix.lower() in AUDIO_EXTENSIONS and not path.name.startswith(".")


def holds_audio(folder: Path) -> bool:
    try:
        return any(is_audio(path) for path in folder.iterdir())
    except OSError:
        return False


# path -> (size, time of change, state, digest): a library of a thousand songs is looked at every other second, so its
# texts are read again only when they changed.
_TEXTS_SEEN: dict[Path, tuple[int, int, str, str]] = {}


def look_at_text(path: Path, stat: tuple[int, int] | None) -> tuple[str, str]:
    """(missing, empty, unusable, instrumental or ok; digest of the content) of a text file with this size and time."""
    if stat is None:
        return "missing", ""
    seen = _TEXTS_SEEN.get(path)
    if seen is None or seen[:2] != stat:
        try:
            digest = hashlib.sha1(read_bytes(path, MAX_TEXT_BYTES), usedforsecurity=False).hexdigest()[:16]
            text = read_text(path).strip().lower() if stat[0] < 200 else "long"
            state = "instrumental" if text in (INSTRUMENTAL, "[inst]") else "ok" if text else "empty"
        except Unusable:
            state, digest = "unusable", ""
        except OSError:
            return "missing", ""
        seen = _TEXTS_SEEN[path] = (*stat, state, digest)
    return seen[2], seen[3]


def list_files(folder: Path) -> dict[str, tuple[int, int]]:
    """name -> (size, time of change in ns) of a folder's files; one call for all, which matters on Windows."""
    found = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_file():
                    stat = entry.stat()
                    found[entry.name] = (stat.st_size, stat.st_mtime_ns)
    return found


RECORD_EXTENSIONS = (".safetensors", ".hdf5", ".h5")


def record_of(project: Project, stem: str) -> Path | None:
    paths = (project.records / (stem + extension) for extension in RECORD_EXTENSIONS)
    return next((path for path in paths if is_file(path)), None)


def scan_library(project: Project) -> list[Song]:
    """The songs of the project's folder, sorted by code point as the scripts sort them; [] without a folder."""
    if project.home is None:
        return []
    files, records = list_files(project.home), list_files(project.records)
    songs = []
    for name in sorted(files):
        path = project.home / name
        if not is_audio(path):
            continue
        song = Song(path, plain(project.titles.get(name, path.stem)), stats={"audio": files[name]})
        for key, text in (("prompt", song.prompt_path), ("lyrics", song.lyrics_path), ("timed", song.timed_path)):
            stat = files.get(text.name)
            state, song.digests[key] = look_at_text(text, stat)
            if stat:
                song.stats[key] = stat
            if key != "timed":
                setattr(song, key, "ok" if (key, state) == ("prompt", "instrumental") else state)
        probe = project.probes.get(name)
        song.probed = bool(probe) and tuple(probe[:2]) == files[name]
        if probe and song.probed:
            song.seconds = probe[2]
            song.problem, _, song.detail = probe[3].partition("|")
        found = [stat for extension in RECORD_EXTENSIONS if (stat := records.get(song.stem + extension))]
        if found:
            song.record_stat = found[0]
            song.record = "ok" if max(stat[1] for stat in song.stats.values()) <= found[0][1] else "old"
        songs.append(song)
    return songs


def identity(path: Path) -> tuple[int, int]:
    """Size and time of change: enough to notice that a file was replaced."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def newest(paths: Iterable[Path]) -> float:
    times = [0.0]
    for path in paths:
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


# Run by the scripts' Python with `-c`; reads file names as JSON lines, answers one JSON line each. It uses this
# repository's reader where it stands beside the window, and soundfile in a fork's folder.
PROBE_CODE = """
import json, sys
try:
    from ace_lora.audio.decode import read_audio
except ImportError:
    read_audio = None
def look(path):
    if read_audio is not None:
        wave = read_audio(path)
        samples, seconds = wave.samples, wave.original_seconds
    else:
        import soundfile
        data, rate = soundfile.read(path, dtype="float32", always_2d=True)
        samples, seconds = data.T, len(data) / rate
    length = int(samples.shape[-1])
    return seconds, not length or float((abs(samples) == 0).all(0).sum()) / length > 0.95
for line in sys.stdin:
    path = json.loads(line)
    try:
        seconds, silent = look(path)
        answer = {"seconds": seconds, "problem": "silent" if silent else ""}
    except ImportError:
        answer = {"seconds": None, "problem": ""}
    except Exception as error:
        answer = {"seconds": None, "problem": "unreadable|" + str(error).splitlines()[0][:300] if str(error) else "unreadable"}
        if "silent" in str(error).lower():
            answer["problem"] = "silent"
    print(json.dumps({"path": path, **answer}), flush=True)
"""


def probe_songs(
    paths: list[Path], python: Path | None, program: Path, environment: dict[str, str],
    tell: Callable[[Path, list], None],
) -> None:  # fmt: skip
    """Find length and faults of audio files; `tell(path, probe)` for each. Runs in a worker thread."""
    left = []
    for path in paths:
        with contextlib.suppress(OSError):  # removed meanwhile
            stat = identity(path)
            if stat[0]:
                left.append(path)
            else:
                tell(path, [*stat, None, "empty"])
    if not left or python is None:
        return
    try:
        process = subprocess.Popen(
            [str(python), "-c", PROBE_CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=program, env=environment, **quiet_process(),
        )  # fmt: skip
    except OSError:
        return
    with process:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.write(b"".join(json.dumps(str(path)).encode() + b"\n" for path in left))
            process.stdin.close()
        for line in process.stdout:
            with contextlib.suppress(ValueError, KeyError, OSError):
                answer = json.loads(line)
                path, seconds = Path(answer["path"]), answer["seconds"]
                problem = answer["problem"] or ("long" if (seconds or 0) > MAX_SONG_SECONDS else "")
                if seconds is not None or problem:
                    tell(path, [*identity(path), seconds, problem])


def quiet_process() -> dict[str, Any]:
    """Popen arguments that keep Windows from opening a console window."""
    return {"creationflags": subprocess.CREATE_NO_WINDOW} if WINDOWS else {}


@dataclass
class ImportReport:
    added: list[tuple[str, str]] = field(default_factory=list)  # file name, title
    refused: list[tuple[str, str]] = field(default_factory=list)  # source file name, text key of the reason


def find_sources(paths: Iterable[Path]) -> list[Path]:
    """The audio files among `paths` and in its folders (at any depth), in a stable order, each once."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            # Outer folders first: of two equal songs the one that is not in a sub-folder of copies stays.
            for inner in sorted(path.rglob("*"), key=lambda inner: (len(inner.parts), inner)):
                if is_audio(inner) and inner.is_file() and BIN_FOLDER not in inner.parts:
                    found.setdefault(inner)
        else:
            found.setdefault(path)
    return list(found)


def file_digest(path: Path, cache: dict[Path, str]) -> str:
    if path not in cache:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        cache[path] = digest.hexdigest()
    return cache[path]


def import_songs(
    sources: Iterable[Path], home: Path, progress: Callable[[int, int, str], None], added: Callable[[str, str], None],
    cancelled: Callable[[], bool],
) -> ImportReport:  # fmt: skip
    """Copy songs with the texts beside them into `home` under readable unique names.

    `progress(done, all, name)`; `added(file name, title)` after each song, so that its title can be stored at once.
    Called in a worker thread. A song is copied under a temporary name and renamed, so that none is ever half there.
    """
    report = ImportReport()
    home.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(home / STAGING_FOLDER, ignore_errors=True)  # of an import that was interrupted
    here = [path for path in home.iterdir() if is_audio(path)]
    stems = [path.stem for path in here]
    sizes: dict[int, list[Path]] = {}
    for path in filter(is_file, here):
        sizes.setdefault(path.stat().st_size, []).append(path)
    digests: dict[Path, str] = {}
    files, full = find_sources(sources), False
    for number, source in enumerate(files):
        if full or cancelled():
            report.refused.append((source.name, "import.cancelled"))
            continue
        progress(number, len(files), source.name)
        reason = _refuse_source(source, home, sizes, digests)
        if reason:
            report.refused.append((source.name, reason))
            continue
        try:
            target = _copy_song(source, home, stems)
        except OSError as error:
            report.refused.append((source.name, f"import.failed|{error.strerror or error}"))
            full = error.errno in (28, 112)  # no space: the next ones will not fit either
            continue
        stems.append(target.stem)
        sizes.setdefault(target.stat().st_size, []).append(target)
        report.added.append((target.name, source.stem))
        added(target.name, source.stem)
    progress(len(files), len(files), "")
    return report


def _refuse_source(source: Path, home: Path, sizes: dict[int, list[Path]], digests: dict[Path, str]) -> str:
    """The text key of the reason why `source` is not added; '' when it can be."""
    try:
        if not source.is_file():
            return "import.missing"
        if not is_audio(source):
            return "import.not_audio"
        if source.resolve().parent == home.resolve():
            return "import.already_here"
        size = source.stat().st_size
        if size == 0:
            return "import.empty"
        if source.suffix.lower() == ".wav" and not _is_wave(source):
            return "import.unreadable"
        for other in sizes.get(size, []):
            if file_digest(other, digests) == file_digest(source, digests):
                return _use_texts_of_duplicate(source, other)
    except OSError as error:
        return f"import.failed|{error.strerror or error}"
    return ""


def _is_wave(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE"


def _copy_song(source: Path, home: Path, stems: Iterable[str]) -> Path:
    """Copy the audio file and the texts beside it (`<stem>_prompt.txt`, `.lrc`, …) to a stem that is not in `stems`."""
    target = home / (unique_name(readable_name(source.stem), stems) + source.suffix.lower())
    # The audio last: a song that is there is there with everything.
    pairs = [(old, new) for old, new in _text_pairs(source, target) if not new.exists()] + [(source, target)]
    staging = home / STAGING_FOLDER
    staging.mkdir(exist_ok=True)
    try:
        for old, new in pairs:
            copy_checked(old, staging / new.name)
        for _, new in pairs:
            if os.path.lexists(new):  # since `stems` was made
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
            (staging / new.name).rename(new)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _text_pairs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """The texts beside the song `source`, and where they stand beside the song `target`."""
    pairs = [(source.with_name(source.stem + suffix), target.with_name(target.stem + suffix)) for suffix in SIDECARS]
    return [(old, new) for old, new in pairs if old.is_file()]


def copy_checked(source: str | Path, target: str | Path) -> None:
    """Copy a file, bring it to the disk, compare it. Raises OSError, also when the copy is another."""
    shutil.copyfile(source, target)
    with Path(target).open("rb+") as file:
        os.fsync(file.fileno())
    shutil.copystat(source, target)
    if not filecmp.cmp(source, target, shallow=False):
        raise OSError(errno.EIO, "副本与原文件不同 / the copy differs", str(source))


def _copy_file(source: Path, target: Path) -> None:
    temporary = target.with_name(f".tmp-{target.name}")
    try:
        copy_checked(source, temporary)
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):  # what went wrong is to be told, not what the cleaning up met
            temporary.unlink(missing_ok=True)


def move_whole(source: Path, target: Path) -> None:
    """Move a file or folder so that never half of it has its real name, also to another disk.

    There it is copied under a temporary name, compared, renamed, and only then removed. What an interrupted move left
    is used by the next one, or removed. Raises FileExistsError when something else stands at `target`, else OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(target):
        try:
            source.rename(target)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        temporary = target.with_name(f".tmp-{target.name}")
        _remove(temporary)
        if source.is_symlink():
            temporary.symlink_to(source.readlink())
        elif source.is_dir():
            shutil.copytree(source, temporary, symlinks=True, copy_function=copy_checked)
        else:
            copy_checked(source, temporary)
        temporary.rename(target)
    elif not _holds_all(target, source):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    for left in source.parent.glob(f"{MOVED}*"):
        _remove(left)
    moved = source.with_name(f"{MOVED}{source.name}")
    source.rename(moved)  # it is gone as a whole
    _remove(moved)


MOVED = ".tmp-moved-"  # begins the name of what has been moved to another disk and is being removed


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _holds_all(target: Path, source: Path) -> bool:
    """Whether everything that is (still) in `source` is in `target` as well, equal."""
    if source.is_symlink() or target.is_symlink():
        return source.is_symlink() and target.is_symlink() and source.readlink() == target.readlink()
    if source.is_dir():
        return target.is_dir() and all(_holds_all(target / inner.name, inner) for inner in source.iterdir())
    return source.is_file() and target.is_file() and filecmp.cmp(source, target, shallow=False)


def _use_texts_of_duplicate(source: Path, target: Path) -> str:
    """Give the library's song `target` the texts beside its duplicate that it lacks; the text key of what is to be said.

    Texts that the song has already may have been corrected by hand: they stay.
    """
    used = kept = False
    try:
        for old, new in _text_pairs(source, target):
            text = read_text(old).strip()
            there = read_text(new).strip() if new.exists() else ""
            if text and not there:
                _copy_file(old, new)
                used = True
            kept |= bool(there) and text not in ("", there)
    except OSError as error:
        return f"import.failed|{error.strerror or error}"
    return f"import.duplicate{'_kept' if kept else '_used' if used else ''}|{target.name}"


def remove_to_bin(home: Path, paths: Iterable[Path], reason: str, copy: bool = False) -> Path | None:
    """Move (or copy) files and folders into a dated folder of the project's bin, from which they can come back."""
    existing = [path for path in paths if os.path.lexists(path)]
    if not existing:
        return None
    folder = unique_path(home / BIN_FOLDER / stamp())
    folder.mkdir(parents=True)
    entries: dict[str, str] = {}
    for path in existing:
        name = unique_path(path, lambda path: path.name in entries).name
        entries[name] = Path(os.path.relpath(path, home)).as_posix()
    # The manifest first: a crash meanwhile leaves a name too many, not a file without a name.
    write_json(folder / BIN_MANIFEST, {"reason": reason, "files": entries})
    for path, name in zip(existing, entries, strict=True):
        if copy and is_file(path):
            shutil.copy2(path, folder / name)
        else:
            move_whole(path, folder / name)
    return folder


@dataclass(frozen=True)
class Removed:
    """What was removed or set aside at one time, by the window or by a script, and can come back."""

    base: Path  # what its places are relative to
    folder: Path  # where it lies now
    files: dict[str, str]  # name in `folder`: place
    reason: str
    when: str  # as `stamp` has it
    rooms: dict[Path, Path]  # folders that it may come back to: as they are called, and where they really are

    @property
    def kind(self) -> str:
        """records, checkpoints, dataset, songs, texts, or files: what most people would call it."""
        kinds = {_kind_of(Path(place)) for place in self.files.values()}
        return next(
            (kind for kind in ("songs", "checkpoints", "records", "dataset", "texts") if kind in kinds), "files"
        )

    def places(self) -> dict[str, Path]:
        """Where everything goes back to. Raises Unusable, naming it, for what leads anywhere else."""
        found = {}
        for name, place in self.files.items():
            target = Path(os.path.normpath(self.base / place))
            if not self._is_safe(name, place, target):
                raise Unusable(plain(f"{name} → {place}"))
            found[name] = target
        return found

    def _is_safe(self, name: str, place: str, target: Path) -> bool:
        parts = place.split("/")
        if not all(map(_is_safe_part, (name, *(part for part in parts if part != "..")))) or BIN_FOLDER in parts:
            return False
        home = next(iter(self.rooms))
        room = next((room for room in self.rooms if target.is_relative_to(room) and target != home), None)
        real, base = self.rooms.get(self.base) or self.base.resolve(), self.base
        if not self.folder.is_relative_to(base):  # the earlier way for records: a folder beside theirs
            real, base = real.parent, base.parent
        real_folder = real / self.folder.relative_to(base)
        return (
            room is not None
            and (target.parent.resolve() / target.name).is_relative_to(self.rooms[room])
            and self.folder.resolve() == real_folder
            and (self.folder / name).resolve().is_relative_to(real_folder)
        )


def _is_safe_part(part: str) -> bool:
    """Whether a name of a manifest is a plain name on every system: no path, no drive, no device of Windows."""
    bad = r'[<>:"/\\|?*\0-\x1f]' if WINDOWS else r"[/\\\0-\x1f]|^[A-Za-z]:"
    return not (
        part in ("", ".", "..", BIN_MANIFEST)
        or re.search(bad, part)
        or part[-1] in ". "
        or part.split(".")[0].strip().lower() in _RESERVED
    )


def _kind_of(place: Path) -> str:
    if is_audio(place):
        return "songs"
    if LORA_FOLDER.search(place.name):
        return "checkpoints"
    if place.suffix in RECORD_EXTENSIONS or place.name.endswith("_prep"):
        return "records"
    if place.name.endswith("_filenames"):
        return "dataset"
    return "texts" if place.suffix in (".txt", ".lrc") else "files"


_BACKUP = re.compile(r"(.+_(?:prompt|lyrics)\.(?:txt|lrc))\.(\d{4}(?:-\d\d){2}_\d\d(?:-\d\d){2})(?:-\d+)?\.bak")
_DAMAGED = re.compile(r"(epoch=\d+-step=\d+_lora)\.damaged-\d+")


def list_removed(project: Project, checkpoints: Path) -> list[Removed]:
    """Everything that can be restored into the project and into `checkpoints`, newest first."""
    home = project.home
    if home is None:
        return []
    rooms = {home: home.resolve(), checkpoints: checkpoints.resolve()}
    # A project that comes from elsewhere may bring links in their place.
    rooms |= {path: home.parent.resolve() / path.name for path in (project.records, project.dataset)}
    found = [entry for base in (home, project.records, checkpoints) for entry in _in_bin(base, rooms)]
    for entry in _in_bin(home.parent, rooms):  # of all projects there: what replaced whole folders
        with contextlib.suppress(Unusable):
            found += [entry] if entry.places() else []
    found += _of_earlier_ways(project, checkpoints, rooms)
    return sorted(found, key=lambda entry: (entry.when, entry.folder.name), reverse=True)


def _in_bin(base: Path, rooms: dict[Path, Path]) -> Iterator[Removed]:
    for folder in _inside(base / BIN_FOLDER):
        with contextlib.suppress(OSError, ValueError):
            stored = read_json(folder / BIN_MANIFEST)
            places = stored.get("files")
            files = {name: str(place) for name, place in places.items()} if isinstance(places, dict) else {}
            files = {name: place for name, place in files.items() if name and os.path.lexists(folder / name)}
            if files:
                yield Removed(base, folder, files, str(stored.get("reason", "")), folder.name, rooms)


def _of_earlier_ways(project: Project, checkpoints: Path, rooms: dict[Path, Path]) -> Iterator[Removed]:
    """Records in dated folders without a manifest, checkpoints and texts that got another name where they were."""
    home, records = project.home, project.records
    for old in (records.with_name(f"{records.name}.set_aside"), records / ".set_aside"):
        for folder in _inside(old):
            files = {path.name: path.name for path in _inside(folder)}
            if files:
                yield Removed(records, folder, files, "orphans", folder.name, rooms)
    for base, pattern, reason in ((home, _BACKUP, "overwritten"), (checkpoints, _DAMAGED, "damaged")):
        for path in _inside(base):
            if match := pattern.fullmatch(path.name):
                when = match[2] if pattern is _BACKUP else stamp(path.stat().st_mtime)
                yield Removed(base, base, {path.name: match[1]}, reason, when, rooms)


def _inside(folder: Path | None) -> list[Path]:
    try:
        return sorted(folder.iterdir()) if folder else []
    except OSError:
        return []


def restore_removed(entry: Removed) -> tuple[list[str], list[str]]:
    """Put everything of one time back; what stands there now goes into the bin. Returns (restored, replaced).

    Raises Unusable before anything is moved when something leads out of the project.
    """
    places = entry.places()
    occupied = [place for place in places.values() if os.path.lexists(place)]
    remove_to_bin(entry.base, occupied, "restore")
    for name in sorted(places, key=lambda name: is_audio(places[name])):  # a song after its texts
        move_whole(entry.folder / name, places[name])
    if entry.folder.parent.name == BIN_FOLDER:
        (entry.folder / BIN_MANIFEST).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # what no manifest names stays there
        entry.folder.rmdir()
    return list(entry.files.values()), [path.name for path in occupied]


def clear_library(project: Project) -> Path | None:
    """Move all songs, their texts, the dataset and the records into the bin; settings and logs stay."""
    assert project.home is not None
    kept = {PROJECT_FILE, BIN_FOLDER, LOGS_FOLDER}
    paths = [path for path in project.home.iterdir() if path.name not in kept and not path.name.startswith(".tmp-")]
    folder = remove_to_bin(project.home, [*paths, project.dataset, project.records], "clear")
    project.receipts.clear()
    return folder


def remove_songs(project: Project, songs: Iterable[Song]) -> Path | None:
    """Move songs with their texts and records into the bin (a record left behind would still be trained on)."""
    assert project.home is not None
    paths: list[Path] = []
    for song in songs:
        paths += [song.audio, *song.texts()]
        record = record_of(project, song.stem)
        paths += [record] if record else []
    return remove_to_bin(project.home, paths, "remove")


def rename_song(project: Project, song: Song, title: str) -> str:
    """Give a song another title, and its files the readable name of it; returns the new file name."""
    stems = [p.stem for p in song.audio.parent.iterdir() if is_audio(p) and p != song.audio]
    stem = unique_name(readable_name(title), stems)
    target = song.audio.with_name(stem + song.audio.suffix)
    if target.name != song.audio.name:
        moves = [(path, path.with_name(stem + path.name[len(song.stem) :])) for path in [*song.texts(), song.audio]]
        record = record_of(project, song.stem)
        moves += [(record, record.with_name(stem + record.suffix))] if record else []
        for old, new in moves:
            # Case-only renames are the same file on Windows and macOS.
            if os.path.lexists(new) and not (new.exists() and new.samefile(old)):
                remove_to_bin(song.audio.parent, [new], "rename")
            os.replace(old, new)
        project.titles.pop(song.audio.name, None)
        project.probes[target.name] = project.probes.pop(song.audio.name, [])
    project.titles[target.name] = title
    project.save()
    return target.name


def orphan_records(project: Project, songs: Iterable[Song]) -> list[Path]:
    """Records in `<name>_prep` whose song is not in the library any more; the trainer would still use them."""
    stems = {song.stem for song in songs}
    if project.home is None or not is_folder(project.records):
        return []
    return [
        path
        for path in sorted(project.records.iterdir())
        if path.suffix in RECORD_EXTENSIONS and not path.name.startswith(".") and path.stem not in stems
    ]


def split_tags(prompt: str) -> list[str]:
    return [tag for part in re.split(r"[,，、\n]", prompt) if (tag := part.strip())]


def add_tag(prompt: str, tag: str) -> str:
    """Put `tag` in front (a trigger word) unless it is there already."""
    tags = split_tags(prompt)
    wanted = [new for new in split_tags(tag) if new.lower() not in {old.lower() for old in tags}]
    return ", ".join([*wanted, *tags])


def remove_tag(prompt: str, tag: str) -> str:
    unwanted = {old.lower() for old in split_tags(tag)}
    return ", ".join(old for old in split_tags(prompt) if old.lower() not in unwanted)


def change_texts(project: Project, changes: dict[Path, str], reason: str) -> int:
    """Write new texts atomically after putting copies of the old ones into the bin; returns how many changed."""
    assert project.home is not None
    real = {}
    for path, text in changes.items():
        before = None
        with contextlib.suppress(OSError):
            before = read_text(path)
        if before != text:
            real[path] = text
    remove_to_bin(project.home, real, reason, copy=True)
    for path, text in real.items():
        write_atomically(path, text)
    return len(real)


def fingerprint(songs: Iterable[Song]) -> dict[str, list[str]]:
    """What a step reads of every song: file, prompt, lyrics and timed lyrics, each as a short text."""
    result = {}
    for song in songs:
        size, changed = song.stats["audio"]
        texts = [song.digests.get(key, "") for key in ("prompt", "lyrics", "timed")]
        result[song.stem] = [f"{song.audio.name}:{size}:{changed}", *texts]
    return result


def compare_fingerprints(old: dict[str, list[str]], new: dict[str, list[str]]) -> tuple[str, dict[str, str]] | None:
    """The first difference as (text key, fields); None when equal."""
    for stem in new:
        if stem not in old:
            return "stale.added", {"song": stem}
    for stem in old:
        if stem not in new:
            return "stale.removed", {"song": stem}
    for stem, parts in new.items():
        for key, before, after in zip(("audio", "prompt", "lyrics", "timed"), old[stem], parts, strict=False):
            if before != after:
                return f"stale.{key}", {"song": stem}
    return None


# --- 5. Steps ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """One setting of a step: a flag of its script, how it is shown and what it may be."""

    flag: str  # without the dashes
    kind: str  # int, float, text, choice (only the given), combo (given or own), bool, file, folder
    default: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    basic: bool = False  # shown without opening "advanced", and always on the command line
    label: tuple[str, str] = ("", "")  # Chinese, English
    help: tuple[str, str] = ("", "")
    script_default: str | None = None  # what the script takes when the flag is not given; None: not known

    def problem(self, text: str, program: Path) -> tuple[str, dict[str, str]] | None:
        """Why `text` cannot be used, as (text key, fields); None when it can."""
        text = text.strip()
        if self.kind in ("int", "float"):
            if not text and not self.basic and not self.default:
                return None
            try:
                number = int(text) if self.kind == "int" else float(text)
            except ValueError:
                return f"wrong.{self.kind}", {"value": text}
            if not math.isfinite(number):
                return f"wrong.{self.kind}", {"value": text}
            if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
                limits = {name: f"{limit:g}" for name in ("low", "high") if (limit := getattr(self, name)) is not None}
                return "wrong.low" if self.high is None else "wrong.range", {"value": text, **limits}
        elif self.kind == "choice" and text not in self.choices:
            return "wrong.choice", {"value": text, "choices": ", ".join(self.choices)}
        elif self.kind == "combo" and not text and self.basic:
            return "wrong.empty", {}
        elif self.kind == "file" and text and not is_file(program / text):
            return "wrong.file", {"value": text}
        return None


@dataclass(frozen=True)
class Step:
    key: str
    number: int
    script: str
    values: str  # where its settings are kept: steps 2 and 3 share theirs
    fields: tuple[Field, ...] = ()
    paths: tuple[tuple[str, str], ...] = ()  # flags that are filled in with a path of the project, and with which
    filled: tuple[str, ...] = ()  # other flags that the window fills in itself
    # rail, title, about, start (its button), result: its part of `TEXTS`, as rail.<key> and so on
    texts: dict[str, tuple[str, str]] = field(default_factory=dict)


# fmt: off
# Shared by several steps.
DEVICE = Field("device", "text", "auto", label=("设备", "Device"),
               help=("auto、cuda、mps 或 cpu。", "auto, cuda, mps or cpu."))
LORA_CONFIG = Field("lora_config_path", "combo", "./config/lora_config_transformer_only.json",
                    label=("LoRA 配置", "LoRA configuration"),
                    help=("训练哪些层，见 config 文件夹。默认只训练 transformer。", "Which layers are trained, from the folder config. Default: the transformer only."))
# fmt: on

CAPTION_FIELDS = (
    Field("backend", "choice", "auto", ("auto", "qwen", "llamacpp", "analysis"), basic=True, label=("识别方式", "Backend"),
          help=("auto 自动选择：有 NVIDIA 显卡用模型（qwen），否则只做信号分析。", "auto: the model (qwen) with an NVIDIA card, else measured from the signal only.")),
    Field("model", "combo", "Qwen/Qwen2.5-Omni-7B",
          ("Qwen/Qwen2.5-Omni-7B", "Qwen/Qwen2.5-Omni-3B", "Qwen/Qwen2.5-Omni-7B-GPTQ-Int4", "ACE-Step/acestep-captioner", "ACE-Step/acestep-transcriber"),
          basic=True, label=("模型", "Model"),
          help=("Qwen2.5-Omni 系列，首次使用会下载；3B 更省显存。", "Of the Qwen2.5-Omni family; downloaded at first use. 3B needs less memory.")),
    Field("quantization", "choice", "auto", ("auto", "nf4", "int8", "none"), label=("量化", "Quantization"),
          help=("nf4 约需 8 GB 显存，none 约需 18 GB。", "nf4 takes about 8 GB of VRAM, none about 18.")),
    Field("bpm", "bool", "false", label=("加入速度", "Add tempo"),
          help=("把测得的速度（如 120 bpm）加进标签。", "Add the measured tempo, such as 120 bpm, as a tag.")),
    Field("overwrite", "bool", "false", label=("覆盖已有", "Overwrite"),
          help=("重新生成已有的文本，旧的会留备份。", "Write existing texts again; the old ones are kept as backups.")),
    Field("structure", "choice", "on", ("on", "off"), label=("段落标记", "Structure"),
          help=("没有段落标记时，把重复的部分标为 [chorus]，其余标为 [verse]。", "Mark repeated lines as [chorus] and others as [verse] when there are no marks.")),
    Field("host", "text", "127.0.0.1", label=("服务器地址", "Server"),
          help=("llama.cpp 服务器的地址。", "Where llama-server listens.")),
    Field("port", "int", "8080", low=1, high=65535, label=("端口", "Port"),
          help=("llama.cpp 服务器的端口。", "Its port.")),
    Field("language", "text", "", label=("歌词语言", "Lyric language"),
          help=("如 zh、en；留空由模型判断。", "Such as zh or en; empty: the model finds out.")),
    Field("seed", "int", "0", label=("随机种子", "Seed"),
          help=("相同的种子得到相同的训练过程。", "The same seed gives the same training.")),
    Field("lyric_sources", "text", "", label=("歌词来源", "Lyric sources"),
          help=("按顺序：歌曲旁的 .lrc/.txt，文件内嵌的歌词，模型听写。", "In this order: .lrc or .txt beside the song, lyrics inside the file, the model.")),
    Field("assume_instrumental", "bool", "false", label=("无歌词即纯音乐", "No lyrics: instrumental"),
          help=("找不到歌词的歌曲全部标为 [instrumental]。请先确认它们真的没有人声。", "Songs without lyrics become [instrumental]. Make sure that nobody sings in them.")),
    DEVICE,
    Field("timeout", "float", "600.0", label=("超时（秒）", "Time-out (s)"),
          help=("等待 llama.cpp 服务器回答一首歌的时间。", "How long one answer of llama-server may take.")),
)  # fmt: skip

TRAIN_FIELDS = (
    Field("batch_size", "int", "1", low=1, high=64, basic=True, label=("批大小", "Batch size"),
          help=("每步同时学习几首歌。显存不足时保持 1。", "Songs per step. Keep 1 unless there is memory to spare.")),
    Field("num_workers", "int", "0", low=0, high=32, basic=True, label=("数据线程数", "Loader threads"),
          help=("DataLoader 使用的线程数，0 表示不另开，通常够用。", "More threads that read data ahead; 0 is enough for most.")),
    Field("tag_dropout", "float", "0.5", low=0, high=1, basic=True, label=("标签丢弃率", "Tag dropout"),
          help=("每个标签在一步中被略去的概率，让 LoRA 不依赖单个标签。", "Chance that a tag is left out of a step, so that no tag becomes indispensable.")),
    Field("learning_rate", "float", "1e-4", low=0, high=10, basic=True, label=("学习率", "Learning rate"),
          help=("AdamW 用 1e-4 左右，Prodigy 用 1。太大学坏，太小学不动。", "About 1e-4 for AdamW, 1 for Prodigy. Too high ruins, too low learns nothing.")),
    Field("max_steps", "int", "2000", low=1, high=10_000_000, basic=True, label=("最大步数", "Steps"),
          help=("总共训练多少步。十来首歌 2000 步是个好起点。", "Length of the training. 2000 is a good start for some ten songs.")),
    Field("precision", "combo", "bf16-mixed", ("bf16-mixed", "16-mixed", "32-true"), basic=True,
          label=("精度", "Precision"),
          help=("30 系及以上用 bf16-mixed；更老的显卡用 16-mixed。", "bf16-mixed for RTX 30 and newer, 16-mixed for older cards.")),
    Field("save_every_n_train_steps", "int", "100", low=1, high=10_000_000, basic=True, label=("保存间隔", "Save every"),
          help=("每多少步保存一次 LoRA。", "Steps between two saved LoRAs.")),
    LORA_CONFIG,
    Field("base_precision", "choice", "bf16", ("bf16", "int8", "nf4"), label=("基础模型精度", "Base model"),
          help=("int8、nf4 大幅节省显存，略损精度。", "int8 and nf4 save much memory at a small cost in precision.")),
    Field("checkpointing", "combo", "auto", ("auto", "all", "none"), label=("重计算", "Recomputation"),
          help=("all 最省显存；none 最快；auto 看显存决定；也可填块数。", "all saves most memory, none is fastest, auto decides; or a number of blocks.")),
    Field("offload", "int", "0", low=0, high=24, label=("放到内存的块数", "Blocks off the card"),
          help=("把若干层放在内存里轮流载入，显存仍不够时用，会变慢。", "Keep blocks in main memory; slower, for when nothing else fits.")),
    Field("max_seconds", "float", "0.0", low=0, high=MAX_SONG_SECONDS, label=("最长秒数", "Longest crop (s)"),
          help=("每步只取歌曲中随机的一段，省显存；0 用整首。", "Train on a random part of each song, saves memory; 0: whole songs.")),
    Field("plan", "choice", "none", ("none", "auto"), label=("自动方案", "Plan"),
          help=("auto 先试跑，再选显存放得下的设置。", "auto: try first, then take settings that fit the card.")),
    Field("save_comfyui", "bool", "false", label=("同时存 ComfyUI 版", "Also for ComfyUI"),
          help=("每次保存时另存一份可直接用于 ComfyUI 的文件。", "Write a file for ComfyUI beside every saved LoRA.")),
    Field("val_every", "int", "0", low=0, high=10_000_000, label=("验证间隔", "Validate every"),
          help=("每多少步计算一次验证损失，0 关闭。", "Steps between two validation losses; 0: never.")),
    Field("last_lora_path", "file", "", label=("起始 LoRA", "Start from LoRA"),
          help=("从已有的 LoRA 文件开始训练；留空从零开始。", "A LoRA file to start from; empty: from nothing.")),
    Field("optimizer", "choice", "adamw", ("adamw", "prodigy"), label=("优化器", "Optimizer"),
          help=("adamw 稳妥；prodigy 自动找学习率（学习率填 1）。", "adamw is the safe choice; prodigy finds its rate itself (set learning rate 1).")),
    Field("beta1", "float", "0.9", low=0, high=0.999999, label=("beta1", "beta1"),
          help=("一阶动量系数。", "Decay of the first moment.")),
    Field("beta2", "float", "0.99", low=0, high=0.999999, label=("beta2", "beta2"),
          help=("二阶动量系数；1 − beta2 应大于 1 / 最大步数。", "Decay of the second moment; 1 − beta2 should exceed 1 / steps.")),
    Field("weight_decay", "float", "1e-2", low=0, high=10, label=("权重衰减", "Weight decay"),
          help=("防止权重过大，0 关闭。", "Keeps weights small; 0 turns it off.")),
    Field("warmup_steps", "int", "10", low=0, high=10_000_000, label=("预热步数", "Warm-up steps"),
          help=("学习率从 0 升到设定值的步数。", "Steps over which the learning rate rises.")),
    Field("accumulate_grad_batches", "int", "1", low=1, high=10_000, label=("梯度累积", "Accumulate"),
          help=("累积几批再更新一次，相当于更大的批，不多占显存。", "Batches per update: like a larger batch without more memory.")),
    Field("gradient_clip_val", "float", "1.0", low=0, high=1e6, label=("梯度裁剪", "Gradient clipping"),
          help=("限制一步的最大改动，0 关闭。", "Limits one step's change; 0 turns it off.")),
    Field("gradient_clip_algorithm", "choice", "norm", ("norm", "value"), label=("裁剪方式", "Clipping by"),
          help=("norm 按总长，value 按每个值。", "norm: of the whole gradient; value: each number.")),
    Field("ssl_coeff", "float", "1.0", low=0, high=100, label=("SSL 损失系数", "SSL loss"),
          help=("辅助损失的权重，0 关闭并省时省显存。", "Weight of the auxiliary loss; 0 turns it off and saves time and memory.")),
    Field("speaker_dropout", "float", "0.0", low=0, high=1, label=("说话人丢弃率", "Speaker dropout"),
          help=("略去说话人信息的概率。", "Chance that the speaker vector is left out.")),
    Field("lyrics_dropout", "float", "0.0", low=0, high=1, label=("歌词丢弃率", "Lyrics dropout"),
          help=("略去歌词的概率。", "Chance that the lyrics are left out.")),
    Field("shift", "float", "3.0", low=0.01, high=100, label=("时间步偏移", "Shift"),
          help=("噪声时间表的偏移，模型发布时为 3。", "Of the noise schedule; 3 as published.")),
    Field("epochs", "int", "-1", low=-1, high=10_000_000, label=("最大轮数", "Epochs"),
          help=("整个曲库学习几遍后停止，-1 不限。", "Passes over the library before the end; -1: no limit.")),
    Field("save_last", "int", "5", low=-1, high=10_000, label=("保留个数", "Keep last"),
          help=("只保留最近几个 LoRA，更早的自动删除；-1 全部保留。", "Number of saved LoRAs that stay; -1 keeps all.")),
    Field("seed", "int", "", low=0, label=("随机种子", "Seed"),
          help=("相同的种子得到相同的训练过程。", "The same seed gives the same training.")),
    Field("exp_name", "text", "ace_step_lora", label=("实验名称", "Run name"),
          help=("日志文件夹的名字。", "Names the folder of the logs.")),
    Field("logger", "choice", "tensorboard", ("tensorboard", "wandb", "csv", "none"), label=("日志方式", "Logger"),
          help=("tensorboard 可用左侧按钮查看。", "tensorboard: see the button on the left.")),
    Field("log_dir", "text", "logs/{name}", label=("日志文件夹", "Log folder"),
          help=("训练曲线存放处。", "Where the curves are written.")),
    Field("output_dir", "text", "checkpoints", label=("输出文件夹", "Output folder"),
          help=("LoRA 存放处。", "Where the LoRAs are saved.")),
    Field("ema_decay", "float", "0.0", label=("滑动平均", "Moving average"),
          help=("保存权重的滑动平均，结果更平滑。", "Keep a moving average of the adapter.")),
    Field("val_songs", "int", "-1", label=("验证歌曲数", "Validation songs"),
          help=("留出几首不参与训练；-1 自动，0 用训练歌曲验证。", "Songs held out for it; -1: chosen by the library's size, 0: training songs are used.")),
    DEVICE,
    Field("devices", "int", "1", label=("显卡", "Devices"),
          help=("用几张卡，或哪几张。", "How many cards, or which.")),
    Field("num_nodes", "int", "1", label=("机器数", "Machines"),
          help=("多机训练的机器数。", "Machines that train together.")),
    Field("strategy", "text", "auto", label=("并行策略", "Strategy"),
          help=("多卡时的方式，如 ddp。", "For several cards, such as ddp.")),
    Field("text_encoder", "choice", "auto", ("auto", "cpu", "gpu"), label=("文本编码器位置", "Text encoder"),
          help=("auto、cpu 或 gpu；cpu 省显存。", "auto, cpu or gpu; cpu saves memory on the card.")),
    Field("compile", "bool", "false", label=("编译加速", "Compile"),
          help=("用 Triton 编译一部分运算，在显卡上更快；不能编译时照常运行。", "Compile parts of the model with Triton: faster on a card; goes on without where that does not work.")),
    Field("memory_limit_gb", "float", "0.0", label=("试跑显存上限", "Trial's memory limit"),
          help=("试跑最多用多少 GB，0 为整张卡。", "GB that the trial may use; 0: the whole card.")),
)  # fmt: skip

STEPS = (
    Step("songs", 1, "", "songs", texts={
        "rail": ("准备音频", "Songs"),
        "title": ("准备音频", "Songs"),
        "about": ("添加要学习的歌曲。中文歌名会自动转成拼音文件名，原文件不会改动。", "Add the songs to learn from. They are copied under readable file names; your originals stay untouched."),
    }),
    Step("prompts", 2, "generate_prompts_lyrics.py", "captions", CAPTION_FIELDS, (("data_dir", "home"),), ("lyrics", "only"), texts={
        "rail": ("提示词", "Prompts"),
        "title": ("生成提示词", "Prompts"),
        "about": ("为每首歌写出风格标签（流派、乐器、情绪、人声），生成后可以逐首修改。", "Describe every song by tags (genre, instruments, mood, voice). Look through them and correct them afterwards."),
        "start": ("生成提示词", "Generate prompts"),
    }),
    Step("lyrics", 3, "generate_prompts_lyrics.py", "captions", CAPTION_FIELDS, (("data_dir", "home"),), ("lyrics", "only"), texts={
        "rail": ("歌词", "Lyrics"),
        "title": ("生成歌词", "Lyrics"),
        "about": ("取得每首歌的歌词；没有人声的音乐标记为 [instrumental]。生成后请对照修改。", "Get the words of every song; music without voice becomes [instrumental]. Check them afterwards."),
        "start": ("生成歌词", "Generate lyrics"),
    }),
    Step("dataset", 4, "convert2hf_dataset_new.py", "dataset", (
        Field("default_tag", "text", "", label=("默认标签", "Default tags"),
              help=("没有提示词的歌用它，多个标签用逗号分隔；可留空。", "For songs without a prompt; tags separated by commas. May stay empty.")),
    ), (("data_dir", "home"), ("output_name", "dataset")), texts={
        "rail": ("数据集", "Dataset"),
        "title": ("创建数据集", "Dataset"),
        "about": ("把歌曲、提示词和歌词登记成一份清单，只需几秒钟。", "List the songs with their prompts and lyrics in a dataset. Takes seconds."),
        "start": ("创建数据集", "Create dataset"),
        "result": ("结果是歌曲文件夹旁边的 …_filenames 文件夹，不含音频本身。", "The result is the folder …_filenames beside the song folder; it does not hold the audio itself."),
    }),
    Step("prep", 5, "preprocess_dataset_new.py", "prep", (
        Field("ssl", "choice", "stored", ("stored", "none", "at_training"), label=("SSL 特征", "SSL features"),
              help=("stored 存盘；at_training 训练时再算，省磁盘；none 不用，最小也最快。", "stored: kept on disk; at_training: computed when training starts, saves disk; none: left out, smallest and fastest.")),
        Field("lyric_language", "text", "", label=("歌词语言", "Lyric language"),
              help=("如 zh、en；留空自动判断。", "Such as zh or en; empty: told from each text.")),
        DEVICE,
        Field("shard", "text", "1/1", label=("分片", "Shard"),
              help=("多台机器分工时用，如 1/2；单机为 1/1。", "I/N to divide the work among machines; 1/1 does everything.")),
    ), (("input_name", "dataset"), ("output_dir", "records")), texts={
        "rail": ("音频预处理", "Preprocessing"),
        "title": ("音频预处理", "Preprocessing"),
        "about": ("把每首歌转换成模型能学习的数据。可以随时停止，下次会接着做。", "Turn every song into what the model learns from. Stop at any time; the next start goes on from there."),
        "start": ("开始预处理", "Preprocess"),
        "result": ("结果是歌曲文件夹旁边的 …_prep 文件夹，每首歌一个文件，每秒音频约 0.2 MB。首次运行会下载基础模型。",
                   "The result is the folder …_prep beside the song folder, one file per song, about 0.2 MB per second of audio. The first run downloads the base model."),
    }),
    Step("train", 6, "trainer_new.py", "train", TRAIN_FIELDS, (("dataset_path", "records"),), ("resume", "trial"), texts={
        "rail": ("训练", "Training"),
        "title": ("训练", "Training"),
        "about": ("训练 LoRA。默认参数适合第一次尝试，随时可以停止并保存。", "Train the LoRA. The defaults are right for a first try; stopping saves what was learned."),
        "start": ("开始训练", "Start training"),
    }),
    Step("strength", 7, "add_alpha_in_lora.py", "strength", (
        Field("input_name", "combo", "{lora}", basic=True, label=("训练出的 LoRA", "Trained LoRA"),
              help=("默认取最新的一个。", "The latest one unless chosen otherwise.")),
        Field("output_name", "text", "{name}-{step}.safetensors", basic=True, label=("成品文件名", "Finished file"),
              help=("成品写在程序文件夹里；也可以填完整路径。", "Written into the program's folder, or to a full path.")),
        replace(LORA_CONFIG, default="{config}", basic=True),
    ), filled=("overwrite", "for"), texts={  # overwriting is never wanted: a file that is there gets a dated name first
        "rail": ("LoRA 强度", "LoRA strength"),
        "title": ("LoRA 权重优化", "LoRA strength"),
        "about": ("把强度写进 LoRA 文件，在 ComfyUI 中用强度 1 即可得到训练时的效果。", "Write the strength into the LoRA file, so that strength 1 in ComfyUI is what was trained."),
        "start": ("生成成品 LoRA", "Write the LoRA"),
        "result": ("把成品文件放进 ComfyUI 的 models/loras，用 LoraLoaderModelOnly 节点加载，强度填 1。", "Put the finished file into ComfyUI's models/loras and load it with the node LoraLoaderModelOnly, strength 1."),
    }),
)  # fmt: skip
STEP = {step.key: step for step in STEPS}
LLAMACPP_SCRIPT = "generate_prompts_lyrics_llamacpp.py"
SCRIPTS = tuple(dict.fromkeys(step.script for step in STEPS if step.script))


@dataclass(frozen=True)
class Flag:
    """An `add_argument` call as it stands in a script."""

    name: str
    kind: str = "text"
    default: str | None = None  # None: not a literal
    choices: tuple[str, ...] = ()
    help: str = ""
    action: str = ""


def read_flags(script: Path) -> dict[str, Flag] | None:
    """The flags that a script defines, read from its source: a fork's script imports torch even for `--help`.

    None when the file is missing or cannot be parsed; then every known flag is taken to exist.
    """
    tree, constants = _parse(script)
    flags = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            long = [name[2:].replace("-", "_") for name in names if name.startswith("--")]
            hidden = any(getattr(k.value, "attr", "") == "SUPPRESS" for k in node.keywords if k.arg == "help")
            if long and not hidden:
                flags[long[0]] = _read_flag(long[0], {k.arg: k.value for k in node.keywords if k.arg}, constants)
    return flags or None


def _parse(script: Path) -> tuple[ast.Module, dict[str, Any]]:
    """The source of a script, and the constants that it sets; nothing of a file that is missing or no Python."""
    try:
        tree = ast.parse(script.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, SyntaxError):
        tree = ast.Module([], [])
    constants: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            with contextlib.suppress(ValueError):
                constants[node.targets[0].id] = ast.literal_eval(node.value)
    return tree, constants


def _read_flag(name: str, keywords: dict[str, ast.expr], constants: dict[str, Any]) -> Flag:
    def literal(key: str) -> Any:
        value = keywords.get(key)
        if isinstance(value, ast.Name):
            return constants.get(value.id)
        try:
            return ast.literal_eval(value) if value is not None else None
        except ValueError:
            return None

    action = keywords.get("action")
    action_name = action.value if isinstance(action, ast.Constant) else getattr(action, "attr", "") if action else ""
    choices = literal("choices")
    default = literal("default")
    typed = getattr(keywords.get("type"), "id", "")
    if action_name in ("store_true", "BooleanOptionalAction"):
        kind = "bool"
    elif choices:
        kind = "choice"
    elif typed in ("int", "float"):
        kind = typed
    else:
        kind = "float" if isinstance(default, (int, float)) and not isinstance(default, bool) else "text"
    text = None
    if kind == "bool":
        text = "true" if default is True else "false"
    elif default is not None or "default" not in keywords or isinstance(keywords["default"], ast.Constant):
        text = "" if default is None else str(default)
    help_text = literal("help")
    if help_text is None and isinstance(keywords.get("help"), ast.JoinedStr):
        help_text = "".join(str(v.value) for v in keywords["help"].values if isinstance(v, ast.Constant))
    listed = tuple(str(choice) for choice in choices) if choices else ()
    return Flag(name, kind, text, listed, " ".join(str(help_text or "").split()), str(action_name))


def form_fields(step: Step, flags: dict[str, Flag] | None) -> list[Field]:
    """The settings to show: those of the table that the script knows, then the script's others under "advanced"."""
    if flags is None:
        return list(step.fields)
    shown = []
    for row in step.fields:
        if row.flag not in flags:
            continue
        known = flags[row.flag]
        changes: dict[str, Any] = {}
        if known.choices and row.kind in ("choice", "combo"):
            changes["choices"] = known.choices
            changes["default"] = row.default if row.default in known.choices else known.default or known.choices[0]
        elif not row.basic and known.default and "{" not in row.default and row.kind != "bool":
            # What the script does when the flag is not given is what the form has to say.
            same = known.default == row.default or _as_number(known.default) == _as_number(row.default)
            changes["default"] = row.default if same else known.default
        shown.append(replace(row, **changes, script_default=known.default))
    filled = {*step.filled, *dict(step.paths), "checkpoint_dir", "help", "version"}
    table = {row.flag for row in step.fields} | filled
    for flag in flags.values():
        if flag.name not in table:
            default = flag.default or ("false" if flag.kind == "bool" else "")
            kind = "combo" if flag.kind == "choice" and not default else flag.kind
            label, text = (flag.name, flag.name), (flag.help, flag.help)
            shown.append(Field(flag.name, kind, default, flag.choices, None, None, False, label, text, flag.default))
    return shown


def _as_number(text: str) -> float:
    """NaN for what is no number: it equals nothing, and is neither larger nor smaller than anything."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def shown_path(path: Path, program: Path) -> str:
    """Relative to the program's folder, where scripts run, when it lies in there: short, and it can be moved."""
    try:
        return path.relative_to(program).as_posix()
    except ValueError:
        return str(path)


LORA_FOLDER = re.compile(r"epoch=(\d+)-step=(\d+)_lora$")
LORA_FILE = "pytorch_lora_weights.safetensors"


def list_loras(folder: Path) -> list[Path]:
    """The complete LoRA folders of a training, oldest first by step; temporary names are not taken."""
    try:
        found = [p for p in folder.iterdir() if p.name.endswith("_lora") and not p.name.startswith(".")]
    except OSError:
        return []
    found = [path for path in found if is_file(path / LORA_FILE)]

    return sorted(found, key=lambda path: (lora_step(path) or 0, (path / LORA_FILE).stat().st_mtime))


def lora_step(path: Path) -> int | None:
    match = LORA_FOLDER.search(path.name)
    return int(match.group(2)) if match else None


# What a training that is gone on with may only change when the user says so.
LEARNING_FLAGS = (
    "batch_size", "tag_dropout", "learning_rate", "max_steps", "warmup_steps", "accumulate_grad_batches", "lr_schedule",
    "speaker_dropout", "lyrics_dropout", "seed", "max_seconds",
)  # fmt: skip


@dataclass
class Workspace:
    """A project together with the program's folder: every path and command line follows from it."""

    project: Project
    settings: Settings
    program: Path
    flags: dict[str, dict[str, Flag] | None] = field(default_factory=dict)  # script -> its flags

    def known(self, step: str) -> dict[str, Flag] | None:
        """The flags of a step's script; None when it cannot be read."""
        return self.flags.get(STEP[step].script)

    def knows(self, step: str, flag: str) -> bool:
        flags = self.known(step)
        return flags is None or flag in flags

    def fields(self, step: str) -> list[Field]:
        fields = form_fields(STEP[step], self.known(step))
        own_script = is_file(self.program / LLAMACPP_SCRIPT)
        if step in ("prompts", "lyrics") and own_script and not self.knows(step, "backend"):
            # The fork has its llama.cpp captioner as a script of its own.
            fields.insert(0, replace(CAPTION_FIELDS[0], default="qwen", choices=("qwen", "llamacpp")))
        found = {"lora_config_path": self._configs, "input_name": self._lora_files}
        return [replace(row, choices=found[row.flag]()) if row.flag in found else row for row in fields]

    def _configs(self) -> tuple[str, ...]:
        folder = self.program / "config"
        return tuple(shown_path(path, self.program) for path in sorted(folder.glob("*.json")))

    def _lora_files(self) -> tuple[str, ...]:
        return tuple(shown_path(path / LORA_FILE, self.program) for path in reversed(self.loras()))

    def value(self, step: str, row: Field) -> str:
        return self.project.value(STEP[step].values, row.flag, self.default(row))

    def value_of(self, step: str, flag: str, otherwise: str = "") -> str:
        """The value of a setting by its flag; `otherwise` when the script has no such flag."""
        return next((self.value(step, row) for row in self.fields(step) if row.flag == flag), otherwise)

    def default(self, row: Field) -> str:
        """A field's default with `{name}`, `{lora}` and `{step}` filled in."""
        if "{" not in row.default:
            return row.default
        lora = self._chosen_lora() if row.flag in ("output_name", "lora_config_path") else None
        loras = self.loras()
        lora = lora or (loras[-1] if loras else None)
        number = lora_step(lora) if lora else None
        return row.default.format(
            name=self.project.name or "lora",
            config=self._config_of(lora),
            lora=shown_path(lora / LORA_FILE, self.program) if lora else "",
            step=f"step{number}" if number is not None else "last",
        )

    def _chosen_lora(self) -> Path | None:
        """The folder of the LoRA that the user chose for the last step, when it is not simply the latest."""
        text = self.project.value("strength", "input_name", "").strip()
        return (self.program / text).parent if text else None

    def _config_of(self, lora: Path | None) -> str:
        """What the trainer saved beside the LoRA, which is right even after a change of settings; else the setting."""
        for name in ("lora_config.json", "adapter_config.json"):  # the second: earlier versions
            if lora and (lora / name).is_file():
                return shown_path(lora / name, self.program)
        return Path(self.value_of("train", "lora_config_path", "config/lora_config_transformer_only.json")).as_posix()

    def problems(self, step: str) -> dict[str, tuple[str, dict[str, str]]]:
        """Every wrong value of a step's form, by flag."""
        found = {}
        for row in self.fields(step):
            problem = row.problem(self.value(step, row), self.program)
            if problem:
                found[row.flag] = problem
        return found

    def script(self, step: str) -> Path:
        """Its script; the fork has its llama.cpp captioner as a script of its own."""
        own = not self.knows(step, "backend") and self.value_of(step, "backend") == "llamacpp"
        return self.program / (LLAMACPP_SCRIPT if own else STEP[step].script)

    def arguments(self, step: str, only: Iterable[str] = (), resume: bool = False, trial: bool = False) -> list[str]:
        """The command line of a step, after the script's name."""
        filled = self._filled_flags(step)
        script_is_other = self.script(step).name != STEP[step].script
        for row in self.fields(step):
            known = None if script_is_other else (self.known(step) or {}).get(row.flag)
            if row.flag in ("backend", "model", "quantization") and (script_is_other or not self.knows(step, row.flag)):
                continue
            if resume and row.flag == "last_lora_path":  # the resumed training brings its own weights
                continue
            text = self.value(step, row).strip()
            if row.kind == "bool":
                if text == "true":
                    filled.append(f"--{row.flag}")
                elif known and known.action == "BooleanOptionalAction" and known.default == "true":
                    filled.append(f"--no-{row.flag}")
            elif row.basic or "{" in row.default or (text and not self._same(text, row)):
                filled += [f"--{row.flag}", text]
        if self.settings.checkpoint_dir and step != "strength" and "checkpoint_dir" in (self.known(step) or {}):
            filled += ["--checkpoint_dir", self.settings.checkpoint_dir]
        if only and self.knows(step, "only"):
            filled += ["--only", *only]
        if resume:
            filled.append("--resume")
        if trial:
            filled.append("--trial")
        return filled

    def _filled_flags(self, step: str) -> list[str]:
        words = []
        for flag, place in STEP[step].paths:
            words += [f"--{flag}", shown_path(getattr(self.project, place), self.program)]
        if step == "strength" and self.plays_everywhere():
            words += ["--for", "all"]
        return [*words, "--lyrics"] if step == "lyrics" else words

    def plays_everywhere(self) -> bool:
        """Whether the script of the last step can write one file for all clients; a fork's cannot."""
        return "for" in (self.known("strength") or {})

    def changed_settings(self) -> dict[Field, str]:
        """Settings that are others than those that the newest LoRA was trained with, and what they were."""
        before: Any = None
        with contextlib.suppress(OSError, ValueError, IndexError):
            before = read_json(self.loras()[-1] / "training_state.json").get("settings")
        if not isinstance(before, dict):
            return {}
        rows = [row for row in self.fields("train") if row.flag in LEARNING_FLAGS and before.get(row.flag) is not None]
        stored = {row: str(before[row.flag]) for row in rows}
        return {row: old for row, old in stored.items() if not self._equal(self.value("train", row).strip(), old)}

    @staticmethod
    def _equal(text: str, other: str) -> bool:
        return text == other or _as_number(text) == _as_number(other)

    @staticmethod
    def _same(text: str, row: Field) -> bool:
        """Whether the script would take `text` anyway."""
        default = row.default if row.script_default is None else row.script_default
        return Workspace._equal(text, default)

    def checkpoints(self) -> Path:
        return self.program / self.value_of("train", "output_dir", "checkpoints")

    def loras(self) -> list[Path]:
        return list_loras(self.checkpoints())

    def foreign_owner(self) -> str:
        """The project whose training fills the checkpoints folder, when it is another one; else ''."""
        owner = ""
        with contextlib.suppress(OSError, ValueError):
            owner = read_json(self.checkpoints() / OWNER_FILE).get("home", "")
        mine = not isinstance(owner, str) or not owner or self.project.home in (None, Path(owner))
        return "" if mine else plain(Path(owner).name)

    def claim_checkpoints(self) -> None:
        self.checkpoints().mkdir(parents=True, exist_ok=True)
        write_json(self.checkpoints() / OWNER_FILE, {"home": str(self.project.home)})

    def can_resume(self) -> bool:
        # Older checkpoints are reduced to their LoRA: without the tensors nothing goes on from them.
        return "resume" in (self.known("train") or {}) and any(
            (lora / "training_state.safetensors").is_file() for lora in self.loras()
        )

    def move_checkpoints(self) -> Path:
        folder = self.checkpoints()
        target = unique_path(folder.with_name(f"{folder.name}_{stamp()}"))
        os.replace(folder, target)
        return target

    def log_folder(self) -> Path:
        """Where the trainer writes its figures: what TensorBoard and the loss curve read."""
        return self.program / self.value_of("train", "log_dir", LOGS_FOLDER)

    def lora_output(self) -> Path | None:
        text = self.value_of("strength", "output_name").strip()
        return self.program / text if text else None

    def stop_file(self, step: str) -> Path | None:
        """What asks the trainer to save and end; the fork's trainer knows no such file."""
        return self.checkpoints() / "STOP" if step == "train" and "resume" in (self.known(step) or {}) else None


@dataclass(frozen=True)
class StepState:
    """locked: an earlier step is missing; ready; done; stale: done, but what it read has changed since."""

    status: str
    reason: str = ""  # text key
    fields: dict[str, Any] = field(default_factory=dict)


def examine(space: Workspace, songs: list[Song]) -> dict[str, StepState]:
    """The state of every step from what stands on disk, in order: one that is not done locks the later ones.

    The last step needs a trained LoRA alone: a song that is new or bad must not lock a finished training.
    """
    states: dict[str, StepState] = {}
    locked: StepState | None = None
    checks = {
        "songs": lambda: (
            StepState("done", "songs.done", {"count": len(songs)}) if songs else StepState("ready", "songs.none")
        ),
        "prompts": lambda: _texts_state(songs, "prompt"),
        "lyrics": lambda: _texts_state(songs, "lyrics"),
        "dataset": lambda: _dataset_state(space, songs),
        "prep": lambda: _prep_state(space, songs, states),
        "train": lambda: _train_state(space, states),
        "strength": lambda: _strength_state(space, states),
    }
    for step in STEPS:
        if step.key == "strength" and space.loras() and not space.foreign_owner():
            locked = None
        states[step.key] = state = locked or checks[step.key]()
        if state.status == "ready":
            locked = StepState("locked", "locked", {"number": step.number, "why": state})
    return states


def _names(stems: list[str]) -> str:
    return ", ".join(plain(stem, MAX_NAME) for stem in stems[:3]) + (" …" if len(stems) > 3 else "")


def _texts_state(songs: list[Song], kind: str) -> StepState:
    without = [song for song in songs if getattr(song, kind) in ("missing", "empty", "unusable")]
    unusable = [song for song in without if song.problem not in ("", "long")]
    if not without:
        return StepState("done", f"{kind}.done", {"count": len(songs)})
    fields = {"count": len(unusable or without), "songs": _names([song.stem for song in unusable or without])}
    return StepState("ready", "texts.unusable" if unusable else f"{kind}.missing", fields)


def _dataset_files(folder: Path) -> list[Path]:
    """The files of a saved `datasets` folder; [] when it is not a complete one."""
    try:
        files = [path for path in folder.rglob("*") if path.is_file()]
    except OSError:
        return []
    names = {path.name for path in files}
    complete = ("state.json" in names or "dataset_dict.json" in names) and any(p.suffix == ".arrow" for p in files)
    return files if complete else []


def _receipt_inputs(space: Workspace, step: str, output_time: float) -> dict[str, list[str]] | None:
    """What the step's last run in this window read; None when none is known, or it ran elsewhere since."""
    receipt = space.project.receipts.get(step)
    if not receipt or output_time > float(receipt.get("finished", 0)) + 2:
        return None
    return receipt.get("inputs")


def _dataset_state(space: Workspace, songs: list[Song]) -> StepState:
    files = _dataset_files(space.project.dataset)
    if not files:
        return StepState("ready", "dataset.missing", {"folder": space.project.dataset.name})
    made = newest(files)
    before = _receipt_inputs(space, "dataset", made)
    if before is not None:
        difference = compare_fingerprints(before, fingerprint(songs))
        if difference:
            return StepState("stale", *difference)
    else:
        for song in songs:
            for key in ("audio", "prompt", "lyrics"):
                if key in song.stats and song.stats[key][1] / 1e9 > made:
                    return StepState("stale", f"stale.{key}", {"song": song.stem})
    return StepState("done", "dataset.done", {"folder": space.project.dataset.name})


def _prep_state(space: Workspace, songs: list[Song], states: dict[str, StepState]) -> StepState:
    without = [song.stem for song in songs if song.record == "missing"]
    if without:
        key = "prep.none" if len(without) == len(songs) else "prep.missing"
        return StepState("ready", key, {"count": len(without), "songs": _names(without)})
    if states["dataset"].status == "stale":
        return StepState("stale", "stale.before", {"number": 4})
    orphans = orphan_records(space.project, songs)
    if orphans:
        return StepState("stale", "stale.orphans", {"songs": _names([path.stem for path in orphans])})
    stats = [song.record_stat for song in songs if song.record_stat]
    made = max(stat[1] for stat in stats) / 1e9
    before = _receipt_inputs(space, "prep", made)
    if before is not None:
        difference = compare_fingerprints(before, fingerprint(songs))
        if difference:
            return StepState("stale", *difference)
    else:
        old = [song.stem for song in songs if song.record == "old"]
        if old:
            return StepState("stale", "stale.record", {"song": old[0]})
    size = sum(stat[0] for stat in stats)
    return StepState("done", "prep.done", {"count": len(songs), "size": human_bytes(size)})


def _train_state(space: Workspace, states: dict[str, StepState]) -> StepState:
    loras = space.loras()
    if not loras:
        return StepState("ready", "train.none")
    foreign = space.foreign_owner()
    if foreign:
        return StepState("ready", "train.foreign", {"owner": foreign})
    if states["prep"].status == "stale":
        return StepState("stale", "stale.before", {"number": 5})
    trained = (loras[-1] / LORA_FILE).stat().st_mtime
    receipt = space.project.receipts.get("train", {})
    inputs = receipt.get("inputs")
    prep_inputs = space.project.receipts.get("prep", {}).get("inputs")
    if inputs is not None and prep_inputs is not None and trained <= float(receipt.get("finished", 0)) + 2:
        difference = compare_fingerprints(inputs, prep_inputs)
        if difference:
            return StepState("stale", *difference)
    elif newest(space.project.records.iterdir()) > trained:
        return StepState("stale", "stale.records")
    size = sum(stat[0] for lora in loras for stat in list_files(lora).values())
    fields = {"count": len(loras), "lora": loras[-1].name, "size": human_bytes(size)}
    step, wanted = lora_step(loras[-1]), _as_number(space.value_of("train", "max_steps"))
    if step is not None and step < wanted and space.value_of("train", "epochs", "-1") == "-1":
        return StepState("done", "train.partly", {**fields, "step": step, "wanted": int(wanted)})
    return StepState("done", "train.done", fields)


def _strength_state(space: Workspace, states: dict[str, StepState]) -> StepState:
    output = space.lora_output()
    receipt = space.project.receipts.get("strength", {})
    earlier = space.program / receipt["output"] if receipt.get("output") else None
    loras = space.loras()
    if output is None or not is_file(output):
        if earlier and is_file(earlier) and loras:
            return StepState("stale", "stale.lora", {"lora": loras[-1].name})
        return StepState("ready", "strength.none")
    if states["train"].status == "stale":
        return StepState("stale", "stale.before", {"number": 6})
    if loras and (loras[-1] / LORA_FILE).stat().st_mtime > output.stat().st_mtime:
        return StepState("stale", "stale.lora", {"lora": loras[-1].name})
    key = "strength.done_all" if space.plays_everywhere() else "strength.done"
    return StepState("done", key, {"file": shown_path(output, space.program)})


def remaining_steps(states: dict[str, StepState]) -> list[str]:
    """What is left to run, in order. What was made from something out of date is made again as well."""
    stale = next((step.number for step in STEPS if states[step.key].status == "stale"), len(STEPS) + 1)
    return [step.key for step in STEPS[1:] if step.number >= stale or states[step.key].status != "done"]


def take_receipt(space: Workspace, step: str, songs: list[Song]) -> dict[str, Any]:
    """What a step reads as it starts; stored when it ends well, so that later changes can be seen."""
    if step == "strength":
        output = space.lora_output()
        return {"output": shown_path(output, space.program) if output else ""}
    if step in ("prep", "train"):
        # They read the step before, not the songs: what that one read is what is in there.
        before = space.project.receipts.get("dataset" if step == "prep" else "prep", {}).get("inputs")
        if before is not None:
            return {"inputs": before}
    return {"inputs": fingerprint(songs)}


def training_hints(values: dict[str, str]) -> list[str]:
    """Text keys of warnings about the optimizer (they do not block)."""
    flags = ("learning_rate", "max_steps", "beta2", "save_every_n_train_steps")
    rate, steps, beta2, save = (_as_number(values.get(flag, "0.99" if flag == "beta2" else "")) for flag in flags)
    prodigy = values.get("optimizer", "adamw").lower().startswith("prodigy")
    hints = {
        "hint.prodigy_rate": prodigy and rate < 0.1,
        "hint.high_rate": not prodigy and rate > 0.01,
        "hint.beta2": steps and 1 - beta2 < 1 / steps,
        "hint.save": steps and save > steps,
    }
    return [key for key, holds in hints.items() if holds]


# Which savings a card of so many GB needs for a song of four minutes; only flags that the trainer knows are set.
PRESETS: dict[str, dict[str, str]] = {
    "8 GB": {"base_precision": "int8", "checkpointing": "all", "optimizer": "adamw8bit", "precision": "bf16-mixed"},
    "12 GB": {"base_precision": "bf16", "checkpointing": "all", "precision": "bf16-mixed"},
    "16 GB": {"base_precision": "bf16", "checkpointing": "auto", "precision": "bf16-mixed"},
    "24 GB": {"base_precision": "bf16", "checkpointing": "none", "precision": "bf16-mixed"},
}


# --- 6. Environment ---------------------------------------------------------------------------------------------------


def python_candidates(settings: Settings, program: Path) -> list[tuple[str, Path]]:
    """(where it was found, path) of every Python that could run the scripts, best first."""
    inner = ("Scripts/python.exe", "python.exe") if WINDOWS else ("bin/python3", "bin/python")
    found: list[tuple[str, Path]] = []
    if settings.python:
        chosen = program / Path(settings.python).expanduser()  # also an environment's folder
        found += [("setting", path) for path in (chosen, *(chosen / name for name in inner))]
    for folder in (".venv", "venv", "python"):
        found += [(folder, program / folder / name) for name in inner]
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if os.environ.get(variable):
            found += [(variable, Path(os.environ[variable]) / name) for name in inner]
    if not FROZEN and sys.executable:
        # pythonw.exe has no output to show.
        own = Path(sys.executable)
        console = own.with_name("python.exe")
        found.append(("running", console if own.name.lower() == "pythonw.exe" and console.exists() else own))
    for name in ("python3", "python"):
        path = shutil.which(name)
        # The Microsoft Store's stand-in only opens the store.
        if path and "WindowsApps" not in path:
            found.append(("PATH", Path(path)))
    usable, seen = [], set()
    for where, path in found:
        if path not in seen and is_file(path) and not (FROZEN and path.samefile(sys.executable)):
            seen.add(path)
            usable.append((where, path))
    return usable


def find_python(settings: Settings, program: Path) -> Path | None:
    candidates = python_candidates(settings, program)
    return candidates[0][1] if candidates else None


PACKAGES = (
    "torch", "lightning", "peft", "transformers", "datasets", "diffusers", "soundfile", "av", "tensorboard",
    "safetensors", "bitsandbytes", "gptqmodel", "pypinyin", "prodigyopt", "wandb",
)  # fmt: skip
REQUIRED_PACKAGES = ("torch", "lightning", "peft", "transformers", "datasets", "soundfile")

ENVIRONMENT_CODE = """
import importlib.metadata, json, platform, sys
report = {"python": platform.python_version(), "bits": 64 if sys.maxsize > 2**32 else 32, "packages": {}}
for name in sys.argv[1:]:
    try:
        report["packages"][name] = importlib.metadata.version(name)
    except Exception:
        report["packages"][name] = ""
try:
    import torch
    report["torch"] = torch.__version__
    report["cuda_build"] = torch.version.cuda or ""
    report["mps"] = bool(getattr(torch.backends, "mps", None) and torch.backends.mps.is_available())
    report["cards"] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            report["cards"].append({"name": card.name, "gb": total / 1e9, "free_gb": free / 1e9,
                                    "bf16": card.major >= 8, "capability": "%d.%d" % (card.major, card.minor)})
except Exception as error:
    report["torch_error"] = str(error)[:500]
print("REPORT " + json.dumps(report))
"""


def query_python(python: Path, environment: dict[str, str], program: Path) -> dict[str, Any]:
    """Ask the scripts' Python what it has; {"error": …} when it cannot answer. Takes seconds: worker thread only."""
    try:
        result = subprocess.run(
            [str(python), "-c", ENVIRONMENT_CODE, *PACKAGES], stdin=subprocess.DEVNULL, capture_output=True,
            timeout=180, env=environment, cwd=program, **quiet_process(),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    for line in result.stdout.decode("utf-8", errors="replace").splitlines():
        if line.startswith("REPORT "):
            with contextlib.suppress(ValueError):
                return json.loads(line[7:])
    return {"error": result.stderr.decode("utf-8", errors="replace").strip()[-500:] or f"exit {result.returncode}"}


# part -> (folder in the published layout, the hub's name when it is a repository of its own, GB to download)
BASE_WEIGHTS: dict[str, tuple[str, str, float]] = {
    "transformer": ("ace_step_transformer", "", 6.6),
    "dcae": ("music_dcae_f8c8", "", 0.3),
    "vocoder": ("music_vocoder", "", 0.2),
    "text_encoder": ("umt5-base", "", 1.1),
    "mert": ("MERT-v1-330M", "m-a-p/MERT-v1-330M", 1.3),
    "mhubert": ("mHuBERT-147", "utter-project/mHuBERT-147", 0.4),
}
ACE_STEP_HUB = "ACE-Step/ACE-Step-v1-3.5B"


def weights_folders(settings: Settings, program: Path) -> list[Path]:
    home = Path(settings.cache or os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    chosen = [program / Path(settings.checkpoint_dir).expanduser()] if settings.checkpoint_dir else []
    return [*chosen, Path.home() / ".cache" / "ace-step" / "checkpoints", home / "hub"]


def find_weights(settings: Settings, program: Path) -> dict[str, tuple[Path | None, float]]:
    """part -> (folder or None, bytes on disk), in a plain folder or a hub cache."""
    found: dict[str, tuple[Path | None, float]] = {}
    for part, (folder, hub, _) in BASE_WEIGHTS.items():
        candidates = []
        for root in weights_folders(settings, program):
            candidates.append(root / folder)
            cached = root / f"models--{(hub or ACE_STEP_HUB).replace('/', '--')}" / "snapshots"
            if is_folder(cached):
                with contextlib.suppress(OSError):
                    candidates += [one if hub else one / folder for one in sorted(cached.iterdir())]
        found[part] = (None, 0.0)
        for candidate in candidates:
            size = sum(
                path.stat().st_size
                for path in (candidate.rglob("*") if is_folder(candidate) else ())
                if path.suffix in (".safetensors", ".bin", ".pt", ".pth") and is_file(path)
            )
            if size:
                found[part] = (candidate, size)
                break
    return found


def disk_estimate(space: Workspace, songs: list[Song]) -> float:
    """Bytes that preprocessing and training of this library will still take, at most."""
    seconds = sum(song.seconds if song.seconds else 240.0 for song in songs if song.record != "ok")
    kept = _as_number(space.value_of("train", "save_last", "5"))
    return seconds * PREP_BYTES_PER_SECOND + (kept if kept > 0 else 20) * CHECKPOINT_BYTES


def read_groups(start: Path) -> dict[str, str]:
    """The optional groups of packages that `start.py install GROUP` knows, read from its source."""
    groups = _parse(start)[1].get("GROUPS")
    # Another program's start.py has nothing to offer.
    return {str(name): str(what) for name, what in groups.items()} if isinstance(groups, dict) else {}


def free_bytes(folder: Path) -> float:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)


@dataclass(frozen=True)
class Finding:
    """One line of the environment page. `mend` names what the page's button does."""

    level: str  # ok, warn, bad, info
    key: str
    fields: dict[str, Any] = field(default_factory=dict)
    mend: str = ""

    def say(self, language: str) -> str:
        fields = dict(self.fields)
        if "where" in fields:
            fields["where"] = text_or(language, f"where.{fields['where']}", str(fields["where"]))
        return say(language, self.key, fields)


def judge_environment(
    space: Workspace, songs: list[Song], python: tuple[str, Path] | None, report: dict[str, Any] | None
) -> Iterator[Finding]:
    """Everything that the scripts need, and what is wrong with it. `report` is None while it is being asked."""
    if python is None:
        yield Finding("bad", "env.no_python", {}, "python")
    else:
        yield Finding("ok", "env.python", {"path": python[1], "where": python[0]}, "python")
        if space.settings.python and python[0] != "setting":
            yield Finding("warn", "env.python_setting", {"path": space.settings.python}, "python")
        yield from _judge_report(report)
    missing = ", ".join(script for script in SCRIPTS if not (space.program / script).is_file())
    if missing:
        yield Finding("bad", "env.script", {"script": missing, "folder": space.program}, "program")
    else:
        yield Finding("ok", "env.scripts", {"folder": space.program})
    try:
        free, need = free_bytes(space.project.home or space.program), disk_estimate(space, songs)
        fields = {"free": human_bytes(free), "need": human_bytes(need)}
        yield Finding("bad", "env.disk_short", fields) if free < need else Finding("ok", "env.disk", fields)
    except OSError as error:
        yield Finding("warn", "env.disk_unknown", {"error": error})
    yield _judge_weights(space)
    if not _pinyin("中"):
        yield Finding("warn", "env.pypinyin", {}, "pypinyin")


def _judge_report(report: dict[str, Any] | None) -> Iterator[Finding]:
    if report is None:
        yield Finding("info", "env.asking")
        return
    if "error" in report:
        yield Finding("bad", "env.python_broken", {"error": report["error"]}, "python")
        return
    if report.get("bits") == 32:
        yield Finding("bad", "env.bits", {}, "python")
    if tuple(int(part) for part in report["python"].split(".")[:2]) < (3, 10):
        yield Finding("bad", "env.python_old", {"version": report["python"]}, "python")
    else:
        yield Finding("ok", "env.python_version", {"version": report["python"]})
    if "torch" not in report:
        error = report.get("torch_error", "")
        key = "env.no_torch" if "No module named" in error or not error else "env.torch_broken"
        yield Finding("bad", key, {"error": error}, "install")
    else:
        yield from _judge_cards(report)
    packages = {name: report["packages"].get(name) for name in REQUIRED_PACKAGES[1:]}
    missing = ", ".join(name for name, version in packages.items() if not version)
    if missing:
        yield Finding("bad", "env.packages", {"names": missing}, "install")
    else:
        known = ", ".join(f"{name} {version}" for name, version in packages.items())
        yield Finding("ok", "env.packages_ok", {"names": known})
    if not report["packages"].get("tensorboard"):
        yield Finding("warn", "env.tensorboard", {}, "tensorboard")


def _judge_cards(report: dict[str, Any]) -> Iterator[Finding]:
    yield Finding("ok", "env.torch", {"version": report["torch"], "cuda": report["cuda_build"] or "-"})
    for card in report.get("cards", []):
        fields = {"name": card["name"], "gb": f"{card['gb']:.1f}", "free": f"{card['free_gb']:.1f}"}
        yield Finding("ok" if card["gb"] >= 7.5 else "warn", "env.card", fields)
        yield Finding("ok", "env.bf16") if card["bf16"] else Finding("warn", "env.no_bf16")
    if not report.get("cards"):
        if report.get("mps"):
            yield Finding("warn", "env.mps")
        elif not report["cuda_build"] and shutil.which("nvidia-smi"):
            yield Finding("bad", "env.cpu_torch", {}, "install")
        else:
            yield Finding("warn", "env.no_card")


def _judge_weights(space: Workspace) -> Finding:
    weights = find_weights(space.settings, space.program)
    missing = [part for part, (path, _) in weights.items() if path is None]
    if not missing:
        total = sum(size for _, size in weights.values())
        folder = next(iter(weights.values()))[0]
        return Finding("ok", "env.weights", {"size": human_bytes(total), "folder": folder.parent if folder else ""})
    size = sum(BASE_WEIGHTS[part][2] for part in missing)
    source = space.settings.endpoint or os.environ.get("HF_ENDPOINT") or MIRRORS[0]
    fields = {"parts": ", ".join(missing), "size": f"{size:.1f} GB", "source": source}
    if space.settings.offline:
        return Finding("bad", "env.weights_offline", fields, "source")
    return Finding("warn", "env.weights_missing", fields, "weights" if can_download(space.program) else "source")


def can_download(program: Path) -> bool:
    return is_file(program / "ace_lora" / "base_weights" / "__main__.py")


def report_text(findings: list[Finding], language: str) -> str:
    marks = {"ok": "[ok]  ", "warn": "[!]   ", "bad": "[X]   ", "info": "[..]  "}
    lines = [marks[finding.level] + finding.say(language) for finding in findings]
    return "\n".join([f"{PROGRAM_NAME} {VERSION} · {sys.platform}", *lines])


# --- 7. Log text ------------------------------------------------------------------------------------------------------

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_SECOND_BAR = re.compile(r"\n\r?([^\n\x1b]*)\x1b\[A")


class LogText:
    """A child's bytes as finished lines and a current line that `\\r` overwrites. Any thread may call it.

    Only what the pane can show is kept: at 100,000 lines a second the window takes what it can draw, and memory stays
    the same. `skipped` lines are in the log file alone. Known errors are looked for in everything.
    """

    def __init__(self, keep: int = MAX_LOG_LINES):
        self._feeding = threading.Lock()  # held while a chunk is worked through; `take` never waits for it
        self._lock = threading.Lock()  # of what `take` reads
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._lines: deque[str] = deque(maxlen=keep)
        self._keep = keep
        self._skipped = 0
        self._current = ""
        self._shown = ""  # `_current` as the last whole chunk left it
        self._held = ""  # a `\r` or an unfinished escape at the end of a chunk: its meaning comes with the next
        self.total = 0
        self.errors: list[tuple[str, dict[str, str]]] = []

    def feed(self, data: bytes, final: bool = False) -> None:
        with self._feeding:
            finished = self._finished_by(data, final)
            # Looked through before `take` is locked out: on a busy computer the window waited 0.3 s for that.
            if finished:
                found = recognise_errors("\n".join(finished))
                self.errors += [error for error in found if error not in self.errors]
            with self._lock:
                self.total += len(finished)
                self._skipped += max(0, len(self._lines) + len(finished) - self._keep)
                self._lines.extend(finished[-self._keep :])
                self._shown = self._current

    def _finished_by(self, data: bytes, final: bool) -> list[str]:
        """The lines that `data` finishes; what is left is held for the next chunk."""
        text = self._held + self._decoder.decode(data, final)
        self._held = ""
        if not final and text:
            held = re.search(r"(?:\r+|\x1b[^@-~\x07]{0,40}|\x1b\[[0-?]*)$", text)
            if held:
                text, self._held = text[: held.start()], held.group()
        if "\x1b" in text:
            # tqdm draws a second bar below the first and goes up again; both share the current line here.
            text = _ESCAPES.sub("", _SECOND_BAR.sub(r"\r\1", text))
        if "\r\n" in text:
            text = re.sub(r"\r+\n", "\n", text)
        finished = self._add(text)
        if final and self._current:
            finished.append(self._current)
            self._current = ""
        return finished

    def _add(self, text: str) -> list[str]:
        """The lines that `text` finishes; what follows the last one becomes the current line."""
        first, *rest = text.split("\n")
        if "\r" in text:
            first, rest = self._overwrite(self._current, first), [self._overwrite("", line) for line in rest]
        else:
            first = self._current + first
        # A program that never ends its line must not fill memory.
        self._current = (rest[-1] if rest else first)[-100_000:]
        return [first, *rest[:-1]] if rest else []

    @staticmethod
    def _overwrite(current: str, text: str) -> str:
        parts = (current + text).split("\r")
        return next((part for part in reversed(parts) if part.strip()), "").rstrip() if len(parts) > 1 else parts[0]

    def take(self, most: int) -> tuple[int, list[str], str]:
        """(lines skipped since the last call, at most `most` finished lines, the current line)."""
        with self._lock:
            skipped, self._skipped = self._skipped, 0
            lines = [self._lines.popleft() for _ in range(min(most, len(self._lines)))]
            return skipped, lines, self._shown

    @property
    def waiting(self) -> int:
        return len(self._lines)


@dataclass(frozen=True)
class Progress:
    done: int
    total: int
    unit: str  # step, song or bar
    label: str = ""
    rate: float | None = None  # items per second
    left: float | None = None  # seconds
    loss: float | None = None
    learning_rate: float | None = None
    failed: bool = False


_STEP_LINE = re.compile(r"\bstep (\d+)/(\d+)\b")
_SONG_LINE = re.compile(r"\bsong (\d+)/(\d+) \| (.*?) \| (.*)")
_BAR = re.compile(
    r"(?P<label>[^|\r\n]*?):?\s*\d+%\|[^|]*\|\s*(?P<done>[\d.]+)(?P<done_unit>[kMGT]?)i?B?"
    r"/(?P<total>[\d.]+)(?P<total_unit>[kMGT]?)i?B?\s*\[[\d:]+<[\d:?]+"
)
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_PLAIN_FIGURES = {
    "loss": re.compile(r"\bloss(?:\s*=\s*|\s+)" + _NUMBER),
    "learning_rate": re.compile(r"\b(?:lr|learning_rate)(?:\s*=\s*|\s+)" + _NUMBER),
}
_RATE = re.compile(_NUMBER + r"\s*(it/s|s/it)")
_LEFT = re.compile(r"(?:\bleft |\[[\d:]+<)([\d:]+)")


def _figures(line: str) -> dict[str, float]:
    """What stands in a line: loss and learning_rate, rate in items per second, left in seconds."""
    found = {name: float(m[1]) for name, pattern in _PLAIN_FIGURES.items() if (m := pattern.search(line))}
    if (match := _RATE.search(line)) and (value := float(match[1])):
        found["rate"] = value if match[2] == "it/s" else 1 / value
    if match := _LEFT.search(line):
        found["left"] = 0.0
        for part in match[1].split(":"):
            found["left"] = found["left"] * 60 + int(part or 0)
    return found


def parse_progress(line: str) -> Progress | None:
    """The progress that a line reports: the trainer's `step` lines, `song` lines, or a tqdm bar."""
    if match := _STEP_LINE.search(line):
        return Progress(int(match[1]), int(match[2]), "step", **_figures(line))
    if match := _SONG_LINE.search(line):
        done, total, name, outcome = match.groups()
        return Progress(int(done), int(total), "song", label=name, failed=outcome.startswith("failed"))
    if "%|" in line and (match := _BAR.search(line)):
        factor = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
        done, total = (int(float(match[part]) * factor[match[f"{part}_unit"]]) for part in ("done", "total"))
        if total > 0:
            progress = Progress(done, total, "bar", label=match["label"].strip(), **_figures(line))
            return replace(progress, rate=None) if match["done_unit"] else progress  # bytes, not steps
    return None


# (text key, what must stand in the lower-cased line). The first row that fits a line explains it.
KNOWN_ERRORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("err.paging", ("winerror 1455", "paging file is too small", "页面文件太小")),
    ("err.cuda_memory", ("cuda out of memory", "cuda error: out of memory", "outofmemoryerror", "cublas_status_alloc_failed")),
    ("err.memory", ("defaultcpuallocator", "cannot allocate memory", "memoryerror", "std::bad_alloc")),
    ("err.tf32", ("mix of the legacy and new apis", "_check_cuda_matmul_precision")),
    ("err.bf16", ("bf16 is not supported", "bfloat16 is not supported", "does not support bfloat16", "doesn't support bf16",
                  '"not implemented for \'bfloat16\'')),
    ("err.triton", ("no module named 'triton'", "tritonmissing", "cl is not found", "compiler: cl")),
    ("err.torchcodec", ("torchcodec",)),
    ("err.package", ("modulenotfounderror: no module named", "importerror: cannot import name", "no module named")),
    ("err.dll", ("dll load failed", "winerror 126", "winerror 127")),
    ("err.driver", ("driver on your system is too old", "cuda driver version is insufficient")),
    ("err.kernel", ("no kernel image is available", "not compatible with the current pytorch installation")),
    ("err.cpu_torch", ("torch not compiled with cuda enabled",)),
    ("err.no_card", ("no cuda gpus are available", "found no nvidia driver", "no nvidia driver on your system")),
    ("err.assert", ("device-side assert", "illegal memory access", "cudnn_status_", "cublas_status_")),
    ("err.space", ("no space left on device", "errno 28]", "winerror 112", "enough space on the disk", "disk is full")),
    ("err.path", ("file name too long", "filename too long", "errno 36]", "winerror 206")),
    ("err.in_use", ("winerror 32]", "being used by another process", "text file busy")),
    ("err.permission", ("permission denied", "permissionerror", "winerror 5]", "read-only file system")),
    ("err.offline", ("localentrynotfounderror", "offline mode is enabled", "hf_hub_offline", "cannot find the requested files in the disk cache",
                     "base weights are missing")),
    ("err.certificate", ("certificate_verify_failed",)),
    ("err.refused", ("401 client error", "403 client error", "gatedrepoerror", "repositorynotfounderror")),
    ("err.busy_hub", ("429 client error", "too many requests")),
    ("err.llamacpp", ("llama-server", "llama.cpp server", "127.0.0.1:8080", "port=8080")),
    ("err.network", ("max retries exceeded", "name resolution", "getaddrinfo failed", "connection reset", "readtimeout",
                     "connecttimeout", "connectionerror", "network is unreachable", "couldn't connect to")),
    ("err.weights", ("is not a local folder and is not a valid model identifier", "headertoolarge", "header too large",
                     "incompletemetadata", "metadataincompletebuffer", "invalidheaderdeserialization",
                     "error while deserializing header", "pytorchstreamreader failed")),
    ("err.nan", ("non-finite", "loss is nan", "loss=nan", "loss nan")),
    ("err.undecided", ("wait for a decision", "waits for a decision")),
    ("err.checkpoints", ("already holds lora", "checkpoints folder is not empty", "checkpoints is not empty")),
    ("err.audio", ("libsndfileerror", "format not recognised", "invaliddataerror", "error opening", "nobackenderror")),
    ("err.workers", ("dataloader worker", "freeze_support()", "broken pipe", "eoferror: ran out of input")),
    ("err.wandb", ("wandb.errors", "api key not configured", "wandb: error")),
    ("err.flags", ("unrecognized arguments", "invalid choice:", "the following arguments are required")),
    ("err.shape", ("size mismatch for", "misshapen", "must match the size of tensor")),
    ("err.syntax", ("syntaxerror:",)),
)  # fmt: skip
EXIT_CODES = {
    -9: "err.killed", 137: "err.killed", -11: "err.crash", 139: "err.crash", 3221225477: "err.crash",
    -1073741819: "err.crash", 130: "err.interrupted", 2: "err.input",
}  # fmt: skip
# Those that the environment page can help with.
ENVIRONMENT_ERRORS = ("err.package", "err.cpu_torch", "err.no_card", "err.offline")
# Looking for 80 short texts costs more than for one pattern that nearly never matches, so that is asked first.
_ERROR_LITERALS = tuple(literal for _, literals in KNOWN_ERRORS for literal in literals)
_PACKAGE = re.compile(r"no module named ['\"]?([\w.]+)", re.IGNORECASE)


def recognise_errors(text: str) -> list[tuple[str, dict[str, str]]]:
    """Known errors of the field in `text`, as (text key, fields), most telling first."""
    lowered = text.lower()
    present = [literal for literal in _ERROR_LITERALS if literal in lowered]
    if not present:
        return []
    found = []
    for line in lowered.split("\n"):
        if any(literal in line for literal in present):
            key = next(key for key, literals in KNOWN_ERRORS if any(literal in line for literal in literals))
            match = _PACKAGE.search(line) if key == "err.package" else None
            found.append((key, {"name": match.group(1) if match else "?"} if key == "err.package" else {}))
    return list({str(item): item for item in found}.values())


def explain_exit(code: int | None, errors: list[tuple[str, dict[str, str]]]) -> list[tuple[str, dict[str, str]]]:
    """What to tell about a failed run: known errors, else what the exit status alone says."""
    order = [key for key, _ in KNOWN_ERRORS]
    known = sorted(errors, key=lambda item: order.index(item[0]))[:2]
    return known or [(EXIT_CODES.get(code, "err.unknown"), {})]


_LOOKS_WRONG = re.compile(r"(?i:\b(?:error|exception|traceback|failed|fatal)\b)|[a-z](?:Error|Exception)\b|错误|失败")
_LOOKS_RISKY = re.compile(r"(?i:\bwarn(?:ing)?\b)|[a-z]Warning\b|警告")


def line_look(line: str) -> str:
    """The tag that colours a log line: bad, warn, head or ''."""
    if line.startswith("$ ") or line.startswith("— "):
        return "head"
    if _LOOKS_WRONG.search(line) and not re.search(r"\bfailed 0\b|\b0 failed\b|\b0 errors?\b", line):
        return "bad"
    return "warn" if _LOOKS_RISKY.search(line) else ""


class Curve:
    """The trainer's metrics.csv, read as it grows."""

    def __init__(self, path: Path | None = None):
        self.path = path
        self.steps: list[int] = []
        self.loss: list[float] = []
        self.smooth: list[float] = []
        self.rate: list[float] = []
        self.validation: list[tuple[int, float]] = []
        self._offset = 0
        self._header: list[str] = []
        self._rest = b""

    def poll(self) -> bool:
        """Read what was added; True when there is something new."""
        if self.path is None or not is_file(self.path):
            return False
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._offset:  # written anew
                    self.__init__(self.path)
                file.seek(self._offset)
                data = self._rest + file.read(4 << 20)
                self._offset = file.tell()
        except OSError:
            return False
        *lines, self._rest = data.split(b"\n")
        new = False
        for line in lines:
            row = line[:1000].decode("utf-8", errors="replace").strip("\r\0").split(",")  # figures have no quotes
            if not self._header:
                self._header = row
            elif len(self.steps) < MAX_CURVE_POINTS:
                new |= self._add_row(dict(zip(self._header, row, strict=False)))
        self._rest = self._rest[:1000]
        return new

    def _add_row(self, row: dict[str, str]) -> bool:
        names = ("step", "loss", "loss_smooth", "learning_rate", "val_loss")
        step, loss, smooth, rate, validation = (_as_number(row.get(name, "")) for name in names)
        if not is_number(step):
            return False
        if is_number(loss):
            self.add(int(step), loss, smooth, rate)
        if is_number(validation):
            self.validation.append((int(step), validation))
        return True

    def add(self, step: int, loss: float, smooth: float = math.nan, rate: float = math.nan) -> None:
        while self.steps and self.steps[-1] >= step:  # a resumed run repeats steps: the later value counts
            for values in (self.steps, self.loss, self.smooth, self.rate):
                values.pop()
        if smooth != smooth:
            smooth = loss if not self.smooth else self.smooth[-1] * 0.95 + loss * 0.05
        for values, value in ((self.steps, step), (self.loss, loss), (self.smooth, smooth), (self.rate, rate)):
            values.append(value)


def read_trial(folder: Path, since: float) -> dict[str, Any] | None:
    """What a trial run that began at `since` (Unix time) wrote under the log folder; None without such a file."""
    for path in (folder / "trial.json", *folder.glob("*/trial.json")):
        with contextlib.suppress(OSError, ValueError):
            if path.stat().st_mtime >= since - 1:
                result = read_json(path)
                if "savings" in result:
                    result["savings"] = text_tables({"": result["savings"]}).get("", {})
                return {
                    key: value for key, value in result.items() if key == "savings" or is_number(value) or value is True
                }
    return None


def trial_sentence(language: str, result: dict[str, Any]) -> str:
    """A trial's result for the user: time, memory and disk of the whole run, and the savings that it needs."""
    if not result.get("fits"):
        return say(language, "trial.unfit")
    names = ("seconds_per_step", "hours", "peak_memory_gb", "memory_gb", "disk_gb")
    seconds, hours, *sizes = (float(result.get(name) or 0) for name in names)
    fields = {"seconds": f"{seconds:.2f}", "steps": result.get("max_steps", "?"), "hours": human_seconds(hours * 3600)}
    fields.update(zip(("peak", "memory", "disk"), (f"{size:.1f} GB" for size in sizes), strict=True))
    lines = [say(language, "trial.fits", fields)]
    if result.get("savings"):
        lines.append(say(language, "trial.savings", {"flags": saving_flags(result)}))
    return "\n".join(lines)


def saving_flags(result: dict[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in (result.get("savings") or {}).items())


def find_metrics(folder: Path) -> Path | None:
    """The newest metrics.csv under the trainer's log folder."""
    with contextlib.suppress(OSError):
        files = [path for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}metrics.csv")]
        return max(files, key=lambda path: path.stat().st_mtime, default=None)
    return None


def thin_out(xs: list[int], ys: list[float], columns: int) -> list[tuple[float, float]]:
    """At most two points (lowest, highest) per pixel column, so that a long run draws as fast as a short one."""
    pairs = [(x, y) for x, y in zip(xs, ys, strict=False) if y == y]
    if len(pairs) <= 2 * columns or not pairs:
        return [(float(x), y) for x, y in pairs]
    low, span = pairs[0][0], max(1, pairs[-1][0] - pairs[0][0])
    buckets: dict[int, tuple[tuple[int, float], tuple[int, float]]] = {}
    for point in pairs:
        column = int((point[0] - low) / span * (columns - 1))
        lowest, highest = buckets.get(column, (point, point))
        buckets[column] = (min(lowest, point, key=lambda p: p[1]), max(highest, point, key=lambda p: p[1]))
    return [(float(x), y) for bucket in buckets.values() for x, y in sorted(set(bucket))]


def nice_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers between `low` and `high` for an axis."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    size = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = int(low / size) * size
    ticks = [first + index * size for index in range(wanted + 4)]
    return [round(tick, 12) for tick in ticks if low - size * 1e-6 <= tick <= high + size * 1e-6]


# --- 8. Running -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    run: int
    kind: str  # started, ended
    code: int | None = None  # None with an ended run: the program could not be started
    error: str = ""


class Runner:
    """One child process at a time. Methods are for the window's thread and never wait; workers only use the queue.

    Every run, also one that could not be started, gives exactly one `ended` event. A run's number tells old events.
    """

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.text = LogText()
        self.run = 0
        self.active = False
        self.stopping = ""  # '', 'gentle', 'kill'
        self.started_at = 0.0
        self.pid: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stop_file: Path | None = None
        self._lock = threading.Lock()

    def start(
        self, argv: list[str], cwd: Path, environment: dict[str, str], log_path: Path | None,
        stop_file: Path | None = None, heirs: tuple[int, ...] = (),
    ) -> int:  # fmt: skip
        """`heirs`: see `FolderLock.heirs`."""
        if self.active:
            raise RuntimeError("a run is active already")
        self.run += 1
        self.active, self.stopping, self.pid = True, "", None
        self.started_at = time.monotonic()
        self.text = LogText()
        self._process, self._stop_file = None, stop_file
        stdin = subprocess.DEVNULL
        if ends_with_input(argv, cwd):
            stdin, environment = subprocess.PIPE, {**environment, "ACE_LORA_ENDS_WITH_INPUT": "1"}
        launch = partial(start_process, argv, cwd, environment, stdin, heirs)
        arguments = (self.run, self.text, launch, log_path, subprocess.list2cmdline(argv))
        threading.Thread(target=self._work, args=arguments, daemon=True, name=f"run-{self.run}").start()
        return self.run

    def _work(
        self, run: int, text: LogText, launch: Callable[[], subprocess.Popen[bytes]], path: Path | None, command: str
    ) -> None:
        log = None
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                log = path.open("wb")
                log.write(f"{stamp()}  {command}\n".encode())
        except OSError as error:  # a read-only folder: the run goes on, and the pane shows it
            text.feed(f"[log file: {error}]\n".encode())
        try:
            process = launch()
        except OSError as error:
            if log:
                log.write(str(error).encode())
                log.close()
            self.events.put(Event(run, "ended", None, str(error)))
            return
        with self._lock:
            self._process, self.pid, stopping = process, process.pid, self.stopping
        self.events.put(Event(run, "started"))
        if stopping:  # asked while the process was being made
            self._signal(stopping)
        reader = threading.Thread(target=self._read, args=(process, log, text), daemon=True, name=f"read-{run}")
        reader.start()
        code = process.wait()
        reader.join(SETTLE_S)
        # Whatever the child left running (DataLoader workers, a grandchild that holds the pipe) ends with it.
        kill_tree(process)
        reader.join(SETTLE_S)
        if process.stdin is not None:
            process.stdin.close()
        text.feed(b"", final=True)
        self.events.put(Event(run, "ended", code))

    @staticmethod
    def _read(process: subprocess.Popen[bytes], log: io.BufferedWriter | None, text: LogText) -> None:
        assert process.stdout is not None
        try:
            # read1 gives what is there; text mode would turn tqdm's `\r` into new lines.
            while data := process.stdout.read1(READ_BYTES):
                if log is not None:
                    try:
                        log.write(data)
                        if len(data) < READ_BYTES // 2:
                            log.flush()
                    except OSError as error:  # the disk is full: the run goes on, and the pane still shows it
                        text.feed(f"\n[log file: {error}]\n".encode())
                        log = None
                text.feed(data)
        except (OSError, ValueError) as error:
            text.feed(f"\n[pipe: {error}]\n".encode())
        finally:
            if log is not None:
                with contextlib.suppress(OSError):
                    log.close()

    def request_stop(self) -> None:
        """Ask the child to save and end: by its STOP file where it knows one, else as Ctrl+C does."""
        if self.active and not self.stopping:
            self.stopping = "gentle"
            self._signal("gentle")

    def kill(self) -> None:
        """End the child and everything that it started, now."""
        if self.active:
            self.stopping = "kill"
            self._signal("kill")

    def _signal(self, how: str) -> None:
        with self._lock:
            process = self._process
        if process is None or process.poll() is not None:
            return
        if how == "kill":
            threading.Thread(target=kill_tree, args=(process,), daemon=True).start()
        elif self._stop_file is not None:
            try:
                self._stop_file.parent.mkdir(parents=True, exist_ok=True)
                self._stop_file.write_text("stop\n", encoding="ascii")
            except OSError:
                interrupt(process)
        else:
            interrupt(process)

    def poll(self) -> Iterator[Event]:
        """Events of the present run; ends of earlier ones are dropped."""
        while not self.events.empty():
            event = self.events.get_nowait()
            if event.run == self.run:
                if event.kind == "ended":
                    self.active, self._process = False, None
                yield event


def ends_with_input(argv: list[str], cwd: Path) -> bool:
    """Whether what is started is this repository's, which saves and ends when its input does (`ace_lora/commands.py`).

    The window holds the other end, so a window that was killed takes it along. A fork's script would wait for ever
    for an answer to what it asks.
    """
    if argv[1:2] == ["-m"]:
        return argv[2].startswith("ace_lora.")
    try:
        return b"from ace_lora.commands import" in (cwd / argv[1]).read_bytes()
    except (OSError, IndexError):
        return False


def start_process(
    argv: list[str], cwd: Path, environment: dict[str, str], stdin: int = subprocess.DEVNULL,
    heirs: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:  # fmt: skip
    """A child in a process group of its own, with one pipe for all its output and nothing to wait for in its input."""
    group: dict[str, Any] = {"start_new_session": True, "pass_fds": heirs}
    if WINDOWS:
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(argv, cwd=cwd, env=environment, **pipes, **group)
    process.job = _own_job(process)
    return process


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """What Ctrl+C at a terminal does, for this child."""
    if not WINDOWS:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        return
    # A window has no console of its own and CTRL_BREAK only reaches processes of one's own console,
    # so the child's hidden console is joined for a moment.
    kernel = ctypes.windll.kernel32
    kernel.FreeConsole()
    if kernel.AttachConsole(process.pid):
        kernel.GenerateConsoleCtrlEvent(1, process.pid)  # CTRL_BREAK, to the child's own process group only
        kernel.FreeConsole()
    kernel.AttachConsole(0xFFFFFFFF)  # back to the terminal that the window was started from, if there is one


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End a child and all its descendants; killing the child alone would leave workers that hold the GPU."""
    if not WINDOWS:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return
    if process.job and ctypes.windll.kernel32.TerminateJobObject(process.job, 1):
        return
    if process.poll() is None:
        command = ["taskkill", "/T", "/F", "/PID", str(process.pid)]
        subprocess.run(command, capture_output=True, check=False, **quiet_process())


def _own_job(process: subprocess.Popen[bytes]) -> Any:
    """On Windows a job object that holds the child: it dies with the window, even when that is killed."""
    if not WINDOWS:
        return None
    kernel = ctypes.windll.kernel32
    kernel.CreateJobObjectW.restype = ctypes.c_void_p
    job = ctypes.c_void_p(kernel.CreateJobObjectW(None, None))
    if not job:
        return None
    # JOBOBJECT_EXTENDED_LIMIT_INFORMATION is 144 bytes on 64-bit Windows; LimitFlags stand at byte 16.
    limits = ctypes.create_string_buffer(144)
    struct.pack_into("<I", limits, 16, 0x2000)  # JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
    kernel.SetInformationJobObject(job, 9, limits, 144)
    kernel.AssignProcessToJobObject(job, ctypes.c_void_p(int(process._handle)))  # type: ignore[attr-defined]
    return job


# TensorBoard as `python -m tensorboard.main` runs it, which ends when its input does: the window holds the other end,
# so a window that was killed takes it along (on every system, without polling).
TENSORBOARD_CODE = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
runpy.run_module("tensorboard.main", run_name="__main__", alter_sys=True)
"""


class TensorBoard:
    """The real TensorBoard in a process of its own on 127.0.0.1; ends with the window."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()  # (ready | missing | failed, detail)
        self.url = ""
        self.folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = 0  # counts openings and closings: a start that was overtaken ends what it started

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def open(self, python: Path, folder: Path, program: Path, environment: dict[str, str]) -> None:
        """Start it for `folder` unless it runs; `answers` gets one item when its page can be opened, or never will."""
        if self.alive and self.folder == folder:
            if self.url:
                self.answers.put(("ready", self.url))
            return
        self.close()
        self.folder, self.url = folder, ""
        with contextlib.suppress(OSError):  # a read-only place: TensorBoard itself says that it finds nothing
            folder.mkdir(parents=True, exist_ok=True)
        # Port 0: one that the system has free; TensorBoard says which.
        argv = [str(python), "-c", TENSORBOARD_CODE, "--logdir", str(folder), "--host", "127.0.0.1", "--port", "0"]
        arguments = (argv, program, environment, self._wanted)
        threading.Thread(target=self._follow, args=arguments, daemon=True).start()

    def _follow(self, argv: list[str], program: Path, environment: dict[str, str], wanted: int) -> None:
        """Start it, tell its address when it says that it listens there, and read on: a full pipe would stop it."""
        try:
            process = start_process(argv, program, environment, stdin=subprocess.PIPE)
        except OSError as error:
            self.answers.put(("failed", str(error)))
            return
        if wanted != self._wanted:
            kill_tree(process)
            return
        self._process = process
        output: deque[str] = deque(maxlen=200)
        for line in process.stdout:
            output.append(line.decode("utf-8", errors="replace").strip())
            match = re.search(r"http://127\.0\.0\.1:\d+/", output[-1])
            if match and not self.url and wanted == self._wanted:
                self.url = match.group()
                self.answers.put(("ready", self.url))
        kill_tree(process)
        process.wait()
        if wanted == self._wanted and not self.url:
            missing = any("No module named" in line for line in output)
            last = next((line for line in reversed(output) if line), "")
            self.answers.put(("missing" if missing else "failed", last))

    def close(self) -> None:
        self._wanted += 1
        if self._process is not None:
            kill_tree(self._process)
        self._process, self.url = None, ""


# --- 9. Session -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of something: a sentence for the banner, perhaps with a button."""

    level: str  # good, info, warn, bad
    sentence: str
    button: str = ""  # text key
    do: Callable[[], Any] | None = None  # None: the window knows what it opens for this key


@dataclass(frozen=True)
class Question:
    """What only the user can decide. Its texts are `<name>.title` and `<name>.<choice>`, or those for every question."""

    name: str
    message: str
    answers: dict[
        str, Callable[..., Reply]
    ]  # choice -> what follows, given the texts of the entries; "cancel" is added
    title: str = ""  # text key, where it is another one
    icon: str = "info"
    danger: str = ""  # the choice that is shown in red
    entries: tuple[tuple[str, str], ...] = ()  # text key of the label, text
    wrong: Callable[[list[str]], str] = lambda texts: ""  # what is wrong with the entries
    browse: str = ""  # text key of the title of a folder chooser that fills the last entry

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or f"{self.name}.title")

    @property
    def choices(self) -> list[tuple[str, str]]:
        """(choice, text key of its label); Enter takes the first, Escape "cancel"."""
        if not self.answers:
            return [("cancel", "ok")]
        keys = dict.fromkeys([*self.answers, "cancel"])
        return [(key, next(text for text in (f"{self.name}.{key}", key, self.title) if text in TEXTS)) for key in keys]

    def answer(self, choice: str, *texts: str) -> Reply:
        return self.answers[choice](*texts) if choice in self.answers else None


Reply = Outcome | Question | None


class Session:
    """The open project with its songs and the states of its steps, the settings, and what goes on at present.

    `state` is one of: idle; importing; running; stopping (a run was asked to end); closing (the window waits for the
    end of what goes on); leaving (that has ended); closed.
    """

    def __init__(self, program: Path, settings: Settings):
        self.settings = settings
        self.own_program = program_folder()  # what holds when the settings name no other folder
        self.project = Project(values=dict(settings.draft))
        self.space = Workspace(self.project, settings, program)
        self.songs: list[Song] = []
        self.states: dict[str, StepState] = {}
        self.state = "idle"
        self.current_song = ""
        self.banner: Outcome | None = None
        self.joined: set[Path] = set()  # homes with songs that the user agreed to add to
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # work for this thread from others
        self.save_due = float("inf")
        self.settings_due = False  # with the next saving of the project
        self.next_look = 0.0
        self._lock: FolderLock | None = None  # on the project's folder
        self._seen: Any = None
        # What shows the session puts its own functions here; without a display nothing has to be shown.
        self.on_open: list[Callable[[], None]] = []  # another project is open
        self.on_program: Callable[[], None] = lambda: None  # other scripts, perhaps other flags
        self.store_texts: Callable[[], bool] = lambda: True  # False, told, when what is typed could not be stored
        self.repaint: Callable[[], None] = lambda: None
        self.paint_banner: Callable[[], None] = lambda: None
        self.ask: Callable[[Question], None] = lambda question: None
        self.log: Callable[..., None] = lambda lines, current="", skipped=0: None
        self.lead_to: Callable[..., None] = lambda page, wrong=(): None  # `wrong`: flags to be marked there
        self.keep_home: Callable[[], None] = lambda: None  # the project stays where it is, whatever was typed
        self.read_flags()

    @property
    def program(self) -> Path:
        return self.space.program

    @property
    def busy(self) -> bool:
        return self.state != "idle"

    def t(self, key: str, **fields: Any) -> str:
        return say(self.settings.language, key, fields)

    def shown(self, path: Path) -> str:
        return shown_path(path, self.program)

    # Telling

    def tell(self, reply: Reply) -> None:
        """Show an outcome until the next one, ask a question; nothing for None."""
        if isinstance(reply, Outcome):
            self.banner = reply
            self.paint_banner()
        elif isinstance(reply, Question):
            self.ask(reply)

    def hush(self) -> None:
        self.banner = None
        self.paint_banner()

    def outcome(self, level: str, key: str, **fields: Any) -> Outcome:
        return Outcome(level, self.t(key, **fields))

    def failed(self, error: OSError) -> Outcome:
        return self.outcome("bad", "failed.file", error=error)

    def python(self) -> Path | None:
        return find_python(self.settings, self.program)

    def in_background(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Do `work` in a thread of its own; what it returns is given to `done` in this one."""

        def run() -> None:
            result = work()
            self.inbox.put(lambda: done(result))

        threading.Thread(target=run, daemon=True).start()

    def change(self, work: Callable[..., Reply], *arguments: Any) -> Reply:
        """Do something to the project's files, then look at them; a failure of the system is the outcome."""
        try:
            reply = work(*arguments)
        except OSError as error:
            reply = self.failed(error)
        self.look(force=True)
        return reply

    def ended(self) -> None:
        """What went on has ended."""
        self.state = "leaving" if self.state == "closing" else "idle"

    def reason(self, state: StepState) -> str:
        """The sentence that says why a step is in this state."""
        fields = dict(state.fields)
        if "why" in fields:
            fields["why"] = self.reason(fields["why"])
        sentence = self.t(state.reason, **fields) if state.reason else ""
        return self.t("state.stale", reason=sentence) if state.status == "stale" else sentence

    # The project

    def open(self, home: Path | None) -> bool:
        """Show the project in `home` (None: a new one). False, with the reason told, when that cannot be now."""
        if self.busy:
            self.tell(self.outcome("info", "busy"))
            return False
        if not self.store_texts():
            return False
        lock = None
        if home is not None:
            home = absolute(home)
            lock = self.claim(home)
            if lock is None:
                if not self.states:  # at the start there is no other project to stay with
                    self.open(None)
                self.tell(elsewhere(self, home))
                return False
        self.save()
        if self._lock is not lock:
            self.release()
        self._lock = lock
        drafts = {step: dict(values) for step, values in self.settings.draft.items()}
        self.project = Project.load(home) if home else Project(values=drafts)
        self.project.doubt(self.settings.trusted if home else ())
        self.space = Workspace(self.project, self.settings, self.program, self.space.flags)
        self.current_song = ""
        self.banner = None
        if home and self.settings.last_project != str(home):
            self.settings.remember(home)
            self.save_settings()
        self._read_disk()
        for react in self.on_open:
            react()
        tell_of_files(self)
        return True

    def claim(self, home: Path) -> FolderLock | None:
        """The lock on a project's folder; None when another window has the project open."""
        return self._lock if self._lock is not None and self._lock.folder == home else FolderLock.take(home)

    def clear(self, home: Path) -> Reply:
        """Move everything in a song folder into its bin; the outcome when that failed."""
        lock = self.claim(home)
        if lock is None:
            return elsewhere(self, home)
        try:
            clear_library(Project.load(home))
        except OSError as error:
            return self.failed(error)
        finally:
            if lock is not self._lock:
                lock.release()
        return None

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    # The folders

    def _read_disk(self) -> bool:
        self.songs = scan_library(self.project)
        self.states = examine(self.space, self.songs)
        seen = (repr(self.songs), repr(self.states))
        changed, self._seen = seen != self._seen, seen
        return changed

    def look(self, force: bool = False) -> None:
        """Read the folders; repaint when something differs from what is shown."""
        if self._read_disk() or force:
            self.repaint()

    def read_flags(self) -> None:
        self.space.flags = {script: read_flags(self.program / script) for script in (*SCRIPTS, LLAMACPP_SCRIPT)}

    def tick(self) -> None:
        """Work off what other threads handed over, write what is due, look at the folders now and then."""
        deadline = time.monotonic() + DRAIN_BUDGET_S
        while time.monotonic() < deadline and not self.inbox.empty():
            self.inbox.get_nowait()()
        now = time.monotonic()
        if now >= self.save_due:
            self.save()
        if now >= self.next_look:
            self.next_look = now + DISK_MS / 1000
            self.look()

    # Settings

    def set_value(self, step: str, row: Field, text: str) -> None:
        """A field was edited: keep the value, say what is wrong with it, store it."""
        if self.project.home is not None and leads_out(row.flag, text):
            trust(self, row.flag, text)
        self.project.set_value(STEP[step].values, row.flag, text, self.space.default(row))
        if self.project.home is None:
            self.settings.draft = self.project.values
        # One write for a burst of key strokes; closing and starting flush it.
        self.save_due = time.monotonic() + 0.2
        self.repaint()

    def set_values(self, values: dict[str, str]) -> None:
        """Set settings of the training at once."""
        for row in self.space.fields("train"):
            if row.flag in values:
                self.project.set_value("train", row.flag, values[row.flag], self.space.default(row))
        self.save()
        self.repaint()

    def save(self) -> None:
        """Write the project's file now, or the settings' while there is no project; a failure is told."""
        self.save_due = float("inf")
        if self.project.home is None or self.settings_due:
            self.settings_due = False
            self.save_settings()
        if self.project.home is not None:
            self._write(self.project.save, Path(PROJECT_FILE))

    def save_settings(self) -> None:
        self._write(self.settings.save, self.settings.path)

    def _write(self, save: Callable[[], None], file: Path) -> None:
        try:
            save()
        except OSError as error:
            self.tell(self.outcome("bad", "save.failed", file=file, error=error.strerror or error))

    def change_setting(self, key: str, value: Any) -> None:
        setattr(self.settings, key, value)
        self.save_settings()
        if key == "program":
            self._use_program(Path(value) if value and is_folder(Path(value)) else self.own_program)
        self.look(force=True)

    def _use_program(self, program: Path) -> None:
        self.space.program = program
        self.read_flags()
        self.on_program()

    def reset(self) -> None:
        """Every setting back to its default; no file of the user's is touched."""
        self.project.values.clear()
        fresh = Settings(self.settings.path)
        for key in set(Settings._KEYS) - {"language", "last_project", "recent", "presets"}:
            setattr(self.settings, key, getattr(fresh, key))
        self.save()
        self._use_program(self.own_program)


def elsewhere(session: Session, home: Path) -> Outcome:
    sentence = session.t("project.elsewhere", name=home.name)
    return Outcome("warn", sentence, "project.retry", lambda: session.open(home))


def tell_of_files(session: Session) -> None:
    """What is wrong with the project's file, or asks about what stands in it."""
    project = session.project
    if project.damaged:
        session.tell(session.outcome("warn", "damaged", file=project.damaged))
    if project.unread:
        session.tell(session.outcome("bad", "unread", file=PROJECT_FILE, error=project.unread))
    if project.moving:
        session.tell(session.outcome("warn", "move.interrupted", new=session.shown(Path(project.moving))))
    if project.doubted:
        session.tell(ask_doubted(session))


def trust(session: Session, flag: str, text: str) -> None:
    """The user wants this value, so it is not asked about. Only the last ones are kept: typing makes many."""
    entry = f"{flag}={text}"
    session.settings.trusted = [*(other for other in session.settings.trusted if other != entry), entry][-200:]
    session.settings_due = True


def ask_doubted(session: Session) -> Question:
    """Asks whether places and servers that came with a project's file are to be used; until then they are not."""
    project = session.project

    def use() -> Reply:
        for step, flag, text in project.doubted:
            project.values.setdefault(step, {})[flag] = text
            trust(session, flag, text)
        return leave()

    def leave() -> Reply:
        project.doubted = []
        session.save()
        return session.look(force=True)

    lines = [f"{_label_of(session, flag)}: {plain(text)}" for _, flag, text in project.doubted]
    message = session.t("doubt.message", values="\n".join(lines))
    return Question("doubt", message, {"default": leave, "use": use}, icon="stale")


def _label_of(session: Session, flag: str) -> str:
    rows = (row for step in STEPS for row in step.fields)
    return next((in_language(session.settings.language, row.label) for row in rows if row.flag == flag), plain(flag))


# Where the project lies


def change_home(session: Session, name: str, folder: str) -> Reply:
    """Give the project another name or place: before there are songs just so, afterwards by a question."""
    folder = folder.strip()
    problem = name_problem(Path(folder).name if folder else name)
    target, home = absolute(session.program / folder), session.project.home
    if session.busy or (not problem and home == target):
        return None
    if problem:
        return session.outcome("bad", problem)
    if home is None or not session.songs:
        return use_home(session, target)

    message = session.t("move.message", old=session.shown(home), new=session.shown(target))
    answers = {"move": lambda: _move_home(session, target), "open": lambda: use_home(session, target)}
    return Question("move", message, {**answers, "cancel": session.keep_home})


def use_home(session: Session, target: Path) -> Reply:
    """Make `target` the project's folder; when songs stand there already the user says what becomes of them."""
    if holds_audio(target) and target not in session.joined and not (target / PROJECT_FILE).exists():
        return ask_occupied(session, target, lambda home: use_home(session, home))
    draft = session.project.values if session.project.home is None else None
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return session.failed(error)
    if session.open(target):
        if draft and not session.project.values:
            session.project.values = {step: dict(values) for step, values in draft.items()}
        session.settings.draft = {}
        session.save()
        session.save_settings()
        session.look(force=True)
    return None


def _move_home(session: Session, target: Path) -> Reply:
    old, space = session.project.home, session.space
    try:
        owned = not space.foreign_owner() and (space.checkpoints() / OWNER_FILE).exists()
        move_project(session.project, target)
        if owned:
            space.claim_checkpoints()
    except OSError as error:
        if isinstance(error, FileExistsError) and error.errno is None:  # of `move_project`, not of the system
            return session.outcome("bad", "move.exists", path=error)
        session.open(target if target.is_dir() and not (old and old.is_dir()) else old)
        return session.failed(error)
    session.open(target)
    return session.outcome("good", "move.done", new=session.shown(target))


def ask_occupied(session: Session, home: Path, use: Callable[[Path], Reply]) -> Question:
    """The folder already holds audio: another folder, clear this one, or add to it."""

    def choose_another() -> Reply:
        name = unique_name(home.name, [path.name for path in home.parent.iterdir()])
        return ask_home(session, name, home.parent, use)

    def join() -> Reply:
        session.joined.add(home)
        return use(home)

    message = session.t(
        "occupied.message", folder=session.shown(home), count=sum(is_audio(path) for path in home.iterdir())
    )
    answers = {"other": choose_another, "clear": lambda: session.clear(home) or join(), "add": join}
    return Question("occupied", message, {**answers, "cancel": session.keep_home}, icon="stale")


def ask_home(session: Session, name: str, parent: Path, use: Callable[[Path], Reply]) -> Question:
    """Propose a name and a place, both to be changed by hand."""

    def answer(name: str, folder: str) -> Reply:
        home = absolute(session.program / folder.strip() / name.strip())
        return ask_occupied(session, home, use) if holds_audio(home) else use(home)

    def wrong(texts: list[str]) -> str:
        key = name_problem(texts[0].strip()) or ("" if texts[1].strip() else "wrong.empty")
        return session.t(key) if key else ""

    entries = (("project.name", name), ("home.parent", session.shown(parent)))
    message = session.t("home.message")
    return Question("home", message, {"ok": answer}, entries=entries, wrong=wrong, browse="choose.home")


# Songs and their texts


def ask_rename(session: Session, song: Song) -> Reply:
    def rename(title: str) -> Reply:
        session.current_song = rename_song(session.project, song, title.strip())
        return None

    answers = {"ok": lambda title: session.change(rename, title)}
    entries = (("column.title", song.title),)
    return None if session.busy else ask_for_texts(session, "rename", "songs.rename", answers, entries)


def ask_for_texts(
    session: Session, name: str, title: str, answers: dict[str, Callable[..., Reply]], entries: Any, **fields: Any
) -> Question:
    """A question with entries, of which the first must not be empty."""

    def wrong(texts: list[str]) -> str:
        return "" if texts[0].strip() else session.t("wrong.empty")

    message = session.t(f"{name}.message", **fields)
    return Question(name, message, answers, title, entries=tuple(entries), wrong=wrong)


def ask_remove(session: Session, songs: list[Song]) -> Question:
    def remove() -> Reply:
        remove_songs(session.project, songs)
        return session.outcome("good", "removed", count=len(songs))

    names = "\n".join(song.title for song in songs[:8]) + ("\n…" if len(songs) > 8 else "")
    message = session.t("remove.message", count=len(songs)) + "\n\n" + names
    return Question("remove", message, {"remove": lambda: session.change(remove)}, "songs.remove")


def removed_label(session: Session, entry: Removed) -> str:
    """When, what and why it was removed, and the names of some of it."""
    reason = entry.reason.partition(":")[0]
    why = text_or(session.settings.language, f"bin.{reason}", plain(reason, 60))
    names = _names([Path(place).name for place in entry.files.values()])
    date, _, clock = plain(entry.when, 24).partition("_")
    return f"{date} {clock[:5].replace('-', ':')}  {session.t(f'kind.{entry.kind}')} ({why})  {names}"


def restore(session: Session, entry: Removed) -> Reply:
    """Put back what was removed at one time."""
    if session.busy or session.project.home is None or not session.store_texts():
        return None

    def put_back() -> Reply:
        try:
            restored, replaced = restore_removed(entry)
        except Unusable as error:
            return session.outcome("bad", "restore.refused", path=error)
        return session.outcome("good", "restored", count=len(restored), replaced=len(replaced))

    return session.change(put_back)


def _text_of(path: Path) -> str:
    """The text of a file, '' without one. Raises OSError: one that is there and cannot be read is not empty."""
    return read_text(path).strip("\n") if os.path.lexists(path) else ""


def _with_tag(song: Song, tag: str) -> dict[Path, str]:
    return {song.prompt_path: add_tag(_text_of(song.prompt_path), tag)}


def _without_tag(song: Song, tag: str) -> dict[Path, str]:
    path = song.prompt_path
    return {path: remove_tag(_text_of(path), tag)} if path.exists() else {}


def _replaced(song: Song, old: str, new: str) -> dict[Path, str]:
    texts = {path: _text_of(path) for path in (song.prompt_path, song.lyrics_path) if path.exists()}
    return {path: text.replace(old, new) for path, text in texts.items() if text.replace(old, new) != text}


# What can be done to the texts of all songs: the entries of its question, and what it makes of one song's texts.
TEXT_CHANGES: dict[str, tuple[tuple[str, ...], Callable[..., dict[Path, str]]]] = {
    "add_tag": (("tag",), _with_tag),
    "remove_tag": (("tag",), _without_tag),
    "replace": (("replace.find", "replace.by"), _replaced),
}


def ask_change(session: Session, kind: str) -> Reply:
    """Ask for what a change of all texts needs (see TEXT_CHANGES, and `instrumental_all`), then make it."""
    if session.project.home is None or not session.songs or session.busy:
        return None
    if kind == "instrumental_all":
        return _ask_instrumental(session)
    labels, change = TEXT_CHANGES[kind]
    answers = {"ok": lambda *texts: _change_all(session, lambda song: change(song, *texts), kind)}
    entries = ((label, "") for label in labels)
    return ask_for_texts(session, kind, f"texts.{kind}", answers, entries, count=len(session.songs))


def _ask_instrumental(session: Session) -> Question:
    def mark(*states: str) -> Reply:
        def change(song: Song) -> dict[Path, str]:
            return {song.lyrics_path: INSTRUMENTAL} if song.lyrics in states else {}

        return _change_all(session, change, "instrumental")

    message, none = session.t("instrumental.message", count=len(session.songs)), ("missing", "empty")
    answers = {"missing": lambda: mark(*none), "all": lambda: mark(*none, "ok", "instrumental")}
    return Question("instrumental", message, answers, "texts.instrumental_all")


def _change_all(session: Session, change: Callable[[Song], dict[Path, str]], reason: str) -> Reply:
    """Change texts of all songs; copies of the old ones go into the bin."""

    def work() -> Reply:
        changes: dict[Path, str] = {}
        for song in scan_library(session.project):
            with contextlib.suppress(OSError):  # its list says that this text cannot be used
                changes.update(change(song))
        count = change_texts(session.project, changes, reason)
        return session.outcome("good" if count else "info", "changed.texts", count=count)

    return session.change(work) if session.store_texts() else None


class OpenSong:
    """A song whose texts are edited, with what its files held when they were read."""

    KINDS = ("prompt", "lyrics")

    def __init__(self, session: Session, song: Song):
        self.session, self.song = session, song
        self.blocked: set[str] = set()  # kinds whose file cannot be shown, and so not be edited
        self.loaded = {kind: self.read(kind) for kind in self.KINDS}

    def path(self, kind: str) -> Path:
        return self.song.prompt_path if kind == "prompt" else self.song.lyrics_path

    def read(self, kind: str) -> str:
        """A text, or the sentence that says why it cannot be shown."""
        path = self.path(kind)
        self.blocked.discard(kind)
        try:
            text = _text_of(path)
            if len(text) <= MAX_SHOWN_LINE or max(map(len, text.split("\n"))) <= MAX_SHOWN_LINE:
                return text
            why = self.session.t("texts.long_line")
        except OSError as error:
            why = str(error)
        self.blocked.add(kind)
        return self.session.t("texts.blocked", file=plain(path.name), why=why)

    def reread(self, texts: dict[str, str]) -> list[str]:
        """Take what another program wrote meanwhile, for the texts that are not being edited; gives those."""
        fresh = {kind: self.read(kind) for kind, text in texts.items() if text == self.loaded[kind]}
        changed = [kind for kind, text in fresh.items() if text != self.loaded[kind]]
        self.loaded.update(fresh)
        return changed

    def write(self, texts: dict[str, str]) -> bool:
        """Write what differs from the files; a text that changed on disk meanwhile goes into the bin first.

        False, told, when it could not be written.
        """
        home = self.session.project.home
        if home is None or not self.song.audio.parent.is_dir():
            return True
        for kind, text in texts.items():
            path = self.path(kind)
            if text == self.loaded[kind]:
                continue
            try:
                there = self.read(kind)
                if kind in self.blocked:
                    raise Unusable(there)
                if path.exists() and there != self.loaded[kind]:
                    remove_to_bin(home, [path], "overwritten", copy=True)
                write_atomically(path, text)
            except OSError as error:
                self.session.tell(
                    self.session.outcome("bad", "save.failed", file=path.name, error=error.strerror or error)
                )
                return False
            self.loaded[kind] = text
        self.session.next_look = 0.0
        return True


# Presets


def apply_preset(session: Session, name: str) -> Outcome:
    """Set a preset's values; flags that the trainer does not know stay out.

    One of the user's own sets everything. One for a card sets what it is about and takes back what another card's
    preset set; the rest is the user's.
    """
    own, card, values = session.settings.presets.get(name, {}), PRESETS.get(name), {}
    for row in session.space.fields("train"):
        default = session.space.default(row)
        if card is None:
            text = own.get(row.flag, default)
        elif row.flag in card:
            text = card[row.flag]
        elif session.space.value("train", row) in {other.get(row.flag) for other in PRESETS.values()}:
            text = default
        else:
            continue
        if row.kind != "choice" or text in row.choices:
            values[row.flag] = text
    session.set_values(values)
    return session.outcome("info", "preset.applied", name=name)


def ask_save_preset(session: Session) -> Question:
    def store(name: str) -> None:
        session.settings.presets[name.strip()] = dict(session.project.values.get("train", {}))
        session.save_settings()
        session.repaint()

    def wrong(texts: list[str]) -> str:
        name = texts[0].strip()
        return session.t("wrong.empty") if not name else session.t("preset.taken") if name in PRESETS else ""

    entries, message = (("preset.name", ""),), session.t("preset.message")
    return Question("preset", message, {"ok": store}, "preset.save", entries=entries, wrong=wrong)


# --- 10. Importing ----------------------------------------------------------------------------------------------------


class Importer:
    """Copies songs into the project and looks into those that were not looked at yet, both in the background."""

    def __init__(self, session: Session):
        self.session = session
        self.progress = (0, 0, "")  # done, all, name of the song
        self._cancelled = threading.Event()
        self._looked_at: list[Song] = []
        self._probing: set[tuple[Path, tuple[int, int]]] = set()
        self._next_save = 0.0

    def add(self, paths: list[Path]) -> Reply:
        """Add files and folders: choose the home first when there is none, then copy in the background."""
        session = self.session
        if session.busy or not paths:
            return None
        session.lead_to("songs")
        files = find_sources(paths)
        audio = [path for path in files if is_audio(path)]
        if not audio:
            return session.outcome("warn", "import.nothing", kinds=" ".join(AUDIO_EXTENSIONS))
        home = session.project.home
        if home is None:
            root = session.program / SONGS_ROOT
            taken = [path.name for path in root.iterdir()] if root.is_dir() else []
            name = unique_name(readable_name(audio[0].stem), taken)
            return ask_home(session, name, root, lambda home: self.copy(home, files))
        if holds_audio(home) and home not in session.joined:
            return ask_occupied(session, home, lambda home: self.copy(home, files))
        return self.copy(home, files)

    def copy(self, home: Path, files: list[Path]) -> Reply:
        """Start to copy `files` into the project in `home`, which is opened when it is not yet."""
        session = self.session
        session.joined.add(home)
        if session.project.home != home:
            reply = use_home(session, home)
            if session.project.home != home:
                return reply
        session.hush()
        session.state = "importing"
        self.progress = (0, 0, "")
        self._cancelled.clear()
        project = session.project

        def added(name: str, title: str) -> None:
            session.inbox.put(lambda: project.titles.__setitem__(name, title))

        def progress(*figures: Any) -> None:
            session.inbox.put(lambda: self._follow(*figures))

        def work() -> ImportReport:
            try:
                return import_songs(files, home, progress, added, self._cancelled.is_set)
            except OSError as error:
                return ImportReport(refused=[(str(home), f"import.failed|{error.strerror or error}")])

        session.in_background(work, self._ended)
        session.repaint()
        return None

    def cancel(self) -> None:
        """End copying after the present song."""
        self._cancelled.set()

    def _follow(self, done: int, total: int, name: str) -> None:
        self.progress = (done, total, name)
        if time.monotonic() >= self._next_save:  # not for every song: saving waits for the disk
            self._next_save = time.monotonic() + DISK_MS / 1000
            self.session.save()
            self.session.look(force=True)

    def _ended(self, report: ImportReport) -> None:
        session = self.session
        session.ended()
        if session.project.probes or report.added:
            session.save()
        lines = [session.t("import.done", count=len(report.added))]
        for name, reason in report.refused:
            key, _, detail = reason.partition("|")
            lines.append(session.t("problems.item", name=name, what=session.t(key, detail=detail)))
        session.log([f"— {lines[0]}", *lines[1:]])
        session.look(force=True)
        session.tell(Outcome("warn" if report.refused else "good", self._shortened(lines, "import.more")))

    def _shortened(self, lines: list[str], more: str) -> str:
        """A heading and its list, which must not hide the log."""
        hidden = len(lines) - 1 - MAX_BANNER_LINES
        rest = [self.session.t(more, count=hidden)] if hidden > 0 else []
        return "\n".join([*lines[: 1 + MAX_BANNER_LINES], *rest])

    def tick(self) -> None:
        """Find lengths and faults of songs that were not looked at yet, in the background."""
        session = self.session
        if session.state == "importing" or session.songs is self._looked_at:
            return
        self._looked_at = session.songs
        # A replaced file is looked at again; one that could not be judged is not asked for every other second.
        wanted = {(song.audio, song.stats["audio"]) for song in session.songs if not song.probed} - self._probing
        if not wanted:
            return
        self._probing |= wanted
        unknown = sorted(path for path, _ in wanted)
        project, environment = session.project, session.settings.child_environment()

        def tell(path: Path, probe: list[Any]) -> None:
            session.inbox.put(lambda: project.probes.__setitem__(path.name, probe))

        look = partial(probe_songs, unknown, session.python(), session.program, environment, tell)
        session.in_background(look, lambda _none: self._probed(project, unknown))

    def _probed(self, project: Project, asked: list[Path]) -> None:
        session = self.session
        if project is not session.project:
            return
        names = list_files(project.home) if project.home else {}
        project.probes = {name: probe for name, probe in project.probes.items() if name in names}
        session.save()
        session.look(force=True)
        found = [song for song in session.songs if song.problem and song.audio in asked]
        if not found:
            return
        session.log([f"— {song.audio.name}: {song.detail}" for song in found if song.detail])
        lines = [session.t("problems.found", count=len(found))]
        for song in found:
            lines.append(session.t("problems.item", name=song.title, what=session.t(f"problem.{song.problem}")))
        sentence = self._shortened(lines, "problems.more")
        if session.banner and session.banner.level == "warn":  # what was not added a moment ago stays to be read
            sentence = f"{session.banner.sentence}\n{sentence}"
        session.tell(Outcome("warn", sentence))


# --- 11. Step runs ----------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What runs, from its start to its end."""

    step: str = ""  # a step's key, or "command" for an installation; '': nothing runs
    title: str = ""  # of a command
    trial: bool = False
    receipt: dict[str, Any] = field(default_factory=dict)  # what the step reads
    begun: float = field(default_factory=time.time)
    stop_by: float = float("inf")  # when a run that was asked to end is killed
    failed_songs: list[str] = field(default_factory=list)  # as its lines tell
    progress: Progress | None = None
    bar: Progress | None = None
    after: Callable[[], None] = lambda: None

    def name(self, session: Session) -> str:
        return self.title or session.t(f"title.{self.step}")

    def read(self, found: Progress) -> None:
        if found.failed and found.label not in self.failed_songs:
            self.failed_songs.append(found.label)
        if found.unit == "bar":
            self.bar = found
        else:
            self.progress = found

    def figures(self, session: Session, elapsed: float) -> tuple[float, str]:
        """(part that is done, elapsed and left time, steps per second, loss)."""
        t, shown = session.t, self.progress or self.bar
        words = [t("run.elapsed", time=human_seconds(elapsed))]
        if shown is None:
            return 0.0, words[0]
        left = shown.left
        if left is None and shown.done:
            left = elapsed / shown.done * (shown.total - shown.done)
        words = [f"{shown.done}/{shown.total}", *words, t("run.left", time=human_seconds(left))]
        if shown.rate:
            words.append(t("run.rate", rate=f"{shown.rate:.2f}" if shown.rate >= 0.1 else f"{shown.rate:.3f}"))
        if shown.loss is not None:
            words.append(f"{t('run.loss')} {shown.loss:.4f}")
        return shown.done / max(1, shown.total), "    ".join(words)


@dataclass(frozen=True)
class Failure:
    """How the last run failed; kept so that it can be said in another language."""

    run: Run
    code: int | None
    errors: list[tuple[str, dict[str, str]]]

    def outcome(self, session: Session) -> Outcome:
        t, step, code, errors = session.t, self.run.step, self.code, self.errors
        number = STEP[step].number if step in STEP else "–"
        shown = t("run.not_started") if code is None else code
        lines = [t("run.failed", number=number, title=self.run.name(session), code=shown)]
        order = [name for name, _ in KNOWN_ERRORS]
        # What the window itself found out (no result, failed songs) says more than the exit status.
        known = [item for item in errors if item[0] not in order] or explain_exit(code, errors)
        if code is None and not errors:
            known = [("err.start", {})]
        lines += [t(name, **fields) for name, fields in known]
        of_environment = any(name in ENVIRONMENT_ERRORS for name, _ in known)
        return Outcome("bad", "\n".join(lines), "title.environment" if of_environment else "menu.logs")


def trial_outcome(session: Session, begun: float) -> Reply:
    """What a trial since `begun` measured, in a sentence, with a button for the savings that it found."""
    result = read_trial(session.space.log_folder(), begun)
    if result is None:
        return None
    sentence = trial_sentence(session.settings.language, result)
    session.log([f"— {line}" for line in sentence.split("\n")])

    def use_savings() -> Reply:
        session.set_values({flag: str(value) for flag, value in result["savings"].items()})
        return session.outcome("good", "trial.applied", flags=saving_flags(result))

    outcome = Outcome("good" if result.get("fits") else "bad", sentence)
    return replace(outcome, button="trial.apply", do=use_savings) if result.get("savings") else outcome


def ask_stale(session: Session, stale: Step, first: Callable[[], Reply], anyway: Callable[[], Reply]) -> Question:
    """A step that was to be started reads what an earlier one made, and that is out of date."""
    title, reason = session.t(f"title.{stale.key}"), session.reason(session.states[stale.key])
    message = session.t("askstale.message", number=stale.number, title=title, reason=reason)
    return Question("askstale", message, {"first": first, "anyway": anyway}, icon="stale")


def ask_checkpoints(session: Session, go_on: Callable[[str], Reply], give_up: Callable[[], None]) -> Question:
    """What becomes of the LoRAs that are there before a training: moved away, or gone on from."""
    space = session.space
    loras, foreign, folder = space.loras(), space.foreign_owner(), session.shown(space.checkpoints())
    choices = ("move", "resume") if space.can_resume() and not foreign else ("move",)
    message = session.t(
        "checkpoints.message", folder=folder, count=len(loras), lora=loras[-1].name, moved=f"{folder}_{stamp()}"
    )
    if foreign:
        message += "\n\n" + session.t("train.foreign", owner=foreign)
    answers = {choice: partial(go_on, choice) for choice in choices}
    return Question("checkpoints", message, {**answers, "cancel": give_up}, icon="stale")


def ask_changes(session: Session, go_on: Callable[[], Reply], give_up: Callable[[], None]) -> Question | None:
    """The training is to be gone on with, but with other settings or songs; None when nothing is known to differ."""
    space, language = session.space, session.settings.language
    lines = [
        f"{in_language(language, row.label)}: {plain(old, 40)} → {space.value('train', row)}"
        for row, old in space.changed_settings().items()
    ]
    if session.states["train"].status == "stale":
        lines.append(session.reason(session.states["train"]))
    if not lines or "accept_changes" not in (space.known("train") or {}):
        return None
    message = session.t("changes.message", changes="\n".join(lines))
    return Question("changes", message, {"accept": go_on, "cancel": give_up}, icon="stale")


def ask_disk(session: Session, go_on: Callable[[], Reply], give_up: Callable[[], None]) -> Question:
    """The disk may be too small for what a step writes."""
    free, need = free_bytes(session.project.records), disk_estimate(session.space, session.songs)
    message = session.t("env.disk_short", free=human_bytes(free), need=human_bytes(need))
    return Question("disk", message, {"cancel": give_up, "anyway": go_on}, icon="stale")


def _disk_is_short(session: Session) -> bool:
    try:
        return free_bytes(session.project.records) < disk_estimate(session.space, session.songs)
    except OSError:
        return False


class TrainingCurve:
    """The figures of the training that runs, or ran last: from its file, else from its lines."""

    def __init__(self, session: Session):
        self.session = session
        self.curve: Curve | None = None
        self._next_look = 0.0

    def opened(self) -> None:
        """Take the project's last training."""
        metrics = find_metrics(self.session.space.log_folder()) if self.session.project.home else None
        self.curve = Curve(metrics) if metrics else None
        self.poll()

    def poll(self) -> bool:
        return self.curve is not None and self.curve.poll()

    def read(self, line: str, found: Progress | None) -> None:
        curve = self.curve
        if line.startswith("metrics: ") and curve is not None:
            self.curve = Curve(self.session.program / line[9:].strip())
            return
        if found is None or found.loss is None or curve is None or curve.path is not None:
            return
        if found.done not in curve.steps[-1:]:
            curve.add(found.done, found.loss, rate=found.learning_rate or math.nan)

    def follow(self, begun: float) -> bool:
        """Whether the curve of the training that began then may have grown; looks once a second."""
        if self.curve is None or time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + 1.0
        if self.curve.path is None:
            # The fork's trainer does not say where its figures go; a file of an earlier run is not this run's.
            path = find_metrics(self.session.space.log_folder())
            if path is not None and path.stat().st_mtime >= begun - 1:
                self.curve = Curve(path)
        return self.curve.poll() or self.curve.path is None


class TrainingFolder:
    """The checkpoints folder, which belongs to one training while that fills it."""

    def __init__(self, session: Session):
        self.session = session
        self._lock: FolderLock | None = None

    def take(self, answer: str) -> bool:
        """Make it this training's own, after moving away what is there for the answer "move"; False: it is taken."""
        space = self.session.space
        self._lock = FolderLock.take(space.checkpoints())
        if self._lock is None:
            return False
        if answer == "move":
            moved = self.session.shown(space.move_checkpoints())
            self.session.log([f"— {self.session.t('checkpoints.moved', folder=moved)}"])
        space.claim_checkpoints()
        return True

    def heirs(self) -> tuple[int, ...]:
        return self._lock.heirs() if self._lock else ()

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def find_obstacle(session: Session, key: str) -> Outcome | None:
    """Why a step cannot be started, as far as it can be known without asking anybody."""
    wrong = session.space.problems(key)
    if wrong:
        session.lead_to(key, wrong)
        return session.outcome("bad", "wrong.start", count=len(wrong))
    script = session.space.script(key)
    if session.python() is None:
        return Outcome("bad", session.t("env.no_python"), "title.environment")
    if not script.is_file():
        sentence = session.t("env.script", script=script.name, folder=session.program)
        return Outcome("bad", sentence, "title.environment")
    return None


def make_room(session: Session, key: str) -> None:
    """Put away what would be in the way of a step; raises OSError."""
    if key == "prep" and session.project.home:
        orphans = orphan_records(session.project, session.songs)
        if remove_to_bin(session.project.home, orphans, "orphans"):
            session.log([f"— {session.t('orphans.moved', songs=_names([path.stem for path in orphans]))}"])
    output = session.space.lora_output() if key == "strength" else None
    if output is not None and output.is_file():
        os.replace(output, unique_path(output.with_name(f"{output.stem}_{stamp()}{output.suffix}")))
    stop_file = session.space.stop_file(key)
    if stop_file is not None:
        stop_file.unlink(missing_ok=True)  # one that was left behind would end the run at its first step


def find_errors(
    session: Session, run: Run, code: int | None, errors: list[tuple[str, dict[str, str]]]
) -> Failure | None:
    """What is wrong with the end of a run whose lines told of `errors`; None when it has done what it should."""
    state = session.states.get(run.step)
    if code == 0 and state is not None and not run.trial and state.status not in ("done", "stale"):
        # Exit status 0 without the result: the fork's scripts report some failures that way.
        return Failure(run, code, [*errors, ("err.no_result", {"why": session.reason(state)})])
    if code == 0:
        return None
    if run.failed_songs and not errors:
        fields = {"count": str(len(run.failed_songs)), "songs": _names(run.failed_songs)}
        errors = [("run.songs_failed", fields)]
    return Failure(run, code, errors)


class StepRuns:
    """Starts the steps' scripts and follows them to their end; what has to be asked or said is the answer."""

    def __init__(self, session: Session):
        self.session = session
        self.runner = Runner()
        self.run = Run()
        self.chain: list[str] = []  # steps that "run all remaining" still has to start
        self.results: dict[str, str] = {}  # step -> failed, stopped: of this session
        self.training = TrainingCurve(session)
        self.failure: Failure | None = None
        self.mark = ""  # how the last run ended, for the window's title
        self.announce: Callable[[], None] = lambda: None  # somebody may look at another window
        self._chain_answers: dict[str, str] = {}
        self._folder = TrainingFolder(session)
        self._ended: Event | None = None
        self._last_current = ""
        session.on_open.append(self._project_opened)

    def _project_opened(self) -> None:
        self.results.clear()
        self.mark, self.failure = "", None
        self.training.opened()

    # Starting

    def can_start(self, key: str) -> bool:
        state = self.session.states.get(key)
        return not self.session.busy and state is not None and state.status != "locked" and key != "songs"

    def start(
        self, key: str, only: Iterable[str] = (), trial: bool = False, answers: dict[str, str] | None = None
    ) -> Reply:
        """Check everything that can be checked, ask what has to be asked, then run the step's script."""
        if not self.session.store_texts():
            self.give_up()
            return None
        self.session.look(force=True)
        if not self.can_start(key):
            return None
        only, answers = list(only), dict(answers or {})

        def again(**more: str) -> Reply:
            return self.start(key, only, trial, {**answers, **more})

        reply = find_obstacle(self.session, key) or self._question(key, trial, answers, again)
        reply = reply or self._launch(key, only, trial, answers)
        if isinstance(reply, Outcome):
            self.give_up()
        return reply

    def _question(self, key: str, trial: bool, answers: dict[str, str], again: Callable[..., Reply]) -> Question | None:
        session = self.session
        earlier = STEPS[: STEP[key].number - 1]
        stale = next((step for step in earlier if session.states[step.key].status == "stale"), None)
        if stale and "stale" not in answers and not self.chain and key not in ("prompts", "lyrics"):
            keys = [step.key for step in STEPS[stale.number - 1 : STEP[key].number]]
            return ask_stale(session, stale, lambda: self._begin_chain(keys), lambda: again(stale="anyway"))
        if key == "train" and session.space.loras() and not trial and "checkpoints" not in answers:
            return ask_checkpoints(session, lambda choice: again(checkpoints=choice), self.give_up)
        if answers.get("checkpoints") == "resume" and "changes" not in answers:
            changes = ask_changes(session, lambda: again(changes="accept"), self.give_up)
            if changes is not None:
                return changes
        if key in ("prep", "train") and "disk" not in answers and _disk_is_short(session):
            return ask_disk(session, lambda: again(disk="anyway"), self.give_up)
        return None

    def _launch(self, key: str, only: list[str], trial: bool, answers: dict[str, str]) -> Reply:
        session, space, checkpoints = self.session, self.session.space, answers.get("checkpoints", "")
        try:
            if key == "train" and not trial and not self._folder.take(checkpoints):
                return session.outcome("bad", "train.elsewhere", folder=session.shown(space.checkpoints()))
            make_room(session, key)
        except OSError as error:
            self._folder.release()
            return session.failed(error)
        arguments = space.arguments(key, only=only, resume=checkpoints == "resume", trial=trial)
        if answers.get("changes") == "accept":
            arguments.append("--accept_changes")
        if key == "train":
            self.training.curve = Curve()
        receipt = {} if trial or only else take_receipt(space, key, session.songs)
        self._start(Run(key, trial=trial, receipt=receipt), [space.script(key).name, *arguments])
        return None

    def command(self, arguments: list[str], title: str, after: Callable[[], None], python: Path | None = None) -> None:
        """Run something that is no step, such as an installation, with the same log and stop button."""
        if not self.session.busy:
            self._start(Run("command", title, after=after), arguments, python)

    def _start(self, run: Run, arguments: list[str], python: Path | None = None) -> None:
        session = self.session
        python = python or session.python()
        session.save()
        session.hush()
        self.results.pop(run.step, None)
        self.run, self.failure, self._ended = run, None, None
        session.state = "running"
        home = session.project.home
        log_folder = (home if home and is_folder(home) else user_config_folder()) / LOGS_FOLDER
        log_path = unique_path(log_folder / f"{stamp()}_{run.step}.log")
        command = subprocess.list2cmdline([session.shown(Path(str(python))), *arguments])
        session.log([f"$ {command}", f"— {session.t('log.file', file=session.shown(log_path))}"])
        self.runner.start(
            [str(python), *arguments], session.program, session.settings.child_environment(), log_path,
            session.space.stop_file(run.step), self._folder.heirs(),
        )  # fmt: skip
        session.repaint()

    # One after the other

    def give_up(self) -> None:
        """Nothing more is started by itself."""
        self.chain = []

    def run_all(self) -> Reply:
        """Start every step that is not done, in order; the first failure ends it."""
        session = self.session
        session.look(force=True)
        if session.busy or not session.songs:
            return None
        keys = remaining_steps(session.states)
        if not keys:
            return session.outcome("good", "run.nothing")
        if "train" in keys and session.space.loras():
            # Asked now: nobody sits there hours later, when its turn comes.
            return ask_checkpoints(session, lambda choice: self._begin_chain(keys, checkpoints=choice), self.give_up)
        return self._begin_chain(keys)

    def _begin_chain(self, keys: list[str], **answers: str) -> Reply:
        self.chain, self._chain_answers = keys, answers
        return self._next_in_chain()

    def _next_in_chain(self) -> Reply:
        key = self.chain[0]
        self.session.lead_to(key)
        reply = self.start(key, answers=self._chain_answers if key == "train" else None)
        if self.session.state != "running" and not isinstance(reply, Question):
            self.give_up()
        return reply

    # Following

    def tick(self) -> None:
        """Take what the child wrote, and its end."""
        session = self.session
        self._take_output()
        for event in self.runner.poll():
            if event.kind == "ended":
                self._ended = event
        # The last lines come first: the explanation belongs below them.
        if self._ended is not None and not self.runner.text.waiting:
            event, self._ended = self._ended, None
            self._take_output()
            self._end(event)
        if self.runner.stopping == "gentle" and time.monotonic() > self.run.stop_by:
            session.log([f"— {session.t('run.killing')}"])
            self.runner.kill()

    def _take_output(self) -> None:
        """Hand on what the child wrote, for a bounded time."""
        text, deadline = self.runner.text, time.monotonic() + DRAIN_BUDGET_S
        while True:
            skipped, lines, current = text.take(INSERT_LINES)
            if not lines and not skipped and current == self._last_current:
                break
            self._last_current = current
            self.session.log(lines, current, skipped)
            for line in [*lines[-50:], current]:
                found = parse_progress(line)
                if found is not None:
                    self.run.read(found)
                if self.run.step == "train":
                    self.training.read(line, found)
            if time.monotonic() > deadline or not text.waiting:
                break

    def describe(self, key: str) -> tuple[str, str]:
        """(status for the icon, sentence) of a step."""
        session = self.session
        if self.run.step == key:
            return "running", session.t("state.running" if session.state == "running" else "state.stopping")
        state = session.states.get(key, StepState("locked"))
        sentence = session.reason(state)
        if state.status == "ready" and self.results.get(key) == "failed":
            return "failed", session.t("state.failed", reason=sentence)
        return state.status, sentence

    # Ending

    def stop(self) -> None:
        """First call: ask the script to save and end. Second call: end the whole process tree."""
        session = self.session
        self.give_up()
        if session.state == "running":
            session.state = "stopping"
            self.run.stop_by = time.monotonic() + STOP_SECONDS.get(self.run.step, DEFAULT_STOP_SECONDS)
            self.runner.request_stop()
            session.log([f"— {session.t('run.stopping')}"])
        else:
            self.runner.kill()
        session.repaint()

    def _end(self, event: Event) -> None:
        """One place for every end: done, failed, stopped, never started."""
        session, run, code = self.session, self.run, event.code
        stopped, self.run = session.state != "running", Run()
        spent = human_seconds(time.monotonic() - self.runner.started_at)
        if code is None:
            session.log([event.error])
        session.ended()
        self._folder.release()
        if code == 0 and run.receipt:
            session.project.receipts[run.step] = {**run.receipt, "finished": time.time()}
        self.training.poll()
        session.save()
        session.look(force=True)
        outcome = self._outcome(run, code, stopped, spent)
        session.tell(outcome)
        if run.trial and not stopped:
            session.tell(trial_outcome(session, run.begun))
        title = run.name(session)
        session.log([f"— {session.t('log.ended', title=title, code='-' if code is None else code, spent=spent)}"])
        sign = "■" if stopped else "✓" if outcome.level == "good" else "✗"
        self.mark = f"{sign} {title} – "
        self.announce()
        run.after()
        self.chain = self.chain[1:] if outcome.level == "good" and self.chain[:1] == [run.step] else []
        if self.chain:
            session.tell(self._next_in_chain())
        session.repaint()

    def _outcome(self, run: Run, code: int | None, stopped: bool, spent: str) -> Outcome:
        session, fields = self.session, {"title": run.name(self.session), "spent": spent}
        if stopped:
            self.results[run.step] = "stopped"
            if run.step != "train":
                return session.outcome("info", "run.stopped", **fields)
            # The fork's trainer cannot go on, and a trial leaves nothing to go on from.
            can_resume = session.space.can_resume() and not run.trial
            return session.outcome("info", "run.stopped_training" if can_resume else "run.stopped_only", **fields)
        self.failure = find_errors(session, run, code, list(self.runner.text.errors))
        if self.failure is None:
            return session.outcome("good", "run.done", **fields)
        if not run.trial:
            self.results[run.step] = "failed"
        return self.failure.outcome(session)


# --- 12. Other programs -----------------------------------------------------------------------------------------------


class Environment:
    """What the scripts' Python has, what is missing, and how it is installed."""

    def __init__(self, session: Session, runs: StepRuns):
        self.session, self.runs = session, runs
        self.report: dict[str, Any] | None = None  # what the scripts' Python said about itself
        self.asking = False

    def query(self, only_if_unknown: bool = False) -> None:
        """Ask the scripts' Python what it has, in the background: importing torch there takes seconds."""
        if only_if_unknown and (self.report is not None or self.asking):
            return
        session, python = self.session, self.session.python()
        self._store(None, asking=python is not None)
        if python is not None:
            question = partial(query_python, python, session.settings.child_environment(), session.program)
            session.in_background(question, self._store)

    def _store(self, report: dict[str, Any] | None, asking: bool = False) -> None:
        self.report, self.asking = report, asking
        self.session.repaint()

    def findings(self) -> list[Finding]:
        session = self.session
        python = next(iter(python_candidates(session.settings, session.program)), None)
        return list(judge_environment(session.space, session.songs, python, self.report))

    def installations(self) -> list[tuple[str, list[str]]]:
        """(label, arguments after the Python) of everything that can be installed or downloaded with one click."""
        session, start = self.session, self.session.program / "start.py"
        found = []
        if start.is_file():
            found.append((session.t("install.setup"), [str(start), "setup"]))
            for group, what in read_groups(start).items():
                text = text_or(session.settings.language, f"group.{group}", what)
                found.append((session.t("install.group", name=group, what=text), [str(start), "install", group]))
        if can_download(session.program):
            place = session.settings.checkpoint_dir
            options = ["--checkpoint_dir", place] if place else []
            found.append((session.t("install.weights"), ["-m", "ace_lora.base_weights", *options]))
        return found

    def install(self, arguments: list[str], python: Path | None = None) -> Reply:
        """Run Python with these arguments (None: the scripts' Python), then ask it again."""
        if python is None and self.session.python() is None:
            return self.session.outcome("warn", "install.by_hand")
        self.runs.command(arguments, self.session.t("install.title"), self._installed, python)
        return None

    def _installed(self) -> None:
        self.session.read_flags()
        self.query()

    def mend(self, what: str) -> Reply:
        """The button beside a problem, as far as an installation is its answer."""
        if what in ("tensorboard", "pypinyin"):
            # pypinyin runs in the window's own process, TensorBoard in the scripts' Python.
            own = Path(sys.executable) if what == "pypinyin" and not FROZEN else None
            return self.install(["-m", "pip", "install", what], own)
        found = self.installations()
        if what == "weights":
            return self.install(found[-1][1])
        if not (self.session.program / "start.py").is_file():
            return self.session.outcome("warn", "install.by_hand")
        return self.install(found[0][1])


def open_tensorboard(session: Session, board: TensorBoard) -> Outcome:
    """Start TensorBoard on the trainings' figures; what came of it is told by `tensorboard_outcome`."""
    python = session.python()
    if python is None:
        return Outcome("bad", session.t("env.no_python"), "title.environment")
    board.open(python, session.space.log_folder(), session.program, session.settings.child_environment())
    return session.outcome("info", "tensorboard.starting")


def tensorboard_outcome(session: Session, kind: str, detail: str) -> Outcome:
    """Open the browser when TensorBoard is ready; `kind`, `detail`: see `TensorBoard.answers`."""
    if kind == "ready":
        webbrowser.open(detail)
        return session.outcome("good", "tensorboard.ready", url=detail)
    if kind == "missing":
        return Outcome("bad", session.t("tensorboard.missing"), "mend.tensorboard")
    return session.outcome("bad", "tensorboard.failed", detail=detail)


def copy_to_comfyui(session: Session, folder: Path) -> None:
    """Copy the finished LoRA into ComfyUI's folder for LoRAs, in the background."""
    output = session.space.lora_output()
    target = unique_path(folder / output.name)

    def work() -> Outcome:
        try:
            _copy_file(output, target)
        except OSError as error:
            return session.failed(error)
        return session.outcome("good", "comfy.copied", file=target)

    session.in_background(work, session.tell)


# --- 13. Look ---------------------------------------------------------------------------------------------------------

COLOURS = {
    "rail": "#eef1f6", "surface": "#ffffff", "line": "#d3dae4", "text": "#1b2430", "muted": "#5b6777",
    "accent": "#2457c5", "accent_dark": "#1a4399", "accent_soft": "#e4ecfc", "good": "#1a7a3b", "good_soft": "#e5f4ea",
    "warn": "#935500", "warn_soft": "#fdf2de", "bad": "#b3261e", "bad_soft": "#fbe8e6", "disabled": "#9aa5b3",
    "log": "#121a26", "log_text": "#d7e0ec", "log_muted": "#8fa0b8", "log_bad": "#ff8f87", "log_warn": "#f2c46d",
    "log_head": "#8db8ff", "log_line": "#33415a", "curve_soft": "#b9cdf5",
}  # fmt: skip
CHINESE_FONTS = ("Microsoft YaHei UI", "PingFang SC", "Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei")
# Chinese fonts draw “ ” and … as wide as a character; English text has a font of its own where the system brings one.
FONT_CHOICES = {"zh": CHINESE_FONTS, "en": ("Segoe UI", "Helvetica Neue", *CHINESE_FONTS)}
MONO_CHOICES = ("Cascadia Mono", "Consolas", "Menlo", "Noto Sans Mono CJK SC", "DejaVu Sans Mono")


# fmt: off
def _button(
    back: str, front: str, border: str, hover: str, ring: str, off: tuple[str, str] = ("rail", "disabled"), **more: Any
) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """The row of STYLES for a button; `ring`: colour of the focus; `off`: its colours when it cannot be pressed."""
    edge = {"disabled": off[0], "active": hover}
    return (
        {"background": back, "foreground": front, "bordercolor": border, "lightcolor": back, "darkcolor": back, "width": 0,
         "focuscolor": ring, "padding": (10, 5), "relief": "raised", "anchor": "center", **more},
        {"background": {"disabled": off[0], "pressed": hover, "active": hover}, "lightcolor": edge, "darkcolor": edge,
         "foreground": {"disabled": off[1]}, "bordercolor": {"disabled": "line", "focus": "accent_dark"}},
    )


# style -> its options, and those of a state: names of colours and fonts, lengths for 100 %
STYLES: dict[str, tuple[dict[str, Any], dict[str, dict[str, str]]]] = {
    ".": ({"background": "surface", "foreground": "text", "bordercolor": "line", "lightcolor": "surface",
           "darkcolor": "surface", "troughcolor": "rail", "focuscolor": "accent", "selectbackground": "accent",
           "selectforeground": "#ffffff", "insertcolor": "text", "font": "TkDefaultFont", "arrowsize": 12},
          {"foreground": {"disabled": "disabled"}}),
    **{f"{name}.{kind}": ({"background": back}, {}) for kind in ("TFrame", "TLabel") for name, back in (
        ("Rail", "rail"), ("Good", "good_soft"), ("Warn", "warn_soft"), ("Bad", "bad_soft"), ("Info", "accent_soft"))},
    "Title.TLabel": ({"font": "title"}, {}),
    "RailTitle.TLabel": ({"font": "head", "background": "rail"}, {}),
    "Muted.TLabel": ({"foreground": "muted"}, {}),
    "Small.TLabel": ({"foreground": "muted", "font": "small"}, {}),
    "SmallBad.TLabel": ({"foreground": "bad", "font": "small"}, {}),
    "SmallWarn.TLabel": ({"foreground": "warn", "font": "small"}, {}),
    "TButton": _button("surface", "text", "line", "accent_soft", "accent"),
    "Primary.TButton": _button("accent", "#ffffff", "accent", "accent_dark", "#ffffff", ("#c4cedd", "#ffffff"),
                               padding=(18, 7), font="bold"),
    "Danger.TButton": _button("surface", "bad", "bad", "bad_soft", "bad"),
    "Small.TButton": ({"padding": (7, 2), "font": "small"}, {}),
    "TMenubutton": _button("surface", "text", "line", "accent_soft", "accent", arrowpadding=4, arrowsize=5),
    "Rail.TButton": _button("rail", "text", "line", "accent_soft", "accent", anchor="w"),
    "RailOn.TButton": _button("accent_soft", "accent_dark", "accent", "accent_soft", "accent", anchor="w", padding=(10, 2)),
    # The steps are a list, not a column of buttons: no frame unless one is chosen or has the focus.
    "Step.Rail.TButton": ({"bordercolor": "rail", "padding": (10, 2)}, {"bordercolor": {"focus": "accent_dark"}}),
    "Tool.Rail.TButton": ({"padding": (10, 3)}, {}),
    "ToolOn.RailOn.TButton": ({"padding": (10, 3)}, {}),
    **dict.fromkeys(("TEntry", "TCombobox"), (
        {"fieldbackground": "surface", "padding": (6, 4), "lightcolor": "surface"},
        {"bordercolor": {"focus": "accent"}, "lightcolor": {"focus": "accent"},
         "fieldbackground": {"disabled": "rail", "readonly": "surface"}, "foreground": {"disabled": "disabled", "readonly": "text"},
         "selectbackground": {"readonly": "surface"}, "selectforeground": {"readonly": "text"}})),
    **dict.fromkeys(("Wrong.TEntry", "Wrong.TCombobox"), (
        {"fieldbackground": "bad_soft", "padding": (6, 4), "lightcolor": "surface", "bordercolor": "bad"},
        {"bordercolor": {"": "bad"}, "lightcolor": {"": "bad"}, "fieldbackground": {"": "bad_soft"}})),
    "TCheckbutton": ({"focuscolor": "accent", "indicatorsize": 14, "indicatormargin": 4, "indicatorbackground": "surface", "padding": 2},
                     {"background": {"active": "surface"}, "indicatorforeground": {"selected": "#ffffff"},
                      "indicatorbackground": {"selected": "accent", "active": "accent_soft"}}),
    "Treeview": ({"rowheight": 27, "fieldbackground": "surface", "background": "surface", "bordercolor": "line"},
                 {"background": {"selected": "accent_soft"}, "foreground": {"selected": "text"},
                  "bordercolor": {"focus": "accent"}, "lightcolor": {"focus": "accent"}}),
    "Treeview.Heading": ({"background": "rail", "relief": "flat", "padding": (6, 5), "foreground": "muted"},
                         {"background": {"active": "accent_soft"}}),
    "TProgressbar": ({"background": "accent", "troughcolor": "rail", "bordercolor": "line", "lightcolor": "accent",
                      "darkcolor": "accent", "thickness": 12}, {}),
    "TPanedwindow": ({"background": "line"}, {}),
    "Sash": ({"sashthickness": 6, "gripcount": 0, "background": "rail", "bordercolor": "line"}, {}),
    "TScrollbar": ({"background": "line", "troughcolor": "surface", "bordercolor": "surface", "arrowcolor": "muted",
                    "gripcount": 0, "arrowsize": 13, "width": 13},
                   {"background": {"disabled": "surface", "active": "disabled"}, "bordercolor": {"disabled": "surface"},
                    "lightcolor": {"disabled": "surface"}, "darkcolor": {"disabled": "surface"}}),
    "Log.Vertical.TScrollbar": ({"background": "log_line", "troughcolor": "log", "bordercolor": "log", "lightcolor": "log_line",
                                 "darkcolor": "log_line"},
                                {"background": {"disabled": "log", "active": "log_muted"}, "bordercolor": {"": "log"},
                                 "lightcolor": {"disabled": "log"}, "darkcolor": {"disabled": "log"}}),
}
# Of what ttk has no styles for.
OPTIONS = {
    "TCombobox*Listbox.font": "TkTextFont", "TCombobox*Listbox.background": "surface",
    "TCombobox*Listbox.selectBackground": "accent", "Menu.font": "TkMenuFont", "Menu.background": "surface",
    "Menu.foreground": "text", "Menu.relief": "flat", "Menu.activeBackground": "accent", "Menu.activeForeground": "#ffffff",
    "Menu.borderWidth": 1, "Menu.activeBorderWidth": 0, "Menu.disabledForeground": "disabled",
}
# fmt: on


class Ui:
    """Language, scale, fonts, colours and icons: what every widget needs in order to be drawn."""

    def __init__(self, root: tk.Tk, language: str, scale: str):
        self.root, self.language = root, language
        dots = root.winfo_fpixels("1i") if scale == "auto" else float(scale) * 0.96
        if scale == "auto" and not WINDOWS and sys.platform != "darwin":
            # X servers report wild sizes; desktops say what they want in these.
            with contextlib.suppress(ValueError):
                dots = max(dots, 96 * float(os.environ.get("GDK_SCALE") or 1))
        self.scale = max(0.8, min(4.0, dots / 96))
        root.tk.call("tk", "scaling", self.scale * 96 / 72)
        self._set_fonts()
        self._set_styles()
        with contextlib.suppress(tk.TclError):  # Tk's own file dialogs (where the system has none) speak it too
            root.tk.call("::msgcat::mclocale", "zh_cn" if language == "zh" else "en")
            root.tk.eval("namespace eval ::tk {::msgcat::mcload [file join $::tk_library msgs]}")
        self._icons: dict[tuple[str, int], tk.PhotoImage] = {}
        self.scroll_frames: list[ScrollFrame] = []
        # Once for all of them: handlers added to "all" by every frame would outlive it and grow in number.
        root.bind_all("<FocusIn>", lambda event: [frame.follow(event) for frame in self.scroll_frames])
        for sequence in ("<MouseWheel>", "<Button-4>", "<Button-5>"):
            root.bind_all(sequence, lambda event: [frame.wheel(event) for frame in self.scroll_frames])

    def px(self, length: float) -> int:
        """A length for 100 % on this screen."""
        return max(1, round(length * self.scale)) if length else 0

    def pad(self, blank: Any) -> Any:
        """The blank on one, two or four sides, in lengths for 100 %."""
        return tuple(map(self.px, blank)) if isinstance(blank, tuple) else self.px(blank)

    def put(
        self, widget: Any, row: int, column: int, sticky: str = "", padx: Any = 0, pady: Any = 0, **more: Any
    ) -> Any:
        """Put a widget into its parent's grid; returns the widget."""
        widget.grid(row=row, column=column, sticky=sticky, padx=self.pad(padx), pady=self.pad(pady), **more)
        return widget

    def line_up(self, widget: Any, side: str = "left", padx: Any = 0) -> Any:
        """Put a widget beside those that are in its parent already; returns the widget."""
        widget.pack(side=side, padx=self.pad(padx))
        return widget

    def frame(self, parent: tk.Misc, style: str = "TFrame", padding: Any = 0) -> ttk.Frame:
        return ttk.Frame(parent, style=style, padding=self.pad(padding))

    def label(self, parent: tk.Misc, key: str, style: str = "TLabel") -> ttk.Label:
        return ttk.Label(parent, text=self.t(key), style=style)

    def button(self, parent: tk.Misc, key: str, command: Callable[[], Any], style: str = "TButton") -> ttk.Button:
        return ttk.Button(parent, text=self.t(key), style=style, command=command)

    def t(self, key: str, **fields: Any) -> str:
        return say(self.language, key, fields)

    def _set_fonts(self) -> None:
        families = set(tkfont.families(self.root))
        text = next((name for name in FONT_CHOICES[self.language] if name in families), None)
        mono = next((name for name in MONO_CHOICES if name in families), None)
        for name in ("Default", "Text", "Menu", "Heading", "Caption", "Tooltip", "Fixed"):
            font, family = tkfont.nametofont(f"Tk{name}Font", root=self.root), mono if name == "Fixed" else text
            size = 9 if name in ("Tooltip", "Fixed") else 10
            font.configure(size=size, weight="normal", **({"family": family} if family else {}))
        family = tkfont.nametofont("TkDefaultFont", root=self.root).cget("family")
        looks = {"title": (15, "bold"), "head": (11, "bold"), "bold": (10, "bold"), "small": (9, "normal")}
        self.fonts = {
            name: tkfont.Font(self.root, family=family, size=size, weight=weight)
            for name, (size, weight) in looks.items()
        }

    def _set_styles(self) -> None:
        style = ttk.Style(self.root)
        style.theme_use("clam")
        self.root.configure(background=COLOURS["rail"])
        for name, (options, states) in STYLES.items():
            style.configure(name, **{option: self._value(value) for option, value in options.items()})
            for option, values in states.items():
                style.map(name, **{option: [(state, self._value(value)) for state, value in values.items()]})
        style.layout("Vertical.TScrollbar", [("Vertical.Scrollbar.trough", {"sticky": "ns", "children": [
            ("Vertical.Scrollbar.thumb", {"expand": "1", "sticky": "nswe"})]})])  # fmt: skip
        # Else scrolling through a form changes the values that pass under the pointer.
        for event in ("<MouseWheel>", "<Button-4>", "<Button-5>"):
            self.root.unbind_class("TCombobox", event)
        for option, value in OPTIONS.items():
            self.root.option_add(f"*{option}", self._value(value))

    def _value(self, value: Any) -> Any:
        """What a colour's name, a font's name or a length for 100 % stands for."""
        if isinstance(value, str):
            return COLOURS.get(value) or self.fonts.get(value, value)
        return self.pad(value)

    def icon(self, kind: str, size: int = 20) -> tk.PhotoImage:
        key = (kind, size)
        if key not in self._icons:
            data = base64.b64encode(draw_icon(kind, self.px(size)))
            self._icons[key] = tk.PhotoImage(master=self.root, data=data)
        return self._icons[key]


# kind: colour, whether the disc is filled (else a ring), the sign's strokes in units of the radius, half their width
ICONS: dict[str, tuple[str, bool, tuple[tuple[float, float, float, float], ...], float]] = {
    "done": ("good", True, ((-0.45, 0.02, -0.12, 0.36), (-0.12, 0.36, 0.46, -0.32)), 0.11),
    "ready": ("accent", False, (), 0.0),
    "running": ("accent", True, ((-0.22, -0.38, -0.22, 0.38), (-0.22, -0.38, 0.4, 0.0), (-0.22, 0.38, 0.4, 0.0),
                                 (-0.1, 0.0, 0.2, 0.0), (-0.12, -0.15, -0.12, 0.15)), 0.12),
    "stale": ("warn", True, ((0.0, -0.48, 0.0, 0.12), (0.0, 0.46, 0.0, 0.47)), 0.12),
    "failed": ("bad", True, ((-0.34, -0.34, 0.34, 0.34), (-0.34, 0.34, 0.34, -0.34)), 0.11),
    "locked": ("disabled", False, ((-0.26, 0.08, 0.26, 0.08), (-0.26, 0.32, 0.26, 0.32), (-0.26, 0.2, 0.26, 0.2),
                                   (-0.18, 0.06, -0.18, -0.24), (0.18, 0.06, 0.18, -0.24), (-0.18, -0.24, -0.08, -0.36),
                                   (0.18, -0.24, 0.08, -0.36), (-0.08, -0.36, 0.08, -0.36)), 0.07),
    "info": ("accent", True, ((0.0, -0.46, 0.0, -0.45), (0.0, -0.1, 0.0, 0.48)), 0.12),
    "app": ("accent", True, ((-0.55, -0.12, -0.55, 0.12), (-0.28, -0.4, -0.28, 0.4), (0.0, -0.22, 0.0, 0.22),
                             (0.28, -0.55, 0.28, 0.55), (0.55, -0.18, 0.55, 0.18)), 0.09),
}  # fmt: skip


def draw_icon(kind: str, size: int) -> bytes:
    """A round state mark as PNG with smooth edges, for any size: bitmap files would be blurred at 200 %."""
    name, filled, strokes, half = ICONS[kind]
    colour, radius = bytes.fromhex(COLOURS[name][1:]), size / 2 - 0.5

    def cover(distance: float) -> float:
        """How much of a pixel lies inside an edge that is `distance` radii away."""
        return min(1.0, max(0.0, distance * radius + 0.5))

    rows = bytearray()
    for y in range(size):
        rows.append(0)
        for x in range(size):
            point = complex(x + 0.5 - size / 2, y + 0.5 - size / 2) / radius
            disc = cover(1 - abs(point))
            sign = max((cover(half - _distance(point, *stroke)) for stroke in strokes), default=0.0)
            if filled:
                rows += bytes((*(round(part + (255 - part) * sign) for part in colour), round(255 * disc)))
            else:
                rows += bytes((*colour, round(255 * max(min(disc, cover(abs(point) - 0.86)), sign))))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 6, 0, 0, 0)),
              (b"IDAT", zlib.compress(bytes(rows), 1)), (b"IEND", b""))  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _distance(point: complex, x1: float, y1: float, x2: float, y2: float) -> float:
    """From a point to the nearest one of a line between two ends."""
    start, way = complex(x1, y1), complex(x2 - x1, y2 - y1)
    return abs(point - start - max(0.0, min(1.0, ((point - start) / way).real)) * way)


# --- 14. Widgets ------------------------------------------------------------------------------------------------------


def wrapped(label: ttk.Label) -> ttk.Label:
    """Make a label wrap at its own width, so that no sentence is ever cut."""

    def fit(event: tk.Event) -> None:
        # A little less than the width: Tk counts the blank at a line's end.
        room = max(40, event.width - 8)
        if abs(int(str(label.cget("wraplength") or 0)) - room) > 1:
            label.configure(wraplength=room)

    label.configure(wraplength=200)
    label.bind("<Configure>", fit)
    return label


def side_bar(view: Any, row: int = 0, column: int = 1) -> ttk.Scrollbar:
    """A vertical scroll bar beside `view` in its parent's grid, there only while something is out of sight."""
    bar = ttk.Scrollbar(view.master, command=view.yview)

    def moved(first: str, last: str) -> None:
        bar.set(first, last)
        # Hidden, not removed: without its width the text would wrap anew and the bar could flicker for ever.
        bar.state(["disabled"] if float(first) <= 0 and float(last) >= 1 else ["!disabled"])

    view.configure(yscrollcommand=moved)
    bar.grid(row=row, column=column, sticky="ns")
    return bar


def stretch(frame: tk.Misc, column: int, row: int) -> None:
    """Let one column and one row of a grid take the room that is there."""
    frame.columnconfigure(column, weight=1)
    frame.rowconfigure(row, weight=1)


def tool_button(ui: Ui, parent: tk.Misc, key: str, command: Callable[[], Any]) -> ttk.Button:
    """A small button in a row of them."""
    return ui.line_up(ui.button(parent, key, command, "Small.TButton"), padx=(0, 6))


def drop_down(
    ui: Ui, parent: tk.Misc, key: str, commands: dict[str, Callable[[], Reply]], tell: Callable[[Reply], None]
) -> ttk.Menubutton:
    """A button that opens a menu of commands; what they answer is told."""
    button = ttk.Menubutton(parent, text=ui.t(key))
    menu = tk.Menu(button, tearoff=False)
    for label, command in commands.items():
        menu.add_command(label=label, command=lambda command=command: tell(command()))
    button.configure(menu=menu)
    return button


def enable(widget: tk.Widget | None, usable: object) -> None:
    """Let a widget be used or not; None is a button that this page does not have."""
    if widget is not None:
        widget.configure(state="normal" if usable else "disabled")


def show_if(widget: tk.Widget, wanted: object) -> None:
    """Let a widget of a grid be seen or not; it keeps its place."""
    (widget.grid if wanted else widget.grid_remove)()


TableRows = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]  # item -> values, tags


def fill_table(table: ttk.Treeview, shown: TableRows, rows: TableRows) -> None:
    """Make a table show `rows`, in this order. `shown` holds what it shows: asking Tk for 300 songs could be felt."""
    gone = [item for item in shown if item not in rows]
    table.delete(*gone)
    for item in gone:
        del shown[item]
    for index, (item, (values, tags)) in enumerate(rows.items()):
        if item not in shown:
            table.insert("", index, iid=item, values=values, tags=tags)
        elif shown[item] != (values, tags):
            table.item(item, values=values, tags=tags)
        shown[item] = (values, tags)


class Tip:
    """A sentence that appears when the pointer rests on a widget."""

    def __init__(self, ui: Ui, widget: tk.Widget, text: str):
        self._ui, self._widget, self._text = ui, widget, text
        self._window: tk.Toplevel | None = None
        self._timer: str | None = None
        widget.bind("<Enter>", self._arm, add="+")
        for event in ("<Leave>", "<ButtonPress>", "<FocusOut>", "<Destroy>"):
            widget.bind(event, self._hide, add="+")

    def _arm(self, _event: tk.Event) -> None:
        self._hide()
        self._timer = self._widget.after(600, self._show)

    def _show(self) -> None:
        window = tk.Toplevel(self._widget)
        window.wm_overrideredirect(True)
        label = tk.Label(window, text=self._text, font="TkTooltipFont", background=COLOURS["text"], foreground="#ffffff",
                         justify="left", padx=self._ui.px(8), pady=self._ui.px(5), wraplength=self._ui.px(420))  # fmt: skip
        label.pack()
        x = min(self._widget.winfo_rootx(), self._widget.winfo_screenwidth() - label.winfo_reqwidth())
        window.wm_geometry(f"+{max(0, x)}+{self._widget.winfo_rooty() + self._widget.winfo_height() + 4}")
        self._window = window

    def _hide(self, _event: tk.Event | None = None) -> None:
        with contextlib.suppress(tk.TclError):  # the widget may be gone already
            if self._timer:
                self._widget.after_cancel(self._timer)
            if self._window:
                self._window.destroy()
        self._timer = self._window = None


class ScrollFrame:
    """A frame that scrolls down when its content is higher than the room; follows the keyboard focus."""

    def __init__(self, ui: Ui, parent: tk.Widget):
        self.frame = ttk.Frame(parent)
        stretch(self.frame, 0, 0)
        self._canvas = tk.Canvas(self.frame, background=COLOURS["surface"], highlightthickness=0, borderwidth=0,
                                 width=ui.px(200), height=ui.px(80), yscrollincrement=ui.px(20))  # fmt: skip
        self.inner = ttk.Frame(self._canvas)
        self.inner.columnconfigure(0, weight=1)
        self._item = self._canvas.create_window(0, 0, window=self.inner, anchor="nw")
        self._canvas.grid(row=0, column=0, sticky="nsew")
        side_bar(self._canvas)
        self.inner.bind("<Configure>", self._fit)
        self._canvas.bind("<Configure>", self._fit)
        ui.scroll_frames.append(self)
        self.frame.bind("<Destroy>", lambda _event: ui.scroll_frames.remove(self))

    def _fit(self, _event: tk.Event) -> None:
        self._canvas.itemconfigure(self._item, width=self._canvas.winfo_width())
        height = self.inner.winfo_reqheight()
        self._canvas.configure(scrollregion=(0, 0, 1, height))
        if height <= self._canvas.winfo_height():
            self._canvas.yview_moveto(0)

    def _inside(self, widget: Any) -> bool:
        return isinstance(widget, tk.Misc) and str(widget).startswith(str(self.inner) + ".")

    def follow(self, event: tk.Event) -> None:
        """Bring the widget that got the focus into sight, when it is one in here."""
        if not self._inside(event.widget):
            return
        top = event.widget.winfo_rooty() - self.inner.winfo_rooty()
        bottom, height = top + event.widget.winfo_height(), max(1, self.inner.winfo_height())
        first, last = (part * height for part in self._canvas.yview())
        if top < first:
            self._canvas.yview_moveto(top / height)
        elif bottom > last:
            self._canvas.yview_moveto((bottom - (last - first)) / height)

    def wheel(self, event: tk.Event) -> None:
        if not (self._inside(event.widget) or event.widget in (self._canvas, self.inner)):
            return
        if isinstance(event.widget, (tk.Text, ttk.Treeview)) or self._canvas.yview() == (0.0, 1.0):
            return
        up = event.num == 4 or getattr(event, "delta", 0) > 0
        self._canvas.yview_scroll(-2 if up else 2, "units")


class LogPane:
    """The bottom of the window: the output of what runs. Shows the last MAX_LOG_LINES; the file has everything."""

    def __init__(self, ui: Ui, parent: tk.Widget, said: Callable[[int], str], hint: str):
        """`hint` stands there until the first line comes."""
        self._said = said  # makes the line that tells how many lines were left out
        self.frame = ttk.Frame(parent)
        self.text = ScrolledText(
            self.frame, wrap="char", height=6, width=40, background=COLOURS["log"], foreground=COLOURS["log_text"],
            insertbackground=COLOURS["log_text"], font="TkFixedFont", relief="flat", borderwidth=0, padx=ui.px(10),
            pady=ui.px(6), highlightthickness=ui.px(2), highlightbackground=COLOURS["log"], insertwidth=0,
            highlightcolor=COLOURS["accent"], undo=False, selectbackground=COLOURS["accent"],
        )  # fmt: skip
        # ScrolledText brings a scroll bar of the old kind.
        self.text.vbar.pack_forget()
        bar = ttk.Scrollbar(self.text.frame, command=self.text.yview, style="Log.Vertical.TScrollbar")
        bar.pack(side="right", fill="y")
        self._end_shown = True

        def moved(first: str, last: str) -> None:
            self._end_shown = float(last) > 0.9999
            bar.set(first, last)

        self.text.configure(yscrollcommand=moved)
        # A banner or a smaller window takes lines from the bottom: without this the pane would follow no longer.
        self.text.bind("<Configure>", lambda _event: self.text.see("end-1c") if self._end_shown else None)
        self.text.pack(fill="both", expand=True)
        for tag, colour in (("bad", "log_bad"), ("warn", "log_warn"), ("head", "log_head"), ("muted", "log_muted")):
            self.text.tag_configure(tag, foreground=COLOURS[colour])
        self.text.mark_set("live", "end-1c")
        self.text.mark_gravity("live", "left")
        self._make_read_only()
        self._hint = tk.Label(self.text, text=hint, background=COLOURS["log"], foreground=COLOURS["log_muted"])
        self._hint.place(x=0, y=0)
        self._current = ""
        self._lines = 0

    def _make_read_only(self) -> None:
        """Keep what walks, selects and copies; a disabled Text could not have the focus on every system."""
        editing = re.compile(r"<(Key|(Control-|Shift-)*Key-(Tab|d|h|i|k|o|t|Insert|Delete|BackSpace|Return|KP_Enter)"
                             r"|Meta-.*|<(Cut|Paste|PasteSelection|Clear|Undo|Redo)>)>")  # fmt: skip
        for sequence in self.text.bind_class("Text"):
            if not editing.fullmatch(sequence):
                self.text.bind_class("ReadOnlyText", sequence, self.text.tk.call("bind", "Text", sequence))
        # `str` of a ScrolledText is its frame's path.
        self.text.bindtags((self.text._w, "ReadOnlyText", str(self.text.winfo_toplevel()), "all"))

    def write(self, lines: list[str], current: str = "", skipped: int = 0) -> None:
        """Append finished lines and show `current` as the last, unfinished one."""
        if not lines and not skipped and current == self._current:
            return
        text = self.text
        self._hint.place_forget()
        # 0.999 of 5,000 lines is five lines above the end: whoever scrolled up by a notch must stay there.
        at_end = (last := text.yview()[1]) >= 1 or (last > 0.999 and text.dlineinfo("end-1c") is not None)
        if self._current:
            text.delete("live", "end-1c")
        pieces: list[str] = [self._said(skipped) + "\n", "muted"] if skipped else []
        for look, run in itertools.groupby(lines, lambda line: line_look(line) if len(line) < 2000 else ""):
            pieces += ["\n".join(run) + "\n", look]
        if pieces:
            text.insert("end-1c", *pieces)
            text.mark_set("live", "end-1c")
            self._lines += len(lines) + bool(skipped)
        if current:
            text.insert("end-1c", current[-4000:], line_look(current[-4000:]))
        self._current = current
        if self._lines > MAX_LOG_LINES + TRIM_SLACK:
            text.delete("1.0", f"{self._lines - MAX_LOG_LINES + 1}.0")
            self._lines = MAX_LOG_LINES
        if at_end:
            text.see("end-1c")

    def clear(self) -> None:
        self.text.delete("1.0", "end")
        self._current, self._lines = "", 0
        self.text.mark_set("live", "end-1c")

    def content(self) -> str:
        return self.text.get("1.0", "end-1c")


class LossChart:
    """The training's loss: raw and smoothed, the validation loss, and the learning rate on a scale of its own."""

    def __init__(self, ui: Ui, parent: tk.Widget):
        self._ui = ui
        self.canvas = tk.Canvas(parent, background=COLOURS["surface"], highlightthickness=1, width=ui.px(240),
                                height=ui.px(150), highlightbackground=COLOURS["line"])  # fmt: skip
        self._curve: Curve | None = None
        self._pending: str | None = None
        self.canvas.bind("<Configure>", lambda _event: self._schedule())

    def show(self, curve: Curve | None) -> None:
        self._curve = curve
        self._schedule()

    def _schedule(self) -> None:
        if self._pending is None:
            self._pending = self.canvas.after_idle(self._draw)

    def _draw(self) -> None:
        self._pending = None
        canvas, ui, c, curve = self.canvas, self._ui, COLOURS, self._curve
        canvas.delete("all")
        width, height = canvas.winfo_width(), canvas.winfo_height()
        look = {"anchor": "nw", "font": ui.fonts["bold"], "fill": c["text"]}
        canvas.create_text(ui.px(12), ui.px(9), text=ui.t("chart.title"), **look)
        if curve is None or not curve.steps:
            canvas.create_text(width / 2, height / 2, text=ui.t("chart.empty"), fill=c["muted"], justify="center",
                               width=max(80, width - ui.px(40)), font=ui.fonts["small"])  # fmt: skip
            return
        # Left, top, right, bottom of the field in which the lines are drawn.
        self._field = ui.px(54), ui.px(54), width - ui.px(14), height - ui.px(30)
        if self._field[2] - self._field[0] < ui.px(40) or self._field[3] - self._field[1] < ui.px(30):
            return
        self._steps = curve.steps[0], max(curve.steps[-1], curve.steps[0] + 1)
        low, high = self._range(curve)
        self._draw_ticks(low, high)
        columns = max(50, int(self._field[2] - self._field[0]))
        rates = [rate for rate in curve.rate if rate == rate]
        if rates and max(rates) > 0:
            points = thin_out(curve.steps, curve.rate, columns)
            self._draw_line(points, 0.0, max(rates) * 1.02, fill=c["disabled"], dash=(3, 3))
        self._draw_line(thin_out(curve.steps, curve.loss, columns), low, high, fill=c["curve_soft"])
        smooth = thin_out(curve.steps, curve.smooth, columns)
        self._draw_line(smooth, low, high, fill=c["accent"], width=ui.px(2))
        if curve.validation:
            validation = [(float(x), y) for x, y in curve.validation]
            self._draw_line(validation, low, high, fill=c["good"], width=ui.px(2))
        self._legend(curve, rates)

    @staticmethod
    def _range(curve: Curve) -> tuple[float, float]:
        """The lowest and highest loss that is shown."""
        shown = sorted(value for value in curve.loss if value == value)
        # One spike at the start would press everything else to the ground.
        high = shown[min(len(shown) - 1, int(len(shown) * 0.995))] if len(shown) > 50 else shown[-1]
        values = [value for _, value in curve.validation]
        high, low = max([high, *values]), min([shown[0], *values])
        return low, high if high > low else low + max(abs(low) * 0.1, 1e-6)

    def _draw_ticks(self, low: float, high: float) -> None:
        left, top, right, bottom = self._field
        first, last = self._steps
        look: dict[str, Any] = {"font": self._ui.fonts["small"], "fill": COLOURS["muted"]}
        for tick in nice_ticks(low, high):
            y = bottom - (tick - low) / (high - low) * (bottom - top)
            self.canvas.create_line(left, y, right, y, fill=COLOURS["rail"])
            self.canvas.create_text(left - self._ui.px(6), y, text=f"{tick:.4g}", anchor="e", **look)
        for tick in nice_ticks(first, last):
            if tick == int(tick):
                x = left + (tick - first) / (last - first) * (right - left)
                self.canvas.create_text(x, bottom + self._ui.px(6), text=f"{int(tick)}", anchor="n", **look)

    def _draw_line(self, points: list[tuple[float, float]], low: float, high: float, **look: Any) -> None:
        left, top, right, bottom = self._field
        first, last = self._steps
        flat: list[float] = []
        for x, y in points:
            part = (min(max(y, low), high) - low) / ((high - low) or 1.0)
            flat += [left + (x - first) / (last - first) * (right - left), bottom - part * (bottom - top)]
        # A line needs two points.
        self.canvas.create_line(*(flat if len(flat) > 2 else [*flat, flat[0] + 1, flat[1]]), **look)

    def _legend(self, curve: Curve, rates: list[float]) -> None:
        ui, x, y = self._ui, self._ui.px(12), self._ui.px(38)
        entries = (
            ("chart.smooth", "accent", curve.smooth, ".4f"), ("chart.raw", "curve_soft", curve.loss, ".4f"),
            ("chart.validation", "good", [loss for _, loss in curve.validation], ".4f"), ("chart.rate", "disabled", rates, ".2e"),
        )  # fmt: skip
        for key, colour, values, digits in entries:
            if not values:
                continue
            value = format(values[-1], digits)
            self.canvas.create_line(x, y, x + ui.px(14), y, fill=COLOURS[colour], width=ui.px(3))
            item = self.canvas.create_text(x + ui.px(18), y, text=f"{ui.t(key)} {value}", anchor="w",
                                           font=ui.fonts["small"], fill=COLOURS["muted"])  # fmt: skip
            x = self.canvas.bbox(item)[2] + ui.px(10)


class Header:
    """The line at the top: the program, the project, and the button for the other language."""

    def __init__(self, ui: Ui, parent: tk.Widget, change_look: Callable[..., None]):
        head = ui.put(ui.frame(parent, "Rail.TFrame", (14, 8, 14, 6)), 0, 0, "ew", columnspan=2)
        head.columnconfigure(2, weight=1)
        ui.put(ttk.Label(head, image=ui.icon("app", 24), style="Rail.TLabel"), 0, 0, padx=(0, 8))
        ui.put(ttk.Label(head, text=PROGRAM_NAME, style="RailTitle.TLabel"), 0, 1, padx=(0, 18))
        self.project = ui.put(ttk.Label(head, style="Rail.TLabel"), 0, 2, "ew")
        other = next(code for code in LANGUAGES if code != ui.language)
        button = ttk.Button(
            head, text=LANGUAGES[other], style="Rail.TButton", command=lambda: change_look(language=other)
        )
        self.language = ui.put(button, 0, 3)


class Rail:
    """The column on the left: the seven steps with their states, and below them what belongs to no step."""

    def __init__(
        self, ui: Ui, parent: tk.Widget, show_page: Callable[[str], None], tools: dict[str, Callable[[], None]]
    ):
        """`tools`: text key -> what the button does."""
        self._ui = ui
        self.frame = frame = ui.frame(parent, "Rail.TFrame", (10, 0, 10, 10))
        stretch(frame, 0, len(STEPS) + 1)
        self.steps: dict[str, ttk.Button] = {}
        for step in STEPS:
            button = ttk.Button(frame, compound="left", width=19, command=lambda key=step.key: show_page(key))
            self.steps[step.key] = ui.put(button, step.number, 0, "ew", pady=(0, 2))
            button.bind("<Down>", lambda event: event.widget.tk_focusNext().focus_set())
            button.bind("<Up>", lambda event: event.widget.tk_focusPrev().focus_set())
        self.tools: dict[str, ttk.Button] = {}
        for line, (key, command) in enumerate(tools.items(), start=len(STEPS) + 2):
            self.tools[key] = ui.put(ui.button(frame, key, command, "Tool.Rail.TButton"), line, 0, "ew", pady=(4, 0))

    def show(self, statuses: dict[str, str], page: str, usable: dict[str, bool]) -> None:
        """Paint the steps' states, mark the page that is open, and let tools be pressed or not."""
        t = self._ui.t
        for step in STEPS:
            status = statuses[step.key]
            self.steps[step.key].configure(
                image=self._ui.icon(status, 22),
                text=f" {step.number}  {t(f'rail.{step.key}')}\n {t(f'status.{status}')}",
                style="RailOn.TButton" if page == step.key else "Step.Rail.TButton",
            )
        for key, can_be_pressed in usable.items():
            enable(self.tools[key], can_be_pressed)
        environment = "ToolOn.RailOn.TButton" if page == "environment" else "Tool.Rail.TButton"
        self.tools["title.environment"].configure(style=environment)


class Banner:
    """A sentence with a colour and an icon, perhaps with a button, that stays until the next one or until it is closed."""

    LOOKS = {"good": ("Good", "done"), "info": ("Info", "info"), "warn": ("Warn", "stale"), "bad": ("Bad", "failed")}  # noqa: RUF012

    def __init__(self, ui: Ui, parent: tk.Widget, close: Callable[[], None]):
        self._ui = ui
        # An empty holder keeps the banner's place in the window.
        holder = ttk.Frame(parent, style="Rail.TFrame", height=1)
        holder.pack(fill="x", side="top")
        self.frame = ui.frame(holder, padding=(12, 6))
        self.frame.columnconfigure(1, weight=1)
        self._icon = ui.put(ttk.Label(self.frame), 0, 0, "n", (0, 10))
        self.text = ui.put(wrapped(ttk.Label(self.frame, justify="left")), 0, 1, "ew")
        self.action = ui.put(ttk.Button(self.frame, style="Small.TButton"), 0, 2, "n", (8, 0))
        ui.put(ttk.Button(self.frame, text="✕", style="Small.TButton", command=close), 0, 3, "n", (8, 0))

    def show(self, level: str, message: str, action: tuple[str, Callable[[], None]] | None = None) -> None:
        style, icon = self.LOOKS[level]
        self.frame.configure(style=f"{style}.TFrame")
        self._icon.configure(style=f"{style}.TLabel", image=self._ui.icon(icon, 20))
        self.text.configure(style=f"{style}.TLabel", text=message)
        if action:
            self.action.configure(text=action[0], command=action[1])
        show_if(self.action, action)
        self.frame.pack(fill="x")

    def hide(self) -> None:
        self.frame.pack_forget()
        self.frame.master.configure(height=1)  # a frame keeps the height of what has left it


class RunBar:
    """The line above the log: what runs, how far it is, and the button that stops it."""

    def __init__(self, ui: Ui, parent: tk.Widget, stop: Callable[[], None]):
        self._ui = ui
        self.frame = bar = ui.frame(parent, "Rail.TFrame", (14, 6))
        bar.columnconfigure(1, weight=1)
        self._title = ui.put(ttk.Label(bar, style="Rail.TLabel", font=ui.fonts["bold"]), 0, 0, "w", (0, 12))
        self._progress = ui.put(ttk.Progressbar(bar, maximum=1.0, length=ui.px(120)), 0, 1, "ew")
        self.figures = ui.put(ttk.Label(bar, style="Rail.TLabel"), 0, 2, padx=12)
        self.stop = ui.put(ui.button(bar, "run.stop", stop, "Danger.TButton"), 0, 3)
        self._shown = (0.0, "")

    def show(self, title: str, stop_key: str, stoppable: bool) -> None:
        self._title.configure(text=title)
        self.stop.configure(text=self._ui.t(stop_key))
        enable(self.stop, stoppable)

    def show_progress(self, part: float, figures: str) -> bool:
        """Show 0.0 to 1.0 and the figures; called at every tick. Whether something changed."""
        if (part, figures) == self._shown:
            return False
        self._shown = (part, figures)
        self._progress.configure(value=part)
        self.figures.configure(text=figures)
        return True


class FieldRow:
    """One setting: its name, the widget for its kind, and its help, or what is wrong with the value."""

    def __init__(self, ui: Ui, parent: tk.Widget, row: Field, line: int, changed: Callable[[Field, str], None]):
        self._ui, self.row, self._changed = ui, row, changed
        self._filling = False
        self.variable = tk.StringVar(parent)
        # Without a translated name (a flag that only the script knows) the flag names itself.
        label = ttk.Label(parent, text=in_language(ui.language, row.label))
        self.label = ui.put(label, line, 0, "w", (0, 10), 3)
        self.widget = ui.put(self._make_widget(parent), line, 1, "ew", pady=3)
        self.note = ui.put(wrapped(ttk.Label(parent, style="Small.TLabel")), line, 2, "ew", (12, 0))
        self._help = in_language(ui.language, row.help)
        default = row.default or ui.t("field.nothing")
        tip = f"--{row.flag}" + ("" if "{" in row.default else "\n" + ui.t("field.default", value=default))
        for widget in (self.label, self.widget):
            Tip(ui, widget, tip)
        self.variable.trace_add("write", self._edited)
        self.show_problem(None)

    def _make_widget(self, parent: tk.Widget) -> ttk.Widget:
        row = self.row
        if row.kind == "bool":
            return ttk.Checkbutton(
                parent, variable=self.variable, onvalue="true", offvalue="false", text=self._ui.t("field.on")
            )
        if row.kind in ("choice", "combo"):
            state = "readonly" if row.kind == "choice" else "normal"
            return ttk.Combobox(parent, textvariable=self.variable, values=row.choices, state=state, width=16)
        return ttk.Entry(parent, textvariable=self.variable, width=18)

    def _edited(self, *_names: str) -> None:
        if not self._filling:
            self._changed(self.row, self.variable.get())

    def fill(self, text: str) -> None:
        """Show a value that comes from the project."""
        if self.variable.get() != text:
            self._filling = True
            self.variable.set(text)
            self._filling = False

    def show_problem(self, problem: tuple[str, dict[str, str]] | None) -> None:
        kind = self.widget.winfo_class()
        if kind in ("TEntry", "TCombobox"):
            self.widget.configure(style=f"Wrong.{kind}" if problem else kind)
        text = self._ui.t(problem[0], **problem[1]) if problem else self._help
        self.note.configure(text=text, style="SmallBad.TLabel" if problem else "Small.TLabel")


class FieldForm:
    """A step's settings as rows; values come from and go to the project through two functions."""

    def __init__(
        self, ui: Ui, parent: tk.Widget, fields: list[Field], get: Callable[[Field], str],
        put: Callable[[Field, str], None], wide: bool = False,
    ):  # fmt: skip
        """`wide`: for values as long as paths."""
        self.frame = ttk.Frame(parent)
        self.frame.columnconfigure(0, minsize=ui.px(120))
        self.frame.columnconfigure(1, weight=8 if wide else 2, minsize=ui.px(130))
        self.frame.columnconfigure(2, weight=5, minsize=ui.px(120))
        self._get = get
        self.rows = [FieldRow(ui, self.frame, row, line, put) for line, row in enumerate(fields)]

    def refresh(self, problems: dict[str, tuple[str, dict[str, str]]]) -> None:
        for row in self.rows:
            row.fill(self._get(row.row))
            row.show_problem(problems.get(row.row.flag))

    def focus_first(self, flags: Iterable[str]) -> None:
        wanted = [row.widget for row in self.rows if row.row.flag in set(flags)]
        for widget in wanted[:1]:
            widget.focus_set()


class Editor:
    """A text with undo that knows whether it differs from its file."""

    def __init__(self, ui: Ui, parent: tk.Widget, height: int, edited: Callable[[], None]):
        self._edited = edited
        self._filling = False
        self.frame = ttk.Frame(parent)
        stretch(self.frame, 0, 0)
        self.text = tk.Text(
            self.frame, height=height, width=30, wrap="word", undo=True, maxundo=-1, font="TkTextFont", relief="flat",
            padx=ui.px(8), pady=ui.px(6), highlightthickness=max(1, ui.px(1)), highlightbackground=COLOURS["line"],
            highlightcolor=COLOURS["accent"], background=COLOURS["surface"], foreground=COLOURS["text"],
            insertbackground=COLOURS["text"], selectbackground=COLOURS["accent"], selectforeground="#ffffff",
        )  # fmt: skip
        self.text.grid(row=0, column=0, sticky="nsew")
        side_bar(self.text)
        self.text.bind("<<Modified>>", self._modified)
        # The window's shortcuts before those of Tk's Text, where Ctrl+O, for one, opens a line.
        self.text.bindtags((str(self.text), str(self.text.winfo_toplevel()), "Text", "all"))
        # Tab leads on to the next widget: the keyboard alone must be able to leave the text.
        self.text.bind("<Tab>", lambda event: self._go(event.widget.tk_focusNext()))
        for back in ("<Shift-Tab>", "<ISO_Left_Tab>"):
            with contextlib.suppress(tk.TclError):  # the second name exists under X11 only
                self.text.bind(back, lambda event: self._go(event.widget.tk_focusPrev()))

    @staticmethod
    def _go(widget: tk.Misc) -> str:
        widget.focus_set()
        return "break"

    def _modified(self, _event: tk.Event) -> None:
        if self.text.edit_modified():
            self.text.edit_modified(False)
            if not self._filling:
                self._edited()

    def set(self, text: str, enabled: bool) -> None:
        self._filling = True
        self.text.configure(state="normal")
        self.text.delete("1.0", "end")
        self.text.insert("1.0", text)
        self.text.edit_reset()
        self.text.edit_modified(False)
        self.text.update_idletasks()
        self._filling = False
        self.text.configure(
            state="normal" if enabled else "disabled", background=COLOURS["surface" if enabled else "rail"]
        )

    def get(self) -> str:
        return self.text.get("1.0", "end-1c")


class Dialog:
    """A window above the main one that asks a question; closes itself, then hands on what the answer leads to."""

    def __init__(
        self, ui: Ui, parent: tk.Misc, question: Question, done: Callable[[Reply], None], choose: Callable[[str], str]
    ):
        """`choose` opens a folder chooser with a title."""
        self._ui, self._question, self._done, self._choose = ui, question, done, choose
        self.closed = False
        self.message = question.message
        self.window = window = tk.Toplevel(
            parent, background=COLOURS["surface"], highlightthickness=1, highlightbackground=COLOURS["line"]
        )
        window.withdraw()
        window.title(ui.t(question.title))
        window.transient(parent.winfo_toplevel())
        outer = ui.frame(window, padding=20)
        outer.pack(fill="both", expand=True)
        body = ttk.Frame(outer)
        body.pack(fill="both", expand=True)
        self.entries: list[ttk.Entry] = []
        if question.entries:
            self._add_entries(body)
        else:
            ttk.Label(body, image=ui.icon(question.icon, 28)).pack(side="left", anchor="n", padx=ui.pad((0, 14)))
            text = ttk.Label(body, text=question.message, wraplength=ui.px(460), justify="left")
            text.pack(side="left", fill="x", expand=True)
        self.buttons = self._add_buttons(outer)
        window.bind("<Escape>", lambda _event: self.press("cancel"))
        window.protocol("WM_DELETE_WINDOW", lambda: self.press("cancel"))
        self._show((self.entries or list(self.buttons.values()))[0])

    def _add_buttons(self, outer: ttk.Frame) -> dict[str, ttk.Button]:
        ui, buttons = self._ui, {}
        row = ttk.Frame(outer)
        row.pack(fill="x", pady=(ui.px(18), 0))
        # Made in reading order, so that Tab walks from left to right.
        ttk.Frame(row).pack(side="left", expand=True, fill="x")
        for key, label in self._question.choices:
            style = "Danger.TButton" if key == self._question.danger else "TButton" if buttons else "Primary.TButton"
            buttons[key] = ui.line_up(ui.button(row, label, partial(self.press, key), style), padx=(8, 0))
            buttons[key].bind("<Return>", lambda _event, key=key: self.press(key))
        return buttons

    def _add_entries(self, body: ttk.Frame) -> None:
        ui, question = self._ui, self._question
        body.columnconfigure(1, weight=1)
        wide = {"wraplength": ui.px(520), "justify": "left"}
        ui.put(ttk.Label(body, text=question.message, **wide), 0, 0, "w", pady=(0, 12), columnspan=3)
        for line, (label, text) in enumerate(question.entries, start=1):
            ui.put(ui.label(body, label), line, 0, "w", (0, 10), 4)
            entry = ui.put(ttk.Entry(body, width=48), line, 1, "ew", pady=4)
            entry.insert(0, text)
            entry.bind("<Return>", lambda _event: self.press("ok"))
            self.entries.append(entry)
        if question.browse:
            ui.put(ui.button(body, "browse", self._browse), len(self.entries), 2, padx=(8, 0))
        note = ttk.Label(body, style="SmallBad.TLabel", **wide)
        self._note = ui.put(note, len(self.entries) + 1, 0, "w", pady=(8, 0), columnspan=3)
        self.entries[0].selection_range(0, "end")

    def _browse(self) -> None:
        chosen = self._choose(self._ui.t(self._question.browse))
        if chosen:
            self.entries[-1].delete(0, "end")
            self.entries[-1].insert(0, chosen)

    def _show(self, focus: tk.Widget) -> None:
        window, parent = self.window, self.window.master.winfo_toplevel()
        window.update_idletasks()
        width, height = window.winfo_reqwidth(), window.winfo_reqheight()
        x = parent.winfo_rootx() + (parent.winfo_width() - width) // 2
        y = parent.winfo_rooty() + (parent.winfo_height() - height) // 3
        window.geometry(f"+{max(0, min(x, window.winfo_screenwidth() - width))}+{max(0, y)}")
        window.resizable(False, False)
        window.deiconify()
        window.lift()
        focus.focus_set()
        self._grab()

    def _grab(self, tries: int = 20) -> None:
        # A grab is refused until the window is on the screen; waiting for it here would run a second event loop.
        try:
            self.window.grab_set()
        except tk.TclError:
            if tries and self.window.winfo_exists():
                self.window.after(30, self._grab, tries - 1)

    def press(self, key: str) -> None:
        """Answer, unless what stands in the entries cannot be taken: then say so, and stay."""
        if self.closed:
            return
        texts = [entry.get() for entry in self.entries]
        wrong = self._question.wrong(texts) if self.entries and key != "cancel" else ""
        if wrong:
            self._note.configure(text=wrong)
            return
        self.closed = True
        self.window.grab_release()
        self.window.destroy()
        self._done(self._question.answer(key, *texts))


# --- 15. Pages --------------------------------------------------------------------------------------------------------


def page_head(ui: Ui, page: ttk.Frame, key: str) -> ttk.Frame:
    """A page's title, and below it what the page is for."""
    head = ttk.Frame(page)
    head.columnconfigure(0, weight=1)
    ui.put(ui.label(head, f"title.{key}", "Title.TLabel"), 0, 0, "w")
    ui.put(wrapped(ui.label(head, f"about.{key}", "Muted.TLabel")), 1, 0, "ew")
    return head


class StepPage:
    """The frame that every step's page has: what it does, its state, its start button, its settings."""

    def __init__(self, ui: Ui, parent: tk.Widget, session: Session, runs: StepRuns, questions: Questions, key: str):
        self.ui, self.session, self.runs, self.questions, self.key = ui, session, runs, questions, key
        self.frame = ui.frame(parent, padding=(18, 12, 18, 6))
        stretch(self.frame, 0, 2)
        head = ui.put(page_head(ui, self.frame, key), 0, 0, "ew")
        self.actions = ui.put(ttk.Frame(head), 0, 1, "e", (12, 0), rowspan=2)
        self.strip = ui.put(ui.frame(self.frame, "Info.TFrame", (10, 5)), 1, 0, "ew", pady=8)
        self.strip.columnconfigure(1, weight=1)
        self.strip_icon = ui.put(ttk.Label(self.strip), 0, 0, padx=(0, 8))
        self.strip_text = ui.put(wrapped(ttk.Label(self.strip)), 0, 1, "ew")
        self.body = ui.put(ttk.Frame(self.frame), 2, 0, "nsew")
        self.start_button: ttk.Button | None = None
        self.forms: list[FieldForm] = []
        self._advanced_flags: set[str] = set()
        self._swapped: list[tk.Widget] = []  # the advanced settings, and what gives its place to them
        self.build()

    def build(self) -> None:
        raise NotImplementedError

    def add_start(self) -> None:
        button = self.ui.button(self.actions, f"start.{self.key}", self.start, "Primary.TButton")
        self.start_button = self.ui.line_up(button, "right")

    def start(self) -> None:
        if not self.questions.asking:  # a second press before the first one's question is on the screen
            self.session.tell(self.runs.start(self.key))

    def shown(self) -> None:
        """The page has come to the front."""

    def left(self) -> bool:
        """Another page comes to the front, or the window closes: store what is not stored yet; False when that failed."""
        return True

    def refresh(self) -> None:
        """Paint from the project's state; called after every change."""
        status, sentence = self.runs.describe(self.key)
        style = {"done": "Good", "stale": "Warn", "failed": "Bad"}.get(status, "Info")
        self.strip.configure(style=f"{style}.TFrame")
        for label in (self.strip_icon, self.strip_text):
            label.configure(style=f"{style}.TLabel")
        self.strip_icon.configure(image=self.ui.icon(status, 18))
        self.strip_text.configure(text=sentence)
        enable(self.start_button, self.runs.can_start(self.key))
        if self.forms:
            problems = self.session.space.problems(self.key)
            if status == "locked":  # what earlier steps will fill in is not the user's mistake
                problems = {flag: problem for flag, problem in problems.items() if problem[0] != "wrong.empty"}
            for form in self.forms:
                form.refresh(problems)

    def make_form(self, parent: tk.Widget, fields: list[Field], wide: bool = False) -> FieldForm:
        form = FieldForm(
            self.ui, parent, fields,
            get=lambda row: self.session.space.value(self.key, row),
            put=lambda row, text: self.session.set_value(self.key, row, text), wide=wide,
        )  # fmt: skip
        self.forms.append(form)
        return form

    def split_fields(self) -> tuple[list[Field], list[Field]]:
        """(basic, advanced); the advanced ones are hidden at first."""
        fields = self.session.space.fields(self.key)
        self._advanced_flags = {row.flag for row in fields if not row.basic}
        return [row for row in fields if row.basic], [row for row in fields if not row.basic]

    def hide_advanced(self, button: ttk.Button, advanced: tk.Widget, *instead: tk.Widget) -> None:
        """`button` swaps the advanced settings, which are hidden now, with `instead`."""
        self._advanced_button, self._swapped = button, [advanced, *instead]
        button.configure(text=self.ui.t("advanced.open"), command=self._toggle)
        advanced.grid_remove()

    def _toggle(self) -> None:
        for widget in self._swapped:
            (widget.grid_remove if widget.winfo_manager() else widget.grid)()
        if self._swapped:
            hidden = not self._swapped[0].winfo_manager()
            self._advanced_button.configure(text=self.ui.t("advanced.open" if hidden else "advanced.close"))

    def show_wrong(self, flags: Iterable[str]) -> None:
        """Lead the eye to the first wrong value."""
        if self._advanced_flags & set(flags) and self._swapped and not self._swapped[0].winfo_manager():
            self._toggle()
        for form in self.forms:
            form.focus_first(flags)


class FormPage(StepPage):
    """Steps 4, 5 and 7: settings, advanced settings, and where the result lies."""

    def build(self) -> None:
        ui = self.ui
        self.add_start()
        stretch(self.body, 0, 0)
        scroll = ScrollFrame(ui, self.body)
        ui.put(scroll.frame, 0, 0, "nsew")
        inner = scroll.inner
        # These steps have few settings: hiding them would only cost a click.
        form = self.make_form(inner, self.session.space.fields(self.key), wide=self.key == "strength")
        ui.put(form.frame, 0, 0, "ew")
        ui.put(wrapped(ui.label(inner, f"result.{self.key}", "Muted.TLabel")), 1, 0, "ew", pady=(14, 6))
        row = ui.put(ttk.Frame(inner), 2, 0, "w")
        self.open_button = ui.line_up(ui.button(row, "open.result", self._open))
        self.comfy_button = None
        if self.key == "strength":
            self.comfy_button = ui.line_up(ui.button(row, "comfy.copy", self.questions.copy_to_comfyui), padx=(8, 0))

    def refresh(self) -> None:
        super().refresh()
        fresh = {field.flag: field.choices for field in self.session.space.fields(self.key)}
        for row in self.forms[0].rows:
            if row.row.kind == "combo":
                row.widget.configure(values=fresh.get(row.row.flag, row.row.choices))
        for button in (self.open_button, self.comfy_button):
            enable(button, self._result())

    def _result(self) -> Path | None:
        project = self.session.project
        if project.home is None:
            return None
        if self.key == "strength":
            output = self.session.space.lora_output()
            return output.parent if output is not None and output.is_file() else None
        folder = project.dataset if self.key == "dataset" else project.records
        return folder if folder.is_dir() else None

    def _open(self) -> None:
        folder = self._result()
        if folder is not None:
            self.questions.open_path(folder)


class SongsPage(StepPage):
    """Step 1: the library."""

    COLUMNS = (
        ("title", 230, "w"), ("file", 200, "w"), ("length", 90, "e"),
        ("prompt", 76, "center"), ("lyrics", 76, "center"), ("record", 76, "center"),
    )  # fmt: skip

    def build(self) -> None:
        ui, questions = self.ui, self.questions
        self.session.keep_home = self.fill_place
        stretch(self.body, 0, 2)
        ui.line_up(ui.button(self.actions, "songs.add_folder", questions.ask_folder), "right")
        button = ui.button(self.actions, "songs.add_files", questions.ask_files, "Primary.TButton")
        self.add_button = ui.line_up(button, "right", (0, 8))
        self._build_place()
        tools = ui.put(ttk.Frame(self.body), 1, 0, "ew", pady=(0, 6))
        commands = {"play": self._play, "songs.rename": self._rename, "songs.remove": self._remove}
        self.tools = [tool_button(ui, tools, key, command) for key, command in commands.items()]
        tool_button(ui, tools, "open.folder", questions.open_home)
        self.total = ui.line_up(ttk.Label(tools, style="Small.TLabel"), "right")
        self._build_table()

    def _build_place(self) -> None:
        ui = self.ui
        place = ui.put(ttk.Frame(self.body), 0, 0, "ew", pady=(0, 8))
        self.name, self.folder = tk.StringVar(place), tk.StringVar(place)
        for column, key, text, weight in ((0, "project.name", self.name, 1), (2, "project.folder", self.folder, 3)):
            ui.put(ui.label(place, key), 0, column, padx=(14 if column else 0, 8))
            place.columnconfigure(column + 1, weight=weight)
            entry = ui.put(ttk.Entry(place, textvariable=text, width=20 if column else 14), 0, column + 1, "ew")
            entry.bind("<Return>", lambda _event: self.apply())
        ui.put(ui.button(place, "browse", self._browse), 0, 4, padx=(8, 0))
        self.apply_button = ui.put(ui.button(place, "apply", self.apply), 0, 5, padx=(8, 0))
        self.name.trace_add("write", self._name_changed)
        self.folder.trace_add("write", self._folder_changed)

    def _build_table(self) -> None:
        ui = self.ui
        box = ui.put(ttk.Frame(self.body), 2, 0, "nsew")
        stretch(box, 0, 0)
        columns = [name for name, _, _ in self.COLUMNS]
        self.table = ui.put(ttk.Treeview(box, columns=columns, show="headings", height=4), 0, 0, "nsew")
        for name, width, anchor in self.COLUMNS:
            self.table.heading(name, text=ui.t(f"column.{name}"), anchor=anchor)
            wide = name in ("title", "file")
            self.table.column(name, width=ui.px(width), minwidth=ui.px(60), anchor=anchor, stretch=wide)
        self._shown_rows: TableRows = {}
        for tag in ("bad", "warn"):
            self.table.tag_configure(tag, foreground=COLOURS[tag])
        side_bar(self.table)
        self.empty = wrapped(ui.label(box, "songs.empty", "Muted.TLabel"))
        self.empty.configure(justify="center", anchor="center")
        for sequence, command in (("<<TreeviewSelect>>", self._selected), ("<Double-1>", self._play),
                                  ("<Return>", self._play), ("<Delete>", self._remove), ("<F2>", self._rename)):  # fmt: skip
            self.table.bind(sequence, lambda _event, command=command: command())
        self.questions.accept_drops(self.table)

    def _name_changed(self, *_names: str) -> None:
        """The folder's last part is the name: typing one changes the other."""
        name, folder = self.name.get(), Path(self.folder.get().strip() or Path(SONGS_ROOT) / "x")
        if folder.name != name and not name_problem(name):
            self.folder.set(str(folder.parent / name))
        self._show_apply()

    def _folder_changed(self, *_names: str) -> None:
        self.name.set(Path(self.folder.get().strip()).name)
        self._show_apply()

    def _show_apply(self) -> None:
        home, typed = self.session.project.home, self.folder.get().strip()
        same = bool(home) and typed == self.session.shown(home) and self.name.get() == home.name
        enable(self.apply_button, typed and not same and not self.session.busy)

    def fill_place(self) -> None:
        home = self.session.project.home
        self.folder.set(self.session.shown(home) if home else "")

    def _browse(self) -> None:
        chosen = self.questions.choose_folder(self.ui.t("choose.home"))
        if chosen:
            self.folder.set(self.session.shown(Path(chosen)))

    def apply(self) -> None:
        self.session.tell(change_home(self.session, self.name.get(), self.folder.get()))

    def shown(self) -> None:
        self.fill_place()

    def refresh(self) -> None:
        super().refresh()
        ui, songs = self.ui, self.session.songs
        fill_table(self.table, self._shown_rows, {song.audio.name: self._row(song) for song in songs})
        if songs:
            self.empty.place_forget()
        else:
            self.empty.place(relx=0.1, rely=0.55, relwidth=0.8, anchor="w")
        known = [song.seconds for song in songs if song.seconds]
        length = human_seconds(sum(known) if known else None)
        self.total.configure(text=ui.t("songs.total", count=len(songs), length=length))
        enable(self.add_button, not self.session.busy)
        self._show_apply()
        self._selected()

    def _row(self, song: Song) -> tuple[tuple[str, ...], tuple[str, ...]]:
        t, level = self.ui.t, {"": "", "long": "warn"}.get(song.problem, "bad")
        length = t(f"short.{song.problem}") if level == "bad" else human_seconds(song.seconds)
        marks = [t(f"mark.{mark}") for mark in (song.prompt, song.lyrics, song.record)]
        title = f"⚠ {song.title}" if level else song.title
        return (title, song.audio.name, length, *marks), (level,) if level else ()

    def selection(self) -> list[Song]:
        chosen = set(self.table.selection())
        return [song for song in self.session.songs if song.audio.name in chosen]

    def _selected(self) -> None:
        chosen = self.selection()
        if len(chosen) == 1:
            self.session.current_song = chosen[0].audio.name
        play, rename, remove = self.tools
        enable(play, chosen)
        enable(rename, len(chosen) == 1 and not self.session.busy)
        enable(remove, chosen and not self.session.busy)

    def _play(self) -> None:
        for song in self.selection()[:1]:
            self.questions.open_path(song.audio)

    def _rename(self) -> None:
        for song in self.selection()[:1]:
            self.session.tell(ask_rename(self.session, song))

    def _remove(self) -> None:
        if self.selection() and not self.session.busy:
            self.session.tell(ask_remove(self.session, self.selection()))


class TextsPage(StepPage):
    """Steps 2 and 3: the captioning settings, and two editors for the texts of one song at a time."""

    def build(self) -> None:
        ui = self.ui
        self.add_start()
        self.kind = "prompt" if self.key == "prompts" else "lyrics"
        stretch(self.body, 0, 1)
        basic, advanced = self.split_fields()
        ui.put(self.make_form(self.body, basic).frame, 0, 0, "ew", pady=(0, 6))
        scroll = ScrollFrame(ui, self.body)
        ui.put(scroll.frame, 1, 0, "nsew")
        ui.put(self.make_form(scroll.inner, advanced).frame, 0, 0, "ew")
        self.texts = ui.put(ttk.Frame(self.body), 1, 0, "nsew")
        button = ttk.Button(self.actions)
        if advanced:
            ui.line_up(button, "right", (0, 8))
        self.hide_advanced(button, scroll.frame, self.texts)
        stretch(self.texts, 1, 1)
        self._open_song: OpenSong | None = None
        self._save_timer: str | None = None
        self._build_list()
        self._build_tools()
        self._build_editors()
        self.frame.after_idle(self._load_first)

    def _build_list(self) -> None:
        ui = self.ui
        box = ui.put(ttk.Frame(self.texts), 0, 0, "nsew", (0, 12), rowspan=3)
        box.rowconfigure(0, weight=1)
        table = ttk.Treeview(box, columns=("title", "state"), show="headings", height=4, selectmode="browse")
        self.list = ui.put(table, 0, 0, "nsew")
        self._shown_rows: TableRows = {}
        self.list.heading("title", text=ui.t("column.title"), anchor="w")
        self.list.heading("state", text=ui.t(f"column.{self.kind}"))
        self.list.column("title", width=ui.px(170), minwidth=ui.px(80))
        self.list.column("state", width=ui.px(76), minwidth=ui.px(50), anchor="center", stretch=False)
        side_bar(self.list)
        self.list.bind("<<TreeviewSelect>>", self._chosen)

    def _build_tools(self) -> None:
        ui = self.ui
        tools = ui.put(ttk.Frame(self.texts), 0, 1, "ew", pady=(0, 6))
        commands: dict[str, Callable[[], Any]] = {
            "texts.previous": lambda: self.step_song(-1), "texts.next": lambda: self.step_song(1),
            "texts.save": self.save, "play": self._play, "texts.instrumental": self._instrumental,
        }  # fmt: skip
        self.tools: list[ttk.Widget] = [tool_button(ui, tools, key, command) for key, command in commands.items()]
        self.again_button = None
        if self.session.space.knows(self.key, "only") and self.session.space.flags.get(STEP[self.key].script):
            self.again_button = tool_button(ui, tools, "texts.again", self._again)
        kinds = (*TEXT_CHANGES, "instrumental_all")
        changes = {ui.t(f"texts.{kind}"): partial(ask_change, self.session, kind) for kind in kinds}
        self.tools.append(ui.line_up(drop_down(ui, tools, "texts.all", changes, self.session.tell), "right"))
        self.status = ui.line_up(ttk.Label(tools, style="Small.TLabel"), "right", (0, 10))

    def _build_editors(self) -> None:
        ui = self.ui
        panes = ui.put(ttk.Frame(self.texts), 1, 1, "nsew")
        panes.rowconfigure(1, weight=1)
        self.editors: dict[str, Editor] = {}
        for column, kind in enumerate(OpenSong.KINDS):
            pad = 0 if column else (0, 10)
            panes.columnconfigure(column, weight=2 + column, uniform="texts")
            ui.put(ui.label(panes, f"texts.{kind}", "Small.TLabel"), 0, column, "w", pad)
            self.editors[kind] = editor = Editor(ui, panes, 4, self._edited)
            ui.put(editor.frame, 1, column, "nsew", pad)
            editor.text.bind("<Control-s>", lambda _event: (self.save(), "break")[1])

    def shown(self) -> None:
        self.refresh()
        self._load_first()

    def left(self) -> bool:
        return self.save()

    @property
    def open_song(self) -> Song | None:
        return self._open_song.song if self._open_song else None

    def _load_first(self) -> None:
        if not self.frame.winfo_exists():
            return
        names, current = [song.audio.name for song in self.session.songs], self.session.current_song
        if self.open_song and self.open_song.audio.name in names and current == self.open_song.audio.name:
            self.reload()
        elif names:
            name = current if current in names else names[0]
            self._select(name)
            self._open(self.session.songs[names.index(name)])
        else:
            self._open(None)

    def _select(self, name: str) -> None:
        self.list.selection_set(name)
        self.list.see(name)

    def _chosen(self, _event: tk.Event) -> None:
        chosen = self.list.selection()
        song = next((song for song in self.session.songs if chosen and song.audio.name == chosen[0]), None)
        if song and (self.open_song is None or song.audio != self.open_song.audio):
            self._open(song)

    def _open(self, song: Song | None) -> None:
        """Show a song's texts, after storing what was changed in those of the last one."""
        if not self.save():
            # What could not be stored stays in the editors; the list goes back to its song.
            if self.open_song is not None and self.list.exists(self.open_song.audio.name):
                self.list.selection_set(self.open_song.audio.name)
            return
        self._open_song = OpenSong(self.session, song) if song else None
        if song is not None:
            self.session.current_song = song.audio.name
        for kind, editor in self.editors.items():
            editor.set(self._open_song.loaded[kind] if self._open_song else "", self._editable(kind))
        self._say_status()

    def _editable(self, kind: str) -> bool:
        return self._open_song is not None and kind not in self._open_song.blocked

    def _texts(self) -> dict[str, str]:
        return {kind: editor.get() for kind, editor in self.editors.items()}

    def dirty(self) -> bool:
        return self._open_song is not None and self._texts() != self._open_song.loaded

    def reload(self) -> None:
        """Show what a script or another program wrote meanwhile; texts that are being edited stay."""
        if self._open_song is not None:
            for kind in self._open_song.reread(self._texts()):
                self.editors[kind].set(self._open_song.loaded[kind], self._editable(kind))
        self._say_status()

    def _edited(self) -> None:
        self._say_status()
        if self._save_timer:
            self.frame.after_cancel(self._save_timer)
        # A power cut or a killed window then costs no more than the last seconds of typing.
        self._save_timer = self.frame.after(AUTOSAVE_MS, self.save)

    def save(self) -> bool:
        """Write what differs from the files; False when it could not be written."""
        if self._save_timer:
            self.frame.after_cancel(self._save_timer)
            self._save_timer = None
        stored = self._open_song is None or self._open_song.write(self._texts())
        self._say_status()
        return stored

    def _say_status(self) -> None:
        status = self.ui.t("texts.unsaved" if self.dirty() else "texts.saved") if self._open_song else ""
        self.status.configure(text=status)

    def step_song(self, direction: int) -> None:
        names = [song.audio.name for song in self.session.songs]
        if names:
            name = self.open_song.audio.name if self.open_song else ""
            here = names.index(name) if name in names else 0
            self._select(names[max(0, min(len(names) - 1, here + direction))])

    def _play(self) -> None:
        if self.open_song:
            self.questions.open_path(self.open_song.audio)

    def _instrumental(self) -> None:
        if self.open_song:
            text = self.editors["lyrics"].text
            text.edit_separator()
            text.replace("1.0", "end-1c", INSTRUMENTAL)
            text.edit_separator()
            self.save()

    def _again(self) -> None:
        if self.open_song:
            self.session.tell(self.runs.start(self.key, only=[self.open_song.audio.name]))

    def refresh(self) -> None:
        super().refresh()
        session, mark = self.session, lambda song: self.ui.t(f"mark.{getattr(song, self.kind)}")
        rows = {song.audio.name: ((song.title, mark(song)), ()) for song in session.songs}
        fill_table(self.list, self._shown_rows, rows)
        for tool in self.tools:
            enable(tool, session.songs)
        enable(self.again_button, session.songs and self.runs.can_start(self.key))
        if self.open_song is not None and not self.open_song.audio.exists():
            self.save()  # its texts may still be wanted when the audio comes back
            self._open_song = None
            self._load_first()
        elif self.open_song is not None:
            self.reload()
        elif session.songs:
            self._load_first()


class TrainPage(StepPage):
    """Step 6: parameters on the left, the loss curve on the right."""

    def build(self) -> None:
        ui = self.ui
        self.add_start()
        self.trial_button = None
        flags = self.session.space.flags.get("trainer_new.py")
        if flags and "trial" in flags:
            try_out = ui.button(
                self.actions, "train.trial", lambda: self.session.tell(self.runs.start("train", trial=True))
            )
            self.trial_button = ui.line_up(try_out, "right", (0, 8))
            Tip(ui, self.trial_button, ui.t("train.trial_tip"))
        self.body.columnconfigure(0, weight=6, uniform="train")
        self.body.columnconfigure(1, weight=4, uniform="train")
        self.body.rowconfigure(0, weight=1)
        scroll = ScrollFrame(ui, self.body)
        ui.put(scroll.frame, 0, 0, "nsew", (0, 12))
        inner = scroll.inner
        self._build_presets(inner)
        basic, advanced = self.split_fields()
        ui.put(self.make_form(inner, basic).frame, 1, 0, "ew")
        self.hints = ui.put(wrapped(ttk.Label(inner, style="SmallWarn.TLabel")), 2, 0, "ew")
        button = ui.put(ttk.Button(inner, style="Small.TButton"), 3, 0, "w", pady=8)
        self.hide_advanced(button, ui.put(self.make_form(inner, advanced).frame, 4, 0, "ew"))
        self.chart = LossChart(ui, self.body)
        ui.put(self.chart.canvas, 0, 1, "nsew")
        self.chart.show(self.runs.training.curve)

    def _build_presets(self, inner: ttk.Frame) -> None:
        ui = self.ui
        row = ui.put(ttk.Frame(inner), 0, 0, "ew", pady=(0, 6))
        ui.line_up(ui.label(row, "preset.label"), padx=(0, 8))
        self.preset = ui.line_up(ttk.Combobox(row, state="readonly", width=14), padx=(0, 6))
        self.preset.bind("<<ComboboxSelected>>", lambda _event: self.apply_preset(self.preset.get()))
        tool_button(ui, row, "preset.save", self.ask_save_preset)
        self.delete_button = tool_button(ui, row, "preset.delete", lambda: self.delete_preset(self.preset.get()))

    def apply_preset(self, name: str) -> None:
        self.session.tell(apply_preset(self.session, name))

    def ask_save_preset(self) -> None:
        self.session.tell(ask_save_preset(self.session))

    def delete_preset(self, name: str) -> None:
        if self.session.settings.presets.pop(name, None) is not None:
            self.session.save_settings()
            self.preset.set("")
            self.refresh()

    def refresh(self) -> None:
        super().refresh()
        space = self.session.space
        values = {row.flag: space.value("train", row) for row in space.fields("train")}
        hints = [self.ui.t(key) for key in training_hints(values)]
        self.hints.configure(text="\n".join(hints))
        show_if(self.hints, hints)
        own = self.session.settings.presets
        self.preset.configure(values=[*PRESETS, *own])
        enable(self.delete_button, self.preset.get() in own)
        enable(self.trial_button, self.runs.can_start("train"))


class EnvironmentPage:
    """What the scripts need, what is there, and a way to mend what is not."""

    def __init__(self, ui: Ui, parent: tk.Widget, session: Session, environment: Environment, questions: Questions):
        self.ui, self.session, self.environment, self.questions = ui, session, environment, questions
        self.frame = ui.frame(parent, padding=(18, 12, 18, 6))
        self.frame.columnconfigure(0, weight=11, uniform="environment")
        self.frame.columnconfigure(1, weight=9, uniform="environment")
        self.frame.rowconfigure(1, weight=1)
        head = ui.put(page_head(ui, self.frame, "environment"), 0, 0, "ew", pady=(0, 8), columnspan=2)
        self._build_commands(head)
        self._list = ScrollFrame(ui, self.frame)
        ui.put(self._list.frame, 1, 0, "nsew", (0, 16))
        for column in (0, 1):
            self._list.inner.columnconfigure(column, weight=column)
        self._shown: list[str] = []
        settings = ScrollFrame(ui, self.frame)
        ui.put(settings.frame, 1, 1, "nsew")
        self._build_settings(settings.inner)

    def _build_commands(self, head: ttk.Frame) -> None:
        ui, environment = self.ui, self.environment
        commands = {label: partial(environment.install, words) for label, words in environment.installations()}
        packages = drop_down(ui, head, "install.menu", commands, self.session.tell)
        if commands:
            ui.put(packages, 0, 1, padx=(8, 0), rowspan=2)
        for column, key, command in ((2, "env.copy", self._copy_report), (3, "env.again", environment.query)):
            ui.put(ui.button(head, key, command), 0, column, padx=(8, 0), rowspan=2)

    def _copy_report(self) -> None:
        self.frame.clipboard_clear()
        self.frame.clipboard_append(report_text(self.environment.findings(), self.ui.language))
        self.session.tell(self.session.outcome("good", "env.copied"))

    # setting -> what is chosen for it
    SETTINGS = {"python": "file", "endpoint": "", "checkpoint_dir": "folder", "cache": "folder", "program": "folder"}  # noqa: RUF012

    def _build_settings(self, box: ttk.Frame) -> None:
        ui = self.ui
        self.variables: dict[str, tk.Variable] = {}
        self.widgets: dict[str, tk.Widget] = {}
        for line, key in enumerate(self.SETTINGS):
            self._build_setting(box, 3 * line, key)
        self.variables["offline"] = offline = tk.BooleanVar(box, self.session.settings.offline)
        check = ttk.Checkbutton(
            box, text=ui.t("setting.offline"), variable=offline, command=lambda: self._store("offline")
        )
        self.widgets["offline"] = ui.put(check, 3 * len(self.SETTINGS), 0, "w", columnspan=2)

    def _build_setting(self, box: ttk.Frame, line: int, key: str) -> None:
        ui = self.ui
        ui.put(ui.label(box, f"setting.{key}"), line, 0, "w", columnspan=2)
        self.variables[key] = variable = tk.StringVar(box, getattr(self.session.settings, key))
        if key == "endpoint":
            widget: ttk.Entry = ttk.Combobox(box, textvariable=variable, values=MIRRORS, width=20)
        else:
            widget = ttk.Entry(box, textvariable=variable, width=20)
        self.widgets[key] = ui.put(widget, line + 1, 0, "ew", pady=(2, 0))
        if self.SETTINGS[key]:
            ui.put(ui.button(box, "browse", lambda: self._browse(key), "Small.TButton"), line + 1, 1, padx=(6, 0))
        note = wrapped(ui.label(box, f"setting.{key}.help", "Small.TLabel"))
        ui.put(note, line + 2, 0, "ew", pady=(1, 8), columnspan=2)
        for event in ("<Return>", "<FocusOut>", "<<ComboboxSelected>>"):
            widget.bind(event, lambda _event: self._store(key))

    def _browse(self, key: str) -> None:
        choose = self.questions.choose_file if self.SETTINGS[key] == "file" else self.questions.choose_folder
        chosen = choose(self.ui.t(f"setting.{key}"))
        if chosen:
            self.variables[key].set(chosen)
            self._store(key)

    def _store(self, key: str) -> None:
        value = self.variables[key].get()
        value = value.strip() if isinstance(value, str) else value
        if value != getattr(self.session.settings, key):
            self.session.change_setting(key, value)
            if key in ("python", "program"):
                self.environment.query()

    def _mend(self, what: str) -> None:
        """The button beside a problem: choose another file or folder, or install something."""
        if what in self.widgets:
            self._browse(what)
        elif what == "source":
            self.widgets["endpoint"].focus_set()
        else:
            self.session.tell(self.environment.mend(what))

    def shown(self) -> None:
        self.environment.query(only_if_unknown=True)

    def left(self) -> bool:
        for key in self.variables:
            self._store(key)
        return True

    def refresh(self) -> None:
        findings = self.environment.findings()
        lines = [f"{finding.level}{finding.say(self.ui.language)}{self.session.busy}" for finding in findings]
        if lines == self._shown:
            return
        self._shown = lines
        ui, inner = self.ui, self._list.inner
        for child in inner.winfo_children():
            child.destroy()
        icons = {"ok": "done", "warn": "stale", "bad": "failed", "info": "info"}
        for line, finding in enumerate(findings):
            ui.put(ttk.Label(inner, image=ui.icon(icons[finding.level], 18)), line, 0, "n", (0, 8), 4)
            text = wrapped(ttk.Label(inner, text=finding.say(ui.language), justify="left"))
            ui.put(text, line, 1, "ew", pady=3)
            mend = finding.mend if finding.level != "ok" else ""
            if mend:
                button = ui.button(inner, f"mend.{mend}", partial(self._mend, mend), "Small.TButton")
                ui.put(button, line, 2, "ne", (8, 4), 2)
                installs = mend in ("install", "tensorboard", "pypinyin", "weights")
                enable(button, not (installs and self.session.busy))


# --- 16. Questions ----------------------------------------------------------------------------------------------------


def open_in_system(path: Path) -> None:
    """Open a file or folder with the program that the system has for it; raises OSError when it has none."""
    if WINDOWS:
        os.startfile(path)  # type: ignore[attr-defined]
    else:
        opener = "open" if sys.platform == "darwin" else "xdg-open"
        subprocess.Popen([opener, str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip


class Questions:
    """Every dialog: shows a `Question` and hands on what its answer leads to; choosers of files and folders."""

    def __init__(self, root: tk.Tk, session: Session, importer: Importer):
        self.root, self.session, self.importer = root, session, importer
        self.ui: Ui  # set whenever the window is built
        self.dialog: Dialog | None = None
        self.choose_files: Callable[[str], Iterable[str]] = self._choose_files
        self.choose_folder: Callable[[str], str] = lambda title: filedialog.askdirectory(
            parent=root, title=title, mustexist=False
        )
        self.choose_file: Callable[[str], str] = lambda title: filedialog.askopenfilename(parent=root, title=title)

    def ask(self, question: Question) -> None:
        self.dialog = Dialog(self.ui, self.root, question, self.session.tell, self.choose_folder)

    @property
    def asking(self) -> bool:
        return self.dialog is not None and not self.dialog.closed

    def _choose_files(self, title: str) -> Iterable[str]:
        kinds = [(self.ui.t("choose.audio"), " ".join(f"*{e} *{e.upper()}" for e in AUDIO_EXTENSIONS))]
        kinds.append((self.ui.t("choose.all"), "*"))
        return filedialog.askopenfilenames(parent=self.root, title=title, filetypes=kinds)

    def ask_files(self) -> None:
        if not self.session.busy:
            self.add([Path(path) for path in self.choose_files(self.ui.t("songs.add_files"))])

    def ask_folder(self) -> None:
        chosen = "" if self.session.busy else self.choose_folder(self.ui.t("songs.add_folder"))
        if chosen:
            self.add([Path(chosen)])

    def add(self, paths: list[Path]) -> None:
        """Add files and folders of songs."""
        self.session.tell(self.importer.add(paths))

    def accept_drops(self, widget: tk.Widget) -> None:
        """Let files be dropped on `widget` where Tk has the tkdnd extension (some Linux and macOS installations)."""
        with contextlib.suppress(tk.TclError):
            self.root.tk.call("package", "require", "tkdnd")
            self.root.tk.call("tkdnd::drop_target", "register", widget, "DND_Files")
            command = self.root.register(lambda data: self.add([Path(p) for p in self.root.tk.splitlist(data)]))
            self.root.tk.call("bind", widget, "<<Drop:DND_Files>>", f"{command} %D")

    def ask_project(self) -> None:
        chosen = "" if self.session.busy else self.choose_folder(self.ui.t("choose.project"))
        if chosen and is_folder(Path(chosen)):
            self.session.open(Path(chosen))

    def open_path(self, path: Path) -> None:
        """Play a song, show a folder: with what the system has for it."""
        try:
            open_in_system(path)
        except OSError as error:
            self.session.tell(self.session.outcome("warn", "open.failed", path=path, error=error.strerror or error))

    def open_home(self, inner: str = "") -> None:
        """Show the project's folder, or one in it."""
        home = self.session.project.home
        if home and is_folder(home / inner):
            self.open_path(home / inner)

    def copy_to_comfyui(self) -> None:
        """Copy the finished LoRA into ComfyUI's models/loras, which is asked for once."""
        session, output = self.session, self.session.space.lora_output()
        if output is None or not output.is_file():
            return
        folder = Path(session.settings.comfyui) if session.settings.comfyui else None
        if folder is None or not folder.is_dir():
            chosen = self.choose_folder(self.ui.t("comfy.choose"))
            if not chosen:
                return
            folder = Path(chosen)
            inner = folder / "models" / "loras"
            folder = inner if inner.is_dir() else folder
            session.settings.comfyui = str(folder)
            session.save_settings()
        copy_to_comfyui(session, folder)

    def explain(self, name: str, icon: str = "info") -> None:
        """Show a text of the help menu."""
        self.ask(Question(name, self.ui.t(f"{name}.message", version=VERSION), {}, f"menu.{name}", icon))


# --- 17. Window -------------------------------------------------------------------------------------------------------

# What stands in the menus: text key, which also names the command, and its key. None is a line; "recent projects",
# "removed files" and the choice of language and size are filled in (see `Menus`).
MENUS: dict[str, tuple[tuple[str, str] | None, ...]] = {
    "menu.project": (
        ("menu.new", "Ctrl+N"), ("menu.open", ""), ("menu.move", ""), ("open.folder", ""), ("menu.logs", ""), None,
        ("menu.recent", ""), ("menu.restore", ""), None, ("menu.quit", "Ctrl+Q"),
    ),
    "menu.songs": (
        ("songs.add_files", "Ctrl+O"), ("songs.add_folder", "Ctrl+Shift+O"), None, ("texts.add_tag", ""),
        ("texts.remove_tag", ""), ("texts.replace", ""), ("texts.instrumental_all", ""),
    ),
    "menu.run": (
        ("menu.start", "F5"), ("run.all", "Ctrl+F5"), ("run.stop", "Shift+F5"), None, ("tensorboard", "F9"),
        ("reset", ""),
    ),
    "menu.view": (("title.environment", "F8"), None),
    "menu.help": (("menu.keys", ""), ("menu.about", "")),
}  # fmt: skip


def key_sequence(shown: str) -> str:
    """Tk's name of a key as the menus show it: Ctrl+Shift+O is <Control-Shift-O>."""
    *held, key = shown.replace("Ctrl", "Control").split("+")
    return "<" + "-".join([*held, key if len(key) > 1 or "Shift" in held else key.lower()]) + ">"


class Menus:
    """The menu bar, made of the table above; a command is found by its text key."""

    def __init__(
        self, ui: Ui, session: Session, commands: dict[str, Callable[[], Any]], change_look: Callable[..., None]
    ):
        self._ui, self._session, self._change_look = ui, session, change_look
        self.bar = tk.Menu(ui.root)
        filled = {"menu.recent": self.fill_recent, "menu.restore": self.fill_bin}
        self.filled: dict[str, tk.Menu] = {}
        # The variables only carry the marks.
        self._marks = {key: tk.StringVar(ui.root, getattr(session.settings, key)) for key in ("language", "scale")}
        for label, rows in MENUS.items():
            menu = tk.Menu(self.bar, tearoff=False)
            for row in rows:
                if row is None:
                    menu.add_separator()
                elif row[0] in filled:
                    self.filled[row[0]] = tk.Menu(menu, tearoff=False, postcommand=filled[row[0]])
                    menu.add_cascade(label=ui.t(row[0]), menu=self.filled[row[0]])
                else:
                    menu.add_command(label=ui.t(row[0]), accelerator=row[1], command=commands[row[0]])
            if label == "menu.view":
                self._add_looks(menu)
            self.bar.add_cascade(label=ui.t(label), menu=menu)
        ui.root.configure(menu=self.bar)

    def _add_looks(self, menu: tk.Menu) -> None:
        def choice(key: str, value: str, label: str) -> None:
            menu.add_radiobutton(
                label=label, value=value, variable=self._marks[key], command=lambda: self._change_look(**{key: value})
            )

        for language, label in LANGUAGES.items():
            choice("language", language, label)
        menu.add_separator()
        for scale in ("auto", "100", "125", "150", "200"):
            choice("scale", scale, self._ui.t("menu.scale_auto") if scale == "auto" else f"{scale} %")

    def show_marks(self) -> None:
        """A click on a choice moves its mark, also when the choice was refused."""
        for key, variable in self._marks.items():
            variable.set(getattr(self._session.settings, key))

    def _fill(self, key: str, rows: list[tuple[str, Callable[[], Any]]]) -> None:
        menu = self.filled[key]
        menu.delete(0, "end")
        for label, command in rows:
            menu.add_command(label=label, command=command)
        if not rows:
            menu.add_command(label=self._ui.t("menu.none"), state="disabled")

    def fill_recent(self) -> None:
        session = self._session
        homes = [Path(home) for home in session.settings.recent if is_folder(Path(home))]
        self._fill("menu.recent", [
            (f"{home.name}    {session.shown(home)}", lambda home=home: session.open(home)) for home in homes
        ])  # fmt: skip

    def fill_bin(self) -> None:
        session = self._session
        self._fill("menu.restore", [
            (removed_label(session, entry), lambda entry=entry: session.tell(restore(session, entry)))
            for entry in list_removed(session.project, session.space.checkpoints())[:40]
        ])  # fmt: skip


def fitting_geometry(stored: str, screen: tuple[int, int], px: Callable[[float], int]) -> str:
    """Where the window stood the last time, when that is on the screen; else the middle of the screen."""
    match = re.fullmatch(r"(\d+)x(\d+)\+(\d+)\+(\d+)", stored)
    if match:
        width, height, x, y = map(int, match.groups())
        if width <= screen[0] and height <= screen[1] and x < screen[0] - px(200) and y < screen[1] - px(200):
            return stored
    # Title bar, menu and the desktop's task bar take about 110 lines besides.
    width, height = min(px(1280), screen[0]), min(px(860), screen[1] - px(110))
    return f"{width}x{height}+{(screen[0] - width) // 2}+{max(0, (screen[1] - height) // 3)}"


class MainWindow:
    """The widgets. Painted from the state of session and runs by `refresh` alone."""

    def __init__(
        self, root: tk.Tk, session: Session, runs: StepRuns, importer: Importer, environment: Environment,
        questions: Questions, commands: dict[str, Callable[[], Any]],
    ):  # fmt: skip
        """`commands`: text key of a menu or button -> what it does."""
        self.root, self.session, self.runs, self.importer = root, session, runs, importer
        self.environment, self.questions, self.commands = environment, questions, commands
        self.page_key = "songs"
        self._room_timer: str | None = None
        session.repaint, session.paint_banner, session.ask = self.refresh, self.show_banner, questions.ask
        session.store_texts, session.lead_to = self._texts_stored, self._lead_to
        session.log = lambda lines, current="", skipped=0: self.log.write(lines, current, skipped)
        session.on_program = lambda: self.forget_pages(keep="environment")  # the page that changed it
        session.on_open.append(self._project_opened)
        runs.announce = self._announce
        self.build()
        self.place_window()

    # Building

    def build(self) -> None:
        """Make every widget; also after a change of language or scale, so nothing here may hold state."""
        root, settings = self.root, self.session.settings
        self.ui = self.questions.ui = ui = Ui(root, settings.language, settings.scale)
        root.title(PROGRAM_NAME)
        self._app_icon = ui.icon("app", 32)
        root.iconphoto(True, self._app_icon)
        self.menus = Menus(ui, self.session, self.commands, self.change_look)
        self.frame = ttk.Frame(root, style="Rail.TFrame")
        self.frame.pack(fill="both", expand=True)
        stretch(self.frame, 1, 1)
        self.header = Header(ui, self.frame, self.change_look)
        tools = {key: self.commands[key] for key in ("run.all", "tensorboard", "title.environment", "reset")}
        self.rail = Rail(ui, self.frame, self.show_page, tools)
        self.rail.frame.grid(row=1, column=0, sticky="ns")
        self.panes = ttk.PanedWindow(self.frame, orient="vertical")
        self.panes.grid(row=1, column=1, sticky="nsew")
        self.place = ttk.Frame(self.panes)
        stretch(self.place, 0, 0)
        bottom = ttk.Frame(self.panes, style="Rail.TFrame")
        self.banner = Banner(ui, bottom, self.session.hush)
        self.run_bar = RunBar(ui, bottom, self.commands["run.stop"])
        self.run_bar.frame.pack(fill="x", side="top")
        self.log = LogPane(ui, bottom, lambda count: ui.t("log.skipped", count=count), ui.t("log.hint"))
        self.log.frame.pack(fill="both", expand=True)
        self.panes.add(self.place, weight=3)
        self.panes.add(bottom, weight=1)
        self._pages: dict[str, Any] = {}

    def bind_keys(self) -> None:
        keys = {
            key_sequence(row[1]): self.commands[row[0]] for rows in MENUS.values() for row in rows if row and row[1]
        }
        keys |= {"<Control-s>": self._in_texts("save"), "<Control-Next>": self._in_texts("step_song", 1),
                 "<Control-Prior>": self._in_texts("step_song", -1), "<F6>": self._focus_next_area}  # fmt: skip
        keys |= {f"<Alt-Key-{step.number}>": lambda key=step.key: self.show_page(key) for step in STEPS}
        for sequence, command in keys.items():
            # Keys that were typed before a dialog had the focus still come to this window.
            self.root.bind(sequence, lambda _event, command=command: (self.questions.asking or command(), "break")[1])

    def _in_texts(self, name: str, *arguments: int) -> Callable[[], Any]:
        """What a page with texts does, where one is shown."""
        return lambda: self.page_key in ("prompts", "lyrics") and getattr(self.page(self.page_key), name)(*arguments)

    def place_window(self) -> None:
        screen, px = (self.root.winfo_screenwidth(), self.root.winfo_screenheight()), self.ui.px
        self.root.minsize(min(px(1000), screen[0]), min(px(560), screen[1] - px(110)))
        self.root.geometry(fitting_geometry(self.session.settings.geometry, screen, px))
        self.root.update_idletasks()
        self.place_sash()

    def place_sash(self) -> None:
        self.panes.update_idletasks()
        height = self.panes.winfo_height()
        wanted = self.session.settings.log_height or min(self.ui.px(230), max(self.ui.px(150), height * 3 // 10))
        with contextlib.suppress(tk.TclError):
            self.panes.sashpos(0, max(self.ui.px(200), height - wanted))

    def keep_places(self) -> None:
        """Remember where the window and the log stood."""
        self.session.settings.geometry = self.root.geometry()
        with contextlib.suppress(tk.TclError):
            self.session.settings.log_height = self.panes.winfo_height() - self.panes.sashpos(0)
        if self._room_timer:
            self.root.after_cancel(self._room_timer)

    # Pages

    def page(self, key: str) -> Any:
        """The page, made when it is first needed: a window that opens at once makes one of eight."""
        if key not in self._pages:
            owners = (self.ui, self.place, self.session)
            if key == "environment":
                self._pages[key] = EnvironmentPage(*owners, self.environment, self.questions)
            else:
                kinds = {"songs": SongsPage, "prompts": TextsPage, "lyrics": TextsPage, "train": TrainPage}
                self._pages[key] = kinds.get(key, FormPage)(*owners, self.runs, self.questions, key)
        return self._pages[key]

    def show_page(self, key: str) -> None:
        if self.page_key in self._pages:
            old = self._pages[self.page_key]
            if self.page_key != key:
                old.left()
            old.frame.grid_remove()
        self.page_key = key
        page = self.page(key)
        page.frame.grid(row=0, column=0, sticky="nsew")
        page.shown()
        self.refresh()

    def _lead_to(self, key: str, wrong: Iterable[str] = ()) -> None:
        self.show_page(key)
        if wrong:
            self.page(key).show_wrong(wrong)

    def forget_pages(self, keep: str = "") -> None:
        """They are made anew when they are needed."""
        for key in [key for key in self._pages if key != keep]:
            self._pages.pop(key).frame.destroy()

    def _project_opened(self) -> None:
        self.forget_pages()
        self.show_banner()
        self.show_page("songs")

    def _texts_stored(self) -> bool:
        """Store what stands in the pages; False, said by the page, when a text could not be: no page may go then."""
        keys = dict.fromkeys(("prompts", "lyrics", self.page_key))
        return all([self._pages[key].left() for key in keys if key in self._pages])

    def _focus_next_area(self) -> None:
        """F6 walks between the steps, the page and the log."""
        steps = self.rail.steps
        areas = [steps.get(self.page_key, steps["songs"]), self.page(self.page_key).frame, self.log.text]
        focus = str(self.root.focus_get() or "")
        here = next((i for i, area in enumerate(areas) if focus.startswith(str(area))), 0)
        target = areas[(here + 1) % 3]
        (target.tk_focusNext() if target is areas[1] else target).focus_set()

    def change_look(self, language: str = "", scale: str = "") -> None:
        """Rebuild the window in another language or size; everything shown is in the state, so nothing is lost."""
        session, settings = self.session, self.session.settings
        if self.questions.asking or not session.store_texts():
            self.menus.show_marks()
            return
        settings.language = language or settings.language
        settings.scale = scale or settings.scale
        settings.log_height = 0
        content = self.log.content().split("\n")
        self.frame.destroy()
        self.menus.bar.destroy()
        self.build()
        self.log.write(content[:-1])
        if language:  # a failure can be said anew, other sentences not
            session.banner = self.runs.failure.outcome(session) if self.runs.failure else None
        self.show_banner()
        self.show_page(self.page_key)
        if scale:
            self.place_window()
        self.place_sash()
        self.root.update_idletasks()
        self.log.text.see("end-1c")
        session.save_settings()

    # Painting

    def refresh(self) -> None:
        """Paint everything that depends on state; the only place that enables and disables."""
        session, runs = self.session, self.runs
        usable = {"run.all": not session.busy and bool(session.songs), "reset": not session.busy}
        self.rail.show({step.key: runs.describe(step.key)[0] for step in STEPS}, self.page_key, usable)
        home = session.project.home
        where = f"{home.name}   ·   {session.shown(home)}" if home else self.ui.t("project.none")
        self.header.project.configure(text=where)
        stop = "run.force" if runs.run.step and session.state != "running" else "run.stop"
        self.run_bar.show(self._run_text(), stop, session.busy)
        self.show_progress()
        if self.page_key in self._pages:
            self._pages[self.page_key].refresh()
        self._show_title()

    def _run_text(self) -> str:
        state, run = self.session.state, self.runs.run
        if run.step:
            key = "run.running" if state == "running" else "run.stopping_short"
            return self.ui.t(key, title=run.name(self.session))
        keys = {"importing": "run.importing", "closing": "run.importing"}
        return self.ui.t(keys.get(state, "run.idle"))

    def _show_title(self) -> None:
        session, run, part = self.session, self.runs.run, self.runs.mark
        if run.step:
            shown = run.progress or run.bar
            done = f"{100 * shown.done // max(1, shown.total)} %" if shown else "…"
            part = f"{done} · {run.name(session)} – "
        self.root.title(f"{part}{session.project.name + ' – ' if session.project.name else ''}{PROGRAM_NAME}")

    def show_progress(self) -> None:
        """How far it is: at every tick while something goes on."""
        if self.runs.run.step:
            elapsed = time.monotonic() - self.runs.runner.started_at
            if self.run_bar.show_progress(*self.runs.run.figures(self.session, elapsed)):
                self._show_title()
        elif self.session.state in ("importing", "closing"):
            done, total, name = self.importer.progress
            self.run_bar.show_progress(done / max(1, total), f"{done}/{total}  {name[:40]}" if total else "")
        else:
            self.run_bar.show_progress(0.0, "")

    def show_curve(self) -> None:
        if self.page_key == "train" and "train" in self._pages:
            self._pages["train"].chart.show(self.runs.training.curve)

    def show_banner(self) -> None:
        """The outcome above the log, with the button that it may have."""
        outcome = self.session.banner
        if outcome is None:
            self.banner.hide()
            return
        do = outcome.do or self.commands.get(outcome.button)
        action = (self.ui.t(outcome.button), lambda: self.session.tell(do())) if do else None
        self.banner.show(outcome.level, outcome.sentence, action)
        if self._room_timer is None:
            self._room_timer = self.root.after_idle(self._keep_log_in_sight)

    def _keep_log_in_sight(self) -> None:
        """A long banner takes its room from the page, not from the log: three lines of it stay."""
        self._room_timer = None
        self.root.update_idletasks()
        missing = self.ui.px(64) - self.log.frame.winfo_height()
        if self.session.banner and missing > 0 and self.panes.winfo_height() > 1:
            self.panes.sashpos(0, max(self.ui.px(200), self.panes.sashpos(0) - missing))

    def _announce(self) -> None:
        """Tell somebody who looks at another window: bell, flashing task bar."""
        self.root.bell()
        if WINDOWS:
            with contextlib.suppress(OSError, AttributeError):
                ctypes.windll.user32.FlashWindow(int(self.root.wm_frame(), 16), True)


# --- 18. Start --------------------------------------------------------------------------------------------------------


class App:
    """Wires the owners, keeps them going, and closes them."""

    def __init__(
        self, root: tk.Tk, program: Path, settings: Settings, home: Path | None = None, sources: Iterable[Path] = ()
    ):
        self.root = root
        self.session = session = Session(program, settings)
        self.runs = StepRuns(session)
        self.importer = Importer(session)
        self.environment = Environment(session, self.runs)
        self.tensorboard = TensorBoard()
        self.questions = Questions(root, session, self.importer)
        self._tick_timer: str | None = None
        sys.setswitchinterval(SWITCH_S)
        root.report_callback_exception = self._callback_failed
        root.protocol("WM_DELETE_WINDOW", self.close)
        self.window = MainWindow(
            root, session, self.runs, self.importer, self.environment, self.questions, self._commands()
        )
        self.window.bind_keys()
        if home is None and settings.last_project and is_folder(Path(settings.last_project)):
            home = Path(settings.last_project)
        try:
            session.open(home)
        except Exception as error:  # whatever a project holds, the window opens
            self._callback_failed(type(error), error, error.__traceback__)
            session.open(None)
            session.tell(session.outcome("bad", "open.unusable", folder=home, error=error))
        if settings.damaged:
            session.tell(session.outcome("warn", "damaged", file=settings.damaged))
        if settings.unread:
            session.tell(session.outcome("bad", "unread", file=settings.path, error=settings.unread))
        self._tick()
        sources = list(sources)
        if sources:
            root.after_idle(lambda: self.questions.add(sources))

    def _commands(self) -> dict[str, Callable[[], Any]]:
        """What menus, buttons and keys do, by their text keys; what is returned is told."""
        session, questions = self.session, self.questions
        replies: dict[str, Callable[[], Any]] = {
            "run.all": lambda: None if questions.asking else self.runs.run_all(),
            "tensorboard": lambda: open_tensorboard(session, self.tensorboard),
            "mend.tensorboard": lambda: self.environment.mend("tensorboard"),
            "reset": self._ask_reset,
        }
        for kind in (*TEXT_CHANGES, "instrumental_all"):
            replies[f"texts.{kind}"] = lambda kind=kind: ask_change(session, kind)
        return {
            **{key: lambda reply=reply: session.tell(reply()) for key, reply in replies.items()},
            "menu.new": lambda: session.open(None), "menu.open": questions.ask_project,
            "menu.move": lambda: self.window.show_page("songs"), "open.folder": questions.open_home,
            "menu.logs": lambda: questions.open_home(LOGS_FOLDER), "menu.quit": self.close,
            "songs.add_files": questions.ask_files, "songs.add_folder": questions.ask_folder,
            "menu.start": self._start_shown, "run.stop": self.stop, "menu.keys": lambda: questions.explain("keys"),
            "menu.about": lambda: questions.explain("about", "app"),
            "title.environment": lambda: self.window.show_page("environment"),
        }  # fmt: skip

    def _start_shown(self) -> None:
        if self.window.page_key == "songs":
            self.questions.ask_files()
        elif self.window.page_key in STEP:
            self.session.tell(self.runs.start(self.window.page_key))

    def _ask_reset(self) -> Reply:
        session = self.session

        def reset() -> Reply:
            if not session.store_texts():
                return None
            self.window.forget_pages()
            session.reset()
            self.window.change_look(scale="auto")
            return session.outcome("good", "reset.done")

        return None if session.busy else Question("reset", session.t("reset.message"), {"reset": reset}, "reset")

    def stop(self) -> None:
        """End what goes on: at first gently, then at once."""
        if self.session.state == "importing":
            self.importer.cancel()
        elif self.session.busy:
            self.runs.stop()

    # Heartbeat

    def _tick(self) -> None:
        session = self.session
        try:
            session.tick()
            self.importer.tick()
            self.runs.tick()
            self.window.show_progress()
            if self.runs.run.step == "train" and self.runs.training.follow(self.runs.run.begun):
                self.window.show_curve()
            while not self.tensorboard.answers.empty():
                session.tell(tensorboard_outcome(session, *self.tensorboard.answers.get_nowait()))
            if session.state == "leaving":
                self.finish()
        finally:
            # A tick that raised must not be the last one.
            if session.state != "closed":
                self._tick_timer = self.root.after(TICK_MS, self._tick)

    def _callback_failed(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        print(text, file=sys.stderr)
        with contextlib.suppress(Exception):  # the pane itself may be what is broken; stderr has it
            self.session.log(text.rstrip().split("\n"))
            self.session.tell(self.session.outcome("bad", "bug", error=error))

    # Closing

    def close(self) -> None:
        """Ask when something runs, stop it, then go."""
        session = self.session
        if self.questions.dialog is not None and self.questions.asking:
            self.questions.dialog.window.lift()
        elif session.state == "idle":
            self.finish()
        else:
            session.ask(Question("close", session.t("close.message"), {"stop": self._stop_and_close}, icon="stale"))

    def _stop_and_close(self) -> None:
        session = self.session
        if not session.busy:  # it has ended while the question stood there
            self.finish()
            return
        if session.state in ("running", "importing"):
            self.stop()
        session.state = "closing"
        session.repaint()

    def _ask_discard(self) -> None:
        """A text could not be written: closing now would lose it, so the user decides."""
        answers = {"cancel": self.session.repaint, "discard": lambda: self.finish(discard=True)}
        message = self.session.t("unsaved.message")
        self.session.ask(Question("unsaved", message, answers, icon="stale", danger="discard"))

    def finish(self, discard: bool = False) -> None:
        """Store everything and go; `discard`: also when a text cannot be stored."""
        session = self.session
        if not session.store_texts() and not discard:
            session.state = "idle" if session.state == "leaving" else session.state
            self._ask_discard()
            return
        session.save()
        self.window.keep_places()
        session.save_settings()
        self.tensorboard.close()
        session.release()
        session.state = "closed"
        if self._tick_timer:
            self.root.after_cancel(self._tick_timer)
        self.root.destroy()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A window that leads from a folder of songs to an ACE-Step v1 LoRA.")
    parser.add_argument("songs", nargs="*", type=Path, help="audio files or folders to add")
    parser.add_argument("--project", type=Path, help="open the project in this song folder")
    parser.add_argument("--program", type=Path, help="folder with the step scripts (default: that of this program)")
    parser.add_argument("--language", choices=tuple(LANGUAGES), help="zh or en (default: as last time, at first zh)")
    parser.add_argument("--check", action="store_true", help="print the environment report and end; needs no display")
    return parser.parse_args(argv)


def print_check(program: Path, settings: Settings, home: Path | None) -> int:
    """The environment page as text; exit status 1 when something is missing that a step needs."""
    project = Project.load(home) if home else Project()
    space = Workspace(project, settings, program, {script: read_flags(program / script) for script in SCRIPTS})
    python = next(iter(python_candidates(settings, program)), None)
    report = query_python(python[1], settings.child_environment(), program) if python else None
    findings = list(judge_environment(space, scan_library(project), python, report))
    print(report_text(findings, settings.language))
    return 1 if any(finding.level == "bad" for finding in findings) else 0


def open_root() -> tk.Tk:
    """The Tk window; raises RuntimeError with a sentence when there is no Tk or no display."""
    if tk is None:
        raise RuntimeError(
            "This Python has no Tk, so the window cannot open. Install it (Debian, Ubuntu: sudo apt install python3-tk; "
            "Windows: run Python's installer again and tick 'tcl/tk') or use the scripts from the command line."
        )
    if WINDOWS:
        # Before the first window, or Windows scales a blurred bitmap.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.windll.shcore.SetProcessDpiAwareness(1)
            ctypes.windll.shell32.SetCurrentProcessExplicitAppUserModelID("ace-step-lora-gui")
    try:
        return tk.Tk(className="AceStepLora")
    except tk.TclError as error:
        raise RuntimeError(
            f"The window cannot open: {error}. Start it in a graphical session, or use the scripts from the command line; "
            "'python ace_gui.py --check' works without a display."
        ) from None


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):  # pythonw has no streams
            stream.reconfigure(encoding="utf-8", errors="replace")
    own = program_folder()
    settings = Settings.load(settings_path(own))
    stored = Path(settings.program) if settings.program and is_folder(Path(settings.program)) else own
    program = absolute(args.program or stored)
    settings.language = args.language or settings.language
    if args.project is not None and not is_folder(args.project):
        text = f"error: There is no folder '{args.project}'. Give the folder that holds a project's songs."
        print(text, file=sys.stderr)
        return 2
    if args.check:
        return print_check(program, settings, args.project)
    try:
        root = open_root()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    App(root, program, settings, args.project, [absolute(path) for path in args.songs])
    root.mainloop()
    return 0


# --- 19. Texts --------------------------------------------------------------------------------------------------------

# key: (Chinese, English). `{…}` are filled in by `say`; both languages must have the same ones.
TEXTS: dict[str, tuple[str, str]] = {
    **{f"{part}.{step.key}": texts for step in STEPS for part, texts in step.texts.items()},
    # Steps
    "title.environment": ("环境检查", "Environment"),
    "about.environment": ("运行各步骤需要的东西是否齐全，缺什么、怎么补。", "Whether everything that the steps need is there, and how to mend what is not."),
    "status.done": ("已完成", "done"),
    "status.ready": ("待进行", "to do"),
    "status.locked": ("未解锁", "locked"),
    "status.stale": ("需要更新", "out of date"),
    "status.running": ("运行中", "running"),
    "status.failed": ("失败", "failed"),
    "state.running": ("正在运行，进度见下方。", "Running; see the progress below."),
    "state.stopping": ("正在停止…", "Stopping…"),
    "state.stale": ("需要更新：{reason}", "Out of date: {reason}"),
    "state.failed": ("上次运行失败。{reason}", "The last run failed. {reason}"),
    "locked": ("请先完成第 {number} 步：{why}", "Finish step {number} first: {why}"),
    "songs.none": ("还没有歌曲。", "There are no songs yet."),
    "songs.done": ("共有 {count} 首歌。", "Songs in the library: {count}."),
    "texts.unusable": ("有 {count} 首歌无法读取或没有声音，得不到文本：{songs}。请在“准备音频”页移除或换掉。", "Songs that are unreadable or silent get no text: {count} ({songs}). Remove or replace them on the page “Songs”."),
    "prompt.missing": ("还有 {count} 首歌没有提示词：{songs}", "Songs without a prompt: {count} ({songs})"),
    "prompt.done": ("{count} 首歌都有提示词。", "All songs have a prompt ({count})."),
    "lyrics.missing": ("还有 {count} 首歌没有歌词：{songs}", "Songs without lyrics: {count} ({songs})"),
    "lyrics.done": ("{count} 首歌都有歌词。", "All songs have lyrics ({count})."),
    "dataset.missing": ("数据集 {folder} 还没有创建。", "The dataset {folder} has not been made yet."),
    "dataset.done": ("数据集 {folder} 已创建。", "The dataset {folder} is there."),
    "prep.none": ("{count} 首歌还没有预处理。", "No song has been preprocessed yet ({count} to do)."),
    "prep.missing": ("还有 {count} 首歌没有预处理好：{songs}。若一直失败，请看日志，换掉或移除这些歌。", "Not preprocessed: {count} ({songs}). If that keeps failing, see the log, and replace or remove these songs."),
    "prep.done": ("{count} 首歌都已预处理，共 {size}。", "All songs are preprocessed ({count}, {size})."),
    "train.none": ("还没有训练出的 LoRA。", "There is no trained LoRA yet."),
    "train.foreign": ("checkpoints 里是另一个项目“{owner}”的 LoRA。", "The checkpoints folder holds the LoRAs of another project, “{owner}”."),
    "train.elsewhere": ("另一个训练正在往 {folder} 里保存 LoRA。请等它结束，或在它的窗口里停止它。", "Another training is saving its LoRAs into {folder}. Wait for its end, or stop it in its window."),
    "train.partly": ("停在第 {step} 步（共 {wanted} 步）。已保存 {count} 个 LoRA，共占 {size}，最新的是 {lora}。", "Stopped at step {step} of {wanted}. LoRAs saved: {count}, {size} in all, the latest is {lora}."),
    "train.done": ("已保存 {count} 个 LoRA，共占 {size}，最新的是 {lora}。", "LoRAs saved: {count}, {size} in all, the latest is {lora}."),
    "strength.none": ("成品 LoRA 还没有生成。", "The finished LoRA has not been written yet."),
    "strength.done_all": ("成品：{file}。在 ComfyUI、ACE-Step 自带界面和 diffusers 里都用强度 1。", "Finished: {file}. It plays at strength 1 in ComfyUI, in ACE-Step's own pages and in diffusers."),
    "strength.done": ("成品：{file}", "Finished: {file}"),
    "stale.audio": ("歌曲 {song} 的音频换过了。", "The audio of {song} was replaced."),
    "stale.prompt": ("歌曲 {song} 的提示词改过了。", "The prompt of {song} was changed."),
    "stale.lyrics": ("歌曲 {song} 的歌词改过了。", "The lyrics of {song} were changed."),
    "stale.timed": ("歌曲 {song} 的歌词时间改过了。", "The timed lyrics of {song} were changed."),
    "stale.added": ("新加了歌曲 {song}。", "The song {song} was added."),
    "stale.removed": ("歌曲 {song} 已不在曲库中。", "The song {song} is not in the library any more."),
    "stale.record": ("歌曲 {song} 在预处理之后改过。", "{song} was changed after it had been preprocessed."),
    "stale.records": ("预处理数据比训练更新。", "The preprocessed songs are newer than the training."),
    "stale.orphans": ("_prep 里还有曲库中没有的歌：{songs}。重新运行这一步会把它们移走（可恢复）。", "_prep still holds songs that are not in the library: {songs}. Running this step moves them away (restorable)."),
    "stale.before": ("第 {number} 步需要更新。", "Step {number} is out of date."),
    "stale.lora": ("有了更新的 LoRA：{lora}", "There is a newer LoRA: {lora}"),
    # Songs
    "songs.add_files": ("添加歌曲…", "Add songs…"),
    "songs.add_folder": ("添加文件夹…", "Add folder…"),
    "play": ("播放", "Play"),
    "songs.rename": ("改名…", "Rename…"),
    "songs.remove": ("移除", "Remove"),
    "songs.total": ("{count} 首，总长 {length}", "{count} songs, {length} in all"),
    "songs.empty": ("点右上角“添加歌曲…”选择音频文件，可以一次选很多首。\n支持 aac、flac、m4a、mp3、ogg、opus、wav。", "Press “Add songs…” above and choose audio files, as many as you like.\naac, flac, m4a, mp3, ogg, opus and wav."),
    "column.title": ("歌名", "Title"),
    "column.file": ("文件", "File"),
    "column.length": ("时长", "Length"),
    "column.prompt": ("提示词", "Prompt"),
    "column.lyrics": ("歌词", "Lyrics"),
    "column.record": ("预处理", "Record"),
    "mark.ok": ("✓", "✓"),
    "mark.missing": ("—", "—"),
    "mark.empty": ("空", "empty"),
    "mark.old": ("已过时", "old"),
    "mark.instrumental": ("纯音乐", "instr."),
    "short.unreadable": ("无法读取", "unreadable"),
    "short.silent": ("无声", "silent"),
    "short.long": ("过长", "too long"),
    "short.empty": ("空文件", "empty"),
    "problem.unreadable": ("无法读取，文件可能已损坏。请换一个文件。", "cannot be read, perhaps damaged. Replace the file."),
    "problem.silent": ("几乎全程无声，会被跳过。请换一个文件。", "is silent and would be skipped. Replace the file."),
    "problem.long": ("超过 6 分钟，只会用前 6 分钟。", "is longer than six minutes; only the first six are used."),
    "problem.empty": ("是空文件。请移除。", "is an empty file. Remove it."),
    "problems.found": ("有 {count} 首歌需要注意：", "Songs that need attention: {count}"),
    "problems.item": ("· {name}：{what}", "· {name}: {what}"),
    "problems.more": ("……另有 {count} 首，在表中标有 ⚠。", "… and {count} more, marked ⚠ in the table."),
    "project.name": ("名称", "Name"),
    "project.folder": ("文件夹", "Folder"),
    "project.elsewhere": ("“{name}”已在另一个窗口中打开。请到那个窗口里操作，或关闭它以后再试。", "“{name}” is open in another window. Work there, or close that window and try again."),
    "project.retry": ("再试一次", "Try again"),
    "project.none": ("新项目（添加歌曲后自动命名）", "New project (named after its first song)"),
    "import.done": ("已添加 {count} 首歌。", "Songs added: {count}."),
    "import.more": ("……另有 {count} 条，见日志。", "… and {count} more, see the log."),
    "import.nothing": ("没有找到音频文件。支持的格式：{kinds}", "No audio files found. Looked for {kinds}"),
    "import.missing": ("文件不存在。", "there is no such file."),
    "import.not_audio": ("不是支持的音频格式，未添加。", "is not an audio file of a known kind; not added."),
    "import.already_here": ("已经在曲库里。", "is in the library already."),
    "import.empty": ("是空文件，未添加。", "is an empty file; not added."),
    "import.unreadable": ("不是有效的 wav 文件，未添加。", "is no valid wav file; not added."),
    "import.duplicate": ("与 {detail} 内容相同，未添加。", "has the same content as {detail}; not added."),
    "import.duplicate_used": ("与 {detail} 内容相同，未添加；它旁边的提示词或歌词已补给那首歌。", "has the same content as {detail}; not added, but that song got the texts beside it."),
    "import.duplicate_kept": ("与 {detail} 内容相同，未添加；它旁边的提示词或歌词与曲库中的不同，曲库中的保持不变。", "has the same content as {detail}; not added. The texts beside it differ from that song's, which stay."),
    "import.failed": ("复制失败：{detail}", "could not be copied: {detail}"),
    "import.cancelled": ("未复制。", "was not copied."),
    "home.title": ("新项目", "New project"),
    "home.message": ("歌曲会复制到这里。名称由第一首歌得来，都可以改；以后在“准备音频”页也能改。", "The songs are copied to this place. The name comes from the first song; both can be changed, here or later on the page “Songs”."),
    "home.parent": ("放在文件夹", "In folder"),
    "occupied.title": ("文件夹里已有音频", "This folder holds audio already"),
    "occupied.message": ("“{folder}”里已经有 {count} 首歌。怎么办？\n\n清空：旧歌曲移到带日期的回收文件夹，可从“项目”菜单恢复。",
                         "“{folder}” already holds {count} songs. What shall be done?\n\nClearing moves the old songs to a dated folder, from which the menu “Project” can restore them."),
    "occupied.other": ("换一个文件夹…", "Another folder…"),
    "occupied.clear": ("清空后使用", "Clear this one"),
    "occupied.add": ("添加到其中", "Add to it"),
    "rename.message": ("文件名会随歌名一起更改（中文转成拼音）。", "The file name follows the title."),
    "remove.message": ("把 {count} 首歌连同提示词和歌词移出曲库？可从“项目”菜单恢复。", "Remove {count} songs with their prompts and lyrics from the library? The menu “Project” can restore them."),
    "removed": ("已移除 {count} 首歌，可从“项目”菜单恢复。", "Songs removed: {count}. The menu “Project” can restore them."),
    "restored": ("已恢复 {count} 个文件；{replaced} 个同名文件移到了回收文件夹。", "Files restored: {count}; put into the bin in exchange: {replaced}."),
    "move.title": ("更改项目文件夹", "Another name or folder"),
    "move.message": ("从 {old}\n改为 {new}\n\n要把歌曲和预处理数据移过去，还是只打开新文件夹？", "From {old}\nto {new}\n\nMove the songs and preprocessed data there, or just open that folder?"),
    "move.move": ("移过去", "Move them"),
    "move.open": ("只打开新文件夹", "Just open it"),
    "move.done": ("项目现在位于 {new}。", "The project is now in {new}."),
    "move.exists": ("{path} 已存在且不为空，请换一个名称。", "{path} exists and is not empty. Choose another name."),
    "bin.remove": ("移除的歌曲", "removed songs"),
    "bin.clear": ("清空前的曲库", "library before clearing"),
    "bin.move": ("改名前的数据集", "dataset before moving"),
    "bin.rename": ("改名时被替换", "replaced by a rename"),
    "bin.restore": ("恢复时被替换", "replaced by a restoring"),
    "bin.orphans": ("多余的预处理数据", "records without a song"),
    "bin.overwritten": ("被覆盖的文本", "overwritten texts"),
    "bin.add_tag": ("加标签前的提示词", "prompts before a tag was added"),
    "bin.remove_tag": ("删标签前的提示词", "prompts before a tag was removed"),
    "bin.replace": ("替换前的文本", "texts before replacing"),
    "bin.instrumental": ("改为纯音乐前的歌词", "lyrics before [instrumental]"),
    "bin.damaged": ("训练状态损坏的检查点", "a checkpoint that was damaged"),
    "bin.a checkpoint whose training state is damaged": ("训练状态损坏的检查点", "a checkpoint that was damaged"),
    "bin.an old checkpoint that holds other files": ("旧检查点，里面还有别的文件", "an old checkpoint with other files in it"),
    "bin.left by a training that was killed": ("被中断的训练留下的", "left by a training that was killed"),
    "bin.records of songs that are no longer in the dataset": ("已不在数据集里的歌曲", "songs that left the dataset"),
    "bin.files in the place of records": ("占了数据文件的位置", "stood in the place of records"),
    "bin.left behind by a run that was interrupted": ("中断的运行留下的", "left by a run that was interrupted"),
    "bin.replaced, and holds files that are not ours": ("被替换的文件夹，里面还有别的文件", "a replaced folder with other files in it"),
    "kind.songs": ("歌曲", "Songs"),
    "kind.checkpoints": ("检查点", "Checkpoints"),
    "kind.records": ("预处理数据", "Records"),
    "kind.dataset": ("数据集", "Dataset"),
    "kind.texts": ("提示词、歌词", "Prompts, lyrics"),
    "kind.files": ("文件", "Files"),
    "restore.refused": ("没有恢复：{path} 不在这个项目的文件夹里。什么都没有改动。", "Nothing was restored: {path} leads out of this project's folders."),
    "bin.": ("旧文件", "old files"),
    # Texts
    "texts.previous": ("◀ 上一首", "◀ Previous"),
    "texts.next": ("下一首 ▶", "Next ▶"),
    "texts.save": ("保存", "Save"),
    "texts.instrumental": ("标为纯音乐", "Instrumental"),
    "texts.again": ("重新生成这首", "Only this song"),
    "texts.all": ("全部歌曲", "All songs"),
    "texts.add_tag": ("加标签（触发词）…", "Add a tag (trigger word)…"),
    "texts.remove_tag": ("删除标签…", "Remove a tag…"),
    "texts.replace": ("查找替换…", "Find and replace…"),
    "texts.instrumental_all": ("标为纯音乐…", "Mark as instrumental…"),
    "texts.prompt": ("提示词（用逗号分隔）", "Prompt (tags separated by commas)"),
    "texts.lyrics": ("歌词", "Lyrics"),
    "texts.saved": ("已保存", "saved"),
    "texts.unsaved": ("未保存", "not saved yet"),
    "tag": ("标签", "Tag"),
    "add_tag.message": ("加在全部 {count} 首歌的提示词最前面；已有的不重复添加。", "Put in front of the prompts of all {count} songs, unless it is there already."),
    "remove_tag.message": ("从全部 {count} 首歌的提示词中删除。", "Taken out of the prompts of all {count} songs."),
    "replace.message": ("在全部 {count} 首歌的提示词和歌词中替换。", "In the prompts and lyrics of all {count} songs."),
    "replace.find": ("查找", "Find"),
    "replace.by": ("替换为", "Replace by"),
    "instrumental.message": ("把歌词改为 [instrumental]（共 {count} 首歌）。原歌词可以恢复。", "Set the lyrics to [instrumental] ({count} songs in the library). Old lyrics can be restored."),
    "instrumental.all": ("全部歌曲", "All songs"),
    "instrumental.missing": ("只改没有歌词的", "Only those without lyrics"),
    "changed.texts": ("改动了 {count} 个文件；旧内容可从“项目”菜单恢复。", "Files changed: {count}. The menu “Project” can restore the old texts."),
    "save.failed": ("无法保存 {file}：{error}。请检查磁盘空间和权限。", "Cannot save {file}: {error}. Check disk space and permissions."),
    # Fields
    "field.on": ("开启", "on"),
    "field.default": ("默认：{value}", "default: {value}"),
    "field.nothing": ("（空）", "(empty)"),
    "hint.prodigy_rate": ("Prodigy 自己找学习率，学习率应填 1。", "Prodigy finds the rate itself: set the learning rate to 1."),
    "hint.high_rate": ("学习率这么大，AdamW 很可能学坏。", "AdamW will probably diverge at such a learning rate."),
    "hint.beta2": ("1 − beta2 小于 1 / 最大步数：二阶动量来不及稳定。", "1 − beta2 is below 1 / steps: the second moment cannot settle."),
    "hint.save": ("保存间隔大于最大步数：只会在结束时保存一次。", "Saving less often than the training is long: only the end is saved."),
    "wrong.int": ("“{value}”不是整数。", "“{value}” is no whole number."),
    "wrong.float": ("“{value}”不是数字。", "“{value}” is no number."),
    "wrong.range": ("“{value}”超出范围，应在 {low} 到 {high} 之间。", "“{value}” is outside {low} to {high}."),
    "wrong.low": ("“{value}”太小，至少为 {low}。", "“{value}” is below {low}."),
    "wrong.choice": ("“{value}”不可用，应为 {choices}。", "“{value}” is none of {choices}."),
    "wrong.file": ("找不到文件“{value}”。", "There is no file “{value}”."),
    "wrong.empty": ("不能为空。", "Must not be empty."),
    "wrong.start": ("有 {count} 个设置不对，已标红。改好后再开始。", "Wrong settings, marked in red: {count}. Correct them, then start."),
    "name.empty": ("名称不能为空。", "The name must not be empty."),
    "name.long": ("名称太长，请不要超过 80 个字符。", "The name is too long; use 80 characters at most."),
    "name.characters": ("名称不能含有 < > : \" / \\ | ? *，也不能以点或空格开头结尾。", "A name cannot hold < > : \" / \\ | ? *, nor begin or end with a dot or space."),
    "name.suffix": ("以 _filenames 或 _prep 结尾的名称是给各步骤结果用的，请换一个。", "Names that end in _filenames or _prep belong to the steps' results; choose another."),
    "name.reserved": ("这个名称被 Windows 保留，请换一个。", "Windows reserves this name; choose another."),
    "preset.label": ("显存方案", "Preset"),
    "preset.save": ("保存为…", "Save as…"),
    "preset.delete": ("删除", "Delete"),
    "preset.name": ("方案名称", "Name"),
    "preset.message": ("把现在的训练参数存成方案，各个项目都能用。", "Keep the present training settings for every project."),
    "preset.taken": ("这是内置方案的名字，请换一个。", "A built-in preset has this name; choose another."),
    "preset.applied": ("已套用方案“{name}”。", "Preset “{name}” applied."),
    "advanced.open": ("高级设置 ▾", "Advanced ▾"),
    "advanced.close": ("收起高级设置 ▴", "Hide advanced ▴"),
    # Running
    "run.all": ("运行剩余步骤", "Run all remaining"),
    "run.stop": ("停止", "Stop"),
    "run.force": ("强制结束", "Force stop"),
    "run.idle": ("空闲", "Ready"),
    "run.running": ("正在运行：{title}", "Running: {title}"),
    "run.importing": ("正在复制歌曲", "Copying songs"),
    "run.stopping_short": ("正在停止：{title}", "Stopping: {title}"),
    "run.stopping": ("已请求停止：正在完成当前一步并保存。再按一次强制结束。", "Asked to stop: it ends the present step and saves. Press again to end it at once."),
    "run.killing": ("没有在规定时间内停下，强制结束。", "It did not stop in time and is ended now."),
    "run.elapsed": ("已用 {time}", "elapsed {time}"),
    "run.left": ("剩余 {time}", "left {time}"),
    "run.loss": ("损失", "loss"),
    "run.rate": ("{rate} 步/秒", "{rate} it/s"),
    "run.done": ("“{title}”已完成，用时 {spent}。", "{title}: done in {spent}."),
    "run.stopped": ("“{title}”已停止（运行了 {spent}）。再次开始会接着做。", "{title}: stopped after {spent}. Start it again to go on."),
    "run.stopped_training": ("“{title}”已停止并保存（运行了 {spent}）。再次开始时，选“从最新的继续”就会接着训练。", "{title}: stopped and saved after {spent}. To go on, start it again and choose “Go on from the last”."),
    "run.stopped_only": ("“{title}”已停止（运行了 {spent}）。", "{title}: stopped after {spent}."),
    "run.songs_failed": ("有 {count} 首歌没有成功：{songs}。原因见日志中的红色行。", "Songs that did not succeed: {count} ({songs}). The red lines of the log say why."),
    "run.failed": ("第 {number} 步“{title}”失败（退出码 {code}）。", "Step {number}, {title}, failed (exit status {code})."),
    "run.not_started": ("未能启动", "not started"),
    "run.nothing": ("所有步骤都已完成。", "All steps are done."),
    "log.hint": ("各步骤的输出会显示在这里。", "What the steps print appears here."),
    "log.skipped": ("……此处略去 {count} 行，全部内容在日志文件中。", "… {count} lines left out here; the log file has all of them."),
    "log.file": ("完整日志：{file}", "Full log: {file}"),
    "log.ended": ("{title} 结束，退出码 {code}，用时 {spent}", "{title} ended with exit status {code} after {spent}"),
    "askstale.title": ("前面的步骤需要更新", "An earlier step is out of date"),
    "askstale.message": ("第 {number} 步“{title}”：{reason}", "Step {number}, {title}. {reason}"),
    "askstale.first": ("先更新再继续", "Do that first"),
    "anyway": ("照样开始", "Start anyway"),
    "checkpoints.title": ("checkpoints 里已有 LoRA", "The checkpoints folder holds LoRAs"),
    "checkpoints.message": ("“{folder}”里已有 {count} 个 LoRA，最新的是 {lora}。\n\n新的训练需要空文件夹：旧的会移到 {moved}，不会删除。",
                            "“{folder}” holds {count} LoRAs, the latest is {lora}.\n\nA new training needs an empty folder: the old one is moved to {moved}, nothing is deleted."),
    "checkpoints.move": ("移走，重新训练", "Move them, start anew"),
    "changes.title": ("设置变了，还接着训练吗", "Go on with other settings"),
    "changes.message": ("与上次训练相比有变化：\n\n{changes}\n\n可以带着这些变化，从最新的检查点接着训练；不想改就取消，把设置改回去。", "Since the last training this has changed:\n\n{changes}\n\nThe training can go on from the last checkpoint with it. To keep to what was, cancel and put the settings back."),
    "changes.accept": ("按新设置继续", "Go on with the changes"),
    "checkpoints.resume": ("从最新的继续", "Go on from the last"),
    "checkpoints.moved": ("旧的 LoRA 已移到 {folder}", "The old LoRAs were moved to {folder}"),
    "orphans.moved": ("已移走曲库中没有的预处理数据：{songs}", "Records without a song were moved away: {songs}"),
    "disk.title": ("磁盘空间可能不够", "The disk may be too small"),
    "train.trial": ("试跑 20 步", "Trial run"),
    "train.trial_tip": ("用最长的歌试跑 20 步，报告显存、速度和总时间，不保存 LoRA。", "Twenty steps on the longest song: reports memory, speed and hours for the whole run."),
    "trial.fits": ("试跑完成：{seconds} 秒/步，整个训练（{steps} 步）约需 {hours}，内存或显存最多 {peak}（共 {memory}），检查点约占 {disk}。",
                   "Trial run: {seconds} s per step, about {hours} for all {steps} steps, {peak} of {memory} memory at the most, {disk} for checkpoints."),
    "trial.unfit": ("试跑结果：显存放不下。关闭占用显卡的程序，或填“最长秒数”（如 120）。", "Trial run: it does not fit. Close programs that use the card, or set “Longest crop”, such as 120."),
    "trial.savings": ("需要这些省显存设置：{flags}", "It needs these savings: {flags}"),
    "trial.apply": ("采用这些设置", "Use these settings"),
    "trial.applied": ("已采用试跑找到的设置：{flags}", "The settings found by the trial are set: {flags}"),
    "chart.title": ("损失曲线", "Loss"),
    "chart.empty": ("开始训练后，这里会画出损失曲线。", "The loss is drawn here while the training runs."),
    "chart.raw": ("原始", "raw"),
    "chart.smooth": ("平滑", "smooth"),
    "chart.validation": ("验证", "validation"),
    "chart.rate": ("学习率", "rate"),
    "tensorboard": ("打开 TensorBoard", "TensorBoard"),
    "tensorboard.starting": ("正在启动 TensorBoard…", "Starting TensorBoard…"),
    "tensorboard.ready": ("TensorBoard 已在浏览器中打开：{url}", "TensorBoard is open in the browser: {url}"),
    "tensorboard.missing": ("没有安装 TensorBoard。", "TensorBoard is not installed."),
    "tensorboard.failed": ("TensorBoard 没有启动：{detail}", "TensorBoard did not start: {detail}"),
    "reset": ("恢复默认设置", "Reset settings"),
    "reset.message": ("把本项目的所有步骤设置以及 Python、模型来源等设置恢复为默认值？歌曲、文本和训练结果都不受影响。",
                      "Set all settings of this project's steps, and those of Python and the model source, back to their defaults? Songs, texts and results are not touched."),
    "reset.done": ("已恢复默认设置。", "All settings have their defaults again."),
    "comfy.copy": ("复制到 ComfyUI", "Copy to ComfyUI"),
    "comfy.choose": ("选择 ComfyUI 文件夹", "Choose the ComfyUI folder"),
    "comfy.copied": ("已复制到 {file}", "Copied to {file}"),
    "close.title": ("还在运行", "Something is running"),
    "close.message": ("任务还在运行。停止并保存后退出？", "Stop it, save, and then close the window?"),
    "close.stop": ("停止并退出", "Stop and close"),
    "close.cancel": ("继续运行", "Keep running"),
    "unsaved.title": ("有文本没有保存", "A text is not saved"),
    "unsaved.message": ("正在编辑的提示词或歌词无法写入磁盘。现在退出会丢失它。", "The prompt or lyrics being edited cannot be written to the disk. Closing now would lose them."),
    "unsaved.cancel": ("返回编辑", "Back to the text"),
    "unsaved.discard": ("放弃并退出", "Close without saving"),
    # Menus and buttons
    "ok": ("确定", "OK"),
    "cancel": ("取消", "Cancel"),
    "apply": ("应用", "Apply"),
    "browse": ("浏览…", "Browse…"),
    "open.folder": ("打开歌曲文件夹", "Open song folder"),
    "open.failed": ("无法打开 {path}：{error}。系统里没有能打开它的程序。", "Cannot open {path}: {error}. No program on this system opens it."),
    "open.result": ("打开结果文件夹", "Open result folder"),
    "choose.home": ("选择文件夹", "Choose a folder"),
    "choose.project": ("选择项目的歌曲文件夹", "Choose a project's song folder"),
    "choose.audio": ("音频", "Audio"),
    "choose.all": ("所有文件", "All files"),
    "menu.project": ("项目", "Project"),
    "menu.songs": ("歌曲", "Songs"),
    "menu.run": ("运行", "Run"),
    "menu.view": ("查看", "View"),
    "menu.help": ("帮助", "Help"),
    "menu.new": ("新建项目", "New project"),
    "menu.open": ("打开项目…", "Open project…"),
    "menu.recent": ("最近的项目", "Recent projects"),
    "menu.move": ("改名或移动…", "Rename or move…"),
    "menu.logs": ("打开日志文件夹", "Open log folder"),
    "menu.restore": ("恢复移除的文件", "Restore removed files"),
    "menu.none": ("（无）", "(none)"),
    "menu.quit": ("退出", "Quit"),
    "menu.start": ("开始当前步骤", "Start this step"),
    "menu.scale_auto": ("自动缩放", "Automatic size"),
    "menu.keys": ("键盘操作", "Keyboard"),
    "menu.about": ("关于", "About"),
    "keys.message": ("Alt+1 … Alt+7　各步骤\nF5　开始当前步骤　　Ctrl+F5　运行剩余步骤\nShift+F5　停止\nF6　在步骤、页面、日志之间切换\nF8　环境检查　　F9　TensorBoard\nCtrl+O　添加歌曲　　Ctrl+Shift+O　添加文件夹\nCtrl+S　保存文本\nCtrl+PageUp / PageDown　上一首、下一首\nF2　改名　　Delete　移除　　Enter　播放",
                     "Alt+1 … Alt+7   the steps\nF5   start this step     Ctrl+F5   run all remaining\nShift+F5   stop\nF6   steps, page, log\nF8   environment     F9   TensorBoard\nCtrl+O   add songs     Ctrl+Shift+O   add folder\nCtrl+S   save texts\nCtrl+PageUp / PageDown   previous, next song\nF2   rename     Delete   remove     Enter   play"),
    "about.message": ("ACE-Step LoRA {version}\n\n从一个歌曲文件夹到 ComfyUI 里的 LoRA。Apache-2.0 许可。", "ACE-Step LoRA {version}\n\nFrom a folder of songs to a LoRA in ComfyUI. Licence: Apache-2.0."),
    "unread": ("现在读不到 {file}（{error}）。先用默认设置打开，这次的设置不会保存，以免覆盖原来的。关掉占用它的程序，或检查权限，再重新打开。", "{file} cannot be read at present ({error}). Defaults are used, and nothing is saved over it. Close what holds it or check its permissions, then open again."),
    "open.unusable": ("打不开项目 {folder}：{error}", "The project {folder} cannot be opened: {error}"),
    "move.interrupted": ("项目移到 {new} 时被中断了。请在第 1 步再移动一次，已移过去的不会丢。", "The move of this project to {new} was interrupted. Move it there again on the first page; nothing is lost."),
    "doubt.title": ("项目文件里的位置", "Places from the project's file"),
    "doubt.message": ("这个项目的设置会把文件写到程序文件夹以外，或连接另一台电脑：\n\n{values}\n\n如果项目是别人给的，又不清楚这些是什么，请用默认值。", "The settings of this project write outside of the program's folder, or talk to another machine:\n\n{values}\n\nIf somebody gave you the project and you do not know these, take the defaults."),
    "doubt.default": ("用默认值", "Take the defaults"),
    "doubt.use": ("照项目里的用", "Use them"),
    "texts.blocked": ("{file} 无法在这里显示：{why}。请用别的编辑器修改。文件没有改动。", "{file} cannot be shown here: {why}. Change it in another editor; the file stays as it is."),
    "texts.long_line": ("有一行太长", "a line is too long"),
    "mark.unusable": ("无法使用", "unusable"),
    "damaged": ("设置文件损坏，已改名为 {file} 保留，现在使用默认设置。", "A settings file was damaged; it is kept as {file}, and defaults are used."),
    "busy": ("有任务正在运行，请先等它结束或停止它。", "Something is running. Wait for its end, or stop it, first."),
    "failed.file": ("文件操作失败：{error}。请检查磁盘、权限和占用它的程序。", "A file could not be used: {error}. Check disk, permissions and other programs."),
    "bug": ("程序内部出错：{error}。详情见日志，请反馈。", "Something went wrong inside the program: {error}. The log says more; please report it."),
    # Environment
    "env.copy": ("复制报告", "Copy report"),
    "env.again": ("重新检查", "Check again"),
    "env.copied": ("报告已复制到剪贴板。", "The report is in the clipboard."),
    "env.asking": ("正在询问 Python，请稍候…", "Asking Python; this takes a few seconds…"),
    "env.no_python": ("没有找到运行脚本的 Python。请运行 start.bat（或 python start.py）安装，或在右侧指定 python。",
                      "No Python was found to run the scripts. Run start.bat (or python start.py), or choose a Python in the settings."),
    "env.python": ("Python：{path}（{where}）", "Python: {path} ({where})"),
    "env.python_setting": ("手动指定的 Python“{path}”不存在，改用了上面这个。", "There is no Python “{path}”, which was chosen by hand; the one above is used instead."),
    "where.setting": ("手动指定", "chosen by hand"),
    "where.running": ("本窗口所用", "that of this window"),
    "where.VIRTUAL_ENV": ("已激活的虚拟环境", "the active environment"),
    "where.CONDA_PREFIX": ("已激活的 conda 环境", "the active conda environment"),
    "env.python_version": ("Python 版本 {version}", "Python version {version}"),
    "env.python_old": ("Python {version} 太旧，需要 3.10 到 3.13。", "Python {version} is too old; 3.10 to 3.13 are needed."),
    "env.python_broken": ("这个 Python 不能用：{error}", "This Python does not work: {error}"),
    "env.bits": ("这是 32 位的 Python，需要 64 位。", "This is a 32-bit Python; a 64-bit one is needed."),
    "env.no_torch": ("没有安装 PyTorch。", "PyTorch is not installed."),
    "env.torch_broken": ("PyTorch 无法载入：{error}", "PyTorch cannot be loaded: {error}"),
    "env.torch": ("PyTorch {version}，CUDA {cuda}", "PyTorch {version}, CUDA {cuda}"),
    "env.cpu_torch": ("有 NVIDIA 显卡，但装的是 CPU 版 PyTorch，训练会极慢。", "There is an NVIDIA card, but PyTorch is the CPU build; training would take ages."),
    "env.no_card": ("没有可用的 NVIDIA 显卡：只能在 CPU 上运行，训练会极慢。", "No usable NVIDIA card: everything runs on the CPU, and training takes ages."),
    "env.mps": ("使用 Apple 显卡（MPS），训练比 NVIDIA 慢得多。", "An Apple GPU (MPS) is used; training is much slower than on NVIDIA."),
    "env.card": ("显卡 {name}，显存 {gb} GB，空闲 {free} GB", "{name}, {gb} GB, {free} GB free"),
    "env.bf16": ("显卡支持 bf16", "The card has bf16"),
    "env.no_bf16": ("显卡不支持 bf16：请把训练精度改为 16-mixed。", "The card has no bf16: set the training's precision to 16-mixed."),
    "env.packages": ("缺少软件包：{names}", "Missing packages: {names}"),
    "env.packages_ok": ("软件包：{names}", "Packages: {names}"),
    "env.tensorboard": ("没有安装 TensorBoard，只影响“打开 TensorBoard”按钮。", "TensorBoard is not installed; only its button needs it."),
    "env.pypinyin": ("没有 pypinyin，中文歌名只能得到编号式的文件名。", "pypinyin is missing: Chinese titles get numbered file names."),
    "env.script": ("找不到脚本 {script}，应在 {folder} 中。", "The script {script} is missing in {folder}."),
    "env.scripts": ("脚本齐全：{folder}", "All scripts are there: {folder}"),
    "env.disk": ("空闲磁盘 {free}，预计还需 {need}", "Free disk {free}; still needed, at most: {need}"),
    "env.disk_short": ("磁盘只剩 {free}，预计需要 {need}。请清理或换一个盘。", "Only {free} of disk are free, {need} may be needed. Free some, or use another disk."),
    "env.disk_unknown": ("无法得知空闲磁盘：{error}", "The free disk space is unknown: {error}"),
    "env.weights": ("基础模型已下载（{size}）：{folder}", "The base model is there ({size}): {folder}"),
    "env.weights_missing": ("基础模型还缺 {parts}，约 {size}，首次运行时从 {source} 下载。", "Of the base model {parts} are missing, about {size}; the first run downloads them from {source}."),
    "env.weights_offline": ("离线模式下缺少基础模型 {parts}（约 {size}，来源 {source}）。请关闭离线，或指定模型文件夹。",
                            "Offline, but {parts} of the base model are missing (about {size}, from {source}). Go online or choose its folder."),
    "mend.python": ("选择 Python…", "Choose Python…"),
    "mend.program": ("选择程序文件夹…", "Choose folder…"),
    "mend.install": ("安装环境", "Install"),
    "mend.tensorboard": ("安装 TensorBoard", "Install TensorBoard"),
    "mend.pypinyin": ("安装 pypinyin", "Install pypinyin"),
    "mend.weights": ("现在下载", "Download now"),
    "mend.source": ("更改来源", "Change source"),
    "install.menu": ("安装", "Install"),
    "install.setup": ("安装或修复全部依赖", "Install or mend everything"),
    "install.group": ("可选：{what}（{name}）", "Optional: {what} ({name})"),
    "install.weights": ("下载基础模型（约 10 GB，可续传）", "Download the base model (about 10 GB, resumes)"),
    "group.captioning": ("用 Qwen2.5-Omni 识别提示词和歌词", "prompts and lyrics from Qwen2.5-Omni on an NVIDIA card"),
    "group.japanese": ("日语歌词", "Japanese lyrics"),
    "group.prodigy": ("免调度的 Prodigy 优化器", "the schedule-free Prodigy optimizer"),
    "group.small_cards": ("8 位或 4 位基础模型、8 位 AdamW", "a base model in 8 or 4 bits, 8-bit AdamW"),
    "group.wandb": ("Weights & Biases 日志", "logging to Weights & Biases"),
    "install.title": ("安装软件包", "Installation"),
    "install.by_hand": ("这里没有 start.py 或 Python。请先安装 64 位 Python 3.10 到 3.13，再按 README 安装依赖。", "There is no start.py or no Python here. Install 64-bit Python 3.10 to 3.13, then follow the README."),
    "setting.python": ("运行脚本的 Python", "Python for the scripts"),
    "setting.python.help": ("留空自动查找：.venv、python 文件夹、已激活的环境、PATH。", "Empty: searched in .venv, the folder python, the active environment, PATH."),
    "setting.endpoint": ("模型下载来源", "Model source"),
    "setting.endpoint.help": ("留空用 huggingface.co；国内可选 https://hf-mirror.com。", "Empty: huggingface.co. Or a mirror of it."),
    "setting.checkpoint_dir": ("基础模型文件夹", "Base model folder"),
    "setting.checkpoint_dir.help": ("已手动下载时指定；留空用默认缓存。", "Where a copy lies already; empty: the download cache."),
    "setting.cache": ("下载缓存（HF_HOME）", "Download cache (HF_HOME)"),
    "setting.cache.help": ("C 盘太小时可换到别的盘。", "Choose another disk when the system's is small."),
    "setting.program": ("程序文件夹", "Program folder"),
    "setting.program.help": ("脚本所在处；留空为本程序所在文件夹。", "Where the scripts stand; empty: beside this program."),
    "setting.offline": ("离线（不访问网络）", "Offline (use no network)"),
    # Known errors
    "err.cuda_memory": ("显存不足。把批大小设为 1，选更小的显存方案，关闭占用显卡的程序，再试。", "The card ran out of memory. Set the batch size to 1, choose a smaller preset, close other programs on the card, try again."),
    "err.memory": ("内存不足。关闭其他程序，把数据线程数设为 0。", "Out of main memory. Close other programs and set the loader workers to 0."),
    "err.paging": ("Windows 虚拟内存（页面文件）太小。在系统高级设置里改为“系统管理的大小”或至少 32 GB，然后重启。",
                   "Windows' paging file is too small. Set it to “system managed” or at least 32 GB in the advanced system settings, then restart."),
    "err.tf32": ("PyTorch 新旧 TF32 开关混用，常见于原版训练脚本。请用本项目的 trainer_new.py，或换 PyTorch 版本。",
                 "Old and new TF32 switches of PyTorch were mixed, as the fork's trainer does. Use this project's trainer_new.py, or another PyTorch."),
    "err.bf16": ("显卡不支持 bf16。把精度改为 16-mixed。", "The card has no bf16. Set the precision to 16-mixed."),
    "err.triton": ("缺少 Triton 或 C++ 编译器。关闭 torch.compile 相关选项即可。", "Triton or a C++ compiler is missing. Turn torch.compile off."),
    "err.torchcodec": ("torchcodec 无法使用。安装 FFmpeg，或卸载 torchcodec。", "torchcodec does not work. Install FFmpeg, or uninstall torchcodec."),
    "err.package": ("缺少软件包 {name}。在“环境检查”页安装。", "The package {name} is missing. Install it from the page “Environment”."),
    "err.dll": ("有 DLL 无法载入。安装最新的 Microsoft Visual C++ 运行库，再重装 PyTorch。", "A DLL cannot be loaded. Install the latest Microsoft Visual C++ runtime, then PyTorch again."),
    "err.driver": ("显卡驱动太旧。到 NVIDIA 官网更新驱动。", "The graphics driver is too old. Update it from NVIDIA."),
    "err.kernel": ("PyTorch 不支持这块显卡。安装与显卡匹配的 CUDA 版 PyTorch。", "This PyTorch does not support the card. Install a build for its CUDA generation."),
    "err.cpu_torch": ("装的是 CPU 版 PyTorch。在“环境检查”页安装 CUDA 版。", "PyTorch is the CPU build. Install the CUDA build from the page “Environment”."),
    "err.no_card": ("没有找到 NVIDIA 显卡或驱动。检查驱动，或在设备管理器中启用显卡。", "No NVIDIA card or driver was found. Check the driver."),
    "err.assert": ("显卡计算出错。重启电脑再试；若再次出现，降低超频或更新驱动。", "A computation on the card failed. Restart and try again; if it comes back, undo overclocking or update the driver."),
    "err.space": ("磁盘满了。清理空间后再次开始，会接着做。", "The disk is full. Free some space and start again; it goes on from there."),
    "err.path": ("路径太长。把程序移到更短的路径，如 D:\\ace，或用更短的项目名。", "A path is too long. Move the program to a short one such as D:\\ace, or shorten the project's name."),
    "err.in_use": ("文件被其他程序占用。关闭播放器、编辑器或同步软件后再试。", "A file is in use. Close players, editors or sync programs, then try again."),
    "err.permission": ("没有写入权限。把程序移到自己的文件夹，不要放在 Program Files。", "No permission to write. Move the program to a folder of your own, not Program Files."),
    "err.offline": ("模型没有下载，又处于离线状态。在“环境检查”页关闭离线或指定模型文件夹。", "The model is not downloaded and the network is off. See the page “Environment”."),
    "err.certificate": ("网络证书验证失败。检查系统时间、代理和杀毒软件。", "A certificate was refused. Check the clock, the proxy and the virus scanner."),
    "err.refused": ("下载被拒绝：模型名有误，或需要登录。检查模型名和来源。", "The download was refused: wrong model name, or a login is needed. Check name and source."),
    "err.busy_hub": ("下载来源限制了访问次数。过一会儿再试，或换镜像。", "The model source limits requests. Try later, or use a mirror."),
    "err.llamacpp": ("连接不上 llama.cpp 服务器。先启动 llama-server，检查地址和端口。", "The llama.cpp server does not answer. Start llama-server; check host and port."),
    "err.network": ("网络连接失败。检查网络，或在“环境检查”页换成镜像；再次开始会续传。", "The network failed. Check it, or choose a mirror on the page “Environment”; downloads resume."),
    "err.weights": ("模型文件损坏或名称有误。删除该文件夹后重新下载，或检查模型名。", "A model file is damaged or its name is wrong. Delete that folder and download again, or check the name."),
    "err.nan": ("损失变成了无效数值。降低学习率，检查有没有损坏的歌。", "The loss is not a number any more. Lower the learning rate; look for a damaged song."),
    "err.checkpoints": ("checkpoints 文件夹里已有 LoRA。再次开始，选择移走或继续。", "The checkpoints folder holds LoRAs. Start again and choose to move them or go on."),
    "err.audio": ("有音频无法读取。看日志里的文件名，重新转换或移除它。", "An audio file cannot be read. The log names it: convert it anew or remove it."),
    "err.workers": ("数据线程出错。把数据线程数设为 0。", "A loader worker failed. Set the loader workers to 0."),
    "err.wandb": ("Weights & Biases 需要登录。把日志方式改为 tensorboard，或先运行 wandb login。", "Weights & Biases wants a login. Use tensorboard as logger, or run wandb login."),
    "err.flags": ("脚本不认识某个参数。脚本和窗口的版本可能不一致。", "The script refused a flag. Script and window may be of different versions."),
    "err.shape": ("文件和模型不匹配：LoRA 的 rank 或模型版本不同。", "A file does not fit the model: another rank or another model."),
    "err.syntax": ("Python 版本太旧或脚本文件不完整。需要 Python 3.10 到 3.13。", "The Python is too old or a script is incomplete. Python 3.10 to 3.13 is needed."),
    "err.killed": ("进程被系统结束，多半是内存不足。关闭其他程序再试。", "The system ended the process, mostly for lack of memory. Close other programs and try again."),
    "err.crash": ("程序崩溃了。更新显卡驱动，或重装 PyTorch。", "The program crashed. Update the graphics driver, or install PyTorch again."),
    "err.interrupted": ("运行被中断。再次开始会接着做。", "It was interrupted. Start again to go on."),
    "err.undecided": ("有些歌曲还没有歌词：请在歌词页填写，没有人声的用“标为纯音乐…”处理。", "Some songs have no lyrics yet: write them on the page of lyrics, or use “Mark as instrumental…” where nobody sings."),
    "err.input": ("输入有问题，日志中以 error 开头的行写明了原因。", "Something about the input is wrong; the lines with “error” in the log say what."),
    "err.start": ("程序无法启动。在“环境检查”页检查 Python。", "The program could not be started. Check Python on the page “Environment”."),
    "err.no_result": ("脚本说成功了，但没有得到结果：{why}请看日志。", "The script reported success but left no result. {why} See the log."),
    "err.unknown": ("原因见日志的最后几行。", "The last lines of the log say why."),
}  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
