"""From records to the batches of a training, with everything that is random in them.

Shapes: B songs of a batch, T latent frames (10.77 per second), Lt text tokens, Ll lyric tokens, n feature rows.

Everything drawn for a song (noise, timestep, tags, crop, dropout) follows from (seed, epoch, song), so a song gets the
same draws in whatever batch, process or order, and however often the run was stopped.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ace_lora.device import send
from ace_lora.lyrics.timed import TimedLine, crop
from ace_lora.lyrics.tokenize import LyricTokenizer
from ace_lora.lyrics.vocabulary import load_vocabulary
from ace_lora.records.cache import RecordCache
from ace_lora.records.format import SECONDS_PER_LATENT_FRAME, SSL_BRANCHES, Record, RecordError
from ace_lora.training.plan import Draw, random_seed
from ace_lora.training.songs import TrainingSong, has_timed_lyrics
from ace_lora.training.tags import UMT5_COMMA_ID, augment_tags
from ace_lora.v1.flow_matching import sample_timestep_indices

SSL_NAMES = {"mert": "mert", "mhubert": "m-hubert"}  # record -> model


@dataclass(frozen=True)
class SampleSettings:
    """What is done to a song when its turn comes."""

    seed: int = 0
    tag_dropout: float = 0.5
    lyrics_dropout: float = 0.0
    ssl: bool = True
    max_frames: int | None = None  # None: whole songs
    comma_id: int = UMT5_COMMA_ID
    lyric_vocabulary: Path | None = None  # needed where timed lyrics follow a crop
    embedding_rows: int | None = None


@dataclass
class Sample:
    """One song, drawn."""

    draw: Draw
    name: str
    latents: torch.Tensor  # float32 [8, 16, T]
    noise: torch.Tensor  # float32 [8, 16, T]
    timestep_index: int
    text_ids: torch.Tensor  # int64 [Lt]
    lyric_ids: torch.Tensor  # int64 [Ll]
    lyrics_dropped: bool
    ssl: dict[str, torch.Tensor]  # name in the model -> [n, width], int8 or float32


@dataclass
class Failed:
    """A song that could not be read; it travels in place of a sample, so that the steps before it are still done."""

    message: str


@dataclass
class Batch:
    """B songs, padded to the longest. Masks (1 for what counts) are None where nothing is padded."""

    draws: list[Draw]
    names: list[str]
    latents: torch.Tensor  # float32 [B, 8, 16, T]
    noise: torch.Tensor  # float32 [B, 8, 16, T]
    frame_mask: torch.Tensor | None  # float32 [B, T]
    timestep_indices: torch.Tensor  # int64 [B]
    text_ids: torch.Tensor  # int64 [B, Lt]
    text_mask: torch.Tensor | None  # float32 [B, Lt]
    lyric_ids: torch.Tensor  # int64 [B, Ll]
    lyric_mask: torch.Tensor | None  # float32 [B, Ll]
    ssl: dict[str, list[torch.Tensor]]  # name -> B tensors [n, width]
    text_states: torch.Tensor | None = None  # [B, Lt, text width], filled in by the text encoder
    lyric_states: torch.Tensor | None = None  # [B, Ll, D], filled in where the lyric branch is cached
    speaker_embeds: torch.Tensor | None = None  # [B, S]; None stands for the zeros that every record has

    @property
    def weight(self) -> float:
        """Share of the step's gradient that this batch's mean loss has, over all processes."""
        return sum(draw.weight for draw in self.draws)

    @property
    def last_of_step(self) -> bool:
        return self.draws[-1].last_of_step

    def to(self, device: torch.device) -> Batch:
        """A copy with its tensors on `device`; masks and indices stay, because the host decides by them."""

        def move(name: str, value: Any) -> Any:
            if name.endswith("_mask") or name == "timestep_indices":
                return value
            if isinstance(value, torch.Tensor):
                return send(value, device)
            if isinstance(value, dict):
                return {key: [move(key, tensor) for tensor in tensors] for key, tensors in value.items()}
            return value

        return replace(self, **{name: move(name, value) for name, value in vars(self).items()})

    def pin_memory(self) -> Batch:
        """The same tensors in page-locked memory, from which a card copies while it computes."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor) and value.device.type == "cpu":
                setattr(self, name, value.pin_memory())
        self.ssl = {name: [tensor.pin_memory() for tensor in tensors] for name, tensors in self.ssl.items()}
        return self


class SampleReader:
    """Songs by `Draw`; several threads may ask at once.

    `features` holds SSL rows of songs (by index) whose records do not store them: name in the record -> [n, width].
    `cache` is where records are read; without one nothing is kept.
    """

    def __init__(
        self,
        songs: Sequence[TrainingSong],
        settings: SampleSettings,
        features: dict[int, dict[str, torch.Tensor]] | None = None,
        cache: RecordCache | None = None,
    ):
        self.songs = list(songs)
        self.settings = settings
        self.features = features or {}
        self.cache = cache or RecordCache(0)
        self._tokenizer: LyricTokenizer | None = None
        self._tokenizing = threading.Lock()

    def __getitem__(self, draw: Draw) -> Sample | Failed:
        song = self.songs[draw.song]
        try:
            return self.sample(draw)
        except (RecordError, OSError) as error:
            return Failed(f"The record of '{song.name}' could be read when training began, but not now: {error}")

    def sample(self, draw: Draw) -> Sample:
        """The song of `draw` with everything that is random in it. Raises RecordError and OSError."""
        song, settings = self.songs[draw.song], self.settings
        stored = settings.ssl and draw.song not in self.features
        record = self.cache.read(song.path, ssl=stored)
        generator = torch.Generator().manual_seed(random_seed(settings.seed, "song", draw.epoch, draw.song))
        first, frames = random_crop(song.frames, settings.max_frames, generator)
        text_ids = augment_tags(
            record.text_token_ids, dropout=settings.tag_dropout, comma_id=settings.comma_id, generator=generator
        )
        lyrics_dropped = (
            settings.lyrics_dropout > 0 and torch.rand((), generator=generator).item() < settings.lyrics_dropout
        )
        index = int(sample_timestep_indices(1, generator)[0])
        latents = record.target_latents[:, :, first : first + frames].contiguous()
        return Sample(
            draw=draw,
            name=song.name,
            latents=latents,
            noise=torch.randn(latents.shape, generator=generator),
            timestep_index=index,
            text_ids=text_ids,
            lyric_ids=self.lyric_ids(record, first, frames),
            lyrics_dropped=lyrics_dropped,
            ssl=self.ssl_rows(record, draw.song, first, frames) if settings.ssl else {},
        )

    def lyric_ids(self, record: Record, first: int, frames: int) -> torch.Tensor:
        """Lyric ids [Ll] of the frames: those of the whole song, unless it was cropped and its lyrics have times."""
        if frames == record.target_latents.shape[2] or not has_timed_lyrics(record.metadata):
            return record.lyric_token_ids
        begin = first * SECONDS_PER_LATENT_FRAME
        end = (first + frames) * SECONDS_PER_LATENT_FRAME
        lines = [TimedLine(seconds, text) for seconds, text in record.metadata["timed_lines"]]
        with self._tokenizing:
            ids = self._lyric_tokenizer().tokenize(crop(lines, begin, end), record.metadata.get("lyric_language")).ids
        return torch.tensor(ids or [0], dtype=torch.int64)

    def _lyric_tokenizer(self) -> LyricTokenizer:
        if self._tokenizer is None:
            assert self.settings.lyric_vocabulary is not None
            self._tokenizer = LyricTokenizer(
                load_vocabulary(self.settings.lyric_vocabulary, self.settings.embedding_rows)
            )
        return self._tokenizer

    def ssl_rows(self, record: Record, song: int, first: int, frames: int) -> dict[str, torch.Tensor]:
        """Feature rows of the frames, by the model's names. int8 rows lack their scale, which a cosine ignores."""
        total = record.target_latents.shape[2]
        kept = self.features.get(song)
        rows = {}
        for branch in SSL_BRANCHES:
            values = kept[branch] if kept else getattr(record, branch)
            if values is None:
                raise RecordError(self.songs[song].path, f"it has no {branch} features")
            begin, end = round(first * len(values) / total), round((first + frames) * len(values) / total)
            rows[SSL_NAMES[branch]] = values[begin : max(end, begin + 1)]
        return rows


def random_crop(frames: int, max_frames: int | None, generator: torch.Generator) -> tuple[int, int]:
    """First frame and number of frames of a random crop."""
    if max_frames is None or frames <= max_frames:
        return 0, frames
    return int(torch.randint(frames - max_frames + 1, (), generator=generator)), max_frames


def collate(samples: Sequence[Sample | Failed]) -> Batch | Failed:
    """Samples as one batch, padded at the end with zeros."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, Failed):
            return sample
        good.append(sample)
    latents, frame_mask = _pad([sample.latents for sample in good])
    noise, _ = _pad([sample.noise for sample in good])
    text_ids, text_mask = _pad([sample.text_ids for sample in good])
    lyric_ids, lyric_mask = _pad([sample.lyric_ids for sample in good])
    dropped = torch.tensor([sample.lyrics_dropped for sample in good])
    if dropped.any():
        if lyric_mask is None:
            lyric_mask = torch.ones(lyric_ids.shape)
        lyric_mask[dropped] = 0.0
        lyric_ids[dropped] = 0
    return Batch(
        draws=[sample.draw for sample in good],
        names=[sample.name for sample in good],
        latents=latents,
        noise=noise,
        frame_mask=frame_mask,
        timestep_indices=torch.tensor([sample.timestep_index for sample in good]),
        text_ids=text_ids,
        text_mask=text_mask,
        lyric_ids=lyric_ids,
        lyric_mask=lyric_mask,
        ssl={name: [sample.ssl[name] for sample in good] for name in good[0].ssl},
    )


def _pad(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Stacked tensors, zeros behind the shorter ones along the last axis, and the mask [B, longest] or None."""
    lengths = [tensor.shape[-1] for tensor in tensors]
    longest = max(lengths)
    if min(lengths) == longest:
        return torch.stack(tensors), None
    stacked = tensors[0].new_zeros((len(tensors), *tensors[0].shape[:-1], longest))
    mask = torch.zeros(len(tensors), longest)
    for item, (tensor, length) in enumerate(zip(tensors, lengths, strict=True)):
        stacked[item, ..., :length] = tensor
        mask[item, :length] = 1.0
    return stacked, mask
