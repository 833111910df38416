"""The files that belong to one song: audio, `<stem>_prompt.txt`, `<stem>_lyrics.txt`, `<stem>_lyrics.lrc`,
`<stem>_lyrics.json`.

Standard library only. The naming is that of the ACE-Step training scripts, so that folders can be exchanged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

AUDIO_EXTENSIONS = (".aac", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav")
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
