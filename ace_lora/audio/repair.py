"""Mended copies of songs: silent ends cut off, one side put on both, several channels and too loud samples brought in.

The song itself and the texts beside it stay as they are; the copy gets copies of the texts.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from ace_lora.audio.decode import read_audio
from ace_lora.audio.doctor import SILENT_SECONDS, examine, silent_ends
from ace_lora.commands import WrongInput
from ace_lora.files import replace_atomically
from ace_lora.songs import SongFiles

_KEPT_SECONDS = 0.5  # of a silent end: a song that begins at once sounds cut


def repair_song(song: SongFiles, output: Path) -> list[str]:
    """Write `<stem>.flac` to `output` where something can be mended; what was done, in words.

    Raises WrongInput where a file of that name stands there, AudioError and OSError.
    """
    import soundfile

    codes = {finding.code for finding in examine(song.audio).findings if finding.repairable}
    if not codes:
        return []
    wave = read_audio(song.audio, max_seconds=24 * 3600)
    samples, done = wave.samples, []
    if "surround" in codes:
        done.append(f"{wave.channels} channels mixed to stereo")
    if wave.turned_down:
        done.append("turned down to full scale")
    if "one_sided" in codes:
        samples = np.repeat(samples[[int(np.square(samples).sum(axis=1).argmax())]], 2, axis=0)
        done.append("the side that sounds put on both")
    if "silence" in codes:
        begin, end = _without_silence(samples, wave.rate, keep_begin=song.timed_lyrics.exists())
        if (begin, end) != (0, samples.shape[1]):
            done.append(
                f"{begin / wave.rate:.1f} s before and {(samples.shape[1] - end) / wave.rate:.1f} s behind cut off"
            )
            samples = samples[:, begin:end]
    target = output / f"{song.stem}.flac"
    if target.exists():
        raise WrongInput(f"'{target}' exists. Expected a folder without it. Choose another --output_dir.")
    with replace_atomically(target) as temporary:
        soundfile.write(temporary, samples.T, wave.rate, format="FLAC", subtype="PCM_24")
    for text in (song.prompt, song.lyrics, song.timed_lyrics, song.about_lyrics):
        if text.exists() and not (output / text.name).exists():
            shutil.copyfile(text, output / text.name)
    return done


def _without_silence(samples: np.ndarray, rate: int, *, keep_begin: bool) -> tuple[int, int]:
    """First sample and end of what stays. The beginning stays where lyrics have times, which count from there."""
    before, behind = silent_ends(samples)
    kept = int(_KEPT_SECONDS * rate)
    begin = before - kept if before >= SILENT_SECONDS * rate and not keep_begin else 0
    end = samples.shape[1] - (behind - kept if behind >= SILENT_SECONDS * rate else 0)
    return begin, end
