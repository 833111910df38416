"""Which songs each step of a training sees.

Nothing here depends on a random state that has to be saved: the order of an epoch follows from (seed, epoch). So step S
of a run gets the same batch however often the run was stopped.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

POOL_BATCHES = 16  # songs are sorted by length within this many batches, drawn anew each epoch


def random_seed(*parts: object) -> int:
    """A seed for a torch generator from any parts; equal on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Draw:
    """One song's turn: its index in the data set, the epoch, and its share of the step's gradient."""

    song: int
    epoch: int
    step: int
    weight: float  # 1 / songs of the whole step, over all processes
    last_of_step: bool


class Plan:
    """Which songs each optimizer step sees.

    An epoch is a permutation of the songs, cut into batches of songs of similar length; its last batch may be smaller.
    A step takes `accumulate` batches for each of `processes`, and goes on into the next epoch where one ends.
    """

    def __init__(
        self, frames: Sequence[int], *, seed: int, batch_size: int = 1, accumulate: int = 1, processes: int = 1
    ):
        self.frames = list(frames)
        self.seed = seed
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.processes = processes
        self.batches_per_epoch = -(-len(self.frames) // batch_size)
        self._epoch = functools.lru_cache(maxsize=4)(self._batches_of_epoch)

    def _batches_of_epoch(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(random_seed(self.seed, "order", epoch))
        order = torch.randperm(len(self.frames), generator=generator).tolist()
        pool = self.batch_size * POOL_BATCHES
        batches = []
        for start in range(0, len(order), pool):
            chosen = order[start : start + pool]
            if self.batch_size > 1:
                chosen.sort(key=lambda song: self.frames[song])
            batches += [chosen[i : i + self.batch_size] for i in range(0, len(chosen), self.batch_size)]
        if self.batch_size > 1:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return batches

    def steps_per_epochs(self, epochs: int) -> int:
        """Optimizer steps until every song had its turn `epochs` times."""
        return -(-epochs * self.batches_per_epoch // (self.accumulate * self.processes))

    def epoch_of(self, step: int) -> int:
        """Epoch, from 0, of the last batch of step `step` (from 0)."""
        return ((step + 1) * self.accumulate * self.processes - 1) // self.batches_per_epoch

    def batches(self, step: int) -> list[tuple[int, list[int]]]:
        """(epoch, songs) of all batches of a step: first the first batch of each process, then the second, …"""
        per_step = self.accumulate * self.processes
        numbers = range(step * per_step, (step + 1) * per_step)  # counted from the first batch of epoch 0
        return [
            (
                number // self.batches_per_epoch,
                self._epoch(number // self.batches_per_epoch)[number % self.batches_per_epoch],
            )
            for number in numbers
        ]

    def draws(self, step: int, process: int = 0) -> list[list[Draw]]:
        """The `accumulate` batches of one process in a step."""
        batches = self.batches(step)
        songs = sum(len(chosen) for _, chosen in batches)
        mine = batches[process :: self.processes]
        return [
            [Draw(song, epoch, step, 1 / songs, number == len(mine) - 1) for song in chosen]
            for number, (epoch, chosen) in enumerate(mine)
        ]
