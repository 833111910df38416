"""Every kind of lyrics text that people bring: `python -m pytest tests/lyrics/test_import_cases.py`."""

import pytest

from ace_lora.lyrics.formats import read_entries
from ace_lora.lyrics.sources import found_lyrics, looks_like_tags
from tests.lyrics.import_cases import CASES


@pytest.mark.parametrize(("text", "sung"), [case[2:] for case in CASES], ids=[f"{k}: {n[:40]}" for k, n, _, _ in CASES])
def test_what_is_sung(text, sung):
    found = None if looks_like_tags(text) else found_lyrics("song.lrc", read_entries(text))
    assert (found and found.text) == sung
