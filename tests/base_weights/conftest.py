import shutil
from pathlib import Path

import pytest

from ace_lora.base_weights import find
from ace_lora.tiny_base.make import make_tiny_base


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_tiny_base(folder)
    return folder


@pytest.fixture(autouse=True)
def no_caches_of_this_computer(tmp_path, monkeypatch):
    """The tests see neither the weights nor the settings that the computer they run on may have."""
    monkeypatch.setattr(find, "DEFAULT_CHECKPOINT_DIR", tmp_path / "default cache")
    monkeypatch.setattr(find, "LYRIC_VOCABULARY_IN_FORK", tmp_path / "fork" / "vocab.json")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub cache"))
    for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "ACE_LYRIC_VOCAB_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "my base"))
