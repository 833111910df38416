"""A window of ace_gui.py under test: stand-in scripts, projects, and events in, widgets out."""

from __future__ import annotations

import struct
import subprocess
import time
import tkinter as tk
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ace_gui
from ace_gui import STEPS, App, Settings

ROOT = Path(__file__).resolve().parents[2]


STAND_IN = """
import argparse, json, os, pathlib, sys, time
parser = argparse.ArgumentParser()
{flags}
args = parser.parse_args()
{body}
"""


# Small scripts with the names and flags of the real ones; what they do is told by files in the program folder.
BODIES = {
    "generate_prompts_lyrics.py": (
        "--data_dir --backend --model --only",
        """
for audio in sorted(pathlib.Path(args.data_dir).glob("*.wav")):
    kind, text = ("lyrics", "[verse]\\nla") if args.lyrics else ("prompt", "pop, warm")
    audio.with_name(audio.stem + f"_{kind}.txt").write_text(text, encoding="utf-8")
    print(f"song 1/1 | {audio.name} | done")
""",
    ),
    "convert2hf_dataset_new.py": (
        "--data_dir --output_name --default_tag",
        """
out = pathlib.Path(args.output_name)
out.mkdir(exist_ok=True)
for name in ("data-00000-of-00001.arrow", "state.json"):
    (out / name).write_text("x")
""",
    ),
    "preprocess_dataset_new.py": (
        "--input_name --output_dir --checkpoint_dir",
        """
if pathlib.Path("fail_prep").exists():
    print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", file=sys.stderr)
    sys.exit(1)
out = pathlib.Path(args.output_dir)
out.mkdir(exist_ok=True)
if not pathlib.Path("empty_prep").exists():
    for audio in pathlib.Path(args.input_name[: -len("_filenames")]).glob("*.wav"):
        (out / f"{audio.stem}.safetensors").write_text("x")
""",
    ),
    "trainer_new.py": (
        "--dataset_path --max_steps --output_dir --log_dir --batch_size --num_workers --tag_dropout --learning_rate "
        "--precision --save_every_n_train_steps --checkpoint_dir",
        """
out = pathlib.Path(args.output_dir or "checkpoints")
if args.trial:
    fits = not pathlib.Path("small_card").exists()
    folder = pathlib.Path(args.log_dir or "logs") / "run"
    folder.mkdir(parents=True, exist_ok=True)
    result = {"fits": fits, "savings": {"batch_size": 2} if fits else {}, "seconds_per_step": 1.5, "hours": 0.5,
              "max_steps": 2000, "peak_memory_gb": 7.25, "memory_gb": 10.0, "disk_gb": 2.0}
    (folder / "trial.json").write_text(json.dumps(result))
    sys.exit(not fits)
first = len(list(out.glob("*_lora"))) if args.resume else 0
if list(out.glob("*_lora")) and not args.resume:
    sys.exit("error: the folder already holds LoRAs")
logs = pathlib.Path(args.log_dir or "logs") / "run" / "1"
logs.mkdir(parents=True, exist_ok=True)
print(f"metrics: {logs / 'metrics.csv'}")
metrics = open(logs / "metrics.csv", "w")
print("step,loss,loss_smooth,learning_rate,val_loss", file=metrics, flush=True)
steps = int(args.max_steps)
for step in range(first + 1, steps + 1):
    stopped = (out / "STOP").exists()
    print(f"step {step}/{steps} | loss {1 / step:.4f} | lr 1.00e-04 | 0.31 it/s | left 0:05")
    print(f"{step},{1 / step},{1 / step},1e-4,", file=metrics, flush=True)
    if stopped or step == steps:
        folder = out / f"epoch=0-step={step}_lora"
        folder.mkdir(parents=True)
        (folder / "pytorch_lora_weights.safetensors").write_text("x")
        for name in ("training_state.json", "training_state.safetensors"):
            (folder / name).write_text("{}")
        break
    time.sleep(0.1)
if stopped:
    (out / "STOP").unlink()
    print(f"stopped at step {step}")
""",
    ),
    "add_alpha_in_lora.py": (
        "--input_name --output_name --lora_config_path",
        'pathlib.Path(args.output_name).write_text(pathlib.Path(args.input_name).read_text() + "alpha")',
    ),
}


DEAF = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(600)\n"


def write_stand_ins(program: Path) -> None:
    program.mkdir(parents=True, exist_ok=True)
    for name, (flags, body) in BODIES.items():
        lines = [
            f'parser.add_argument("{flag}", nargs="+")' if flag == "--only" else f'parser.add_argument("{flag}")'
            for flag in flags.split()
        ]
        if name == "generate_prompts_lyrics.py":
            lines.append('parser.add_argument("--lyrics", action="store_true")')
        if name == "trainer_new.py":
            lines.append('parser.add_argument("--resume", action="store_true")')
            lines.append('parser.add_argument("--trial", action="store_true")')
        (program / name).write_text(STAND_IN.format(flags="\n".join(lines), body=body), encoding="utf-8")


def write_wav(path: Path, seconds: float = 1.0, level: int = 1000, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(struct.pack("<hh", level, -level) * int(seconds * rate / 2))
    return path


def gone(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    if state.parent.parent.exists():  # a zombie that waits for its parent is gone as well
        return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"
    return subprocess.run(["kill", "-0", str(pid)], capture_output=True, check=False).returncode != 0


class Window:
    """A window under test: events in, widgets out. An error in any callback fails the test."""

    def __init__(
        self,
        program: Path,
        home: Path | None = None,
        language: str = "en",
        sources: tuple[Path, ...] = (),
        **settings: Any,
    ):
        self.program = program
        self.settings = Settings(program / "settings.json", language=language, scale="100", **settings)
        self.errors: list[str] = []
        self.open(home, sources)

    def open(self, home: Path | None = None, sources: tuple[Path, ...] = ()) -> None:
        try:
            self.root = ace_gui.open_root()
        except RuntimeError as error:
            pytest.skip(str(error))
        self.root.tk.call("wm", "geometry", ".", "1280x720+0+0")
        self.app = App(self.root, self.program, self.settings, home, sources)
        self.app.session.own_program = self.program
        original = self.root.report_callback_exception

        def failed(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            self.errors.append(f"{kind.__name__}: {error}")
            original(kind, error, trace)

        self.root.report_callback_exception = failed
        self.root.geometry("1280x720+0+0")
        self.pump()

    def pump(self, rounds: int = 3) -> None:
        for _ in range(rounds):
            self.root.update()

    def until(self, condition: Callable[[], Any], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s; log:\n{self.app.window.log.content()[-3000:]}"
            assert not self.errors, self.errors
            self.root.update()
            time.sleep(0.005)
        self.pump()

    def click(self, widget: tk.Widget) -> None:
        self.pump(1)
        assert widget.winfo_viewable(), widget
        assert "disabled" not in str(widget.cget("state")) if "state" in widget.keys() else True  # noqa: SIM118
        x, y = widget.winfo_width() // 2, widget.winfo_height() // 2
        for event in ("<Enter>", "<Motion>", "<ButtonPress-1>", "<ButtonRelease-1>", "<Leave>"):
            if widget.winfo_exists():
                widget.event_generate(event, x=x, y=y)
        self.pump()

    def key(self, keysym: str, widget: tk.Widget | None = None) -> None:
        target = widget or self.root.focus_get() or self.root
        target.focus_force()
        self.root.update()
        target.event_generate(f"<{keysym}>")
        self.pump()

    def type(self, widget: tk.Widget, text: str) -> None:
        """Replace the content of an entry or editor, key by key where keys exist for it."""
        widget.focus_force()
        self.root.update()
        if isinstance(widget, tk.Text):
            widget.delete("1.0", "end")
        else:
            widget.delete(0, "end")
        for character in text:
            if character.isascii() and character.isalnum():
                widget.event_generate("<Key>", keysym=character)
            else:
                widget.insert("insert", character)
        self.pump()

    @property
    def dialog(self) -> ace_gui.Dialog:
        assert self.app.questions.dialog is not None and not self.app.questions.dialog.closed, "no dialog is open"
        return self.app.questions.dialog

    def dialog_open(self) -> bool:
        return self.app.questions.dialog is not None and not self.app.questions.dialog.closed

    def press(self, button: str) -> None:
        self.until(lambda: self.dialog.window.winfo_viewable())
        self.click(self.dialog.buttons[button])

    def show(self, key: str) -> Any:
        self.click(self.app.window.rail.steps[key])
        return self.app.window.page(key)

    def start(self, key: str, seconds: float = 60.0) -> None:
        """Press a step's button and wait for its end."""
        page = self.show(key)
        self.click(page.start_button)
        self.until(lambda: self.app.session.state == "idle", seconds)

    def statuses(self) -> list[str]:
        self.app.session.look(force=True)
        return [self.app.runs.describe(step.key)[0] for step in STEPS]

    def banner(self) -> str:
        return str(self.app.window.banner.text.cget("text")) if self.app.window.banner.frame.winfo_manager() else ""

    def close(self) -> None:
        if self.app.session.state != "closed":
            if self.dialog_open():
                self.app.questions.dialog.press("cancel")
            self.app.runs.give_up()
            if self.app.session.state != "idle":
                self.app.runs.runner.kill()
                self.until(lambda: self.app.session.state == "idle")
            self.until(lambda: self.app.session.state != "importing")
            self.app.close()
        assert not self.errors, self.errors


def project_with_songs(program: Path, upto: str = "songs") -> Path:
    """A project whose steps up to `upto` are done."""
    home = program / "Taudio" / "qing_tian"
    for number, name in enumerate(("a", "b")):
        write_wav(home / f"{name}.wav", level=100 + number)
    order = [step.key for step in STEPS]
    done = order[: order.index(upto) + 1]
    if "prompts" in done:
        for name in "ab":
            (home / f"{name}_prompt.txt").write_text(f"pop, {name}", encoding="utf-8")
    if "lyrics" in done:
        for name in "ab":
            (home / f"{name}_lyrics.txt").write_text(f"[verse]\n{name}", encoding="utf-8")
    if "dataset" in done:
        for name in ("data-00000-of-00001.arrow", "state.json"):
            path = home.with_name("qing_tian_filenames") / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("x")
    if "prep" in done:
        for name in "ab":
            path = home.with_name("qing_tian_prep") / f"{name}.safetensors"
            path.parent.mkdir(exist_ok=True)
            path.write_text("x")
    return home


def removed(home: Path, checkpoints: Path | None = None) -> list[tuple[Path, str, list[str]]]:
    """(folder, reason, places) of what can be restored, newest first."""
    entries = ace_gui.list_removed(ace_gui.Project(home), checkpoints or home / "no checkpoints")
    return [(entry.folder, entry.reason, list(entry.files.values())) for entry in entries]


def put_back(home: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Restore what lies in `folder`."""
    entries = ace_gui.list_removed(ace_gui.Project(home), home / "no checkpoints")
    return ace_gui.restore_removed(next(entry for entry in entries if entry.folder == folder))
