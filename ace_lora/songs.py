"""The files that belong to one song: audio, `<stem>_prompt.txt`, `<stem>_lyrics.txt`, `<stem>_lyrics.lrc`,
`<stem>_lyrics.json`.

Standard library only. The naming is that of the ACE-Step training scripts, so that folders can be exchanged.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

AUDIO_EXTENSIONS = (
    *(".aac", ".aif", ".aiff", ".ape", ".flac", ".m4a", ".m4b", ".mka", ".mp3", ".oga", ".ogg", ".opus", ".tta"),
    *(".wav", ".wma", ".wv"),
)
# Music that is not read: films, notes, protected or rare files. Named, so that nobody looks for a song in vain.
_OTHER_MUSIC = (
    *(".ac3", ".amr", ".au", ".caf", ".dff", ".dsf", ".dts", ".kar", ".m4p", ".mid", ".midi", ".mod", ".mov", ".mp2"),
    *(".mp4", ".mkv", ".avi", ".mpc", ".ra", ".rm", ".spx", ".w64", ".webm", ".wmv"),
    *(".kgm", ".kgma", ".kwm", ".mflac", ".mgg", ".ncm", ".qmc0", ".qmc3", ".qmcflac", ".qmcogg", ".tkm", ".xm"),
)
INSTRUMENTAL = "[instrumental]"


@dataclass(frozen=True)
class SongFiles:
    """One audio file and the names of the texts beside it."""

    audio: Path

    @property
    def stem(self) -> str:
        """The file name without its last extension only: `two.dots.mp3` gives `two.dots`."""
        return self.audio.stem

    @property
    def prompt(self) -> Path:
        """Tags separated by comma and space."""
        return self.audio.with_name(f"{self.stem}_prompt.txt")

    @property
    def lyrics(self) -> Path:
        """Lyrics without times."""
        return self.audio.with_name(f"{self.stem}_lyrics.txt")

    @property
    def timed_lyrics(self) -> Path:
        """The lines of `lyrics` with their times, `[mm:ss.xx]line`; exists only where times are known."""
        return self.audio.with_name(f"{self.stem}_lyrics.lrc")

    @property
    def about_lyrics(self) -> Path:
        """Where the lyrics came from, every line of the source with its kind, and the language if the user sets one."""
        return self.audio.with_name(f"{self.stem}_lyrics.json")


def scan_songs(folder: Path) -> list[SongFiles]:
    """Audio files of `folder` (not of its subfolders), sorted by code point.

    Hidden files are skipped: macOS leaves `._song.mp3` files that are no audio.
    """
    return [
        SongFiles(path)
        for path in sorted(Path(folder).iterdir(), key=lambda path: path.name)
        if path.suffix.lower() in AUDIO_EXTENSIONS and not path.name.startswith(".") and path.is_file()
    ]


def overlooked_music(folder: Path) -> list[str]:
    """A sentence on each file or subfolder of `folder` that looks like music and is not used."""
    sentences = []
    for path in sorted(Path(folder).iterdir(), key=lambda path: path.name):
        kind = path.suffix.lower()
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if songs := _songs_below(path):
                count = f"{len(songs)} song{'s' if len(songs) > 1 else ''}"
                sentences.append(
                    f"'{path.name}' is a subfolder with {count} ('{songs[0]}' first), which are not used. "
                    "Move them into the folder itself, or give the subfolder as the folder of songs."
                )
        elif kind in AUDIO_EXTENSIONS and not path.exists():
            sentences.append(
                f"'{path.name}' is a link to a file that is not there, and is not used. Mend the link or remove it."
            )
        elif kind in AUDIO_EXTENSIONS and not path.is_file():
            sentences.append(f"'{path.name}' is no file, and is not used. Remove it, or put the song there.")
        elif kind in _OTHER_MUSIC:
            sentences.append(
                f"'{path.name}' is not used: files of the kind {kind} are not read. "
                f"Save it as .flac or .mp3. Read are {' '.join(AUDIO_EXTENSIONS)}."
            )
    return sentences


# More is not looked through: someone has chosen a whole disk.
_MOST_FOLDERS = 1000


def _songs_below(folder: Path) -> list[str]:
    found: list[str] = []
    for number, (place, folders, files) in enumerate(os.walk(folder)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        where = Path(place).relative_to(folder.parent)
        found += [(where / name).as_posix() for name in sorted(files) if Path(name).suffix.lower() in AUDIO_EXTENSIONS]
        if number == _MOST_FOLDERS:
            break
    return found


def songs_with_equal_stem(songs: list[SongFiles]) -> dict[str, list[SongFiles]]:
    """Songs that would share one prompt, lyrics and record file, by stem (case ignored, as Windows does)."""
    by_stem: dict[str, list[SongFiles]] = {}
    for song in songs:
        by_stem.setdefault(song.stem.casefold(), []).append(song)
    return {group[0].stem: group for group in by_stem.values() if len(group) > 1}


# Chinese and Japanese keyboards type the last two; people also write one tag per line.
_BETWEEN_TAGS = re.compile(r"[,\n，、]")


def split_tags(prompt: str) -> list[str]:
    """`"rock,  drums,,"` gives `["rock", "drums"]`: split at commas and line ends, stripped, empty ones dropped."""
    return [tag for part in _BETWEEN_TAGS.split(prompt) if (tag := part.strip())]
