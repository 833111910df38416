"""Run with: pytest tests/test_validation.py"""

import pytest
import torch

from ace_lora.training.batches import SampleReader, SampleSettings
from ace_lora.training.songs import scan_dataset
from ace_lora.training.validation import TIMES, Validation, choose_songs
from tests.training_data import make_record, make_records


def test_choice_of_songs():
    few, many = [f"s{i}" for i in range(5)], [f"s{i}" for i in range(60)]
    assert choose_songs(few, -1) == ([0, 1, 2, 3, 4], False)
    places, held_out = choose_songs(many, -1)
    assert len(places) == 6 and held_out
    assert choose_songs(many, 0) == (choose_songs(many, 8)[0], False)
    assert choose_songs(few, 2)[1] and len(choose_songs(few, 2)[0]) == 2
    assert choose_songs([f"t{i}" for i in range(300)], -1)[0].__len__() == 8
    # The choice is of names: it stays when the order of the files changes.
    assert {many[place] for place in places} == {many[::-1][place] for place in choose_songs(many[::-1], -1)[0]}


def test_noise_and_times_are_fixed_by_the_song(tmp_path):
    make_records(tmp_path / "a", None, (20, 15))
    make_record(tmp_path / "b", "another", 9)
    make_records(tmp_path / "b", None, (20, 15))
    batches = []
    for folder, settings in (("a", SampleSettings(seed=1)), ("b", SampleSettings(seed=2, tag_dropout=1.0))):
        songs = scan_dataset(tmp_path / folder, need_ssl=False)
        place = [song.name for song in songs].index("song 1")
        validation = Validation(SampleReader(songs, settings), [place], lambda batch: batch)
        batches.append([validation.batch(place, time) for time in range(TIMES)])
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.noise, other.noise) and torch.equal(one.timestep_indices, other.timestep_indices)
        assert torch.equal(one.text_ids, other.text_ids) and one.text_ids.shape[1] > 1  # with all its tags
    # Quantiles 1/8, 3/8, 5/8, 7/8 of a logit-normal time.
    assert [int(batch.timestep_indices) for batch in batches[0]] == [240, 421, 578, 759]


def test_loss_is_the_mean_over_songs_and_times(tmp_path):
    make_records(tmp_path, None, (20, 15))
    songs = scan_dataset(tmp_path, need_ssl=False)
    seen = []

    def loss(batch):
        seen.append((batch.names[0], int(batch.timestep_indices)))
        return torch.tensor(float(len(seen)))

    validation = Validation(SampleReader(songs, SampleSettings(max_frames=10)), [0, 1], lambda batch: batch)
    assert validation.loss(loss) == pytest.approx(4.5)
    assert len(set(seen)) == 8
    assert validation.batch(0, 0).latents.shape[-1] == 10
