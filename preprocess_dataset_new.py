"""Step 5: turn the songs of a dataset into training records, one file per song.

Reads   INPUT_NAME/, the dataset of convert2hf_dataset_new.py, the audio that it points to, <song>_lyrics.lrc beside it
Writes  OUTPUT_DIR/<song>.safetensors (see ace_lora/records.py), at most 0.2 MB per second of audio

    python preprocess_dataset_new.py --input_name Taudio/xxx_filenames --output_dir Taudio/xxx_prep

Without a GPU, on a base model that fits a test:

    python -m ace_lora.tiny_base tiny
    python preprocess_dataset_new.py --input_name Taudio/xxx_filenames --output_dir Taudio/xxx_prep --checkpoint_dir tiny

It can be stopped at any moment and run again: finished songs are skipped, and of a song that changed (audio, tags,
lyrics, base weights) only the parts that depend on the change are made again. Networks are loaded one after another and
each goes over all songs, so that one at a time is in memory; what they yield waits in OUTPUT_DIR.partial/ until a song
is complete. A song that cannot be used is listed with its reason and the others go on.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import itertools
import json
import os
import random
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ace_lora.commands import StepFailed, WrongInput, run_script
from ace_lora.files import read_text
from ace_lora.records import (
    HDF5_SUFFIX,
    RECORD_SUFFIX,
    SECONDS_PER_LATENT_FRAME,
    Record,
    RecordError,
    list_records,
    quantise_rows,
    read_header,
    read_metadata,
    read_record,
    read_tensors,
    write_record,
    write_tensors,
)
from ace_lora.songs import Song, split_tags

SSL_MODES = ("stored", "none", "at_training")

# Networks in the order in which they run, and the part of the base weights that each is.
STAGES = {"latents": "dcae", "mert": "mert", "mhubert": "mhubert"}
# Part of the base weights that each piece of a record depends on.
WEIGHTS = {**STAGES, "text": "text_encoder", "lyrics": "lyric_vocabulary"}
# Raised when our computation of a piece changes its result: records made by the old one are then made again.
VERSIONS = {"latents": 1, "mert": 1, "mhubert": 1, "text": 1, "lyrics": 1}

# Chunks (MERT 5 s, mHuBERT 30 s) that go through a network at once. The first convolution takes most memory, about
# 0.2 GB per layer output for these in float32; larger batches are not faster on a CPU.
CPU_CHUNKS = {"mert": 4, "mhubert": 1}
GPU_CHUNKS = {"mert": 24, "mhubert": 4}
# Songs decoded while the network works. A GPU needs more than one decoder to stay busy; each song held in memory takes
# up to 140 MB.
DECODE_AHEAD_CPU, DECODE_AHEAD_GPU = 1, 4

# A file system may keep times in steps of two seconds (FAT): a file changed that shortly before it was read may have
# changed once more without a new time.
COARSE_TIME_NS = 2_000_000_000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("--input_name", required=True, help="dataset folder written by convert2hf_dataset_new.py")
    files.add_argument("--output_dir", required=True, help="folder for the records; made if it does not exist")
    files.add_argument(
        "--checkpoint_dir",
        default=None,
        help="folder of the base weights (default: the download cache ~/.cache/ace-step/checkpoints)",
    )
    content = parser.add_argument_group("content")
    content.add_argument(
        "--ssl",
        choices=SSL_MODES,
        default="stored",
        help="MERT and mHuBERT features: in the records (0.12 MB per second of audio), left out for training with "
        "--ssl_coeff 0 (0.006 MB), or computed when a training starts (default: stored)",
    )
    content.add_argument(
        "--lyric_language",
        default="",
        help="language code of all lyrics, for example zh (default: empty, told from the text of each song)",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu (default: auto)")
    machine.add_argument(
        "--shard",
        default="1/1",
        metavar="I/N",
        help="do the I-th of N shares of the songs, I from 1 to N, to divide the step among machines (default: 1/1)",
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    shard, shards = parse_shard(args.shard)
    output = Path(args.output_dir)
    all_songs = read_dataset(args.input_name)
    check_output(output, Path(args.input_name), all_songs)
    songs = all_songs[shard - 1 :: shards]
    print(
        f"{len(all_songs)} songs in '{args.input_name}'"
        + (f", {len(songs)} in share {args.shard}" if shards > 1 else "")
    )

    from ace_lora.base_weights import ensure_base_weights, find_base_weights

    checkpoint_dir = Path(args.checkpoint_dir) if args.checkpoint_dir else None
    found = find_base_weights(checkpoint_dir, sorted({*WEIGHTS.values(), "transformer"}))
    identities = {part: weights_identity(found[part]) for part in WEIGHTS.values() if part in found}

    partial = partial_folder(output)
    if shard == 1:
        set_orphans_aside(output, all_songs, args.input_name)
    works = [plan(song, output, partial, args, identities) for song in songs]
    report = Report(len(songs))
    for work in works:
        for warning in work.warnings:
            print(f"warning: {work.name}: {warning}")
        if work.outcome:
            report.finished(work)
    open_works = [work for work in works if not work.outcome]
    if open_works:
        check_kept_pieces(open_works)
        weights = ensure_base_weights(checkpoint_dir, sorted(needed_weights(open_works)))
        tokenize_texts(open_works, weights, found.get("transformer"), args.lyric_language)
        output.mkdir(parents=True, exist_ok=True)
        partial.mkdir(parents=True, exist_ok=True)
        for work in open_works:
            if not work.stages:
                finish(work, {}, output, partial, args)
                report.finished(work)
        run_networks(open_works, weights, output, partial, args, report)
    clear_partial(partial, works, whole_dataset=shards == 1)
    report.close()


# --- What there is to do ---


@dataclass(frozen=True)
class DatasetSong:
    """A row of the dataset, with the timed lyrics that lie beside the audio."""

    number: int  # position among the songs of the dataset, from 0
    keys: str
    audio: Path
    prompt: str
    lyrics: str
    timed_lyrics: str  # "" where there are none
    remarks: tuple[str, ...] = ()


@dataclass
class Work:
    """A song on its way to its record.

    A record consists of the pieces latents, mert, mhubert, text and lyrics; `redo` holds those to be made, `stages`
    the networks that still have to run for them (a piece of an interrupted run may be waiting on disk).
    """

    song: DatasetSong
    fingerprint: dict[str, Any] = field(default_factory=dict)
    old: dict[str, Any] | None = None  # metadata of the record that exists
    old_path: Path | None = None
    redo: set[str] = field(default_factory=set)
    stages: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    outcome: str = ""  # "done", "skipped" or "failed: reason"
    text_ids: list[int] | None = None
    lyrics: TokenizedLyrics | None = None
    tokenizer: Any = None  # of the lyrics, for a song that turns out to be cropped

    @property
    def name(self) -> str:
        return self.song.audio.name

    def fail(self, reason: object) -> None:
        self.outcome = f"failed: {reason}"


@dataclass(frozen=True)
class TokenizedLyrics:
    ids: list[int]
    language: str
    text: str  # what was tokenised
    timed_lines: list[list[Any]]  # [seconds or None, line], empty where no times are known


def parse_shard(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    if first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise WrongInput(
        f"--shard '{text}' cannot be used. Expected I/N with I from 1 to N. For two machines: 1/2 and 2/2."
    )


def read_dataset(name: str) -> list[DatasetSong]:
    """The songs of a dataset folder, in its order. Raises WrongInput with everything that is wrong with it."""
    folder = Path(name)
    next_step = "Run convert2hf_dataset_new.py (step 4) to create it."
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise WrongInput(f"--input_name '{name}' {what}. Expected a dataset folder. {next_step}")
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder))
        missing = {"keys", "filename", "tags", "norm_lyrics"} - set(dataset.column_names)
        rows = [] if missing else list(dataset)
    except Exception as error:  # whatever pyarrow and datasets make of a folder that is not theirs
        raise WrongInput(
            f"--input_name '{name}' cannot be read as a dataset ({error}). Expected the folder that step 4 writes. {next_step}"
        ) from error
    if missing:
        raise WrongInput(f"--input_name '{name}' has no column {', '.join(sorted(missing))}. {next_step}")
    if not rows:
        raise WrongInput(f"--input_name '{name}' holds no song. Expected one row per song. {next_step}")
    problems = []
    by_name: dict[str, list[str]] = {}
    for row in rows:
        by_name.setdefault(str(row["keys"]).casefold(), []).append(row["filename"])
        if not row["keys"] or row["keys"] != Path(row["keys"]).name or "\\" in row["keys"]:
            problems.append(
                f"The dataset '{name}' names a song '{row['keys']}', which cannot be a file name. "
                f"Expected the name of the audio file without extension. {next_step}"
            )
    problems += [
        f"{' and '.join(map(repr, files))} would share one record. Expected one audio file per name. "
        "Rename or move all but one and run convert2hf_dataset_new.py again."
        for files in by_name.values()
        if len(files) > 1
    ]
    if problems:
        raise WrongInput(problems)
    return [dataset_song(number, row) for number, row in enumerate(rows)]


def dataset_song(number: int, row: dict[str, Any]) -> DatasetSong:
    """One row with what lies beside its audio file; remarks on texts that changed since the dataset was created."""
    tags = [tag.strip() for tag in row["tags"] if tag.strip()]
    files = Song(Path(row["filename"]))
    remarks = []
    for path, recorded in ((files.prompt, tags), (files.lyrics, row["norm_lyrics"])):
        text = text_beside(path)
        if text is not None and (split_tags(text) if path == files.prompt else text) != recorded:
            remarks.append(f"{path.name} is not what the dataset holds; run convert2hf_dataset_new.py again to use it")
    timed = text_beside(files.timed_lyrics)
    if timed is None and files.timed_lyrics.exists():
        remarks.append(f"{files.timed_lyrics.name} cannot be read as UTF-8 text; the lyrics are used without times")
    return DatasetSong(
        number=number,
        keys=row["keys"],
        audio=files.audio,
        prompt=choose_prompt(row["keys"], tags, row.get("recaption")),
        lyrics=row["norm_lyrics"],
        timed_lyrics=timed or "",
        remarks=tuple(remarks),
    )


def text_beside(path: Path) -> str | None:
    try:
        return read_text(path) if path.exists() else None
    except (OSError, UnicodeDecodeError):
        return None


def choose_prompt(keys: str, tags: list[str], recaption: dict[str, Any] | None) -> str:
    """The tags as one text; where other tools added captions, one of these texts, drawn by the song's name."""
    captions = [text for _, text in sorted((recaption or {}).items()) if isinstance(text, str) and text]
    return random.Random(zlib.crc32(keys.encode("utf-8"))).choice([", ".join(tags), *captions])


def check_output(output: Path, dataset: Path, songs: list[DatasetSong]) -> None:
    problems = []
    if output.exists() and not output.is_dir():
        problems.append(f"--output_dir '{output}' is a file. Expected a folder. Choose another name.")
    elif output.exists():
        here = output.resolve()
        if here == dataset.resolve() or any(
            here == folder.resolve() for folder in {song.audio.parent for song in songs}
        ):
            problems.append(
                f"--output_dir '{output}' holds the songs or their dataset. Expected a folder for the records alone, "
                "because training takes every file in it for a song. Choose another name."
            )
    if problems:
        raise WrongInput(problems)


def partial_folder(output: Path) -> Path:
    """Where pieces wait until their song is complete: beside the records, because training reads that whole folder.

    It has to be on the same file system, or a finished record could not be renamed to its place; so where the records'
    folder is a file system of its own, it is in there.
    """
    target = output.resolve()
    existing = next(folder for folder in (target, *target.parents) if folder.exists())
    beside = target.with_name(f"{target.name}.partial")
    if existing == target and target.stat().st_dev != target.parent.stat().st_dev:
        return target / ".partial"
    return beside


def set_orphans_aside(output: Path, songs: list[DatasetSong], dataset: str) -> None:
    """Move records of songs that are no longer in this dataset out of the training folder, and say so.

    Records that were made from another dataset, or by other scripts, are only named: people gather several datasets
    in one folder.
    """
    if not output.is_dir():
        return
    known = {song.keys for song in songs}
    dataset_path = str(Path(dataset).resolve())
    gone, foreign = [], []
    for path in list_records(output):
        if path.stem in known:
            continue
        try:
            ours = path.suffix == RECORD_SUFFIX and read_metadata(path).get("dataset") == dataset_path
        except RecordError as error:
            print(f"warning: {error}")
            continue
        (gone if ours else foreign).append(path)
    if gone:
        folder = set_aside(output, gone)
        names = ", ".join(path.stem for path in gone)
        print(f"warning: no longer in the dataset, so their records were moved to '{folder}': {names}")
    if foreign:
        names = ", ".join(path.name for path in foreign)
        print(
            f"warning: '{output}' holds records of songs that this dataset does not have; training uses them too: {names}"
        )


def set_aside(output: Path, paths: Iterable[Path]) -> Path:
    """Move files from the training folder to a dated folder beside it; nothing is deleted."""
    beside = partial_folder(output).name.startswith(".")
    target = output.resolve()
    parent = target / ".set_aside" if beside else target.with_name(f"{target.name}.set_aside")
    folder = parent / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        name = next(
            name
            for number in itertools.count(1)
            if not (folder / (name := path.name if number == 1 else f"{path.stem}-{number}{path.suffix}")).exists()
        )
        path.rename(folder / name)
    return folder


def plan(song: DatasetSong, output: Path, partial: Path, args: argparse.Namespace, identities: dict[str, str]) -> Work:
    """What has to be done for a song, from the headers of its record and of waiting pieces; nothing is decoded."""
    work = Work(song, warnings=list(song.remarks))
    hdf5 = output / f"{song.keys}{HDF5_SUFFIX}"
    path = output / f"{song.keys}{RECORD_SUFFIX}"
    if path.exists():
        try:
            work.old, work.old_path = read_metadata(path), path
        except RecordError as error:
            work.warnings.append(f"its record is made again: {error.reason}")
    elif hdf5.exists():
        try:
            read_metadata(hdf5)
            work.outcome = "skipped"
            return work
        except RecordError as error:
            folder = set_aside(output, [hdf5])
            work.warnings.append(
                f"{hdf5.name} cannot be used ({error.reason}); moved to '{folder}', the song is done again"
            )

    pieces = ["latents", "text", "lyrics"] + (["mert", "mhubert"] if args.ssl == "stored" else [])
    for piece in pieces:
        work.fingerprint[piece] = {"version": VERSIONS[piece], "weights": identities.get(WEIGHTS[piece])}
    work.fingerprint["text"]["input"] = digest(song.prompt)
    work.fingerprint["lyrics"]["input"] = digest([song.lyrics, song.timed_lyrics, args.lyric_language])

    recorded = work.old["fingerprint"] if work.old else {}
    try:
        audio_same = "audio" in recorded and is_same_audio(song.audio, recorded["audio"])
        work.fingerprint["audio"] = recorded["audio"] if audio_same else audio_fingerprint(song.audio)
    except OSError as error:
        if not recorded or args.ssl == "at_training" or (args.ssl == "stored" and "mert" not in recorded):
            work.fail(f"'{song.audio}' cannot be read: {error.strerror}. Is the drive there, was the file moved?")
            return work
        work.warnings.append(f"its audio cannot be read ({error.strerror}); the record that exists is kept")
        audio_same, work.fingerprint["audio"] = True, recorded["audio"]

    for piece in pieces:
        if not is_same(work.fingerprint[piece], recorded.get(piece)) or (piece != "text" and not audio_same):
            work.redo.add(piece)
        else:
            work.fingerprint[piece] = recorded[piece]
    old = work.old or {}
    moved = old.get("audio") != str(song.audio.resolve())
    if not work.redo and not moved and old.get("ssl") == args.ssl:
        work.outcome = "skipped"
        return work
    if recorded:
        changes = [name for name in ("text", "lyrics") if name in work.redo]
        changes = (["audio"] if not audio_same else []) + ([] if not audio_same else changes)
        changes += ["base weights"] if audio_same and any(p in recorded for p in work.redo & set(STAGES)) else []
        changes += [f"--ssl {args.ssl}"] if old.get("ssl") != args.ssl else []
        work.warnings.append(f"changed since its record was made: {', '.join(changes) or 'place of the audio'}")
    work.stages = [stage for stage in STAGES if stage in work.redo and not waiting_piece(work, stage, partial)]
    return work


def is_same(new: dict[str, Any], recorded: dict[str, Any] | None) -> bool:
    """Whether a recorded piece is up to date. Base weights that are not on this disk count as unchanged."""
    if not recorded:
        return False
    return all(recorded.get(key) == value for key, value in new.items() if not (key == "weights" and value is None))


def waiting_piece(work: Work, stage: str, partial: Path) -> bool:
    """Whether an interrupted run has left this piece, made from the same audio by the same network."""
    try:
        _, metadata = read_header(piece_path(work, stage, partial))
    except (RecordError, OSError):
        return False
    return metadata["audio_sha256"] == work.fingerprint["audio"]["sha256"] and is_same(
        work.fingerprint[stage], metadata["made_by"]
    )


def piece_path(work: Work, stage: str, partial: Path) -> Path:
    return partial / f"{work.song.keys}.{stage}{RECORD_SUFFIX}"


def check_kept_pieces(works: list[Work]) -> None:
    """Read the records of which a piece is to be kept; where one is damaged, the whole song is done again."""
    for work in works:
        if not work.old_path or {"latents", "mert", "mhubert"} & set(work.fingerprint) <= work.redo:
            continue
        try:
            read_record(work.old_path)
        except RecordError as error:
            print(f"warning: {work.name}: its record is made again: {error.reason}")
            work.old, work.old_path = None, None
            work.redo = set(work.fingerprint) - {"audio"}
            work.stages = [stage for stage in STAGES if stage in work.redo]


def needed_weights(works: list[Work]) -> set[str]:
    stages = {stage for work in works for stage in work.stages}
    return {WEIGHTS[piece] for piece in stages} | {WEIGHTS[p] for work in works for p in work.redo & {"text", "lyrics"}}


# --- Fingerprints ---


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8")).hexdigest()


def audio_fingerprint(path: Path) -> dict[str, Any]:
    now = time.time_ns()
    status = path.stat()
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": file_sha256(path),
        "checked_ns": now,
    }


def is_same_audio(path: Path, recorded: dict[str, Any]) -> bool:
    """Whether a file still is what it was. Size and time decide where they can, else the content.

    Copying a folder changes the times but not the songs, so another time alone is no change.
    """
    status = path.stat()
    if status.st_size != recorded["size"]:
        return False
    if status.st_mtime_ns == recorded["mtime_ns"] and status.st_mtime_ns + COARSE_TIME_NS < recorded["checked_ns"]:
        return True
    return file_sha256(path) == recorded["sha256"]


def file_sha256(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()


def weights_identity(path: Path) -> str:
    """A short name for the content of a part of the base weights, the same wherever and whenever it was downloaded.

    Configurations and tokenizers are read whole, large weight files at 16 places: any training changes all of them.
    """
    files = (
        [path]
        if path.is_file()
        else sorted(f for pattern in ("*.json", "*.safetensors", "*.bin", "*.model") for f in path.glob(pattern))
    )
    sha256 = hashlib.sha256()
    for name in files:
        size = name.stat().st_size
        sha256.update(f"{name.name if path.is_dir() else ''} {size}\n".encode())
        with name.open("rb") as file:
            if size <= 1 << 24:
                sha256.update(file.read())
                continue
            for place in range(16):
                file.seek(place * (size - (1 << 16)) // 15)
                sha256.update(file.read(1 << 16))
    return sha256.hexdigest()[:16]


# --- Texts ---


def tokenize_texts(works: list[Work], weights: dict[str, Path], transformer: Path | None, lyric_language: str) -> None:
    """Token ids of the prompts and lyrics that changed. Raises WrongInput where a language needs missing packages."""
    texts = [work for work in works if "text" in work.redo]
    if texts:
        from ace_lora.text_encoder import load_text_tokenizer, tokenize_prompt

        tokenizer = load_text_tokenizer(weights["text_encoder"])
        for work in texts:
            work.text_ids = tokenize_prompt(tokenizer, work.song.prompt)
    lyrics = [work for work in works if "lyrics" in work.redo]
    if lyrics:
        from ace_lora.lyrics.tokenize import LyricTokenizer
        from ace_lora.lyrics.vocabulary import MissingLyricSupport, load_vocabulary

        lyric_tokenizer = LyricTokenizer(load_vocabulary(weights["lyric_vocabulary"], embedding_rows(transformer)))
        problems = []
        for work in lyrics:
            work.tokenizer = lyric_tokenizer
            try:
                tokenize_lyrics(work, lyric_language, cropped_at=None)
            except MissingLyricSupport as error:
                problems.append(f"{work.name}: {error}")
        if problems:
            raise WrongInput(problems)


def embedding_rows(transformer: Path | None) -> int | None:
    """Rows of the base model's lyric embedding, to check that the vocabulary is its own; None where it is not here."""
    if transformer is None or not (transformer / "config.json").is_file():
        return None
    return json.loads((transformer / "config.json").read_text(encoding="utf-8")).get("lyric_encoder_vocab_size")


def tokenize_lyrics(work: Work, language: str, cropped_at: float | None) -> None:
    """Set `work.lyrics`. Of timed lyrics, only the lines before `cropped_at` seconds are used."""
    from ace_lora.lyrics.timed import attach_times, crop, has_times, parse_timed, strip_times

    song, lines, text = work.song, [], work.song.lyrics
    if has_times(song.lyrics):
        lines, text = parse_timed(song.lyrics), strip_times(song.lyrics)
    elif song.timed_lyrics:
        lines = attach_times(song.lyrics, song.timed_lyrics)
    timed_lines = [[line.seconds, line.text] for line in lines]
    if all(seconds is None for seconds, _ in timed_lines):
        timed_lines = []
    if cropped_at is not None:
        if timed_lines:
            text = crop(lines, 0.0, cropped_at)
        else:
            print(f"warning: {work.name}: its lyrics have no times, so they are kept whole though the audio is cropped")
    tokens = work.tokenizer.tokenize(text, language or None)
    if cropped_at is None:
        for warning in tokens.warnings:
            print(f"warning: {work.name}: {warning}")
    work.lyrics = TokenizedLyrics(list(tokens.ids), tokens.main_language, text, timed_lines)


# --- Networks ---


def run_networks(
    works: list[Work], weights: dict[str, Path], output: Path, partial: Path, args: argparse.Namespace, report: Report
) -> None:
    """Take one network after the other over all songs that need it, and write each record as soon as it is complete."""
    if not any(work.stages for work in works):
        return
    from tqdm import tqdm

    from ace_lora.device import choose_device

    device = choose_device(args.device)
    print(f"device: {device.reason}")
    for stage in STAGES:
        here = [work for work in works if stage in work.stages and not work.outcome]
        if not here:
            continue
        print(f"{stage}: {len(here)} songs")
        started, seconds = time.monotonic(), 0.0
        network = load_network(stage, weights[STAGES[stage]], device)
        ahead = DECODE_AHEAD_CPU if device.torch_device.type == "cpu" else DECODE_AHEAD_GPU
        bar = tqdm(here, desc=stage, unit="song", file=sys.stderr)
        for work, decoded in decode_ahead(here, ahead):
            bar.set_postfix_str(work.name)
            result = apply_network(stage, network, work, decoded, device)
            if result is not None:
                tensors, facts = result
                seconds += facts["seconds"]
                if stage == work.stages[-1]:
                    finish(work, {stage: (tensors, facts)}, output, partial, args)
                else:
                    facts["audio_sha256"] = work.fingerprint["audio"]["sha256"]
                    facts["made_by"] = work.fingerprint[stage]
                    write_tensors(piece_path(work, stage, partial), tensors, facts)
            bar.update()
            if work.outcome:
                report.finished(work)
        bar.close()
        print(f"{stage}: {seconds:.0f} s of audio in {time.monotonic() - started:.1f} s")
        # The next network takes this one's place in memory.
        del network
        gc.collect()
        if device.torch_device.type == "cuda":
            import torch

            torch.cuda.empty_cache()


def load_network(stage: str, folder: Path, device: Any) -> Any:
    from ace_lora import dcae, ssl_features

    load = {"latents": dcae.load_latent_encoder, "mert": ssl_features.load_mert, "mhubert": ssl_features.load_mhubert}
    return load[stage](folder, device=device.torch_device, dtype=device.dtype)


def decode_ahead(works: list[Work], ahead: int) -> Iterator[tuple[Work, Future]]:
    """Yield the songs in order, each with its decoded audio, while `ahead` threads decode the next ones."""
    pool = ThreadPoolExecutor(ahead, thread_name_prefix="decode")
    waiting: deque[tuple[Work, Future]] = deque()
    try:
        for work in works:
            waiting.append((work, pool.submit(decode, work)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def decode(work: Work) -> tuple[Any, Any]:
    """The song at 48 kHz, float32 [2, L], and what was done to its length. Raises AudioError and OSError."""
    from ace_lora.audio import prepare_waveform, read_audio

    return prepare_waveform(read_audio(work.song.audio))


def apply_network(
    stage: str, network: Any, work: Work, decoded: Future, device: Any
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The tensors of a piece and the facts on the audio that they come from; None where the song failed."""
    from ace_lora.audio import AudioError

    try:
        wave, info = decoded.result()
        status = work.song.audio.stat()
    except (AudioError, OSError) as error:
        work.fail(error)
        return None
    recorded = work.fingerprint["audio"]
    if (status.st_size, status.st_mtime_ns) != (recorded["size"], recorded["mtime_ns"]) and not is_same_audio(
        work.song.audio, recorded
    ):
        work.fail("the audio file changed while it was being read. Run the same command again.")
        return None
    try:
        tensors = compute_piece(stage, network, wave.to(device.torch_device))
    except (RuntimeError, ValueError) as error:  # out of memory above all; the next song may be shorter
        work.fail(f"{stage} cannot be computed: {error}")
        return None
    facts = {
        "original_seconds": info.original_seconds,
        "seconds": wave.shape[1] / 48_000,
        "cropped": info.cropped,
    }
    return tensors, facts


def compute_piece(stage: str, network: Any, wave: Any) -> dict[str, Any]:
    """One network on one song, `wave` float32 [2, L] at 48 kHz; tensors as the record stores them, on the CPU.

    Raises ValueError for results that are not finite.
    """
    import torch

    from ace_lora import dcae, ssl_features

    if stage == "latents":
        latents = dcae.encode_latents(network, wave).cpu()  # [8, 16, T]
        if not bool(torch.isfinite(latents).all()):
            raise ValueError("The latents hold values that are not finite.")
        return {"target_latents": latents}
    branch = {"mert": ssl_features.MERT, "mhubert": ssl_features.MHUBERT}[stage]
    chunks = (CPU_CHUNKS if wave.device.type == "cpu" else GPU_CHUNKS)[stage]
    values, scale = quantise_rows(ssl_features.extract_features(network, wave, branch, chunks))  # [n, width], [n]
    return {stage: values.cpu(), f"{stage}_scale": scale.cpu()}


# --- Records ---


def finish(
    work: Work,
    computed: dict[str, tuple[dict[str, Any], dict[str, Any]]],
    output: Path,
    partial: Path,
    args: argparse.Namespace,
) -> None:
    """Put a song's pieces together, from this run, from waiting files and from its earlier record, and write it."""
    import torch

    old = read_record(work.old_path) if work.old_path else None
    tensors: dict[str, Any] = {}
    facts = {key: (work.old or {}).get(key) for key in ("original_seconds", "seconds", "cropped")}
    for stage in STAGES:
        if stage not in work.fingerprint:
            continue
        if stage in computed:
            piece, facts = computed[stage]
        elif stage in work.redo:
            try:
                piece, facts = read_tensors(piece_path(work, stage, partial))
            except (RecordError, OSError) as error:
                work.fail(f"a part of it was damaged ({error}). Run the same command again.")
                piece_path(work, stage, partial).unlink(missing_ok=True)
                return
        else:
            names = ("target_latents",) if stage == "latents" else (stage, f"{stage}_scale")
            piece = {name: getattr(old, name) for name in names}
        tensors |= piece

    if facts["cropped"]:
        print(
            f"warning: {work.name}: it is {facts['original_seconds']:.0f} s long; "
            f"only the first {facts['seconds']:.0f} s are used"
        )
    if "lyrics" in work.redo:
        if facts["cropped"]:
            tokenize_lyrics(work, args.lyric_language, cropped_at=facts["seconds"])
        lyrics = work.lyrics
        lyric_facts = {
            "lyrics": lyrics.text,
            "timed_lines": lyrics.timed_lines,
            "lyric_language": lyrics.language,
        }
        lyric_ids = torch.tensor(lyrics.ids, dtype=torch.int64)
    else:
        lyric_facts = {key: work.old[key] for key in ("lyrics", "timed_lines", "lyric_language")}
        lyric_ids = old.lyric_token_ids
    text_ids = torch.tensor(work.text_ids, dtype=torch.int64) if "text" in work.redo else old.text_token_ids

    metadata = {
        "prompt": work.song.prompt,
        **lyric_facts,
        "seconds": facts["seconds"],
        "original_seconds": facts["original_seconds"],
        "cropped": facts["cropped"],
        "audio": str(work.song.audio.resolve()),
        "dataset": str(Path(args.input_name).resolve()),
        "ssl": args.ssl,
        "fingerprint": work.fingerprint,
        "software": software_versions(),
    }
    record = Record(work.song.keys, text_token_ids=text_ids, lyric_token_ids=lyric_ids, metadata=metadata, **tensors)
    # Written beside and renamed: training takes every file of its folder, half-written ones too.
    name = f"{work.song.keys}{RECORD_SUFFIX}"
    write_record(partial / name, record)
    os.replace(partial / name, output / name)
    for stage in STAGES:
        piece_path(work, stage, partial).unlink(missing_ok=True)
    work.outcome = "done"


def software_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("torch", "transformers", "diffusers", "soundfile", "av"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def clear_partial(partial: Path, works: list[Work], whole_dataset: bool) -> None:
    """Remove what no later run can use; pieces of failed songs stay."""
    if not partial.is_dir():
        return
    failed = {work.song.keys for work in works if work.outcome != "done" and work.outcome != "skipped"}
    own = {work.song.keys for work in works}
    for path in partial.iterdir():
        keys, _, stage = path.name.removesuffix(RECORD_SUFFIX).rpartition(".")
        left_behind = path.name.startswith(".tmp-") and whole_dataset
        if left_behind or (stage in STAGES and keys not in failed and (whole_dataset or keys in own)):
            path.unlink()
    if not any(partial.iterdir()):
        partial.rmdir()


class Report:
    """One line per song as it is finished, and the counts at the end."""

    def __init__(self, songs: int):
        self.songs = songs
        self.outcomes: list[tuple[str, str]] = []

    def finished(self, work: Work) -> None:
        self.outcomes.append((work.name, work.outcome))
        print(f"song {len(self.outcomes)}/{self.songs} | {work.name} | {work.outcome}")

    def close(self) -> None:
        """Print the counts. Raises StepFailed when a song failed."""
        failed = [(name, outcome) for name, outcome in self.outcomes if outcome.startswith("failed")]
        done = sum(outcome == "done" for _, outcome in self.outcomes)
        print(f"done {done}, skipped {len(self.outcomes) - done - len(failed)}, failed {len(failed)}")
        if failed:
            lines = "".join(f"\n  {name}: {outcome.removeprefix('failed: ')}" for name, outcome in failed)
            raise StepFailed(
                f"{len(failed)} of {self.songs} songs could not be preprocessed; the others are done.{lines}\n"
                "Mend or remove these songs (then step 4 again), and run the same command again."
            )


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
