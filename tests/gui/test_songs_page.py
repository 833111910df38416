"""The songs page of ace_gui.py and the song library behind it, driven by events on a real Tk."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tkinter as tk
import tkinter.font
from pathlib import Path

import pytest

import ace_gui
from tests.gui.window import project_with_songs, removed, write_wav


def test_a_folder_that_holds_audio_offers_another_clearing_or_adding(make_window, songs: list[Path]):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program, "prompts")
    app.questions.choose_files = lambda title: [str(songs[0])]

    def add_to_qing_tian() -> None:
        app.session.open(None)
        app.session.joined.clear()
        window.click(app.window.page("songs").add_button)
        window.type(window.dialog.entries[0], "qing_tian")
        window.press("ok")
        assert set(window.dialog.buttons) == {"other", "clear", "add", "cancel"}
        assert f"already holds {len(list(home.glob('*.wav')))} songs" in window.dialog.message

    add_to_qing_tian()
    window.press("cancel")
    assert sorted(path.name for path in home.glob("*.wav")) == ["a.wav", "b.wav"] and app.session.project.home is None
    add_to_qing_tian()
    window.press("add")
    window.until(lambda: app.session.state != "importing" and len(app.session.songs) == 3)
    add_to_qing_tian()
    window.press("other")
    assert window.dialog.entries[0].get() == "qing_tian_2"
    window.press("ok")
    window.until(lambda: app.session.state != "importing" and len(app.session.songs) == 1)
    assert app.session.project.home == home.with_name("qing_tian_2")
    add_to_qing_tian()
    window.press("clear")
    window.until(
        lambda: app.session.state != "importing" and [song.stem for song in app.session.songs] == ["qing_tian"]
    )
    [(_, _, names)] = [entry for entry in removed(home) if entry[1] == "clear"]
    assert {"a.wav", "b.wav", "qing_tian.wav", "a_prompt.txt", "b_prompt.txt"} == set(names)
    app.window.menus.fill_bin()
    assert "library before clearing" in app.window.menus.filled["menu.restore"].entrycget(0, "label")
    app.window.menus.filled["menu.restore"].invoke(0)
    window.until(lambda: {"a", "b"} <= {song.stem for song in app.session.songs})


def test_duplicates_and_damaged_files_are_said_at_once(make_window, songs: list[Path], tmp_path: Path):
    window = make_window()
    app = window.app
    (tmp_path / "bad.wav").write_bytes(b"no music")
    silent = write_wav(tmp_path / "silent.wav", level=0)
    shutil.copy(songs[0], tmp_path / "again.wav")
    app.questions.choose_files = lambda title: [
        str(path) for path in (songs[0], tmp_path / "again.wav", tmp_path / "bad.wav", silent)
    ]
    window.click(app.window.page("songs").add_button)
    window.press("ok")
    window.until(lambda: app.session.state != "importing" and len(app.session.songs) == 2)
    assert (
        "again.wav: has the same content as qing_tian.wav" in app.window.log.content()
        and "bad.wav: is no valid wav" in app.window.log.content()
    )
    window.until(lambda: "silent: is silent" in window.banner())
    assert app.window.page("songs").table.item("silent.wav", "tags") == ("bad",)


def test_rename_remove_and_restore_by_keys(make_window):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program, "lyrics")
    app.session.open(home)
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
    assert [song.stem for song in app.session.songs] == ["b"] and not (home / "xin_ge_lyrics.txt").exists()
    app.session.tell(ace_gui.restore(app.session, ace_gui.list_removed(app.session.project, home / "none")[0]))
    assert [song.title for song in app.session.songs] == ["b", "新歌"]


def test_name_and_folder_can_be_changed_before_and_after(make_window, songs: list[Path]):
    window = make_window()
    app = window.app
    page = window.show("songs")
    page.name.set("my style")
    assert page.folder.get() == str(Path("Taudio") / "my style") or page.folder.get().endswith("my style")
    window.click(page.apply_button)
    assert app.session.project.home == window.program / "Taudio" / "my style"
    app.questions.choose_files = lambda title: [str(path) for path in songs]
    window.click(app.window.page("songs").add_button)
    window.until(lambda: app.session.state != "importing" and len(app.session.songs) == 2)
    page = app.window.page("songs")
    page.folder.set("elsewhere/风格")
    assert page.name.get() == "风格"
    window.click(page.apply_button)
    window.press("move")
    assert app.session.project.home == window.program / "elsewhere" / "风格" and len(app.session.songs) == 2
    assert not (window.program / "Taudio" / "my style").exists()
    assert [song.title for song in app.session.songs] == ["晴天", "夜曲 (Live)"]


def test_files_given_on_the_command_line_are_added(make_window, songs: list[Path]):
    window = make_window(sources=tuple(songs))
    window.until(window.dialog_open)
    window.press("ok")
    window.until(lambda: len(window.app.session.songs) == 2)


def test_every_faulty_song_is_said_however_the_window_looks_meanwhile(make_window):
    window = make_window()
    app = window.app
    home = window.program / "Taudio" / "x"
    write_wav(home / "fine.wav")
    for number in range(6):
        write_wav(home / f"quiet{number}.wav", seconds=0.5 + number, level=0)
    app.session.open(home)
    window.until(lambda: app.window.banner.frame.winfo_manager())
    assert "Songs that need attention: 6" in window.banner() and "and 3 more" in window.banner()
    assert len(window.banner().splitlines()) == 5
    window.until(lambda: app.window.log.frame.winfo_height() >= app.window.ui.px(60))  # the log is still in sight
    assert "unreadable or silent get no text: 6" in app.runs.describe("prompts")[1]


def test_what_was_refused_and_what_is_faulty_are_both_said(make_window, songs: list[Path], tmp_path: Path):
    window = make_window()
    app = window.app
    app.questions.add([*songs, write_wav(tmp_path / "quiet.wav", level=0), tmp_path / "nowhere.wav"])
    window.press("ok")
    window.until(lambda: "Songs that need attention: 1" in window.banner())
    assert "· nowhere.wav: there is no such file." in window.banner() and "· quiet: is silent" in window.banner()


def test_a_project_folder_that_vanishes_leaves_an_empty_library(make_window):
    window = make_window()
    app = window.app
    app.session.open(project_with_songs(window.program, "prep"))
    shutil.rmtree(app.session.project.home)
    window.until(lambda: not app.session.songs)
    for key in app.window.rail.steps:
        window.show(key)
    app.session.set_value("train", ace_gui.TRAIN_FIELDS[0], "3")
    window.until(lambda: app.session.save_due == float("inf"))
    assert window.statuses() == ["ready"] + ["locked"] * 6


def test_a_move_that_fails_says_why(make_window, tmp_path: Path):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program)
    app.session.open(home)
    (tmp_path / "file").write_text("")
    app.session.tell(ace_gui.change_home(app.session, "x", str(tmp_path / "file" / "x")))
    window.press("move")
    assert (
        "A file could not be used" in window.banner()
        and app.session.project.home == home
        and len(app.session.songs) == 2
    )


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_marks_in_the_song_table_fit_their_columns(make_window, language: str):
    window = make_window(language=language)
    page = window.app.window.page("songs")
    font = tk.font.nametofont("TkDefaultFont", root=window.root)
    for column, prefix in (("length", "short."), ("prompt", "mark."), ("lyrics", "mark."), ("record", "mark.")):
        for key in (key for key in ace_gui.TEXTS if key.startswith(prefix)):
            assert font.measure(page.ui.t(key)) + 12 <= page.table.column(column, "width"), (column, key)


def test_a_song_that_no_program_opens_is_said(make_window, monkeypatch: pytest.MonkeyPatch):
    window = make_window()
    window.app.session.open(project_with_songs(window.program))
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
    ace_gui.use_home(window.app.session, window.program / "Taudio" / "x")
    window.app.importer.copy(window.app.session.project.home, sources)
    window.until(lambda: window.app.session.state != "importing")
    stored = json.loads((window.app.session.project.home / ace_gui.PROJECT_FILE).read_text(encoding="utf-8"))
    assert sorted(stored["titles"].values()) == sorted(path.stem for path in sources)


def test_songs_that_cannot_be_removed_are_not_said_to_be(make_window):
    window = make_window()
    home = project_with_songs(window.program)
    window.app.session.open(home)
    (home / ace_gui.BIN_FOLDER).write_text("a file where the bin should be")
    window.app.session.tell(ace_gui.ask_remove(window.app.session, window.app.session.songs))
    window.press("remove")
    assert window.banner().startswith("A file could not be used") and len(window.app.session.songs) == 2


def test_name_and_folder_follow_each_other_without_changing_what_is_typed(make_window):
    page = make_window().show("songs")
    page.folder.set("Taudio/")  # on the way to a longer path
    assert (page.folder.get(), page.name.get()) == ("Taudio/", "Taudio")
    page.folder.set("Taudio/风格")
    assert page.name.get() == "风格"
    for wrong in ("", "a?", "x_prep"):  # no name of a folder: the folder stays
        page.name.set(wrong)
        assert page.folder.get() == "Taudio/风格"
    page.name.set("b")
    assert Path(page.folder.get()) == Path("Taudio", "b") and "disabled" not in str(page.apply_button.cget("state"))
    page.folder.set("")
    assert page.name.get() == "" and "disabled" in str(page.apply_button.cget("state"))
