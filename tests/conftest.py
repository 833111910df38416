"""What every test may need."""

from __future__ import annotations

import os
from pathlib import Path

# The published lyric vocabulary is not ours to ship. Where a folder above the clone has it, the tests that need it run.
if "ACE_LYRIC_VOCAB" not in os.environ:
    for folder in Path(__file__).resolve().parents:
        vocabulary = folder / "shared" / "data" / "lyric_vocab.json"
        if vocabulary.is_file():
            os.environ["ACE_LYRIC_VOCAB"] = str(vocabulary)
            break
