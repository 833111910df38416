"""What the scripts' Python has, installations, TensorBoard and ComfyUI, without a display."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import ace_gui
from tests.gui.desk import outcome
from tests.gui.window import project_with_songs

START = """
import sys
GROUPS = {}
print("start.py", *sys.argv[1:])
"""


def test_the_python_of_the_scripts_is_asked_once(make_desk, program: Path):
    desk = make_desk(python=sys.executable)
    desk.environment.query()
    assert desk.environment.asking and desk.environment.report is None
    desk.until(lambda: desk.environment.report is not None, 120)
    report = desk.environment.report
    assert report["python"].startswith("3.") and not desk.environment.asking
    desk.environment.query(only_if_unknown=True)
    assert desk.environment.report is report
    sentences = [finding.say("en") for finding in desk.environment.findings()]
    assert any(sentence.startswith(f"Python: {sys.executable}") for sentence in sentences)
    assert any(sentence.startswith("All scripts are there") for sentence in sentences)


def test_an_installation_runs_like_a_step_and_python_is_asked_again(make_desk, program: Path):
    desk = make_desk(python=sys.executable)
    (program / "start.py").write_text(START, encoding="utf-8")
    assert [arguments[1:] for _, arguments in desk.environment.installations()] == [["setup"]]
    asked = []
    desk.environment.query = lambda: asked.append(desk.session.state)
    assert desk.environment.mend("install") is None and desk.session.state == "running"
    assert desk.ended().startswith("Installation: done") and asked == ["idle"]
    assert "start.py setup" in desk.lines


def test_what_is_missing_is_installed_where_it_is_missed(make_desk, program: Path):
    desk = make_desk(python=sys.executable)
    ran: list[tuple[list[str], Path | None]] = []
    desk.runs.command = lambda arguments, title, after, python=None: ran.append((arguments, python))
    desk.environment.mend("tensorboard")
    desk.environment.mend("pypinyin")
    assert ran == [
        (["-m", "pip", "install", "tensorboard"], None),  # the scripts' Python
        (["-m", "pip", "install", "pypinyin"], Path(sys.executable)),  # the window's own
    ]


def test_without_a_python_or_start_py_it_is_said_how_to_install_by_hand(
    make_desk, program: Path, monkeypatch: pytest.MonkeyPatch
):
    desk = make_desk(python=sys.executable)
    by_hand = desk.session.t("install.by_hand")
    assert outcome(desk.environment.mend("install")).sentence == by_hand
    monkeypatch.setattr(ace_gui, "find_python", lambda settings, program: None)
    assert outcome(desk.environment.install(["-V"])).sentence == by_hand
    desk.environment.query()
    assert not desk.environment.asking
    board = ace_gui.TensorBoard()
    assert ace_gui.open_tensorboard(desk.session, board).button == "title.environment" and not board.alive


def test_tensorboards_answers_become_sentences(make_desk, monkeypatch: pytest.MonkeyPatch):
    desk, opened = make_desk(), []
    monkeypatch.setattr(ace_gui.webbrowser, "open", opened.append)
    told = [ace_gui.tensorboard_outcome(desk.session, kind, "detail") for kind in ("ready", "missing", "failed")]
    assert [(one.level, one.button) for one in told] == [("good", ""), ("bad", "mend.tensorboard"), ("bad", "")]
    assert opened == ["detail"] and told[2].sentence == "TensorBoard did not start: detail"


def test_the_finished_lora_is_copied_and_an_earlier_copy_stays(make_desk, program: Path, tmp_path: Path):
    desk = make_desk(project_with_songs(program))
    output, folder = desk.session.space.lora_output(), tmp_path / "loras"
    output.write_text("new")
    folder.mkdir()
    (folder / output.name).write_text("old")
    ace_gui.copy_to_comfyui(desk.session, folder)
    desk.until(lambda: desk.banner().startswith("Copied to"))
    assert sorted(path.read_text() for path in folder.iterdir()) == ["new", "old"]
    (tmp_path / "file").write_text("")
    ace_gui.copy_to_comfyui(desk.session, tmp_path / "file")
    desk.until(lambda: desk.banner().startswith("A file could not be used"))
