"""Write `<song>_prompt.txt` (tags) and, with --lyrics, `<song>_lyrics.txt` for every song of a folder.

Reads the audio files of --data_dir, and for lyrics also a file beside the song (.lrc, .srt, .txt …) and the tags
embedded in it. Of lyrics that somebody wrote, only what is sung goes into `<song>_lyrics.txt`; `<song>_lyrics.json`
keeps the other lines, each with the reason. `[instrumental]` is written when a file says so, a model that listened, or
the user with --assume_instrumental; a song of which nobody knows waits for a decision. An existing file stays as it is
unless --overwrite is given, and then its old text is set aside in `.removed/`.

    python generate_prompts_lyrics.py --data_dir Taudio/xxx
    python generate_prompts_lyrics.py --data_dir Taudio/xxx --lyrics
    python generate_prompts_lyrics.py --data_dir Taudio/xxx --lyrics --backend analysis     (no model, any CPU)

Sections: 1 command line, 2 what there is to do, 3 one song, 4 captioners, 5 files, 6 main.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.audio.analysis import TooLittleSound, bpm_choices, bpm_tag, measure, measure_bpm, signal_tags
from ace_lora.captions.acestep import answer_style
from ace_lora.captions.ask import SongFailed, caption_waveform
from ace_lora.captions.llamacpp import LlamaServer
from ace_lora.captions.qwen import QwenCaptioner
from ace_lora.commands import StepFailed, WrongInput, run_script
from ace_lora.files import UnusableFile, read_json, set_aside, write_text
from ace_lora.lyrics.cleaners import SUPPORTED_LANGUAGES
from ace_lora.lyrics.encoding import UnknownEncoding
from ace_lora.lyrics.formats import read_entries
from ace_lora.lyrics.online import ADDRESSES, LookupFailed, Proposal, look_up
from ace_lora.lyrics.packages import MissingLyricSupport
from ace_lora.lyrics.sorting import counted_kinds
from ace_lora.lyrics.sources import (
    FoundLyrics,
    UnreadableTags,
    caption_beside,
    embedded_lyrics,
    found_lyrics,
    lyrics_beside,
    song_names,
    warn_of_other_version,
)
from ace_lora.lyrics.text import mark_structure
from ace_lora.lyrics.timed import attach_times, format_timed
from ace_lora.songs import AUDIO_EXTENSIONS, INSTRUMENTAL, SongFiles, scan_songs, songs_with_equal_stem

if TYPE_CHECKING:
    from ace_lora.audio.decode import Waveform
    from ace_lora.captions.ask import Captioner
    from ace_lora.captions.caption import Caption

    LoadCaptioner = Callable[[], Captioner | None]

DEFAULT_MODEL = "Qwen/Qwen2.5-Omni-7B"
LYRIC_SOURCES = ("file", "embedded", "model")
# Reading stops there only so that a file with a damaged header cannot fill the memory.
LONGEST_SONG_SECONDS = 3 * 3600
LONGEST_TIMEOUT = 24 * 3600  # seconds
# llama-server takes 32 bits and stands for "any" with the last; attempts add a little to it.
LARGEST_SEED = 2**32 - 100


# --- 1. Command line ---


def parse_args(argv: list[str] | None = None, *, backend: str = "auto") -> argparse.Namespace:
    """The command line; `backend` is the default of --backend."""
    parser = argparse.ArgumentParser(description="Write prompts (tags) and lyrics for the songs of a folder.")
    songs = parser.add_argument_group("songs")
    songs.add_argument("--data_dir", type=Path, required=True, help="folder with the songs; the texts go beside them")
    songs.add_argument(
        "--only", nargs="+", metavar="SONG", help="do only these songs (file names, with or without extension)"
    )
    songs.add_argument("--lyrics", action="store_true", help="write lyrics as well as the prompts that are missing")
    songs.add_argument(
        "--overwrite", action="store_true", help="write texts that exist again; the old ones are kept in .removed"
    )

    captions = parser.add_argument_group("captions")
    captions.add_argument(
        "--backend",
        choices=("auto", "qwen", "llamacpp", "analysis"),
        default="auto",
        help="qwen: a Qwen2.5-Omni model on this computer; llamacpp: a running llama-server; analysis: tags measured "
        f"from the signal, no model; auto: qwen with a CUDA card, else analysis (default: {backend})",
    )
    captions.add_argument(
        "--bpm",
        action="store_true",
        help="write the measured tempo as a tag, such as '120 bpm'; without it the tempo is only proposed in the log, "
        "because half or double of it may be right",
    )
    captions.add_argument("--language", help="language of the lyrics, such as en or zh (default: the model finds out)")
    captions.add_argument("--seed", type=int, default=0, help="for the sampling of the model (default: %(default)s)")

    lyrics = parser.add_argument_group("lyrics")
    lyrics.add_argument(
        "--lyric_sources",
        default=",".join(LYRIC_SOURCES),
        help="where lyrics may come from, first match wins: file (.lrc, .srt, .txt … beside it), embedded (tags of "
        "the audio file), model; leave out what is not wanted (default: %(default)s)",
    )
    lyrics.add_argument(
        "--structure",
        choices=("on", "off"),
        default="on",
        help="on: lyrics without structure tags get [chorus] before repeated lines and [verse] before the others; "
        "off: leave them (default: %(default)s)",
    )
    lyrics.add_argument(
        "--assume_instrumental",
        action="store_true",
        help="write [instrumental] for songs of which nobody says whether they are sung; without it they wait",
    )
    lyrics.add_argument(
        "--lyric_encoding",
        metavar="NAME",
        help="encoding of lyrics files that are not Unicode, such as gbk or big5 (default: guessed, and asked)",
    )
    lyrics.add_argument(
        "--lyrics_source",
        choices=tuple(ADDRESSES),
        help="ask this service on the internet for lyrics that are neither in a file nor embedded: title, artist, "
        "album and length are sent. What it finds is shown; --accept_found uses it in a next run (default: ask none)",
    )
    lyrics.add_argument(
        "--accept_found",
        action="store_true",
        help="with --lyrics_source: use the lyrics that an earlier run found and showed",
    )
    lyrics.add_argument(
        "--lyrics_address", metavar="URL", default="", help="another address of that service, such as a mirror"
    )

    qwen = parser.add_argument_group("qwen backend")
    qwen.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="name or folder of a Qwen2.5-Omni checkpoint (default: %(default)s)",
    )
    qwen.add_argument(
        "--quantization",
        choices=("auto", "nf4", "int8", "none"),
        default="auto",
        help="auto: the checkpoint's own, else none where the model fits and nf4 elsewhere (default: %(default)s)",
    )
    qwen.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu (default: %(default)s)")

    server = parser.add_argument_group("llamacpp backend")
    server.add_argument("--host", default="127.0.0.1", help="where llama-server listens (default: %(default)s)")
    server.add_argument("--port", type=int, default=8080, help="(default: %(default)s)")
    server.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        help="seconds for one answer of the server (default: %(default)s)",
    )
    parser.set_defaults(backend=backend)
    return parser.parse_args(argv)


# --- 2. What there is to do ---


@dataclass(frozen=True)
class Task:
    """One song and the texts of it that are wanted."""

    song: SongFiles
    prompt: bool
    lyrics: bool


def wanted(song: SongFiles, args: argparse.Namespace) -> Task:
    """What is to be written for a song, as its folder is now."""
    return Task(
        song,
        prompt=args.overwrite or not song.prompt.exists(),
        lyrics=args.lyrics and (args.overwrite or not song.lyrics.exists()),
    )


def plan(args: argparse.Namespace) -> list[Task]:
    """One task per song, in the order of the folder. Raises WrongInput with all problems."""
    problems = []
    songs: list[SongFiles] = []
    if not args.data_dir.is_dir():
        problems.append(f"'{args.data_dir}' is not a folder. Give the folder that holds the songs with --data_dir.")
    else:
        songs = scan_songs(args.data_dir)
        if not songs:
            problems.append(
                f"No audio in '{args.data_dir}'. Looked for {' '.join(AUDIO_EXTENSIONS)}. "
                "Choose the folder that holds the songs with --data_dir."
            )
        elif args.only:
            songs, unknown = _only(songs, args.only)
            if unknown:
                problems.append(
                    f"--only names {', '.join(repr(name) for name in unknown)}, not a song in '{args.data_dir}'. "
                    "Give file names as they stand in the folder."
                )
    for stem, group in songs_with_equal_stem(songs).items():
        names = ", ".join(f"'{song.audio.name}'" for song in group)
        problems.append(
            f"{names} would share '{stem}_prompt.txt'. Every song needs a name of its own: rename or remove one."
        )
    tasks = [wanted(song, args) for song in songs]
    if any(task.prompt or task.lyrics for task in tasks):
        problems += _folder_problems(args.data_dir)
    unknown = sorted(set(lyric_sources(args)) - set(LYRIC_SOURCES))
    if unknown or not lyric_sources(args):
        problems.append(
            f"--lyric_sources holds {', '.join(repr(name) for name in unknown) or 'none'}; "
            f"known are {', '.join(LYRIC_SOURCES)}. Give some of them, separated by commas."
        )
    if args.language is not None:
        problems += _language_problems(args.language)
    problems += _lyrics_problems(args)
    if not 0 <= args.seed <= LARGEST_SEED:
        problems.append(f"--seed {args.seed} is no seed. Give a whole number from 0 to {LARGEST_SEED}.")
    problems += _server_problems(args)
    if args.backend in ("auto", "qwen"):
        problems += _model_problems(args)
    if problems:
        raise WrongInput(problems)
    return tasks


def _only(songs: list[SongFiles], names: list[str]) -> tuple[list[SongFiles], list[str]]:
    chosen: set[SongFiles] = set()
    unknown = []
    for name in names:
        wanted = Path(name).name.casefold()
        found = [song for song in songs if wanted in (song.audio.name.casefold(), song.stem.casefold())]
        chosen.update(found)
        if not found:
            unknown.append(name)
    return [song for song in songs if song in chosen], unknown


def lyric_sources(args: argparse.Namespace) -> list[str]:
    """The sources of --lyric_sources, in their fixed order where known."""
    return [name.strip() for name in args.lyric_sources.split(",") if name.strip()]


def _folder_problems(folder: Path) -> list[str]:
    """Found out before a model listens for minutes and its texts have no place to go."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return []
    except OSError as error:
        return [
            f"Nothing can be written in '{folder}' ({error.strerror}), and the texts go beside the songs. "
            "Allow it, or copy the songs into a folder of yours."
        ]


def _server_problems(args: argparse.Namespace) -> list[str]:
    problems = []
    try:
        named = bool(args.host.encode("idna")) and not set(args.host) & set("/ \t\n")
    except UnicodeError:
        named = False
    if not named:
        problems.append(
            f"--host '{args.host}' is no host name. Give the name or address alone, such as 127.0.0.1, "
            "and the port with --port."
        )
    if not 1 <= args.port <= 65535:
        problems.append(f"--port {args.port} is no port. Give the port that llama-server listens on, 1 to 65535.")
    if not 0 < args.timeout <= LONGEST_TIMEOUT:
        problems.append(
            f"--timeout {args.timeout} must be more than 0 and at most {LONGEST_TIMEOUT} seconds. Leave it out for 600."
        )
    return problems


def _language_problems(language: str) -> list[str]:
    if language in SUPPORTED_LANGUAGES:
        return []
    return [
        f"--language '{language}' is not one that ACE-Step's lyrics know. "
        f"Give one of {' '.join(SUPPORTED_LANGUAGES)}, or leave it out and the model finds out."
    ]


def _lyrics_problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if args.lyric_encoding is not None:
        try:
            "".encode(args.lyric_encoding)
        except (LookupError, ValueError):
            problems.append(
                f"--lyric_encoding '{args.lyric_encoding}' is no encoding that Python knows. "
                "Give a name such as gbk, big5, shift_jis, euc-kr, cp1251 or cp1252."
            )
    if args.lyrics_source is None and (args.accept_found or args.lyrics_address):
        flag = "--accept_found" if args.accept_found else "--lyrics_address"
        problems.append(f"{flag} is about lyrics of a service. Name it with --lyrics_source {'|'.join(ADDRESSES)}.")
    if args.lyrics_address and not re.match(r"https?://[^/\s]+", args.lyrics_address):
        problems.append(
            f"--lyrics_address '{args.lyrics_address}' is no address of the web. Give one such as https://example.org."
        )
    return problems


def _model_problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if _is_path(args.model) and not (Path(args.model).expanduser() / "config.json").is_file():
        problems.append(
            f"--model '{args.model}' is no folder with a config.json. Give the folder of a downloaded checkpoint, "
            f"or a name such as {DEFAULT_MODEL}."
        )
    if answer_style(args.model) == "transcriber" and not args.lyrics:
        problems.append(
            f"--model '{args.model}' writes lyrics and no tags. Add --lyrics, or choose another model for the prompts."
        )
    return problems


def _is_path(model: str) -> bool:
    """Whether --model means a folder: names of the model hub are `owner/name`."""
    path = Path(model).expanduser()
    return path.exists() or path.is_absolute() or model.startswith((".", "~")) or "\\" in model or model.count("/") != 1


# --- 3. One song ---


@dataclass(frozen=True)
class Texts:
    """What is to be written for a song; None: not wanted. `waiting`: why its lyrics wait for a decision."""

    tags: list[str] | None = None
    lyrics: str | None = None
    timed_lyrics: str | None = None
    about: dict[str, Any] | None = None
    waiting: str = ""


def describe(task: Task, args: argparse.Namespace, load_captioner: LoadCaptioner, say: Callable[[str], None]) -> Texts:
    """The texts of one song. `say` takes lines for the log; the captioner is loaded only if the song needs it.

    Raises SongFailed when one of the texts cannot be had, AudioError when the song cannot be read: then nothing is
    to be written for it.
    """
    from ace_lora.audio.decode import read_audio

    song = task.song
    found = find_lyrics(song, args, say) if task.lyrics else None
    proposal = find_online(song, args, say) if task.lyrics and found is None and args.lyrics_source else None
    if proposal is not None and args.accept_found:
        found = found_lyrics(
            f"{proposal.service} ('{proposal.title}' by {proposal.artist})", read_entries(proposal.text)
        )
    ask_lyrics = task.lyrics and found is None and proposal is None and "model" in lyric_sources(args)
    written_tags = caption_beside(song) if task.prompt else []
    if written_tags:
        say(f"prompt from the caption in '{song.stem}.txt'")
    captioner = load_captioner() if (task.prompt and not written_tags) or ask_lyrics else None

    waveform = None
    if (task.prompt and not written_tags) or (task.lyrics and found is None):
        # All of it: what lies beyond the length that a captioner hears at once is heard in further parts.
        waveform = read_audio(song.audio, max_seconds=LONGEST_SONG_SECONDS)
        if waveform.warning:
            say(waveform.warning)
        if waveform.original_seconds > LONGEST_SONG_SECONDS:
            say(f"lasts {waveform.original_seconds:.0f} s; only the first {LONGEST_SONG_SECONDS} s are heard")
    caption = None
    if captioner is not None:
        ask_tags = task.prompt and not written_tags and captioner.gives_tags
        if ask_tags or ask_lyrics:
            caption = caption_waveform(
                captioner, waveform, tags=ask_tags, lyrics=ask_lyrics, language=args.language, say=say
            )
    tags = (written_tags or tags_of(waveform, caption, args, say)) if task.prompt else None
    if not task.lyrics:
        return Texts(tags)
    if found is not None:
        return Texts(tags, *written_lyrics(found, args), about_lyrics(found))
    if proposal is not None:
        return Texts(
            tags,
            about={"proposal": proposal.as_json()},
            waiting=f"lyrics found at {proposal.service} are shown above. To use them run again with --accept_found",
        )
    return heard_lyrics(song, tags, caption, waveform, args, say)


def heard_lyrics(
    song: SongFiles,
    tags: list[str] | None,
    caption: Caption | None,
    waveform: Waveform,
    args: argparse.Namespace,
    say: Callable[[str], None],
) -> Texts:
    """The texts of a song without written lyrics: what a model heard, what the user decided, or that it waits."""
    from ace_lora.audio.decode import MAX_SECONDS

    if caption is not None and caption.has_vocal is False:
        return Texts(tags, INSTRUMENTAL)
    if caption is not None and caption.lyrics:
        if waveform.original_seconds > MAX_SECONDS:
            say(
                f"lasts {waveform.original_seconds:.0f} s, of which training uses the first {MAX_SECONDS} s: "
                f"remove what is sung later from '{song.lyrics.name}'"
            )
        return Texts(tags, structured("\n".join(caption.lyrics), args))
    if args.assume_instrumental:
        say("no lyrics found; [instrumental] because of --assume_instrumental")
        return Texts(tags, INSTRUMENTAL)
    listened = "" if args.backend != "analysis" else " and no model listened for a voice"
    return Texts(
        tags,
        waiting=f"no lyrics in {args.lyric_sources}{listened}. Put them beside the song as '{song.stem}.lrc' or "
        f"'{song.stem}.txt', or if there is no voice write [instrumental] into '{song.lyrics.name}'",
    )


def find_lyrics(song: SongFiles, args: argparse.Namespace, say: Callable[[str], None]) -> FoundLyrics | None:
    """Lyrics that somebody wrote already, from the sources that are switched on; what is odd about them is said."""
    from ace_lora.audio.decode import AudioError, audio_seconds

    found = None
    remarks: list[str] = []
    names = song_names(song.audio)
    try:
        if "file" in lyric_sources(args):
            found = lyrics_beside(song, names, args.lyric_encoding, remarks)
        if found is None and "embedded" in lyric_sources(args):
            found = embedded_lyrics(song.audio, names)
    except (UnknownEncoding, UnusableFile) as error:
        # The user put lyrics there; going on to another source would ignore them.
        raise SongFailed(str(error)) from error
    except OSError as error:
        raise SongFailed(
            f"'{error.filename}' cannot be read ({error.strerror}). "
            "Check its permissions, and programs that hold it open"
        ) from error
    except UnreadableTags as error:
        say(str(error))
    for remark in remarks:
        say(remark)
    if found is None:
        return None
    left_out = counted_kinds(found.details.left_out)
    without = f"; left out: {', '.join(f'{count} {kind}' for kind, count in left_out.items())}" if left_out else ""
    say(f"lyrics from {found.source}, {len(found.lines)} lines{' with times' if found.timed else ''}{without}")
    warnings = list(found.warnings)
    if found.timed:
        with contextlib.suppress(AudioError):  # said when the song is read
            warnings += warn_of_other_version(found, audio_seconds(song.audio))
    for warning in warnings:
        say(f"warning: {warning}")
    for question in found.questions:
        say(f"question: {question}")
    return dataclasses.replace(found, warnings=tuple(warnings))


def find_online(song: SongFiles, args: argparse.Namespace, say: Callable[[str], None]) -> Proposal | None:
    """Lyrics of the service that was asked for, shown; with --accept_found those that an earlier run showed."""
    from ace_lora.audio.decode import audio_seconds

    if args.accept_found:
        proposal = Proposal.from_json(read_about(song).get("proposal"))
        if proposal is None:
            say("no lyrics were found and shown by an earlier run, so there is nothing to accept")
        return proposal
    try:
        proposal = look_up(
            args.lyrics_source, song_names(song.audio), song.stem, audio_seconds(song.audio), say, args.lyrics_address
        )
    except LookupFailed as error:
        say(str(error))
        return None
    if proposal is None:
        say(f"{args.lyrics_source} knows no song of this title, artist and length")
        return None
    say(f"found at {proposal.service}: '{proposal.title}' by {proposal.artist}, {proposal.seconds:.0f} s")
    found = found_lyrics(proposal.service, read_entries(proposal.text))
    for line in found.text.split("\n") if found else []:
        say(f"  | {line}")
    return proposal if found else None


def written_lyrics(found: FoundLyrics, args: argparse.Namespace) -> tuple[str, str | None]:
    """(lyrics, timed lyrics or None) as they are written."""
    lyrics = structured(found.text, args)
    if not found.timed:
        return lyrics, None
    return lyrics, format_timed(attach_times(lyrics, format_timed(found.lines)))


def about_lyrics(found: FoundLyrics) -> dict[str, Any] | None:
    """What `<song>_lyrics.json` says of lyrics; None where nothing was left out, guessed or warned of."""
    if not (found.details.left_out or found.questions or found.warnings):
        return None
    return {
        "source": found.source,
        "questions": list(found.questions),
        "warnings": list(found.warnings),
        "lines": [
            {"time": line.seconds, "text": line.text, "kind": line.kind, "sung": line.sung, "why": line.why}
            for line in found.details.lines
        ],
    }


def structured(lyrics: str, args: argparse.Namespace) -> str:
    """`lyrics` with structure tags, unless --structure off."""
    return mark_structure(lyrics) if args.structure == "on" else lyrics


def tags_of(
    waveform: Waveform, caption: Caption | None, args: argparse.Namespace, say: Callable[[str], None]
) -> list[str]:
    """Tags of the model, else measured ones; with --bpm the tempo as well, without it a proposal in the log."""
    if caption is not None and caption.tags:
        tags = list(caption.tags)
        bpm = measure_bpm(waveform.samples, waveform.rate) if args.bpm else None
    else:
        if args.backend != "analysis":
            say("this model gives no tags: measured ones are taken")
        try:
            measured = measure(waveform.samples, waveform.rate)
        except TooLittleSound as error:
            raise SongFailed(str(error)) from error
        tags, bpm = signal_tags(measured), measured.bpm
        if bpm is not None and not args.bpm:
            choices = " or ".join(f"{choice} bpm" for choice in bpm_choices(bpm))
            say(f"tempo: {choices}? Not written, because the signal does not tell which; --bpm writes {bpm_tag(bpm)}")
    if args.bpm and bpm is None:
        say("no steady pulse found, so there is no tempo tag")
    if args.bpm and bpm is not None:
        tags.append(bpm_tag(bpm))
    return sorted(set(tags))


# --- 4. Captioners ---


def chosen_backend(args: argparse.Namespace) -> str:
    """The backend that --backend auto stands for on this computer; says so."""
    if args.backend != "auto":
        return args.backend
    import torch

    if torch.cuda.is_available():
        print(f"--backend auto: qwen, because there is a CUDA device ({torch.cuda.get_device_name()}).")
        return "qwen"
    print(
        "--backend auto: analysis, because there is no CUDA device. Tags are measured from the signal; genre, mood, "
        "instruments and vocals need a model (--backend qwen or llamacpp)."
    )
    return "analysis"


def captioner_loader(args: argparse.Namespace) -> LoadCaptioner:
    """A function that loads the captioner of --backend at its first call; it gives None for analysis."""

    @functools.cache
    def load() -> Captioner | None:
        if args.backend == "qwen":
            return QwenCaptioner.load(
                args.model, quantization=args.quantization, device=args.device, seed=args.seed, say=print
            )
        if args.backend == "llamacpp":
            return LlamaServer.connect(args.host, args.port, answer_timeout=args.timeout, seed=args.seed, say=print)
        return None

    return load


# --- 5. Files ---


def write_texts(song: SongFiles, texts: Texts, *, overwrite: bool, say: Callable[[str], None]) -> None:
    """Write what is not None, each file whole; what it replaces is set aside, from where the window restores it.

    Without `overwrite` a file that appeared while the song was listened to stays as it is.
    """
    written: dict[Path, str] = {}
    replaced: list[Path] = []
    about = texts.about
    if texts.tags is not None and not _stays(song.prompt, overwrite, say):
        written[song.prompt] = ", ".join(texts.tags)
    if texts.lyrics is not None and not _stays(song.lyrics, overwrite, say):
        if overwrite:
            # Old times do not belong to the new lyrics, and would be used to crop them.
            replaced.append(song.timed_lyrics)
        # One that stands without lyrics is the user's own, and where the lyrics came from.
        if texts.timed_lyrics is not None and (overwrite or not song.timed_lyrics.exists()):
            written[song.timed_lyrics] = texts.timed_lyrics
        written[song.lyrics] = texts.lyrics
        if about is None and (old := read_about(song)):
            # Lines of an earlier source are not about these lyrics; the language that the user set is.
            replaced.append(song.about_lyrics)
            about = {"language": old["language"]} if old.get("language") else None
    if about is not None and (texts.lyrics is None or song.lyrics in written):
        old = read_about(song)
        kept = {key: old[key] for key in ("language",) if old.get(key)}
        written[song.about_lyrics] = json.dumps({"format": 1} | kept | about, ensure_ascii=False, indent=1) + "\n"
    if folder := set_aside(dict.fromkeys((*written, *replaced)), "overwritten"):
        say(f"its old texts are kept in '{folder}'")
    for path, text in written.items():
        write_text(path, text)


def read_about(song: SongFiles) -> dict[str, Any]:
    """What `<song>_lyrics.json` says; {} where there is none, or none that can be read."""
    try:
        said = read_json(song.about_lyrics) if song.about_lyrics.exists() else {}
    except (UnusableFile, OSError):
        return {}
    return said if isinstance(said, dict) else {}


def _stays(path: Path, overwrite: bool, say: Callable[[str], None]) -> bool:
    if overwrite or not path.exists():
        return False
    say(f"'{path.name}' has been written by somebody else meanwhile, and stays as it is")
    return True


# --- 6. Main ---


def main(args: argparse.Namespace) -> None:
    """Write the texts that are missing, song by song; a song that fails does not keep the others."""
    tasks = plan(args)
    from tqdm import tqdm

    from ace_lora.audio.decode import AudioError

    # Settled before the first song, and only if there is anything to do for it.
    if any(task.prompt or task.lyrics for task in tasks):
        args.backend = chosen_backend(args)
    load_captioner = captioner_loader(args)

    done = skipped = 0
    failed: list[str] = []
    waiting: list[str] = []
    with tqdm(tasks, unit="song", file=sys.stderr, dynamic_ncols=True) as bar:
        for number, planned in enumerate(bar, start=1):
            # Looked at again: hours may have passed, and the user, or a second run, has written some of them.
            task = wanted(planned.song, args)
            name = task.song.audio.name
            bar.set_postfix_str(name)

            def report(outcome: str, head: str = f"song {number}/{len(tasks)} | {name}") -> None:
                tqdm.write(f"{head} | {outcome}", file=sys.stdout)

            def say(text: str, name: str = name) -> None:
                tqdm.write(f"{name}: {text.rstrip('.')}.", file=sys.stdout)

            if not task.prompt and not task.lyrics:
                report("skipped")
                skipped += 1
                continue
            try:
                texts = describe(task, args, load_captioner, say)
            except MissingLyricSupport as error:
                raise StepFailed(str(error)) from error
            except (SongFailed, AudioError) as error:
                report(f"failed: {' '.join(str(error).split())}")
                failed.append(name)
                continue
            write_texts(task.song, texts, overwrite=args.overwrite, say=say)
            if texts.waiting:
                tags = f"; tags written: {', '.join(texts.tags)}" if texts.tags else ""
                report(f"waits for a decision: {texts.waiting}{tags}")
                waiting.append(name)
                continue
            report("done" if texts.tags is None else f"done: {', '.join(texts.tags)}")
            done += 1
    print(f"done {done}, skipped {skipped}, failed {len(failed)}" + (f", waiting {len(waiting)}" if waiting else ""))
    problems = []
    if waiting:
        wait = "waits" if len(waiting) == 1 else "wait"
        problems.append(
            f"{done + skipped} of {len(tasks)} songs have lyrics, {len(waiting)} {wait} for a decision: "
            f"{', '.join(waiting)}. Put their lyrics beside them, let a model listen, or run again with "
            "--assume_instrumental to make all of these [instrumental]."
        )
    if failed:
        problems.append(
            f"No text was written for {len(failed)} of {len(tasks)} songs: {', '.join(failed)}. "
            "The reasons stand above; run the same command again to try only these, or write their texts by hand."
        )
    if problems:
        raise StepFailed(" ".join(problems))


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
