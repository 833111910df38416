"""Run with: pytest tests/test_training_features.py - real audio files, tiny MERT and mHuBERT."""

import numpy as np
import pytest
import soundfile
import torch

from ace_lora.audio.decode import prepare_waveform, read_audio
from ace_lora.commands import StepFailed
from ace_lora.device import choose_device
from ace_lora.tiny_base.make import make_tiny_base
from ace_lora.training.batches import SampleReader, SampleSettings
from ace_lora.training.songs import scan_dataset
from ace_lora.training.ssl_at_training import compute_features
from ace_lora.v1.ssl_features import MERT, MHUBERT, extract_features, load_mert, load_mhubert
from tests.training.test_batches import draw
from tests.training_data import make_record


@pytest.fixture
def data(tmp_path):
    make_tiny_base(tmp_path / "tiny")
    rate, generator = 22050, np.random.default_rng(0)
    for name in ("one", "两"):
        time = np.arange(4 * rate) / rate
        wave = np.sin(time * 2000 * (1 + 0.2 * np.sin(time * 3))) * 0.3 + 0.05 * generator.standard_normal(len(time))
        soundfile.write(tmp_path / f"{name}.flac", wave, rate)
        make_record(tmp_path / "prep", name, 43, ssl="at_training", audio=str(tmp_path / f"{name}.flac"))
    weights = {"mert": tmp_path / "tiny" / "MERT-v1-330M", "mhubert": tmp_path / "tiny" / "mHuBERT-147"}
    return scan_dataset(tmp_path / "prep", need_ssl=True), weights, choose_device("cpu")


def test_rows_point_where_the_features_do(data):
    songs, weights, device = data
    features = compute_features(songs, [0, 1], weights, device)
    for place, song in enumerate(songs):
        wave, _ = prepare_waveform(read_audio(song.metadata["audio"]))
        for name, branch, load in (("mert", MERT, load_mert), ("mhubert", MHUBERT, load_mhubert)):
            exact = extract_features(load(weights[name], device="cpu", dtype=torch.float32), wave, branch)
            rows = features[place][name]
            assert rows.dtype == torch.int8 and rows.shape == exact.shape
            assert torch.cosine_similarity(rows.float(), exact).min() > 0.999
    sample = SampleReader(songs, SampleSettings(), features)[draw(1)]
    assert torch.equal(sample.ssl["m-hubert"], features[1]["mhubert"])


def test_every_song_that_cannot_be_read_is_named(data, tmp_path):
    songs, weights, device = data
    (tmp_path / "one.flac").write_bytes(b"no audio")
    (tmp_path / "两.flac").unlink()
    with pytest.raises(StepFailed) as caught:
        compute_features(songs, [0, 1], weights, device)
    assert "'one'" in str(caught.value) and "'两'" in str(caught.value)
