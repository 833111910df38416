"""Run with: pytest tests/training/test_feed.py"""

import itertools
import threading

import pytest
import torch

from ace_lora.records.cache import RecordCache
from ace_lora.training.batches import Batch, SampleReader, SampleSettings
from ace_lora.training.feed import Feed, batch_stream
from ace_lora.training.plan import Plan
from ace_lora.training.songs import scan_dataset
from tests.training.test_batches import draw
from tests.training.test_plan import songs_of
from tests.training_data import make_records


@pytest.fixture
def songs(tmp_path):
    make_records(tmp_path / "prep", None)
    return scan_dataset(tmp_path / "prep", need_ssl=True)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_stream_gives_the_steps_asked_for(songs, num_workers):
    reader = SampleReader(songs, SampleSettings(ssl=False))
    plan = Plan([song.frames for song in songs], seed=0, accumulate=2)
    batches = list(batch_stream(reader, plan, first=3, last=9, num_workers=num_workers))
    assert all(isinstance(batch, Batch) for batch in batches)
    assert [batch.draws[0].step for batch in batches] == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]
    assert [batch.draws[0].song for batch in batches] == [*itertools.chain(*songs_of(plan, range(3, 9)))]


def test_threads_that_read_end_with_the_stream(songs):
    plan = Plan([song.frames for song in songs], seed=0)
    stream = batch_stream(SampleReader(songs, SampleSettings()), plan, first=0, last=10**6, num_workers=2)
    batches = Feed(stream, lambda batch: batch)
    next(iter(batches))
    assert any(thread.name.startswith("records") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith(("records", "feed")) for thread in threading.enumerate())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_later_epochs_read_no_file(songs, num_workers):
    reader = SampleReader(songs, SampleSettings(), cache=RecordCache(10**9))
    plan = Plan([song.frames for song in songs], seed=0)
    stream = batch_stream(reader, plan, first=0, last=4 * len(songs), num_workers=num_workers)
    first = [next(stream) for _ in range(2 * len(songs))]
    for song in songs:
        song.path.unlink()
    later = list(stream)
    assert all(isinstance(batch, Batch) for batch in first + later) and len(later) == 2 * len(songs)
    latents = {batch.names[0]: batch.latents for batch in first}
    assert all(torch.equal(batch.latents, latents[batch.names[0]]) for batch in later)
    # What was drawn for a song has left the kept record as it was.
    again = SampleReader(songs, SampleSettings(), cache=reader.cache)
    assert torch.equal(again[draw(0, epoch=1)].text_ids, reader[draw(0, epoch=1)].text_ids)


def test_feed_hands_over_errors_and_ends():
    def stream():
        yield 1
        raise ValueError("broken")

    batches = Feed(stream(), lambda item: item)
    iterator = iter(batches)
    assert next(iterator) == 1
    with pytest.raises(ValueError, match="broken"):
        next(iterator)
    batches.close()
    assert list(Feed(iter([1, 2, 3]), lambda item: item + 1)) == [2, 3, 4]
    endless = Feed(iter(lambda: 0, 1), lambda item: item)
    next(iter(endless))
    endless.close()
