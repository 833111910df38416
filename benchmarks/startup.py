"""Time that each script takes to answer `--help`, and to import what it needs before it starts to work.

    python benchmarks/startup.py [--repeats 5]

Every measurement is a process of its own; the scripts take turns, so that a busy machine is busy for all of them.
Printed are medians and their ratio to a Python that does nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
SCRIPTS = (
    "ace_gui.py",
    "generate_prompts_lyrics.py",
    "generate_prompts_lyrics_llamacpp.py",
    "convert2hf_dataset_new.py",
    "preprocess_dataset_new.py",
    "trainer_new.py",
    "add_alpha_in_lora.py",
    "resize_lora.py",
    "start.py",
)
# What a script imports once its input is checked; each the largest share of its start.
WORK_IMPORTS = {
    "prompts (analysis)": "import ace_lora.audio.analysis, librosa, pyloudnorm; librosa.beat.beat_track",
    "dataset": "import datasets",
    "preprocess": "import ace_lora.v1.dcae, ace_lora.v1.ssl_features",
    "train": "import ace_lora.training.step, ace_lora.v1.transformer",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="processes per line; the median is printed (default: 5)")
    return parser.parse_args(argv)


def measure_seconds(arguments: list[str]) -> float:
    """Wall-clock seconds of one process. Raises CalledProcessError when it fails."""
    environment = {**os.environ, "PYTHONPATH": str(HOME), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=HOME, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def main(args: argparse.Namespace) -> None:
    commands = {"nothing": ["-c", ""]}
    commands |= {f"{script} --help": [script, "--help"] for script in SCRIPTS}
    commands |= {f"imports: {name}": ["-c", statement] for name, statement in WORK_IMPORTS.items()}
    for command in commands.values():
        measure_seconds(command)  # the first run reads the files from the disk and compiles them
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(args.repeats):
        for name, command in commands.items():
            seconds[name].append(measure_seconds(command))
    idle = statistics.median(seconds["nothing"])
    print(f"{'median of ' + str(args.repeats):44}{'s':>8}{'ratio':>8}")
    for name, measured in seconds.items():
        median = statistics.median(measured)
        print(f"{name:44}{median:8.2f}{median / idle:8.1f}")


if __name__ == "__main__":
    main(parse_args())
