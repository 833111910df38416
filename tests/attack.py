"""Wrong inputs by the hundred: what strangers, broken disks and other programs may put in front of the scripts.

    python -m tests.attack                      all cases, a table by kind at the end
    python -m tests.attack --kind record state  only these kinds
    python -m tests.attack --program DIR        the same against the scripts of another checkout

Each case is a copy of a small working world (tiny base, two songs, dataset, records, a checkpoint with its state) with
one thing spoilt, and one script run on it. A case fails when the script prints a traceback, runs longer than its limit,
takes more memory than its limit, dies of a signal, ends without a reason, ends with status 0 although the spoilt thing
cannot be used, or changes one of the user's files. `tests/test_attack.py` runs a sample. POSIX only: cases are forked
from one process that has the libraries loaded, which makes them much cheaper than processes of their own.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import importlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

TIME_LIMIT_S = 60.0
MEMORY_LIMIT_BYTES = 6 * 2**30  # of address space on top of what the libraries have mapped
LYRICS = "[verse]\nla la la one two\nhello my friend again\n[chorus]\nwe sing it all night\n"

Spoil = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One spoilt world and the command that is run on it.

    `must_fail`: status 0 would be a false success.
    """

    kind: str
    name: str
    spoil: Spoil
    command: tuple[str, ...]
    must_fail: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.name} ({self.command[0]})"


# --- The world ---


def write_song(path: Path, seconds: float, pitch: float) -> None:
    samples = (int(8000 * math.sin(2 * math.pi * pitch * i / 22050)) for i in range(int(seconds * 22050)))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(22050)
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))


def make_world(folder: Path) -> None:
    """Everything a user has after a training, made by the scripts themselves; raises when one of them fails."""
    songs = folder / "songs"
    songs.mkdir(parents=True)
    for name, seconds, pitch in (("a", 2.0, 220.0), ("b", 3.0, 330.0)):
        write_song(songs / f"{name}.wav", seconds, pitch)
        (songs / f"{name}_prompt.txt").write_text("rock, drums, 120 bpm", encoding="utf-8")
        (songs / f"{name}_lyrics.txt").write_text(LYRICS, encoding="utf-8")
    (folder / "lora.json").write_text(
        json.dumps(
            {"r": 4, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
        )
    )
    for command in (TINY, CONVERT, PREPROCESS, (*TRAIN, "--save_every_n_train_steps", "1"), STRENGTH):
        status, output = run_in_child(command, folder, TIME_LIMIT_S * 5)
        if status != 0:
            raise RuntimeError(f"the world could not be made: {command} ended with {status}\n{output}")
    (folder / "out.safetensors").rename(folder / "good_lora.safetensors")


TINY = ("ace_lora.tiny_base", "tiny")
TEXTS = ("generate_prompts_lyrics", "--data_dir", "songs", "--lyrics", "--backend", "analysis", "--overwrite")
CONVERT = ("convert2hf_dataset_new", "--data_dir", "songs", "--output_name", "names")
PREPROCESS = (
    *("preprocess_dataset_new", "--input_name", "names", "--output_dir", "prep"),
    *("--checkpoint_dir", "tiny", "--device", "cpu"),
)
NEW_RECORDS = (*PREPROCESS, "--output_dir", "prep_new")
TRAIN = (
    *("trainer_new", "--dataset_path", "prep", "--checkpoint_dir", "tiny", "--lora_config_path", "lora.json"),
    *("--output_dir", "checkpoints", "--log_dir", "logs", "--logger", "none", "--precision", "32-true"),
    *("--device", "cpu", "--max_steps", "1", "--warmup_steps", "0"),
)
RESUME = (*TRAIN[:-3], "2", "--warmup_steps", "0", "--resume")
NEW_RUN = (*TRAIN, "--output_dir", "checkpoints_new")
FROM_LORA = (*NEW_RUN, "--last_lora_path", "good_lora.safetensors")
STRENGTH = (
    *("add_alpha_in_lora", "--input_name", "checkpoints/epoch=0-step=1_lora/pytorch_lora_weights.safetensors"),
    *("--output_name", "out.safetensors", "--lora_config_path", "lora.json"),
)
STRENGTH_OF_GOOD = (*STRENGTH[:1], "--input_name", "bad.safetensors", *STRENGTH[3:])
RESIZE = ("resize_lora", "--input_name", "bad.safetensors", "--output_name", "out.safetensors", "--new_rank", "2")
PREVIEW = (
    *("ace_lora.preview", "--checkpoint_dir", "tiny", "--prompt", "rock", "--seconds", "1", "--steps", "1"),
    *("--device", "cpu", "--output", "noise.wav"),
)
PREVIEW_LORA = (*PREVIEW, "--lora", "bad.safetensors")
CHECKPOINT = "checkpoints/epoch=0-step=1_lora"
# What is the user's own and no command of these may change.
USERS = ("songs", "lora.json", "good_lora.safetensors", f"{CHECKPOINT}/pytorch_lora_weights.safetensors")


# --- Running ---


def load_libraries() -> None:
    """Import what the scripts import, once, so that a forked child has it."""
    for name in (
        "torch",
        "lightning",
        "peft",
        "datasets",
        "h5py",
        "hdf5plugin",
        "av",
        "soundfile",
        "diffusers",
        "transformers",
    ):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def run_in_child(command: tuple[str, ...], folder: Path, limit_s: float) -> tuple[int | str, str]:
    """Run one script in a forked child in `folder`: its exit status, "hang" or "signal N", and its output."""
    output = folder / "attack_output.txt"
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = _run_script(command, folder, output)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            with output.open("a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
        finally:
            sys.stdout.flush()
            os._exit(status)
    end = time.monotonic() + limit_s
    while True:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hang", _text_of(output)
        time.sleep(0.01)
    text = _text_of(output)
    if os.WIFSIGNALED(code):
        return f"signal {os.WTERMSIG(code)}", text
    return os.WEXITSTATUS(code), text


def _run_script(command: tuple[str, ...], folder: Path, output: Path) -> int:
    import resource

    os.chdir(folder)
    stream = output.open("w", encoding="utf-8", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_LIMIT_BYTES,) * 2)
    name, *arguments = command
    sys.argv = [name, *arguments]
    for candidate in (f"{name}.__main__", name):
        with contextlib.suppress(ModuleNotFoundError):
            module = importlib.import_module(candidate)
            break
    from ace_lora.commands import run_script

    return run_script(module.main, module.parse_args(arguments))


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def digest_of_users(folder: Path) -> dict[str, str]:
    digests = {}
    for name in USERS:
        place = folder / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**24:
                digests[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


def judge(case: Case, world: Path) -> tuple[str, str]:
    """Run a case on a copy of the world: ("ok" or the kind of failure, the output)."""
    with tempfile.TemporaryDirectory(prefix="attack-", ignore_cleanup_errors=True) as name:
        folder = Path(name) / "world"
        shutil.copytree(world, folder, symlinks=True)
        case.spoil(folder)
        before = digest_of_users(folder)
        status, text = run_in_child(case.command, folder, TIME_LIMIT_S)
        after = digest_of_users(folder)
        kept = set(after.values())
        for bin_folder in folder.rglob(".removed"):
            kept |= {hashlib.sha256(path.read_bytes()).hexdigest() for path in bin_folder.rglob("*") if path.is_file()}
        for backup in folder.rglob("*.bak"):
            kept.add(hashlib.sha256(backup.read_bytes()).hexdigest())
    if any(digest not in kept for digest in before.values()):
        return "file lost", text
    if isinstance(status, str):
        return status, text
    if "Traceback" in text or "This is a bug" in text or status == 99:
        return "traceback", text
    if "MemoryError" in text or "Cannot allocate memory" in text:
        return "memory", text
    if status == 0 and case.must_fail:
        return "false success", text
    if status != 0 and "rror: " not in text and "usage:" not in text:
        return "no reason given", text
    return "ok", text


# --- Spoiling ---

NESTED = b"[" * 200_000
FILES: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"\x00"),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "all but the last byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "random bytes": lambda path: path.write_bytes(random.Random(1).randbytes(5000)),
    "a text": lambda path: path.write_text("hello, I am a text\n" * 50),
    "gbk": lambda path: path.write_bytes("晴天 周杰伦 故事的小黄花".encode("gbk") * 20),
    "a web page": lambda path: path.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>"),
    "nested brackets": lambda path: path.write_bytes(NESTED),
    "huge and sparse": lambda path: _sparse(path, 40 * 2**30),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "an endless device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
}


def _sparse(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


VALUES: dict[str, object] = {
    "null": None,
    "true": True,
    "minus one": -1,
    "zero": 0,
    "half": 0.5,
    "ten to the 30": 10**30,
    "100000": 100_000,
    "1e308": 1e308,
    "a word": "word",
    "no text": "",
    "a long text": "x" * 2_000_000,
    "half of a pair": "\ud800",
    "an empty list": [],
    "a list of lists": [[[1], [2]]],
    "numbers": [1, 2, 3],
    "nulls": [None, None],
    "an empty table": {},
    "a table": {"a": {"b": [1]}},
}
RAW_VALUES = {"NaN": "NaN", "Infinity": "-Infinity", "1e999": "1e999", "nested": "[" * 3000 + "]" * 3000}


def json_spoils(place: str, keys: tuple[str, ...]) -> Iterator[tuple[str, Spoil]]:
    """(name, spoil) for a JSON file: every key with every value, without it, and values that JSON does not know."""

    def change(folder: Path, key: str, value: object, raw: str | None = None) -> None:
        path = folder / place
        content = json.loads(path.read_text(encoding="utf-8"))
        content[key] = "RAW" if raw else value
        text = json.dumps(content)
        path.write_text(text.replace('"RAW"', raw) if raw else text, encoding="utf-8")

    def drop(folder: Path, key: str) -> None:
        path = folder / place
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop(key, None)
        path.write_text(json.dumps(content), encoding="utf-8")

    for key in keys:
        for name, value in VALUES.items():
            yield f"{key} is {name}", lambda folder, key=key, value=value: change(folder, key, value)
        for name, raw in RAW_VALUES.items():
            yield f"{key} is {name}", lambda folder, key=key, raw=raw: change(folder, key, None, raw)
        yield f"without {key}", lambda folder, key=key: drop(folder, key)
    for name, value in (("a list", []), ("a number", 5), ("null", None), ("a word", "x"), ("an empty table", {})):
        yield f"is {name}", lambda folder, value=value: (folder / place).write_text(json.dumps(value))


def read_header(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_header(path: Path, header: dict | bytes, rest: bytes, size: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + rest)


def safetensors_spoils(place: str, tensors: tuple[str, ...]) -> Iterator[tuple[str, Spoil]]:
    """(name, spoil) for a safetensors file: its header, its first tensors' entries, its metadata."""

    def change(folder: Path, edit: Callable[[dict], None]) -> None:
        header, rest = read_header(folder / place)
        edit(header)
        write_header(folder / place, header, rest)

    def entry(name: str, key: str, value: object) -> Spoil:
        def edit(header: dict) -> None:
            known = [tensor for tensor in header if name in tensor]
            header[known[0] if known else name][key] = value

        return lambda folder: change(folder, edit)

    def whole(make: Callable[[dict, bytes], tuple]) -> Spoil:
        return lambda folder: write_header(folder / place, *make(*read_header(folder / place)))

    yield "header of 2**63 bytes", whole(lambda header, rest: (header, rest, 2**63))
    yield "header longer than the file", whole(lambda header, rest: (header, rest, 10**7))
    yield "header of no bytes", whole(lambda header, rest: (header, rest, 0))
    yield "header is nested", whole(lambda header, rest: (NESTED, rest))
    yield "header is a list", whole(lambda header, rest: (b"[]", rest))
    yield "header is empty", whole(lambda header, rest: ({}, b""))
    yield "header is no UTF-8", whole(lambda header, rest: (b'{"\xff\xfe": 1}', rest))
    yield (
        "200,000 tensors",
        whole(
            lambda header, rest: (
                {**header, **{f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200_000)}},
                rest,
            )
        ),
    )
    yield (
        "a tensor twice",
        whole(
            lambda header, rest: (
                b"{" + b",".join([json.dumps(header).encode()[1:-1]] * 2) + b"}",
                rest,
            )
        ),
    )
    yield "values cut", whole(lambda header, rest: (header, rest[:-10]))
    yield "values longer", whole(lambda header, rest: (header, rest + b"more"))
    yield "values changed", whole(lambda header, rest: (header, bytes(byte ^ 0x55 for byte in rest[:64]) + rest[64:]))
    yield "values all NaN", whole(lambda header, rest: (header, b"\xff" * len(rest)))
    for name, value in (
        ("a list", []),
        ("nothing", None),
        ("numbers", {"a": 5}),
        ("nested", {"a": "[" * 100_000}),
        ("long", {"a": "x" * 3_000_000}),
    ):
        yield (
            f"metadata is {name}",
            lambda folder, value=value: change(folder, lambda header: header.update({"__metadata__": value})),
        )
    for tensor in tensors:
        for key, values in (
            ("dtype", ("F64", "BF16", "U8", "BOOL", "I64", "Q9", 5)),
            ("shape", ([], [0], [1, 1], [-1, 4], [2**40, 2**40], [1] * 70, "x", [10**30], [1.5])),
            ("data_offsets", ([0, 0], [5, 1], [-8, 8], [0, 10**15], "x", [0], [2**64, 2**64])),
        ):
            for value in values:
                yield f"{tensor}: {key} {value!r:.40}", entry(tensor, key, value)
        yield (
            f"without {tensor}",
            lambda folder, tensor=tensor: change(
                folder, lambda header: [header.pop(name) for name in [*header] if tensor in name]
            ),
        )
        yield (
            f"{tensor} renamed",
            lambda folder, tensor=tensor: change(
                folder,
                lambda header: [header.update({f"x{name}": header.pop(name)}) for name in [*header] if tensor in name],
            ),
        )


def tensors_spoils(place: str, tensors: dict[str, tuple]) -> Iterator[tuple[str, Spoil]]:
    """(name, spoil) that write a safetensors file anew with other values or shapes, sound but for them.

    `tensors`: name -> edits (word, function of the tensor) beside the general ones.
    """

    def change(folder: Path, tensor: str, edit: Callable) -> None:
        import torch
        from safetensors import safe_open
        from safetensors.torch import save_file

        path = folder / place
        with safe_open(path, "pt") as file:
            content = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
            metadata = file.metadata()
        for name in [name for name in content if tensor in name][:1]:
            content[name] = edit(torch.atleast_1d(content[name])).contiguous()
        save_file(content, path, metadata=metadata)

    general = (
        ("NaN", lambda t: t.float() * math.nan),
        ("infinite", lambda t: t.float() + math.inf),
        ("float64", lambda t: t.double()),
        ("an extra axis", lambda t: t[None]),
        ("flat", lambda t: t.flatten()),
        ("turned", lambda t: t.transpose(0, -1)),
        ("without rows", lambda t: t[:0]),
        ("one row", lambda t: t[:1]),
    )
    for tensor, more in tensors.items():
        for name, edit in (*general, *more):
            yield f"{tensor} {name}", lambda folder, tensor=tensor, edit=edit: change(folder, tensor, edit)


# --- Cases ---


def file_cases(kind: str, place: str, command: tuple[str, ...], *, must_fail: tuple[str, ...] = ()) -> Iterator[Case]:
    for name, spoil in FILES.items():
        wanted = name in must_fail or "*" in must_fail
        yield Case(kind, f"{place} is {name}", lambda folder, s=spoil: s(folder / place), command, wanted)


def cases() -> Iterator[Case]:
    """Every case, in a fixed order."""
    yield from text_cases()
    yield from song_cases()
    yield from dataset_cases()
    yield from record_cases()
    yield from state_cases()
    yield from lora_cases()
    yield from base_cases()
    yield from flag_cases()
    yield from hdf5_cases()


def text_cases() -> Iterator[Case]:
    for place in ("songs/a_prompt.txt", "songs/a_lyrics.txt"):
        yield from file_cases(
            "text", place, CONVERT, must_fail=("huge and sparse", "an endless device", "a pipe", "a folder")
        )
        yield from file_cases("text", place, PREPROCESS)
    for suffix in (".lrc", ".txt", "_lyrics.lrc", ".srt", ".json", "_lyrics.json"):
        place = f"songs/a{suffix}"

        def with_file(folder: Path, spoil: Spoil, place: str = place) -> None:
            (folder / "songs" / "a_lyrics.txt").unlink()
            (folder / place).write_text("[00:01.00]la la\n" * 20)
            spoil(folder / place)

        for name, spoil in FILES.items():
            yield Case("text", f"{place} is {name}", lambda f, s=spoil, w=with_file: w(f, s), TEXTS)
    for name, content in (
        ("one line of 2 MB", b"la " * 700_000),
        ("100,000 lines", b"la\n" * 100_000),
        ("stamps beyond numbers", b"[99999999999999999999:99.99]la\n[00:00.00]la\n"),
        ("control characters", bytes(range(1, 32)) * 20),
        ("right to left", "\u202egnos eht\u202c \u2066x\u2069".encode()),
        ("combining marks", ("a" + "\u0301" * 5000).encode()),
        ("surrogates in CESU", b"\xed\xa0\x80la"),
    ):
        yield Case("text", f"lyrics: {name}", lambda f, c=content: (f / "songs/a_lyrics.txt").write_bytes(c), CONVERT)
        yield Case(
            "text",
            f"lyrics in step 5: {name}",
            lambda f, c=content: ((f / "songs/a_lyrics.txt").write_bytes(c), run_in_child(CONVERT, f, 60)),
            PREPROCESS,
        )


def song_cases() -> Iterator[Case]:
    for command in (CONVERT, NEW_RECORDS):
        never = (
            "empty",
            "one byte",
            "half",
            "zeros",
            "random bytes",
            "a text",
            "gbk",
            "a web page",
            "nested brackets",
            "a folder",
            "a pipe",
            "an endless device",
            "a link to nothing",
            "a link to itself",
        )
        yield from file_cases("song", "songs/a.wav", command, must_fail=never if command == NEW_RECORDS else ())

    def wav_header(offset: int, form: str, value: int) -> Spoil:
        def spoil(folder: Path) -> None:
            data = bytearray((folder / "songs/a.wav").read_bytes())
            struct.pack_into(form, data, offset, value)
            (folder / "songs/a.wav").write_bytes(data)

        return spoil

    fields = {
        "RIFF size": (4, "<I", (0, 1, 2**32 - 1)),
        "format length": (16, "<I", (0, 1, 2**31, 2**32 - 1)),
        "format": (20, "<H", (0, 2, 3, 7, 85, 65535)),
        "channels": (22, "<H", (0, 2, 255, 65535)),
        "rate": (24, "<I", (0, 1, 7, 2**31, 2**32 - 1)),
        "bytes per second": (28, "<I", (0, 2**32 - 1)),
        "block": (32, "<H", (0, 1, 65535)),
        "bits": (34, "<H", (0, 1, 7, 24, 32, 64, 65535)),
        "data size": (40, "<I", (0, 1, 1000, 2**31, 2**32 - 1)),
    }
    for field, (offset, form, values) in fields.items():
        for value in values:
            for command in (CONVERT, NEW_RECORDS):
                yield Case("song", f"{field} {value}, {command[0]}", wav_header(offset, form, value), command)
    for suffix in (".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac"):
        for name in ("empty", "random bytes", "zeros", "a text", "an endless device", "a pipe"):

            def spoil(folder: Path, suffix: str = suffix, name: str = name) -> None:
                (folder / "songs/a.wav").rename(folder / f"songs/a{suffix}")
                FILES[name](folder / f"songs/a{suffix}")

            yield Case("song", f"{suffix} is {name}", spoil, CONVERT, must_fail=name in ("an endless device", "a pipe"))
    for name in (
        b"\xff\xfe.wav",
        b"a\nb.wav",
        b"c\x1b[31m.wav",
        "\u202egnp.wav".encode(),
        b"-rf.wav",
        b"x" * 250 + b".wav",
        b"CON.wav",
        b" .wav",
    ):

        def odd_name(folder: Path, name: bytes = name) -> None:
            songs = folder / "songs"
            shutil.copy(songs / "a.wav", songs / os.fsdecode(name))
            for ending in (b"_prompt.txt", b"_lyrics.txt"):
                with contextlib.suppress(OSError):  # a name that is too long with it
                    shutil.copy(songs / f"a{ending.decode()}", songs / os.fsdecode(name[:-4] + ending))

        yield Case("file name", f"{name!r}"[:60], odd_name, CONVERT)
        yield Case("file name", f"{name!r} in step 2"[:60], odd_name, TEXTS)


def dataset_cases() -> Iterator[Case]:
    for place in ("names/dataset_info.json", "names/state.json", "names/data-00000-of-00001.arrow"):
        yield from file_cases("dataset", place, PREPROCESS)
    for place, keys in (
        ("names/state.json", ("_data_files", "_format_type", "_split", "_fingerprint")),
        ("names/dataset_info.json", ("features", "splits", "version")),
    ):
        for name, spoil in json_spoils(place, keys):
            if (
                name.split(" is ")[-1]
                in (
                    "null",
                    "minus one",
                    "a word",
                    "an empty list",
                    "nulls",
                    "a table",
                    "is a list",
                    "an empty table",
                    "nested",
                )
                or "without" in name
            ):
                yield Case("dataset", f"{place}: {name}", spoil, PREPROCESS)


def record_cases() -> Iterator[Case]:
    place = "prep/a.safetensors"
    yield from file_cases("record", place, NEW_RUN, must_fail=tuple(set(FILES) - {"a folder"}))
    for name, spoil in safetensors_spoils(place, ("target_latents", "text_token_ids", "lyric_token_ids", "mert")):
        yield Case("record", name, spoil, NEW_RUN)
    edits = {
        "target_latents": (
            ("4 channels", lambda t: t[:4]),
            ("8 bins", lambda t: t[:, :8]),
            ("huge", lambda t: t * 1e38),
            ("no frames", lambda t: t[..., :0]),
        ),
        "text_token_ids": (
            ("negative", lambda t: -t),
            ("beyond", lambda t: t + 10**9),
            ("2**62", lambda t: t * 0 + 2**62),
        ),
        "lyric_token_ids": (
            ("negative", lambda t: -t - 1),
            ("beyond", lambda t: t + 10**9),
            ("2**62", lambda t: t * 0 + 2**62),
        ),
        "mert_scale": (("negative", lambda t: -t),),
        "mhubert": (("narrow", lambda t: t[:, :1]),),
    }
    for name, spoil in tensors_spoils(place, edits):
        yield Case("record", f"rewritten: {name}", spoil, NEW_RUN, must_fail="NaN" in name or "infinite" in name)

    def metadata(folder: Path, key: str, value: object) -> None:
        header, rest = read_header(folder / place)
        own = next(iter(header["__metadata__"]))
        content = json.loads(header["__metadata__"][own]) if header["__metadata__"][own].startswith("{") else {}
        for name in header["__metadata__"]:
            with contextlib.suppress(ValueError):
                content = json.loads(header["__metadata__"][name])
                if isinstance(content, dict) and "prompt" in content:
                    content[key] = value
                    header["__metadata__"][name] = json.dumps(content)
        write_header(folder / place, header, rest)

    for key in ("prompt", "lyrics", "seconds", "ssl", "audio", "timed_lyrics", "version"):
        for name, value in VALUES.items():
            yield Case("record", f"metadata {key} is {name}", lambda f, k=key, v=value: metadata(f, k, v), NEW_RUN)


def state_cases() -> Iterator[Case]:
    values_of_state = f"{CHECKPOINT}/training_state.json"
    tensors_of_state = f"{CHECKPOINT}/training_state.safetensors"
    for place in (values_of_state, tensors_of_state):
        yield from file_cases("state", place, (*RESUME, CHECKPOINT))
    keys = (
        *("step", "version", "saved_at", "crc32", "run_id", "fit", "optimizer", "ema_updates", "scaler", "loss_smooth"),
        *("epoch", "metrics"),
    )
    for name, spoil in json_spoils(values_of_state, keys):
        yield Case("state", name, spoil, (*RESUME, CHECKPOINT))
    for name, spoil in safetensors_spoils(tensors_of_state, ("exp_avg", "lora_A")):
        if "shape" not in name or "[" in name:
            yield Case("state", name, spoil, (*RESUME, CHECKPOINT))


def lora_cases() -> Iterator[Case]:
    def bad(spoil: Spoil) -> Spoil:
        def first_copy(folder: Path) -> None:
            shutil.copy(folder / "good_lora.safetensors", folder / "bad.safetensors")
            spoil(folder)

        return first_copy

    from_bad = (*NEW_RUN, "--last_lora_path", "bad.safetensors")
    commands = {"step 7": STRENGTH_OF_GOOD, "resize": RESIZE, "preview": PREVIEW_LORA, "trainer": from_bad}
    for word, command in commands.items():
        for name, spoil in FILES.items():
            yield Case(
                "LoRA", f"{word}: {name}", bad(lambda f, s=spoil: s(f / "bad.safetensors")), command, must_fail=True
            )
    header = list(safetensors_spoils("bad.safetensors", ("to_q.lora_A", "to_q.lora_B")))
    turn = itertools.cycle(commands.items())
    for name, spoil in header:
        word, command = next(turn)
        yield Case("LoRA", f"{word}: {name}", bad(spoil), command)
    edits = {"to_q.lora_A": (), "to_q.lora_B": (), "to_q.alpha": ()}
    for name, spoil in tensors_spoils("bad.safetensors", edits):
        for word, command in commands.items():
            lost = ("NaN" in name or "infinite" in name) and "alpha" not in name
            yield Case("LoRA", f"{word}: {name}", bad(spoil), command, must_fail=lost)
    keys = ("r", "lora_alpha", "use_rslora", "target_modules")
    for name, spoil in FILES.items():
        yield Case("LoRA configuration", f"is {name}", lambda f, s=spoil: s(f / "lora.json"), NEW_RUN, must_fail=True)
    turn = itertools.cycle((NEW_RUN, STRENGTH))
    for name, spoil in json_spoils("lora.json", keys):
        yield Case("LoRA configuration", name, spoil, next(turn))


def base_cases() -> Iterator[Case]:
    place = "tiny/ace_step_transformer/config.json"
    for name, spoil in FILES.items():
        yield Case("base", f"config.json is {name}", lambda f, s=spoil: s(f / place), NEW_RUN, must_fail=True)
    keys = (
        "num_layers",
        "inner_dim",
        "num_attention_heads",
        "attention_head_dim",
        "ssl_latent_dims",
        "lyric_encoder_vocab_size",
    )
    for name, spoil in json_spoils(place, keys):
        if not name.endswith("a long text"):
            yield Case("base", f"transformer {name}", spoil, NEW_RUN)
    for part in (
        "tiny/vocab.json",
        "tiny/umt5-base/tokenizer.json",
        "tiny/umt5-base/config.json",
        "tiny/music_vocoder/config.json",
        "tiny/ace_step_transformer/diffusion_pytorch_model.safetensors",
    ):
        command = PREVIEW if "vocoder" in part or "transformer" in part else (*PREPROCESS, "--output_dir", "prep_new")
        for name, spoil in FILES.items():
            yield Case("base", f"{part} is {name}", lambda f, s=spoil, p=part: s(f / p), command)


def flag_cases() -> Iterator[Case]:
    numbers = ("-1", "0", "nan", "inf", "1e400", "1" + "0" * 30, "", "x", "1.5", "-0.0")
    flags = (
        *(
            "batch_size",
            "num_workers",
            "max_steps",
            "epochs",
            "learning_rate",
            "warmup_steps",
            "accumulate_grad_batches",
        ),
        *(
            "tag_dropout",
            "max_seconds",
            "gradient_clip_val",
            "beta2",
            "weight_decay",
            "ema_decay",
            "seed",
            "shift",
            "ssl_coeff",
        ),
        *("save_every_n_train_steps", "save_last", "val_every", "val_songs", "devices", "offload", "memory_limit_gb"),
    )
    never = {"learning_rate": ("nan", "inf", "1e400"), "max_steps": ("1" + "0" * 30,)}
    for flag in flags:
        for value in numbers:
            if (flag, value) in (("num_workers", "0"), ("epochs", "-1")):
                continue
            # Long but right runs are no attack.
            if (flag == "max_steps" and value in ("-1",)) or (flag == "epochs" and value.startswith("10")):
                continue
            must_fail = value in ("", "x") or value in never.get(flag, ())
            yield Case("flag", f"--{flag} {value!r}", lambda f: None, (*NEW_RUN, f"--{flag}", value), must_fail)
    odd = ("", " ", ".", "..", "/dev/null", "songs/a.wav", "a" * 300, "x\x1by", "nowhere/deep/er")
    for flag, command, value in itertools.chain(
        (
            (flag, NEW_RUN, value)
            for flag in (
                "dataset_path",
                "checkpoint_dir",
                "lora_config_path",
                "output_dir",
                "log_dir",
                "last_lora_path",
                "exp_name",
            )
            for value in odd
        ),
        ((flag, PREPROCESS, value) for flag in ("input_name", "output_dir", "checkpoint_dir") for value in odd),
        ((flag, CONVERT, value) for flag in ("data_dir", "output_name") for value in odd),
        ((flag, STRENGTH, value) for flag in ("input_name", "output_name", "lora_config_path") for value in odd),
        ((flag, PREVIEW, value) for flag in ("output", "lora", "checkpoint_dir") for value in odd),
    ):
        must_fail = value in ("", "/dev/null") and flag not in ("exp_name", "log_dir")
        yield Case(
            "flag", f"{command[0]} --{flag} {value[:30]!r}", lambda f: None, (*command, f"--{flag}", value), must_fail
        )
    for value in ("-1", "0", "nan", "inf", "1e9", "x"):
        for flag in ("seconds", "steps", "seed", "strength"):
            yield Case(
                "flag",
                f"preview --{flag} {value}",
                lambda f: None,
                (*PREVIEW, f"--{flag}", value),
                value in ("nan", "x"),
            )


def hdf5_cases() -> Iterator[Case]:
    def with_hdf5(folder: Path, spoil: Callable) -> None:
        import h5py
        import numpy as np
        from safetensors.numpy import load_file

        tensors = load_file(folder / "prep/a.safetensors")
        frames = tensors["target_latents"].shape[-1]
        with h5py.File(folder / "prep/c.hdf5", "w") as file:
            file["keys"] = "c"
            file["target_latents"] = tensors["target_latents"]
            file["attention_mask"] = np.ones(frames, "float32")
            file["text_token_ids"] = tensors["text_token_ids"]
            file["text_attention_mask"] = np.ones(len(tensors["text_token_ids"]), "float32")
            file["speaker_embds"] = np.zeros(512, "float32")
            file["lyric_token_ids"] = tensors["lyric_token_ids"]
            file["lyric_mask"] = np.ones(len(tensors["lyric_token_ids"]), "float32")
            for branch in ("mert", "mhubert"):
                file[f"{branch}_ssl_hidden_states"] = tensors[branch].astype("float32")
            spoil(file, h5py, np)

    def replaced(name: str, make: Callable) -> Callable:
        def spoil(file: object, h5py: object, np: object) -> None:
            if name in file:  # type: ignore[operator]
                del file[name]  # type: ignore[attr-defined]
            made = make(h5py, np)
            if isinstance(made, dict):
                file.create_dataset(name, **made)  # type: ignore[attr-defined]
            elif made is not None:
                file[name] = made  # type: ignore[index]

        return spoil

    makers = {
        "missing": lambda h5py, np: None,
        "10**11 values": lambda h5py, np: {"shape": (8, 16, 10**11 // 128), "dtype": "f4", "chunks": (1, 1, 1024)},
        "empty": lambda h5py, np: h5py.Empty("f4"),
        "no rows": lambda h5py, np: np.zeros((0, 4), "f4"),
        "a number": lambda h5py, np: 5.0,
        "a text": lambda h5py, np: "x" * 1000,
        "complex": lambda h5py, np: np.zeros((4, 4), "c8"),
        "NaN": lambda h5py, np: np.full((8, 16, 20), np.nan, "f4"),
        "a compound": lambda h5py, np: np.zeros(5, [("a", "f4"), ("b", "i4")]),
        "a soft link to itself": lambda h5py, np: h5py.SoftLink("/target_latents"),
        "an external link": lambda h5py, np: h5py.ExternalLink("/etc/passwd", "/x"),
        "negative": lambda h5py, np: np.full(20, -5, "int64"),
        "wide": lambda h5py, np: np.zeros((3, 100_000), "f4"),
    }
    for dataset in (
        "target_latents",
        "text_token_ids",
        "lyric_token_ids",
        "speaker_embds",
        "mert_ssl_hidden_states",
        "keys",
    ):
        for name, make in makers.items():
            yield Case(
                "HDF5", f"{dataset} is {name}", lambda f, d=dataset, m=make: with_hdf5(f, replaced(d, m)), NEW_RUN
            )
    for name, spoil in FILES.items():
        yield Case(
            "HDF5",
            f"is {name}",
            lambda f, s=spoil: (with_hdf5(f, lambda *rest: None), s(f / "prep/c.hdf5")),
            NEW_RUN,
            must_fail=name != "a folder",
        )


# --- Command line ---


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--program", type=Path, default=Path(__file__).parents[1], help="folder of the scripts to attack"
    )
    parser.add_argument("--kind", nargs="+", help="only these kinds")
    parser.add_argument("--only", help="only cases whose name holds this")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th case (default: 1, all)")
    parser.add_argument("--show", action="store_true", help="print the output of the cases that fail")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    sys.path.insert(0, str(args.program.resolve()))
    load_libraries()
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    chosen = [c for c in cases() if (not args.kind or c.kind in args.kind) and (not args.only or args.only in c.name)]
    with tempfile.TemporaryDirectory(prefix="attack-world-") as name:
        world = Path(name) / "world"
        make_world(world)
        for case in chosen[:: args.every]:
            result, text = judge(case, world)
            counts[case.kind][result] += 1
            if result != "ok":
                print(f"{result:15} {case}", flush=True)
                if args.show:
                    print(*("    " + line for line in text.splitlines()[-12:]), sep="\n", flush=True)
    total = sum(counts.values(), collections.Counter())
    print(f"\n{'kind':20} cases  failures")
    for kind, results in [*counts.items(), ("all", total)]:
        bad = ", ".join(f"{number} {result}" for result, number in sorted(results.items()) if result != "ok")
        print(f"{kind:20} {sum(results.values()):5}  {bad or 'none'}")
    return 1 if set(total) - {"ok"} else 0


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
