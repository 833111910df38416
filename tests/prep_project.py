"""A folder of songs on its way through steps 4 and 5, for tests; its fixtures are in conftest.py."""

from pathlib import Path

import numpy as np
import soundfile
import torch

import convert2hf_dataset_new as convert
import preprocess_dataset_new as preprocess
from ace_lora.commands import run_script
from ace_lora.records.format import list_records
from ace_lora.records.record import read_record

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "audio"
TENSORS = ("target_latents", "text_token_ids", "lyric_token_ids", "mert", "mhubert", "mert_scale", "mhubert_scale")


def write_song(path: Path, seconds: float, rate: int = 44100, channels: int = 2, seed: int = 0) -> None:
    noise = np.random.default_rng(seed).standard_normal((int(seconds * rate), channels)) * 0.1
    tone = 0.3 * np.sin(np.arange(len(noise))[:, None] * 0.03 * (seed + 1))
    formats = {".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3"}
    soundfile.write(path, (noise + tone).astype(np.float32), rate, format=formats[path.suffix])


class Project:
    """A folder of songs on its way through steps 4 and 5."""

    def __init__(self, folder: Path, tiny: Path, capsys):
        self.folder, self.tiny, self.capsys = folder, tiny, capsys
        self.songs = folder / "我的 歌"
        self.prep = folder / "prep"
        self.songs.mkdir()

    def add(self, name: str, prompt: str, lyrics: str | None = None, **sound) -> Path:
        path = self.songs / name
        write_song(path, **{"seconds": 3.2, **sound})
        (self.songs / f"{path.stem}_prompt.txt").write_text(prompt, encoding="utf-8")
        if lyrics is not None:
            (self.songs / f"{path.stem}_lyrics.txt").write_text(lyrics, encoding="utf-8")
        return path

    def convert(self, output: str = "filenames") -> None:
        arguments = ["--data_dir", str(self.songs), "--output_name", str(self.folder / output)]
        assert run_script(convert.main, convert.parse_args(arguments)) == 0
        self.capsys.readouterr()

    def arguments(self, *more: str) -> list[str]:
        paths = {"--input_name": "filenames", "--output_dir": "prep"}
        given = [part for flag, name in paths.items() for part in (flag, str(self.folder / name)) if flag not in more]
        return [*given, "--checkpoint_dir", str(self.tiny), "--device", "cpu", *more]

    def preprocess(self, *more: str) -> tuple[int, str, str]:
        """Exit status, stdout and the error lines of stderr."""
        status = run_script(preprocess.main, preprocess.parse_args(self.arguments(*more)))
        captured = self.capsys.readouterr()
        errors = captured.err[captured.err.find("error: ") :] if "error: " in captured.err else ""
        return status, captured.out, errors

    def records(self) -> dict[str, dict]:
        """Tensors and metadata of every file in the training folder; fails where one is no record."""
        assert self.files() == [path.name for path in list_records(self.prep)]
        result = {}
        for path in list_records(self.prep):
            record = read_record(path)
            result[path.stem] = {name: getattr(record, name) for name in TENSORS} | {"metadata": record.metadata}
        return result

    def files(self) -> list[str]:
        """What the training folder holds beside the bin."""
        return sorted(path.name for path in self.prep.iterdir() if path.name != ".removed")

    def others(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} - {self.songs.name, "filenames", "prep"}


def lines_of(out: str, start: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith(start)]


def same(first: dict, second: dict, names=TENSORS) -> bool:
    return all(
        first[name] is second[name] or (first[name] is not None and torch.equal(first[name], second[name]))
        for name in names
    )
