"""How near a sample is to the songs of a training, by the features of MERT that the records hold.

A stretch of music is described by the mean and the deviation of each feature over time, every feature in units of its
deviation over all songs. The distance of two stretches is the root mean square of the differences. Songs are compared
in stretches of the sample's length, so that a short sample is not far from everything. A sample nearer to one song than
any two songs of the training are to each other is said to copy. A hint to listen again, no proof.

n feature rows (74.8 per second), W their width, S stretches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ace_lora.records.format import list_records
from ace_lora.records.record import read_record, restore_rows

OVERLAP = 4  # stretches begin at every quarter of their length
SHORTEST_ROWS = 75  # a second


@dataclass(frozen=True)
class Nearness:
    """Distances in units of the usual one: the median, over the songs, of the distance to the nearest other song."""

    distance: float  # to the nearest song
    song: str
    closest_pair: float | None  # the smallest distance of two songs; None where there is only one
    copies: bool

    def sentence(self) -> str:
        if self.closest_pair is None:
            return f"{self.distance:.2f} from '{self.song}', the only song of the training; nothing to compare it with."
        if self.copies:
            return (
                f"{self.distance:.2f} from '{self.song}', nearer than any two songs of the training are to each other "
                f"({self.closest_pair:.2f}): it may copy this song rather than have learned from it."
            )
        near = "as near as the songs are to each other" if self.distance < 1.5 else "further than the songs are apart"
        return f"{self.distance:.2f} from '{self.song}', {near} (1.00)."


def training_features(folder: Path) -> dict[str, Tensor]:
    """MERT's rows float32 [n, W] of each record of a folder that has them. Raises RecordError and OSError."""
    features = {}
    for path in list_records(folder):
        record = read_record(path)
        if record.mert is not None and len(record.mert) >= SHORTEST_ROWS:
            features[path.stem] = restore_rows(record.mert, record.mert_scale)
    return features


def nearness(sample: Tensor, songs: dict[str, Tensor]) -> Nearness:
    """Of a sample's rows float32 [n, W] to those of the songs, at least one. Raises ValueError without any."""
    if not songs:
        raise ValueError("There are no songs to compare with.")
    rows = min(len(sample), *(len(song) for song in songs.values()))
    scale = torch.cat(list(songs.values())).std(dim=0).clamp_min(1e-6)  # [W]
    stretches = {name: _stretches(song / scale, rows) for name, song in songs.items()}
    own = _stretches(sample / scale, rows)
    to_song = {name: _smallest(own, there) for name, there in stretches.items()}
    nearest = min(to_song, key=lambda name: to_song[name])
    names = list(stretches)
    pairs = {(a, b): _smallest(stretches[a], stretches[b]) for index, a in enumerate(names) for b in names[index + 1 :]}
    if not pairs:
        return Nearness(to_song[nearest], nearest, None, False)
    to_neighbour = [min(distance for pair, distance in pairs.items() if name in pair) for name in names]
    usual = max(float(torch.tensor(to_neighbour).median()), 1e-12)
    closest = min(pairs.values())
    return Nearness(to_song[nearest] / usual, nearest, closest / usual, to_song[nearest] < closest)


def _stretches(rows: Tensor, length: int) -> Tensor:
    """Mean and deviation [S, 2 W] of each stretch of `length` rows; the last one ends with the song."""
    starts = list(range(0, max(len(rows) - length, 0) + 1, max(length // OVERLAP, 1)))
    if starts[-1] != len(rows) - length:
        starts.append(len(rows) - length)
    parts = [rows[start : start + length] for start in starts]
    return torch.stack([torch.cat([part.mean(dim=0), part.std(dim=0)]) for part in parts])


def _smallest(a: Tensor, b: Tensor) -> float:
    return float(torch.cdist(a, b).min()) / a.shape[1] ** 0.5


def sample_features(paths: list[Path], mert_folder: Path, on: dict[str, Any]) -> dict[Path, Tensor | str]:
    """MERT's rows float32 [n, W] of each sound file, or why there are none; the network is loaded once."""
    from ace_lora.audio.decode import AudioError, prepare_waveform, read_audio
    from ace_lora.v1.ssl_features import MERT, extract_features, load_mert

    model = load_mert(mert_folder, **on)
    features: dict[Path, Tensor | str] = {}
    for path in paths:
        try:
            features[path] = extract_features(model, prepare_waveform(read_audio(path))[0], MERT)
        except AudioError as error:
            features[path] = str(error)
    return features
