"""Step 5: turn the songs of a dataset into training records, one file per song.

Reads   INPUT_NAME/, the dataset of convert2hf_dataset_new.py, the audio that it points to, <song>_lyrics.lrc beside it
Writes  OUTPUT_DIR/<song>.safetensors (see ace_lora/records/format.py), at most 0.2 MB per second of audio

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
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import StepFailed, WrongInput, run_script
from ace_lora.device import Device, choose_device, free_device_memory, parse_device_name
from ace_lora.files import rename, set_aside
from ace_lora.preprocessing.lock import alone
from ace_lora.preprocessing.plan import complete_fingerprints, needed_weights, plan_song, set_orphans_aside
from ace_lora.preprocessing.work import STAGES, WEIGHTS, SongWork, clear_partial, partial_folder, piece_path
from ace_lora.records.fingerprints import software_versions, weights_identity
from ace_lora.records.format import RECORD_SUFFIX, Record, RecordError
from ace_lora.records.record import quantise_rows, read_record, write_record
from ace_lora.records.tensor_file import read_tensors, write_tensors

if TYPE_CHECKING:
    from ace_lora.lyrics.tokenize import LyricTokenizer
    from ace_lora.preprocessing.dataset import DatasetSong
    from ace_lora.preprocessing.networks import InputMaker, NetworkResult

QUIETEST, LOUDEST = -40.0, -5.0  # LUFS
SSL_MODES = ("stored", "none", "at_training")
# What the numbers of a record depend on besides its song and the base weights.
SOFTWARE = ("torch", "transformers", "diffusers", "soundfile", "av")


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
    content.add_argument(
        "--loudness",
        type=float,
        default=None,
        metavar="LUFS",
        help="bring what is trained of every song to this loudness, -14 for example, as far as its peaks stay below "
        "-1 dBTP; -16 to -12 is what the model makes itself. The audio files stay as they are (default: as they are)",
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
    from ace_lora.base_weights.download import ensure_base_weights
    from ace_lora.base_weights.find import find_base_weights

    all_songs, (shard, shards) = check(args)
    songs = all_songs[shard - 1 :: shards]
    share = f", {len(songs)} of them in share {args.shard}" if shards > 1 else ""
    print(f"{len(all_songs)} songs in '{args.input_name}'{share}")

    # The transformer's configuration tells which lyric vocabulary is its own; its weights are not used here.
    found = find_base_weights(checkpoint_dir(args), [*WEIGHTS.values(), "transformer"])
    output = Path(args.output_dir)
    run = PreprocessingRun(args, output, partial_folder(output), Report(len(songs)))
    works = plan_all(songs, run, found)

    open_works = [work for work in works if not work.outcome]
    device = choose_device(args.device) if any(work.stages for work in open_works) else None
    needed = needed_weights(open_works)
    weights = ensure_base_weights(checkpoint_dir(args), needed) if needed else {}
    complete_fingerprints(open_works, weights)
    tokenize_texts(open_works, run, weights, found.get("transformer"))
    if device:
        from ace_lora.preprocessing.networks import check_networks

        check_networks(open_works, weights)

    # Nothing has been written or moved so far; from here on a stop at any moment leaves only complete records.
    with alone(run.partial, args.shard) if open_works else contextlib.nullcontext():
        if shard == 1:
            set_orphans_aside(output, all_songs, args.input_name)
        if open_works:
            make_records(open_works, run, weights, device)
            clear_partial(run.partial, works, whole_dataset=shards == 1)
    if not open_works and run.partial.is_dir():
        # Left by an earlier run; another run that is at work here clears it itself.
        with contextlib.suppress(WrongInput), alone(run.partial, args.shard):
            clear_partial(run.partial, works, whole_dataset=shards == 1)
    run.report.close()


@dataclass
class PreprocessingRun:
    """What the steps on all songs share."""

    args: argparse.Namespace
    output: Path
    partial: Path  # pieces and records on their way
    report: Report
    lyric_tokenizer: LyricTokenizer | None = None


# --- What there is to do ---


def check(args: argparse.Namespace) -> tuple[list[DatasetSong], tuple[int, int]]:
    """The songs of the whole dataset and the share to do. Raises WrongInput with everything that is wrong."""
    from ace_lora.base_weights.download import check_base_weights
    from ace_lora.lyrics.tokenize import check_language
    from ace_lora.preprocessing.dataset import read_dataset

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
    if args.loudness is not None and not QUIETEST <= args.loudness <= LOUDEST:
        problems.append(
            f"--loudness {args.loudness:g} cannot be used. Expected {QUIETEST:g} to {LOUDEST:g} LUFS. "
            "Streaming services play at -14; leave it out to train the songs as loud as they are."
        )
    if args.output_dir.strip():
        problems += output_problems(Path(args.output_dir), Path(args.input_name), songs)
    else:
        problems.append("--output_dir is empty. Expected the name of a folder for the records. Give one.")
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


def plan_all(songs: list[DatasetSong], run: PreprocessingRun, found: dict[str, Path]) -> list[SongWork]:
    """What has to be done for each song; reports those for which nothing can or need be done."""
    identities = {part: weights_identity(path) for part, path in found.items() if part in WEIGHTS.values()}
    works = []
    for song in songs:
        work = plan_song(song, run.output, run.args.ssl, run.args.lyric_language, identities, run.args.loudness)
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


def tokenize_texts(
    works: list[SongWork], run: PreprocessingRun, weights: dict[str, Path], transformer: Path | None
) -> None:
    """Token ids of the prompts and lyrics that changed. Raises WrongInput where a language needs missing packages."""
    from ace_lora.preprocessing.texts import tokenize_all_lyrics, tokenize_prompts

    prompts = [work for work in works if "text" in work.redo]
    if prompts:
        tokenize_prompts(prompts, weights["text_encoder"])
    lyrics = [work for work in works if "lyrics" in work.redo]
    if lyrics:
        vocabulary = weights["lyric_vocabulary"]
        run.lyric_tokenizer = tokenize_all_lyrics(lyrics, vocabulary, transformer, run.args.lyric_language)


# --- Making records ---


def make_records(works: list[SongWork], run: PreprocessingRun, weights: dict[str, Path], device: Device | None) -> None:
    run.output.mkdir(parents=True, exist_ok=True)
    in_the_way = [work.in_the_way for work in works if work.in_the_way]
    folder = set_aside(in_the_way, "files in the place of records")
    for path in in_the_way:
        print(f"warning: {path.name} was moved to '{folder}', its song is done again")
    for work in works:
        if not work.stages:
            finish(work, {}, run)
            run.report.finished(work)
    if device:
        run_networks(works, run, weights, device)


def run_networks(works: list[SongWork], run: PreprocessingRun, weights: dict[str, Path], device: Device) -> None:
    """Take one network after the other over all songs that need it, and write each record as soon as it is complete."""
    from ace_lora.preprocessing.networks import InputMaker

    print(f"device: {device.reason}")
    inputs = InputMaker(device.torch_device, run.args.loudness)
    for stage, part in STAGES.items():
        here = [work for work in works if stage in work.stages and not work.outcome]
        if here:
            # All that a network needs ends with this call: the next one takes its place in memory.
            run_network(stage, here, run, weights[part], device, inputs)
            free_device_memory(device.torch_device)


def run_network(
    stage: str, works: Sequence[SongWork], run: PreprocessingRun, weights: Path, device: Device, inputs: InputMaker
) -> None:
    from tqdm import tqdm

    from ace_lora.preprocessing.networks import compute_all, load_network

    print(f"{stage}: {len(works)} songs")
    started, seconds = time.monotonic(), 0.0
    network = load_network(stage, weights, device.torch_device, device.dtype)
    with (
        tqdm(total=len(works), desc=stage, unit="song", file=sys.stderr) as bar,
        ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
    ):
        written: Future | None = None  # the song before this one: disk and network work at the same time
        for work, result in compute_all(stage, network, works, inputs, device):
            bar.set_postfix_str(work.name)
            if written:
                written.result()
                written = None
            if result:
                seconds += result.facts["seconds"]
                written = writer.submit(store, stage, result, work, run)
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


def store(stage: str, result: NetworkResult, work: SongWork, run: PreprocessingRun) -> None:
    """Write the record when this was the last piece of the song, else the piece. Runs in a thread of its own."""
    if stage == "latents":
        piece = Piece({"target_latents": result.values}, result.facts)
    else:
        values, scale = quantise_rows(result.values)
        piece = Piece({stage: values, f"{stage}_scale": scale}, result.facts)
    if stage == work.stages[-1]:
        finish(work, {stage: piece}, run)
        run.report.finished(work)
    else:
        write_tensors(piece_path(work, stage, run.partial), piece.tensors, piece.facts)


def finish(work: SongWork, computed: dict[str, Piece], run: PreprocessingRun) -> None:
    """Put a song's pieces together, from this run, from waiting files and from its earlier record, and write it."""
    import torch

    from ace_lora.preprocessing.texts import tokenize_lyrics

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
            assert run.lyric_tokenizer is not None  # made when the lyrics were tokenised
            tokenize_lyrics(work, run.lyric_tokenizer, run.args.lyric_language, cropped_at=facts["seconds"])
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
            "software": software_versions(SOFTWARE),
        },
        **tensors,
    )
    # Written beside and renamed: training takes every file of its folder, half-written ones too.
    name = f"{work.song.keys}{RECORD_SUFFIX}"
    try:
        write_record(run.partial / name, record)
    except ValueError as error:  # what waited on the disk, or the earlier record, does not belong to the rest
        for stage in STAGES:
            piece_path(work, stage, run.partial).unlink(missing_ok=True)
        work.fail(f"{error} Remove its record and run the same command again.")
        return
    rename(run.partial / name, run.output / name)
    for stage in STAGES:
        piece_path(work, stage, run.partial).unlink(missing_ok=True)
    work.outcome = "done"


class Report:
    """One line per song as it is finished, and the counts at the end."""

    def __init__(self, songs: int):
        self.songs = songs
        self.outcomes: list[tuple[str, str]] = []

    def finished(self, work: SongWork) -> None:
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
