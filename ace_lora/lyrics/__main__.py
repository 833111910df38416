"""What the model will read of a song: tags and lyrics as tokens, and every warning that preprocessing gives.

    python -m ace_lora.lyrics read Taudio/xxx/song.mp3            for people
    python -m ace_lora.lyrics read Taudio/xxx/song.mp3 --json     for programs: one object on standard output

Nothing is written. Needs the lyric vocabulary, and for the tags the text encoder's tokenizer, of the base weights; what
of them is not there is said and not counted. A script that stands above the wings: nobody imports it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import WrongInput, run_script
from ace_lora.files import UnusableFile
from ace_lora.songs import AUDIO_EXTENSIONS, SongFiles, split_tags

if TYPE_CHECKING:
    from ace_lora.lyrics.reading import LyricReading


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ace_lora.lyrics",
        description="What the model will read of a song's prompt and lyrics, and every warning of step 5 on them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    read = commands.add_parser("read", help="show tags, tokens, languages, unknown characters and what is left out")
    read.add_argument("song", type=Path, metavar="SONG", help="an audio file, or one of the texts beside it")
    read.add_argument("--json", action="store_true", help="one JSON object instead of lines for people")
    read.add_argument("--checkpoint_dir", type=Path, help="folder of the base weights (default: as the other steps)")
    read.add_argument(
        "--lyric_language",
        default="",
        help="language code of the lyrics, for example zh; the song's own setting comes first (default: by the text)",
    )
    read.add_argument(
        "--edited",
        choices=("prompt", "lyrics"),
        help="read this text from standard input instead of its file, as an editor holds it",
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    song = find_song(args.song)
    edited = sys.stdin.buffer.read().decode("utf-8", errors="replace") if args.edited else ""
    prompt = edited if args.edited == "prompt" else text_of(song.prompt)
    lyrics = edited if args.edited == "lyrics" else text_of(song.lyrics)
    said = {
        "song": song.audio.name,
        "prompt": read_prompt(prompt, args.checkpoint_dir),
        "lyrics": read_song_lyrics(song, lyrics, args.lyric_language, args.checkpoint_dir),
    }
    print(json.dumps(said, ensure_ascii=False, indent=2)) if args.json else show(said)


def find_song(path: Path) -> SongFiles:
    """The song of an audio file or of a text beside one. Raises WrongInput where there is none."""
    stem = re.sub(r"_(?:lyrics|prompt)$", "", path.stem)
    candidates = [path, *(path.with_name(stem + extension) for extension in AUDIO_EXTENSIONS)]
    found = next((file for file in candidates if file.suffix.lower() in AUDIO_EXTENSIONS and file.is_file()), None)
    if found is None:
        raise WrongInput(
            f"There is no song '{path}'. Expected an audio file ({' '.join(AUDIO_EXTENSIONS)}), or a text with one "
            "beside it. Give its path as it is on the disk."
        )
    return SongFiles(found)


def text_of(path: Path) -> str:
    """The text of a prompt or lyrics file, as step 4 reads it; "" where there is none."""
    from ace_lora.lyrics.encoding import UnknownEncoding, read_any_text

    try:
        return read_any_text(path)[0] if path.exists() else ""
    except (UnknownEncoding, UnusableFile) as error:
        raise WrongInput(f"{error} Write the text anew, or move the file away.") from error


def read_prompt(prompt: str, checkpoint_dir: Path | None) -> dict[str, Any]:
    from ace_lora.base_weights.find import find_base_weights
    from ace_lora.preprocessing.texts import prompt_warnings
    from ace_lora.v1.text_encoder import load_text_tokenizer, tokenize_prompt

    tags = split_tags(prompt)
    warnings = [] if tags else ["the prompt is empty; write tags into it"]
    said: dict[str, Any] = {"tags": tags, "tokens": None, "limit": PROMPT_TOKENS, "warnings": warnings}
    folder = find_base_weights(checkpoint_dir, ["text_encoder"]).get("text_encoder")
    if folder is None:
        said["not_counted"] = "the text encoder is not among the base weights here, so its tokens are not counted"
    else:
        tokenizer = load_text_tokenizer(folder)
        as_used = ", ".join(tags)
        said["tokens"] = len(tokenize_prompt(tokenizer, as_used))
        warnings += prompt_warnings(tokenizer, as_used)
    return said


PROMPT_TOKENS = 256


def read_song_lyrics(song: SongFiles, lyrics: str, language: str, checkpoint_dir: Path | None) -> dict[str, Any]:
    from ace_lora.audio.decode import MAX_SECONDS, AudioError, audio_seconds
    from ace_lora.base_weights.find import find_base_weights
    from ace_lora.lyrics.packages import MissingLyricSupport, version_warnings
    from ace_lora.lyrics.reading import read_lyrics, song_language
    from ace_lora.lyrics.tokenize import LyricTokenizer
    from ace_lora.lyrics.vocabulary import load_vocabulary
    from ace_lora.preprocessing.texts import embedding_rows

    own = song_language(song.about_lyrics)
    weights = find_base_weights(checkpoint_dir, ["lyric_vocabulary", "transformer"])
    if "lyric_vocabulary" not in weights:
        raise WrongInput(
            "The lyric vocabulary is not among the base weights here, so it cannot be told what the model reads. "
            "Expected it in --checkpoint_dir or the download cache. Run: python -m ace_lora.base_weights --parts "
            "lyric_vocabulary"
        )
    try:
        seconds: float | None = audio_seconds(song.audio)
    except AudioError:
        seconds = None  # step 1 and step 4 say what is wrong with it
    try:
        tokenizer = LyricTokenizer(
            load_vocabulary(weights["lyric_vocabulary"], embedding_rows(weights.get("transformer")))
        )
        read = read_lyrics(
            tokenizer,
            lyrics,
            text_of(song.timed_lyrics),
            language=own or language,
            song=song.audio.name,
            cropped_at=float(MAX_SECONDS) if seconds is not None and seconds > MAX_SECONDS else None,
        )
    except MissingLyricSupport as error:
        raise WrongInput(str(error)) from error
    warnings = [*version_warnings(), *read.warnings, *read.cropping_warnings]
    if not lyrics:
        warnings.append("the lyrics are empty; write [instrumental] if there is no voice")
    return {
        "language": read.tokens.main_language,
        "chosen_language": own or language or None,
        "tokens": min(read.tokens.ids_before_cut, MAX_LYRIC_TOKENS),
        "tokens_before_cut": read.tokens.ids_before_cut,
        "limit": MAX_LYRIC_TOKENS,
        "lines": lines_of(read),
        "cropped": read.cropped,
        "mended": mended_or_none(lyrics, read),
        "warnings": warnings,
    }


MAX_LYRIC_TOKENS = 4096


def lines_of(read: LyricReading) -> list[dict[str, Any]]:
    from ace_lora.lyrics.text import STRUCTURE_TAGS, heading_of, is_heading

    return [
        {
            "text": line.text,
            "language": line.language,
            "tokens": line.tokens,
            "unknown": line.unknown,
            "misread": line.misread,
            "cut": line.cut,
            "heading": is_heading(line.text),
            "mended": heading.tag
            if line.text.lower() not in (*STRUCTURE_TAGS, "[instrumental]") and (heading := heading_of(line.text))
            else None,
        }
        for line in read.tokens.lines
    ]


def mended_or_none(lyrics: str, read: LyricReading) -> str | None:
    """The lyrics as they would be mended; None where there is nothing to mend."""
    from ace_lora.lyrics.reading import mended

    better = mended(lyrics, [line.unknown for line in read.tokens.lines])
    return better if better != lyrics else None


def show(said: dict[str, Any]) -> None:
    prompt, lyrics = said["prompt"], said["lyrics"]
    print(f"{said['song']}")
    counted = (
        f"{prompt['tokens']} of {prompt['limit']} tokens" if prompt["tokens"] is not None else prompt["not_counted"]
    )
    print(f"\nTags ({counted}):\n  {', '.join(prompt['tags']) or '(none)'}")
    chosen = ", as it was set" if lyrics["chosen_language"] else ""
    print(
        f"\nLyrics ({lyrics['tokens']} of {lyrics['limit']} tokens, language {lyrics['language'] or 'none'}{chosen}):"
    )
    for line in lyrics["lines"]:
        marks = [f"unknown: {line['unknown']}"] if line["unknown"] else []
        marks += ["characters become ?"] if line["misread"] else []
        marks += [f"write {line['mended']}"] if line["mended"] else []
        marks += ["left out, too long"] if line["cut"] else []
        print(
            f"  {line['language'] or '-':>2} {line['tokens']:>4}  {line['text']}"
            + (f"   <- {'; '.join(marks)}" if marks else "")
        )
    for line in lyrics["cropped"]:
        print(f"   left out, behind the end of the cropped audio: {line}")
    for warning in (*prompt["warnings"], *lyrics["warnings"]):
        print(f"warning: {warning}")


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
