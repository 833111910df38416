"""Step 5: turn the songs of a dataset into training records, one file per song.

Reads   INPUT_NAME/, the dataset of convert2hf_dataset_new.py, the audio that it points to, <song>_lyrics.lrc beside it
Writes  OUTPUT_DIR/<song>.safetensors (see ace_lora/records/record.py), at most 0.2 MB per second of audio

    python preprocess_dataset_new.py --input_name Taudio/xxx_filenames --output_dir Taudio/xxx_prep

Without a GPU, on a base model that fits a test (made by `python -m ace_lora.tiny_base tiny`):

    python preprocess_dataset_new.py --input_name xxx_filenames --output_dir xxx_prep --checkpoint_dir tiny

It can be stopped at any moment and run again: finished songs are skipped, and of a song that changed (audio, tags,
lyrics, base weights) only the parts that depend on the change are made again. Networks are loaded one after another and
each goes over all songs, so that one at a time is in memory; what they yield waits in OUTPUT_DIR.partial/ until a song
is complete. A song that cannot be used is listed with its reason and the others go on.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import StepFailed, WrongInput, run_script
from ace_lora.device import free_device_memory
from ace_lora.preprocessing.dataset import DatasetSong, read_dataset
from ace_lora.records.fingerprints import audio_fingerprint, digest, is_same_audio, weights_identity
from ace_lora.records.record import (
    HDF5_SUFFIX,
    RECORD_SUFFIX,
    NotARecord,
    Record,
    RecordError,
    check_record,
    list_records,
    quantise_rows,
    read_header,
    read_metadata,
    read_record,
    read_tensors,
    write_record,
    write_tensors,
)

if TYPE_CHECKING:
    import torch

SSL_MODES = ("stored", "none", "at_training")

# Networks in the order in which they run, and the part of the base weights that each is.
STAGES = {"latents": "dcae", "mert": "mert", "mhubert": "mhubert"}
# Part of the base weights that each piece of a record depends on.
WEIGHTS = {**STAGES, "text": "text_encoder", "lyrics": "lyric_vocabulary"}
# Raised when our computation of a piece changes its result: records made by the old one are then made again.
VERSIONS = {"latents": 1, "mert": 1, "mhubert": 1, "text": 1, "lyrics": 1}

LOCK_PREFIX = ".lock-"

SAMPLE_RATE = 48_000  # of the decoded songs

# Songs decoded while the network works. A GPU needs more than one decoder to stay busy; a song takes up to 0.5 GB of
# main memory while it is decoded, and a tenth of that afterwards.
DECODE_AHEAD_CPU, DECODE_AHEAD_GPU = 1, 4


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
    from ace_lora.base_weights.find import ensure_base_weights, find_base_weights
    from ace_lora.device import choose_device

    all_songs, (shard, shards) = check(args)
    songs = all_songs[shard - 1 :: shards]
    share = f", {len(songs)} of them in share {args.shard}" if shards > 1 else ""
    print(f"{len(all_songs)} songs in '{args.input_name}'{share}")

    # The transformer's configuration tells which lyric vocabulary is its own; its weights are not used here.
    found = find_base_weights(checkpoint_dir(args), [*WEIGHTS.values(), "transformer"])
    run = Run(args, Path(args.output_dir), partial_folder(Path(args.output_dir)), Report(len(songs)))
    works = plan_all(songs, run, found)

    open_works = [work for work in works if not work.outcome]
    device = choose_device(args.device) if any(work.stages for work in open_works) else None
    needed = needed_weights(open_works)
    weights = ensure_base_weights(checkpoint_dir(args), needed) if needed else {}
    complete_fingerprints(open_works, weights)
    tokenize_texts(open_works, run, weights, found.get("transformer"))
    check_networks(open_works, weights)

    # Nothing has been written or moved so far; from here on a stop at any moment leaves only complete records.
    with alone(run) if open_works else contextlib.nullcontext():
        if shard == 1:
            set_orphans_aside(run.output, all_songs, args.input_name)
        if open_works:
            make_records(open_works, run, weights, device)
            clear_partial(run.partial, works, whole_dataset=shards == 1)
    if not open_works and run.partial.is_dir():
        # Left by an earlier run; another run that is at work here clears it itself.
        with contextlib.suppress(WrongInput), alone(run):
            clear_partial(run.partial, works, whole_dataset=shards == 1)
    run.report.close()


def make_records(works: list[Work], run: Run, weights: dict[str, Path], device: Any) -> None:
    run.output.mkdir(parents=True, exist_ok=True)
    for work in works:
        if work.in_the_way:
            folder = set_aside(run.output, [work.in_the_way])
            print(f"warning: {work.in_the_way.name} was moved to '{folder}', its song is done again")
    for work in works:
        if not work.stages:
            finish(work, {}, run)
            run.report.finished(work)
    if any(work.stages for work in works):
        run_networks(works, run, weights, device)


@contextlib.contextmanager
def alone(run: Run) -> Iterator[None]:
    """Hold off runs that would do the same songs: two may only work at once on different shares of one division.

    Others would write, use up and clear each other's pieces. Raises WrongInput where one runs.
    """
    own = run.partial / lock_name(run.args.shard)
    run.partial.mkdir(parents=True, exist_ok=True)
    try:
        # Its own lock first, then a look at the others': of two runs that start at once, at most one goes on.
        with locked(own):
            try:
                division = run.args.shard.partition("/")[2]
                for other in sorted(run.partial.glob(f"{LOCK_PREFIX}*")):
                    if not other.name.endswith(f"-of-{division}"):
                        with locked(other):
                            pass
                yield
            finally:
                if os.name != "nt":
                    # Before it is unlocked, so that nobody can have taken it over.
                    own.unlink(missing_ok=True)
    finally:
        # Windows deletes no file that is open; what another run has opened meanwhile stays.
        with contextlib.suppress(OSError):
            if os.name == "nt":
                own.unlink(missing_ok=True)
            run.partial.rmdir()


def lock_name(shard: str) -> str:
    return f"{LOCK_PREFIX}{shard.replace('/', '-of-')}"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file in OUTPUT_DIR.partial/. Raises WrongInput where another process holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        # Not given up at once: a run that starts looks at this lock for a moment.
        lock.acquire(timeout=1, poll_interval=0.05)
    except Timeout:
        share = path.name.removeprefix(LOCK_PREFIX).replace("-of-", "/")
        which = "" if share == "1/1" else f" (with --shard {share})"
        raise WrongInput(
            f"Another run of this step{which} is making records beside '{path.parent}'. Expected one at a time, or "
            "different shares of the same number. Wait for it to end, or stop it; to divide the work use --shard."
        ) from None
    except NotImplementedError:
        pass  # some network disks know no locks
    try:
        yield
    finally:
        lock.release()


# --- What there is to do ---


@dataclass
class Work:
    """A song on its way to its record.

    A record consists of the pieces latents, mert, mhubert, text and lyrics; `redo` holds those to be made, `stages`
    the networks that still have to run for them (a piece of an interrupted run may be waiting on disk).
    """

    song: DatasetSong
    place: str  # absolute path of the audio, for the record
    fingerprint: dict[str, Any] = field(default_factory=dict)
    old: dict[str, Any] | None = None  # metadata of the record that exists
    old_path: Path | None = None
    redo: set[str] = field(default_factory=set)
    stages: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    outcome: str = ""  # "done", "skipped" or "failed: reason"
    in_the_way: Path | None = None  # a file in the record's place, to be moved aside
    text_ids: list[int] | None = None
    lyrics: TokenizedLyrics | None = None

    @property
    def name(self) -> str:
        return self.song.audio.name

    def fail(self, reason: object) -> None:
        stays = " The record made before it changed stays where it is." if self.old else ""
        self.outcome = f"failed: {reason}{stays}"


@dataclass(frozen=True)
class TokenizedLyrics:
    ids: list[int]
    language: str | None  # in which most lines were encoded; None without lyrics
    text: str  # what was tokenised
    timed_lines: list[list[Any]]  # [seconds or None, line], empty where no times are known


@dataclass
class Run:
    """What the steps on all songs share."""

    args: argparse.Namespace
    output: Path
    partial: Path  # pieces and records on their way
    report: Report
    lyric_tokenizer: Any = None


def check(args: argparse.Namespace) -> tuple[list[DatasetSong], tuple[int, int]]:
    """The songs of the whole dataset and the share to do. Raises WrongInput with everything that is wrong."""
    from ace_lora.base_weights.find import check_base_weights
    from ace_lora.device import parse_device_name
    from ace_lora.lyrics.tokenize import check_language

    problems, shard, songs = [], (1, 1), []
    try:
        shard = parse_shard(args.shard)
    except WrongInput as error:
        problems += error.problems
    try:
        songs = read_dataset(args.input_name)
    except WrongInput as error:
        problems += error.problems
    try:
        parse_device_name(args.device)
    except WrongInput as error:
        problems += error.problems
    try:
        if args.lyric_language:
            check_language(args.lyric_language)
    except WrongInput as error:
        problems += error.problems
    problems += output_problems(Path(args.output_dir), Path(args.input_name), songs)
    # What is needed of the base weights is known when the songs have been looked at; whether the folder is there, now.
    problems += check_base_weights(checkpoint_dir(args), [])
    if problems:
        raise WrongInput(problems)
    return songs, shard


def checkpoint_dir(args: argparse.Namespace) -> Path | None:
    return Path(args.checkpoint_dir) if args.checkpoint_dir else None


def parse_shard(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    if first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise WrongInput(
        f"--shard '{text}' cannot be used. Expected I/N with I from 1 to N. For two machines: 1/2 and 2/2."
    )


def output_problems(output: Path, dataset: Path, songs: list[DatasetSong]) -> list[str]:
    if not output.exists():
        return []
    if not output.is_dir():
        return [f"--output_dir '{output}' is a file. Expected a folder. Choose another name."]
    sources = {dataset.resolve(), *(folder.resolve() for folder in {song.audio.parent for song in songs})}
    if output.resolve() in sources:
        return [
            f"--output_dir '{output}' holds the songs or their dataset. Expected a folder for the records alone, "
            "because training takes every file in it for a song. Choose another name."
        ]
    return []


def partial_folder(output: Path) -> Path:
    """Where pieces wait until their song is complete: beside the records, because training reads that whole folder."""
    return folder_beside(output, "partial")


def folder_beside(output: Path, purpose: str) -> Path:
    """`<output>.<purpose>`, on the same file system, so that files can be renamed from one to the other.

    Where the records' folder is a file system of its own (a mounted disk), it is the hidden `.<purpose>` in there.
    """
    target = output.resolve()
    if target.exists() and target.stat().st_dev != target.parent.stat().st_dev:
        return target / f".{purpose}"
    return target.with_name(f"{target.name}.{purpose}")


def set_orphans_aside(output: Path, songs: list[DatasetSong], dataset: str) -> None:
    """Move records of songs that are no longer in this dataset out of the training folder, and say so.

    Records that were made from another dataset, or by other scripts, are only named: people gather several datasets
    in one folder.
    """
    if not output.is_dir():
        return
    known = {song.keys for song in songs}
    dataset_path = str(Path(dataset).resolve())
    gone: list[Path] = []
    foreign: list[Path] = []
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
        print(f"warning: '{output}' holds records of other songs than this dataset's, training uses them too: {names}")


def set_aside(output: Path, paths: Iterable[Path]) -> Path:
    """Move files from the training folder to a dated folder beside it; nothing is deleted."""
    folder = folder_beside(output, "set_aside") / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        names = (f"{path.stem}{number or ''}{path.suffix}" for number in itertools.count())
        path.rename(next(folder / name for name in names if not (folder / name).exists()))
    return folder


def plan_all(songs: list[DatasetSong], run: Run, found: dict[str, Path]) -> list[Work]:
    """What has to be done for each song; reports those for which nothing can or need be done."""
    identities = {part: weights_identity(path) for part, path in found.items() if part in WEIGHTS.values()}
    works = []
    for song in songs:
        work = plan(song, run, identities)
        for warning in work.warnings:
            print(f"warning: {work.name}: {warning}")
        if work.outcome:
            run.report.finished(work)
        works.append(work)
    earlier = sum(work.outcome == "skipped" and not work.old for work in works)
    if earlier:
        print(
            f"{earlier} records in '{run.output}' are HDF5 files of other scripts and are used as they are; they do "
            "not tell what they were made from. Move them out of the folder to have their songs done again."
        )
    return works


def plan(song: DatasetSong, run: Run, identities: dict[str, str]) -> Work:
    """What has to be done for a song, from the headers of its record and of waiting pieces; nothing is decoded."""
    work = Work(song, str(song.audio.resolve()), warnings=list(song.remarks))
    find_record(work, run.output)
    if work.outcome:
        return work
    old = work.old or {}
    recorded = old.get("fingerprint", {})
    ssl = run.args.ssl
    try:
        audio_same = "audio" in recorded and is_same_audio(song.audio, recorded["audio"])
        audio = recorded["audio"] if audio_same else audio_fingerprint(song.audio)
    except OSError as error:
        if "audio" not in recorded or ssl == "at_training" or (ssl == "stored" and "mhubert" not in recorded):
            work.fail(f"'{song.audio}' cannot be read: {error.strerror}. Is its disk there? Was the file moved?")
            return work
        work.warnings.append(f"its audio cannot be read ({error.strerror}); the record that exists is kept")
        # Where it was when it could be read: training computes features from there.
        audio_same, audio, work.place = True, recorded["audio"], old["audio"]

    inputs = {
        "text": digest(song.prompt),
        "lyrics": digest([song.lyrics, song.timed_lyrics, run.args.lyric_language]),
    }
    work.fingerprint["audio"] = audio
    for piece, part in WEIGHTS.items():
        if piece in ("mert", "mhubert") and ssl != "stored":
            continue
        now = {"version": VERSIONS[piece], "weights": identities.get(part), "input": inputs.get(piece)}
        if is_same(now, recorded.get(piece)) and (audio_same or piece == "text"):
            work.fingerprint[piece] = recorded[piece]
        else:
            work.fingerprint[piece] = now
            work.redo.add(piece)

    moved = old.get("audio") != work.place
    if not work.redo and not moved and old.get("ssl") == ssl:
        work.outcome = "skipped"
        return work
    if recorded:
        changes = {
            "audio": not audio_same,
            "tags": recorded["text"].get("input") != inputs["text"],
            "lyrics": recorded["lyrics"].get("input") != inputs["lyrics"],
            "place of the audio": moved,
            f"--ssl {ssl}": old.get("ssl") != ssl,
        }
        names = [name for name, changed in changes.items() if changed] or ["base weights"]
        work.warnings.append(f"changed since its record was made: {', '.join(names)}")
    work.stages = [stage for stage in STAGES if stage in work.redo and not find_waiting(work, stage, run.partial)]
    return work


def find_record(work: Work, output: Path) -> None:
    """Set what is known of the song's record; an HDF5 record of other scripts counts as done.

    A damaged record is made again. What is not known to be a record of ours is the user's and has to be moved aside.
    """
    path = output / f"{work.song.keys}{RECORD_SUFFIX}"
    hdf5 = path.with_name(f"{work.song.keys}{HDF5_SUFFIX}")
    try:
        if path.exists():
            work.old, work.old_path = check_record(path), path
        elif hdf5.exists():
            read_metadata(hdf5)
            work.outcome = "skipped"
    except RecordError as error:
        work.warnings.append(f"its record {error.path.name} cannot be used and is made again: {error.reason}")
        if error.path == hdf5 or isinstance(error, NotARecord):
            work.in_the_way = error.path


def is_same(now: dict[str, Any], recorded: dict[str, Any] | None) -> bool:
    """Whether a recorded piece is up to date. Base weights that are not on this disk count as unchanged."""
    if recorded is None:
        return False
    return all(recorded.get(key) == value for key, value in now.items() if key != "weights" or value is not None)


def find_waiting(work: Work, stage: str, partial: Path) -> bool:
    """Whether an interrupted run has left this piece, made from the same audio by the same network."""
    try:
        _, facts = read_header(piece_path(work, stage, partial))
    except (RecordError, OSError):
        return False
    same_audio = facts.get("audio_sha256") == work.fingerprint["audio"]["sha256"]
    if not same_audio or not is_same(work.fingerprint[stage], facts.get("made_by")):
        return False
    work.fingerprint[stage] = facts["made_by"]
    return True


def complete_fingerprints(works: list[Work], weights: dict[str, Path]) -> None:
    """Name the base weights that were only downloaded after the songs had been looked at."""
    identities = {part: weights_identity(path) for part, path in weights.items()}
    for work in works:
        for piece in work.redo:
            work.fingerprint[piece]["weights"] = identities.get(WEIGHTS[piece], work.fingerprint[piece]["weights"])


def piece_path(work: Work, stage: str, partial: Path) -> Path:
    return partial / f"{work.song.keys}.{stage}{RECORD_SUFFIX}"


def needed_weights(works: list[Work]) -> list[str]:
    pieces = {piece for work in works for piece in (*work.stages, *work.redo & {"text", "lyrics"})}
    return [part for piece, part in WEIGHTS.items() if piece in pieces]


def check_networks(works: list[Work], weights: dict[str, Path]) -> None:
    """Compare the names and shapes in all weight files with the networks, before the first of them runs for hours.

    Raises WrongInput with every file that does not fit.
    """
    stages = [stage for stage in STAGES if any(stage in work.stages for work in works)]
    if not stages:
        return
    import torch

    problems = []
    for stage in stages:
        try:
            load_network(stage, weights[STAGES[stage]], "meta", torch.float32)
        except WrongInput as error:
            problems += error.problems
    if problems:
        raise WrongInput(problems)


# --- Texts ---


def tokenize_texts(works: list[Work], run: Run, weights: dict[str, Path], transformer: Path | None) -> None:
    """Token ids of the prompts and lyrics that changed. Raises WrongInput where a language needs missing packages."""
    texts = [work for work in works if "text" in work.redo]
    if texts:
        from ace_lora.v1.text_encoder import exceeds_limit, load_text_tokenizer, tokenize_prompt

        tokenizer = load_text_tokenizer(weights["text_encoder"])
        for work in texts:
            work.text_ids = tokenize_prompt(tokenizer, work.song.prompt)
            if exceeds_limit(tokenizer, work.song.prompt):
                print(
                    f"warning: {work.name}: its tags are longer than the {len(work.text_ids)} tokens that the model "
                    "reads, so the last ones are left out. Shorten the prompt to the tags that matter."
                )
    lyrics = [work for work in works if "lyrics" in work.redo]
    if not lyrics:
        return
    from ace_lora.lyrics.packages import version_warnings
    from ace_lora.lyrics.tokenize import LyricTokenizer
    from ace_lora.lyrics.vocabulary import MissingLyricSupport, load_vocabulary

    for warning in version_warnings():
        print(f"warning: {warning}")
    missing = []
    try:
        run.lyric_tokenizer = LyricTokenizer(load_vocabulary(weights["lyric_vocabulary"], embedding_rows(transformer)))
        for work in lyrics:
            try:
                tokenize_lyrics(work, run, cropped_at=None)
            except MissingLyricSupport as error:
                missing.append(str(error))
    except MissingLyricSupport as error:
        missing.append(str(error))
    if missing:
        raise WrongInput(missing)


def embedding_rows(transformer: Path | None) -> int | None:
    """Rows of the base model's lyric embedding, to check that the vocabulary is its own; None where it is not here."""
    if transformer is None or not (transformer / "config.json").is_file():
        return None
    return json.loads((transformer / "config.json").read_text(encoding="utf-8")).get("lyric_encoder_vocab_size")


def tokenize_lyrics(work: Work, run: Run, cropped_at: float | None) -> None:
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
    tokens = run.lyric_tokenizer.tokenize(text, run.args.lyric_language or None, work.name)
    if cropped_at is None:
        for warning in tokens.warnings:
            print(f"warning: {work.name}: {warning}")
    work.lyrics = TokenizedLyrics(list(tokens.ids), tokens.main_language or None, text, timed_lines)


# --- Networks ---


def run_networks(works: list[Work], run: Run, weights: dict[str, Path], device: Any) -> None:
    """Take one network after the other over all songs that need it, and write each record as soon as it is complete."""
    print(f"device: {device.reason}")
    inputs = Inputs(device.torch_device)
    for stage in STAGES:
        here = [work for work in works if stage in work.stages and not work.outcome]
        if here:
            # All that a network needs ends with this call: the next one takes its place in memory.
            run_network(stage, here, run, weights[STAGES[stage]], device, inputs)
            free_device_memory(device.torch_device)


def run_network(stage: str, works: list[Work], run: Run, weights: Path, device: Any, inputs: Inputs) -> None:
    from tqdm import tqdm

    print(f"{stage}: {len(works)} songs")
    started, seconds = time.monotonic(), 0.0
    network = load_network(stage, weights, device.torch_device, device.dtype)
    with (
        tqdm(total=len(works), desc=stage, unit="song", file=sys.stderr) as bar,
        ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
    ):
        written: Future | None = None  # the song before this one: disk and network work at the same time
        for work, computed in compute_all(stage, network, works, inputs, device):
            bar.set_postfix_str(work.name)
            if written:
                written.result()
                written = None
            if computed:
                seconds += computed[1]["seconds"]
                written = writer.submit(store, stage, *computed, work, run)
            else:
                run.report.finished(work)
            bar.update()
        if written:
            written.result()
    print(f"{stage}: {seconds:.0f} s of audio in {time.monotonic() - started:.1f} s")


@dataclass(frozen=True)
class Piece:
    """What one network made of one song, as the record stores it."""

    tensors: dict[str, Any]
    facts: dict[str, Any]  # seconds, original_seconds, cropped; audio_sha256 and made_by, for a later run


def store(stage: str, result: Any, facts: dict[str, Any], work: Work, run: Run) -> None:
    """Write the record when this was the last piece of the song, else the piece. Runs in a thread of its own."""
    if stage == "latents":
        piece = Piece({"target_latents": result}, facts)
    else:
        values, scale = quantise_rows(result)
        piece = Piece({stage: values, f"{stage}_scale": scale}, facts)
    if stage == work.stages[-1]:
        finish(work, {stage: piece}, run)
        run.report.finished(work)
    else:
        write_tensors(piece_path(work, stage, run.partial), piece.tensors, piece.facts)


def load_network(stage: str, folder: Path, device: torch.device | str, dtype: torch.dtype) -> Any:
    from ace_lora.v1 import dcae, ssl_features

    load = {"latents": dcae.load_latent_encoder, "mert": ssl_features.load_mert, "mhubert": ssl_features.load_mhubert}
    return load[stage](folder, device=device, dtype=dtype)


@dataclass(frozen=True)
class Input:
    """What a network reads of a song, and what is known of the song's length."""

    values: tuple[Any, ...]  # tensors, and for the SSL models the number of samples
    facts: dict[str, Any]  # seconds, original_seconds, cropped; for the record
    warning: str = ""


class Inputs:
    """Decodes songs and makes the networks' inputs of them, in threads, while a network works on an earlier song.

    On an NVIDIA card the inputs are made there, on a stream of their own: no thread's copying makes the network wait.
    The inputs of a song's later networks are made with its first and wait in main memory as long as that has room
    (0.16 MB per second of audio), because decoding takes longer than a fast card needs for a network.
    """

    def __init__(self, device: torch.device):
        import torch

        from ace_lora.device import free_main_memory

        self.device = device
        on_card = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if on_card else None
        # A CPU is slower than any decoder, and its memory is what the networks need.
        self.room = (free_main_memory() or 0) // 3 if on_card else 0  # bytes
        self.waiting: dict[tuple[str, str], Input] = {}
        # One song at a time: on the card, only one waveform takes memory.
        self.lock = threading.Lock()

    def make(self, work: Work, stage: str) -> Input:
        """The input on the networks' device. Raises AudioError and OSError when the song cannot be read."""
        import torch

        with self.lock:
            early = self.waiting.pop((work.song.keys, stage), None)
            if early:
                self.room += size_of(early)
                return self.moved(early, self.device)
        wave, info = decode(work)
        facts = {
            "seconds": wave.shape[1] / SAMPLE_RATE,
            "original_seconds": info.original_seconds,
            "cropped": info.cropped,
        }
        with self.lock, torch.inference_mode(), self.beside_the_network():
            if self.stream:
                wave = wave.to(self.device)
            made = Input(network_input(stage, wave), facts, info.warning)
            for later in work.stages[work.stages.index(stage) + 1 :]:
                if self.room > 0:
                    early = self.moved(Input(network_input(later, wave), facts), torch.device("cpu"))
                    self.waiting[work.song.keys, later] = early
                    self.room -= size_of(early)
            if self.stream:
                self.stream.synchronize()
            return made

    def beside_the_network(self) -> contextlib.AbstractContextManager:
        import torch

        # Not `stream(None)` where no card is used: that would start CUDA all the same.
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

    def moved(self, made: Input, device: torch.device) -> Input:
        import torch

        with self.beside_the_network():
            values = tuple(value.to(device) if torch.is_tensor(value) else value for value in made.values)
            if self.stream:
                self.stream.synchronize()
        return replace(made, values=values)

    def ahead(self, works: list[Work], stage: str) -> Iterator[tuple[Work, Future[Input]]]:
        """Yield the songs in order, each with its input, while threads make the next ones."""
        ahead = DECODE_AHEAD_CPU if self.device.type == "cpu" else DECODE_AHEAD_GPU
        pool = ThreadPoolExecutor(ahead, thread_name_prefix="decode")
        waiting: deque[tuple[Work, Future[Input]]] = deque()
        try:
            for work in works:
                waiting.append((work, pool.submit(self.make, work, stage)))
                if len(waiting) > ahead:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(cancel_futures=True)


def size_of(made: Input) -> int:
    return sum(value.numel() * value.element_size() for value in made.values if hasattr(value, "numel"))


def decode(work: Work) -> tuple[Any, Any]:
    """The song at 48 kHz, float32 [2, L], and what was done to its length. Raises AudioError and OSError."""
    from ace_lora.audio.decode import AudioError, prepare_waveform, read_audio

    try:
        wave, info = prepare_waveform(read_audio(work.song.audio))
    except (AudioError, OSError):
        raise
    except Exception as error:  # a decoder's own; one odd file must not stop the others
        raise AudioError(
            f"it cannot be decoded ({type(error).__name__}: {error}). Convert it to .flac or .wav."
        ) from error
    if not is_same_audio(work.song.audio, work.fingerprint["audio"]):
        raise AudioError("the audio file changed while it was being read. Run the same command again.")
    return wave, info


def network_input(stage: str, wave: torch.Tensor) -> tuple[Any, ...]:
    """What `begin_network` takes, from `wave` float32 [2, L] at 48 kHz and on its device."""
    from ace_lora.v1 import dcae, ssl_features

    if stage == "latents":
        return (dcae.encoder_input(wave),)
    return ssl_features.standardised_chunks(wave, ssl_branch(stage))


def begin_network(stage: str, network: Any, values: tuple[Any, ...]) -> Callable[[], torch.Tensor]:
    """Set a network to work; the function returned waits for its result, on the CPU.

    That is latents float32 [8, 16, T] or features float32 [n, width]; AudioError where they are not finite.
    """
    from ace_lora.v1 import dcae, ssl_features

    if stage == "latents":
        return dcae.begin_latents(network, *values)
    chunks, samples = values
    return ssl_features.begin_features(network, chunks, samples, ssl_branch(stage))


def ssl_branch(stage: str) -> Any:
    from ace_lora.v1 import ssl_features

    return {"mert": ssl_features.MERT, "mhubert": ssl_features.MHUBERT}[stage]


def compute_all(
    stage: str, network: Any, works: list[Work], inputs: Inputs, device: Any
) -> Iterator[tuple[Work, tuple[Any, dict[str, Any]] | None]]:
    """Yield each song with the network's result and the facts on it; None where that failed, with its outcome set.

    On an NVIDIA card the next song is set to work before a result is waited for, so that the card never runs dry.
    """
    ahead = 1 if device.torch_device.type == "cuda" else 0
    begun: deque[tuple[Work, Callable[[], Any] | None, dict[str, Any]]] = deque()

    def collect() -> tuple[Work, tuple[Any, dict[str, Any]] | None]:
        work, wait, facts = begun.popleft()
        result = None
        with failing_alone(work, stage, device):
            result = wait() if wait else None
        return work, None if result is None else (result, facts)

    for work, future in inputs.ahead(works, stage):
        wait, facts = None, {}
        with failing_alone(work, stage, device):
            made = future.result()
            if made.warning and stage == work.stages[0]:
                print(f"warning: {work.name}: {made.warning}")
            wait = begin_network(stage, network, made.values)
            origin = {"audio_sha256": work.fingerprint["audio"]["sha256"], "made_by": work.fingerprint[stage]}
            facts = {**made.facts, **origin}
        begun.append((work, wait, facts))
        if len(begun) > ahead:
            yield collect()
    while begun:
        yield collect()


@contextlib.contextmanager
def failing_alone(work: Work, stage: str, device: Any) -> Iterator[None]:
    """Make what goes wrong with one song its outcome; the others go on."""
    from ace_lora.audio.decode import AudioError

    try:
        yield
    except (AudioError, OSError) as error:
        work.fail(error)
    except (RuntimeError, ValueError) as error:  # out of memory above all; the next song may be shorter
        free_device_memory(device.torch_device)
        work.fail(f"{stage} cannot be computed ({error}). Close other programs, or use --device cpu.")


# --- Records ---


def finish(work: Work, computed: dict[str, Piece], run: Run) -> None:
    """Put a song's pieces together, from this run, from waiting files and from its earlier record, and write it."""
    import torch

    old = read_record(work.old_path) if work.old_path and set(work.fingerprint) - {"audio"} - work.redo else None
    facts: dict[str, Any] = old.metadata if old else {}
    tensors: dict[str, Any] = {}
    for stage in STAGES:
        if stage not in work.fingerprint:
            continue
        if stage in computed:
            tensors |= computed[stage].tensors
            facts = computed[stage].facts
        elif stage in work.redo:
            path = piece_path(work, stage, run.partial)
            try:
                waiting, facts = read_tensors(path)
            except (RecordError, OSError) as error:
                path.unlink(missing_ok=True)
                work.fail(f"what an earlier run left of it is damaged ({error}). Run the same command again.")
                return
            tensors |= waiting
        else:
            names = ("target_latents",) if stage == "latents" else (stage, f"{stage}_scale")
            tensors |= {name: getattr(old, name) for name in names}

    if facts["cropped"] and work.redo & {"latents", "lyrics"}:
        print(
            f"warning: {work.name}: it is {facts['original_seconds']:.0f} s long; "
            f"only the first {facts['seconds']:.0f} s are used"
        )
    if "lyrics" in work.redo:
        if facts["cropped"]:
            tokenize_lyrics(work, run, cropped_at=facts["seconds"])
        assert work.lyrics is not None  # tokenised before the networks ran
        lyric_ids = torch.tensor(work.lyrics.ids, dtype=torch.int64)
        lyric_facts = {
            "lyrics": work.lyrics.text,
            "timed_lines": work.lyrics.timed_lines,
            "lyric_language": work.lyrics.language,
        }
    else:
        assert old is not None  # read above, because not all is done again
        lyric_ids = old.lyric_token_ids
        lyric_facts = {key: old.metadata[key] for key in ("lyrics", "timed_lines", "lyric_language")}
    text_ids = (
        torch.tensor(work.text_ids, dtype=torch.int64) if old is None or "text" in work.redo else old.text_token_ids
    )
    record = Record(
        keys=work.song.keys,
        text_token_ids=text_ids,
        lyric_token_ids=lyric_ids,
        metadata={
            "prompt": work.song.prompt,
            **lyric_facts,
            **{key: facts[key] for key in ("seconds", "original_seconds", "cropped")},
            "audio": work.place,
            "dataset": str(Path(run.args.input_name).resolve()),
            "ssl": run.args.ssl,
            "fingerprint": work.fingerprint,
            "software": software_versions(),
        },
        **tensors,
    )
    # Written beside and renamed: training takes every file of its folder, half-written ones too.
    name = f"{work.song.keys}{RECORD_SUFFIX}"
    write_record(run.partial / name, record)
    os.replace(run.partial / name, run.output / name)
    for stage in STAGES:
        piece_path(work, stage, run.partial).unlink(missing_ok=True)
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
        # Those of others that run are not there: a run on the whole dataset is alone, its own lock goes at its end.
        left_behind = path.name.startswith((".tmp-", LOCK_PREFIX)) and path.name != lock_name("1/1") and whole_dataset
        if left_behind or (stage in STAGES and keys not in failed and (whole_dataset or keys in own)):
            path.unlink()


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
