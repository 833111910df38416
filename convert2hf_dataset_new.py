"""Step 4: list the songs of a folder with their tags and lyrics in a Hugging Face dataset.

Reads   DATA_DIR/<song>.mp3 (.flac .m4a .ogg .wav …), <song>_prompt.txt, <song>_lyrics.txt; no subfolders
Writes  OUTPUT_NAME/, a `datasets` folder with one row per song: keys, filename, tags, speaker_emb_path, norm_lyrics,
        recaption. Audio is not copied: `filename` points to it.

    python convert2hf_dataset_new.py --data_dir Taudio/xxx --output_name Taudio/xxx_filenames

A song without a lyrics file becomes "[instrumental]", one without a prompt file gets --default_tag. Audio that cannot
be opened, texts in no known encoding and songs that would share one name stop the step before anything is written;
files that end too early, empty prompts and missing lyrics are reported song by song, music that is not read by name.
"""

from __future__ import annotations

import argparse
import codecs
import glob
import json
import os
from pathlib import Path
from typing import Any

from ace_lora.commands import WrongInput, run_script
from ace_lora.files import TEMPORARY, UnusableFile, remove_own, replace_atomically
from ace_lora.songs import (
    AUDIO_EXTENSIONS,
    INSTRUMENTAL,
    SongFiles,
    overlooked_music,
    scan_songs,
    songs_with_equal_stem,
    split_tags,
)

COLUMNS = ("keys", "filename", "tags", "speaker_emb_path", "norm_lyrics", "recaption")
DATASET_METADATA = ("dataset_info.json", "state.json")
# `datasets` keeps the results of map() beside the data as cache-….arrow.
DATASET_FILES = (*DATASET_METADATA, "*.arrow")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder that holds the songs with their prompts and lyrics")
    parser.add_argument(
        "--output_name",
        required=True,
        help="dataset folder to write; a dataset that this step wrote before is replaced, anything else is not touched",
    )
    parser.add_argument(
        "--default_tag",
        default="",
        help="prompt of songs that have no _prompt.txt, tags separated by commas (default: empty)",
    )
    parser.add_argument(
        "--text_encoding",
        default=None,
        help="encoding of prompts and lyrics that are not Unicode, for example gb18030 or cp1252 (default: it is "
        "guessed, and said)",
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    output = Path(args.output_name)
    songs = find_songs(args.data_dir)
    print(f"{len(songs)} songs in '{args.data_dir}'")
    for sentence in overlooked_music(Path(args.data_dir)):
        print(f"warning: {sentence}")
    problems = [*output_problems(output), *encoding_problems(args.text_encoding)]
    problems += equal_stem_problems(songs)
    rows = []
    for number, song in enumerate(songs, 1):
        remarks, found = [], []
        try:
            remarks.append(look_at_audio(song))
        except WrongInput as error:
            found += error.problems
        try:
            encoding = None if encoding_problems(args.text_encoding) else args.text_encoding
            row, about_texts = song_row(song, args.data_dir, args.default_tag, encoding)
            rows.append(row)
            remarks += about_texts
        except WrongInput as error:
            found += error.problems
        problems += found
        print(f"song {number}/{len(songs)} | {song.audio.name} | {'failed: see below' if found else 'done'}")
        for remark in filter(None, remarks):
            print(f"warning: {song.audio.name}: {remark}")
    if problems:
        raise WrongInput(problems)

    write_dataset(rows, output)
    print(f"done {len(rows)}, skipped 0, failed 0")
    print(f"Written to '{args.output_name}'. Next: preprocess_dataset_new.py --input_name {args.output_name}")


def find_songs(data_dir: str) -> list[SongFiles]:
    """The songs of a folder. Raises WrongInput when there is no folder or no song in it."""
    folder = Path(data_dir)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise WrongInput(f"--data_dir '{data_dir}' {what}. Expected a folder of songs. Choose the folder of step 1.")
    songs = scan_songs(folder)
    if not songs:
        raise WrongInput(
            [
                f"No audio in '{data_dir}'. Looked for {' '.join(AUDIO_EXTENSIONS)}, not in subfolders. "
                "Choose the folder that holds the songs.",
                *overlooked_music(folder),
            ]
        )
    return songs


def encoding_problems(encoding: str | None) -> list[str]:
    try:
        codecs.lookup(encoding or "utf-8")
    except (LookupError, ValueError):
        return [
            f"--text_encoding '{encoding}' is not known. Expected the name of an encoding, for example gb18030, big5, "
            "shift_jis, euc-kr or cp1252. Leave it out where the texts are UTF-8."
        ]
    return []


def equal_stem_problems(songs: list[SongFiles]) -> list[str]:
    return [
        f"{' and '.join(repr(song.audio.name) for song in group)} have the same name '{stem}', so they would share one "
        "prompt, one lyrics file and one record. Expected one audio file per name. Rename or move all but one."
        for stem, group in songs_with_equal_stem(songs).items()
    ]


def look_at_audio(song: SongFiles) -> str:
    """A sentence on a file that holds not what its header states, or ""; decoding is left to the next step.

    Raises WrongInput where there is nothing to decode.
    """
    from ace_lora.audio.decode import AudioError, measure_length

    try:
        return measure_length(song.audio)[1]
    except AudioError as error:
        raise WrongInput(str(error)) from error


def text_of_song(path: Path, encoding: str | None, remarks: list[str]) -> str:
    """The stripped text of a prompt or lyrics file; `remarks` takes a sentence where its encoding was guessed.

    Raises WrongInput where it cannot be read.
    """
    from ace_lora.lyrics.encoding import UnknownEncoding, is_guess, read_any_text

    try:
        text, found = read_any_text(path, encoding)
        if encoding is None and is_guess(found):
            remarks.append(
                f"{path.name} is not Unicode; read as {found}, which is a guess, it says '{text[:40]}'. If that is "
                "wrong, save it as UTF-8, or name its encoding with --text_encoding"
            )
        return text
    except UnknownEncoding as error:
        raise WrongInput(f"'{path}': {error}") from error
    except UnusableFile as error:
        what = str(error).removeprefix(f"'{path}' ")
        raise WrongInput(f"'{path}' cannot be read: it {what} Move it away, or put the text there.") from error
    except OSError as error:
        raise WrongInput(
            f"'{path}' cannot be read: {error.strerror}. Expected a text file. "
            "Check its permissions and whether another program holds it open."
        ) from error


def song_row(
    song: SongFiles, data_dir: str, default_tag: str, encoding: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The dataset row of a song, and remarks on what it lacks.

    An existing but empty prompt file wins over the default tag, an existing but empty lyrics file over [instrumental].
    Raises WrongInput for texts that cannot be read.
    """
    remarks: list[str] = []
    if song.prompt.exists():
        prompt = text_of_song(song.prompt, encoding, remarks)
        if not split_tags(prompt):
            remarks.append(f"the prompt is empty ({song.prompt.name} holds no tag); write tags into it")
    else:
        prompt = default_tag.strip()
        if not split_tags(prompt):
            remarks.append(f"the prompt is empty ({song.prompt.name} is missing and there is no --default_tag)")
    if song.lyrics.exists():
        lyrics = text_of_song(song.lyrics, encoding, remarks)
        if not lyrics:
            remarks.append(
                f"the lyrics are empty ({song.lyrics.name} holds no text); write {INSTRUMENTAL} if it is one"
            )
    else:
        lyrics = INSTRUMENTAL
        timed = f"; {song.timed_lyrics.name} alone is not used" if song.timed_lyrics.exists() else ""
        remarks.append(f"{song.lyrics.name} is missing, taken as {INSTRUMENTAL}{timed}")
    row = {
        "keys": song.stem,
        # The folder as it was given: the earlier scripts join it like this, and their users move folders together.
        "filename": os.path.join(data_dir, song.audio.name),  # noqa: PTH118
        # The list of an empty prompt holds one empty tag, as in the datasets of the earlier scripts.
        "tags": split_tags(prompt) or [""],
        "speaker_emb_path": "",
        "norm_lyrics": lyrics,
        "recaption": {},
    }
    return row, remarks


# --- The dataset folder ---


def output_problems(output: Path) -> list[str]:
    """Why nothing can be written to `output`; a dataset of this step may be replaced, nothing else."""
    if not output.exists() and not output.is_symlink():
        return []
    if is_file_name_dataset(output) or (output.is_dir() and not any(output.iterdir())):
        return []
    what = "a folder with other files" if output.is_dir() else "a file"
    return [
        f"--output_name '{output}' is {what}. Expected a new name, or a dataset that this step wrote before and that "
        "would be replaced. Choose another name; nothing of yours is overwritten."
    ]


def is_file_name_dataset(folder: Path) -> bool:
    """Whether a folder holds a dataset with our columns (ours or of the earlier scripts) and nothing else."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    names = {path.name for path in folder.iterdir()}
    if not set(DATASET_METADATA) <= names or not all(name.endswith(".arrow") for name in names - set(DATASET_METADATA)):
        return False
    try:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        return set(info["features"]) == set(COLUMNS)
    except (ValueError, KeyError, TypeError):
        return False


def write_dataset(rows: list[dict[str, Any]], output: Path) -> None:
    """Save the rows as a `datasets` folder, whole or not at all; a dataset that stands at `output` is replaced."""
    import datasets

    text = datasets.Value("string")
    features = datasets.Features(
        {
            "keys": text,
            "filename": text,
            "tags": [text],
            "speaker_emb_path": text,
            "norm_lyrics": text,
            "recaption": {},  # an empty struct: the place of captions that other tools add
        }
    )
    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_list(rows, features=features)
    output.parent.mkdir(parents=True, exist_ok=True)
    for left_behind in output.parent.glob(f"{TEMPORARY}{glob.escape(output.name)}-*"):  # by a run that was killed
        remove_own(left_behind, (*DATASET_FILES, output.name), "left behind by a run that was interrupted")
    with replace_atomically(output, own=DATASET_FILES) as temporary:
        dataset.save_to_disk(temporary)


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
