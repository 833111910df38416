"""The environment page of ace_gui.py, driven by events on a real Tk."""

from __future__ import annotations

import json
from pathlib import Path

from tests.gui.window import project_with_songs


def test_a_failed_start_is_explained(make_window):
    window = make_window(python="")
    app = window.app
    app.session.open(project_with_songs(window.program, "lyrics"))
    (window.program / "convert2hf_dataset_new.py").unlink()
    page = window.show("dataset")
    window.click(page.start_button)
    assert "convert2hf_dataset_new.py" in window.banner() and app.session.state == "idle"
    window.click(app.window.banner.action)
    assert app.window.page_key == "environment"


def test_the_environment_page_asks_the_python_and_copies_a_report(make_window):
    window = make_window()
    app = window.app
    window.click(app.window.rail.tools["title.environment"])
    window.until(lambda: app.environment.report is not None, 120)
    assert app.environment.report["python"].startswith("3.")
    app.window.page("environment")._copy_report()
    assert "Python version" in window.root.clipboard_get() and "ACE-Step LoRA" in window.root.clipboard_get()


def test_settings_of_the_environment_page_are_stored(make_window, tmp_path: Path):
    window = make_window()
    app = window.app
    app.window.show_page("environment")
    window.pump()
    page = app.window.page("environment")
    window.type(page.widgets["endpoint"], "https://hf-mirror.com")
    window.key("Return", page.widgets["endpoint"])
    app.questions.choose_folder = lambda title: str(tmp_path)
    page._browse("checkpoint_dir")
    stored = json.loads(app.session.settings.path.read_text(encoding="utf-8"))
    assert (stored["endpoint"], stored["checkpoint_dir"]) == ("https://hf-mirror.com", str(tmp_path))
    assert app.session.settings.child_environment()["HF_ENDPOINT"] == "https://hf-mirror.com"
