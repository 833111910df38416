"""What is to be rendered: the songs and the columns of a plan file, checked before anything is loaded.

    {
      "as": "ace-step",                          or "comfyui"
      "settings": {"steps": 60},                 as the flags of `python -m ace_lora.preview`, without "--"
      "format": "flac",                          wav, flac or mp3
      "songs": [
        {"name": "mine", "prompt": "pop, piano", "lyrics": "[verse]\\n…", "language": "zh", "seconds": 30, "seed": 7},
        {"name": "ours", "record": "Taudio/x_prep/song.safetensors", "seconds": 60},
        {"name": "texts", "prompt_file": "Taudio/x/song_prompt.txt", "lyrics_file": "Taudio/x/song_lyrics.txt"}
      ],
      "columns": [
        {"name": "base"},
        {"name": "step 100", "lora": "checkpoints/epoch=0-step=100_lora", "strength": 0.8}
      ],
      "training": "Taudio/x_prep"                records, to say how near each sample is to their songs
    }

Every song is rendered in every column (without any: by the base model), from the same noise. Relative paths start at
the folder of the plan, or where there is nothing, at the current one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import WrongInput
from ace_lora.files import UnusableFile, read_json, read_text
from ace_lora.preview.settings import FORMATS, WAYS, number_problems, setting_problems

if TYPE_CHECKING:
    from ace_lora.lora.file import LoraFile

MAX_SONGS, MAX_COLUMNS = 1000, 50  # the LoRAs of all columns are in memory at once
MAX_PLAN_BYTES = 20_000_000
_IN_NAMES = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class SongText:
    """What is sung: texts, or the ids of a training record, which count where they are given."""

    prompt: str = ""
    lyrics: str = ""
    language: str = ""  # of the lyrics; "": told from the text
    text_ids: tuple[int, ...] | None = None
    lyric_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PlannedSong:
    name: str
    text: SongText
    seconds: float
    seed: int


@dataclass(frozen=True)
class Column:
    """The base model where `lora` is None."""

    name: str
    lora: LoraFile | None = field(default=None, compare=False)
    strength: float = 1.0
    lora_scale: float | None = None


@dataclass(frozen=True)
class Plan:
    way: str
    settings: dict[str, Any]
    format: str
    songs: list[PlannedSong]
    columns: list[Column]
    training: Path | None  # folder of the training's records, to say how near the samples are to its songs


def record_text(path: Path) -> SongText:
    """The ids of a song of a training. Raises WrongInput when the record cannot be used."""
    from ace_lora.records.format import RecordError
    from ace_lora.records.record import read_record

    try:
        record = read_record(path, ssl=False)
    except (RecordError, OSError) as error:
        raise WrongInput(
            str(error)
            if isinstance(error, RecordError)
            else f"The record '{path}' cannot be read: {error.strerror or error}. Expected a file that "
            "preprocess_dataset_new.py wrote. Correct the name."
        ) from error
    return SongText(
        prompt=str(record.metadata.get("prompt") or ""),
        lyrics=str(record.metadata.get("lyrics") or ""),
        text_ids=tuple(record.text_token_ids.tolist()),
        lyric_ids=tuple(record.lyric_token_ids.tolist()),
    )


def file_name(name: str) -> str:
    """A song's or column's name as a part of a file name: letters and digits of any script, at most 80 bytes."""
    return _IN_NAMES.sub("_", name).encode()[:80].decode(errors="ignore").strip("._") or "song"


def read_plan(path: Path) -> Plan:
    """Raises WrongInput with every problem of the plan and of the files that it names."""
    try:
        content = read_json(path, MAX_PLAN_BYTES)
    except (OSError, UnusableFile) as error:
        raise WrongInput(
            f"The plan '{path}' cannot be read: {getattr(error, 'strerror', None) or error}. Expected a JSON file as "
            "`python -m ace_lora.preview.compare --help` describes it. Correct the name or the file."
        ) from error
    problems: list[str] = []
    content = _object(content, f"The plan '{path}'", _PLAN, problems)
    way = _choice(content, "as", WAYS, problems)
    kind = _choice(content, "format", FORMATS, problems)
    settings = _object(content.get("settings", {}), '"settings" of the plan', None, problems)
    problems += setting_problems(way, settings, prefix='"settings" of the plan: ')
    songs = [
        _song(entry, number, path.parent, way, problems)
        for number, entry in enumerate(_list(content, "songs", MAX_SONGS, problems), start=1)
    ]
    columns = [
        _column(entry, number, path.parent, way, problems)
        for number, entry in enumerate(_list(content, "columns", MAX_COLUMNS, problems, [{}]), start=1)
    ]
    training = None
    if "training" in content:
        training = _located(content["training"], path.parent)
        if not training.is_dir():
            problems.append(
                f"\"training\" of the plan is '{training}', where there is no folder. Expected the folder of the "
                "records that preprocess_dataset_new.py wrote. Correct the name."
            )
    for what, names in (("songs", [song.name for song in songs]), ("columns", [column.name for column in columns])):
        for name in sorted({name for name in names if names.count(name) > 1}):
            problems.append(f'Two {what} of the plan have the name "{name}". Expected a name each. Change one.')
    if problems:
        raise WrongInput(problems)
    return Plan(way, settings, kind, songs, columns, training)


_TEXT, _NUMBER, _PATH = "text", "number", "path"
_PLAN = {"as": _TEXT, "settings": None, "format": _TEXT, "songs": None, "columns": None, "training": _PATH}
_SONG = {
    "name": _TEXT,
    "prompt": _TEXT,
    "lyrics": _TEXT,
    "language": _TEXT,
    "record": _PATH,
    "prompt_file": _PATH,
    "lyrics_file": _PATH,
    "seconds": _NUMBER,
    "seed": _NUMBER,
}
_COLUMN = {"name": _TEXT, "lora": _PATH, "strength": _NUMBER, "lora_scale": _NUMBER}


def _object(value: Any, where: str, known: dict[str, Any] | None, problems: list[str]) -> dict[str, Any]:
    """The object, without what it may not hold."""
    if not isinstance(value, dict):
        problems.append(f"{where} is {_shown(value)}, expected an object in braces. Correct the plan.")
        return {}
    kept = {}
    for name, item in value.items():
        kind = None if known is None else known.get(name, "unknown")
        if kind == "unknown":
            problems.append(f'{where} has "{name}", expected only {", ".join(known or ())}. Remove it.')
        elif kind in (_TEXT, _PATH) and not isinstance(item, str):
            problems.append(f'{where}: "{name}" is {_shown(item)}, expected a text. Correct the plan.')
        elif kind == _PATH and "\0" in item:
            problems.append(f'{where}: "{name}" is {_shown(item)}, expected a path. Correct the plan.')
        elif kind == _NUMBER and (isinstance(item, bool) or not isinstance(item, (int, float))):
            problems.append(f'{where}: "{name}" is {_shown(item)}, expected a number. Correct the plan.')
        else:
            kept[name] = item
    return kept


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _choice(content: dict[str, Any], name: str, choices: tuple[str, ...], problems: list[str]) -> str:
    value = content.get(name, choices[0])
    if value not in choices:
        problems.append(f'"{name}" of the plan is {value!r}, expected one of {", ".join(choices)}. Change it.')
        return choices[0]
    return value


def _list(
    content: dict[str, Any], name: str, most: int, problems: list[str], otherwise: list[Any] | None = None
) -> list[Any]:
    entries = content.get(name, otherwise)
    if not isinstance(entries, list) or not 1 <= len(entries) <= most:
        found = f"has {len(entries)} entries" if isinstance(entries, list) else f"is {_shown(entries)}"
        problems.append(f'"{name}" of the plan {found}, expected a list of 1 to {most}. Correct the plan.')
        return []
    return entries


def _located(name: str, folder: Path) -> Path:
    path = Path(name)
    beside = folder / path
    return beside if beside.exists() or not path.exists() else path


def _song(entry: Any, number: int, folder: Path, way: str, problems: list[str]) -> PlannedSong:
    where = f"Song {number} of the plan"
    values = _object(entry, where, _SONG, problems)
    name = values.get("name") or f"song {number}"
    seconds, seed = values.get("seconds", 30.0), values.get("seed", 0)
    problems += number_problems(way, seconds, seed, 1.0, where=f"{where}: ")
    text = SongText()
    if "record" in values:
        others = sorted(values.keys() & {"prompt", "lyrics", "language", "prompt_file", "lyrics_file"})
        if others:
            problems.append(
                f'{where} has "record", which brings prompt and lyrics, and "{others[0]}". Expected one of them. '
                f'Remove "{others[0]}" or "record".'
            )
        try:
            text = record_text(_located(values["record"], folder))
        except WrongInput as error:
            problems += error.problems
        return PlannedSong(name, text, seconds, seed)
    texts = {}
    for kind in ("prompt", "lyrics"):
        texts[kind] = values.get(kind, "")
        if f"{kind}_file" in values:
            if kind in values:
                problems.append(f'{where} has both "{kind}" and "{kind}_file". Expected one of them. Remove the other.')
            file_path = _located(values[f"{kind}_file"], folder)
            try:
                texts[kind] = read_text(file_path)
            except (OSError, UnicodeDecodeError, UnusableFile) as error:
                problems.append(
                    f"{where}: '{file_path}' cannot be read: {getattr(error, 'strerror', None) or error}. "
                    "Expected a text file in UTF-8. Correct the name, or save the file again as UTF-8."
                )
    if not {"prompt", "prompt_file"} & values.keys():
        problems.append(f'{where} has no "prompt", "prompt_file" or "record". Expected one of them. Add it.')
    language = values.get("language", "")
    if language:
        from ace_lora.lyrics.tokenize import check_language

        try:
            check_language(language)
        except WrongInput as error:
            problems += [f"{where}: {problem}" for problem in error.problems]
    return PlannedSong(name, SongText(texts["prompt"], texts["lyrics"], language), seconds, seed)


def _column(entry: Any, number: int, folder: Path, way: str, problems: list[str]) -> Column:
    from ace_lora.preview.adapters import read_lora

    where = f"Column {number} of the plan"
    values = _object(entry, where, _COLUMN, problems)
    strength, scale = values.get("strength", 1.0), values.get("lora_scale")
    problems += number_problems(way, 1.0, 0, strength, where=f"{where}: ")
    lora = None
    if "lora" in values:
        try:
            lora = read_lora(_located(values["lora"], folder))
        except WrongInput as error:
            problems += [f"{where}: {problem}" for problem in error.problems]
    name = values.get("name") or ("base" if "lora" not in values else f"column {number}")
    return Column(name, lora, strength, scale)
