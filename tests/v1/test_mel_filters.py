"""The mel filters against the golden data; that a tiny base holds the same ones is in `tests/tiny_base`."""

from __future__ import annotations

import numpy as np

from ace_lora.v1.mel_filters import mel_filter_bank
from tests.golden_audio import assert_digest, golden_json, golden_tensors


def test_filter_bank_equals_the_golden():
    case, stored = golden_json("mel"), golden_tensors("mel")
    bank = mel_filter_bank()
    assert list(bank.shape) == case["fb_shape"]
    assert_digest(bank, case["fb_digest"], "fb", 1e-5)
    assert [int(np.flatnonzero(column)[0]) for column in bank.T] == case["fb_first_nonzero_row"]
    assert [int(np.count_nonzero(column)) for column in bank.T] == case["fb_nonzero_count"]
    # The golden bank was computed in float32, on values of at most 0.03.
    np.testing.assert_allclose(bank.sum(axis=0), stored["fb_col_sum"], atol=1e-6)
    np.testing.assert_allclose(bank.sum(axis=1), stored["fb_row_sum"], atol=1e-6)
    np.testing.assert_allclose(bank.max(axis=0), stored["fb_col_max"], atol=3e-7)
    np.testing.assert_allclose(bank[100:104], stored["fb_rows_100_103"], atol=3e-7)
