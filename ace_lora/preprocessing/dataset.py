"""The dataset of step 4 as preprocessing sees it: songs with their prompt, lyrics and the times of the lyrics.

The folder is written by convert2hf_dataset_new.py, or by the script of that name that other ACE-Step trainers bring.
"""

from __future__ import annotations

import random
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ace_lora.commands import WrongInput
from ace_lora.files import MAX_TEXT_BYTES, UnusableFile, read_json
from ace_lora.lyrics.encoding import UnknownEncoding, read_any_text
from ace_lora.lyrics.reading import song_language
from ace_lora.songs import SongFiles, split_tags

MOST_SONGS = 100_000
MAX_DATASET_BYTES = 2**30


@dataclass(frozen=True)
class DatasetSong:
    """A row of the dataset, with the timed lyrics that lie beside the audio."""

    keys: str
    audio: Path
    prompt: str
    lyrics: str
    timed_lyrics: str  # "" where there are none
    remarks: tuple[str, ...] = ()
    lyric_language: str = ""  # as the song's own setting says; "" where it has none


def read_dataset(name: str) -> list[DatasetSong]:
    """The songs of a dataset folder, in its order. Raises WrongInput with everything that is wrong with it."""
    folder = Path(name)
    next_step = "Run convert2hf_dataset_new.py (step 4) to create it."
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise WrongInput(f"--input_name '{name}' {what}. Expected a dataset folder. {next_step}")
    if problem := _folder_problem(folder):
        raise WrongInput(f"--input_name '{name}' cannot be read as a dataset ({problem}). {next_step}")
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder))
        missing = {"keys", "filename", "tags", "norm_lyrics"} - set(dataset.column_names)
        rows = [] if missing or len(dataset) > MOST_SONGS else list(dataset)
        if len(dataset) > MOST_SONGS:
            raise ValueError(f"{len(dataset)} rows; at most {MOST_SONGS} songs are possible")
    except Exception as error:  # whatever pyarrow and datasets make of a folder that is not theirs
        raise WrongInput(
            f"--input_name '{name}' cannot be read as a dataset ({error}). Expected the folder of step 4. {next_step}"
        ) from error
    if missing:
        raise WrongInput(f"--input_name '{name}' has no column {', '.join(sorted(missing))}. {next_step}")
    if not rows:
        raise WrongInput(f"--input_name '{name}' holds no song. Expected one row per song. {next_step}")
    problems = []
    by_name: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 1):
        wrong = _wrong_cell(row)
        if wrong:
            problems.append(f"Row {number} of the dataset '{name}' cannot be used: {wrong}. {next_step}")
        else:
            by_name.setdefault(row["keys"].casefold(), []).append(row["filename"])
    problems += [
        f"{' and '.join(map(repr, files))} would share one record. Expected one audio file per name. "
        "Rename or move all but one and run convert2hf_dataset_new.py again."
        for files in by_name.values()
        if len(files) > 1
    ]
    if problems:
        raise WrongInput(problems)
    songs = []
    for row in rows:
        try:
            songs.append(dataset_song(row, folder))
        except WrongInput as error:
            problems += error.problems
    if problems:
        raise WrongInput(problems)
    return songs


def _folder_problem(folder: Path) -> str | None:
    """Why `datasets` should not open a folder: pipes, huge files and paths that lead elsewhere it would follow."""
    try:
        read_json(folder / "dataset_info.json")
        state = read_json(folder / "state.json")
        names = [entry["filename"] for entry in state["_data_files"]]
        if not all(isinstance(name, str) and name == Path(name).name and "\\" not in name for name in names):
            return "its state.json names files elsewhere"
        for name in names:
            status = (folder / name).stat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_DATASET_BYTES:
                return f"its {name} is no file of a dataset's size"
    except (OSError, KeyError, TypeError, ValueError) as error:
        return str(error) if isinstance(error, OSError | UnusableFile) else "its state.json is damaged"
    return None


def _wrong_cell(row: dict[str, Any]) -> str | None:
    if not all(isinstance(row[column], str) for column in ("keys", "filename", "norm_lyrics")):
        return "keys, filename and norm_lyrics have to be texts"
    if not isinstance(row["tags"], list) or not all(isinstance(tag, str) for tag in row["tags"]):
        return "tags has to be a list of texts"
    texts = [row["keys"], row["filename"], row["norm_lyrics"], *row["tags"]]
    if sum(map(len, texts)) > MAX_TEXT_BYTES:
        return f"its texts are longer than {MAX_TEXT_BYTES:,} letters"
    if any(character < " " for text in (row["keys"], row["filename"]) for character in text):
        return "keys and filename hold control characters"
    keys = row["keys"]
    if len(keys.encode("utf-8", "replace")) > 240:
        return f"keys is '{keys[:40]}…', which is too long for the name of a record file"
    if not keys or keys.startswith(".") or keys != Path(keys).name or "\\" in keys:
        return f"keys is '{keys}', which cannot be the name of a record file"
    return None


def dataset_song(row: dict[str, Any], dataset: Path) -> DatasetSong:
    """One row of the folder `dataset` with what lies beside its audio file.

    Remarks name texts that changed since the dataset was created. Raises WrongInput for a setting of the song that
    cannot be used.
    """
    # Other scripts leave the byte-order mark of a text file in.
    tags = split_tags(",".join(row["tags"]).removeprefix("\ufeff"))
    lyrics = row["norm_lyrics"].removeprefix("\ufeff")
    files = SongFiles(find_audio(Path(row["filename"]), dataset))
    remarks = []
    for path, recorded in ((files.prompt, tags), (files.lyrics, lyrics)):
        text = _text_beside(path)
        if text is not None and (split_tags(text) if path == files.prompt else text) != recorded:
            remarks.append(f"{path.name} is not what the dataset holds; run convert2hf_dataset_new.py again to use it")
    timed = _text_beside(files.timed_lyrics)
    if timed is None and files.timed_lyrics.exists():
        remarks.append(f"{files.timed_lyrics.name} cannot be read as text; the lyrics are used without times")
    return DatasetSong(
        keys=row["keys"],
        audio=files.audio,
        prompt=choose_prompt(row["keys"], tags, row.get("recaption")),
        lyrics=lyrics,
        timed_lyrics=timed or "",
        remarks=tuple(remarks),
        lyric_language=song_language(files.about_lyrics) or "",
    )


def find_audio(recorded: Path, dataset: Path) -> Path:
    """The audio file of a row: as recorded, relative to the current folder, or else to a folder above the dataset.

    Step 4 records `Taudio/xxx/song.mp3` when it is run beside `Taudio`. The same dataset can then be used from
    anywhere, and after the folder that holds both has been moved.
    """
    if recorded.is_absolute() or recorded.exists():
        return recorded
    places = (parent / recorded for parent in dataset.resolve().parents)
    return next((place for place in places if place.exists()), recorded)


def _text_beside(path: Path) -> str | None:
    try:
        return read_any_text(path)[0] if path.exists() else None
    except (OSError, ValueError, UnknownEncoding):  # no text, or no file that could be one
        return None


def choose_prompt(keys: str, tags: list[str], recaption: dict[str, Any] | None) -> str:
    """The tags as one text; where other tools added captions, one of these texts, drawn by the song's name."""
    found = recaption.items() if isinstance(recaption, dict) else ()
    captions = [text for _, text in sorted(found) if isinstance(text, str) and 0 < len(text) <= MAX_TEXT_BYTES]
    return random.Random(zlib.crc32(keys.encode("utf-8"))).choice([", ".join(tags), *captions])
