"""The training page of ace_gui.py: settings, presets, the trial, stop and resume, driven by events on a real Tk."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

import ace_gui
from ace_gui import Settings
from tests.gui.window import project_with_songs


def test_stop_saves_and_the_next_start_can_go_on(make_window):
    window = make_window()
    script = window.program / "trainer_new.py"  # time to look at the window while it is stopping
    code = script.read_text(encoding="utf-8").replace("time.sleep(0.1)", "time.sleep(0.1 if step < 3 else 2)")
    script.write_text(code, encoding="utf-8")
    app = window.app
    app.session.open(project_with_songs(window.program, "prep"))
    page = window.show("train")
    window.click(page.start_button)
    window.until(lambda: "step 3/2000" in app.window.log.content())
    window.click(app.window.run_bar.stop)
    assert app.session.state == "stopping" and app.window.run_bar.stop.cget("text") == "Force stop"
    window.until(lambda: app.session.state == "idle")
    assert "stopped" in window.banner() and window.statuses()[5] == "done"
    stopped = app.session.space.loras()[-1]
    assert not (app.session.space.checkpoints() / "STOP").exists()
    window.click(page.start_button)
    assert set(window.dialog.buttons) == {"move", "resume", "cancel"}
    window.press("resume")
    window.until(lambda: "--resume" in app.window.log.content() and app.runs.runner.pid is not None)
    window.click(app.window.run_bar.stop)
    window.until(lambda: app.session.state == "idle")
    assert stopped in app.session.space.loras()


def test_checkpoints_of_before_are_moved_not_wiped(make_window):
    window = make_window()
    app = window.app
    app.session.open(project_with_songs(window.program, "prep"))
    old = window.program / "checkpoints" / "epoch=0-step=7_lora" / ace_gui.LORA_FILE
    old.parent.mkdir(parents=True)
    old.write_text("precious")
    app.session.set_value("train", ace_gui.TRAIN_FIELDS[4], "2")
    page = window.show("train")
    window.click(page.start_button)
    window.press("cancel")
    assert app.session.state == "idle" and old.read_text() == "precious"
    window.click(page.start_button)
    assert window.root.focus_get() == window.dialog.buttons["move"]
    window.press("move")
    window.until(lambda: app.session.state == "idle" and "step 2/2" in app.window.log.content())
    [moved] = window.program.glob("checkpoints_*")
    assert (moved / "epoch=0-step=7_lora" / ace_gui.LORA_FILE).read_text() == "precious"
    assert [path.name for path in app.session.space.loras()] == ["epoch=0-step=2_lora"]


def test_wrong_values_are_marked_and_block_the_start(make_window):
    window = make_window()
    app = window.app
    app.session.open(project_with_songs(window.program, "prep"))
    page = window.show("train")
    rows = {row.row.flag: row for form in page.forms for row in form.rows}
    window.type(rows["batch_size"].widget, "0")
    window.type(rows["learning_rate"].widget, "fast")
    assert (
        "outside 1 to 64" in rows["batch_size"].note.cget("text")
        and rows["batch_size"].widget.cget("style") == "Wrong.TEntry"
    )
    window.click(page.start_button)
    assert app.runs.runner.run == 0 and "Wrong settings, marked in red: 2" in window.banner()
    assert window.root.focus_get() == rows["batch_size"].widget
    window.type(rows["batch_size"].widget, "2")
    assert rows["batch_size"].widget.cget("style") == "TEntry"


def test_settings_are_kept_per_project_and_reset_touches_no_file(make_window):
    window = make_window()
    app = window.app
    first = project_with_songs(window.program, "prep")
    app.session.open(first)
    page = window.show("train")
    rows = {row.row.flag: row for form in page.forms for row in form.rows}
    window.type(rows["max_steps"].widget, "123")
    app.session.open(window.program)  # any other folder
    assert app.session.space.value("train", ace_gui.TRAIN_FIELDS[4]) == "2000"
    app.session.open(first)
    assert app.session.space.value("train", ace_gui.TRAIN_FIELDS[4]) == "123"
    before = sorted(
        (path, path.read_bytes()) for path in first.rglob("*") if path.is_file() and path.name != ace_gui.PROJECT_FILE
    )
    app.session.change_setting("endpoint", "https://hf-mirror.com")
    window.click(app.window.rail.tools["reset"])
    window.press("reset")
    assert app.session.space.value("train", ace_gui.TRAIN_FIELDS[4]) == "2000" and app.session.settings.endpoint == ""
    page = window.show("train")
    assert next(row for row in page.forms[0].rows if row.row.flag == "max_steps").variable.get() == "2000"
    assert before == sorted(
        (path, path.read_bytes()) for path in first.rglob("*") if path.is_file() and path.name != ace_gui.PROJECT_FILE
    )


def test_presets_are_applied_saved_and_deleted(make_window):
    window = make_window()
    app = window.app
    app.session.open(project_with_songs(window.program, "prep"))
    page = window.show("train")
    app.session.set_value("train", ace_gui.TRAIN_FIELDS[4], "50")
    app.window.page("train").ask_save_preset()
    window.type(window.dialog.entries[0], "mine")
    window.press("ok")
    app.session.set_value("train", ace_gui.TRAIN_FIELDS[4], "60")
    assert "mine" in page.preset.cget("values")
    page.preset.set("mine")
    page.preset.event_generate("<<ComboboxSelected>>")
    window.pump()
    assert app.session.space.value("train", ace_gui.TRAIN_FIELDS[4]) == "50"
    app.window.page("train").apply_preset("8 GB")
    assert app.session.space.value("train", ace_gui.TRAIN_FIELDS[4]) == "50"  # a card's preset leaves the length alone
    app.window.page("train").delete_preset("mine")
    assert "mine" not in Settings.load(app.session.settings.path).presets


def test_a_preset_for_another_card_takes_back_what_the_first_one_set(make_window):
    window = make_window()
    app = window.app
    script = window.program / "trainer_new.py"
    choices = 'parser.add_argument("--optimizer", choices=["adamw", "adamw8bit", "prodigy"], default="adamw")\n'
    text = script.read_text(encoding="utf-8")
    script.write_text(text.replace("args = parser", f"{choices}args = parser"), encoding="utf-8")
    app.session.read_flags()
    app.session.open(project_with_songs(window.program, "prep"))
    page = window.show("train")
    page.apply_preset("8 GB")
    assert app.session.project.values["train"]["optimizer"] == "adamw8bit"
    page.preset.set("8 GB")
    window.pump()
    assert "disabled" in str(page.delete_button.cget("state"))  # it is not the user's to delete
    page.apply_preset("24 GB")
    assert "optimizer" not in app.session.project.values["train"]
    row = next(row for row in app.session.space.fields("train") if row.flag == "optimizer")
    app.session.set_value("train", row, "prodigy")
    page.apply_preset("12 GB")
    assert app.session.space.value("train", row) == "prodigy"  # the user's own choice


def test_flags_of_the_script_beside_the_window_decide_what_is_shown(make_window, tmp_path: Path):
    window = make_window()
    page = window.show("train")
    shown = [row.row.flag for form in page.forms for row in form.rows]
    assert "optimizer" not in shown and "batch_size" in shown and "log_dir" in shown
    assert page.trial_button is not None


def test_a_trial_run_ends_in_a_sentence_and_its_savings_at_a_click(make_window):
    window = make_window()
    app = window.app
    app.session.open(project_with_songs(window.program, "prep"))
    page = window.show("train")
    window.click(page.trial_button)
    window.until(lambda: app.session.state == "idle")
    assert "1.50 s per step, about 30:00 for all 2000 steps, 7.2 GB of 10.0 GB memory" in window.banner()
    assert "--batch_size 2" in window.banner() and app.session.states["train"].status == "ready"
    window.click(app.window.banner.action)
    assert app.session.space.value("train", ace_gui.TRAIN_FIELDS[0]) == "2"
    (window.program / "small_card").write_text("")
    window.click(page.trial_button)
    window.until(lambda: app.session.state == "idle")
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


def test_stopping_says_how_to_go_on(make_window):
    window = make_window()
    app = window.app
    app.session.open(project_with_songs(window.program, "prep"))
    app.session.tell(app.runs.start("train"))
    window.until(lambda: app.runs.run.progress is not None)
    window.click(app.window.run_bar.stop)
    window.until(lambda: app.session.state == "idle")
    assert "choose “Go on from the last”" in window.banner()
    script = window.program / "trainer_new.py"  # as the fork's: it cannot go on
    text = script.read_text(encoding="utf-8").replace(
        'parser.add_argument("--resume", action="store_true")', "args = None"
    )
    script.write_text(text.replace("args.resume", "False"), encoding="utf-8")
    app.session.read_flags()
    app.session.tell(app.runs.start("train"))
    window.press("move")
    window.until(lambda: app.runs.run.progress is not None)
    window.click(app.window.run_bar.stop)
    window.until(lambda: app.session.state == "idle")
    assert window.banner().startswith("Training: stopped after")


def test_two_trainings_do_not_fill_one_folder(make_window):
    first = make_window()
    home = project_with_songs(first.program, "prep")
    first.app.session.open(home)
    other = home.with_name("other")
    for suffix in ("", "_filenames", "_prep"):
        shutil.copytree(home.with_name(home.name + suffix), home.with_name("other" + suffix))
    second = make_window(other)
    first.app.session.tell(first.app.runs.start("train"))
    first.until(lambda: first.app.runs.run.progress is not None)
    second.app.session.tell(second.app.runs.start("train"))
    assert (
        second.app.session.state == "idle"
        and "Another training is saving its LoRAs into checkpoints" in second.banner()
    )
    first.app.stop()
    first.until(lambda: first.app.session.state == "idle")
    second.app.session.tell(second.app.runs.start("train"))
    second.press("move")
    second.until(lambda: second.app.runs.run.progress is not None)


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
    ace_gui.kill_tree(child)
    child.wait()
    child.stdout.close()
    assert ace_gui.FolderLock.take(tmp_path) is not None
