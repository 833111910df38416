"""The whole workflow on a synthesised song and the tiny base model: no window, no download, no card.

    python start.py demo        (or, inside an environment that has the requirements: python demo.py)

Writes everything into a new folder `demo/<date>`: the song, its texts, dataset, records, LoRA, and the picture of the
loss curve. Prints the real command of every step. The tiny model knows nothing of music: the demo shows that the
machine can do every step, not how a LoRA sounds.
"""

from __future__ import annotations

import argparse
import math
import random
import struct
import subprocess
import sys
import time
import wave
from datetime import datetime
from pathlib import Path

from ace_lora.commands import StepFailed, WrongInput, run_script

HOME = Path(__file__).resolve().parent
SAMPLE_RATE_HZ = 44100
BEATS_PER_MINUTE = 96
LYRICS = """[ti:Demo]
[00:00.50][verse]
[00:00.50]Morning light upon the wire
[00:05.00]Every note a little fire
[00:10.00][chorus]
[00:10.00]Sing it once and sing it slow
[00:15.00]Let the river overflow
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Run the seven steps on a synthesised song with the tiny base model.")
    parser.add_argument("--output_dir", type=Path, help="new folder for everything (default: demo/<date>)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the song (default: 20)")
    parser.add_argument("--max_steps", type=int, default=100, help="training steps (default: 100)")
    return parser.parse_args(argv)


def synthesise_song(path: Path, seconds: float) -> None:
    """Write a stereo 16-bit WAV of four chords, a bass, a lead and a beat: a song in four voices."""
    chords = ((220.00, 261.63, 329.63), (174.61, 220.00, 261.63), (196.00, 246.94, 293.66), (164.81, 196.00, 246.94))
    beat = 60 / BEATS_PER_MINUTE
    noise = random.Random(0)
    frames = bytearray()
    for n in range(int(seconds * SAMPLE_RATE_HZ)):
        t = n / SAMPLE_RATE_HZ
        chord = chords[int(t / (4 * beat)) % 4]
        since_beat = t % beat
        pad = sum(math.sin(2 * math.pi * f * t) for f in chord) / 3
        bass = math.sin(math.pi * chord[0] * t) * math.exp(-3 * since_beat)
        lead = math.sin(2 * math.pi * 2 * chord[int(t / beat) % 3] * t) * math.exp(-5 * since_beat)
        kick = math.sin(2 * math.pi * 55 * since_beat) * math.exp(-18 * since_beat)
        hat = noise.uniform(-1, 1) * math.exp(-60 * ((t + beat / 2) % beat))
        left = 0.22 * pad + 0.2 * bass + 0.16 * lead + 0.25 * kick + 0.05 * hat
        right = 0.22 * pad + 0.2 * bass + 0.10 * lead + 0.25 * kick + 0.08 * hat
        frames += struct.pack("<hh", round(32767 * left), round(32767 * right))
    with wave.open(str(path), "wb") as written:
        written.setnchannels(2)
        written.setsampwidth(2)
        written.setframerate(SAMPLE_RATE_HZ)
        written.writeframes(bytes(frames))


def run_step(title: str, *command: str | Path) -> None:
    """Print a step's command and run it. Raises StepFailed when it does not end with status 0."""
    words = [str(word) for word in command]
    print(f"\n== {title}\n$ python {subprocess.list2cmdline(words)}", flush=True)
    status = subprocess.run([sys.executable, *words], cwd=HOME).returncode
    if status != 0:
        raise StepFailed(f"The step '{title}' ended with status {status}. Its own lines above say why.")


def check(args: argparse.Namespace, output: Path) -> None:
    """Raise WrongInput with everything that is wrong with the flags."""
    problems = []
    if not 3 <= args.seconds <= 360:
        problems.append(f"--seconds is {args.seconds}, expected 3 to 360. 20 is enough for a demo.")
    if args.max_steps < 1:
        problems.append(f"--max_steps is {args.max_steps}, expected 1 or more. 100 is enough for a demo.")
    if (output.exists() and not output.is_dir()) or (output / "Taudio").exists():
        what = "holds a demo already" if output.is_dir() else "is a file"
        problems.append(f"--output_dir '{output}' {what}. Expected a new folder. Choose another name.")
    if problems:
        raise WrongInput(problems)


def main(args: argparse.Namespace) -> None:
    """Run the steps. Raises StepFailed at the first one that fails."""
    started = time.monotonic()
    # Absolute, because the steps run in the program's folder.
    output = (args.output_dir or HOME / "demo" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")).absolute()
    check(args, output)
    songs = output / "Taudio" / "demo"
    songs.mkdir(parents=True)
    tiny, checkpoints, logs = output / "tiny_base", output / "checkpoints", output / "logs"
    filenames, records = songs.with_name("demo_filenames"), songs.with_name("demo_prep")
    print(f"The demo writes into {output}")

    run_step("Tiny base model", "-m", "ace_lora.tiny_base", tiny)

    print("\n== 1. Prepare audio: a song of four voices is synthesised", flush=True)
    synthesise_song(songs / "demo_song.wav", args.seconds)
    (songs / "demo_song.lrc").write_text(LYRICS, encoding="utf-8")

    generate = ("generate_prompts_lyrics.py", "--data_dir", songs, "--backend", "analysis")
    run_step("2. Generate prompts", *generate)
    run_step("3. Generate lyrics", *generate, "--lyrics", "--assume_instrumental")
    run_step("4. Create the dataset", "convert2hf_dataset_new.py", "--data_dir", songs, "--output_name", filenames)
    run_step(
        "5. Preprocess",
        *("preprocess_dataset_new.py", "--input_name", filenames, "--output_dir", records, "--checkpoint_dir", tiny),
    )
    run_step(
        "6. Train",
        *("trainer_new.py", "--dataset_path", records, "--checkpoint_dir", tiny, "--max_steps", str(args.max_steps)),
        *("--learning_rate", "1e-3", "--precision", "32-true", "--save_every_n_train_steps", "50"),
        *("--output_dir", checkpoints, "--log_dir", logs),
    )
    lora = output / "demo_lora.safetensors"
    last = checkpoints / f"epoch={args.max_steps - 1}-step={args.max_steps}_lora"
    run_step("7. LoRA strength", "add_alpha_in_lora.py", "--input_name", last, "--output_name", lora)

    picture = next(iter(sorted(logs.rglob("loss.png"))), None)
    if picture is None:
        raise StepFailed(f"The training left no 'loss.png' in '{logs}'. Its lines above say why.")
    print(f"\nThe demo is done after {time.monotonic() - started:.0f} s.")
    print(f"LoRA file:  {lora}")
    print(f"Loss curve: {picture}")


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
