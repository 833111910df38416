"""The log-mel spectrogram against the golden data."""

from __future__ import annotations

import numpy as np
import torch

from ace_lora.v1 import mel
from ace_lora.v1.mel import denormalise, log_mel, normalise
from tests.golden_audio import assert_close, assert_digest, audio, golden_json, golden_tensors


def test_log_mel_equals_the_golden():
    case, stored = golden_json("mel"), golden_tensors("mel")
    result = log_mel(torch.from_numpy(audio(case["input"])))
    assert list(result.shape) == case["log_mel_shape"] and result.dtype == torch.float32
    assert_close(result, stored["log_mel"], 1e-5)
    assert_digest(result, case["log_mel_digest"], "log_mel", 1e-5)


def test_log_mel_of_digital_silence_equals_the_golden():
    result = log_mel(torch.zeros(1, 4096))
    assert_close(result, golden_tensors("mel")["log_mel_zero_audio"], 1e-5)


def test_spectrum_of_first_and_last_frame_equals_the_golden(monkeypatch):
    """With the filter bank replaced by the identity the magnitudes themselves come out."""
    case, stored = golden_json("mel"), golden_tensors("mel")
    monkeypatch.setattr(mel, "mel_filter_bank", lambda: np.eye(1025))
    monkeypatch.setattr(mel, "N_MELS", 1025)
    magnitude = log_mel(torch.from_numpy(audio(case["input"]))).exp()
    assert_close(magnitude[:, :, 0], stored["linear_frame0"], 1e-5)
    assert_close(magnitude[:, :, -1], stored["linear_last"], 1e-5)


def test_blocks_equal_the_whole(monkeypatch):
    wave = torch.from_numpy(audio(golden_json("mel")["input"]))
    whole = log_mel(wave)
    monkeypatch.setattr(mel, "_FRAMES_PER_BLOCK", 5)
    torch.testing.assert_close(log_mel(wave), whole, rtol=0, atol=1e-6)


def test_normalisation_has_its_inverse_and_the_stated_ends():
    values = torch.tensor([-11.0, -4.0, 3.0])
    assert normalise(values).tolist() == [-1, 0, 1]
    assert denormalise(normalise(values)).tolist() == values.tolist()
