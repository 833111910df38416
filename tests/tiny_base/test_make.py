"""The folder of a tiny base: its files, made again, foreign ones left alone, its command line."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from ace_lora.commands import WrongInput
from ace_lora.tiny_base.make import make_tiny_base

ROOT = Path(__file__).parents[2]
FILES = [
    "MERT-v1-330M/config.json",
    "MERT-v1-330M/model.safetensors",
    "ace_step_transformer/config.json",
    "ace_step_transformer/diffusion_pytorch_model.safetensors",
    "mHuBERT-147/config.json",
    "mHuBERT-147/model.safetensors",
    "music_dcae_f8c8/config.json",
    "music_dcae_f8c8/diffusion_pytorch_model.safetensors",
    "music_vocoder/config.json",
    "music_vocoder/diffusion_pytorch_model.safetensors",
    "tiny_base.json",
    "umt5-base/config.json",
    "umt5-base/model.safetensors",
    "umt5-base/special_tokens_map.json",
    "umt5-base/tokenizer.json",
    "umt5-base/tokenizer_config.json",
    "vocab.json",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_tiny_base(folder)
    return folder


def relative_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def digests(folder: Path) -> dict[str, str]:
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in relative_files(folder)}


def test_files_and_size(folder):
    assert relative_files(folder) == FILES
    assert sum((folder / name).stat().st_size for name in FILES) < 9_000_000


def test_same_bytes_each_time(folder, tmp_path):
    make_tiny_base(tmp_path / "again")
    assert digests(tmp_path / "again") == digests(folder)


def test_own_folder_is_made_again_and_foreign_files_in_it_stay(tmp_path):
    folder = tmp_path / "tiny"
    make_tiny_base(folder)
    expected = digests(folder)
    (folder / "vocab.json").write_text("damaged", encoding="utf-8")
    (folder / "music_vocoder" / "config.json").unlink()
    (folder / "mine.txt").write_text("keep", encoding="utf-8")
    make_tiny_base(folder)
    assert (folder / "mine.txt").read_text(encoding="utf-8") == "keep"
    (folder / "mine.txt").unlink()
    assert digests(folder) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_empty_folder_is_filled(tmp_path):
    assert [path.relative_to(tmp_path).as_posix() for path in make_tiny_base(tmp_path)] == FILES


def test_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "song.mp3").write_bytes(b"music")
    with pytest.raises(WrongInput, match="is not empty and was not made by this program"):
        make_tiny_base(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["song.mp3"]


def test_name_of_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(WrongInput, match="is a file"):
        make_tiny_base(tmp_path / "file")


def test_command_line(folder, tmp_path):
    def run(target: Path) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "ace_lora.tiny_base", str(target)]
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
        return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", env=environment)

    result = run(tmp_path / "小 base")
    assert result.returncode == 0, result.stderr
    assert "17 files" in result.stdout
    assert digests(tmp_path / "小 base") == digests(folder)

    result = run(tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
