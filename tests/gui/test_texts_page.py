"""The pages of prompts and lyrics of ace_gui.py, driven by events on a real Tk."""

from __future__ import annotations

from pathlib import Path

import pytest

import ace_gui
from tests.gui.window import project_with_songs, removed, write_wav


def test_edits_survive_switching_pages_songs_and_closing(make_window):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program, "lyrics")
    app.session.open(home)
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
    other = app.window.page("lyrics")
    assert other.open_song.stem == "b"
    window.type(other.editors["prompt"].text, "at the end")
    window.close()
    assert (home / "b_prompt.txt").read_text() == "at the end"


def test_typing_is_stored_without_pressing_anything(make_window, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ace_gui, "AUTOSAVE_MS", 50)
    window = make_window()
    home = project_with_songs(window.program, "lyrics")
    window.app.session.open(home)
    page = window.show("prompts")
    window.type(page.editors["prompt"].text, "kept")
    window.until(lambda: (home / "a_prompt.txt").read_text() == "kept")


def test_a_text_changed_on_disk_meanwhile_is_not_lost(make_window):
    window = make_window()
    home = project_with_songs(window.program, "lyrics")
    window.app.session.open(home)
    page = window.show("prompts")
    window.type(page.editors["prompt"].text, "mine")
    (home / "a_prompt.txt").write_text("theirs")
    page.save()
    assert (home / "a_prompt.txt").read_text() == "mine"
    [(folder, reason, _)] = removed(home)
    assert reason == "overwritten" and (folder / "a_prompt.txt").read_text() == "theirs"
    (home / "a_prompt.txt").write_text("by a script")
    window.app.session.look(force=True)
    assert page.editors["prompt"].get() == "by a script"


def test_tags_and_replacing_over_all_songs(make_window):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program, "lyrics")
    app.session.open(home)
    page = window.show("prompts")
    app.window.commands["texts.add_tag"]()
    window.press("ok")
    assert window.dialog_open()  # an empty tag is not accepted
    window.type(window.dialog.entries[0], "mystyle")
    window.press("ok")
    assert [(home / f"{n}_prompt.txt").read_text() for n in "ab"] == ["mystyle, pop, a", "mystyle, pop, b"]
    assert page.editors["prompt"].get() == "mystyle, pop, a"
    app.window.commands["texts.replace"]()
    window.type(window.dialog.entries[0], "pop")
    window.type(window.dialog.entries[1], "rock")
    window.press("ok")
    app.window.commands["texts.remove_tag"]()
    window.type(window.dialog.entries[0], "mystyle")
    window.press("ok")
    assert [(home / f"{n}_prompt.txt").read_text() for n in "ab"] == ["rock, a", "rock, b"]
    app.window.commands["texts.instrumental_all"]()
    window.press("all")
    assert [(home / f"{n}_lyrics.txt").read_text() for n in "ab"] == ["[instrumental]"] * 2
    assert len(removed(home)) == 4


def test_enter_in_the_instrumental_dialog_keeps_the_lyrics_that_are_there(make_window):
    window = make_window()
    home = project_with_songs(window.program, "prompts")
    (home / "a_lyrics.txt").write_text("[verse]\nsung", encoding="utf-8")
    window.app.session.open(home)
    window.app.window.commands["texts.instrumental_all"]()
    window.until(lambda: window.dialog.window.winfo_viewable())
    window.key("Return")
    assert [(home / f"{name}_lyrics.txt").read_text() for name in "ab"] == ["[verse]\nsung", "[instrumental]"]


def refuse_to_write(monkeypatch: pytest.MonkeyPatch, name: str) -> set[str]:
    """Files that cannot be written, as on a full disk or in a read-only folder."""
    refused, write = {name}, ace_gui.write_atomically

    def refuse(path: Path, text: str) -> None:
        if path.name in refused:
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(ace_gui, "write_atomically", refuse)
    return refused


def test_a_text_that_cannot_be_written_is_not_lost(make_window, monkeypatch: pytest.MonkeyPatch):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program)
    refused = refuse_to_write(monkeypatch, "a_lyrics.txt")
    app.session.open(home)
    page = window.show("prompts")
    window.type(page.editors["lyrics"].text, "precious")
    window.click(page.tools[1])  # next song
    assert page.open_song.stem == "a" and page.editors["lyrics"].get() == "precious"
    assert page.list.selection() == ("a.wav",) and "Cannot save a_lyrics.txt" in window.banner()
    app.window.change_look(language="zh")
    app.session.open(None)
    assert app.session.project.home == home and page.editors["lyrics"].get() == "precious"
    app.close()
    window.press("cancel")
    assert app.session.state != "closed" and page.editors["lyrics"].get() == "precious"
    refused.clear()
    window.click(page.tools[1])
    assert page.open_song.stem == "b" and (home / "a_lyrics.txt").read_text() == "precious"


def test_a_window_can_be_closed_with_a_text_that_cannot_be_written(make_window, monkeypatch: pytest.MonkeyPatch):
    window = make_window()
    home = project_with_songs(window.program)
    refuse_to_write(monkeypatch, "a_lyrics.txt")
    window.app.session.open(home)
    page = window.show("prompts")
    window.type(page.editors["lyrics"].text, "x")
    window.app.close()
    window.dialog.press("discard")
    assert window.app.session.state == "closed"


def test_what_was_typed_for_a_song_that_vanished_is_kept(make_window):
    window = make_window()
    app = window.app
    home = project_with_songs(window.program, "prep")
    app.session.open(home)
    page = window.show("prompts")
    window.type(page.editors["prompt"].text, "hello")
    (home / "a.wav").unlink()
    window.until(lambda: len(app.session.songs) == 1)
    assert page.open_song.stem == "b" and (home / "a_prompt.txt").read_text() == "hello"


def test_songs_that_appear_while_the_page_is_shown_open_their_texts(make_window, program: Path):
    window = make_window()
    home = program / "Taudio" / "new"
    home.mkdir(parents=True)
    window.app.session.open(home)
    page = window.show("prompts")
    assert page.open_song is None
    write_wav(home / "a.wav")
    (home / "a_prompt.txt").write_text("pop", encoding="utf-8")
    window.app.session.look()
    assert page.open_song.stem == "a" and page.editors["prompt"].get() == "pop"
