"""Sizes are those of the published model with a song of 240 s."""

import pytest

from ace_lora.model.recompute import BlockMemory
from ace_lora.training.memory_plan import Recomputation, choose_recomputation

SIZES = BlockMemory(kept=183_000_000, without_product=117_000_000, recomputed=13_000_000)


@pytest.mark.parametrize(
    ("free_gb", "expected"),
    [
        (100, Recomputation(0, 0)),
        (5.6, Recomputation(0, 0)),
        (5.0, Recomputation(0, 8)),
        (4.0, Recomputation(0, 22)),
        (1.9, Recomputation(19, 5)),
        (0.5, Recomputation(24, 0)),
        (-3, Recomputation(24, 0)),
    ],
)
def test_least_recomputation_that_fits(free_gb, expected):
    assert choose_recomputation(24, SIZES, int(free_gb * 1e9)) == expected


def test_more_memory_never_means_more_recomputation():
    chosen = [choose_recomputation(24, SIZES, gb * 10**8) for gb in range(70)]
    assert chosen == sorted(chosen, key=lambda choice: (-choice.blocks, -choice.products))
