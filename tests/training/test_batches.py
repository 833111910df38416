"""Run with: pytest tests/training/test_batches.py - samples and padding; records of noise, the tiny base model."""

import json

import pytest
import torch

from ace_lora.lora import layers as adapter
from ace_lora.records.record import read_record
from ace_lora.tiny_base.make import make_tiny_base
from ace_lora.training.batches import Failed, SampleReader, SampleSettings, collate, random_crop
from ace_lora.training.plan import Draw
from ace_lora.training.songs import scan_dataset
from ace_lora.training.step import training_losses
from ace_lora.v1.flow_matching import build_schedule
from ace_lora.v1.transformer import load_transformer
from tests.training_data import make_record, make_records


@pytest.fixture
def songs(tmp_path):
    make_records(tmp_path / "prep", None)
    return scan_dataset(tmp_path / "prep", need_ssl=True)


def draw(song, epoch=0):
    return Draw(song, epoch, 0, 1.0, True)


def test_samples_follow_from_seed_epoch_and_song_only(songs):
    one, other = SampleReader(songs, SampleSettings(seed=1)), SampleReader(songs, SampleSettings(seed=1))
    torch.manual_seed(0)
    first = one[draw(1)]
    torch.rand(3)
    other[draw(0)]
    second = other[Draw(1, 0, 7, 0.5, False)]
    assert torch.equal(first.noise, second.noise) and torch.equal(first.text_ids, second.text_ids)
    assert first.timestep_index == second.timestep_index
    for changed in (one[draw(1, epoch=1)], SampleReader(songs, SampleSettings(seed=2))[draw(1)]):
        assert not torch.equal(first.noise, changed.noise)
    assert first.noise.shape == first.latents.shape == (8, 16, 17)
    assert first.noise.std().item() == pytest.approx(1, abs=0.1)


def test_without_ssl_the_features_are_not_read(songs, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "ace_lora.records.cache.read_record", lambda path, *, ssl: asked.append(ssl) or read_record(path, ssl=ssl)
    )
    assert SampleReader(songs, SampleSettings(ssl=False))[draw(0)].ssl == {}
    kept = {0: {"mert": torch.ones(5, 2, dtype=torch.int8), "mhubert": torch.ones(3, 2, dtype=torch.int8)}}
    sample = SampleReader(songs, SampleSettings(), kept)[draw(0)]
    assert asked == [False, False]
    assert {name: len(rows) for name, rows in sample.ssl.items()} == {"mert": 5, "m-hubert": 3}


def test_crops_are_random_and_cut_everything_alike(songs):
    reader = SampleReader(songs, SampleSettings(max_frames=10))
    samples = [reader[draw(2, epoch)] for epoch in range(30)]
    whole = SampleReader(songs, SampleSettings())[draw(2)]
    firsts = set()
    for sample in samples:
        (first,) = (
            place for place in range(21) if torch.equal(whole.latents[:, :, place : place + 10], sample.latents)
        )
        firsts.add(first)
        assert torch.equal(sample.ssl["mert"], whole.ssl["mert"][7 * first : 7 * first + 70])
        assert sample.noise.shape == (8, 16, 10)
    assert len(firsts) > 8
    places = {random_crop(12, 10, torch.Generator().manual_seed(seed)) for seed in range(40)}
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
    reader = SampleReader(songs, settings)
    timed = {tuple(reader[draw(0, epoch)].lyric_ids.tolist()) for epoch in range(12)}
    untimed = {tuple(reader[draw(1, epoch)].lyric_ids.tolist()) for epoch in range(12)}
    assert len(timed) > 1 and len(untimed) == 1
    assert isinstance(reader[draw(0)].lyric_ids, torch.Tensor)


def test_lyrics_dropout_is_per_song_and_of_its_probability(songs):
    reader = SampleReader(songs, SampleSettings(lyrics_dropout=0.3, ssl=False))
    dropped = [reader[draw(0, epoch)].lyrics_dropped for epoch in range(300)]
    assert sum(dropped) / 300 == pytest.approx(0.3, abs=0.07)
    batch = collate([reader[draw(0, dropped.index(True))], reader[draw(0, dropped.index(False))]])
    assert batch.lyric_mask.tolist() == [[0.0] * 5, [1.0] * 5]
    assert not batch.lyric_ids[0].any() and batch.lyric_ids[1].any()


def test_a_record_that_vanished_is_reported_and_not_replaced(songs):
    songs[1].path.unlink()
    batch = collate([SampleReader(songs, SampleSettings())[draw(index)] for index in range(3)])
    assert isinstance(batch, Failed) and "'song 1'" in batch.message


def test_padding_and_masks(songs):
    reader = SampleReader(songs, SampleSettings(tag_dropout=0.0))
    batch = collate([reader[draw(0)], reader[draw(1)]])
    assert batch.latents.shape == (2, 8, 16, 24)
    assert batch.frame_mask.sum(1).tolist() == [24, 17]
    assert not batch.latents[1, :, :, 17:].any() and not batch.noise[1, :, :, 17:].any()
    assert batch.text_mask is None and batch.lyric_mask.sum(1).tolist() == [5, 8]
    single = collate([reader[draw(1)]])
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
    reader = SampleReader(scan_dataset(tmp_path / "prep", need_ssl=True), SampleSettings())
    samples = [reader[draw(index, epoch=1)] for index in range(3)]

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
