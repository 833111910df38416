"""Pages of ace_gui.py that are a form and a button: what starting a step and stopping it do, on a real Tk."""

from __future__ import annotations

import pytest

import ace_gui
from tests.gui.window import DEAF, project_with_songs


def test_run_all_does_the_rest_and_stops_at_the_first_failure(make_window):
    program = None
    window = make_window()
    program = window.program
    home = project_with_songs(program)
    (program / "fail_prep").write_text("")
    window.app.session.open(home)
    window.app.session.set_value("train", ace_gui.TRAIN_FIELDS[4], "3")
    window.click(window.app.window.rail.tools["run.all"])
    window.until(lambda: window.app.session.state == "idle" and not window.app.runs.chain, 60)
    assert window.statuses() == ["done"] * 4 + ["failed", "locked", "locked"]
    assert "Step 5, Preprocessing, failed (exit status 1)" in window.banner() and "ran out of memory" in window.banner()
    (program / "fail_prep").unlink()
    window.click(window.app.window.rail.tools["run.all"])
    window.until(lambda: window.app.session.state == "idle" and not window.app.runs.chain, 60)
    assert window.statuses() == ["done"] * 7


def test_success_without_a_result_is_reported_as_failure(make_window):
    window = make_window()
    home = project_with_songs(window.program, "dataset")
    (window.program / "empty_prep").write_text("")
    window.app.session.open(home)
    window.start("prep")
    assert window.statuses()[4] == "failed" and "left no result" in window.banner()


def test_force_stop_kills_a_script_that_does_not_listen(make_window):
    window = make_window()
    app = window.app
    app.session.open(project_with_songs(window.program, "lyrics"))
    (window.program / "convert2hf_dataset_new.py").write_text(DEAF)
    window.click(window.show("dataset").start_button)
    window.until(lambda: "deaf" in app.window.log.content())
    window.click(app.window.run_bar.stop)
    window.pump(20)
    assert app.session.state == "stopping"
    window.click(app.window.run_bar.stop)
    window.until(lambda: app.session.state == "idle", 10)
    assert window.statuses()[3] == "ready"


def test_a_script_that_does_not_stop_in_time_is_killed(make_window, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ace_gui, "DEFAULT_STOP_SECONDS", 0.3)
    window = make_window()
    app = window.app
    app.session.open(project_with_songs(window.program, "lyrics"))
    (window.program / "convert2hf_dataset_new.py").write_text(DEAF)
    window.click(window.show("dataset").start_button)
    window.until(lambda: "deaf" in app.window.log.content())
    window.click(app.window.run_bar.stop)
    window.until(lambda: app.session.state == "idle", 10)
    assert "did not stop in time" in app.window.log.content()


def test_an_out_of_date_step_is_offered_first(make_window):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program)
    app.session.open(home)
    app.session.set_value("train", ace_gui.TRAIN_FIELDS[4], "2")
    window.click(app.window.rail.tools["run.all"])
    window.until(lambda: app.session.state == "idle" and not app.runs.chain, 60)
    (home / "a_prompt.txt").write_text("rock")
    assert window.statuses() == ["done"] * 3 + ["stale"] * 4
    assert "The prompt of a was changed" in window.show("dataset").strip_text.cget("text")
    window.click(window.show("prep").start_button)
    window.press("first")
    window.until(lambda: app.session.state == "idle" and not app.runs.chain, 30)
    assert window.statuses()[3:5] == ["done", "done"]


def test_20000_lines_of_a_child_reach_the_window(make_window):
    window = make_window()
    app = window.app
    app.session.open(project_with_songs(window.program, "lyrics"))
    (window.program / "convert2hf_dataset_new.py").write_text("print(''.join(f'line {n}\\n' for n in range(20000)))")
    window.start("dataset")
    assert "line 19999" in app.window.log.content()
    [log] = (app.session.project.home / "logs").glob("*_dataset.log")
    assert log.read_text().count("\n") >= 20_000


def test_a_locked_form_does_not_call_empty_what_earlier_steps_fill_in(make_window):
    window = make_window()
    window.app.session.open(project_with_songs(window.program))
    page = window.show("strength")
    assert [str(row.note.cget("style")) for row in page.forms[0].rows] == ["Small.TLabel"] * 3


def test_songs_that_failed_are_named(make_window):
    window = make_window()
    app = window.app
    app.session.open(project_with_songs(window.program))
    lines = ("song 1/2 | a.wav | done", "song 2/2 | b.wav | failed: The audio is silent.")
    (window.program / "generate_prompts_lyrics.py").write_text(f"print(*{lines!r}, sep='\\n')\nraise SystemExit(1)")
    app.session.tell(app.runs.start("prompts"))
    window.until(lambda: app.session.state == "idle")
    assert "Songs that did not succeed: 1 (b.wav)." in window.banner()
