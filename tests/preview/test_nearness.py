"""How near samples are to the songs of a training, on features whose distances are known."""

from __future__ import annotations

import pytest
import torch

from ace_lora.preview.nearness import nearness, training_features
from ace_lora.records.format import Record
from ace_lora.records.record import write_record


def music(centre, rows=600, width=16, seed=0):
    """Rows around a centre, which changes a little in the course of the song."""
    generator = torch.Generator().manual_seed(seed)
    drift = torch.linspace(-0.3, 0.3, rows)[:, None]
    return centre + drift + torch.randn(rows, width, generator=generator)


@pytest.fixture(scope="module")
def songs():
    generator = torch.Generator().manual_seed(9)
    style = torch.randn(16, generator=generator)
    return {
        f"song {number}": music(style + 0.5 * torch.randn(16, generator=generator), seed=number) for number in range(4)
    }


def test_a_part_of_a_song_is_a_copy(songs):
    copied = songs["song 2"][150:450] + 0.05 * torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    near = nearness(copied, songs)
    assert near.song == "song 2" and near.copies and near.distance < 0.2 < near.closest_pair
    assert "may copy" in near.sentence()


def test_a_song_of_the_same_style_is_none(songs):
    centre = torch.stack([song.mean(dim=0) for song in songs.values()]).mean(dim=0)
    own = music(centre + 0.5 * torch.randn(16, generator=torch.Generator().manual_seed(5)), rows=300, seed=8)
    near = nearness(own, songs)
    assert not near.copies and near.distance < 1.5 and "as near as the songs" in near.sentence()


def test_another_style_is_far(songs):
    near = nearness(music(torch.full((16,), 6.0), rows=300, seed=8), songs)
    assert not near.copies and near.distance > 3 and "further than" in near.sentence()


def test_a_single_song_gives_a_distance_but_no_judgement(songs):
    near = nearness(songs["song 1"][:200], {"song 1": songs["song 1"]})
    assert near.closest_pair is None and not near.copies and "only song" in near.sentence()
    with pytest.raises(ValueError, match="no songs"):
        nearness(songs["song 1"], {})


def test_features_are_read_from_records_that_have_them(tmp_path):
    features = torch.randn(100, 1024)
    for name, mert in (("with", features), ("without", None)):
        record = Record(name, torch.zeros(8, 16, 4), torch.tensor([1]), torch.tensor([0]), mert=mert)
        write_record(tmp_path / f"{name}.safetensors", record)
    (read,) = (found := training_features(tmp_path)).values()
    assert list(found) == ["with"]
    torch.testing.assert_close(read, features, rtol=0, atol=float(features.abs().max()) / 127)
