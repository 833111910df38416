"""Make the pictures of the window in this folder: a real run of the seven steps on two synthesised songs.

    python docs/make_screenshots.py [--folder "/home/me/ACE-Step LoRA"]

Uses the real scripts with the tiny base model in a temporary folder, so the loss curve that is seen was trained. Starts
an Xvfb of 1280x800 for itself; needs Xvfb and ImageMagick's `import`.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import ace_gui  # noqa: E402 (it stands beside this folder)

DOCS = Path(__file__).resolve().parent
TITLES = ("晴天", "夜空中最亮的星", "Summer Rain")


def write_song(path: Path, seconds: float, seed: int) -> None:
    """A short tune of plucked notes in stereo."""
    notes, rate = random.Random(seed), 44100
    frames = bytearray()
    while len(frames) < seconds * rate * 4:
        pitch, length = 220 * 2 ** (notes.choice((0, 2, 4, 7, 9, 12)) / 12), rate // 4
        for n in range(length):
            value = math.sin(2 * math.pi * pitch * n / rate) * math.exp(-3 * n / length) * 12000
            frames += struct.pack("<hh", int(value), int(value * 0.8))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(frames)


class Studio:
    def __init__(self, folder: Path):
        self.program = folder
        os.environ["XDG_CONFIG_HOME"] = str(folder / ".config")  # the window's lock on its project
        for name in (*ace_gui.SCRIPTS, "start.py", "config", "ace_lora"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.program / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, self.program)
        tiny = self.program / "tiny-base"
        subprocess.run([sys.executable, "-m", "ace_lora.tiny_base", str(tiny)], cwd=ROOT, check=True)
        (folder / ".venv").symlink_to(sys.prefix)  # where the window looks for its Python first
        sources = folder / "music"
        sources.mkdir()
        for number, title in enumerate(TITLES):
            write_song(sources / f"{title}.wav", 6 + 2 * number, number)
        settings = ace_gui.Settings(
            self.program / "settings.json", scale="100", checkpoint_dir="tiny-base", offline=True
        )
        self.root = ace_gui.open_root()
        self.app = ace_gui.App(self.root, self.program, settings)
        self.root.geometry("1280x766+0+0")  # and the menu
        self.app.window.place_sash()
        ace_gui.use_home(self.app.session, self.program / "Taudio" / "qing_tian")
        self.app.importer.copy(self.app.session.project.home, [sources])
        self.until(lambda: self.app.session.state != "importing" and len(self.app.session.songs) == len(TITLES))
        values = self.app.session.project.values
        values["captions"] = {"backend": "analysis"}
        values["train"] = {
            "max_steps": "300",
            "precision": "32-true",
            "save_every_n_train_steps": "50",
            "learning_rate": "1e-3",
        }

    def until(self, condition, seconds: float = 600.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"error: not within {seconds} s\n{self.app.window.log.content()[-3000:]}")
            self.root.update()
            time.sleep(0.01)

    def picture(self, name: str) -> None:
        end = time.monotonic() + 1.0
        self.until(lambda: time.monotonic() > end)
        path = DOCS / f"{name}_{self.app.session.settings.language}.png"
        subprocess.run(["import", "-window", "root", "+dither", "-colors", "256", "-strip", f"PNG8:{path}"], check=True)
        print(path.relative_to(ROOT), f"{path.stat().st_size / 1000:.0f} kB")

    def run(self, key: str) -> None:
        self.app.window.show_page(key)
        self.app.session.tell(self.app.runs.start(key))
        self.until(lambda: self.app.session.state == "idle")
        if self.app.runs.describe(key)[0] != "done":
            raise SystemExit(f"error: {key} failed\n{self.app.window.log.content()[-3000:]}")

    def both_languages(self, page: str, name: str) -> None:
        for language in ("zh", "en"):
            self.app.window.change_look(language=language)
            self.app.window.show_page(page)
            self.picture(name)

    def take_all(self) -> None:
        app = self.app
        self.run("prompts")
        self.both_languages("songs", "songs")
        self.run("lyrics")
        self.both_languages("prompts", "prompts")
        self.run("dataset")
        self.run("prep")
        app.window.show_page("train")
        app.session.tell(app.runs.start("train"))
        self.until(lambda: len(app.runs.training.curve.steps) > 200)
        self.both_languages("train", "window")
        self.until(lambda: app.session.state == "idle")
        self.run("strength")
        self.both_languages("strength", "strength")
        app.window.show_page("environment")
        app.environment.query()
        self.until(lambda: app.environment.report is not None)
        self.both_languages("environment", "environment")
        app.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the window.")
    parser.add_argument(
        "--folder", type=Path, help="new folder for the run, as the pictures show it (default: temporary)"
    )
    args = parser.parse_args()
    for program in ("Xvfb", "import"):
        if not shutil.which(program):
            raise SystemExit(f"error: {program} is not installed. Install Xvfb and ImageMagick.")
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout is not None
    os.environ["DISPLAY"] = ":" + server.stdout.readline().decode().strip()
    try:
        folder = args.folder or Path(tempfile.mkdtemp())
        folder.mkdir(parents=True, exist_ok=bool(not args.folder))
        try:
            Studio(folder).take_all()
        finally:
            (folder / ".venv").unlink(missing_ok=True)  # a link: what it points to must stay
            shutil.rmtree(folder)
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
