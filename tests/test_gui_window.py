"""The window of ace_gui.py on a real Tk, driven by events.

Runs on the display of $DISPLAY, else on an Xvfb that the tests start themselves; skips with the reason without either.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import tkinter as tk
import tkinter.font
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ace_gui
from ace_gui import STEPS, App, Settings

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def display() -> Iterator[None]:
    """A display of 1280x720; the machine's own where there is no Xvfb to start."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        if not shutil.which("Xvfb"):
            pytest.skip("no display: $DISPLAY is not set and Xvfb is not installed")
        command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1280x720x24", "-nolisten", "tcp"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert server.stdout is not None
        os.environ["DISPLAY"] = ":" + server.stdout.readline().decode().strip()
        yield
        del os.environ["DISPLAY"]
        server.terminate()
        server.wait()
    else:
        yield


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
        (folder / "training_state.json").write_text("{}")
        break
    time.sleep(0.05)
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


def write_wav(path: Path, seconds: float = 1.0, level: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(struct.pack("<hh", level, -level) * int(seconds * 4000))
    return path


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
        self.app._fixed_program = self.program
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
            assert time.monotonic() < deadline, f"not within {seconds} s; log:\n{self.app.log.content()[-3000:]}"
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
        assert self.app.dialog is not None and not self.app.dialog.closed, "no dialog is open"
        return self.app.dialog

    def dialog_open(self) -> bool:
        return self.app.dialog is not None and not self.app.dialog.closed

    def press(self, button: str) -> None:
        self.until(lambda: self.dialog.window.winfo_viewable())
        self.click(self.dialog.buttons[button])

    def show(self, key: str) -> Any:
        self.click(self.app.rail.steps[key])
        return self.app.page(key)

    def start(self, key: str, seconds: float = 60.0) -> None:
        """Press a step's button and wait for its end."""
        page = self.show(key)
        self.click(page.start_button)
        self.until(lambda: self.app.state == "idle", seconds)

    def statuses(self) -> list[str]:
        self.app.look_at_disk(force=True)
        return [self.app.describe(step.key)[0] for step in STEPS]

    def banner(self) -> str:
        return str(self.app.banner.text.cget("text")) if self.app.banner.frame.winfo_manager() else ""

    def close(self) -> None:
        if not self.app._destroyed:
            if self.dialog_open():
                self.app.dialog.press(self.app.dialog._cancel)
            self.app.chain.clear()
            if self.app.state != "idle":
                self.app.runner.kill()
                self.until(lambda: self.app.state == "idle")
            self.until(lambda: not self.app.importing)
            self.app.close()
        assert not self.errors, self.errors


@pytest.fixture
def make_window(display: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Window]]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))  # locks, and logs of runs without a project
    monkeypatch.setenv("APPDATA", str(tmp_path / "config"))
    windows: list[Window] = []

    def make(home: Path | None = None, program: Path | None = None, **arguments: Any) -> Window:
        program = program or tmp_path / "my 程序 🎵"
        if not (program / "trainer_new.py").exists():
            write_stand_ins(program)
        windows.append(Window(program, home, **arguments))
        return windows[-1]

    yield make
    for window in windows:
        window.close()


@pytest.fixture
def songs(tmp_path: Path) -> list[Path]:
    return [
        write_wav(tmp_path / "我的 歌曲" / name, level=level)
        for name, level in (("晴天.wav", 500), ("夜曲 (Live).wav", 900))
    ]


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


# Opening


def test_opens_empty_in_chinese_and_says_what_to_do(make_window):
    window = make_window(language="zh")
    assert window.root.title() == "ACE-Step LoRA"
    assert window.statuses() == ["ready"] + ["locked"] * 6
    assert "添加歌曲" in window.app.page("songs").add_button.cget("text")
    assert window.app.page("songs").empty.winfo_viewable()
    for key in ("prompts", "lyrics", "dataset", "prep", "train", "strength"):
        page = window.show(key)
        assert str(page.start_button.cget("state")) == "disabled"
        assert "第 1 步" in page.strip_text.cget("text")


def test_the_log_explains_itself_and_callback_errors_reach_it(make_window, capsys: pytest.CaptureFixture[str]):
    window = make_window()
    window.root.after(1, lambda: 1 / 0)
    with contextlib.suppress(AssertionError):
        window.until(lambda: "ZeroDivisionError" in window.app.log.content(), 5)
    assert window.errors == ["ZeroDivisionError: division by zero"]
    window.errors.clear()
    assert "ZeroDivisionError" in window.app.log.content() and "ZeroDivisionError" in capsys.readouterr().err


# The workflow with stand-in scripts


def test_from_an_empty_folder_to_the_lora_by_clicks(make_window, songs: list[Path]):
    window = make_window(language="zh")
    app = window.app
    app.choose_files = lambda title: [str(path) for path in songs]
    window.click(app.page("songs").add_button)
    assert [entry.get() for entry in window.dialog.entries] == ["qing_tian", "Taudio"]
    window.press("ok")
    window.until(lambda: not app.importing and len(app.songs) == 2)
    home = window.program / "Taudio" / "qing_tian"
    assert app.project.home == home
    assert sorted(path.name for path in home.iterdir() if path.suffix == ".wav") == ["qing_tian.wav", "ye_qu_Live.wav"]
    assert [song.title for song in app.songs] == ["晴天", "夜曲 (Live)"]
    for number, key in enumerate(("prompts", "lyrics", "dataset", "prep")):
        assert window.statuses() == ["done"] * (number + 1) + ["ready"] + ["locked"] * (5 - number)
        window.start(key)
    page = app.page("prompts")
    window.show("prompts")
    assert page.editors["prompt"].get() == "pop, warm" and page.editors["lyrics"].get() == "[verse]\nla"
    page = window.show("train")
    window.type(next(row for row in page.forms[0].rows if row.row.flag == "max_steps").widget, "4")
    window.start("train")
    assert app.curve is not None and app.curve.steps == [1, 2, 3, 4]
    assert json.loads((home / ace_gui.PROJECT_FILE).read_text(encoding="utf-8"))["values"] == {
        "train": {"max_steps": "4"}
    }
    window.start("strength")
    assert (window.program / "qing_tian-step4.safetensors").read_text() == "xalpha"
    assert window.statuses() == ["done"] * 7
    logs = sorted(path.name.split("_")[-1] for path in (home / "logs").iterdir())
    assert logs == ["dataset.log", "lyrics.log", "prep.log", "prompts.log", "strength.log", "train.log"]


def test_run_all_does_the_rest_and_stops_at_the_first_failure(make_window):
    program = None
    window = make_window()
    program = window.program
    home = project_with_songs(program)
    (program / "fail_prep").write_text("")
    window.app.open_project(home)
    window.app.set_value("train", ace_gui.TRAIN_FIELDS[4], "3")
    window.click(window.app.rail.tools["run.all"])
    window.until(lambda: window.app.state == "idle" and not window.app.chain, 60)
    assert window.statuses() == ["done"] * 4 + ["failed", "locked", "locked"]
    assert "Step 5, Preprocessing, failed (exit status 1)" in window.banner() and "ran out of memory" in window.banner()
    (program / "fail_prep").unlink()
    window.click(window.app.rail.tools["run.all"])
    window.until(lambda: window.app.state == "idle" and not window.app.chain, 60)
    assert window.statuses() == ["done"] * 7


def test_success_without_a_result_is_reported_as_failure(make_window):
    window = make_window()
    home = project_with_songs(window.program, "dataset")
    (window.program / "empty_prep").write_text("")
    window.app.open_project(home)
    window.start("prep")
    assert window.statuses()[4] == "failed" and "left no result" in window.banner()


def test_only_one_run_at_a_time(make_window):
    window = make_window()
    window.app.open_project(project_with_songs(window.program, "prep"))
    page = window.show("train")
    window.click(page.start_button)
    window.until(lambda: "step 2/" in window.app.log.content())
    run = window.app.runner.run
    for key in ("prompts", "dataset", "train"):
        page = window.show(key)
        assert str(page.start_button.cget("state")) == "disabled"
    window.key("F5")
    window.app.start_step("dataset")
    window.app.run_all()
    assert window.app.runner.run == run
    for name in ("run.all", "reset"):
        assert str(window.app.rail.tools[name].cget("state")) == "disabled"
    assert "Training" in window.root.title() and "%" in window.root.title()
    assert "loss" in window.app.run_bar.figures.cget("text") and "0.31 it/s" in window.app.run_bar.figures.cget("text")


def test_stop_saves_and_the_next_start_can_go_on(make_window):
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program, "prep"))
    page = window.show("train")
    window.click(page.start_button)
    window.until(lambda: "step 3/2000" in app.log.content())
    window.click(app.run_bar.stop)
    assert app.state == "stopping" and app.run_bar.stop.cget("text") == "Force stop"
    window.until(lambda: app.state == "idle")
    assert "stopped" in window.banner() and window.statuses()[5] == "done"
    stopped = app.space.loras()[-1]
    assert not (app.space.checkpoints() / "STOP").exists()
    window.click(page.start_button)
    assert set(window.dialog.buttons) == {"move", "resume", "cancel"}
    window.press("resume")
    window.until(lambda: "--resume" in app.log.content() and app.runner.pid is not None)
    window.click(app.run_bar.stop)
    window.until(lambda: app.state == "idle")
    assert stopped in app.space.loras()


def test_force_stop_kills_a_script_that_does_not_listen(make_window):
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program, "lyrics"))
    (window.program / "convert2hf_dataset_new.py").write_text(DEAF)
    window.click(window.show("dataset").start_button)
    window.until(lambda: "deaf" in app.log.content())
    window.click(app.run_bar.stop)
    window.pump(20)
    assert app.state == "stopping"
    window.click(app.run_bar.stop)
    window.until(lambda: app.state == "idle", 10)
    assert window.statuses()[3] == "ready"


def test_a_script_that_does_not_stop_in_time_is_killed(make_window, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ace_gui, "DEFAULT_STOP_SECONDS", 0.3)
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program, "lyrics"))
    (window.program / "convert2hf_dataset_new.py").write_text(DEAF)
    window.click(window.show("dataset").start_button)
    window.until(lambda: "deaf" in app.log.content())
    window.click(app.run_bar.stop)
    window.until(lambda: app.state == "idle", 10)
    assert "did not stop in time" in app.log.content()


def test_checkpoints_of_before_are_moved_not_wiped(make_window):
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program, "prep"))
    old = window.program / "checkpoints" / "epoch=0-step=7_lora" / ace_gui.LORA_FILE
    old.parent.mkdir(parents=True)
    old.write_text("precious")
    app.set_value("train", ace_gui.TRAIN_FIELDS[4], "2")
    page = window.show("train")
    window.click(page.start_button)
    window.press("cancel")
    assert app.state == "idle" and old.read_text() == "precious"
    window.click(page.start_button)
    assert window.root.focus_get() == window.dialog.buttons["move"]
    window.press("move")
    window.until(lambda: app.state == "idle" and "step 2/2" in app.log.content())
    [moved] = window.program.glob("checkpoints_*")
    assert (moved / "epoch=0-step=7_lora" / ace_gui.LORA_FILE).read_text() == "precious"
    assert [path.name for path in app.space.loras()] == ["epoch=0-step=2_lora"]


def test_an_out_of_date_step_is_offered_first(make_window):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program)
    app.open_project(home)
    app.set_value("train", ace_gui.TRAIN_FIELDS[4], "2")
    window.click(app.rail.tools["run.all"])
    window.until(lambda: app.state == "idle" and not app.chain, 60)
    (home / "a_prompt.txt").write_text("rock")
    assert window.statuses() == ["done"] * 3 + ["stale"] * 4
    assert "The prompt of a was changed" in window.show("dataset").strip_text.cget("text")
    window.click(window.show("prep").start_button)
    window.press("first")
    window.until(lambda: app.state == "idle" and not app.chain, 30)
    assert window.statuses()[3:5] == ["done", "done"]


def test_wrong_values_are_marked_and_block_the_start(make_window):
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program, "prep"))
    page = window.show("train")
    rows = {row.row.flag: row for form in page.forms for row in form.rows}
    window.type(rows["batch_size"].widget, "0")
    window.type(rows["learning_rate"].widget, "fast")
    assert (
        "outside 1 to 64" in rows["batch_size"].note.cget("text")
        and rows["batch_size"].widget.cget("style") == "Wrong.TEntry"
    )
    window.click(page.start_button)
    assert app.runner.run == 0 and "Wrong settings, marked in red: 2" in window.banner()
    assert window.root.focus_get() == rows["batch_size"].widget
    window.type(rows["batch_size"].widget, "2")
    assert rows["batch_size"].widget.cget("style") == "TEntry"


# Songs


def test_a_folder_that_holds_audio_offers_another_clearing_or_adding(make_window, songs: list[Path]):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program, "prompts")
    app.choose_files = lambda title: [str(songs[0])]

    def add_to_qing_tian() -> None:
        app.open_project(None)
        app._joined.clear()
        window.click(app.page("songs").add_button)
        window.type(window.dialog.entries[0], "qing_tian")
        window.press("ok")
        assert set(window.dialog.buttons) == {"other", "clear", "add", "cancel"}
        assert f"already holds {len(list(home.glob('*.wav')))} songs" in window.dialog.message

    add_to_qing_tian()
    window.press("cancel")
    assert sorted(path.name for path in home.glob("*.wav")) == ["a.wav", "b.wav"] and app.project.home is None
    add_to_qing_tian()
    window.press("add")
    window.until(lambda: not app.importing and len(app.songs) == 3)
    add_to_qing_tian()
    window.press("other")
    assert window.dialog.entries[0].get() == "qing_tian_2"
    window.press("ok")
    window.until(lambda: not app.importing and len(app.songs) == 1)
    assert app.project.home == home.with_name("qing_tian_2")
    add_to_qing_tian()
    window.press("clear")
    window.until(lambda: not app.importing and [song.stem for song in app.songs] == ["qing_tian"])
    [(_, _, names)] = [entry for entry in ace_gui.bin_entries(home) if entry[1] == "clear"]
    assert {"a.wav", "b.wav", "qing_tian.wav", "a_prompt.txt", "b_prompt.txt"} == set(names)
    app._fill_bin()
    assert "library before clearing" in app._bin_menu.entrycget(0, "label")
    app._bin_menu.invoke(0)
    window.until(lambda: {"a", "b"} <= {song.stem for song in app.songs})


def test_duplicates_and_damaged_files_are_said_at_once(make_window, songs: list[Path], tmp_path: Path):
    window = make_window()
    app = window.app
    (tmp_path / "bad.wav").write_bytes(b"no music")
    silent = write_wav(tmp_path / "silent.wav", level=0)
    shutil.copy(songs[0], tmp_path / "again.wav")
    app.choose_files = lambda title: [
        str(path) for path in (songs[0], tmp_path / "again.wav", tmp_path / "bad.wav", silent)
    ]
    window.click(app.page("songs").add_button)
    window.press("ok")
    window.until(lambda: not app.importing and len(app.songs) == 2)
    assert (
        "again.wav: has the same content as qing_tian.wav" in app.log.content()
        and "bad.wav: is no valid wav" in app.log.content()
    )
    window.until(lambda: "silent: is silent" in window.banner())
    assert app.page("songs").table.item("silent.wav", "tags") == ("bad",)


def test_rename_remove_and_restore_by_keys(make_window):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program, "lyrics")
    app.open_project(home)
    table = window.show("songs").table
    table.selection_set("a.wav")
    window.pump()
    window.key("F2", table)
    window.type(window.dialog.entries[0], "新歌")
    window.press("ok")
    assert (home / "xin_ge.wav").exists() and (home / "xin_ge_lyrics.txt").exists() and not (home / "a.wav").exists()
    table.selection_set("xin_ge.wav")
    window.pump()
    window.key("Delete", table)
    window.press("remove")
    assert [song.stem for song in app.songs] == ["b"] and not (home / "xin_ge_lyrics.txt").exists()
    app.restore(ace_gui.bin_entries(home)[0][0])
    assert [song.title for song in app.songs] == ["b", "新歌"]


def test_name_and_folder_can_be_changed_before_and_after(make_window, songs: list[Path]):
    window = make_window()
    app = window.app
    page = window.show("songs")
    page.name.set("my style")
    assert page.folder.get() == str(Path("Taudio") / "my style") or page.folder.get().endswith("my style")
    window.click(page.apply_button)
    assert app.project.home == window.program / "Taudio" / "my style"
    app.choose_files = lambda title: [str(path) for path in songs]
    window.click(app.page("songs").add_button)
    window.until(lambda: not app.importing and len(app.songs) == 2)
    page = app.page("songs")
    page.folder.set("elsewhere/风格")
    assert page.name.get() == "风格"
    window.click(page.apply_button)
    window.press("move")
    assert app.project.home == window.program / "elsewhere" / "风格" and len(app.songs) == 2
    assert not (window.program / "Taudio" / "my style").exists()
    assert [song.title for song in app.songs] == ["晴天", "夜曲 (Live)"]


def test_files_given_on_the_command_line_are_added(make_window, songs: list[Path]):
    window = make_window(sources=tuple(songs))
    window.until(window.dialog_open)
    window.press("ok")
    window.until(lambda: len(window.app.songs) == 2)


# Texts


def test_edits_survive_switching_pages_songs_and_closing(make_window):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program, "lyrics")
    app.open_project(home)
    page = window.show("prompts")
    window.type(page.editors["prompt"].text, "first edit")
    assert "not saved" in page.status.cget("text")
    window.key("Control-s", page.editors["prompt"].text)
    assert (home / "a_prompt.txt").read_text() == "first edit" and page.status.cget("text") == "saved"
    page.editors["prompt"].text.edit_undo()
    window.click(page.tools[1])
    assert page.open_song.stem == "b" and (home / "a_prompt.txt").read_text() != "first edit"
    window.type(page.editors["lyrics"].text, "on b")
    window.show("lyrics")
    assert (home / "b_lyrics.txt").read_text() == "on b"
    other = app.page("lyrics")
    assert other.open_song.stem == "b"
    window.type(other.editors["prompt"].text, "at the end")
    window.close()
    assert (home / "b_prompt.txt").read_text() == "at the end"


def test_typing_is_stored_without_pressing_anything(make_window, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ace_gui, "AUTOSAVE_MS", 50)
    window = make_window()
    home = project_with_songs(window.program, "lyrics")
    window.app.open_project(home)
    page = window.show("prompts")
    window.type(page.editors["prompt"].text, "kept")
    window.until(lambda: (home / "a_prompt.txt").read_text() == "kept")


def test_a_text_changed_on_disk_meanwhile_is_not_lost(make_window):
    window = make_window()
    home = project_with_songs(window.program, "lyrics")
    window.app.open_project(home)
    page = window.show("prompts")
    window.type(page.editors["prompt"].text, "mine")
    (home / "a_prompt.txt").write_text("theirs")
    page.save()
    assert (home / "a_prompt.txt").read_text() == "mine"
    [(folder, reason, _)] = ace_gui.bin_entries(home)
    assert reason == "overwritten" and (folder / "a_prompt.txt").read_text() == "theirs"
    (home / "a_prompt.txt").write_text("by a script")
    window.app.look_at_disk(force=True)
    assert page.editors["prompt"].get() == "by a script"


def test_tags_and_replacing_over_all_songs(make_window):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program, "lyrics")
    app.open_project(home)
    page = window.show("prompts")
    app.ask_add_tag()
    window.press("ok")
    assert window.dialog_open()  # an empty tag is not accepted
    window.type(window.dialog.entries[0], "mystyle")
    window.press("ok")
    assert [(home / f"{n}_prompt.txt").read_text() for n in "ab"] == ["mystyle, pop, a", "mystyle, pop, b"]
    assert page.editors["prompt"].get() == "mystyle, pop, a"
    app.ask_replace()
    window.type(window.dialog.entries[0], "pop")
    window.type(window.dialog.entries[1], "rock")
    window.press("ok")
    app.ask_remove_tag()
    window.type(window.dialog.entries[0], "mystyle")
    window.press("ok")
    assert [(home / f"{n}_prompt.txt").read_text() for n in "ab"] == ["rock, a", "rock, b"]
    app.ask_instrumental()
    window.press("all")
    assert [(home / f"{n}_lyrics.txt").read_text() for n in "ab"] == ["[instrumental]"] * 2
    assert len(ace_gui.bin_entries(home)) == 4


# Settings


def test_settings_are_kept_per_project_and_reset_touches_no_file(make_window):
    window = make_window()
    app = window.app
    first = project_with_songs(window.program, "prep")
    app.open_project(first)
    page = window.show("train")
    rows = {row.row.flag: row for form in page.forms for row in form.rows}
    window.type(rows["max_steps"].widget, "123")
    app.open_project(window.program)  # any other folder
    assert app.space.value("train", ace_gui.TRAIN_FIELDS[4]) == "2000"
    app.open_project(first)
    assert app.space.value("train", ace_gui.TRAIN_FIELDS[4]) == "123"
    before = sorted(
        (path, path.read_bytes()) for path in first.rglob("*") if path.is_file() and path.name != ace_gui.PROJECT_FILE
    )
    app.change_setting("endpoint", "https://hf-mirror.com")
    window.click(app.rail.tools["reset"])
    window.press("reset")
    assert app.space.value("train", ace_gui.TRAIN_FIELDS[4]) == "2000" and app.settings.endpoint == ""
    page = window.show("train")
    assert next(row for row in page.forms[0].rows if row.row.flag == "max_steps").variable.get() == "2000"
    assert before == sorted(
        (path, path.read_bytes()) for path in first.rglob("*") if path.is_file() and path.name != ace_gui.PROJECT_FILE
    )


def test_presets_are_applied_saved_and_deleted(make_window):
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program, "prep"))
    page = window.show("train")
    app.set_value("train", ace_gui.TRAIN_FIELDS[4], "50")
    app.page("train").ask_save_preset()
    window.type(window.dialog.entries[0], "mine")
    window.press("ok")
    app.set_value("train", ace_gui.TRAIN_FIELDS[4], "60")
    assert "mine" in page.preset.cget("values")
    page.preset.set("mine")
    page.preset.event_generate("<<ComboboxSelected>>")
    window.pump()
    assert app.space.value("train", ace_gui.TRAIN_FIELDS[4]) == "50"
    app.page("train").apply_preset("8 GB")
    assert app.space.value("train", ace_gui.TRAIN_FIELDS[4]) == "50"  # a card's preset leaves the length alone
    app.page("train").delete_preset("mine")
    assert "mine" not in Settings.load(app.settings.path).presets


def test_a_preset_for_another_card_takes_back_what_the_first_one_set(make_window):
    window = make_window()
    app = window.app
    script = window.program / "trainer_new.py"
    choices = 'parser.add_argument("--optimizer", choices=["adamw", "adamw8bit", "prodigy"], default="adamw")\n'
    text = script.read_text(encoding="utf-8")
    script.write_text(text.replace("args = parser", f"{choices}args = parser"), encoding="utf-8")
    app._read_flags()
    app.open_project(project_with_songs(window.program, "prep"))
    page = window.show("train")
    page.apply_preset("8 GB")
    assert app.project.values["train"]["optimizer"] == "adamw8bit"
    page.preset.set("8 GB")
    window.pump()
    assert "disabled" in str(page.delete_button.cget("state"))  # it is not the user's to delete
    page.apply_preset("24 GB")
    assert "optimizer" not in app.project.values["train"]
    row = next(row for row in app.space.fields("train") if row.flag == "optimizer")
    app.set_value("train", row, "prodigy")
    page.apply_preset("12 GB")
    assert app.space.value("train", row) == "prodigy"  # the user's own choice


def test_enter_in_the_instrumental_dialog_keeps_the_lyrics_that_are_there(make_window):
    window = make_window()
    home = project_with_songs(window.program, "prompts")
    (home / "a_lyrics.txt").write_text("[verse]\nsung", encoding="utf-8")
    window.app.open_project(home)
    window.app.ask_instrumental()
    window.until(lambda: window.dialog.window.winfo_viewable())
    window.key("Return")
    assert [(home / f"{name}_lyrics.txt").read_text() for name in "ab"] == ["[verse]\nsung", "[instrumental]"]


def test_flags_of_the_script_beside_the_window_decide_what_is_shown(make_window, tmp_path: Path):
    window = make_window()
    page = window.show("train")
    shown = [row.row.flag for form in page.forms for row in form.rows]
    assert "optimizer" not in shown and "batch_size" in shown and "log_dir" in shown
    assert page.trial_button is not None


def test_a_trial_run_ends_in_a_sentence_and_its_savings_at_a_click(make_window):
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program, "prep"))
    page = window.show("train")
    window.click(page.trial_button)
    window.until(lambda: app.state == "idle")
    assert "1.50 s per step, about 30:00 for all 2000 steps, 7.2 GB of 10.0 GB memory" in window.banner()
    assert "--batch_size 2" in window.banner() and app.states["train"].status == "ready"
    window.click(app.banner.action)
    assert app.space.value("train", ace_gui.TRAIN_FIELDS[0]) == "2"
    (window.program / "small_card").write_text("")
    window.click(page.trial_button)
    window.until(lambda: app.state == "idle")
    assert "it does not fit" in window.banner()
    assert window.statuses()[5] == "ready"  # a trial is no failed training


def test_an_old_trial_is_not_taken_for_the_present_one(tmp_path: Path):
    path = tmp_path / "run" / "trial.json"
    path.parent.mkdir()
    path.write_text('{"fits": true}')
    assert ace_gui.read_trial(tmp_path, path.stat().st_mtime) == {"fits": True}
    assert ace_gui.read_trial(tmp_path, path.stat().st_mtime + 60) is None
    path.write_text("{broken")
    assert ace_gui.read_trial(tmp_path, path.stat().st_mtime) is None


# While something runs


def test_the_log_stays_where_the_user_scrolled(make_window):
    window = make_window()
    log = window.app.log
    log.write([f"line {n}" for n in range(500)])
    assert log.text.yview()[1] == 1.0
    log.text.yview_moveto(0.2)
    window.pump()
    top = log.text.index("@0,0")
    log.write([f"more {n}" for n in range(500)])
    window.pump()
    assert log.text.index("@0,0") == top
    log.text.see("end")
    window.pump()
    log.write(["last"])
    assert log.text.yview()[1] == 1.0


def test_the_log_overwrites_progress_and_keeps_its_length(make_window):
    log = make_window().app.log
    log.clear()
    for n in range(300):
        log.write([], f"{n}%|bar")
    assert log.content() == "299%|bar"
    log.write(["done"], "next")
    assert log.content() == "done\nnext"
    for start in range(0, 20_000, 500):
        log.write([f"line {n}" for n in range(start, start + 500)], "bar")
    assert ace_gui.MAX_LOG_LINES <= log.content().count("\n") <= ace_gui.MAX_LOG_LINES + ace_gui.TRIM_SLACK
    assert log.content().endswith("line 19999\nbar")
    log.write(["RuntimeError: broken"], skipped=7)
    assert "7 lines left out here" in log.content()
    assert log.text.tag_ranges("bad") and log.text.tag_ranges("muted")


def test_the_log_can_be_read_and_copied_but_not_edited(make_window):
    log = make_window().app.log
    log.write(["a line"])
    before = log.content()
    log.text.focus_force()
    for key in ("x", "BackSpace", "Return", "Delete"):
        log.text.event_generate("<Key>", keysym=key)
    assert log.content() == before


def test_20000_lines_of_a_child_reach_the_window(make_window):
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program, "lyrics"))
    (window.program / "convert2hf_dataset_new.py").write_text("print(''.join(f'line {n}\\n' for n in range(20000)))")
    window.start("dataset")
    assert "line 19999" in app.log.content()
    [log] = (app.project.home / "logs").glob("*_dataset.log")
    assert log.read_text().count("\n") >= 20_000


def test_a_failed_start_is_explained(make_window):
    window = make_window(python="")
    app = window.app
    app.open_project(project_with_songs(window.program, "lyrics"))
    (window.program / "convert2hf_dataset_new.py").unlink()
    page = window.show("dataset")
    window.click(page.start_button)
    assert "convert2hf_dataset_new.py" in window.banner() and app.state == "idle"
    window.click(app.banner.action)
    assert app.page_key == "environment"


def test_closing_asks_then_stops(make_window):
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program, "prep"))
    window.click(window.show("train").start_button)
    window.until(lambda: "step 2/" in app.log.content())
    pid = app.runner.pid
    app.close()
    window.press("cancel")
    assert app.state == "running"
    app.close()
    window.press("stop")
    deadline = time.monotonic() + 20
    while not app._destroyed and time.monotonic() < deadline:
        with contextlib.suppress(tk.TclError):
            window.root.update()
        time.sleep(0.005)
    assert app._destroyed and app.space.loras()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_window_that_was_killed_opens_again_where_it_was(display: None, tmp_path: Path):
    """SIGKILL the window in the middle of a training: the next one shows the truth and can end what is left."""
    program = tmp_path / "程序"
    write_stand_ins(program)
    home = project_with_songs(program, "prep")
    trainer = (program / "trainer_new.py").read_text(encoding="utf-8")
    # Its output goes nowhere once the window is dead; a real trainer in the middle of a step does not notice either.
    (program / "trainer_new.py").write_text(trainer.replace("import argparse", "import argparse, builtins", 1).replace(
        "time.sleep(0.05)", "time.sleep(0.05 if step < 3 else 600)"), encoding="utf-8")  # fmt: skip
    driver = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport ace_gui; from pathlib import Path\n"
        f"root = ace_gui.open_root(); program = Path({str(program)!r})\n"
        f"app = ace_gui.App(root, program, ace_gui.Settings.load(program / 'settings.json'), Path({str(home)!r}))\n"
        "app.show_page('train')\nroot.after(300, lambda: app.start_step('train'))\nroot.mainloop()\n"
    )
    window = subprocess.Popen([sys.executable, "-c", driver])
    stored: dict[str, Any] = {}
    deadline = time.monotonic() + 30
    while not stored.get("backend_run") and time.monotonic() < deadline:
        time.sleep(0.05)
        with contextlib.suppress(OSError, ValueError):
            stored = json.loads((home / ace_gui.PROJECT_FILE).read_text(encoding="utf-8"))
    pid = stored["backend_run"]["pid"]
    window.send_signal(signal.SIGKILL)
    window.wait()
    again = Window(program, home)
    try:
        assert again.app.project.home == home and again.statuses()[:5] == ["done"] * 5
        assert again.dialog_open() and str(pid) in again.dialog.message
        assert not again.app.can_start("train")
        again.press("stop")
        again.until(lambda: not again.app.busy, 20)
        assert again.app.can_start("train")
        assert not ace_gui.process_runs(pid, "trainer_new.py")
    finally:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        again.close()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_opens_in_the_browser_and_ends_with_the_window(make_window, monkeypatch: pytest.MonkeyPatch):
    import urllib.request

    opened: list[str] = []
    monkeypatch.setattr(ace_gui.webbrowser, "open", opened.append)
    window = make_window()
    app = window.app
    window.click(app.rail.tools["tensorboard"])
    window.until(lambda: bool(opened), 90)
    assert opened[0].startswith("http://127.0.0.1:")
    with urllib.request.urlopen(opened[0], timeout=10) as page:
        assert b"TensorBoard" in page.read()
    window.click(app.rail.tools["tensorboard"])
    window.until(lambda: len(opened) == 2, 10)
    assert opened[0] == opened[1]
    process = app.tensorboard._process
    window.close()
    assert process is not None and process.wait(10) is not None


# Both languages, every page, every dialog: nothing is cut


def cut_texts(top: tk.Misc) -> list[str]:
    """Labels and buttons that are smaller than their text, or reach out of the window; also in scrolled frames."""
    found = []
    right, bottom = top.winfo_rootx() + top.winfo_width(), top.winfo_rooty() + top.winfo_height()

    def walk(widget: tk.Misc, scrolled: bool) -> None:
        for child in widget.winfo_children():
            if isinstance(child, (tk.Toplevel, tk.Menu)) or not child.winfo_viewable():
                continue
            inside = scrolled or isinstance(widget, tk.Canvas)
            kind = child.winfo_class()
            if kind in ("TLabel", "TButton", "TCheckbutton", "TMenubutton", "Label"):
                text = str(child.cget("text"))
                small = (
                    child.winfo_width() + 1 < child.winfo_reqwidth()
                    or child.winfo_height() + 1 < child.winfo_reqheight()
                )
                out = child.winfo_rootx() + child.winfo_width() > right or (
                    not inside and child.winfo_rooty() + child.winfo_height() > bottom
                )
                if text and (small or out):
                    found.append(
                        f"{child} {text!r}: {child.winfo_width()}x{child.winfo_height()}"
                        f" of {child.winfo_reqwidth()}x{child.winfo_reqheight()}"
                    )
            walk(child, inside)

    walk(top, False)
    return found


@pytest.mark.parametrize("language", list(ace_gui.LANGUAGES))
def test_no_text_is_cut_at_1280x720(make_window, language: str):
    real = [name for name in (*ace_gui.SCRIPTS, ace_gui.LLAMACPP_SCRIPT) if (ROOT / name).is_file()]
    window = make_window(language=language)
    for name in real:  # their flags fill the forms
        shutil.copy(ROOT / name, window.program)
    app = window.app
    # What a screen of 1280x720 leaves besides title bar, menu and task bar.
    window.root.geometry("1280x616+0+0")
    app._read_flags()
    app.open_project(project_with_songs(window.program, "prep"))
    app.report = {
        "python": "3.11.7",
        "bits": 64,
        "packages": dict.fromkeys(ace_gui.PACKAGES, "1.0"),
        "torch": "2.13",
        "cuda_build": "",
        "cards": [],
    }
    for key in [*(step.key for step in STEPS), "environment"]:
        app.show_page(key)
        window.pump(6)
        assert cut_texts(window.root) == [], key
        page = app.page(key)
        if hasattr(page, "_toggle"):
            page._toggle()
            window.pump(6)
            assert cut_texts(window.root) == [], f"{key}, advanced"
            page._toggle()
    app.say(
        "bad",
        "\n".join(app.ui.t(name, name="torch") for name, _ in ace_gui.KNOWN_ERRORS[:2]),
        (app.ui.t("menu.logs"), lambda: None),
    )
    window.pump(6)
    assert cut_texts(window.root) == [], "banner"
    app.state, app.running_step = "stopping", "strength"
    app.progress = ace_gui.Progress(12345, 100000, "step", rate=0.31, left=36000.0, loss=0.1234)
    app.refresh()
    app._show_progress()
    window.pump(6)
    assert cut_texts(window.root) == [], "run bar"
    app.state, app.running_step = "idle", ""


@pytest.mark.parametrize("language", list(ace_gui.LANGUAGES))
def test_every_dialog_fits_and_closes_with_escape(make_window, language: str, songs: list[Path]):
    window = make_window(language=language)
    app = window.app
    home = project_with_songs(window.program, "prep")
    app.open_project(home)
    checkpoint = window.program / "checkpoints" / "epoch=12-step=123456_lora"
    checkpoint.mkdir(parents=True)
    for name in (ace_gui.LORA_FILE, "training_state.json"):
        (checkpoint / name).write_text("{}")
    app.choose_files = lambda title: [str(songs[0])]
    app.space.settings.checkpoint_dir = ""
    openers: list[Callable[[], Any]] = [
        app.show_keys, app.show_about, app.ask_reset, app.ask_add_tag, app.ask_remove_tag, app.ask_replace,
        app.ask_instrumental, app.page("train").ask_save_preset,
        lambda: app.page("songs").ask_rename(app.songs[0]), lambda: app.page("songs").ask_remove(app.songs),
        lambda: app._ask_checkpoints(lambda **_: None), lambda: app._ask_stale(STEPS[3], "train", lambda **_: None),
        lambda: app._ask_disk(lambda **_: None), lambda: app._ask_occupied(home, lambda _: None),
        lambda: app._ask_home("x", home.parent, lambda _: None), lambda: app.change_home("y", "Taudio/y"),
        app.ask_files,
    ]  # fmt: skip
    for number, opener in enumerate(openers):
        opener()
        window.until(lambda: window.dialog.window.winfo_viewable())
        window.pump(4)
        dialog = window.dialog
        assert dialog.window.title().strip()
        assert cut_texts(dialog.window) == [], number
        assert dialog.window.winfo_width() <= 1280 and dialog.window.winfo_height() <= 720
        assert window.root.focus_get() is not None and str(window.root.focus_get()).startswith(str(dialog.window)), (
            number
        )
        window.key("Escape", dialog.window)
        assert dialog.closed and not dialog.window.winfo_exists() if not dialog.closed else True
    app.state = "running"
    app.close()
    window.key("Escape", window.dialog.window)
    assert not app.closing
    app.state = "idle"
    assert len(app.songs) == 2 and app.project.home == home


def test_the_language_changes_at_a_click_and_nothing_is_lost(make_window):
    window = make_window(language="zh")
    app = window.app
    home = project_with_songs(window.program, "lyrics")
    app.open_project(home)
    page = window.show("prompts")
    window.type(page.editors["prompt"].text, "unsaved words")
    app.log.write(["a line of the log"])
    window.click(app.language_button)
    assert app.settings.language == "en" and app.rail.tools["run.all"].cget("text") == "Run all remaining"
    assert app.page_key == "prompts" and app.page("prompts").editors["prompt"].get() == "unsaved words"
    assert "a line of the log" in app.log.content()
    assert Settings.load(app.settings.path).language == "en"
    window.click(app.language_button)
    assert app.rail.tools["run.all"].cget("text") == "运行剩余步骤"


def test_no_chinese_is_left_in_the_english_window(make_window):
    window = make_window(language="en")
    window.app.open_project(project_with_songs(window.program, "prep"))
    for key in [*(step.key for step in STEPS), "environment"]:
        window.app.show_page(key)
        window.pump()
    texts: list[str] = []

    def walk(widget: tk.Misc) -> None:
        for child in widget.winfo_children():
            with contextlib.suppress(tk.TclError):
                texts.append(str(child.cget("text")))
            walk(child)

    walk(window.root)
    home = str(window.program)
    assert [
        text for text in texts if any("\u4e00" <= c <= "\u9fff" for c in text.replace(home, "")) and text != "中文"
    ] == []


# The keyboard


def test_everything_can_be_reached_by_tab_and_the_focus_shows(make_window):
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program, "lyrics"))
    for key in ("songs", "prompts", "dataset", "train", "environment"):
        app.show_page(key)
        window.pump()
        app.rail.steps["songs"].focus_force()
        window.pump()
        seen: list[str] = []
        widget = app.rail.steps["songs"]
        for _ in range(250):
            window.key("Tab", widget)
            widget = window.root.focus_get()
            if str(widget) in seen:
                break
            seen.append(str(widget))
        wanted = [app.rail.tools["reset"], app.language_button, app.log.text]
        page = app.page(key)
        if key in ("prompts",):
            wanted += [page.start_button, page.editors["prompt"].text, page.editors["lyrics"].text, page.list]
        if key == "songs":
            wanted += [page.add_button, page.table]
        assert [str(one) for one in wanted if str(one) not in seen] == [], key
        window.pump()


def test_shortcuts(make_window, songs: list[Path]):
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program, "lyrics"))
    for step in STEPS:
        window.key(f"Alt-Key-{step.number}", app.log.text)
        assert app.page_key == step.key
    window.key("F8")
    assert app.page_key == "environment"
    window.key("Alt-Key-4")
    window.key("F5")
    window.until(lambda: app.state == "idle" and app.states["dataset"].status == "done")
    window.key("Alt-Key-2")
    page = app.page("prompts")
    assert page.open_song.stem == "a"
    window.key("Control-Next", page.editors["prompt"].text)
    assert page.open_song.stem == "b"
    asked: list[str] = []
    app.choose_files = lambda title: asked.append(title) or []
    window.key("Control-o")
    assert asked


# The environment page


def test_the_environment_page_asks_the_python_and_copies_a_report(make_window):
    window = make_window()
    app = window.app
    window.click(app.rail.tools["title.environment"])
    window.until(lambda: app.report is not None, 120)
    assert app.report["python"].startswith("3.")
    app.copy_report()
    assert "Python version" in window.root.clipboard_get() and "ACE-Step LoRA" in window.root.clipboard_get()


def test_settings_of_the_environment_page_are_stored(make_window, tmp_path: Path):
    window = make_window()
    app = window.app
    app.show_page("environment")
    window.pump()
    page = app.page("environment")
    window.type(page.widgets["endpoint"], "https://hf-mirror.com")
    window.key("Return", page.widgets["endpoint"])
    app.choose_folder = lambda title: str(tmp_path)
    page._browse("checkpoint_dir", "folder")
    stored = json.loads(app.settings.path.read_text(encoding="utf-8"))
    assert (stored["endpoint"], stored["checkpoint_dir"]) == ("https://hf-mirror.com", str(tmp_path))
    assert app.settings.child_environment()["HF_ENDPOINT"] == "https://hf-mirror.com"


# The real scripts


@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not all((ROOT / name).is_file() for name in ace_gui.SCRIPTS) or importlib.util.find_spec("torch") is None,
    reason="the scripts or torch are not here",
)
def test_a_newcomers_whole_journey_with_the_real_scripts(make_window, tmp_path: Path):
    """From an empty folder through all seven steps, with a stop and a resume, in a path with spaces and emoji."""
    program = tmp_path / "ACE 训练 🎵"
    program.mkdir()
    for name in (*ace_gui.SCRIPTS, "config", "ace_lora"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, program / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, program)
    tiny = tmp_path / "tiny base"
    subprocess.run([sys.executable, "-m", "ace_lora.tiny_base", str(tiny)], cwd=ROOT, check=True, capture_output=True)
    sources = []
    for name, pitch in (("晴天.wav", 40), ("夜曲.wav", 55)):
        path = tmp_path / "歌" / name
        path.parent.mkdir(exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(44100)
            file.writeframes(
                b"".join(
                    struct.pack("<hh", (n * pitch) % 20000 - 10000, (n * pitch * 2) % 16000 - 8000)
                    for n in range(44100 * 4)
                )
            )
        sources.append(path)
    window = make_window(program=program, language="zh", checkpoint_dir=str(tiny), offline=True)
    app = window.app
    app.choose_files = lambda title: [str(path) for path in sources]
    window.click(app.page("songs").add_button)
    window.press("ok")
    window.until(lambda: not app.importing and len(app.songs) == 2)
    page = window.show("prompts")
    rows = {row.row.flag: row for form in page.forms for row in form.rows}
    rows["backend"].variable.set("analysis")
    for key in ("prompts", "lyrics", "dataset", "prep"):
        window.start(key, 240)
        assert app.describe(key)[0] == "done", app.log.content()[-3000:]
    page = window.show("train")
    rows = {row.row.flag: row for form in page.forms for row in form.rows}
    for flag, text in (("max_steps", "40"), ("save_every_n_train_steps", "10"), ("precision", "32-true")):
        window.type(rows[flag].widget, text)
    window.click(page.start_button)
    window.until(lambda: "step " in app.log.content().rsplit("$ ", 1)[1], 240)
    window.click(app.run_bar.stop)
    window.until(lambda: app.state == "idle", 120)
    assert app.space.loras(), app.log.content()[-3000:]
    stopped_at = ace_gui.lora_step(app.space.loras()[-1])
    if stopped_at < 40:
        window.click(page.start_button)
        window.press("resume")
        window.until(lambda: app.state == "idle", 240)
    assert ace_gui.lora_step(app.space.loras()[-1]) == 40, app.log.content()[-3000:]
    assert app.curve is not None and app.curve.steps[-1] == 40
    window.start("strength", 120)
    assert window.statuses() == ["done"] * 7, app.log.content()[-3000:]
    [result] = program.glob("qing_tian-step40.safetensors")
    header = json.loads(result.read_bytes()[8 : 8 + struct.unpack("<Q", result.read_bytes()[:8])[0]])
    assert any(key.endswith(".alpha") for key in header) and any(key.endswith(".lora_A.weight") for key in header)


# What goes wrong


def test_a_text_that_cannot_be_written_is_not_lost(make_window):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program)
    (home / "a_lyrics.txt").mkdir()  # stands for a full disk or a read-only folder, also for root
    app.open_project(home)
    page = window.show("prompts")
    window.type(page.editors["lyrics"].text, "precious")
    window.click(page.tools[1])  # next song
    assert page.open_song.stem == "a" and page.editors["lyrics"].get() == "precious"
    assert page.list.selection() == ("a.wav",) and "Cannot save a_lyrics.txt" in window.banner()
    app.change_look(language="zh")
    app.open_project(None)
    assert app.project.home == home and page.editors["lyrics"].get() == "precious"
    app.close()
    window.press("cancel")
    assert not app._destroyed and page.editors["lyrics"].get() == "precious"
    (home / "a_lyrics.txt").rmdir()
    window.click(page.tools[1])
    assert page.open_song.stem == "b" and (home / "a_lyrics.txt").read_text() == "precious"


def test_a_window_can_be_closed_with_a_text_that_cannot_be_written(make_window):
    window = make_window()
    home = project_with_songs(window.program)
    (home / "a_lyrics.txt").mkdir()
    window.app.open_project(home)
    page = window.show("prompts")
    window.type(page.editors["lyrics"].text, "x")
    window.app.close()
    window.dialog.press("discard")
    assert window.app._destroyed


def test_every_faulty_song_is_said_however_the_window_looks_meanwhile(make_window):
    window = make_window()
    app = window.app
    home = window.program / "Taudio" / "x"
    write_wav(home / "fine.wav")
    for number in range(6):
        write_wav(home / f"quiet{number}.wav", seconds=0.5 + number, level=0)
    app.open_project(home)
    window.until(lambda: app.banner.frame.winfo_manager())
    assert "Songs that need attention: 6" in window.banner() and "and 3 more" in window.banner()
    assert len(window.banner().splitlines()) == 5
    window.until(lambda: app.log.frame.winfo_height() >= app.ui.px(60))  # the log is still in sight
    assert "unreadable or silent get no text: 6" in app.describe("prompts")[1]


def test_what_was_refused_and_what_is_faulty_are_both_said(make_window, songs: list[Path], tmp_path: Path):
    window = make_window()
    app = window.app
    app.add_sources([*songs, write_wav(tmp_path / "quiet.wav", level=0), tmp_path / "nowhere.wav"])
    window.press("ok")
    window.until(lambda: "Songs that need attention: 1" in window.banner())
    assert "· nowhere.wav: there is no such file." in window.banner() and "· quiet: is silent" in window.banner()


def test_a_project_folder_that_vanishes_leaves_an_empty_library(make_window):
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program, "prep"))
    shutil.rmtree(app.project.home)
    window.until(lambda: not app.songs)
    for key in app.rail.steps:
        window.show(key)
    app.set_value("train", ace_gui.TRAIN_FIELDS[0], "3")
    window.until(lambda: app._save_timer is None)
    assert window.statuses() == ["ready"] + ["locked"] * 6


def test_what_was_typed_for_a_song_that_vanished_is_kept(make_window):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program, "prep")
    app.open_project(home)
    page = window.show("prompts")
    window.type(page.editors["prompt"].text, "hello")
    (home / "a.wav").unlink()
    window.until(lambda: len(app.songs) == 1)
    assert page.open_song.stem == "b" and (home / "a_prompt.txt").read_text() == "hello"


def test_a_move_that_fails_says_why(make_window, tmp_path: Path):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program)
    app.open_project(home)
    (tmp_path / "file").write_text("")
    app.change_home("x", str(tmp_path / "file" / "x"))
    window.press("move")
    assert "A file could not be used" in window.banner() and app.project.home == home and len(app.songs) == 2


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_marks_in_the_song_table_fit_their_columns(make_window, language: str):
    window = make_window(language=language)
    page = window.app.page("songs")
    font = tk.font.nametofont("TkDefaultFont", root=window.root)
    for column, prefix in (("length", "short."), ("prompt", "mark."), ("lyrics", "mark."), ("record", "mark.")):
        for key in (key for key in ace_gui.TEXTS if key.startswith(prefix)):
            assert font.measure(page.ui.t(key)) + 12 <= page.table.column(column, "width"), (column, key)


def test_keys_typed_behind_a_dialog_do_nothing(make_window):
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program, "prep"))
    app.ask_reset()
    first = app.dialog
    app.root.event_generate("<Control-q>")
    app.root.event_generate("<F5>")
    window.pump()
    assert app.dialog is first and not first.closed and app.state == "idle" and app.page_key == "songs"


def test_a_locked_form_does_not_call_empty_what_earlier_steps_fill_in(make_window):
    window = make_window()
    window.app.open_project(project_with_songs(window.program))
    page = window.show("strength")
    assert [str(row.note.cget("style")) for row in page.forms[0].rows] == ["Small.TLabel"] * 3


def test_scrolling_up_by_a_notch_stays_in_a_long_log(make_window):
    window = make_window()
    log = window.app.log
    log.write([f"line {n}" for n in range(5500)])
    window.pump()
    log.text.yview_scroll(-3, "units")
    window.pump()
    top = log.text.index("@0,0")
    log.write(["more"])
    window.pump()
    assert log.text.index("@0,0") == top
    log.text.see("end")
    window.pump()
    log.write(["and more"])
    window.pump()
    assert log.text.dlineinfo("end-1c") is not None


def test_a_banner_does_not_hide_the_end_of_the_log(make_window):
    window = make_window()
    log = window.app.log
    log.write([f"line {n}" for n in range(200)])
    window.pump()
    window.app.say("bad", "one\ntwo\nthree")
    window.pump()
    assert log.text.dlineinfo("end-1c") is not None
    log.text.yview_moveto(0.5)
    window.pump()
    top = log.text.index("@0,0")
    window.app.banner.hide()
    window.pump()
    assert log.text.index("@0,0") == top


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
@pytest.mark.skipif(os.name == "nt", reason="a job object does this on Windows")
def test_tensorboard_ends_with_a_window_that_was_killed(tmp_path: Path):
    code = (
        "import ace_gui, os, pathlib, sys, time\n"
        "board = ace_gui.TensorBoard()\n"
        "board.open(pathlib.Path(sys.executable), pathlib.Path(sys.argv[1]), pathlib.Path('.'), dict(os.environ))\n"
        "print(board.answers.get(timeout=120), board._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    window = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert window.stdout is not None
    line = window.stdout.readline()
    assert "ready" in line
    pid = int(line.split()[-1])
    assert ace_gui.process_runs(pid, "tensorboard")
    window.kill()
    window.wait()
    deadline = time.monotonic() + 30
    while ace_gui.process_runs(pid, "tensorboard"):
        assert time.monotonic() < deadline, "TensorBoard outlived its window"
        time.sleep(0.05)


def test_stopping_says_how_to_go_on(make_window):
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program, "prep"))
    app.start_step("train")
    window.until(lambda: app.progress is not None)
    window.click(app.run_bar.stop)
    window.until(lambda: app.state == "idle")
    assert "choose “Go on from the last”" in window.banner()
    script = window.program / "trainer_new.py"  # as the fork's: it cannot go on
    text = script.read_text(encoding="utf-8").replace(
        'parser.add_argument("--resume", action="store_true")', "args = None"
    )
    script.write_text(text.replace("args.resume", "False"), encoding="utf-8")
    app._read_flags()
    app.start_step("train")
    window.press("move")
    window.until(lambda: app.progress is not None)
    window.click(app.run_bar.stop)
    window.until(lambda: app.state == "idle")
    assert window.banner().startswith("Training: stopped after")


def test_songs_that_failed_are_named(make_window):
    window = make_window()
    app = window.app
    app.open_project(project_with_songs(window.program))
    lines = ("song 1/2 | a.wav | done", "song 2/2 | b.wav | failed: The audio is silent.")
    (window.program / "generate_prompts_lyrics.py").write_text(f"print(*{lines!r}, sep='\\n')\nraise SystemExit(1)")
    app.start_step("prompts")
    window.until(lambda: app.state == "idle")
    assert "Songs that did not succeed: 1 (b.wav)." in window.banner()


def test_a_song_that_no_program_opens_is_said(make_window, monkeypatch: pytest.MonkeyPatch):
    window = make_window()
    window.app.open_project(project_with_songs(window.program))
    monkeypatch.setenv("PATH", "/nowhere")
    if sys.platform == "win32":
        monkeypatch.setattr(os, "startfile", lambda path: (_ for _ in ()).throw(OSError(1155, "no application")))
    page = window.show("songs")
    page.table.selection_set("a.wav")
    window.pump()
    window.click(page.tools[0])
    assert "a.wav: No such file" in window.banner() or "Cannot open" in window.banner()


def test_titles_of_a_large_import_are_all_stored(make_window, tmp_path: Path):
    sources = [write_wav(tmp_path / "in" / f"第{n}首.wav", level=n + 1) for n in range(30)]
    window = make_window()
    window.app._use_home(window.program / "Taudio" / "x")
    window.app._import_into(window.app.project.home, sources)
    window.until(lambda: not window.app.importing)
    stored = json.loads((window.app.project.home / ace_gui.PROJECT_FILE).read_text(encoding="utf-8"))
    assert sorted(stored["titles"].values()) == sorted(path.stem for path in sources)


def test_closing_right_after_a_message_leaves_nothing_behind(display: None, tmp_path: Path):
    write_stand_ins(tmp_path / "program")
    code = (
        "import sys; from pathlib import Path; import ace_gui; program = Path(sys.argv[1])\n"
        "app = ace_gui.App(ace_gui.open_root(), program, ace_gui.Settings(program / 's.json'))\n"
        "app.root.update(); app.say('good', 'done'); app.close()"
    )
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "APPDATA": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "program")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, b"")


def test_songs_that_cannot_be_removed_are_not_said_to_be(make_window):
    window = make_window()
    home = project_with_songs(window.program)
    window.app.open_project(home)
    (home / ace_gui.BIN_FOLDER).write_text("a file where the bin should be")
    window.app.page("songs").ask_remove(window.app.songs)
    window.press("remove")
    assert window.banner().startswith("A file could not be used") and len(window.app.songs) == 2


# Two windows


def test_a_project_opens_in_one_window_at_a_time(make_window):
    first = make_window()
    home = project_with_songs(first.program)
    first.app.open_project(home)
    second = make_window(home)
    assert second.app.project.home is None and "qing_tian” is open in another window" in second.banner()
    third = make_window()
    other = write_wav(first.program / "Taudio" / "other" / "c.wav").parent
    third.app.open_project(other)
    assert not third.app.open_project(home)  # what it shows stays
    assert third.app.project.home == other and [song.stem for song in third.app.songs] == ["c"]
    first.close()
    third.click(third.app.banner.action)  # "Try again"
    assert third.app.project.home == home
    assert second.app.open_project(other)


def test_a_folder_that_another_window_shows_is_not_cleared(make_window, songs: list[Path]):
    first = make_window()
    home = project_with_songs(first.program)
    first.app.open_project(home)
    second = make_window()
    second.app._ask_occupied(home, lambda _home: None)
    second.press("clear")
    assert "is open in another window" in second.banner() and [song.stem for song in first.app.songs] == ["a", "b"]


def test_two_trainings_do_not_fill_one_folder(make_window):
    first = make_window()
    home = project_with_songs(first.program, "prep")
    first.app.open_project(home)
    other = home.with_name("other")
    for suffix in ("", "_filenames", "_prep"):
        shutil.copytree(home.with_name(home.name + suffix), home.with_name("other" + suffix))
    second = make_window(other)
    first.app.start_step("train")
    first.until(lambda: first.app.progress is not None)
    second.app.start_step("train")
    assert second.app.state == "idle" and "Another training is saving its LoRAs into checkpoints" in second.banner()
    first.app.stop_pressed()
    first.until(lambda: first.app.state == "idle")
    second.app.start_step("train")
    second.press("move")
    second.until(lambda: second.app.progress is not None)


@pytest.mark.skipif(sys.platform == "win32", reason="on Windows a training ends with its window")
def test_a_training_whose_window_was_killed_still_keeps_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    lock = ace_gui.FolderLock.take(tmp_path)
    assert lock is not None
    code = "import time; print('on', flush=True); time.sleep(600)"
    child = ace_gui.start_process([sys.executable, "-c", code], tmp_path, dict(os.environ), heirs=lock.heirs())
    assert child.stdout is not None and child.stdout.readline() == b"on\n"
    lock._file.close()  # as when the window's process ends: unlocking by hand would free it for the child as well
    assert ace_gui.FolderLock.take(tmp_path) is None
    ace_gui.kill_tree(child, None)
    child.wait()
    child.stdout.close()
    assert ace_gui.FolderLock.take(tmp_path) is not None


# Menus


def test_the_view_menu_marks_the_language_and_size_of_the_window(make_window):
    window = make_window()
    app = window.app

    def marked() -> list[str]:
        menu = app.root.nametowidget(app._menu.entrycget(4, "menu"))
        entries = [index for index in range(menu.index("end") + 1) if menu.type(index) == "radiobutton"]
        return [
            menu.entrycget(i, "label")
            for i in entries
            if app.root.getvar(menu.entrycget(i, "variable")) == menu.entrycget(i, "value")
        ]

    def choose(label: str) -> None:
        app.root.nametowidget(app._menu.entrycget(4, "menu")).invoke(label)
        window.pump()

    assert marked() == ["English", "100 %"]
    choose("中文")
    choose("125 %")
    assert marked() == ["中文", "125 %"]
    app.show_about()
    choose("English")  # refused while a dialog is open: the mark goes back
    assert marked() == ["中文", "125 %"]
    window.press("cancel")
    app.change_look(language="en", scale="100")


def test_handlers_do_not_grow_with_every_page_and_project(make_window):
    window = make_window()
    home = project_with_songs(window.program)

    def bound() -> int:
        return len(window.root.bind_all("<FocusIn>").split("\n"))

    before, frames = bound(), len(window.app.ui.scroll_frames)
    for _ in range(3):
        window.app.open_project(home)
        window.app.show_page("train")
        window.app.open_project(None)
        window.app.change_look(language="en")
    assert (bound(), len(window.app.ui.scroll_frames)) == (before, frames)
