"""A song on its way to its record, and the folder where its finished pieces wait. Standard library only.

A record consists of the pieces latents, mert, mhubert, text and lyrics. The first three are made by networks that run
one after another over all songs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.files import TEMPORARY
from ace_lora.preprocessing.lock import LOCK_PREFIX, lock_name
from ace_lora.records.format import RECORD_SUFFIX

if TYPE_CHECKING:
    from ace_lora.preprocessing.dataset import DatasetSong


# Networks in the order in which they run, and the part of the base weights that each is.
STAGES = {"latents": "dcae", "mert": "mert", "mhubert": "mhubert"}
# Part of the base weights that each piece of a record depends on.
WEIGHTS = {**STAGES, "text": "text_encoder", "lyrics": "lyric_vocabulary"}
# Raised when our computation of a piece changes its result: records made by the old one are then made again.
VERSIONS = {"latents": 1, "mert": 1, "mhubert": 1, "text": 1, "lyrics": 1}


@dataclass
class SongWork:
    """What is to be done for one song, and what has been.

    `redo` holds the pieces to be made, `stages` the networks that still have to run for them (a piece of an interrupted
    run may be waiting on disk).
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
    in_the_way: Path | None = None  # a file in the record's place, to be set aside
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


def partial_folder(output: Path) -> Path:
    """Where pieces wait until their song is complete: beside the records, because training reads that whole folder.

    It is on the same file system, so that files can be renamed from one to the other: where the records' folder is a
    file system of its own (a mounted disk), it is hidden in there.
    """
    target = output.resolve()
    if target.exists() and target.stat().st_dev != target.parent.stat().st_dev:
        return target / ".partial"
    return target.with_name(f"{target.name}.partial")


def piece_path(work: SongWork, stage: str, partial: Path) -> Path:
    return partial / f"{work.song.keys}.{stage}{RECORD_SUFFIX}"


def clear_partial(partial: Path, works: Iterable[SongWork], *, whole_dataset: bool) -> None:
    """Remove what no later run can use; pieces of failed songs stay."""
    if not partial.is_dir():
        return
    failed = {work.song.keys for work in works if work.outcome != "done" and work.outcome != "skipped"}
    own = {work.song.keys for work in works}
    for path in partial.iterdir():
        keys, _, stage = path.name.removesuffix(RECORD_SUFFIX).rpartition(".")
        # Those of others that run are not there: a run on the whole dataset is alone, its own lock goes at its end.
        left_behind = path.name.startswith((TEMPORARY, LOCK_PREFIX)) and path.name != lock_name("1/1") and whole_dataset
        if left_behind or (stage in STAGES and keys not in failed and (whole_dataset or keys in own)):
            path.unlink()
