"""Run with: pytest tests/test_batches.py - plans, samples and padding, on records of noise and the tiny base model."""

import itertools
import json
import threading

import pytest
import torch

from ace_lora.commands import WrongInput
from ace_lora.lora import layers as adapter
from ace_lora.records.cache import RecordCache
from ace_lora.records.record import read_record
from ace_lora.tiny_base.make import make_tiny_base
from ace_lora.training.batches import (
    Batch,
    Draw,
    Failed,
    Plan,
    Prefetcher,
    SampleSettings,
    SongDataset,
    batch_stream,
    collate,
    crop_place,
    scan_dataset,
)
from ace_lora.training.step import training_losses
from ace_lora.v1.flow_matching import build_schedule
from ace_lora.v1.transformer import load_transformer
from tests.training_data import make_record, make_records

# --- Plan ---


def songs_of(plan, steps, process=0):
    return [[draw.song for draw in batch] for step in steps for batch in plan.draws(step, process)]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 20])
def test_each_epoch_has_each_song_once(batch_size):
    plan = Plan(range(10, 20), seed=1, batch_size=batch_size)
    per_epoch = plan.batches_per_epoch
    assert per_epoch == -(-10 // batch_size)
    epochs = [songs_of(plan, range(e * per_epoch, (e + 1) * per_epoch)) for e in range(3)]
    for batches in epochs:
        assert sorted(itertools.chain(*batches)) == list(range(10))
    if batch_size < 4:
        assert epochs[0] != epochs[1]


def test_batches_hold_songs_of_similar_length():
    frames = [100 * (i % 2) + i for i in range(32)]
    plan = Plan(frames, seed=0, batch_size=4)
    for batch in songs_of(plan, range(8)):
        assert len({song % 2 for song in batch}) == 1


def test_a_step_is_the_same_however_it_is_reached():
    one, other = Plan([5] * 7, seed=2, batch_size=2), Plan([5] * 7, seed=2, batch_size=2)
    steps = [one.draws(step) for step in range(12)]
    assert [other.draws(step) for step in reversed(range(12))] == steps[::-1]
    assert Plan([5] * 7, seed=3, batch_size=2).draws(0) != steps[0]


def test_accumulation_and_processes_share_one_order():
    single = Plan([5] * 5, seed=0)
    order = [batch[0] for batch in songs_of(single, range(24))]
    accumulated = Plan([5] * 5, seed=0, accumulate=4)
    assert [batch[0] for batch in songs_of(accumulated, range(6))] == order
    shared = Plan([5] * 5, seed=0, accumulate=2, processes=2)
    for step in range(6):
        mine, others = (songs_of(shared, [step], process) for process in (0, 1))
        assert [mine[0][0], others[0][0], mine[1][0], others[1][0]] == order[4 * step : 4 * step + 4]
    assert [accumulated.epoch_of(step) for step in range(6)] == [0, 1, 2, 3, 3, 4]
    assert [single.epoch_of(step) for step in (0, 4, 5)] == [0, 0, 1]
    assert accumulated.steps_per_epochs(1) == 2 and accumulated.steps_per_epochs(4) == 5


def test_weights_of_a_step_sum_to_one_over_all_processes():
    plan = Plan([5] * 5, seed=0, batch_size=2, accumulate=2, processes=2)
    for step in range(5):
        batches = [batch for process in (0, 1) for batch in plan.draws(step, process)]
        assert sum(draw.weight for batch in batches for draw in batch) == pytest.approx(1)
        for process in (0, 1):
            assert [batch[0].last_of_step for batch in plan.draws(step, process)] == [False, True]


# --- Scanning ---


def test_scan_reads_lengths_tags_and_digests(tmp_path):
    make_records(tmp_path, None)
    songs = scan_dataset(tmp_path, need_ssl=True)
    assert [(song.name, song.frames, song.lyric_tokens) for song in songs] == [
        ("song 0", 24, 5),
        ("song 1", 17, 8),
        ("song 2", 30, 11),
    ]
    assert songs[0].tags == ["rock", "drums", "120 bpm", "female vocals", "sad"]
    make_record(tmp_path, "song 1", 17, lyric_tokens=8, scale=1.0001)
    again = scan_dataset(tmp_path, need_ssl=True)
    assert [one.digest == other.digest for one, other in zip(songs, again, strict=True)] == [True, False, True]


def test_every_unusable_record_is_named(tmp_path):
    make_records(tmp_path, None, (9, 9))
    make_record(tmp_path, "no features", ssl="none")
    (tmp_path / "song 0.safetensors").write_bytes(b"{}")
    with pytest.raises(WrongInput) as caught:
        scan_dataset(tmp_path, need_ssl=True)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 2 and "song 0.safetensors" in text and "'no features'" in text


# --- Samples ---


@pytest.fixture
def songs(tmp_path):
    make_records(tmp_path / "prep", None)
    return scan_dataset(tmp_path / "prep", need_ssl=True)


def draw(song, epoch=0):
    return Draw(song, epoch, 0, 1.0, True)


def test_samples_follow_from_seed_epoch_and_song_only(songs):
    one, other = SongDataset(songs, SampleSettings(seed=1)), SongDataset(songs, SampleSettings(seed=1))
    torch.manual_seed(0)
    first = one[draw(1)]
    torch.rand(3)
    other[draw(0)]
    second = other[Draw(1, 0, 7, 0.5, False)]
    assert torch.equal(first.noise, second.noise) and torch.equal(first.text_ids, second.text_ids)
    assert first.timestep_index == second.timestep_index
    for changed in (one[draw(1, epoch=1)], SongDataset(songs, SampleSettings(seed=2))[draw(1)]):
        assert not torch.equal(first.noise, changed.noise)
    assert first.noise.shape == first.latents.shape == (8, 16, 17)
    assert first.noise.std().item() == pytest.approx(1, abs=0.1)


def test_without_ssl_the_features_are_not_read(songs, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "ace_lora.records.cache.read_record", lambda path, *, ssl: asked.append(ssl) or read_record(path, ssl=ssl)
    )
    assert SongDataset(songs, SampleSettings(ssl=False))[draw(0)].ssl == {}
    kept = {0: {"mert": torch.ones(5, 2, dtype=torch.int8), "mhubert": torch.ones(3, 2, dtype=torch.int8)}}
    sample = SongDataset(songs, SampleSettings(), kept)[draw(0)]
    assert asked == [False, False]
    assert {name: len(rows) for name, rows in sample.ssl.items()} == {"mert": 5, "m-hubert": 3}


def test_crops_are_random_and_cut_everything_alike(songs):
    dataset = SongDataset(songs, SampleSettings(max_frames=10))
    samples = [dataset[draw(2, epoch)] for epoch in range(30)]
    whole = SongDataset(songs, SampleSettings())[draw(2)]
    firsts = set()
    for sample in samples:
        (first,) = (
            place for place in range(21) if torch.equal(whole.latents[:, :, place : place + 10], sample.latents)
        )
        firsts.add(first)
        assert torch.equal(sample.ssl["mert"], whole.ssl["mert"][7 * first : 7 * first + 70])
        assert sample.noise.shape == (8, 16, 10)
    assert len(firsts) > 8
    places = {crop_place(12, 10, torch.Generator().manual_seed(seed)) for seed in range(40)}
    assert places == {(0, 10), (1, 10), (2, 10)}


def test_timed_lyrics_follow_the_crop(tmp_path):
    make_tiny_base(tmp_path / "tiny")
    lines = [[0.0, "one"], [1.0, "two"], [2.0, "three"]]
    make_record(tmp_path / "prep", "timed", 32, timed_lines=lines, lyric_language="en")
    make_record(tmp_path / "prep", "untimed", 32, timed_lines=[[None, "one"]])
    songs = scan_dataset(tmp_path / "prep", need_ssl=True)
    rows = json.loads((tmp_path / "tiny" / "ace_step_transformer" / "config.json").read_text(encoding="utf-8"))
    settings = SampleSettings(
        max_frames=10,
        lyric_vocabulary=tmp_path / "tiny" / "vocab.json",
        embedding_rows=rows["lyric_encoder_vocab_size"],
    )
    dataset = SongDataset(songs, settings)
    timed = {tuple(dataset[draw(0, epoch)].lyric_ids.tolist()) for epoch in range(12)}
    untimed = {tuple(dataset[draw(1, epoch)].lyric_ids.tolist()) for epoch in range(12)}
    assert len(timed) > 1 and len(untimed) == 1
    assert isinstance(dataset[draw(0)].lyric_ids, torch.Tensor)


def test_lyrics_dropout_is_per_song_and_of_its_probability(songs):
    dataset = SongDataset(songs, SampleSettings(lyrics_dropout=0.3, ssl=False))
    dropped = [dataset[draw(0, epoch)].lyrics_dropped for epoch in range(300)]
    assert sum(dropped) / 300 == pytest.approx(0.3, abs=0.07)
    batch = collate([dataset[draw(0, dropped.index(True))], dataset[draw(0, dropped.index(False))]])
    assert batch.lyric_mask.tolist() == [[0.0] * 5, [1.0] * 5]
    assert not batch.lyric_ids[0].any() and batch.lyric_ids[1].any()


def test_a_record_that_vanished_is_reported_and_not_replaced(songs):
    songs[1].path.unlink()
    batch = collate([SongDataset(songs, SampleSettings())[draw(place)] for place in range(3)])
    assert isinstance(batch, Failed) and "'song 1'" in batch.message


# --- Batches ---


def test_padding_and_masks(songs):
    dataset = SongDataset(songs, SampleSettings(tag_dropout=0.0))
    batch = collate([dataset[draw(0)], dataset[draw(1)]])
    assert batch.latents.shape == (2, 8, 16, 24)
    assert batch.frame_mask.sum(1).tolist() == [24, 17]
    assert not batch.latents[1, :, :, 17:].any() and not batch.noise[1, :, :, 17:].any()
    assert batch.text_mask is None and batch.lyric_mask.sum(1).tolist() == [5, 8]
    single = collate([dataset[draw(1)]])
    assert single.frame_mask is single.text_mask is single.lyric_mask is None
    assert torch.equal(single.latents[0], batch.latents[1, :, :, :17])


def test_gradient_of_a_batch_is_the_mean_of_its_songs_gradients(tmp_path):
    make_tiny_base(tmp_path / "tiny")
    make_records(tmp_path / "prep", tmp_path / "tiny", (24, 13, 31))
    model = load_transformer(tmp_path / "tiny" / "ace_step_transformer", dtype=torch.float32)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "linear_q", "linear_v", "projectors.0.0"]
    adapter.inject_adapter(model, {"r": 4, "lora_alpha": 1, "use_rslora": True, "target_modules": targets})
    tensors = adapter.adapter_tensors(model)
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors.values():
        tensor.data.normal_(generator=generator).mul_(0.3)
    dataset = SongDataset(scan_dataset(tmp_path / "prep", need_ssl=True), SampleSettings())
    samples = [dataset[draw(place, epoch=1)] for place in range(3)]

    def gradients(chosen):
        for tensor in tensors.values():
            tensor.grad = None
        batch = collate(chosen)
        batch.text_states = torch.cos(batch.text_ids[..., None] * torch.arange(1, 33) * 0.1)
        losses = training_losses(model, build_schedule(), batch, ssl_coeff=0.7)
        losses["loss"].backward()
        return losses["loss"].item(), {key: tensor.grad.clone() for key, tensor in tensors.items()}

    singles = [gradients([sample]) for sample in samples]
    loss, together = gradients(samples)
    assert loss == pytest.approx(sum(value for value, _ in singles) / 3, rel=1e-5)
    for key, gradient in together.items():
        mean = sum(single[key] for _, single in singles) / 3
        assert (gradient - mean).norm() <= 2e-5 * mean.norm() + 1e-9, key


@pytest.mark.parametrize("num_workers", [0, 3])
def test_stream_gives_the_steps_asked_for(songs, num_workers):
    dataset = SongDataset(songs, SampleSettings(ssl=False))
    plan = Plan([song.frames for song in songs], seed=0, accumulate=2)
    batches = list(batch_stream(dataset, plan, first=3, last=9, num_workers=num_workers))
    assert all(isinstance(batch, Batch) for batch in batches)
    assert [batch.draws[0].step for batch in batches] == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]
    assert [batch.draws[0].song for batch in batches] == [*itertools.chain(*songs_of(plan, range(3, 9)))]


def test_threads_that_read_end_with_the_stream(songs):
    plan = Plan([song.frames for song in songs], seed=0)
    stream = batch_stream(SongDataset(songs, SampleSettings()), plan, first=0, last=10**6, num_workers=2)
    batches = Prefetcher(stream, lambda batch: batch, 10**6)
    next(iter(batches))
    assert any(thread.name.startswith("records") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith(("records", "prefetch")) for thread in threading.enumerate())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_later_epochs_read_no_file(songs, num_workers):
    dataset = SongDataset(songs, SampleSettings(), cache=RecordCache(10**9))
    plan = Plan([song.frames for song in songs], seed=0)
    stream = batch_stream(dataset, plan, first=0, last=4 * len(songs), num_workers=num_workers)
    first = [next(stream) for _ in range(2 * len(songs))]
    for song in songs:
        song.path.unlink()
    later = list(stream)
    assert all(isinstance(batch, Batch) for batch in first + later) and len(later) == 2 * len(songs)
    latents = {batch.names[0]: batch.latents for batch in first}
    assert all(torch.equal(batch.latents, latents[batch.names[0]]) for batch in later)
    # What was drawn for a song has left the kept record as it was.
    again = SongDataset(songs, SampleSettings(), cache=dataset.cache)
    assert torch.equal(again[draw(0, epoch=1)].text_ids, dataset[draw(0, epoch=1)].text_ids)
