"""What became of the songs since their records were made: told before a training, and no reason to refuse one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ace_lora.files import read_text
from ace_lora.lyrics.reading import song_language
from ace_lora.records.fingerprints import digest, is_same_audio
from ace_lora.songs import INSTRUMENTAL, SongFiles, scan_songs, split_tags
from ace_lora.training.songs import TrainingSong

_MOST_NAMES = 5
_ADVICE = "Run convert2hf_dataset_new.py and preprocess_dataset_new.py (steps 4 and 5) to train on what is there now."


def remarks_on_origins(songs: Iterable[TrainingSong]) -> list[str]:
    """Songs whose audio, prompt or lyrics changed since their record was made, and songs beside them without a record.

    What cannot be told is not: audio that is not on this disk, records of other programs, texts that cannot be read.
    """
    changed: dict[str, list[str]] = {"audio": [], "prompt": [], "lyrics": []}
    folders: dict[Path, set[str]] = {}
    for song in songs:
        files = SongFiles(Path(str(song.metadata.get("audio", ""))))
        fingerprint = song.metadata.get("fingerprint")
        if not isinstance(fingerprint, dict) or not files.audio.is_file():
            continue
        folders.setdefault(files.audio.parent, set()).add(files.stem)
        for what, is_same in (("audio", _same_audio), ("prompt", _same_prompt), ("lyrics", _same_lyrics)):
            if not _told(is_same, files, fingerprint, song.metadata):
                changed[what].append(song.name)
    remarks = [
        f"The {what} of {len(names)} songs changed since their records were made: {_listed(names)}. {_ADVICE}"
        for what, names in changed.items()
        if names
    ]
    for folder, known in folders.items():
        without = [song.stem for song in scan_songs(folder) if song.stem not in known]
        if without:
            remarks.append(f"{len(without)} songs in '{folder}' have no record here: {_listed(without)}. {_ADVICE}")
    return remarks


def _told(is_same: Callable[..., bool], files: SongFiles, fingerprint: dict[str, Any], facts: dict[str, Any]) -> bool:
    try:
        return is_same(files, fingerprint, facts)
    except (OSError, ValueError, LookupError, TypeError):  # unreadable, or a header of another version
        return True


def _same_audio(files: SongFiles, fingerprint: dict[str, Any], facts: dict[str, Any]) -> bool:
    return is_same_audio(files.audio, fingerprint["audio"])


def _same_prompt(files: SongFiles, fingerprint: dict[str, Any], facts: dict[str, Any]) -> bool:
    recorded = fingerprint["text"]["input"]
    if not files.prompt.exists() or recorded != digest(facts["prompt"]):
        return True
    return recorded == digest(", ".join(split_tags(read_text(files.prompt))))


def _same_lyrics(files: SongFiles, fingerprint: dict[str, Any], facts: dict[str, Any]) -> bool:
    lyrics = read_text(files.lyrics) if files.lyrics.exists() else INSTRUMENTAL
    timed = read_text(files.timed_lyrics) if files.timed_lyrics.exists() else ""
    # The language may have been the song's own, that of the flag, or left to the text.
    languages = ("", song_language(files.about_lyrics) or "", facts.get("lyric_language") or "")
    return fingerprint["lyrics"]["input"] in {digest([lyrics, timed, language]) for language in languages}


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
