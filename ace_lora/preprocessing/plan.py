"""What has to be done for each song, told from headers and fingerprints; nothing is decoded and torch is not needed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.files import set_aside
from ace_lora.preprocessing.work import STAGES, VERSIONS, WEIGHTS, SongWork, partial_folder, piece_path
from ace_lora.records.fingerprints import audio_fingerprint, digest, is_same_audio, weights_identity
from ace_lora.records.format import HDF5_SUFFIX, RECORD_SUFFIX, NotARecord, RecordError, list_records, metadata_problem
from ace_lora.records.record import check_record, read_metadata
from ace_lora.records.tensor_file import read_header

if TYPE_CHECKING:
    from ace_lora.preprocessing.dataset import DatasetSong


def plan_song(
    song: DatasetSong,
    output: Path,
    ssl: str,
    lyric_language: str,
    identities: dict[str, str],
    loudness: float | None = None,
) -> SongWork:
    """What has to be done for a song whose record belongs in `output`; with an outcome where that is nothing.

    `identities` names the content of those parts of the base weights that are on this disk; `loudness` is in LUFS, None
    where the songs' own stays.
    """
    work = SongWork(song, str(song.audio.resolve()), warnings=list(song.remarks))
    _find_record(work, output)
    if work.outcome:
        return work
    old = work.old or {}
    recorded = old.get("fingerprint", {})
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

    language = song.lyric_language or lyric_language
    inputs = {"text": digest(song.prompt), "lyrics": digest([song.lyrics, song.timed_lyrics, language])}
    if loudness is not None:
        inputs |= dict.fromkeys(STAGES, f"{loudness:g} LUFS")
    work.fingerprint["audio"] = audio
    for piece, part in WEIGHTS.items():
        if piece in ("mert", "mhubert") and ssl != "stored":
            continue
        now = {"version": VERSIONS[piece], "weights": identities.get(part), "input": inputs.get(piece)}
        if _is_same(now, recorded.get(piece)) and (audio_same or piece == "text"):
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
            "loudness": recorded["latents"].get("input") != inputs.get("latents"),
            "place of the audio": moved,
            f"--ssl {ssl}": old.get("ssl") != ssl,
        }
        names = [name for name, changed in changes.items() if changed] or ["base weights"]
        work.warnings.append(f"changed since its record was made: {', '.join(names)}")
    partial = partial_folder(output)
    work.stages = [stage for stage in STAGES if stage in work.redo and not _find_waiting(work, stage, partial)]
    return work


def _find_record(work: SongWork, output: Path) -> None:
    """Set what is known of the song's record; an HDF5 record of other scripts counts as done.

    A damaged record is made again. What is not known to be a record of ours is the user's and has to be set aside.
    """
    path = output / f"{work.song.keys}{RECORD_SUFFIX}"
    hdf5 = path.with_name(f"{work.song.keys}{HDF5_SUFFIX}")
    try:
        if os.path.lexists(path):
            work.old, work.old_path = check_record(path), path
        elif hdf5.exists():
            read_metadata(hdf5)
            work.outcome = "skipped"
    except RecordError as error:
        work.warnings.append(f"its record {error.path.name} cannot be used and is made again: {error.reason}")
        if error.path == hdf5 or isinstance(error, NotARecord):
            work.in_the_way = error.path


def _is_same(now: dict[str, Any], recorded: dict[str, Any] | None) -> bool:
    """Whether a recorded piece is up to date. Base weights that are not on this disk count as unchanged."""
    if not isinstance(recorded, dict):
        return False
    return all(recorded.get(key) == value for key, value in now.items() if key != "weights" or value is not None)


def _find_waiting(work: SongWork, stage: str, partial: Path) -> bool:
    """Whether an interrupted run has left this piece, made from the same audio by the same network."""
    try:
        _, facts = read_header(piece_path(work, stage, partial))
    except (RecordError, OSError):
        return False
    same_audio = facts.get("audio_sha256") == work.fingerprint["audio"]["sha256"]
    if not same_audio or not _is_same(work.fingerprint[stage], facts.get("made_by")) or metadata_problem(facts):
        return False
    if not {"seconds", "original_seconds", "cropped"} <= facts.keys():
        return False
    work.fingerprint[stage] = facts["made_by"]
    return True


def complete_fingerprints(works: Iterable[SongWork], weights: dict[str, Path]) -> None:
    """Name the base weights that were only downloaded after the songs had been looked at."""
    identities = {part: weights_identity(path) for part, path in weights.items()}
    for work in works:
        for piece in work.redo:
            work.fingerprint[piece]["weights"] = identities.get(WEIGHTS[piece], work.fingerprint[piece]["weights"])


def needed_weights(works: Iterable[SongWork]) -> list[str]:
    pieces = {piece for work in works for piece in (*work.stages, *work.redo & {"text", "lyrics"})}
    return [part for piece, part in WEIGHTS.items() if piece in pieces]


def set_orphans_aside(output: Path, songs: Iterable[DatasetSong], dataset: str) -> None:
    """Set records of songs that are no longer in this dataset aside, and say so.

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
        folder = set_aside(gone, "records of songs that are no longer in the dataset")
        names = ", ".join(path.stem for path in gone)
        print(f"warning: no longer in the dataset, so their records were moved to '{folder}': {names}")
    if foreign:
        names = ", ".join(path.name for path in foreign)
        print(f"warning: '{output}' holds records of other songs than this dataset's, training uses them too: {names}")
