"""What every test may need."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.prep_project import Project

# The published lyric vocabulary is not ours to ship. Where a folder above the clone has it, the tests that need it run.
if "ACE_LYRIC_VOCAB" not in os.environ:
    for folder in Path(__file__).resolve().parents:
        vocabulary = folder / "shared" / "data" / "lyric_vocab.json"
        if vocabulary.is_file():
            os.environ["ACE_LYRIC_VOCAB"] = str(vocabulary)
            break


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The tiny base model; not to be changed."""
    from ace_lora.tiny_base.make import make_tiny_base

    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_tiny_base(folder)
    return folder


@pytest.fixture
def project(tmp_path, tiny, capsys) -> Project:
    """A folder without songs for steps 4 and 5."""
    from tests.prep_project import Project

    return Project(tmp_path, tiny, capsys)


@pytest.fixture
def two_songs(project) -> Project:
    """One song with lyrics and one without, as a dataset."""
    project.add("夜曲.flac", "folk, guitar", "[verse]\nThe river carries all the light away")
    project.add("b.wav", "ambient", seconds=3.6, rate=22050, channels=1, seed=1)
    project.convert()
    return project
