"""demo.py: the seven steps with their real commands, on a short song."""

from __future__ import annotations

import subprocess
import sys
import wave
from pathlib import Path

from safetensors import safe_open

import demo
from ace_lora.commands import run_script


def test_demo_runs_the_seven_steps_and_names_what_it_made(tmp_path: Path):
    output = tmp_path / "演示 run"  # given relative to the folder that the demo is started in
    answer = subprocess.run(
        [sys.executable, demo.__file__, "--output_dir", output.name, "--seconds", "4", "--max_steps", "6"],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for step in (
        "1. Prepare audio",
        "2. Generate prompts",
        "3.",
        "4.",
        "5. Preprocess",
        "6. Train",
        "7. LoRA strength",
    ):
        assert f"== {step}" in answer.stdout
    lora = output / "demo_lora.safetensors"
    assert f"LoRA file:  {lora}" in answer.stdout
    picture = Path(answer.stdout.split("Loss curve: ")[1].strip())
    assert picture.read_bytes().startswith(b"\x89PNG")
    with safe_open(lora, framework="pt") as file:
        keys = list(file.keys())
    assert any(key.endswith(".alpha") for key in keys) and any(key.endswith(".lora_A.weight") for key in keys)


def test_failed_step_is_named_and_ends_the_demo(tmp_path: Path):
    # A file where the tiny base model should go.
    output = tmp_path / "run"
    output.mkdir()
    (output / "tiny_base").write_text("in the way", encoding="utf-8")
    answer = subprocess.run(
        [sys.executable, demo.__file__, "--output_dir", str(output), "--seconds", "4", "--max_steps", "2"],
        capture_output=True,
        encoding="utf-8",
    )
    assert answer.returncode == 1
    assert "error: The step 'Tiny base model' ended with status" in answer.stderr
    assert "== 1." not in answer.stdout
    assert "Traceback" not in answer.stdout + answer.stderr
    assert (output / "tiny_base").read_text(encoding="utf-8") == "in the way"


def test_synthesised_song_is_stereo_and_alive(tmp_path: Path):
    demo.synthesise_song(tmp_path / "song.wav", seconds=1.5)
    with wave.open(str(tmp_path / "song.wav")) as song:
        assert (song.getnchannels(), song.getframerate(), song.getnframes()) == (2, 44100, 66150)
        frames = song.readframes(song.getnframes())
    assert len(set(frames)) == 256


def test_wrong_flags_are_told_at_once_and_nothing_is_written(tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    argv = ["--output_dir", str(tmp_path / "file"), "--seconds", "nan", "--max_steps", "0"]
    assert run_script(demo.main, demo.parse_args(argv)) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.startswith("error: --") for line in errors)
    (tmp_path / "old" / "Taudio" / "demo").mkdir(parents=True)
    assert run_script(demo.main, demo.parse_args(["--output_dir", str(tmp_path / "old")])) == 2
    assert "holds a demo already" in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "old", "Taudio", "demo"}
