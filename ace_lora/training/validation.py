"""A loss that two runs, or two steps of one run, can be compared by: fixed songs, timesteps and noise.

The training loss of a step depends most on the noise level that was drawn. Here every song is looked at with the same
noise at the same few levels, the quantiles of the training's distribution, with all its tags in their order.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from ace_lora.training.batches import Batch, Sample, SampleReader, collate
from ace_lora.training.plan import Draw, random_seed
from ace_lora.v1.flow_matching import timestep_indices

TIMES = 4  # noise levels per song
MOST_SONGS = 8
FEW_SONGS = 20  # below this, holding songs out would cost the training too much


def choose_songs(names: Sequence[str], requested: int) -> tuple[list[int], bool]:
    """Indices of the validation songs, and whether they are held out of the training.

    `requested` above 0 holds out so many; 0 takes up to MOST_SONGS training songs; -1 holds out every tenth song when
    there are FEW_SONGS or more, and else does as 0. The choice depends on the names alone.
    """
    if requested < 0:
        requested = min(MOST_SONGS, len(names) // 10) if len(names) >= FEW_SONGS else 0
    # Spread by a hash of the name: the choice stays when other songs are added.
    spread = sorted(range(len(names)), key=lambda index: (random_seed("validation", names[index]), index))
    return sorted(spread[: requested or MOST_SONGS]), requested > 0


class Validation:
    """`loss(step)` gives the mean denoising loss over songs and noise levels."""

    def __init__(self, reader: SampleReader, indices: Sequence[int], prepare: Callable[[Batch], Batch]):
        self.reader = reader
        self.indices = list(indices)
        self._prepare = prepare

    @torch.no_grad()
    def loss(self, denoising_loss: Callable[[Batch], torch.Tensor]) -> float:
        """`denoising_loss` is the step's loss of one batch, without gradients."""
        return statistics.fmean(
            float(denoising_loss(self._prepare(self.batch(index, time))))
            for index in self.indices
            for time in range(TIMES)
        )

    def batch(self, index: int, time: int) -> Batch:
        """One song at one noise level; equal in every run that has the song."""
        song = self.reader.songs[index]
        record = self.reader.cache.read(song.path, ssl=False)
        limit = self.reader.settings.max_frames
        frames = song.frames if limit is None else min(limit, song.frames)
        first = (song.frames - frames) // 2
        generator = torch.Generator().manual_seed(random_seed("validation", song.name, time))
        latents = record.target_latents[:, :, first : first + frames].contiguous()
        normal = torch.special.ndtri(torch.tensor((time + 0.5) / TIMES))
        sample = Sample(
            draw=Draw(index, 0, 0, 1.0, True),
            name=song.name,
            latents=latents,
            noise=torch.randn(latents.shape, generator=generator),
            timestep_index=int(timestep_indices(normal)),
            text_ids=record.text_token_ids,
            lyric_ids=self.reader.lyric_ids(record, first, frames),
            lyrics_dropped=False,
            ssl={},
        )
        batch = collate([sample])
        assert isinstance(batch, Batch)
        return batch
