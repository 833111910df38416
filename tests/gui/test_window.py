"""The window of ace_gui.py as a whole: opening, closing, dialogs, languages, keys, two windows, on a real Tk."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import tkinter as tk
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ace_gui
from ace_gui import STEPS, Settings
from tests.gui.window import ROOT, Window, gone, project_with_songs, write_stand_ins, write_wav


def test_opens_empty_in_chinese_and_says_what_to_do(make_window):
    window = make_window(language="zh")
    assert window.root.title() == "ACE-Step LoRA"
    assert window.statuses() == ["ready"] + ["locked"] * 6
    assert "添加歌曲" in window.app.window.page("songs").add_button.cget("text")
    assert window.app.window.page("songs").empty.winfo_viewable()
    for key in ("prompts", "lyrics", "dataset", "prep", "train", "strength"):
        page = window.show(key)
        assert str(page.start_button.cget("state")) == "disabled"
        assert "第 1 步" in page.strip_text.cget("text")


def test_the_log_explains_itself_and_callback_errors_reach_it(make_window, capsys: pytest.CaptureFixture[str]):
    window = make_window()
    window.root.after(1, lambda: 1 / 0)
    with contextlib.suppress(AssertionError):
        window.until(lambda: "ZeroDivisionError" in window.app.window.log.content(), 5)
    assert window.errors == ["ZeroDivisionError: division by zero"]
    window.errors.clear()
    assert "ZeroDivisionError" in window.app.window.log.content() and "ZeroDivisionError" in capsys.readouterr().err


def test_from_an_empty_folder_to_the_lora_by_clicks(make_window, songs: list[Path]):
    window = make_window(language="zh")
    app = window.app
    app.questions.choose_files = lambda title: [str(path) for path in songs]
    window.click(app.window.page("songs").add_button)
    assert [entry.get() for entry in window.dialog.entries] == ["qing_tian", "Taudio"]
    window.press("ok")
    window.until(lambda: app.session.state != "importing" and len(app.session.songs) == 2)
    home = window.program / "Taudio" / "qing_tian"
    assert app.session.project.home == home
    assert sorted(path.name for path in home.iterdir() if path.suffix == ".wav") == ["qing_tian.wav", "ye_qu_Live.wav"]
    assert [song.title for song in app.session.songs] == ["晴天", "夜曲 (Live)"]
    for number, key in enumerate(("prompts", "lyrics", "dataset", "prep")):
        assert window.statuses() == ["done"] * (number + 1) + ["ready"] + ["locked"] * (5 - number)
        window.start(key)
    page = app.window.page("prompts")
    window.show("prompts")
    assert page.editors["prompt"].get() == "pop, warm" and page.editors["lyrics"].get() == "[verse]\nla"
    page = window.show("train")
    window.type(next(row for row in page.forms[0].rows if row.row.flag == "max_steps").widget, "4")
    window.start("train")
    assert app.runs.training.curve is not None and app.runs.training.curve.steps == [1, 2, 3, 4]
    assert json.loads((home / ace_gui.PROJECT_FILE).read_text(encoding="utf-8"))["values"] == {
        "train": {"max_steps": "4"}
    }
    window.start("strength")
    assert (window.program / "qing_tian-step4.safetensors").read_text() == "xalpha"
    assert window.statuses() == ["done"] * 7
    logs = sorted(path.name.split("_")[-1] for path in (home / "logs").iterdir())
    assert logs == ["dataset.log", "lyrics.log", "prep.log", "prompts.log", "strength.log", "train.log"]


def test_only_one_run_at_a_time(make_window):
    window = make_window()
    window.app.session.open(project_with_songs(window.program, "prep"))
    page = window.show("train")
    window.click(page.start_button)
    window.until(lambda: "step 2/" in window.app.window.log.content())
    run = window.app.runs.runner.run
    for key in ("prompts", "dataset", "train"):
        page = window.show(key)
        assert str(page.start_button.cget("state")) == "disabled"
    window.key("F5")
    window.app.session.tell(window.app.runs.start("dataset"))
    window.app.window.commands["run.all"]()
    assert window.app.runs.runner.run == run
    for name in ("run.all", "reset"):
        assert str(window.app.window.rail.tools[name].cget("state")) == "disabled"
    assert "Training" in window.root.title() and "%" in window.root.title()
    assert "loss" in window.app.window.run_bar.figures.cget(
        "text"
    ) and "0.31 it/s" in window.app.window.run_bar.figures.cget("text")


def test_closing_asks_then_stops(make_window):
    window = make_window()
    app = window.app
    app.session.open(project_with_songs(window.program, "prep"))
    window.click(window.show("train").start_button)
    window.until(lambda: "step 2/" in app.window.log.content())
    pid = app.runs.runner.pid
    app.close()
    window.press("cancel")
    assert app.session.state == "running"
    app.close()
    window.press("stop")
    deadline = time.monotonic() + 20
    while app.session.state != "closed" and time.monotonic() < deadline:
        with contextlib.suppress(tk.TclError):
            window.root.update()
        time.sleep(0.005)
    assert app.session.state == "closed" and app.session.space.loras()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


HELD_TRAINER = """
import argparse, os, pathlib, sys, time
from ace_lora.commands import run_script
def main(args):
    pathlib.Path("pid.new").write_text(str(os.getpid()))
    os.replace("pid.new", "pid")
    try:
        while True:
            print("step 7/2000 | loss 0.5", flush=True)
            time.sleep(0.01)
    except KeyboardInterrupt:
        folder = pathlib.Path("checkpoints/epoch=0-step=7_lora")
        folder.mkdir(parents=True)
        print("saving")
        (folder / "pytorch_lora_weights.safetensors").write_text("x")
        raise
sys.exit(run_script(main, argparse.Namespace()))
"""


def test_a_window_that_was_killed_opens_again_where_it_was(display: None, tmp_path: Path):
    """SIGKILL the window in the middle of a training: it saves and ends, and the next window shows the truth."""
    program = tmp_path / "程序"
    write_stand_ins(program)
    home = project_with_songs(program, "prep")
    (program / "ace_lora").mkdir()
    for name in ("__init__.py", "commands.py"):
        shutil.copy(ROOT / "ace_lora" / name, program / "ace_lora")
    (program / "trainer_new.py").write_text(HELD_TRAINER, encoding="utf-8")
    driver = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport ace_gui; from pathlib import Path\n"
        f"root = ace_gui.open_root(); program = Path({str(program)!r})\n"
        f"app = ace_gui.App(root, program, ace_gui.Settings.load(program / 'settings.json'), Path({str(home)!r}))\n"
        "app.window.show_page('train')\nroot.after(300, lambda: app.session.tell(app.runs.start('train')))\n"
        "root.mainloop()\n"
    )
    window = subprocess.Popen([sys.executable, "-c", driver])
    pid_file = program / "pid"
    deadline = time.monotonic() + 30
    while not pid_file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    pid = int(pid_file.read_text())
    assert not gone(pid)
    window.kill()
    window.wait()
    while not gone(pid):
        assert time.monotonic() < deadline, "the training outlived its window"
        time.sleep(0.05)
    again = Window(program, home)
    try:
        assert again.app.session.project.home == home and again.statuses()[:6] == ["done"] * 6
        assert [lora.name for lora in again.app.session.space.loras()] == ["epoch=0-step=7_lora"]
        assert again.app.runs.can_start("train") and not again.dialog_open()
    finally:
        again.close()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_opens_in_the_browser_and_ends_with_the_window(make_window, monkeypatch: pytest.MonkeyPatch):
    import urllib.request

    opened: list[str] = []
    monkeypatch.setattr(ace_gui.webbrowser, "open", opened.append)
    window = make_window()
    app = window.app
    window.click(app.window.rail.tools["tensorboard"])
    window.until(lambda: bool(opened), 90)
    assert opened[0].startswith("http://127.0.0.1:")
    with urllib.request.urlopen(opened[0], timeout=10) as page:
        assert b"TensorBoard" in page.read()
    window.click(app.window.rail.tools["tensorboard"])
    window.until(lambda: len(opened) == 2, 10)
    assert opened[0] == opened[1]
    process = app.tensorboard._process
    window.close()
    assert process is not None and process.wait(10) is not None


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
    app.session.read_flags()
    app.session.open(project_with_songs(window.program, "prep"))
    app.environment.report = {
        "python": "3.11.7",
        "bits": 64,
        "packages": dict.fromkeys(ace_gui.PACKAGES, "1.0"),
        "torch": "2.13",
        "cuda_build": "",
        "cards": [],
    }
    for key in [*(step.key for step in STEPS), "environment"]:
        app.window.show_page(key)
        window.pump(6)
        assert cut_texts(window.root) == [], key
        page = app.window.page(key)
        if hasattr(page, "_toggle"):
            page._toggle()
            window.pump(6)
            assert cut_texts(window.root) == [], f"{key}, advanced"
            page._toggle()
    sentences = "\n".join(app.session.t(name, name="torch") for name, _ in ace_gui.KNOWN_ERRORS[:2])
    app.session.tell(ace_gui.Outcome("bad", sentences, "menu.logs"))
    window.pump(6)
    assert cut_texts(window.root) == [], "banner"
    app.session.state, app.runs.run.step = "stopping", "strength"
    app.runs.run.progress = ace_gui.Progress(12345, 100000, "step", rate=0.31, left=36000.0, loss=0.1234)
    app.window.refresh()
    app.window.show_progress()
    window.pump(6)
    assert cut_texts(window.root) == [], "run bar"
    app.session.state, app.runs.run.step = "idle", ""


@pytest.mark.parametrize("language", list(ace_gui.LANGUAGES))
def test_every_dialog_fits_and_closes_with_escape(make_window, language: str, songs: list[Path]):
    window = make_window(language=language)
    app = window.app
    home = project_with_songs(window.program, "prep")
    app.session.open(home)
    checkpoint = window.program / "checkpoints" / "epoch=12-step=123456_lora"
    checkpoint.mkdir(parents=True)
    for name in (ace_gui.LORA_FILE, "training_state.json", "training_state.safetensors"):
        (checkpoint / name).write_text("{}")
    app.questions.choose_files = lambda title: [str(songs[0])]
    app.session.space.settings.checkpoint_dir = ""
    session, commands = app.session, app.window.commands
    questions: list[Callable[[], ace_gui.Reply]] = [
        lambda: ace_gui.ask_rename(session, session.songs[0]), lambda: ace_gui.ask_remove(session, session.songs),
        lambda: ace_gui.ask_checkpoints(session, lambda _: None, app.runs.give_up),
        lambda: ace_gui.ask_stale(session, STEPS[3], lambda: None, lambda: None),
        lambda: ace_gui.ask_disk(session, lambda: None, app.runs.give_up),
        lambda: ace_gui.ask_occupied(session, home, lambda _: None),
        lambda: ace_gui.ask_home(session, "x", home.parent, lambda _: None),
        lambda: ace_gui.change_home(session, "y", "Taudio/y"), lambda: ace_gui.ask_save_preset(session),
    ]  # fmt: skip
    openers: list[Callable[[], Any]] = [
        *(commands[key] for key in ("menu.keys", "menu.about", "reset", "songs.add_files")),
        *(commands[f"texts.{kind}"] for kind in (*ace_gui.TEXT_CHANGES, "instrumental_all")),
        *(lambda question=question: session.tell(question()) for question in questions),
    ]
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
    app.session.state = "running"
    app.close()
    window.key("Escape", window.dialog.window)
    assert app.session.state != "closing"
    app.session.state = "idle"
    assert len(app.session.songs) == 2 and app.session.project.home == home


def test_the_language_changes_at_a_click_and_nothing_is_lost(make_window):
    window = make_window(language="zh")
    app = window.app
    home = project_with_songs(window.program, "lyrics")
    app.session.open(home)
    page = window.show("prompts")
    window.type(page.editors["prompt"].text, "unsaved words")
    app.window.log.write(["a line of the log"])
    window.click(app.window.header.language)
    assert (
        app.session.settings.language == "en" and app.window.rail.tools["run.all"].cget("text") == "Run all remaining"
    )
    assert app.window.page_key == "prompts" and app.window.page("prompts").editors["prompt"].get() == "unsaved words"
    assert "a line of the log" in app.window.log.content()
    assert Settings.load(app.session.settings.path).language == "en"
    window.click(app.window.header.language)
    assert app.window.rail.tools["run.all"].cget("text") == "运行剩余步骤"


def test_no_chinese_is_left_in_the_english_window(make_window):
    window = make_window(language="en")
    window.app.session.open(project_with_songs(window.program, "prep"))
    for key in [*(step.key for step in STEPS), "environment"]:
        window.app.window.show_page(key)
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


def test_everything_can_be_reached_by_tab_and_the_focus_shows(make_window):
    window = make_window()
    app = window.app
    app.session.open(project_with_songs(window.program, "lyrics"))
    for key in ("songs", "prompts", "dataset", "train", "environment"):
        app.window.show_page(key)
        window.pump()
        app.window.rail.steps["songs"].focus_force()
        window.pump()
        seen: list[str] = []
        widget = app.window.rail.steps["songs"]
        for _ in range(250):
            window.key("Tab", widget)
            widget = window.root.focus_get()
            if str(widget) in seen:
                break
            seen.append(str(widget))
        wanted = [app.window.rail.tools["reset"], app.window.header.language, app.window.log.text]
        page = app.window.page(key)
        if key in ("prompts",):
            wanted += [page.start_button, page.editors["prompt"].text, page.editors["lyrics"].text, page.list]
        if key == "songs":
            wanted += [page.add_button, page.table]
        assert [str(one) for one in wanted if str(one) not in seen] == [], key
        window.pump()


def test_shortcuts(make_window, songs: list[Path]):
    window = make_window()
    app = window.app
    app.session.open(project_with_songs(window.program, "lyrics"))
    for step in STEPS:
        window.key(f"Alt-Key-{step.number}", app.window.log.text)
        assert app.window.page_key == step.key
    window.key("F8")
    assert app.window.page_key == "environment"
    window.key("Alt-Key-4")
    window.key("F5")
    window.until(lambda: app.session.state == "idle" and app.session.states["dataset"].status == "done")
    window.key("Alt-Key-2")
    page = app.window.page("prompts")
    assert page.open_song.stem == "a"
    window.key("Control-Next", page.editors["prompt"].text)
    assert page.open_song.stem == "b"
    asked: list[str] = []
    app.questions.choose_files = lambda title: asked.append(title) or []
    window.key("Control-o")
    assert asked


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
    app.questions.choose_files = lambda title: [str(path) for path in sources]
    window.click(app.window.page("songs").add_button)
    window.press("ok")
    window.until(lambda: app.session.state != "importing" and len(app.session.songs) == 2)
    page = window.show("prompts")
    rows = {row.row.flag: row for form in page.forms for row in form.rows}
    rows["backend"].variable.set("analysis")
    window.start("prompts", 240)
    window.start("lyrics", 240)
    # Nobody has listened for a voice, so nothing is called instrumental before the user says so.
    assert app.runs.describe("lyrics")[0] == "failed" and "标为纯音乐" in window.banner()
    app.window.commands["texts.instrumental_all"]()
    window.press("missing")
    assert app.runs.describe("lyrics")[0] == "done"
    for key in ("dataset", "prep"):
        window.start(key, 240)
        assert app.runs.describe(key)[0] == "done", app.window.log.content()[-3000:]
    page = window.show("train")
    rows = {row.row.flag: row for form in page.forms for row in form.rows}
    for flag, text in (("max_steps", "40"), ("save_every_n_train_steps", "10"), ("precision", "32-true")):
        window.type(rows[flag].widget, text)
    window.click(page.start_button)
    window.until(lambda: "step " in app.window.log.content().rsplit("$ ", 1)[1], 240)
    window.click(app.window.run_bar.stop)
    window.until(lambda: app.session.state == "idle", 120)
    assert app.session.space.loras(), app.window.log.content()[-3000:]
    stopped_at = ace_gui.lora_step(app.session.space.loras()[-1])
    if stopped_at < 40:
        window.click(page.start_button)
        window.press("resume")
        window.until(lambda: app.session.state == "idle", 240)
    assert ace_gui.lora_step(app.session.space.loras()[-1]) == 40, app.window.log.content()[-3000:]
    assert app.runs.training.curve is not None and app.runs.training.curve.steps[-1] == 40
    window.start("strength", 120)
    assert window.statuses() == ["done"] * 7, app.window.log.content()[-3000:]
    [result] = program.glob("qing_tian-step40.safetensors")
    header = json.loads(result.read_bytes()[8 : 8 + struct.unpack("<Q", result.read_bytes()[:8])[0]])
    assert any(key.endswith(".alpha") for key in header) and any(key.endswith(".lora_A.weight") for key in header)
    # The one file for every client: its strength lies in the weights, whatever a client makes of alpha.
    adapter = json.loads(header["__metadata__"]["lora_adapter_metadata"])
    assert adapter["lora_alpha"] == adapter["r"] and adapter["use_rslora"] is False


def test_keys_typed_behind_a_dialog_do_nothing(make_window):
    window = make_window()
    app = window.app
    app.session.open(project_with_songs(window.program, "prep"))
    app.window.commands["reset"]()
    first = app.questions.dialog
    app.root.event_generate("<Control-q>")
    app.root.event_generate("<F5>")
    window.pump()
    assert (
        app.questions.dialog is first
        and not first.closed
        and app.session.state == "idle"
        and app.window.page_key == "songs"
    )


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
    assert not gone(pid)
    window.kill()
    window.wait()
    deadline = time.monotonic() + 30
    while not gone(pid):
        assert time.monotonic() < deadline, "TensorBoard outlived its window"
        time.sleep(0.05)


def test_closing_right_after_a_message_leaves_nothing_behind(display: None, tmp_path: Path):
    write_stand_ins(tmp_path / "program")
    code = (
        "import sys; from pathlib import Path; import ace_gui; program = Path(sys.argv[1])\n"
        "app = ace_gui.App(ace_gui.open_root(), program, ace_gui.Settings(program / 's.json'))\n"
        "app.root.update(); app.session.tell(ace_gui.Outcome('good', 'done')); app.close()"
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


def test_a_project_opens_in_one_window_at_a_time(make_window):
    first = make_window()
    home = project_with_songs(first.program)
    first.app.session.open(home)
    second = make_window(home)
    assert second.app.session.project.home is None and "qing_tian” is open in another window" in second.banner()
    third = make_window()
    other = write_wav(first.program / "Taudio" / "other" / "c.wav").parent
    third.app.session.open(other)
    assert not third.app.session.open(home)  # what it shows stays
    assert third.app.session.project.home == other and [song.stem for song in third.app.session.songs] == ["c"]
    first.close()
    third.click(third.app.window.banner.action)  # "Try again"
    assert third.app.session.project.home == home
    assert second.app.session.open(other)


def test_a_folder_that_another_window_shows_is_not_cleared(make_window, songs: list[Path]):
    first = make_window()
    home = project_with_songs(first.program)
    first.app.session.open(home)
    second = make_window()
    second.app.session.tell(ace_gui.ask_occupied(second.app.session, home, lambda _home: None))
    second.press("clear")
    assert "is open in another window" in second.banner() and [song.stem for song in first.app.session.songs] == [
        "a",
        "b",
    ]


def test_the_view_menu_marks_the_language_and_size_of_the_window(make_window):
    window = make_window()
    app = window.app

    def marked() -> list[str]:
        menu = app.root.nametowidget(app.window.menus.bar.entrycget(4, "menu"))
        entries = [index for index in range(menu.index("end") + 1) if menu.type(index) == "radiobutton"]
        return [
            menu.entrycget(i, "label")
            for i in entries
            if app.root.getvar(menu.entrycget(i, "variable")) == menu.entrycget(i, "value")
        ]

    def choose(label: str) -> None:
        app.root.nametowidget(app.window.menus.bar.entrycget(4, "menu")).invoke(label)
        window.pump()

    assert marked() == ["English", "100 %"]
    choose("中文")
    choose("125 %")
    assert marked() == ["中文", "125 %"]
    app.questions.explain("about", "app")
    choose("English")  # refused while a dialog is open: the mark goes back
    assert marked() == ["中文", "125 %"]
    window.press("cancel")
    app.window.change_look(language="en", scale="100")


def test_handlers_do_not_grow_with_every_page_and_project(make_window):
    window = make_window()
    home = project_with_songs(window.program)

    def bound() -> int:
        return len(window.root.bind_all("<FocusIn>").split("\n"))

    before, frames = bound(), len(window.app.window.ui.scroll_frames)
    for _ in range(3):
        window.app.session.open(home)
        window.app.window.show_page("train")
        window.app.session.open(None)
        window.app.window.change_look(language="en")
    assert (bound(), len(window.app.window.ui.scroll_frames)) == (before, frames)
