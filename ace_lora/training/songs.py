"""The records that a training reads: found, checked and described once, before a model is loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ace_lora.commands import WrongInput
from ace_lora.records.format import SECONDS_PER_LATENT_FRAME, Record, RecordError, list_records
from ace_lora.records.record import read_record
from ace_lora.songs import split_tags


@dataclass(frozen=True)
class TrainingSong:
    """What planning needs to know of a record; the record itself is read when its turn comes."""

    path: Path
    name: str
    frames: int
    lyric_tokens: int
    ssl: str  # "stored", "none" or "at_training"
    digest: str  # of latents and token ids; tells whether a resumed run has the same data
    metadata: dict[str, Any] = field(compare=False, repr=False)

    @property
    def seconds(self) -> float:
        return self.frames * SECONDS_PER_LATENT_FRAME

    @property
    def tags(self) -> list[str]:
        return split_tags(self.metadata.get("prompt", ""))


def scan_dataset(folder: Path, *, need_ssl: bool) -> list[TrainingSong]:
    """Every record of `folder`, read once without its SSL features, in the order of their names.

    Raises WrongInput naming a folder that is missing or has no record, and every record that is damaged or, with
    `need_ssl`, has no SSL features and no way to compute them.
    """
    folder = Path(folder)
    advice = "Run preprocess_dataset_new.py and give its --output_dir as --dataset_path."
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise WrongInput(f"--dataset_path '{folder}' {what}. Expected the folder of records. {advice}")
    paths = list_records(folder)
    if not paths:
        raise WrongInput(f"--dataset_path '{folder}' holds no records (.safetensors or .hdf5). {advice}")
    songs, problems, without_ssl, without_audio = [], [], [], []
    for path in paths:
        try:
            record = read_record(path, ssl=False)
        except RecordError as error:
            problems.append(str(error))
            continue
        song = _training_song(path, record)
        songs.append(song)
        if need_ssl and song.ssl == "none":
            without_ssl.append(song.name)
        if need_ssl and song.ssl == "at_training" and not Path(song.metadata.get("audio", "")).is_file():
            without_audio.append(f"'{song.metadata.get('audio', '')}' of '{song.name}'")
    if without_ssl:
        problems.append(
            f"{len(without_ssl)} of {len(paths)} records have no MERT and mHuBERT features (first: "
            f"'{without_ssl[0]}'), which --ssl_coeff above 0 needs. Train with --ssl_coeff 0, or preprocess again with "
            "--ssl stored or --ssl at_training."
        )
    if without_audio:
        problems.append(
            "The MERT and mHuBERT features of this data set are computed when training starts, but the audio is gone: "
            + "; ".join(without_audio)
            + ". Put the files back, preprocess again, or train with --ssl_coeff 0."
        )
    if problems:
        raise WrongInput(problems)
    return songs


def _training_song(path: Path, record: Record) -> TrainingSong:
    digest = hashlib.sha256()
    for tensor in (record.target_latents, record.text_token_ids, record.lyric_token_ids):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return TrainingSong(
        path=path,
        name=path.stem,
        frames=record.target_latents.shape[2],
        lyric_tokens=len(record.lyric_token_ids),
        ssl=record.metadata.get("ssl", "stored"),
        digest=digest.hexdigest()[:16],
        metadata=record.metadata,
    )


def has_timed_lyrics(metadata: dict[str, Any]) -> bool:
    """Whether the lyrics of a record can be cropped with its audio."""
    return any(seconds is not None for seconds, _ in metadata.get("timed_lines") or [])
